"""Calls of every operator for samples of one shape."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends.tables import cached_table
from ..config import DEFAULT_ALPHA, resolve_preset, sample_of
from ..python_ref import NORMAL
from ..registration import OPERATORS


class Case(NamedTuple):
    """A call of an operator.

    Attributes:
        operator: name in `torch.ops.noisetilt`.
        detail: arguments that tell it from other calls of the operator, such as "D = 4", or "".
        arguments: of the operator.
    """

    operator: str
    detail: str
    arguments: tuple[Any, ...]

    @property
    def name(self) -> str:
        """Name such as "project_2os D = 4"."""
        return f"{self.operator} {self.detail}" if self.detail else self.operator

    def call(self) -> Tensor:
        """Call the operator as a user does."""
        result: Tensor = getattr(torch.ops.noisetilt, self.operator)(*self.arguments)
        return result

    def call_implementation(self) -> Tensor:
        """Call what the operator does below autograd. PyTorch's operators within it can then be counted."""
        return OPERATORS[self.operator].implementation(*self.arguments)


def cases_for(x: Tensor, preset: str = "auto") -> list[Case]:
    """Return calls of every operator for a tensor that `whiten` accepts.

    Parameters that `whiten` has are those of the preset: chunk sizes, tiles, and butterfly steps.

    Raises:
        ValueError: the preset does not fit the shape.
    """
    sample = sample_of("profile", x.shape)
    config = resolve_preset(preset, sample, DEFAULT_ALPHA)
    samples = x.reshape(-1, *sample[:3])
    flat = samples.flatten(1)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    spectrum = torch.view_as_complex(flat.to(dtype).view(len(flat), -1, 2))

    def table(chunk_size: int) -> tuple[Tensor, Tensor]:
        count = sample.size // chunk_size
        return cached_table(count, chunk_size, config.alpha, NORMAL, dtype, x.device)[:2]

    return [
        Case("whiten", "", (x, preset)),
        *(Case("project_2os", f"D = {size}", (flat, *table(size))) for size in config.chunk_sizes),
        *(
            Case("project_tile_stats", f"{th}x{tw}", (samples, [th, tw], list(config.chunk_sizes)))
            for th, tw in config.tile_sizes
        ),
        Case("compact_fourier", "", (flat,)),
        Case("compact_fourier", "inverse", (flat, True)),
        *(
            Case("butterfly", f"{th}x{tw}, {steps} steps", (samples, [th, tw], steps))
            for (th, tw), steps in config.mixing
        ),
        Case("hadamard_transform", "", (samples.flatten(2), (sample.height * sample.width) ** -0.5)),
        Case("project_wgnc", "", (flat,)),
        Case("project_wgnc_blocks", "", (spectrum,)),
    ]
