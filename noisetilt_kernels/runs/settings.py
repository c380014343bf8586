"""Settings of a run, and options for computing it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from ..model_sources import default_arguments
from ..rewards import RewardSpec
from ..rewards.frames import FRAMES_AT_ONCE
from ..sampling.methods import Method
from .diversity import DiversitySpec


@dataclass(frozen=True)
class Settings:
    """All settings that the images of a run depend on.

    The method is resolved: it has the value of every argument. A missing one is the default of the bundled
    model (`model_sources.BUNDLED`), or else of the sampler.

    Attributes:
        model: name of a bundled model, a folder, or a hub id.
        prompts: the prompts. Each is used for `particles` particles; the particles of the first prompt come
            first.
        method: the sampler and its arguments.
        rewards: rewards that steer, as a weighted sum.
        held_out: rewards that only judge finished images.
        diversity: measures of diversity of the finished images.
        particles: number of particles for each prompt in each round.
        rounds: number of rounds. A round samples every particle once, with new noise. The best of n takes
            the best over n rounds.
        seed: seed of the run; particle p draws from the stream of (seed, p).
        height, width: size of the images in pixels; None is the model's default.
        num_frames: number of frames of a video; None is the model's default.
        guidance_scale: strength of embedded or classifier-free guidance; None is the model's default.
        guidance_scale_2: strength of guidance for the second transformer of Wan2.2; None is guidance_scale.
        true_cfg_scale: scale of classifier-free guidance of FLUX.1 and Qwen-Image; None is the default.
        negative_prompt: prompt that classifier-free guidance steers away from; None is the model's default.
        dtype: dtype of the model's weights, "bfloat16", "float16" or "float32".
        denoiser: folder, file or hub id of fine-tuned weights for the model's transformer or U-Net, or None.
        lora: LoRA weights: each a folder, file or hub id, and "=WEIGHT" after it for a weight other than 1.
        variant: variant of the model's weights such as "fp16"; None is the default one.
        quantize: quantisation of the denoiser's weights, "int8", "fp8" or "nf4"; None for none.
        reward_decoder: folder or hub id of a tiny autoencoder that decodes the images judged during sampling;
            None for the VAE.
        non_finite: treatment of values that are not finite, see `sampling.SamplerOptions`.
    """

    model: str
    prompts: tuple[str, ...]
    method: Method
    rewards: tuple[RewardSpec, ...]
    held_out: tuple[RewardSpec, ...] = ()
    diversity: tuple[DiversitySpec, ...] = ()
    particles: int = 1
    rounds: int = 1
    seed: int = 0
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    true_cfg_scale: float | None = None
    negative_prompt: str | None = None
    dtype: str = "float32"
    denoiser: str | None = None
    lora: tuple[str, ...] = ()
    variant: str | None = None
    quantize: str | None = None
    reward_decoder: str | None = None
    non_finite: str = "raise"

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", self.method.resolved(default_arguments(self.model)))

    @property
    def count(self) -> int:
        """Number of particles in the whole run."""
        return self.rounds * self.count_of_round

    @property
    def count_of_round(self) -> int:
        """Number of particles in a round."""
        return len(self.prompts) * self.particles

    @property
    def particle_prompts(self) -> list[str]:
        """Prompt of each particle."""
        return [prompt for prompt in self.prompts for _ in range(self.particles)] * self.rounds

    def particles_of(self, index: int) -> list[int]:
        """Return the particles of a prompt, by its index, round by round."""
        first = range(index * self.particles, (index + 1) * self.particles)
        return [start + particle for start in range(0, self.count, self.count_of_round) for particle in first]

    @property
    def nfe(self) -> int:
        """Forward passes of the model in the whole run."""
        return self.method.nfe * self.count

    @property
    def model_options(self) -> dict[str, Any]:
        """Keyword arguments for the model's adapter class: the options that are not None."""
        scales = ("guidance_scale", "guidance_scale_2", "true_cfg_scale")
        names = ("height", "width", "num_frames", *scales, "negative_prompt")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def one_step(self) -> bool:
        """True if the method is for one-step models."""
        return self.method.one_step

    @property
    def score_names(self) -> list[str]:
        """Names of the scores to show beside the steering reward: parts of a sum, and held-out rewards."""
        parts = self.rewards if len(self.rewards) > 1 else ()
        return [reward.name for reward in (*parts, *self.held_out)]

    def to_json(self) -> dict[str, Any]:
        """Return the settings in the form of run.json."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "method": asdict(self.method),
            "rewards": {reward.name: reward.weight for reward in self.rewards},
            "held_out": [reward.name for reward in self.held_out],
            "diversity": {one.name: one.source for one in self.diversity},
            "sources": {
                reward.name: reward.source
                for reward in (*self.rewards, *self.held_out)
                if reward.source != reward.entry.source
            },
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Settings":
        """Return the settings of a run.json, see `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the values do not describe settings.
        """

        def spec(name: str, weight: float = 1.0) -> RewardSpec:
            found = RewardSpec.parse(name, weight)
            source = values["sources"].get(name)
            return found if source is None else found.with_source(source)

        others = {field.name: _as_tuple(values[field.name]) for field in fields(cls) if field.name in values}
        return cls(
            **{
                **others,
                "method": Method(**values["method"]),
                "rewards": tuple(spec(name, weight) for name, weight in values["rewards"].items()),
                "held_out": tuple(map(spec, values["held_out"])),
                "diversity": tuple(
                    replace(DiversitySpec.parse(name, values["model"], {}), source=source)
                    for name, source in values.get("diversity", {}).items()
                ),
            }
        )


def _as_tuple(value: Any) -> Any:
    """Return a list of JSON as the tuple that it was written from, and any other value unchanged."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class ComputeOptions:
    """Options for computing a run. They change rounding, which the operator can amplify.

    Attributes:
        device: device of the model and the rewards.
        micro_batch: number of batch entries in a forward pass of the model.
        offload: keep text encoders and idle transformers off the device.
        frames_at_once: number of frames of a video in a forward pass of an image reward.
        progress: show a progress bar.
    """

    device: str = "cpu"
    micro_batch: int = 1
    offload: bool = False
    frames_at_once: int = FRAMES_AT_ONCE
    progress: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the options in the form of run.json, with the number of CPU threads of this process."""
        return {**asdict(self), "threads": torch.get_num_threads()}


_MOST_PARTICLES = 1_000_000
_LARGEST_BATCH = 10_000


def check_limits(settings: Settings, compute: ComputeOptions) -> None:
    """Raise ValueError for numbers that no run can hold in memory, and for prompts that are not text."""
    if settings.count > _MOST_PARTICLES:
        raise ValueError(
            f"a run has at most {_MOST_PARTICLES:,} images, got {settings.count:,}; "
            "split them into several runs with other values of --seed"
        )
    sizes = {"--micro-batch": compute.micro_batch, "--frames-at-once": compute.frames_at_once}
    for option, value in sizes.items():
        if value > _LARGEST_BATCH:
            raise ValueError(f"{option} must be at most {_LARGEST_BATCH:,}, got {value:,}")
    for prompt in filter(None, (*settings.prompts, settings.negative_prompt)):
        try:
            prompt.encode()
        except UnicodeEncodeError:  # an argument with other bytes
            raise ValueError(f"the prompt {prompt!a} is not valid text; write it in UTF-8") from None


def default_device() -> str:
    """Return "cuda" if a GPU is available, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raise ValueError unless tensors can be created on the device."""
    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device {device} cannot be used here ({reason}); `noisetilt doctor` lists the devices"
        ) from None


def default_dtype(device: str) -> str:
    """Return the default dtype of weights on a device: float32 on the CPU, else bfloat16."""
    return "float32" if torch.device(device).type == "cpu" else "bfloat16"
