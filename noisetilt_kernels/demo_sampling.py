"""Reward-guided sampling of a real, small model: the second half of `noisetilt demo`.

Needs diffusers, transformers, matplotlib and pillow.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from .rewards.digits import WORDS
from .runs import comparison
from .runs.files import write_whole
from .runs.settings import Machine, Settings
from .runs.table import text
from .sampling.methods import Method

METHODS = (
    Method("ntrk", {"operator": "w", "rho": 0.01}),
    Method("ntrk", {"operator": "wgnc", "rho": 0.01}),
    Method("ntrk", {"operator": "norm", "rho": 0.01}),
    Method("ntrk", {"operator": "identity", "rho": 0.01}),
    Method("dps", {"strength": 25.0}),
    Method("svdd", {"candidates": 2}),
    Method("base"),
)
"""Every sampler, and NTRK with every operator."""

SEEDS = 6
"""Images of each of ten prompts."""

BEST_OF = (1, 2)
"""Best of 2 has twice the function evaluations, as many as svdd with 2 candidates."""


def settings(seed: int) -> Settings:
    """Ten digits, steered toward brightness, which with white strokes on black is more ink."""
    return Settings(
        model="digits",
        prompts=tuple(f"a handwritten {word}" for word in WORDS),
        method=METHODS[0],
        rewards={"brightness": 1.0},
        held_out=("digit-judge",),
        particles=SEEDS,
        seed=seed,
    )


def run(seed: int, picture: Path) -> tuple[str, list[Path]]:
    """Sample with every method: the table as text, and the pictures written, a contact sheet and plots.

    picture: path whose stem begins their names.
    """
    pictures = []
    with TemporaryDirectory() as folder:
        out = Path(folder)
        rows = comparison.compare(
            settings(seed), METHODS, Machine(micro_batch=20, progress=True), out, BEST_OF
        )
        for written in ("contact-sheet.png", "comparison.png"):
            pictures.append(picture.with_name(f"{picture.stem}-{written}"))
            write_whole(pictures[-1], (out / written).read_bytes())
    return text(rows), pictures
