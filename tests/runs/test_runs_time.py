"""Estimated time of a run, on a clock that the model, the decoder and the reward advance."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from noisetilt_kernels.runs import plan
from noisetilt_kernels.sampling import SamplerOptions, meter
from noisetilt_kernels.sampling.methods import parse_method


class Clock:
    """Clock whose time passes in `Work` only."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Work(torch.autograd.Function):
    """Scaled identity, or the mean of each entry, that takes seconds for each entry: in each direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: Clock, there: float, back: float) -> Tensor:
        ctx.clock, ctx.back = clock, back
        clock.now += there * len(x)
        return 0.5 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        ctx.clock.now += ctx.back * len(gradient)
        return 0.5 * gradient, None, None, None


class TimedModel:
    """Flow and one-step model: 1 s for a forward, 2 s for a backward, and the decoder 0.25 s and 0.5 s."""

    shape, device = (4, 8, 8), torch.device("cpu")

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def sigmas(self, n: int) -> Tensor:
        return torch.linspace(1, 0, n + 1)

    def velocity(self, x: Tensor, sigma: float, prompts: Any) -> Tensor:
        return Work.apply(x, self.clock, 1.0, 2.0)

    def decode(self, x0: Tensor) -> Tensor:
        return Work.apply(x0, self.clock, 0.25, 0.5)[:, :3].sigmoid()

    def generate(self, x: Tensor, prompts: Any) -> Tensor:
        return self.decode(self.velocity(x, 1.0, prompts))

    def reward(self, images: Tensor, prompts: Any) -> Tensor:
        return Work.apply(images, self.clock, 0.1, 0.2).mean(dim=(1, 2, 3))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> TimedModel:
    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    monkeypatch.setattr(plan, "format_seconds", lambda seconds: f"{seconds!r} s")
    return TimedModel(clock)


def estimate(
    model: TimedModel, text: str, particles: int = 1000, micro_batch: int = 1
) -> tuple[float, float]:
    """Return the seconds of the line of the plan: of the run, and of an image."""
    settings = SimpleNamespace(method=parse_method(text), particle_prompts=[""] * particles)
    compute = SimpleNamespace(micro_batch=micro_batch)
    planned = plan.measure_time(settings, compute, model, model.reward, particles)  # type: ignore[arg-type]
    assert planned is not None
    found = re.fullmatch(r"time +about ([\d.e+]+) s, ([\d.e+]+) s per image; measured on .*", planned.text)
    assert found is not None and float(found[2]) == planned.seconds
    return float(found[1]), planned.seconds


def measure(model: TimedModel, text: str) -> float:
    """Return the seconds that a particle takes."""
    before = model.clock.now
    parse_method(text).sample(model, model.reward, "", SamplerOptions())  # type: ignore[arg-type]
    return model.clock.now - before


@pytest.mark.parametrize(
    "text",
    [
        "base:steps=20",
        "ntrk:steps=20",
        "ntrk:steps=20,guide_every=3",
        "ntrk:steps=20,guide_from=0.5",
        "ntrk:steps=20,guide_until=0.8",
        "dps:strength=1,steps=20",
        "freedom:steps=20",
        "das:alpha=0.1,copies=3,steps=20",
        "das:alpha=0.1,copies=3,steps=20,guide_every=4",
        "wgnc:iterations=30",
        "reno:iterations=30",
    ],
)
def test_the_estimate_is_the_time_of_the_run(model: TimedModel, text: str) -> None:
    total, each = estimate(model, text)
    assert total == pytest.approx(1000 * each)
    assert each == pytest.approx(measure(model, text), rel=0.02)


@pytest.mark.parametrize(
    "text",
    [
        "svdd:candidates=4,steps=20",
        "fk:alpha=0.1,copies=3,steps=20",
        "dno:iterations=6,steps=5",
        "rbf:budget=200,starts=4,steps=20",
    ],
)
def test_the_estimate_is_near_if_rewards_and_forwards_differ_in_number(model: TimedModel, text: str) -> None:
    assert estimate(model, text)[1] == pytest.approx(measure(model, text), rel=0.2)


def test_guided_and_plain_steps_are_told_apart(model: TimedModel) -> None:
    """A guided step takes 3 + 0.75 + 0.3 s, a plain one 1 s, and the end 0.25 + 0.1 s in addition."""
    for text, guided in (("ntrk:steps=41", 40), ("ntrk:steps=41,guide_every=4", 10)):
        assert estimate(model, text)[1] == pytest.approx(4.05 * guided + 40 - guided + 1.35)


def test_the_estimate_does_not_depend_on_the_micro_batch(model: TimedModel) -> None:
    assert estimate(model, "ntrk:steps=20", micro_batch=4) == pytest.approx(estimate(model, "ntrk:steps=20"))


def test_a_run_of_one_step_has_no_guided_steps(model: TimedModel) -> None:
    assert estimate(model, "ntrk:steps=1,guide_every=2")[1] > 0
