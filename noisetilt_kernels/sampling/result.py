"""Results of a sampler: finished particles, the whole result, the error for values that are not finite."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..checks import NoisetiltError
from .plain import to_plain
from .records import StepRecord

_METADATA = "noisetilt_result"
"""Key of the metadata of a saved result."""


class FinishedParticle(NamedTuple):
    """One finished particle, passed to `SamplerOptions.on_finished`."""

    particle: int
    """Number of the particle."""
    prompt: str
    """Prompt of the particle."""
    latent: Tensor
    """x_0 of a flow, or the noise of a one-step model; float32 (*shape), on the CPU."""
    image: Tensor
    """Image (3, H, W) or video (3, F, H, W) with values in [0, 1]; float32, on the CPU."""
    reward: float
    """Reward of the image."""


class NonFiniteError(NoisetiltError, ArithmeticError):
    """A reward, gradient or latent is NaN or infinite.

    Attributes:
        method, step, particle: place where it occurred.
        what: sentence that names the value that is not finite and its place.
    """

    def __init__(self, method: str, step: int, particle: int, what: str) -> None:
        self.method, self.step, self.particle = method, step, particle
        self.what = f"{method}: {what} at step {step} of particle {particle}"
        super().__init__(f'{self.what}; SamplerOptions(non_finite="plain_noise") leaves such steps unguided')


@dataclass(frozen=True, eq=False)
class Result:
    """Result of a sampler, with the P particles in order."""

    method: str
    """Name of the sampler."""
    prompts: tuple[str, ...]
    """Prompt of each particle."""
    latents: Tensor
    """x_0 of a flow, or the noise of a one-step model; float32 (P, *shape), on the CPU."""
    rewards: Tensor
    """Rewards of the finished images; float32 (P,), on the CPU."""
    nfe: int
    """Number of function evaluations of all particles: forwards of the model, counted per batch entry."""
    records: tuple[StepRecord, ...]
    """Record of every step of every particle, in the order in which they were made."""
    chosen: tuple[int, ...]
    """Indices of the chosen particles: all, or after `best_of_n` the best one of each prompt."""
    weights: Tensor | None = None
    """Final weights of the K copies of each particle, with the sum 1; float64 (P, K), on the CPU. None for a
    sampler without weighted copies."""
    log_z: Tensor | None = None
    """log Z of each particle, float64 (P,), on the CPU: Z is an unbiased estimate of the mean of
    exp(r(x_0) / alpha) over the particles of `base`. None for a sampler without weighted copies."""

    @property
    def ess(self) -> Tensor | None:
        """Effective sample size 1 / sum w^2 of the copies of each particle, float64 (P,), from 1 to K."""
        return None if self.weights is None else 1 / self.weights.square().sum(dim=1)

    @property
    def best(self) -> int:
        """Index of the particle with the highest reward. The first one wins a tie; NaN is the lowest."""
        return best_index(self.rewards.tolist())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as dicts and lists of tensors, numbers and strings, for `torch.save`."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> "Result":
        """Return the result of a dict from `to_dict`."""
        return Result(
            **{
                **plain,
                "prompts": tuple(plain["prompts"]),
                "records": tuple(StepRecord(**record) for record in plain["records"]),
                "chosen": tuple(plain["chosen"]),
            }
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: `latents`, `rewards`, `weights`, `log_z`, and the rest as metadata.

        Raises:
            OSError: the file cannot be written.
        """
        from safetensors import SafetensorError  # the operators do without this package
        from safetensors.torch import save_file

        plain = self.to_dict()
        tensors = {name: value.contiguous() for name, value in plain.items() if isinstance(value, Tensor)}
        rest = {name: value for name, value in plain.items() if name not in tensors}
        try:
            save_file(tensors, path, {_METADATA: json.dumps(rest)})
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error

    @staticmethod
    def load(path: str | Path) -> "Result":
        """Return the result of a file from `save`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not one from `save`.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a result saved by Result.save: {error}") from error
        if _METADATA not in metadata:
            raise ValueError(f"{path} is not a result saved by Result.save: it has no records")
        return Result.from_dict({**json.loads(metadata[_METADATA]), **tensors})


def best_index(rewards: Sequence[float]) -> int:
    """Return the index of the highest reward. The first one wins a tie; NaN counts as the lowest."""
    return max(range(len(rewards)), key=lambda i: -math.inf if math.isnan(rewards[i]) else rewards[i])
