"""The student: the pictures that the flow makes of a noise in many steps, in one."""

import copy

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor
from torch.nn import functional

from .autoencoder import decode
from .data import draw_prompts
from .flow import follow
from .loop import batches, train
from .network import LATENT, SmallFlux

TEACHER_STEPS = 8


def train_student(
    teacher: SmallFlux,
    vae: AutoencoderKL,
    generator: Generator,
    steps: int,
    pool: int = 12_000,
    batch: int = 64,
) -> SmallFlux:
    """A network whose single step x - v(x, 1) ends where the teacher's trajectory from x does."""
    noise = torch.randn(pool, *LATENT, generator=generator)
    labels = torch.randint(10, (pool,), generator=generator)
    prompts = draw_prompts(labels, generator)
    ends = torch.cat(
        [follow(teacher, noise[part], prompts[part], TEACHER_STEPS) for part in batches(pool, 128)]
    )
    with torch.no_grad():
        pictures = torch.cat([decode(vae, ends[part]) for part in batches(pool, 128)])

    student = copy.deepcopy(teacher)

    def loss_of() -> Tensor:
        chosen = torch.randint(pool, (batch,), generator=generator)
        x = noise[chosen]
        velocity = student.velocity(x, torch.ones(batch), [prompts[index] for index in chosen.tolist()])
        end = x - velocity
        # what the decoder does not show matters less, but is not to wander off
        return functional.mse_loss(decode(vae, end), pictures[chosen]) + 0.1 * functional.mse_loss(
            end, ends[chosen]
        )

    train("one-step student", student, loss_of, steps=steps, lr=1e-3)
    return student
