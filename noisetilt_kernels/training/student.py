"""One-step student: makes the same picture from a noise as the flow does in many steps."""

import copy

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor
from torch.nn import functional

from .autoencoder import decode
from .data import draw_prompts
from .flow import solve_ode
from .loop import batches, train
from .network import LATENT, SmallFlux

TEACHER_STEPS = 8
"""Number of Heun steps of the teacher."""


def train_student(
    teacher: SmallFlux,
    vae: AutoencoderKL,
    generator: Generator,
    steps: int,
    pool: int = 12_000,
    batch: int = 64,
) -> SmallFlux:
    """Train a network so that its one step x - v(x, 1) ends where the teacher's trajectory from x ends.

    Args:
        teacher: trained flow.
        vae: trained autoencoder.
        generator: generator of all random numbers.
        steps: number of training steps.
        pool: number of trajectories solved in advance; batches are drawn from them.
        batch: number of trajectories in a batch.
    """
    noise = torch.randn(pool, *LATENT, generator=generator)
    labels = torch.randint(10, (pool,), generator=generator)
    prompts = draw_prompts(labels, generator)
    ends = torch.cat(
        [solve_ode(teacher, noise[part], prompts[part], TEACHER_STEPS) for part in batches(pool, 128)]
    )
    with torch.no_grad():
        pictures = torch.cat([decode(vae, ends[part]) for part in batches(pool, 128)])

    student = copy.deepcopy(teacher)

    def batch_loss() -> Tensor:
        chosen = torch.randint(pool, (batch,), generator=generator)
        x = noise[chosen]
        velocity = student.velocity(x, torch.ones(batch), [prompts[index] for index in chosen.tolist()])
        end = x - velocity
        # mainly the pictures count; the small term keeps the latents from drifting where the decoder
        # ignores them
        return functional.mse_loss(decode(vae, end), pictures[chosen]) + 0.1 * functional.mse_loss(
            end, ends[chosen]
        )

    train("one-step student", student, batch_loss, steps=steps, lr=1e-3)
    return student
