"""CLIP's image processing in torch: batched and differentiable."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from .checks import RewardError

_MODES = {2: "bilinear", 3: "bicubic"}
"""Interpolation modes by PIL's numbers, which configurations use."""

LONGEST = 8
"""Sides of an image up to this ratio are resized whole.

The ends of a longer image are cut first, if only its centre is used: with a shorter side of 1 pixel, which
becomes 224, a longer one of 2000 pixels would become 448,000.
"""

_DEFAULTS: Mapping[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_normalize": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
"""CLIP's values, for entries that are missing in a configuration."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop the centre and normalize images (B, 3, H, W) in [0, 1] of any size.

    The result is float32 (B, 3, h, w). Hugging Face's processor does the same with PIL on 8-bit images; the
    results agree up to its rounding.

    If the centre is cropped, the ends of an image with a longer side of more than `LONGEST` times the shorter
    one are cut before it is resized, so that memory is bounded.

    Attributes:
        shortest_edge: new length of the shorter side; the longer one is resized in proportion, rounded down.
        size: new height and width, if `shortest_edge` is None. If both are None, nothing is resized.
        mode: interpolation mode, always with antialiasing.
        crop: height and width of the centre crop, padded with zeros where the image is smaller; None for no
            crop.
        round_crop: True to round half a pixel at the corner of the crop to the even number, as torchvision
            does in OpenAI's and in ImageReward's code; False to round it down, as Hugging Face does.
        mean, std: mean and standard deviation of red, green and blue for normalization.
    """

    shortest_edge: int | None
    size: tuple[int, int] | None
    mode: str
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    round_crop: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], round_crop: bool = False) -> "Preprocessing":
        """Read the content of a `preprocessor_config.json`; missing entries have CLIP's values.

        Raises:
            RewardError: the configuration asks for an unsupported step.
        """
        config = {**_DEFAULTS, **{name: value for name, value in config.items() if value is not None}}
        shortest_edge, size = _target_size(config["size"]) if config["do_resize"] else (None, None)
        if config["do_resize"] and config["resample"] not in _MODES:
            raise RewardError(
                "the image processor's resample must be 2 (bilinear) or 3 (bicubic), got "
                f"{config['resample']!r}"
            )
        if not config.get("do_rescale", True):
            raise RewardError(
                "the image processor's do_rescale must be true, for images with values in [0, 1]"
            )
        normalized = config["do_normalize"]
        return cls(
            shortest_edge=shortest_edge,
            size=size,
            mode=_MODES.get(config["resample"], "bicubic"),
            crop=_height_and_width("crop_size", config["crop_size"]) if config["do_center_crop"] else None,
            mean=tuple(config["image_mean"]) if normalized else (0.0, 0.0, 0.0),
            std=tuple(config["image_std"]) if normalized else (1.0, 1.0, 1.0),
            round_crop=round_crop,
        )

    @property
    def output_size(self) -> tuple[int, int] | None:
        """Height and width of the result, or None if they depend on the image."""
        return self.crop or self.size

    def __call__(self, images: Tensor) -> Tensor:
        images = self._without_ends(images).float()
        target = self._resized(*images.shape[2:])
        if target is not None:
            # Like PIL: first the width, then the height, each followed by a clamp, because bicubic
            # interpolation overshoots at edges. The limits lie half an 8-bit step outside of [0, 1]: with
            # clamp(0, 1) rounding errors would stop the gradient of plain black and white images.
            for size in ((images.shape[2], target[1]), target):
                images = functional.interpolate(images, size=size, mode=self.mode, antialias=True)
                images = images.clamp(-0.5 / 255, 1 + 0.5 / 255)
        if self.crop is not None:
            top, left = (-self._corner(n - crop) for n, crop in zip(images.shape[2:], self.crop, strict=True))
            bottom, right = self.crop[0] - images.shape[2] - top, self.crop[1] - images.shape[3] - left
            images = functional.pad(images, (left, right, top, bottom))  # negative padding crops
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def _without_ends(self, images: Tensor) -> Tensor:
        """Return the images without ends that resizing would enlarge and the centre crop would remove."""
        if self.shortest_edge is None or self.crop is None:
            return images
        height, width = images.shape[2:]
        short = min(height, width)
        # multiples of the shorter side become multiples of `shortest_edge`, so the crop gets the same pixels
        top, left = (max((n - LONGEST * short) // (2 * short), 0) * short for n in (height, width))
        return images[..., top : height - top, left : width - left]

    def _corner(self, excess: int) -> int:
        """Return the first pixel of the crop in a side that is `excess` pixels too long."""
        return round(excess / 2) if self.round_crop and excess > 0 else excess // 2

    def _resized(self, height: int, width: int) -> tuple[int, int] | None:
        if self.shortest_edge is None:
            return self.size
        short = min(height, width)
        return self.shortest_edge * height // short, self.shortest_edge * width // short


def _target_size(size: Any) -> tuple[int | None, tuple[int, int] | None]:
    """Return `shortest_edge` and `size`; in old configurations a plain number is `shortest_edge`."""
    if isinstance(size, int):
        return size, None
    if set(size) == {"shortest_edge"}:
        return size["shortest_edge"], None
    return None, _height_and_width("size", size)


def _height_and_width(name: str, size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if set(size) != {"height", "width"}:
        wanted = "height and width" if name == "crop_size" else "shortest_edge, or height and width"
        raise RewardError(f"the image processor's {name} must be given by {wanted}, got {dict(size)}")
    return size["height"], size["width"]
