"""The flow: from noise to latents of pictures, in many steps."""

from itertools import pairwise

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor
from torch.nn import functional

from .autoencoder import encode, pictures_of, to_model
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
    """Train a flow of the pictures' latents to v = eps - x_0 (DESIGN section 7).

    pool: how many pictures are encoded beforehand, to draw batches of.
    """
    pictures, labels = pictures_of(digits, generator, pool)
    latents = to_model(vae, encode(vae, pictures, generator))

    def loss_of() -> Tensor:
        chosen = torch.randint(pool, (batch,), generator=generator)
        x0, eps = latents[chosen], torch.randn(batch, *LATENT, generator=generator)
        t = draw_times(batch, generator)
        at = t.view(-1, 1, 1, 1)
        velocity = network.velocity((1 - at) * x0 + at * eps, t, draw_prompts(labels[chosen], generator))
        return functional.mse_loss(velocity, eps - x0)

    train("flow", network, loss_of, steps=steps, lr=lr)


def draw_times(count: int, generator: Generator) -> Tensor:
    """Times (count,) in (0, 1): half of them uniform, half around the middle, where velocities are hardest to tell."""
    uniform = torch.rand(count, generator=generator)
    middle = torch.sigmoid(torch.randn(count, generator=generator))
    return torch.where(torch.rand(count, generator=generator) < 0.5, uniform, middle)


@torch.no_grad()
def follow(network: SmallFlux, x: Tensor, prompts: list[str], steps: int) -> Tensor:
    """The latents (B, 4, 16, 16) that noise x leads to by the ODE: Heun's method, 2 steps - 1 forwards."""
    times = torch.linspace(1, 0, steps + 1)
    for t, after in pairwise(times):
        velocity = network.velocity(x, t.expand(len(x)), prompts)
        euler = x - (t - after) * velocity
        if after == 0:
            return euler
        x = x - (t - after) * (velocity + network.velocity(euler, after.expand(len(x)), prompts)) / 2
    return x
