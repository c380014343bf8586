"""`python -m noisetilt_kernels.training`: everything in `noisetilt_kernels/assets`, from scratch."""

import copy
import time
from pathlib import Path

import click
import torch
from diffusers import AutoencoderKL

from ..rewards.digits import ASSETS
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
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option(
    "--share",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of the training steps; a small one shows quickly that all of it runs.",
)
def main(out: Path, seed: int, share: float) -> None:
    """Train the small FLUX on handwritten digits, its one-step student, and the two that judge digits."""

    def steps(whole: int) -> int:
        return max(2, round(whole * share))

    def stage(number: int = 0) -> torch.Generator:
        """Each stage has a seed of its own, so that it can be repeated without those before."""
        torch.manual_seed(seed + number)  # initial weights
        return torch.Generator().manual_seed(seed + number)

    start = time.perf_counter()
    learned, held_out = load_split()
    generator = stage()
    train_judge(held_out, generator, out / "digit-rewards")
    train_classifier(learned, generator, steps(1500), out / "digit-rewards")
    generator = stage()
    vae = train_autoencoder(learned, generator, steps(2000))
    flow = SmallFlux()
    train_flow(flow, vae, learned, stage(1), steps=steps(6000), lr=2e-3, pool=steps(30_000))
    save(flow, vae, out / "digits")
    student = train_student(flow, vae, stage(2), steps(1200), steps(12_000))
    save(student, vae, out / "digits-turbo")
    click.echo(f"trained in {(time.perf_counter() - start) / 60:.0f} minutes: {out}")


def save(network: SmallFlux, vae: AutoencoderKL, folder: Path) -> None:
    """As diffusers does; what is given stays as it is.

    In bfloat16 but for the text encoders, which transformers would load in what they were saved in, other than
    diffusers, so that a pipeline loaded without a dtype would be of two.
    """
    network = copy.deepcopy(network)
    network.transformer.bfloat16()
    network.pipeline(copy.deepcopy(vae).bfloat16()).save_pretrained(folder)


if __name__ == "__main__":
    main()
