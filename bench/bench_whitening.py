"""whiten with the flux and the wan preset, batch 1."""

import pytest
import torch

import noisetilt_kernels as nt
from noisetilt_kernels.backends import reference

from . import baselines
from .inputs import FLUX, WAN, gaussian, structured


@pytest.mark.parametrize(
    ("preset", "field", "target"),
    [("flux", structured, 20), ("flux", gaussian, 40), ("wan", structured, 15)],
    ids=["flux-structured", "flux-gaussian", "wan-structured"],
)
def test_whiten(compare, preset, field, target):
    x = field(FLUX if preset == "flux" else WAN)
    config = nt.preset(preset, x.shape)
    compare(
        lambda: torch.ops.noisetilt.whiten(x, preset),
        eager={
            "python_ref": lambda: reference.whiten(x[None], config),
            "idiomatic": lambda: baselines.whiten(x, config),
        },
        target=target,
        stable_sorts=lambda: baselines.whiten(x, config, stable=True),
    )


def test_whiten_against_compiled(compare):
    x = structured(FLUX)
    config = nt.preset("flux", FLUX)
    compiled = torch.compile(lambda x: baselines.whiten(x, config))
    compare(
        lambda: torch.ops.noisetilt.whiten(x, "flux"), eager={"torch.compile": lambda: compiled(x)}, target=20
    )
