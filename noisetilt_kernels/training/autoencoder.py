"""Autoencoder from pictures (3, 32, 32) to latents (4, 16, 16) and back."""

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor
from torch.nn import functional

from .data import Digits, draw_pictures
from .loop import batches, train

KL_WEIGHT = 1e-3
"""Weight of the KL term against the mean squared error per pixel value."""


def make_autoencoder() -> AutoencoderKL:
    """Make an autoencoder with random weights."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def train_autoencoder(digits: Digits, generator: Generator, steps: int, batch: int = 32) -> AutoencoderKL:
    """Train an autoencoder on pictures of the digits; shift and scale of its latents go into its config."""
    vae = make_autoencoder()

    def batch_loss() -> Tensor:
        pictures = sample_pictures(digits, generator, batch)[0] * 2 - 1
        posterior = vae.encode(pictures).latent_dist
        decoded = vae.decode(posterior.sample(generator)).sample
        return (
            functional.mse_loss(decoded, pictures) + KL_WEIGHT * posterior.kl().mean() / pictures[0].numel()
        )

    train("autoencoder", vae, batch_loss, steps=steps, lr=2e-3, decay=0.995)
    latents = encode(vae, sample_pictures(digits, generator, 512)[0], generator)
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    return vae


def sample_pictures(digits: Digits, generator: Generator, count: int) -> tuple[Tensor, Tensor]:
    """Return pictures (count, 3, 32, 32) of random digits, and their labels (count,)."""
    chosen = torch.randint(len(digits.labels), (count,), generator=generator)
    return draw_pictures(digits.scans[chosen], generator), digits.labels[chosen]


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor, generator: Generator) -> Tensor:
    """Draw latents (n, 4, 16, 16) from the autoencoder's posterior, unscaled."""
    return torch.cat(
        [
            vae.encode(pictures[part] * 2 - 1).latent_dist.sample(generator)
            for part in batches(len(pictures), 256)
        ]
    )


def scale_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Scale latents to mean 0 and variance 1, as the flow uses them."""
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode scaled latents to pictures (n, 3, 32, 32), around [-1, 1]."""
    pictures: Tensor = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    return pictures
