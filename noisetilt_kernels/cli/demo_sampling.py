"""Second part of `noisetilt demo`: reward-guided sampling of a small bundled model.

Needs diffusers, transformers, matplotlib and pillow.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from ..rewards import parse_rewards
from ..rewards.digits import WORDS
from ..runs.comparison import compare
from ..runs.comparison_folder import Comparison
from ..runs.files import write_whole
from ..runs.settings import ComputeOptions, Settings
from ..runs.table import text

COMPARISON = Comparison(
    (
        "ntrk:operator=w,rho=0.01",
        "ntrk:operator=wgnc,rho=0.01",
        "ntrk:operator=norm,rho=0.01",
        "ntrk:operator=identity,rho=0.01",
        "dps:strength=25.0",
        "svdd:candidates=2",
        "base",
        "base:best_of=2",  # about as many function evaluations as svdd
    )
)
"""NTRK with four operators, and its baselines."""

SEEDS = 6
"""Images for each of the ten prompts."""


def settings(seed: int) -> Settings:
    """Return the settings: ten digits, steered toward brightness.

    The digits are white on black, so more brightness is more ink.
    """
    return Settings(
        model="digits",
        prompts=tuple(f"a handwritten {word}" for word in WORDS),
        method=COMPARISON.entries[0].method,
        rewards=parse_rewards("brightness"),
        held_out=parse_rewards("digit-judge"),
        particles=SEEDS,
        seed=seed,
    )


def run(seed: int, picture: Path) -> tuple[str, list[Path]]:
    """Sample with every method, and write a contact sheet and plots.

    Args:
        seed: seed of the samplers.
        picture: path of the first part's picture; the names of the new pictures begin with its stem.

    Returns:
        The table as text, and the paths of the pictures.
    """
    pictures = []
    with TemporaryDirectory() as folder:
        out = Path(folder)
        rows = compare(settings(seed), COMPARISON, ComputeOptions(micro_batch=20, progress=True), out)
        for written in ("contact-sheet.png", "comparison.png"):
            pictures.append(picture.with_name(f"{picture.stem}-{written}"))
            write_whole(pictures[-1], (out / written).read_bytes())
    return text(rows), pictures
