"""Work of the samplers beside model and reward, counted: `python -m bench.sampler_overhead`.

Every sampler runs on one latent of FLUX at 1024 pixels with a model and a reward that cost nothing. PyTorch's
operators outside of them are counted, without views: each is about one kernel launch. An operator of this
package counts as one operator. The bytes are those of inputs and outputs. The last row has the operators of
one forward and backward of FLUX.1, and the bytes of its weights in bfloat16, which each of the two reads.
Its activations, its VAE and a reward come in addition.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from noisetilt_kernels.profile.counting import Count
from noisetilt_kernels.sampling import SamplerOptions
from noisetilt_kernels.sampling.methods import Method, parse_method

SHAPE = (16, 128, 128)
"""Latent of FLUX at 1024 pixels."""

METHODS = (
    "base", "ntrk", "ntrk:operator=wgnc", "dps:strength=1", "freedom", "svdd:candidates=4", "rbf:budget=100",
    "das:alpha=0.1", "das:alpha=0.1,copies=10", "fk:alpha=0.1", "psi:alpha=0.1", "dno:iterations=1",
    "wgnc:iterations=4", "reno:iterations=4", "mpgr:iterations=4", "prno:iterations=4",
)  # fmt: skip


class Free(torch.autograd.Function):
    """Function from a latent to an output of another shape whose forward and backward are not counted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: Count, shape: tuple[int, ...]) -> Tensor:
        """Return zeros."""
        ctx.count, ctx.shape = count, x.shape
        with count.paused():
            return x.new_zeros(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return noise: a gradient that no sampler takes for a mistake."""
        with ctx.count.paused():
            return 1e-3 * torch.randn(ctx.shape), None, None


class FreeModel:
    """Model of a flow and of one step, in one."""

    shape, device = SHAPE, torch.device("cpu")

    def __init__(self, count: Count) -> None:
        self._count = count

    def sigmas(self, n: int) -> Tensor:
        """Return n + 1 times from 1 to 0."""
        with self._count.paused():
            return torch.linspace(1, 0, n + 1)

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        """Return a velocity for a latent."""
        return Free.apply(x, self._count, x.shape)

    def decode(self, x0: Tensor) -> Tensor:
        """Return images for latents."""
        return Free.apply(x0, self._count, (len(x0), 3, 8, 8))

    generate = velocity

    def reward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return a reward for each image."""
        return Free.apply(images, self._count, (len(images),))


def count_method(method: Method) -> tuple[float, float]:
    """Return operators and bytes for each evaluation of the model for a particle."""
    count = Count()
    model = FreeModel(count)
    if method.one_step:
        model.generate = lambda x, prompts: Free.apply(x, count, (len(x), 3, 8, 8))  # type: ignore[method-assign]
    options = SamplerOptions(micro_batch=method.entries)
    with count:
        method.sample(model, model.reward, [""], options)
    return count.operators / method.nfe, count.bytes / method.nfe


def count_flux() -> tuple[int, int]:
    """Return the operators of one forward and backward of FLUX.1, and twice the bytes of its weights."""

    def operators(double: int, single: int) -> int:
        """Count a narrow network; operators depend on the numbers of blocks only."""
        flux = FluxTransformer2DModel(
            num_layers=double,
            num_single_layers=single,
            num_attention_heads=1,
            attention_head_dim=16,
            axes_dims_rope=(4, 6, 6),
            joint_attention_dim=8,
            pooled_projection_dim=8,
            guidance_embeds=True,
        ).requires_grad_(False)
        x = torch.zeros(1, 16, 64, requires_grad=True)
        rest = {"timestep": torch.ones(1), "guidance": torch.ones(1), "img_ids": torch.zeros(16, 3)}
        text = {"encoder_hidden_states": torch.zeros(1, 4, 8), "pooled_projections": torch.zeros(1, 8)}
        with Count() as count:
            velocity = flux(x, **rest, **text, txt_ids=torch.zeros(4, 3), return_dict=False)[0]
            torch.autograd.grad(velocity.sum(), x)
        return count.operators

    one = operators(1, 1)
    of_double, of_single = operators(2, 1) - one, operators(1, 2) - one
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in FluxTransformer2DModel(guidance_embeds=True).parameters())
    return one + 18 * of_double + 37 * of_single, 2 * 2 * weights


def main() -> None:
    """Print the table."""
    operators, moved = count_flux()
    print("| method | operators | MB | of FLUX's operators | of FLUX's bytes |\n|---|---|---|---|---|")
    for text in METHODS:
        method = parse_method(text)
        each, each_bytes = count_method(method)
        print(
            f"| `{text}` | {each:.0f} | {each_bytes / 1e6:.1f} | {each / operators:.2%} "
            f"| {each_bytes / moved:.2%} |",
            flush=True,
        )
    print(f"| FLUX.1, forward and backward | {operators:,} | {moved / 1e6:,.0f} | | |")


if __name__ == "__main__":
    main()
