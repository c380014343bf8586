"""First part of `noisetilt demo`: table and picture of the operators on a photograph and on Gaussian noise.

Needs matplotlib and pillow.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .. import python_ref
from ..profile.timing import time_call
from ..runs.plots import default_style

LATENT = (16, 64, 64)
"""Channels, height and width of the latents, the same as for FLUX at 512 x 512 pixels."""

OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "input": python_ref.identity,
    "norm projection": python_ref.norm_projection,
    "WGNC": lambda x: torch.ops.noisetilt.project_wgnc(x.flatten(1)).view_as(x),
    "W": torch.ops.noisetilt.whiten,
}

_SECONDS_PER_TIMING = 0.05


@dataclass(frozen=True)
class Result:
    """Output of one operator on one input, and its distance from the input.

    Attributes:
        operator: name of the operator.
        output: float32 (1, C, H, W).
        change: output - input.
        cosine: cosine similarity of input and output.
        distance: ||input - output||. The input is not normalised first. Only this definition reproduces
            figure 15 of the NoiseTilt paper. There, norm projection moves an input of cosine 1 by 37.63, so
            the input has norm 256 - 37.63, and this norm with a cosine of 0.642806 gives 203.35.
        relative_norm: ||output|| / sqrt(N), 1 for typical noise.
        peak: largest value of the periodograms of all channels, scaled to mean 1; about ln N = 11 for
            noise.
        milliseconds: median time of a call.
    """

    operator: str
    output: Tensor
    change: Tensor
    cosine: float
    distance: float
    relative_norm: float
    peak: float
    milliseconds: float


Comparison = dict[str, list[Result]]


def compare(seed: int) -> Comparison:
    """Apply the operators, in the order of `OPERATORS`, to the photograph and to Gaussian noise."""
    inputs = {"photograph": photograph_latent(), "Gaussian noise": noise_latent(seed)}
    return {
        name: [_apply(operator, function, x) for operator, function in OPERATORS.items()]
        for name, x in inputs.items()
    }


def photograph_latent() -> Tensor:
    """Return the portrait of Grace Hopper from matplotlib's sample data as a latent, float32 (1, 16, 64, 64).

    The central square is converted to grey, 256 x 256 pixels, and every 4x4 block of pixels is spread over
    the 16 channels. As in a real latent, each channel shows the whole scene, smooth in space, and the
    channels resemble each other. Mean and variance are scaled to 0 and 1, so that only the structure differs
    from noise; norm projection then has no effect.
    """
    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as photograph:
        side = min(photograph.size)
        left, top = ((extent - side) // 2 for extent in photograph.size)
        square = photograph.convert("L").crop((left, top, left + side, top + side))
        grey = np.asarray(square.resize((256, 256), Image.Resampling.LANCZOS), dtype=np.float64)
    x = torch.nn.functional.pixel_unshuffle(torch.from_numpy(grey)[None, None], 4)
    return ((x - x.mean()) / x.std(correction=0)).float()


def noise_latent(seed: int) -> Tensor:
    """Return standard Gaussian noise, float32 (1, 16, 64, 64)."""
    return torch.randn(1, *LATENT, generator=torch.Generator().manual_seed(seed))


def periodogram(x: Tensor) -> Tensor:
    """Return |fft2|^2 of every channel of a latent (1, C, H, W).

    The result is float64 (C, H, W), scaled to mean 1, with frequency 0 first.
    """
    power = torch.fft.fft2(x[0].double()).abs().square()
    return power / power.mean()


def _apply(operator: str, function: Callable[[Tensor], Tensor], x: Tensor) -> Result:
    output = function(x)
    a, b = x.double().flatten(), output.double().flatten()
    return Result(
        operator=operator,
        output=output,
        change=output - x,
        cosine=(a @ b / (a.norm() * b.norm())).item(),
        distance=(a - b).norm().item(),
        relative_norm=b.norm().item() / math.sqrt(b.numel()),
        peak=periodogram(output).max().item(),
        milliseconds=1e3 * time_call(lambda: function(x), _SECONDS_PER_TIMING).median,
    )


def table(comparison: Comparison) -> str:
    """Return the numbers of a comparison as text, one row for each input and operator."""
    header = (
        f"{'input':<15} {'operator':<16} {'cosine':>8} {'distance':>9} "
        f"{'norm/sqrt(N)':>13} {'peak':>7} {'time, ms':>9}"
    )
    lines = [header]
    for name, results in comparison.items():
        lines.append("-" * len(header))
        lines += [
            f"{name:<15} {r.operator:<16} {r.cosine:8.6f} {r.distance:9.2f} "
            f"{r.relative_norm:13.4f} {r.peak:7.1f} {r.milliseconds:9.2f}"
            for r in results
        ]
    legend = (
        "cosine, distance: between output and input.  "
        "peak: largest periodogram value, mean 1 (typical noise: about 11)."
    )
    return "\n".join([*lines, "", legend])


# Layout of the picture in pixels. Each of the 64 x 64 values of a channel becomes exactly 3 x 3 pixels, so no
# value is resampled and the file stays small.
_PANEL = 192
_GAP = 8
_GAP_BETWEEN_INPUTS = 40
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 140, 34
_HISTOGRAM_HEIGHT = 130
_DPI = 100

_INK, _FAINT, _FILL, _ACCENT = "#1b1f24", "#6a737d", "#8fb3d9", "#b3261e"
_TITLES = {
    "photograph": "A photograph: should become noise",
    "Gaussian noise": "Gaussian noise: should stay unchanged",
}
_ROWS = (
    "latent\n(one channel)",
    "output \N{MINUS SIGN} input\n(blank: unchanged)",
    "periodogram\n(log; flat = white)",
    "histogram\n(line: N(0,1))",
)


def draw(comparison: Comparison) -> Figure:
    """Draw a comparison: a column for each operator, the two inputs side by side.

    The rows show one channel, the change that the operator made to it, the periodogram (mean over all
    channels, log scale, frequency 0 in the middle) and the histogram of all values with the density of N(0,
    1). Colour scales are the same along a row.

    Only the first of the 16 channels is shown; in the photograph they resemble each other. WGNC and W both
    keep part of the photograph's direction (see the cosine). Its outlines would show more clearly if the
    outputs were interleaved to 256 x 256 pixels again.
    """
    columns = sum(len(results) for results in comparison.values())
    width = (
        _LEFT
        + columns * (_PANEL + _GAP)
        - _GAP
        + (len(comparison) - 1) * (_GAP_BETWEEN_INPUTS - _GAP)
        + _RIGHT
    )
    height = _TOP + 3 * (_PANEL + _GAP) + _HISTOGRAM_HEIGHT + _BOTTOM
    with default_style():
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        left = _LEFT
        for name, results in comparison.items():
            block = len(results) * (_PANEL + _GAP) - _GAP
            figure.text(
                (left + block / 2) / width,
                1 - 12 / height,
                _TITLES[name],
                size=19,
                weight="bold",
                color=_INK,
                ha="center",
                va="top",
            )
            for result in results:
                _draw_column(figure, result, left, labelled=left == _LEFT)
                left += _PANEL + _GAP
            left += _GAP_BETWEEN_INPUTS - _GAP
    return figure


def _draw_column(figure: Figure, result: Result, left: int, labelled: bool) -> None:
    width, height = figure.get_size_inches() * _DPI
    heights = (_PANEL, _PANEL, _PANEL, _HISTOGRAM_HEIGHT)
    panels = []
    top = _TOP
    for row, panel_height in zip(_ROWS, heights, strict=True):
        bottom = height - top - panel_height
        axes = figure.add_axes((left / width, bottom / height, _PANEL / width, panel_height / height))
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=_FAINT, linewidth=0.8)
        if labelled:
            axes.set_ylabel(row, size=13, color=_INK, labelpad=6)
        panels.append(axes)
        top += panel_height + _GAP

    latent, change, spectrum, histogram = panels
    _draw_plane(latent, result.output[0, 0], "gray", 3.0)
    _draw_plane(change, result.change[0, 0], "RdBu_r", 1.0)
    power = torch.fft.fftshift(periodogram(result.output).mean(dim=0))
    _draw_plane(spectrum, power.clamp(min=1e-12).log10(), "magma", 2.0)
    _draw_histogram(histogram, result.output)

    accent = _ACCENT if result.operator == "W" else _INK
    centre = (left + _PANEL / 2) / width
    figure.text(
        centre, 1 - 52 / height, result.operator, size=15, weight="bold", color=accent, ha="center", va="top"
    )
    numbers = f"cosine {result.cosine:.4f}\ndistance {result.distance:.1f}"
    figure.text(
        centre, 1 - 80 / height, numbers, size=13, color=accent, ha="center", va="top", linespacing=1.25
    )


def _draw_plane(axes: Axes, plane: Tensor, colours: str, limit: float) -> None:
    axes.imshow(plane.numpy(), cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto")


def _draw_histogram(axes: Axes, values: Tensor) -> None:
    edges = np.linspace(-4, 4, 65)
    axes.hist(values.double().flatten().numpy(), bins=edges.tolist(), density=True, color=_FILL)
    axes.plot(edges, np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi), color=_INK, linewidth=1.6)
    axes.set(xlim=(-4, 4), ylim=(0, 0.85), xticks=[-2, 0, 2])
    axes.tick_params(axis="x", labelsize=11, labelcolor=_FAINT, color=_FAINT)


def png(figure: Figure) -> bytes:
    """Return the picture as a PNG file with 256 colours, a third of the size of one with all colours."""
    raw = io.BytesIO()
    with default_style():
        figure.savefig(raw, format="png")
    compact = io.BytesIO()
    with Image.open(raw) as picture:
        picture.convert("RGB").quantize(256).save(compact, format="png", optimize=True)
    return compact.getvalue()
