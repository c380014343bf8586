"""Node that shows latents or a gradient before and after whitening."""

import math
from typing import Any

import torch
from torch import Tensor

from noisetilt_kernels.sampling.typicality import spectral_peaks

from .noise import OPERATOR, whitened
from .rewards import CATEGORY

PANEL = 256
"""Least height and width of a panel, in pixels."""
GAP = 8
LIMIT = 3.0
"""Values from -LIMIT to LIMIT are shown from black to white, after scaling to standard deviation 1."""
DECADES = 2.0
"""Powers from 10^-DECADES to 10^DECADES of their mean are shown from black to white."""


class WhiteningPictureNode:
    """Node with a picture of latents before and after whitening, and with their statistics."""

    CATEGORY, FUNCTION = CATEGORY, "draw"
    RETURN_TYPES = ("IMAGE", "LATENT", "STRING")
    RETURN_NAMES = ("picture", "whitened", "statistics")
    DESCRIPTION = (
        "Four panels: one channel of the latents before and after whitening, and below each its log "
        "periodogram, which is flat for white noise."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs of the node."""
        channel = ("INT", {"default": 0, "min": 0, "max": 1023, "tooltip": "Channel that is shown."})
        return {"required": {"latent": ("LATENT",), "operator": OPERATOR, "channel": channel}}

    def draw(self, latent: dict[str, Any], operator: str, channel: int) -> tuple[Tensor, dict[str, Any], str]:
        """Return the pictures (B, H, W, 3), the whitened latents, and two lines of statistics for each."""
        before = latent["samples"].detach().to("cpu", torch.float32)
        if channel >= before.shape[1]:
            raise ValueError(f"noisetilt: channel must be below {before.shape[1]}, got {channel}")
        after = whitened(before, operator)
        pictures = torch.stack([picture(x, y, channel) for x, y in zip(before, after, strict=True)])
        lines = [line for i in range(len(before)) for line in statistics(i, before[i], after[i], operator)]
        return pictures, {"samples": after}, "\n".join(lines)


def picture(before: Tensor, after: Tensor, channel: int) -> Tensor:
    """Return the panels of one latent (C, [F,] H, W), (height, width, 3) with values in [0, 1]."""
    columns = []
    for x in (before, after):
        plane = x[channel] if x.dim() == 3 else x[channel, 0]  # the first frame of a video
        values = (plane / x.std().clamp(min=1e-30) / (2 * LIMIT) + 0.5).clamp(0, 1)
        power = torch.fft.fftshift(torch.fft.fft2(plane.double()).abs().square())
        levels = (power / power.mean()).clamp(min=1e-30).log10() / (2 * DECADES) + 0.5
        columns.append(_joined([values, levels.float().clamp(0, 1)], dim=0))
    return _joined(columns, dim=1).unsqueeze(-1).expand(-1, -1, 3).contiguous()


def statistics(index: int, before: Tensor, after: Tensor, operator: str) -> list[str]:
    """Return one line with the statistics of a latent, and one with those of its whitened form."""
    a, b = before.double().flatten(), after.double().flatten()
    cosine = float(a @ b / (a.norm() * b.norm()).clamp(min=1e-300))
    lines = []
    for name, x in ((f"latent {index}", before), (f"{operator} of it", after)):
        values = x.double()
        unit = values * math.sqrt(values.numel()) / values.norm().clamp(min=1e-300)
        lines.append(
            f"{name}: mean {values.mean():.4g}, standard deviation {values.std(correction=0):.4g}, "
            f"peak of the spectrum {spectral_peaks(unit.unsqueeze(0))[0]:.2f} (noise: about 1)"
        )
    lines[1] += f", cosine to the latent {cosine:.4f}"
    return lines


def _joined(panels: list[Tensor], dim: int) -> Tensor:
    """Return panels side by side with white gaps, small ones enlarged by whole factors."""
    factor = max(1, math.ceil(PANEL / max(min(panel.shape[-2:]) for panel in panels)))
    large = [panel.repeat_interleave(factor, 0).repeat_interleave(factor, 1) for panel in panels]
    shape = list(large[0].shape)
    shape[dim] = GAP
    return torch.cat([large[0], torch.ones(shape), *large[1:]], dim=dim)
