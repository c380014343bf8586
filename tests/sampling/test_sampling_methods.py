"""Methods by name: their arguments, their numbers of function evaluations, and the records of the samplers."""

import pytest
import torch
from gaussian_flows import LatentFlow, LatentGenerator, brightness

from noisetilt_kernels.sampling import SamplerOptions, Schedule, ntrk
from noisetilt_kernels.sampling.methods import Method, parse_method


@pytest.mark.parametrize(
    "text",
    [
        "base:steps=3",
        "ntrk:steps=4,rho=0.1,operator=norm",
        "dps:strength=2,steps=3",
        "svdd:candidates=3,steps=4",
    ],
)
def test_planned_nfe_is_what_is_counted(text: str) -> None:
    method = parse_method(text)
    assert str(method) == text
    assert method.sample(LatentFlow(), brightness, ["", ""], SamplerOptions()).nfe == 2 * method.nfe


def test_planned_nfe_of_wgnc_and_by_default() -> None:
    method = Method("wgnc", {"iterations": 3})
    assert method.sample(LatentGenerator(), brightness, [""], SamplerOptions()).nfe == method.nfe == 4
    assert [parse_method(name).nfe for name in ("base", "ntrk", "svdd", "wgnc")] == [25, 25, 97, 201]


def test_options_reach_the_sampler() -> None:
    method = parse_method("ntrk:rho=0.7,operator=wgnc,steps=4,schedule=constant,scale=0.5")
    own = method.sample(LatentFlow(), brightness, [""], SamplerOptions(seed=2))
    schedule = Schedule("constant", 0.5)
    wanted = ntrk(
        LatentFlow(),
        brightness,
        [""],
        rho=0.7,
        operator="wgnc",
        steps=4,
        schedule=schedule,
        options=SamplerOptions(seed=2),
    )
    assert torch.equal(own.latents, wanted.latents)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "unknown method 'nonsense'; valid: 'base'"),
        ("base:rho=1", "base has no argument 'rho'; it has: steps, schedule, scale"),
        ("dps", "dps needs strength"),
        ("ntrk:rho", "'rho' must be written argument=value"),
        ("ntrk:scale=2", "scale=2 needs the schedule"),
    ],
)
def test_bad_methods(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_method(text)
