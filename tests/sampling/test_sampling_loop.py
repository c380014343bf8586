"""Loop of the samplers: records and their file, values that are not finite, interruptions, progress bar."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bits import assert_same_bits
from gaussian_flows import LatentFlow, LatentGenerator, brightness, left_half
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.sampling import (
    FinishedParticle,
    NonFiniteError,
    RecordWriter,
    Result,
    SamplerOptions,
    StepRecord,
)

STEPS = 4

GUIDED: dict[str, tuple[Callable[..., Result], Any, dict[str, Any]]] = {
    "ntrk": (sampling.ntrk, LatentFlow(bend=0.1), {"steps": STEPS}),
    "dps": (sampling.dps, LatentFlow(bend=0.1), {"steps": STEPS, "strength": 300.0}),
    "freedom": (
        sampling.freedom,
        LatentFlow(bend=0.1),
        {"steps": STEPS, "strength": 300.0, "scaling": "none", "travel": 1},
    ),
    "svdd": (sampling.svdd, LatentFlow(bend=0.1), {"steps": STEPS, "candidates": 2}),
    "das": (sampling.das, LatentFlow(bend=0.1), {"steps": STEPS, "alpha": 1e-3, "copies": 2}),
    "fk": (sampling.fk, LatentFlow(bend=0.1), {"steps": STEPS, "alpha": 1e-3, "copies": 2, "every": 1}),
    "wgnc": (sampling.wgnc, LatentGenerator(), {"iterations": STEPS - 1, "lr": 0.1}),
    "reno": (sampling.reno, LatentGenerator(), {"iterations": STEPS - 1}),
    "prno": (sampling.prno, LatentGenerator(), {"iterations": STEPS - 1, "shuffles": 1}),
    "mpgr": (sampling.mpgr, LatentGenerator(), {"iterations": STEPS - 1}),
    "dno": (sampling.dno, LatentFlow(bend=0.1), {"iterations": STEPS - 1, "steps": 2}),
}
SEVERAL = {"svdd": STEPS, "das": STEPS + 1, "fk": STEPS + 1}
"""Calls of the reward for one particle that fills a micro-batch of two entries."""
OPTIMISERS = ("wgnc", "reno", "prno", "mpgr", "dno")
BASE = (sampling.base, LatentFlow(bend=0.1), {"steps": STEPS})


class Spoilt:
    """Reward left_half, multiplied by a factor for the prompt "bad", from call number `first` on.

    With `only_gradient` the factor changes the gradient, and the reward stays finite.
    """

    def __init__(self, factor: float, first: int = 0, only_gradient: bool = False) -> None:
        self.factor, self.first, self.only_gradient, self.calls = factor, first, only_gradient, 0

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        rewards = left_half(images, prompts)
        if self.calls >= self.first:
            factors = torch.tensor([self.factor if prompt == "bad" else 1.0 for prompt in prompts])
            if self.only_gradient:
                rewards = (
                    rewards + (factors - 1) * (rewards - rewards.detach())
                    if rewards.requires_grad
                    else rewards
                )
                rewards = torch.where(rewards.isfinite(), rewards, left_half(images.detach(), prompts))
            else:
                rewards = rewards * factors
        self.calls += 1
        return rewards


# ---- records ----


@pytest.mark.parametrize("name", [*GUIDED, "base"])
def test_records(name: str) -> None:
    sampler, model, arguments = GUIDED.get(name, BASE)
    made: list[StepRecord] = []
    result = sampler(
        model, left_half, [""] * 3, options=SamplerOptions(micro_batch=2, on_record=made.append), **arguments
    )
    assert tuple(made) == result.records
    assert sorted((r.particle, r.step) for r in made) == [(p, s) for p in range(3) for s in range(STEPS)]
    for record in made:
        last = record.step == STEPS - 1
        assert record.method == name
        assert record.t == (1.0 if name in OPTIMISERS else 1 - record.step / STEPS)
        assert (record.reward is None) == (name == "base" and not last)
        assert (record.gradient_norm is None) == (name in ("base", "svdd", "fk") or last)
        assert (record.cosine is None) == (name not in ("ntrk", *OPTIMISERS) or last)
        assert record.seconds_model > 0 or (name == "svdd" and last)  # svdd knows the last velocity already
        assert (record.seconds_reward > 0) == (record.reward is not None)
        assert (record.seconds_whitening > 0) == (name in ("ntrk", *OPTIMISERS) and not last)
        assert record.fallback is None
        assert (record.ess is None) == ("copies" not in arguments)
        if record.cosine is not None:
            assert 0 < record.cosine <= 1 and record.gradient_norm > 0
        if last:
            assert record.reward == result.rewards[record.particle]


def test_seconds_are_shared_among_the_particles() -> None:
    """The seconds of all records sum to those of the whole call."""

    class Slow(LatentFlow):
        def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
            time.sleep(0.01)
            return super().velocity(x, sigma, prompts)

    start = time.perf_counter()
    result = sampling.ntrk(Slow(), left_half, [""] * 8, steps=STEPS, options=SamplerOptions(micro_batch=8))
    elapsed = time.perf_counter() - start
    model = sum(record.seconds_model for record in result.records)
    others = sum(record.seconds_reward + record.seconds_whitening for record in result.records)
    assert 0.01 * STEPS <= model < model + others <= elapsed


def test_the_writer_writes_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    sampler, model, arguments = GUIDED["ntrk"]
    for particle in (0, 1):  # the second call continues the file
        with RecordWriter(path) as writer:
            sampler(
                model,
                left_half,
                "",
                options=SamplerOptions(first_particle=particle, on_record=writer.write),
                **arguments,
            )
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["particle"], line["step"]) for line in lines] == [
        (p, s) for p in (0, 1) for s in range(STEPS)
    ]
    assert set(lines[0]) == {field.name for field in dataclasses.fields(StepRecord)}


def test_json_has_no_nan() -> None:
    record = StepRecord(
        "ntrk", 0, 3, 0.5, reward=math.nan, gradient_norm=math.inf, fallback="non-finite reward"
    )

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    values = json.loads(record.to_json(), parse_constant=refuse)
    assert values["reward"] is None and values["gradient_norm"] is None
    assert values["t"] == 0.5 and values["fallback"] == "non-finite reward"


def test_a_crash_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    code = f"""
import os
from noisetilt_kernels.sampling import RecordWriter, StepRecord
writer = RecordWriter({str(path)!r})
for step in range(100):
    writer.write(StepRecord("ntrk", 0, step, 0.5))
os.kill(os.getpid(), 9)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    text = path.read_text()
    assert text.endswith("\n")
    assert [json.loads(line)["step"] for line in text.splitlines()] == list(range(100))


# ---- values that are not finite ----


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("name", GUIDED)
def test_a_reward_that_is_not_finite_is_an_error(name: str, factor: float) -> None:
    sampler, model, arguments = GUIDED[name]
    finished = []
    options = SamplerOptions(micro_batch=2, on_finished=lambda one: finished.append(one.particle))
    with pytest.raises(
        NonFiniteError, match=rf"^{name}: non-finite reward.* at step 2 of particle 3; "
    ) as caught:
        # Micro-batches hold particles 0, 1 and 2, 3, or one particle with its two entries.
        first = 2 + (3 * SEVERAL[name] if name in SEVERAL else STEPS)
        sampler(model, Spoilt(factor, first), ["", "", "", "bad"], options=options, **arguments)
    assert (caught.value.method, caught.value.step, caught.value.particle) == (name, 2, 3)
    assert finished == ([0, 1, 2] if name in SEVERAL else [0, 1])


@pytest.mark.parametrize("name", ["ntrk", "dps", "freedom", "das", *OPTIMISERS])
def test_a_gradient_that_is_not_finite_is_an_error(name: str) -> None:
    sampler, model, arguments = GUIDED[name]
    with pytest.raises(NonFiniteError, match=rf"^{name}: non-finite gradient at step 1 of particle 1; "):
        reward = Spoilt(math.inf, 1 + SEVERAL.get(name, 0), only_gradient=True)
        sampler(model, reward, ["", "bad"], options=SamplerOptions(micro_batch=2), **arguments)


@pytest.mark.parametrize("name", [*GUIDED, "base"])
def test_a_non_finite_final_reward_is_an_error_after_the_others_are_finished(name: str) -> None:
    sampler, model, arguments = GUIDED.get(name, BASE)
    finished = []
    options = SamplerOptions(micro_batch=6, on_finished=lambda one: finished.append(one.particle))
    with pytest.raises(
        NonFiniteError, match=rf"^{name}: non-finite reward at step {STEPS - 1} of particle 1; "
    ):
        first = 0 if name == "base" else STEPS - 1
        sampler(model, Spoilt(math.nan, first), ["", "bad", ""], options=options, **arguments)
    assert finished == [0, 2]


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["ntrk", "dps", "freedom"])
def test_plain_noise_equals_base_for_that_particle(name: str, factor: float) -> None:
    """Particle 1 equals base at every step; particle 0 is guided as if it were alone."""
    sampler, model, arguments = GUIDED[name]
    finished = []
    options = SamplerOptions(
        seed=5,
        micro_batch=2,
        non_finite="plain_noise",
        on_finished=lambda one: finished.append(one.particle),
    )
    result = sampler(model, Spoilt(factor), ["", "bad"], options=options, **arguments)
    assert finished == [0, 1]
    base = sampling.base(model, left_half, ["", ""], steps=STEPS, options=options)
    guided = sampler(model, left_half, ["", ""], options=options, **arguments)
    assert_same_bits(result.latents[1], base.latents[1])
    assert_same_bits(result.latents[0], guided.latents[0])
    assert not result.rewards[1].isfinite()
    if math.isnan(factor):
        assert result.best == 0
    reasons = [record.fallback for record in result.records if record.particle == 1]
    assert reasons == ["non-finite reward"] * (STEPS - 1) + [None]
    assert all(record.fallback is None for record in result.records if record.particle == 0)


def test_plain_noise_replaces_a_gradient_that_is_not_finite() -> None:
    for name in ("ntrk", "dps", "freedom"):
        sampler, model, arguments = GUIDED[name]
        options = SamplerOptions(seed=5, micro_batch=2, non_finite="plain_noise")
        result = sampler(
            model, Spoilt(math.nan, 0, only_gradient=True), ["", "bad"], options=options, **arguments
        )
        base = sampling.base(model, left_half, ["", ""], steps=STEPS, options=options)
        assert_same_bits(result.latents[1], base.latents[1])
        assert [r.fallback for r in result.records if r.particle == 1][:-1] == ["non-finite gradient"] * (
            STEPS - 1
        )


def test_svdd_does_not_choose_a_candidate_that_is_not_finite() -> None:
    model, options = LatentFlow(bend=0.1), SamplerOptions(seed=5, non_finite="plain_noise", micro_batch=100)

    def first_is_infinite(images: Tensor, prompts: Sequence[str]) -> Tensor:
        rewards = left_half(images, prompts)
        return (
            torch.where(torch.arange(len(rewards)) == 0, math.inf, rewards) if len(rewards) > 1 else rewards
        )

    arguments = {"steps": 2, "candidates": 3}
    result = sampling.svdd(model, first_is_infinite, "", options=options, **arguments)
    assert math.isfinite(result.records[0].reward)
    assert result.records[0].fallback == "non-finite reward of 1 of 3 candidates"

    all_bad = sampling.svdd(model, Spoilt(math.nan), "bad", options=options, **arguments)
    assert all_bad.records[0].fallback == "non-finite reward of 3 of 3 candidates"
    base = sampling.base(model, left_half, "", steps=2, options=options)
    assert_same_bits(all_bad.latents, base.latents, "the first candidate is the draw of base")


def test_a_zero_gradient_gives_plain_noise_and_is_recorded() -> None:
    """An operator would turn a zero gradient into the same noise at every step."""
    model, options = LatentFlow(bend=0.1), SamplerOptions(seed=5)
    base = sampling.base(model, left_half, "", steps=STEPS, options=options)
    result = sampling.ntrk(model, Spoilt(0.0), "bad", rho=1, steps=STEPS, options=options)
    assert_same_bits(result.latents, base.latents)
    assert [record.fallback for record in result.records] == ["zero gradient"] * (STEPS - 1) + [None]
    assert all(record.cosine is None for record in result.records)


# ---- interruptions ----


@pytest.mark.parametrize("name", [*GUIDED, "base"])
def test_particles_finished_before_an_interrupt_are_kept(name: str) -> None:
    sampler, model, arguments = GUIDED.get(name, BASE)
    finished: dict[int, FinishedParticle] = {}
    records: list[StepRecord] = []

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        if "stop" in prompts:
            raise KeyboardInterrupt
        return left_half(images, prompts)

    def keep(one: FinishedParticle) -> None:
        finished[one.particle] = one

    options = SamplerOptions(seed=1, micro_batch=2, on_finished=keep, on_record=records.append)
    with pytest.raises(KeyboardInterrupt):
        sampler(model, reward, ["", "", "", "", "", "stop"], options=options, **arguments)
    whole = sampler(model, left_half, [""] * 6, options=SamplerOptions(seed=1, micro_batch=2), **arguments)
    assert list(finished) == ([0, 1, 2, 3, 4] if name in SEVERAL else [0, 1, 2, 3])
    for particle, one in finished.items():
        assert_same_bits(one.latent, whole.latents[particle])
        assert one.reward == whole.rewards[particle] == left_half(one.image[None], [""])
        assert len([record for record in records if record.particle == particle]) == STEPS

    # A second call makes the missing particles.
    rest = range(len(finished), 6)
    missing = sampler(
        model,
        left_half,
        [""] * len(rest),
        options=SamplerOptions(seed=1, first_particle=rest[0]),
        **arguments,
    )
    assert_same_bits(missing.latents, whole.latents[rest[0] :])


def test_finished_particles_are_handed_over_at_once() -> None:
    order: list[str] = []
    options = SamplerOptions(
        micro_batch=2,
        on_finished=lambda one: order.append(f"finished {one.particle}"),
        on_record=lambda record: order.append(f"step {record.step} of {record.particle}"),
    )
    sampling.base(LatentFlow(), brightness, [""] * 3, steps=1, options=options)
    assert order == ["step 0 of 0", "step 0 of 1", "finished 0", "finished 1", "step 0 of 2", "finished 2"]


# ---- progress ----


def test_progress_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    sampling.base(LatentFlow(), brightness, [""] * 3, steps=2)
    assert capsys.readouterr().err == ""
    sampling.base(
        LatentFlow(), brightness, [""] * 3, steps=2, options=SamplerOptions(progress=True, micro_batch=2)
    )
    assert "6/6" in capsys.readouterr().err


def test_only_progress_needs_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    sampling.base(LatentFlow(), brightness, "", steps=2)
    with pytest.raises(ImportError, match="pip install tqdm"):
        sampling.base(LatentFlow(), brightness, "", steps=2, options=SamplerOptions(progress=True))


def test_best_of_a_result() -> None:
    rewards = torch.tensor([0.1, math.nan, 0.7, 0.7])
    result = Result("base", ("",) * 4, torch.zeros(4, 2), rewards, 4, (), (0, 1, 2, 3))
    assert result.best == 2
