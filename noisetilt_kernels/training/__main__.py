"""Command that trains everything in `noisetilt_kernels/assets`: `python -m noisetilt_kernels.training`."""

import copy
import time
from pathlib import Path

import click
import torch
from diffusers import AutoencoderKL

from ..model_sources import ASSETS
from .autoencoder import train_autoencoder
from .data import load_split
from .flow import train_flow
from .judges import train_classifier, train_judge
from .network import SmallFlux
from .student import train_student


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=ASSETS,
    show_default=True,
    help="Folder to write the models to.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random numbers.")
@click.option(
    "--share",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Fraction of the training steps; 0.001 checks quickly that everything runs.",
)
def main(out: Path, seed: int, share: float) -> None:
    """Train the small FLUX on handwritten digits, its one-step student, and two digit classifiers."""

    def scaled(count: int) -> int:
        return max(2, round(count * share))

    def seeded_stage(number: int = 0) -> torch.Generator:
        """Seed a stage separately, so that it can be repeated without the stages before it."""
        torch.manual_seed(seed + number)  # initial weights
        return torch.Generator().manual_seed(seed + number)

    start = time.perf_counter()
    training, held_out = load_split()
    generator = seeded_stage()
    train_judge(held_out, generator, out / "digit-rewards")
    train_classifier(training, generator, scaled(1500), out / "digit-rewards")
    generator = seeded_stage()
    vae = train_autoencoder(training, generator, scaled(2000))
    flow = SmallFlux()
    train_flow(flow, vae, training, seeded_stage(1), steps=scaled(6000), lr=2e-3, pool=scaled(30_000))
    save(flow, vae, out / "digits")
    student = train_student(flow, vae, seeded_stage(2), scaled(1200), scaled(12_000))
    save(student, vae, out / "digits-turbo")
    click.echo(f"trained in {(time.perf_counter() - start) / 60:.0f} minutes: {out}")


def save(network: SmallFlux, vae: AutoencoderKL, folder: Path) -> None:
    """Save a pipeline as diffusers does; the arguments are not changed.

    Everything is saved in bfloat16 except the text encoders. Transformers loads weights in the dtype they
    were saved in, diffusers in float32: otherwise a pipeline loaded without a dtype would have mixed dtypes.
    """
    network = copy.deepcopy(network)
    network.transformer.bfloat16()
    network.pipeline(copy.deepcopy(vae).bfloat16()).save_pretrained(folder)


if __name__ == "__main__":
    main()
