"""Pictures of the page docs/whitening.md: `python -m bench.whitening_pictures`.

The pictures are docs/images/whitening-*.png. Needs matplotlib.
"""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels.cli.demo_operators import periodogram

from .inputs import FLUX, gaussian, structured
from .whitening_statistics import families

IMAGES = Path(__file__).parents[1] / "docs" / "images"
DPI = 110


def fields() -> Figure:
    """A 1/k field and noise, before and after W: one channel and the periodogram."""
    figure = Figure(figsize=(8, 4.3), layout="constrained", dpi=DPI)
    axes = figure.subplots(2, 4)
    column = 0
    for name, x in (("1/k field", structured(FLUX)), ("noise", gaussian(FLUX))):
        for label, image in ((name, x), (f"W of {name}", nt.whiten(x))):
            axes[0, column].imshow(image[0], cmap="gray", vmin=-2.5, vmax=2.5)
            axes[0, column].set_title(label)
            power = torch.fft.fftshift(periodogram(image[None]).mean(dim=0))
            axes[1, column].imshow(power.log10(), cmap="magma", vmin=-2, vmax=2)
            column += 1
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0, 0].set_ylabel("one channel")
    axes[1, 0].set_ylabel("log periodogram")
    return figure


def _against_table(axis: Axes, x: Tensor, lower: Tensor, upper: Tensor) -> None:
    """Sorted values of x, minus the middle of their table, with the table as a band."""
    middle = (lower + upper) / 2
    rank = torch.arange(1, len(lower) + 1)
    axis.fill_between(rank, lower - middle, upper - middle, color="tab:green", alpha=0.3, label="table")
    axis.plot(rank, x.flatten().sort().values - middle, color="tab:blue", linewidth=1.2, label="values")
    axis.axhline(0, color="black", linewidth=0.4)
    axis.set_xlabel("rank")


def order_statistics() -> Figure:
    """Sorted values of 256 numbers against their table: noise, a sine wave, the wave after `project_2os`."""
    lower, upper = nt.confidence_table(256, 1)
    wave = 1.5 * torch.sin(torch.arange(256, dtype=torch.float64) / 5)
    projected = torch.ops.noisetilt.project_2os(wave, lower, upper)
    figure = Figure(figsize=(8, 2.6), layout="constrained", dpi=DPI)
    axes = figure.subplots(1, 3, sharey=True)
    cases = {"noise": gaussian((256,)).double(), "sine wave": wave, "wave after project_2os": projected}
    for axis, (name, x) in zip(axes, cases.items(), strict=True):
        _against_table(axis, x, lower[:, 0], upper[:, 0])
        axis.set_title(name)
    axes[0].set_ylabel("value minus middle of table")
    axes[0].legend(loc="upper left", fontsize="small")
    return figure


def violations() -> Figure:
    """Largest share of entries outside a table in the pixel domain, for mixtures of noise and a 1/k field."""
    figure = Figure(figsize=(8, 2.8), layout="constrained", dpi=DPI)
    axis = figure.subplots()
    field, noise = structured(FLUX).double(), gaussian(FLUX).double()
    weights = torch.linspace(0, 1, 11).tolist()
    for label, whiten in (("before W", False), ("after W", True)):
        shares = []
        for weight in weights:
            x = weight**0.5 * field + (1 - weight) ** 0.5 * noise
            shares.append(100 * max(share for _, share in families(nt.whiten(x) if whiten else x)))
        axis.plot(weights, shares, marker="o", label=label)
    axis.set_xlabel("share of the variance from the 1/k field")
    axis.set_ylabel("largest share outside, %")
    axis.legend()
    return figure


def main() -> None:
    for name, figure in (
        ("fields", fields()),
        ("order-statistics", order_statistics()),
        ("violations", violations()),
    ):
        path = IMAGES / f"whitening-{name}.png"
        figure.savefig(path, metadata={"Software": None})
        print(path)


if __name__ == "__main__":
    main()
