"""Flow from noise to latents of pictures, in many steps."""

from itertools import pairwise

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor
from torch.nn import functional

from .autoencoder import encode, sample_pictures, scale_latents
from .data import Digits, draw_prompts
from .loop import train
from .network import LATENT, SmallFlux


def train_flow(
    network: SmallFlux,
    vae: AutoencoderKL,
    digits: Digits,
    generator: Generator,
    *,
    steps: int,
    lr: float,
    pool: int,
    batch: int = 96,
) -> None:
    """Train a flow of the pictures' latents with the velocity v = eps - x_0 (DESIGN section 7).

    Args:
        network: network to train, changed in place.
        vae: trained autoencoder.
        digits: digits to draw.
        generator: generator of all random numbers.
        steps: number of training steps.
        lr: highest learning rate.
        pool: number of pictures encoded in advance; batches are drawn from them.
        batch: number of pictures in a batch.
    """
    pictures, labels = sample_pictures(digits, generator, pool)
    latents = scale_latents(vae, encode(vae, pictures, generator))

    def batch_loss() -> Tensor:
        chosen = torch.randint(pool, (batch,), generator=generator)
        x0, eps = latents[chosen], torch.randn(batch, *LATENT, generator=generator)
        t = draw_times(batch, generator)
        time = t.view(-1, 1, 1, 1)
        velocity = network.velocity((1 - time) * x0 + time * eps, t, draw_prompts(labels[chosen], generator))
        return functional.mse_loss(velocity, eps - x0)

    train("flow", network, batch_loss, steps=steps, lr=lr)


def draw_times(count: int, generator: Generator) -> Tensor:
    """Draw times (count,) in (0, 1): half uniform, half near 0.5, where velocities are hardest to predict."""
    uniform = torch.rand(count, generator=generator)
    middle = torch.sigmoid(torch.randn(count, generator=generator))
    return torch.where(torch.rand(count, generator=generator) < 0.5, uniform, middle)


@torch.no_grad()
def solve_ode(network: SmallFlux, x: Tensor, prompts: list[str], steps: int) -> Tensor:
    """Solve the ODE from noise x to latents (B, 4, 16, 16) by Heun's method, with 2 * steps - 1 forwards."""
    times = torch.linspace(1, 0, steps + 1)
    for t, after in pairwise(times):
        velocity = network.velocity(x, t.expand(len(x)), prompts)
        euler = x - (t - after) * velocity
        if after == 0:
            return euler
        x = x - (t - after) * (velocity + network.velocity(euler, after.expand(len(x)), prompts)) / 2
    return x
