"""What fixes a run, and what only says how it is to be computed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..rewards.frames import FRAMES_AT_ONCE
from ..sampling.methods import Method


@dataclass(frozen=True)
class Settings:
    """Everything that the images of a run depend on.

    Attributes:
        model: a built-in name, a folder, or a hub id.
        prompts: as many as there are, each for `particles` particles, those of the first prompt first.
        method: the sampler and its options.
        rewards: weight of each reward by name; the sum steers.
        held_out: rewards that only judge finished images.
        sources: folder or hub id of a reward's weights, where it is not the usual one.
        particles: for each prompt.
        seed: particle p draws from the stream of (seed, p).
        height, width: of the images in pixels; None is the model's own, as of the next three.
        num_frames: of videos.
        guidance_scale: of what the model has, embedded or classifier-free guidance.
        negative_prompt: what classifier-free guidance leads away from.
        dtype: of the model's weights, "bfloat16", "float16" or "float32".
        denoiser: folder, file or hub id of fine-tuned weights for the model's transformer or U-Net, or None.
        lora: folder, file or hub id of LoRA weights, or None.
        non_finite: see `sampling.SamplerOptions`.
    """

    model: str
    prompts: tuple[str, ...]
    method: Method
    rewards: Mapping[str, float]
    held_out: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    particles: int = 1
    seed: int = 0
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    dtype: str = "float32"
    denoiser: str | None = None
    lora: str | None = None
    non_finite: str = "raise"

    @property
    def every_prompt(self) -> list[str]:
        """The prompt of each particle."""
        return [prompt for prompt in self.prompts for _ in range(self.particles)]

    @property
    def nfe(self) -> int:
        """Forwards of the model for all of it."""
        return self.method.nfe * len(self.every_prompt)

    @property
    def model_options(self) -> dict[str, Any]:
        """What is given of the options that the model's class takes."""
        names = ("height", "width", "num_frames", "guidance_scale", "negative_prompt")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def one_step(self) -> bool:
        """Whether the method is for one-step models."""
        return self.method.one_step

    @property
    def shown(self) -> tuple[str, ...]:
        """The single rewards that are worth showing beside what steers, where that is a sum."""
        return tuple(self.rewards) if len(self.rewards) > 1 else ()

    def to_json(self) -> dict[str, Any]:
        """As run.json has them."""
        return asdict(self)


@dataclass(frozen=True)
class Machine:
    """How a run is computed; another machine makes the same images up to rounding.

    Attributes:
        device: of model and rewards.
        micro_batch: how many batch entries the model is given at once.
        offload: keep the text encoders off the device while they are not in use.
        frames_at_once: how many frames of a video a reward of images is given at once.
        progress: show a progress bar.
    """

    device: str = "cpu"
    micro_batch: int = 1
    offload: bool = False
    frames_at_once: int = FRAMES_AT_ONCE
    progress: bool = False


def usual_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raises ValueError unless tensors can be made there."""
    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device {device} cannot be used here ({reason}); `noisetilt doctor` says what can"
        ) from None


def usual_dtype(device: str) -> str:
    """Of weights on a device."""
    return "float32" if torch.device(device).type == "cpu" else "bfloat16"
