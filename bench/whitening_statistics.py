"""Share of the order statistics outside their confidence table before and after W, printed as Markdown.

    python -m bench.whitening_statistics          # a summary, and the families of a 1/k field
    python -m bench.whitening_statistics --all    # the families of every input

W is a composition of projections. A later projection can move a statistic of an earlier one out of its table
again. This script counts how often that happens. A *family* is one sorted array of statistics and its table:
the values, the tile means or the tile energies, for one chunk size, in one domain. Everything is computed in
float64.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels import python_ref

from .inputs import FLUX, STRUCTURED, gaussian

TOLERANCE = 1e-9  # relative; rounding alone must not count as a violation


@dataclass(frozen=True)
class Share:
    """Entries of one family outside their table, as a share of its entries, before and after W."""

    domain: str
    family: str
    before: float
    after: float


def noise(seed: int = 0) -> Tensor:
    """Standard normal noise, float64."""
    return gaussian(FLUX, torch.float64, seed)


INPUTS: dict[str, Callable[[int], Tensor]] = {
    "Gaussian noise": noise,
    "Gaussian noise, standard deviation 2": lambda seed: 2 * noise(seed),
    **STRUCTURED,
}
SHOWN = "1/k"
SEEDS = 20


def domains(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Name of each domain that W projects in, and the sample x (C, H, W) in it."""
    yield "pixel", x
    yield "Fourier", torch.ops.noisetilt.compact_fourier(x.flatten()).reshape(x.shape)
    for (th, tw), steps in nt.preset("flux", x.shape).mixing:
        yield f"butterfly {th}x{tw}, {steps} steps", torch.ops.noisetilt.butterfly(x, [th, tw], steps)


def share_outside(values: Tensor, chunk_size: int, reference: nt.Normal | nt.ChiSquare) -> float:
    """Share of the sorted values outside the table of `project_2os` for this chunk size."""
    chunks = values.reshape(-1, chunk_size)
    lower, upper = nt.confidence_table(len(chunks), chunk_size, reference=reference)
    ordered = chunks.sort(dim=1).values.sort(dim=0).values
    slack = TOLERANCE * (1 + ordered.abs())
    return ((ordered < lower - slack) | (ordered > upper + slack)).double().mean().item()


def families(x: Tensor) -> Iterator[tuple[str, float]]:
    """Name and share of entries outside the table, for each family of a sample x (C, H, W) in one domain."""
    config = nt.preset("flux")
    for chunk_size in config.chunk_sizes:
        yield f"values, D = {chunk_size}", share_outside(x, chunk_size, nt.Normal())
    for th, tw in config.tile_sizes:
        size = th * tw
        tiles = python_ref.split_tiles(x[None], (th, tw)).reshape(-1, size)
        means = math.sqrt(size) * tiles.mean(dim=1)
        energies = (tiles - tiles.mean(dim=1, keepdim=True)).square().sum(dim=1)
        for chunk_size in config.chunk_sizes:
            yield f"means of {th}x{tw}, D = {chunk_size}", share_outside(means, chunk_size, nt.Normal())
            yield (
                f"energies of {th}x{tw}, D = {chunk_size}",
                share_outside(energies, chunk_size, nt.ChiSquare(size - 1)),
            )


def measure(x: Tensor) -> list[Share]:
    """Shares of every family in every domain for a sample x (C, H, W), before and after W."""
    whitened = nt.whiten(x, "flux")
    shares = []
    for (domain, before), (_, after) in zip(domains(x), domains(whitened), strict=True):
        for (family, share), (_, share_after) in zip(families(before), families(after), strict=True):
            shares.append(Share(domain, family, share, share_after))
    return shares


def percent(share: float) -> str:
    if 0 < share < 5e-5:
        return "< 0.01 %"
    return f"{100 * share:.2f} %" if share else "0"


def summary(results: dict[str, list[Share]]) -> Iterator[str]:
    """Lines of the table with one input to a row: violated families in each domain, before and after W."""
    names = list(dict.fromkeys(share.domain for share in next(iter(results.values()))))
    yield f"| input | {' | '.join(names)} | all families | largest share after W |"
    yield "|---" * (len(names) + 3) + "|"
    for name, shares in results.items():
        cells = []
        for group in [*([s for s in shares if s.domain == domain] for domain in names), shares]:
            before, after = sum(s.before > 0 for s in group), sum(s.after > 0 for s in group)
            cells.append(f"{before} → {after} of {len(group)}")
        worst = max(shares, key=lambda share: share.after)
        where = f" ({worst.domain}, {worst.family})" if worst.after else ""
        yield f"| {name} | {' | '.join(cells)} | {percent(worst.after)}{where} |"


def details(shares: list[Share]) -> Iterator[str]:
    """Lines of the table with one family to a row: shares in each domain, before and after W."""
    names = list(dict.fromkeys(share.domain for share in shares))
    cells = {(s.family, s.domain): f"{percent(s.before)} → {percent(s.after)}" for s in shares}
    yield f"| family | {' | '.join(names)} |"
    yield "|---" * (len(names) + 1) + "|"
    for family in dict.fromkeys(share.family for share in shares):
        yield f"| {family} | {' | '.join(cells[family, domain] for domain in names)} |"


def noise_summary() -> str:
    """Sentence about `SEEDS` samples of Gaussian noise: how many violate how many families."""
    samples = [measure(noise(seed)) for seed in range(SEEDS)]
    before = [sum(share.before > 0 for share in shares) for shares in samples]
    after = [sum(share.after > 0 for share in shares) for shares in samples]
    largest = max(share.after for shares in samples for share in shares)
    return (
        f"Gaussian noise, seeds 0 to {SEEDS - 1}: {before.count(0)} samples violate no family before W,\n"
        f"{after.count(0)} violate none after W. A sample violates at most {max(before)} families "
        f"before and\n"
        f"{max(after)} after W. The largest share after W is {percent(largest)}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="print the table of families for every input")
    everything = parser.parse_args().all
    results = {name: measure(make(0)) for name, make in INPUTS.items()}
    print("Families with entries outside their table, before → after W (flux, 16x64x64):\n")
    print("\n".join(summary(results)))
    print(f"\n{noise_summary()}")
    for name, shares in results.items():
        if everything or name == SHOWN:
            print(f"\nShare of entries outside their table, before → after W: {name}.\n")
            print("\n".join(details(shares)))


if __name__ == "__main__":
    main()
