"""Errors: every mistake is reported before any work, with the names of function and argument."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from gaussian_flows import GaussianFlow, LatentFlow, LatentGenerator, brightness
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.sampling import Result, SamplerOptions, Schedule

FLOW: dict[str, tuple[Callable[..., Result], dict[str, Any]]] = {
    "base": (sampling.base, {}),
    "ntrk": (sampling.ntrk, {}),
    "dps": (sampling.dps, {"strength": 1.0}),
    "freedom": (sampling.freedom, {}),
    "rbf": (sampling.rbf, {}),
    "dno": (sampling.dno, {}),
    "svdd": (sampling.svdd, {}),
    "das": (sampling.das, {"alpha": 1.0}),
    "fk": (sampling.fk, {"alpha": 1.0}),
    "psi": (sampling.psi, {"alpha": 1.0}),
}
ONE_STEP: dict[str, tuple[Callable[..., Result], dict[str, Any]]] = {
    "wgnc": (sampling.wgnc, {}),
    "reno": (sampling.reno, {}),
    "prno": (sampling.prno, {}),
    "mpgr": (sampling.mpgr, {}),
}
EVERY = {**FLOW, **ONE_STEP}


class Untouched(LatentFlow):
    """Model that fails when it is called."""

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        raise AssertionError("the model was called")

    def generate(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        raise AssertionError("the model was called")


def mistakes() -> dict[str, tuple[str, dict[str, Any], type[Exception], str]]:
    """Return sampler, replaced arguments, error and a part of its message for each mistake."""
    found: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {}

    def add(name: str, what: str, error: type[Exception], message: str, **replaced: Any) -> None:
        found[f"{name}: {what}"] = name, replaced, error, message

    for name in EVERY:
        add(name, "no prompts", ValueError, "prompts must not be empty", prompts=[])
        add(name, "prompts of another type", TypeError, "prompts must be a string or", prompts=[1])
        add(name, "no prompts at all", TypeError, "prompts must be a string or", prompts=None)
        add(name, "reward", TypeError, "reward must be callable", reward="aesthetic")
        add(name, "options", TypeError, "options must be a SamplerOptions", options={"seed": 3})
        add(name, "model", TypeError, "object has no", model=object())
        for shape in ((16, 16), (), (2, 4, 1, 8, 8), (0,), (4, 16.0, 16)):
            add(
                name,
                f"latents {shape}",
                ValueError,
                "model.shape must be (N,), (C, H, W)",
                model=Untouched(shape),
            )
    for name in FLOW:
        for steps in (0, -3):
            add(name, f"{steps} steps", ValueError, "steps must be at least 1", steps=steps)
        for steps in (2.0, True, "25"):
            add(name, f"{steps!r} steps", TypeError, "steps must be an integer", steps=steps)
        add(
            name,
            "schedule",
            ValueError,
            "unknown schedule 'cubic'; valid: 'constant', 'linear', 'quadratic', 'flow-grpo'",
            schedule="cubic",
        )
        add(
            name, "schedule of another type", TypeError, "schedule must be a name or a Schedule", schedule=0.7
        )
        for what, times in {
            "too few times": [1.0, 0.0],
            "increasing times": [0.0, 0.5, 1.0],
            "equal times": [1.0, 1.0, 0.0],
            "times that do not reach 0": [1.0, 0.5, 0.1],
            "times that do not start at 1": [0.9, 0.5, 0.0],
        }.items():
            model = Untouched(sigmas=lambda n, times=times: torch.tensor(times))
            message = "model.sigmas(2) must be 3 strictly decreasing times from 1 to 0"
            add(name, what, ValueError, message, model=model, steps=2)
    for name in [name for name in FLOW if name not in ("dno", "fk", "psi")]:
        add(name, "start", ValueError, "unknown start 'psi'; valid: 'noise', 'pcnl'", start="psi")
        add(name, "start of another type", TypeError, "start must be a name or a Start", start=0.7)
        add(name, "function without iterations", TypeError, "start must be a name or a Start", start=print)
    for rho in (-0.1, 1.1, float("nan"), float("inf")):
        add("ntrk", f"rho {rho}", ValueError, "rho must be in [0, 1]", rho=rho)
    add("ntrk", "rho of another type", TypeError, "rho must be a number", rho="0.3")
    for name in ("ntrk", "wgnc"):
        message = "unknown operator 'white'; valid: 'w', '2os+tiles', '2os', 'wgnc', 'norm', 'identity'"
        add(name, "operator", ValueError, message, operator="white")
        message = "operator 'wgnc' does not take latents of shape (3, 5, 7)"
        add(name, "shape for wgnc", ValueError, message, operator="wgnc", model=Untouched((3, 5, 7)))
        for part in ("2os", "2os+tiles"):
            message = f"operator '{part}' does not take latents of shape (3, 5, 7): whiten: preset 'auto'"
            add(name, f"shape for {part}", ValueError, message, operator=part, model=Untouched((3, 5, 7)))
        message = "operator 'w' does not take latents of shape (3, 5, 7)"
        add(name, "shape for w", ValueError, message, operator="w", model=Untouched((3, 5, 7)))
    for name in ("dps", "freedom"):
        add(name, "strength", ValueError, "strength must be finite", strength=float("nan"))
        add(name, "strength of another type", TypeError, "strength must be a number", strength=None)
    add("freedom", "scaling", ValueError, "unknown scaling 'rms'; valid: 'velocity', 'none'", scaling="rms")
    add("freedom", "travel", ValueError, "travel must be at least 1", travel=0)
    add("freedom", "start of the window", ValueError, "travel_from must be in [0, 1]", travel_from=-0.1)
    add("freedom", "end of the window", ValueError, "travel_to must be in [0, 1]", travel_to=1.1)
    for count in (0, -1):
        add("svdd", f"{count} candidates", ValueError, "candidates must be at least 1", candidates=count)
        add("fk", f"every {count} steps", ValueError, "every must be at least 1", every=count)
    for name in ("das", "fk", "psi"):
        add(name, "copies", ValueError, "copies must be at least 1", copies=0)
        add(name, "alpha", ValueError, "alpha must be above 0, got 0", alpha=0)
        add(name, "infinite alpha", ValueError, "alpha must be finite and at least 0", alpha=float("inf"))
        add(name, "alpha of another type", TypeError, "alpha must be a number", alpha=None)
        add(name, "threshold", ValueError, "threshold must be in [0, 1]", threshold=-0.1)
        message = "unknown resampling 'spp' (did you mean 'ssp'?); valid: 'systematic', 'ssp'"
        add(name, "resampling", ValueError, message, resampling="spp")
    for name in ("clip", "chain_clip"):
        add("psi", name, ValueError, f"{name} must be finite and at least 0", **{name: -1.0})
    add("psi", "chains", ValueError, "chains must be at least 1", chains=0)
    add("psi", "burn_in", ValueError, "burn_in must be at least 0", burn_in=-1)
    add("psi", "kept", ValueError, "kept must be at least 1", kept=0)
    add("psi", "chain_alpha", ValueError, "chain_alpha must be above 0", chain_alpha=0.0)
    add("psi", "chain_epsilon", ValueError, "chain_epsilon must be above 0", chain_epsilon=0.0)
    add("psi", "long steps", ValueError, "chain_epsilon must be in [0, 4]", chain_epsilon=4.1)
    message = "each of 3 chains must give the same number of the 10 copies"
    add("psi", "copies of chains", ValueError, message, chains=3)
    add("psi", "few states", ValueError, "at most one for each of its 1 kept states", kept=1)
    add("das", "tempering", ValueError, "tempering must be in [0, 1]", tempering=1.5)
    message = "unknown potential 'min'; valid: 'max', 'sum', 'difference'"
    add("fk", "potential", ValueError, message, potential="min")
    for name in ONE_STEP:
        add(name, "iterations", ValueError, "iterations must be at least 0", iterations=-1)
        add(name, "lr", ValueError, "lr must be finite and at least 0", lr=-0.1)
        add(name, "clip", ValueError, "clip must be finite and at least 0", clip=float("inf"))
        add(name, "answer", ValueError, "unknown answer 'first'; valid: 'last', 'best'", answer="first")
        if name != "wgnc":
            add(name, "weight", ValueError, "weight must be finite and at least 0", weight=-1)
    add("rbf", "starts", ValueError, "starts must be at least 1", starts=0)
    message = "budget must be at least 44, for 20 starts and one draw at each of 24 steps, got 43"
    add("rbf", "budget", ValueError, message, budget=43)
    message = "budget must be at least 67, for 3 starts and one draw at each of 4 steps, got 66"
    chain = sampling.PCNL(20)
    add("rbf", "budget with chains", ValueError, message, budget=66, starts=3, start=chain, steps=5)
    add("dno", "iterations", ValueError, "iterations must be at least 0", iterations=-1)
    add("dno", "lr", ValueError, "lr must be finite and at least 0", lr=-0.1)
    add("dno", "answer", ValueError, "unknown answer 'first'; valid: 'last', 'best'", answer="first")
    add("dno", "weight", ValueError, "weight must be finite and at least 0", weight=-1)
    message = "model.shape must have a number of values divisible by 4, got (25, 3, 5, 7)"
    add("dno", "shape", ValueError, message, model=Untouched((3, 5, 7)), weight=1.0)
    message = "unknown project 'all'; valid: 'both', 'gradient', 'latent', 'neither'"
    add("wgnc", "project", ValueError, message, project="all")
    add("prno", "shuffles", ValueError, "shuffles must be at least 0", shuffles=-1)
    message = "model.shape must have a number of values divisible by 4, got (3, 5, 7)"
    add("prno", "shape for prno", ValueError, message, model=Untouched((3, 5, 7)))
    message = "model.shape must have a number of values divisible by 32, got (3, 4, 4)"
    add("mpgr", "shape for mpgr", ValueError, message, model=Untouched((3, 4, 4)))
    return found


MISTAKES = mistakes()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_before_any_work(mistake: str) -> None:
    name, replaced, error, message = MISTAKES[mistake]
    sampler, arguments = EVERY[name]
    given = {"model": Untouched(), "reward": brightness, "prompts": "", **arguments, **replaced}
    with pytest.raises(error, match=rf"^{name}: .*{re.escape(message)}"):
        sampler(given.pop("model"), given.pop("reward"), given.pop("prompts"), **given)


def test_missing_members_of_a_model_are_named() -> None:
    with pytest.raises(
        TypeError, match=r"^ntrk: model must be a FlowModel .*; LatentGenerator has no decode, sigmas, v"
    ):
        sampling.ntrk(LatentGenerator(), brightness, "")
    with pytest.raises(
        TypeError, match=r"^wgnc: model must be a OneStepModel .*; LatentFlow has no generate"
    ):
        sampling.wgnc(LatentFlow(), brightness, "")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
        ({"micro_batch": 0}, ValueError, "micro_batch must be at least 1"),
        ({"first_particle": -1}, ValueError, "first_particle must be at least 0"),
        ({"non_finite": "ignore"}, ValueError, "unknown non_finite 'ignore'; valid: 'raise', 'plain_noise'"),
        ({"on_finished": 3}, TypeError, "on_finished must be callable or None"),
        ({"on_record": "steps.jsonl"}, TypeError, "on_record must be callable or None"),
    ],
)
def test_sampler_options(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^SamplerOptions: {re.escape(message)}"):
        SamplerOptions(**given)


def test_schedules() -> None:
    with pytest.raises(ValueError, match=r"^Schedule: unknown name 'cubic'; valid: 'constant', 'linear', "):
        Schedule("cubic")
    with pytest.raises(ValueError, match=r"^Schedule: scale must be finite and at least 0, got -1"):
        Schedule("linear", -1.0)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"iterations": -1}, ValueError, "iterations must be at least 0"),
        ({"iterations": 2.0}, TypeError, "iterations must be an integer"),
        ({"alpha": 0}, ValueError, "alpha must be above 0, got 0"),
        ({"alpha": float("nan")}, ValueError, "alpha must be finite and at least 0"),
        ({"epsilon": 0.0}, ValueError, "epsilon must be above 0, got 0"),
        ({"epsilon": 5}, ValueError, "epsilon must be in [0, 4], got 5"),
        ({"clip": -1}, ValueError, "clip must be finite and at least 0"),
    ],
)
def test_chains_of_a_start(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^PCNL: {re.escape(message)}"):
        sampling.PCNL(**given)


def test_best_of_n() -> None:
    with pytest.raises(ValueError, match=r"^best_of_n: n must be at least 1, got 0"):
        sampling.best_of_n(sampling.ntrk, Untouched(), brightness, "", n=0)
    with pytest.raises(TypeError, match=r"^best_of_n: sampler must be a function"):
        sampling.best_of_n("ntrk", Untouched(), brightness, "", n=2)
    with pytest.raises(ValueError, match=r"^ntrk: rho must be in"):
        sampling.best_of_n(sampling.ntrk, Untouched(), brightness, "", n=2, rho=2)


# ---- wrong results of models and rewards ----


@pytest.mark.parametrize("name", FLOW)
def test_wrong_shapes_of_velocities_images_and_rewards(name: str) -> None:
    sampler, arguments = FLOW[name]

    class Wrong(LatentFlow):
        def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
            return super().velocity(x, sigma, prompts)[:, :3]

    with pytest.raises(ValueError, match=rf"^{name}: model.velocity must return \(1, 4, 16, 16\)"):
        sampler(Wrong(), brightness, "", **arguments)

    class Grey(LatentFlow):
        def decode(self, x0: Tensor) -> Tensor:
            return super().decode(x0)[:, :1]

    with pytest.raises(
        ValueError, match=rf"^{name}: the model must make images \(B, 3, H, W\).*got \(1, 1, 16, 16\)"
    ):
        sampler(Grey(), brightness, "", **arguments)
    with pytest.raises(ValueError, match=rf"^{name}: reward must return a tensor \(1,\), one.* got \(\)$"):
        sampler(LatentFlow(), lambda images, prompts: images.mean(), "", **arguments)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *[(name, LatentFlow()) for name in ("ntrk", "dps", "freedom", "das", "psi", "dno")],
        *[(name, LatentGenerator()) for name in ONE_STEP],
    ],
)
def test_a_model_or_reward_without_gradient_is_an_error(name: str, model: Any) -> None:
    sampler, arguments = EVERY[name]
    with pytest.raises(ValueError, match=f"^{name}: the reward has no gradient"):
        sampler(model, torch.no_grad()(brightness), "", **arguments)
    function = "generate" if name in ONE_STEP else "velocity"
    cut = type(model)()
    setattr(cut, function, torch.no_grad()(getattr(cut, function)))
    with pytest.raises(ValueError, match=f"^{name}: the model's output has no gradient"):
        sampler(cut, brightness, "", **arguments)


def test_methods_without_gradient_need_none() -> None:
    flow = GaussianFlow([0.0], [[1.0]])
    for name in ("base", "svdd", "rbf", "fk"):
        sampler, arguments = FLOW[name]
        sampler(flow, torch.no_grad()(brightness), "", steps=2, **arguments)
