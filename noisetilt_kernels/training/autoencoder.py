"""The autoencoder: pictures (3, 32, 32) to latents (4, 16, 16) and back."""

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor
from torch.nn import functional

from .data import Digits, draw_pictures
from .loop import batches, train

KL_WEIGHT = 1e-3
"""Against a squared error per value of the picture; what the pictures do not need becomes noise in the latents."""


def make_autoencoder() -> AutoencoderKL:
    """With random weights."""
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
    """An autoencoder of pictures of the digits, with the scale of its latents in its configuration."""
    vae = make_autoencoder()

    def loss_of() -> Tensor:
        pictures = pictures_of(digits, generator, batch)[0] * 2 - 1
        posterior = vae.encode(pictures).latent_dist
        decoded = vae.decode(posterior.sample(generator)).sample
        return (
            functional.mse_loss(decoded, pictures) + KL_WEIGHT * posterior.kl().mean() / pictures[0].numel()
        )

    train("autoencoder", vae, loss_of, steps=steps, lr=2e-3, decay=0.995)
    latents = encode(vae, pictures_of(digits, generator, 512)[0], generator)
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    return vae


def pictures_of(digits: Digits, generator: Generator, count: int) -> tuple[Tensor, Tensor]:
    """`count` pictures (count, 3, 32, 32) of digits at random, and their labels (count,)."""
    chosen = torch.randint(len(digits.labels), (count,), generator=generator)
    return draw_pictures(digits.scans[chosen], generator), digits.labels[chosen]


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor, generator: Generator) -> Tensor:
    """Latents (n, 4, 16, 16) as the autoencoder has them, drawn from its posterior."""
    return torch.cat(
        [
            vae.encode(pictures[part] * 2 - 1).latent_dist.sample(generator)
            for part in batches(len(pictures), 256)
        ]
    )


def to_model(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents scaled as the flow has them, mean 0 and variance 1."""
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures (n, 3, 32, 32), in [-1, 1], of latents as the flow has them."""
    pictures: Tensor = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    return pictures
