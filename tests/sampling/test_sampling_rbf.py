"""RBF: draws of each step, the rollover of those that are left, and its exact cost."""

import math
from collections.abc import Sequence
from itertools import groupby

import pytest
import torch
from bits import assert_same_bits
from gaussian_flows import LatentFlow, Spy, left_half
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.sampling import PCNL, SamplerOptions, Schedule
from noisetilt_kernels.sampling.noise import ParticleNoise
from noisetilt_kernels.sampling.steps import mean, plan_steps

STEPS = 5
MODEL = LatentFlow(bend=0.1)


class Scripted:
    """Reward with given values, call by call; the last one repeats."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        value = self.values.pop(0) if len(self.values) > 1 else self.values[0]
        return torch.full((len(images),), value)


def draws_of(spy: Spy) -> list[int]:
    """Return the number of forwards at each time, in order."""
    return [len(list(calls)) for _, calls in groupby(spy.calls, key=lambda call: call[1])]


def run(
    reward: sampling.Reward, budget: int, starts: int = 3, **arguments: object
) -> tuple[Spy, sampling.Result]:
    spy = Spy(MODEL)
    result = sampling.rbf(spy, reward, "", budget=budget, starts=starts, steps=STEPS, **arguments)
    assert result.nfe == spy.entries == budget
    assert len(result.records) == STEPS
    return spy, result


def test_a_reward_that_always_rises_takes_one_draw_and_leaves_the_rest_to_the_last_step() -> None:
    spy, _ = run(Scripted(*range(100)), 3 + 4 * 6)
    assert draws_of(spy) == [3, 1, 1, 1, 6 + 3 * 5]


def test_a_reward_that_never_rises_takes_the_quota_of_each_step() -> None:
    spy, _ = run(Scripted(5.0, 5.0, 5.0, 1.0), 3 + 4 * 6)
    assert draws_of(spy) == [3, 6, 6, 6, 6]
    spy, _ = run(Scripted(5.0, 5.0, 5.0, 1.0), 3 + 4 * 6 + 3)  # not divisible: the last step has the rest
    assert draws_of(spy) == [3, 6, 6, 6, 9]


def test_draws_that_are_left_roll_over_to_the_next_step_only() -> None:
    """Step 1 ends with its second of 4 draws, step 2 has 6 and uses them, step 3 has 4 again."""
    starts, step_1, step_2, step_3 = [1, 3, 2], [2, 4], [0] * 6, [4, 4, 5]
    spy, result = run(Scripted(*starts, *step_1, *step_2, *step_3, 0), 3 + 4 * 4)
    assert draws_of(spy) == [3, 2, 6, 3, 5]
    assert [record.reward for record in result.records[:4]] == [4, 0, 5, 0]


def test_the_highest_reward_stays_after_a_step_without_a_better_draw() -> None:
    """3.5 in the second step is more than its predecessor at 3, but not than the highest so far."""
    spy, _ = run(Scripted(4, 0, 0, 3, 1, 1, 3.5, 1, 1), 3 + 4 * 3)
    assert draws_of(spy) == [3, 3, 3, 3, 3]


def test_the_path_follows_the_best_draws() -> None:
    """A second implementation: rewards of a real model, the states after each step recovered."""
    spy, result = run(left_half, 40, starts=4, options=SamplerOptions(seed=7))
    stream, calls = ParticleNoise(7, 0, MODEL.shape), iter(spy.calls)
    plan = plan_steps("test", MODEL, STEPS, Schedule("linear"))

    def score(x: Tensor, t: float) -> float:
        return float(left_half(MODEL.decode(x - t * MODEL.velocity(x, t, [""])), [""]))

    def best_of(count: int, center: Tensor | float, sigma: float, t: float) -> tuple[Tensor, float]:
        drawn = [center + sigma * stream.draw() for _ in range(count)]
        for x in drawn:
            assert_same_bits(next(calls)[0], x)
        scores = [score(x, t) for x in drawn]
        return drawn[scores.index(max(scores))], max(scores)

    counts = draws_of(spy)
    x, highest = best_of(counts[0], 0.0, 1.0, 1.0)
    allowed, left, ended_early = 9, 36, 0
    for step, count in zip(plan[:-1], counts[1:], strict=True):
        center = mean(x, MODEL.velocity(x, step.t, [""]), step)
        x, value = best_of(count, center, step.sigma, step.t - step.delta)
        assert result.records[step.index].reward == value
        last = step is plan[-2]
        assert count == left if last else (count < allowed and value > highest) or count == allowed
        ended_early += count < allowed
        left, allowed, highest = left - count, 9 + allowed - count, max(highest, value)
    assert ended_early > 0
    t = plan[-1].t
    assert_same_bits(result.latents, x - t * MODEL.velocity(x, t, [""]))


def test_the_first_of_equal_draws_is_taken() -> None:
    spy, result = run(Scripted(1.0), 3 + 4 * 2)
    x, t, *_ = spy.calls[-2]  # the first of two draws of the last step with noise
    assert_same_bits(result.latents, x - t * MODEL.velocity(x, t, [""]))


def test_one_draw_a_step_is_the_best_start_and_a_path_of_base() -> None:
    options = SamplerOptions(seed=8)
    _, result = run(left_half, 4 + STEPS - 1, starts=4, options=options)
    stream = ParticleNoise(8, 0, MODEL.shape)
    drawn = stream.draw(4)
    rewards = left_half(MODEL.decode(drawn - MODEL.velocity(drawn, 1.0, [""])), [""] * 4)
    x = drawn[[int(rewards.argmax())]]
    plan = plan_steps("test", MODEL, STEPS, Schedule("linear"))
    for step in plan[:-1]:
        x = mean(x, MODEL.velocity(x, step.t, [""]), step) + step.sigma * stream.draw()
    assert_same_bits(result.latents, mean(x, MODEL.velocity(x, plan[-1].t, [""]), plan[-1]))


def test_chains_of_starts_are_part_of_the_budget() -> None:
    spy = Spy(MODEL)
    result = sampling.rbf(
        spy, left_half, "", budget=3 * (1 + 4) + 8, starts=3, steps=STEPS, start=PCNL(4, alpha=1e-3)
    )
    assert result.nfe == spy.entries == 23
    assert [record.step for record in result.records] == list(range(3 * 4 + STEPS))
    assert draws_of(spy)[0] == 15 and [on for *_, on in spy.calls] == [True] * 15 + [False] * 8


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_draw_that_is_not_finite_is_not_chosen(bad: float) -> None:
    options = SamplerOptions(non_finite="plain_noise")
    spy, result = run(Scripted(1, bad, 0, bad, bad, 2, bad, 0.5, 0.75, 0), 3 + 4 * 3, options=options)
    assert draws_of(spy) == [3, 3, 3, 3, 3]
    assert [record.reward for record in result.records[:2]] == [2, 0.75]
    assert [record.fallback for record in result.records] == [
        *("non-finite reward of 2 of 3 draws", "non-finite reward of 1 of 3 draws", None, None, None)
    ]
    with pytest.raises(sampling.NonFiniteError, match="rbf: non-finite reward at step 1 of particle 0"):
        run(Scripted(3, 1, 1, 2, 2, 2, bad), 3 + 4 * 3)


def test_the_first_draws_are_taken_if_no_reward_is_finite() -> None:
    options = SamplerOptions(seed=2, non_finite="plain_noise")
    result = sampling.rbf(MODEL, Scripted(math.nan), "", budget=STEPS, starts=1, steps=STEPS, options=options)
    base = sampling.base(MODEL, left_half, "", steps=STEPS, options=options)
    assert_same_bits(result.latents, base.latents)
    assert not result.rewards.isfinite().any()
