"""whiten with the flux and the wan preset, batch 1."""

import pytest
import torch

from noisetilt_kernels.backends import reference
from noisetilt_kernels.config import Sample, resolve_preset

from . import baselines
from .inputs import FLUX, WAN, gaussian, structured


@pytest.mark.parametrize(
    ("preset", "field", "target"),
    [("flux", structured, 20), ("flux", gaussian, 40), ("wan", structured, 15)],
    ids=["flux-structured", "flux-gaussian", "wan-structured"],
)
def test_whiten(compare, preset, field, target):
    x = field(FLUX if preset == "flux" else WAN)
    config = resolve_preset(preset, Sample(*x.shape), 1e-4)
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
    config = resolve_preset("flux", Sample(*FLUX), 1e-4)
    compiled = torch.compile(lambda x: baselines.whiten(x, config))
    compare(
        lambda: torch.ops.noisetilt.whiten(x, "flux"), eager={"torch.compile": lambda: compiled(x)}, target=20
    )
