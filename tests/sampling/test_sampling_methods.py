"""Methods by name: their arguments and costs, and the records of the samplers."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gaussian_flows import LatentFlow, LatentGenerator, brightness

from noisetilt_kernels.sampling import (
    PCNL,
    SAMPLERS,
    FlowModel,
    GuidedSteps,
    SamplerOptions,
    Schedule,
    ntrk,
    register_sampler,
    stepwise,
)
from noisetilt_kernels.sampling.base import Base
from noisetilt_kernels.sampling.methods import Method, parse_method
from noisetilt_kernels.sampling.registry import REQUIRED


@pytest.mark.parametrize(
    "text",
    [
        "base:steps=3",
        "ntrk:steps=4,rho=0.1,operator=norm",
        "dps:strength=2,steps=3",
        "freedom:steps=10",
        "dno:iterations=2,steps=3,weight=1,shuffles=2",
        "dno:iterations=0,steps=3",
        "rbf:budget=20,starts=3,steps=4",
        "rbf:budget=500,starts=3,steps=1",
        "rbf:budget=20,starts=3,steps=4,start=pcnl,start_iterations=2",
        "base:steps=3,start=pcnl,start_iterations=2",
        "svdd:candidates=3,steps=4,start=pcnl,start_iterations=0",
        "ntrk:steps=4,start=pcnl,start_iterations=3,start_alpha=0.2,start_epsilon=0.3,start_clip=2",
        "freedom:travel=4,travel_from=0.3,steps=11",
        "svdd:candidates=3,steps=4",
        "das:alpha=0.1,copies=3,steps=4",
        "fk:alpha=0.1,potential=sum,steps=6",
        "psi:alpha=0.1,copies=4,chains=2,burn_in=2,kept=3,steps=3",
        "psi:alpha=0.1,copies=2,chains=1,burn_in=0,kept=2,steps=1",
        "das:alpha=0.1,copies=2,steps=3,start=pcnl,start_iterations=2",
        "ntrk:steps=4,guide_every=2,guide_from=0.8",
    ],
)
def test_planned_nfe_is_the_counted_nfe(text: str) -> None:
    method = parse_method(text)
    assert str(method) == text
    assert method.sample(LatentFlow(), brightness, ["", ""], SamplerOptions()).nfe == 2 * method.nfe


def test_planned_nfe_of_wgnc_and_by_default() -> None:
    method = Method("wgnc", {"iterations": 3})
    assert method.sample(LatentGenerator(), brightness, [""], SamplerOptions()).nfe == method.nfe == 4
    assert [parse_method(name).nfe for name in ("reno", "prno", "mpgr", "dno", "rbf")] == [
        50,
        101,
        201,
        500,
        500,
    ]
    assert [parse_method(name).nfe for name in ("base", "ntrk", "freedom", "svdd", "wgnc")] == [
        25,
        25,
        41,
        97,
        201,
    ]


def test_arguments_reach_the_sampler() -> None:
    method = parse_method("ntrk:rho=0.7,operator=wgnc,steps=4,schedule=constant,scale=0.5")
    result = method.sample(LatentFlow(), brightness, [""], SamplerOptions(seed=2))
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
    assert torch.equal(result.latents, wanted.latents)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "unknown method 'nonsense'; valid: 'base'"),
        ("base:rho=1", "base has no argument 'rho'; it has: steps, schedule, scale, start, start_it"),
        ("dps", "dps needs strength"),
        ("ntrk:rho", "'rho' must be written argument=value"),
        ("ntrk:scale=2", "scale=2 needs a schedule; add schedule=NAME"),
        ("ntrk:start_alpha=2", "start_alpha=2 needs a start; add start=pcnl"),
        ("ntrk:start=noise,start_alpha=2", "start_alpha=2 needs a start; add start=pcnl"),
    ],
)
def test_bad_methods(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_method(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base:steps=0", "base: steps must be at least 1"),
        ("base:steps=2.5", "base: steps must be an integer"),
        ("ntrk:rho=2", r"ntrk: rho must be in \[0, 1\]"),
        ("ntrk:operator=white", "ntrk: unknown operator 'white'"),
        ("ntrk:schedule=cubic", "Schedule: unknown name 'cubic'"),
        ("ntrk:schedule=linear,scale=-1", "Schedule: scale must be finite and at least 0"),
        ("ntrk:start=psi", "ntrk: unknown start 'psi'; valid: 'noise', 'pcnl'"),
        ("ntrk:start=pcnl,start_alpha=0", "PCNL: alpha must be above 0, got 0"),
        ("ntrk:start=pcnl,start_iterations=-1", "PCNL: iterations must be at least 0"),
        ("dps:strength=much", "dps: strength must be a number"),
        ("svdd:candidates=0", "svdd: candidates must be at least 1"),
        ("das:alpha=0", "das: alpha must be above 0, got 0"),
        ("wgnc:iterations=-1", "wgnc: iterations must be at least 0"),
        ("wgnc:lr=-1", "wgnc: lr must be finite and at least 0"),
    ],
)
def test_arguments_are_checked_without_a_model(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_method(text).check()


def test_shapes_are_checked_without_a_model() -> None:
    Method("ntrk").check_shape((4, 16, 16))
    Method("base").check_shape((3, 5, 7))
    with pytest.raises(ValueError, match="operator 'w' does not take latents of shape"):
        Method("ntrk").check_shape((3, 5, 7))


# ---- records of the samplers ----


def test_records_of_the_samplers() -> None:
    assert {
        name: (Method(name, arguments).one_step, Method(name, arguments).needs_gradient)
        for name, arguments in {
            "base": {},
            "ntrk": {},
            "dps": {"strength": 1.0},
            "freedom": {},
            "dno": {},
            "rbf": {},
            "svdd": {},
            "das": {"alpha": 1.0},
            "fk": {"alpha": 1.0},
            "psi": {"alpha": 1.0},
            "wgnc": {},
            "reno": {},
            "prno": {},
            "mpgr": {},
        }.items()
    } == {
        "base": (False, False),
        "ntrk": (False, True),
        "dps": (False, True),
        "freedom": (False, True),
        "dno": (False, True),
        "rbf": (False, False),
        "svdd": (False, False),
        "das": (False, True),
        "fk": (False, False),
        "psi": (False, True),
        "wgnc": (True, True),
        "reno": (True, True),
        "prno": (True, True),
        "mpgr": (True, True),
    }
    assert sorted(SAMPLERS) == [
        "base",
        "das",
        "dno",
        "dps",
        "fk",
        "freedom",
        "mpgr",
        "ntrk",
        "prno",
        "psi",
        "rbf",
        "reno",
        "svdd",
        "wgnc",
    ]
    assert Method("das", {"alpha": 1.0, "copies": 3}).particles_at_once(8) == 2
    assert Method("svdd", {"candidates": 3}).particles_at_once(8) == 2
    assert Method("svdd").particles_at_once(2) == 1
    assert Method("ntrk").particles_at_once(8) == 8
    assert Method("rbf").particles_at_once(8) == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_parameters_come_from_signature_and_docstring(name: str) -> None:
    sampler = SAMPLERS[name]
    signature = inspect.signature(sampler.function).parameters
    for parameter, facts in sampler.parameters.items():
        assert facts.type in (int, float, str)
        assert len(facts.help) > 10 and facts.help[0].isupper() and facts.help.endswith(".")
        if parameter == "scale":
            assert facts.default is None and "schedule" in sampler.parameters
        elif parameter.startswith("start_"):
            assert facts.default == getattr(PCNL(), parameter.removeprefix("start_"))
        elif parameter.startswith("guide_"):
            names = {"guide_every": "every", "guide_from": "from_t", "guide_until": "until_t"}
            assert facts.default == getattr(GuidedSteps(), names[parameter])
        else:
            assert facts.default == signature[parameter].default
    assert set(sampler.keywords) <= set(inspect.signature(sampler.algorithm).parameters)
    assert set(sampler.defaults) == {
        key for key in sampler.keywords if signature[key].default is not REQUIRED
    }


def test_parameters_of_ntrk_and_dps() -> None:
    parameters = SAMPLERS["ntrk"].parameters
    assert list(parameters) == [
        *("rho", "operator", "steps", "schedule", "scale", "start"),
        *("start_iterations", "start_alpha", "start_epsilon", "start_clip"),
        *("guide_every", "guide_from", "guide_until"),
    ]
    assert parameters["rho"][:2] == (float, 0.3) and parameters["rho"].choices is None
    assert parameters["rho"].help.startswith("Guidance strength in [0, 1]; ")
    assert parameters["schedule"][:2] == (str, "linear")
    assert parameters["operator"].choices == ("w", "2os+tiles", "2os", "wgnc", "norm", "identity")
    assert parameters["scale"].help.startswith("Factor of the schedule, at least 0")
    assert SAMPLERS["dps"].parameters["strength"][:2] == (float, REQUIRED)


@pytest.fixture
def registry() -> Iterator[dict[str, Any]]:
    """Registry that is restored after the test."""
    before = dict(SAMPLERS)
    yield SAMPLERS
    SAMPLERS.clear()
    SAMPLERS.update(before)


def test_a_registered_sampler_is_a_method(registry: dict[str, Any]) -> None:
    def twofold_steps(*, twice: int) -> Base:
        if twice < 1:
            raise ValueError("twofold: twice must be positive")
        return Base(steps=2 * twice)

    def twofold(model: Any, reward: Any, prompts: Any, *, twice: int = 2, options: Any = None) -> Any:
        """Run base with twice as many steps.

        Args:
            twice: half the number of steps. At least 1.
        """
        return stepwise("twofold", model, reward, prompts, twice=twice, options=options).result()

    register = register_sampler(
        kind="flow",
        needs_gradient=False,
        algorithm=twofold_steps,
        nfe=lambda arguments: 2 * arguments["twice"],
    )
    assert register(twofold) is twofold
    method = parse_method("twofold:twice=3")
    assert method.nfe == 6 == method.sample(LatentFlow(), brightness, "").nfe
    assert registry["twofold"].parameters == {"twice": (int, 2, "Half the number of steps.", None)}
    with pytest.raises(ValueError, match="twice must be positive"):
        parse_method("twofold:twice=0").check()
    with pytest.raises(ValueError, match="the name 'twofold' is taken"):
        register(twofold)


def test_a_sampler_may_have_parameters_with_names_of_details(registry: dict[str, Any]) -> None:
    """A `scale` without a schedule, and a `guide_every` without guided steps, are the sampler's."""

    def own(
        model: Any, reward: Any, prompts: Any, *, scale: int = 2, guide_every: int = 1, options: Any = None
    ) -> Any:
        """Run base.

        Args:
            scale: number of steps.
            guide_every: another number of steps.
        """
        return stepwise(own, model, reward, prompts, scale=scale, guide_every=guide_every).result()

    register_sampler(
        kind="flow",
        needs_gradient=False,
        algorithm=lambda *, scale, guide_every: Base(steps=scale * guide_every),
        nfe=lambda arguments: arguments["scale"] * arguments["guide_every"],
    )(own)
    method = parse_method("own:scale=3,guide_every=2").resolved()
    method.check()
    assert method.sample(LatentFlow(), brightness, "").nfe == 6 == method.nfe


def test_parameters_need_simple_types(registry: dict[str, Any]) -> None:
    def odd(model: Any, reward: Any, prompts: Any, *, flag: list[int], options: Any = None) -> Any:
        """Do nothing."""

    register_sampler(kind="flow", needs_gradient=False, algorithm=print, nfe=len)(odd)
    with pytest.raises(
        TypeError, match=r"odd: flag must be annotated with int, float, str or a union .* got list"
    ):
        registry["odd"].parameters  # noqa: B018


def test_help_of_flow_model_describes_its_members() -> None:
    members = ("shape:", "device:", "sigmas(n):", "velocity(x, sigma, prompts):", "decode(x0):")
    assert all(f"\n    {member}" in inspect.getdoc(FlowModel) for member in members)


def test_a_resolved_method_has_every_argument() -> None:
    resolved = parse_method("ntrk:steps=4").resolved({"rho": 0.01, "candidates": 9})
    wanted = {"rho": 0.01, "operator": "w", "steps": 4, "schedule": "linear", "scale": 2.0, "start": "noise"}
    assert resolved.arguments == wanted
    assert resolved.resolved({"rho": 0.5}) == resolved
    assert parse_method(str(resolved)) == resolved
    assert parse_method("ntrk:rho=0.2").resolved({"rho": 0.01}).argument("rho") == 0.2
    assert parse_method("ntrk").resolved().argument("rho") == 0.3
    chain = parse_method("ntrk:start=pcnl,start_alpha=2").resolved()
    assert chain.arguments["start_alpha"] == 2 and chain.arguments["start_iterations"] == 25
    assert chain.resolved() == chain == parse_method(str(chain))


def test_a_method_runs_step_by_step() -> None:
    method = parse_method("ntrk:steps=4,rho=0.1,schedule=constant,scale=0.3,guide_every=2")
    options = SamplerOptions(seed=3)
    expected = method.sample(LatentFlow(), brightness, "", options)
    run = method.stepwise(LatentFlow(), brightness, "", options)
    assert [step.index for step in run] == [0, 1, 2, 3]
    assert torch.equal(run.result().latents, expected.latents)
    assert run.arguments["schedule"] == Schedule("constant", 0.3)
