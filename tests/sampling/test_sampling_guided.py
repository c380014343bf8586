"""Guidance at a part of the steps: which ones, what the others do, and what both cost."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from bits import assert_same_bits
from gaussian_flows import LatentFlow, Spy, brightness, left_half, shifted, uniform
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.sampling import GuidedSteps, Result, SamplerOptions, Schedule
from noisetilt_kernels.sampling.methods import Method, parse_method
from noisetilt_kernels.sampling.noise import ParticleNoise
from noisetilt_kernels.sampling.steps import advance, plan_steps, renoise

GUIDED: dict[str, tuple[Callable[..., Result], dict[str, Any]]] = {
    "ntrk": (sampling.ntrk, {"rho": 0.3}),
    "dps": (sampling.dps, {"strength": 300.0}),
    "freedom": (sampling.freedom, {"strength": 300.0, "scaling": "none", "travel": 2}),
    "das": (sampling.das, {"alpha": 1e-3, "copies": 3}),
    "psi": (sampling.psi, {"alpha": 1e-3, "copies": 4, "chains": 2, "burn_in": 1, "kept": 2}),
}
"""Every sampler with guided steps, with arguments that make it guide."""

STEPS = 6
HALF = GuidedSteps(every=2)


def run_guided(name: str, guide: GuidedSteps, model: Any = None, **more: Any) -> Result:
    """Run the named sampler for six steps from t = 1, 5/6, ..., 1/6."""
    sampler, arguments = GUIDED[name]
    arguments = {"prompts": [""] * 3, "steps": STEPS, **arguments, **more}
    return sampler(model or LatentFlow(bend=0.1), left_half, guide=guide, **arguments)


# ---- which steps ----


def guided_times(
    guide: GuidedSteps, times: Callable[[int], Tensor] = uniform, steps: int = 10
) -> list[float]:
    """Return the times at which guided steps start, with two digits."""
    plan = plan_steps("test", LatentFlow(sigmas=times), steps, Schedule("linear"))
    return [round(step.t, 2) for step in guide.mark("test", plan) if step.guided]


def in_float32(n: int) -> Tensor:
    return torch.linspace(1, 0, n + 1)


@pytest.mark.parametrize("times", [uniform, in_float32])
def test_the_window_excludes_its_end_and_the_last_step(times: Callable[[int], Tensor]) -> None:
    assert guided_times(GuidedSteps(), times) == [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    assert guided_times(GuidedSteps(from_t=0.7, until_t=0.3), times) == [0.7, 0.6, 0.5, 0.4]
    assert guided_times(GuidedSteps(from_t=0.69, until_t=0.29), times) == [0.6, 0.5, 0.4, 0.3]
    for border in (
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
    ):  # 0.3 in float32 is above 0.3, and 0.7 is below 0.7
        early = guided_times(GuidedSteps(until_t=border), times)
        late = guided_times(GuidedSteps(from_t=border), times)
        assert early + late == guided_times(GuidedSteps(), times) and late[0] == border


def test_every_counts_from_the_first_step_in_the_window() -> None:
    assert guided_times(HALF) == [1, 0.8, 0.6, 0.4, 0.2]
    assert guided_times(GuidedSteps(every=2, from_t=0.95)) == [0.9, 0.7, 0.5, 0.3]
    assert guided_times(GuidedSteps(every=4, from_t=0.75, until_t=0.2)) == [0.7, 0.3]
    assert guided_times(GuidedSteps(every=100, from_t=0.5)) == [0.5]
    assert guided_times(HALF, steps=9) == [1, 0.78, 0.56, 0.33]


def test_times_are_those_of_the_model() -> None:
    assert guided_times(GuidedSteps(until_t=0.8), shifted) == [1, 0.96, 0.92, 0.87, 0.82]
    assert guided_times(GuidedSteps(until_t=0.8)) == [1, 0.9]


def test_a_window_without_a_step_is_an_error() -> None:
    narrow = GuidedSteps(from_t=0.55, until_t=0.51)
    with pytest.raises(
        ValueError, match=r"^ntrk: guided steps must start at .*, got none of 6 for from_t=0.55"
    ):
        run_guided("ntrk", narrow)
    with pytest.raises(ValueError, match="got none of 10"):  # the last step alone
        guided_times(GuidedSteps(from_t=0.1))
    assert guided_times(GuidedSteps(from_t=0.1), steps=20) == [0.1]
    run_guided("ntrk", narrow, steps=1)  # there is nothing to guide


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"every": 1.5}, "every must be an integer, got 1.5"),
        ({"from_t": 1.1}, r"from_t must be in \[0, 1\], got 1.1"),
        ({"until_t": -0.1}, r"until_t must be in \[0, 1\], got -0.1"),
        ({"from_t": 0.3, "until_t": 0.6}, "until_t must be below from_t, .* got from_t=0.3 and until_t=0.6"),
        ({"from_t": 0.5, "until_t": 0.5}, "until_t must be below from_t"),
        ({"from_t": 0}, "until_t must be below from_t"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^GuidedSteps: {message}"):
        GuidedSteps(**arguments)


@pytest.mark.parametrize("name", GUIDED)
def test_guide_must_be_guided_steps(name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}: guide must be a GuidedSteps, got 2$"):
        run_guided(name, 2)  # type: ignore[arg-type]


def test_weights_of_tilted_starts_need_the_first_step() -> None:
    late, early = GuidedSteps(from_t=0.9), GuidedSteps(until_t=0.4)
    with pytest.raises(ValueError, match=r"^psi: guide must have from_t=1 if .*, got from_t=0.9$"):
        run_guided("psi", late)
    for start in ("pcnl", sampling.PCNL(2, alpha=0.1)):
        with pytest.raises(ValueError, match=r"^das: guide must have from_t=1 if .*, got from_t=0.9$"):
            run_guided("das", late, start=start)
    run_guided("das", early, start=sampling.PCNL(2, alpha=0.1))
    run_guided("psi", early)
    run_guided("das", late)


# ---- what the steps do ----


@pytest.mark.parametrize("name", GUIDED)
def test_all_steps_are_the_default(name: str) -> None:
    sampler, arguments = GUIDED[name]
    default = sampler(LatentFlow(bend=0.1), left_half, [""] * 3, steps=STEPS, **arguments)
    explicit = run_guided(name, GuidedSteps(1, 1.0, 0.0))
    assert_same_bits(explicit.latents, default.latents)
    assert not torch.equal(run_guided(name, HALF).latents, default.latents)


def path(result_of: Callable[[Spy], Result]) -> list[tuple[float, Tensor]]:
    """Return the times and the inputs of all forwards of a run, and its result at time 0."""
    spy = Spy(LatentFlow(bend=0.1))
    latents = result_of(spy).latents
    return [*((t, x) for x, t, *_ in spy.calls), (0.0, latents)]


@pytest.mark.parametrize("name", ["ntrk", "dps"])
@pytest.mark.parametrize("start", ["noise", sampling.PCNL(2, alpha=0.1)])
def test_steps_before_the_window_are_those_of_base(name: str, start: Any) -> None:
    options = SamplerOptions(seed=3, micro_batch=3)
    prompts = [""] * 3
    plain = path(
        lambda spy: sampling.base(spy, left_half, prompts, steps=STEPS, start=start, options=options)
    )
    late = path(
        lambda spy: run_guided(name, GuidedSteps(from_t=0.5, until_t=0.2), spy, start=start, options=options)
    )
    assert [t for t, _ in late] == [t for t, _ in plain]
    for (t, x), (_, of_base) in zip(late, plain, strict=True):
        assert torch.equal(x, of_base) == (t >= 0.5 - 1e-9), t


@pytest.mark.parametrize("name", ["ntrk", "dps"])
@pytest.mark.parametrize("schedule", ["linear", "vp"])
def test_unguided_steps_move_by_the_particles_plain_noise(name: str, schedule: str) -> None:
    guide, model = HALF, LatentFlow(bend=0.1)
    visited = path(
        lambda spy: run_guided(
            name, guide, spy, prompts="", schedule=schedule, options=SamplerOptions(seed=3)
        )
    )
    plan = guide.mark("test", plan_steps("test", model, STEPS, Schedule(schedule)))
    stream = ParticleNoise(3, 0, model.shape)
    assert_same_bits(visited[0][1], plan[0].start * stream.draw())
    for step, (_, x), (_, after) in zip(plan[:-1], visited, visited[1:], strict=False):
        plain = advance(x, model.velocity(x, step.t, []), step, stream.draw())
        assert torch.equal(after, plain) == (not step.guided)
    assert [step.guided for step in plan] == [True, False, True, False, True, False]


def test_unguided_passes_of_freedom_travel() -> None:
    """The step from 5/6 is not guided and has two passes."""
    model = LatentFlow(bend=0.1)
    visited = path(lambda spy: run_guided("freedom", HALF, spy, prompts="", options=SamplerOptions(seed=3)))
    assert [round(6 * t) for t, _ in visited] == [6, 5, 5, 4, 4, 3, 2, 1, 0]
    step = plan_steps("test", model, STEPS, Schedule("linear"))[1]
    stream = ParticleNoise(3, 0, model.shape)
    stream.draw(2)  # the start, and the noise of the first step
    for (_, x), (_, after), travels in zip(visited[1:3], visited[2:4], (True, False), strict=True):
        wanted = advance(x, model.velocity(x, step.t, []), step, stream.draw())
        if travels:
            wanted = renoise(wanted, step.t - step.delta, step.t, stream.draw())
        assert_same_bits(after, wanted)


def test_rho_0_at_a_part_of_the_steps_is_base_and_measures_its_noise() -> None:
    plain = sampling.base(LatentFlow(), left_half, [""] * 3, steps=STEPS)
    full = run_guided("ntrk", GuidedSteps(), LatentFlow(), rho=0.0)
    half = run_guided("ntrk", HALF, LatentFlow(), rho=0.0)
    assert_same_bits(half.latents, plain.latents)
    assert half.records[-1].noise_peak == full.records[-1].noise_peak is not None


def test_more_guided_steps_raise_the_reward() -> None:
    """With half of the steps the reward lies between that of `base` and that of full guidance."""
    rewards = [
        float(sampling.ntrk(LatentFlow(), left_half, [""] * 8, steps=20, guide=guide).rewards.mean())
        for guide in (GuidedSteps(every=1000), HALF, GuidedSteps())
    ]
    assert rewards[0] + 0.01 < rewards[1] < rewards[2] - 0.01


@pytest.mark.parametrize("name", GUIDED)
def test_results_depend_neither_on_micro_batches_nor_on_other_particles(name: str) -> None:
    prompts = ["", "", "", "", ""]
    wanted = run_guided(name, HALF, prompts=prompts, options=SamplerOptions(seed=2, micro_batch=1))
    for micro_batch in (2, 64):
        options = SamplerOptions(seed=2, micro_batch=micro_batch)
        assert_same_bits(run_guided(name, HALF, prompts=prompts, options=options).latents, wanted.latents)
    options = SamplerOptions(seed=2, first_particle=3)
    assert_same_bits(run_guided(name, HALF, prompts=prompts[3:], options=options).latents, wanted.latents[3:])


# ---- what they cost ----


@pytest.mark.parametrize("micro_batch", [1, 2, 16])
@pytest.mark.parametrize("name", GUIDED)
def test_unguided_steps_have_no_graph_no_backward_and_no_reward(
    name: str, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HALF guides the steps from t = 1, 2/3 and 1/3; those of FreeDoM from 5/6 and 2/3 have two passes."""
    spy, pulled, judged = Spy(LatentFlow(bend=0.1)), [0], [0, 0]
    backward = torch.autograd.grad

    def counted(outputs: Tensor, inputs: Tensor, *cotangent: Tensor) -> Any:
        pulled[0] += len(inputs) if cotangent else 0  # backwards through the model
        return backward(outputs, inputs, *cotangent)

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        judged[torch.is_grad_enabled()] += len(images)
        return brightness(images, prompts)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    sampler, arguments = GUIDED[name]
    options = SamplerOptions(micro_batch=micro_batch)
    result = sampler(spy, reward, [""] * 3, steps=STEPS, guide=HALF, options=options, **arguments)
    copies, chains = arguments.get("copies", 1), 2 * 4 if name == "psi" else 0
    method = Method(name, {**arguments, "steps": STEPS, "guide_every": 2})
    assert result.nfe == spy.entries == 3 * method.nfe
    assert method.nfe == Method(name, {**arguments, "steps": STEPS}).nfe
    with_graph = [(t, len(x)) for x, t, _, on in spy.calls if on]
    in_chains = [one for one in with_graph if chains and one[0] == 1]
    along = [one for one in with_graph if one not in in_chains]
    assert {round(t, 2) for t, _ in along} == ({0.67, 0.33} if chains else {1, 0.67, 0.33})
    assert sum(count for _, count in in_chains) == 3 * chains
    guided = 3 * chains + 3 * copies * {"psi": 2, "freedom": 4}.get(name, 3)
    assert sum(count for _, count in with_graph) == guided == pulled[0] == judged[True]
    assert judged[False] in (3 * copies, 3 * copies + 3)  # finished images, of copies and of the answers


def test_a_chain_before_an_unguided_step_knows_its_velocity() -> None:
    method = parse_method("ntrk:steps=6,guide_from=0.9,start=pcnl,start_iterations=2")
    spy = Spy(LatentFlow())
    assert method.sample(spy, left_half, ["", ""]).nfe == 2 * method.nfe == spy.entries == 2 * (6 + 2)


@pytest.mark.parametrize("name", GUIDED)
def test_records_of_unguided_steps_have_no_reward(name: str) -> None:
    result = run_guided(name, HALF)
    records = [record for record in result.records if record.particle == 0]
    along = [record for record in records if record.acceptance is None]
    assert [record.step for record in records] == list(range(len(records)))
    twice = (5, 4) if name == "freedom" else ()
    passes = [sixth / 6 for sixth in range(6, 0, -1) for _ in range(2 if sixth in twice else 1)]
    assert [record.t for record in along] == pytest.approx(passes)
    for record in along[:-1]:
        guided = round(6 * record.t) in (6, 4, 2)
        for value in (record.reward, record.gradient_norm):
            assert (value is not None) == guided
        assert (record.cosine is not None) == (guided and name == "ntrk")
        assert (record.ess is not None) == (guided and name in ("das", "psi"))
        assert record.fallback is None
        if name != "psi" or record.t < 1:  # its first step is known from the chains
            assert record.seconds_model > 0 and (record.seconds_reward > 0) == guided
    assert along[-1].reward is not None and along[-1].noise_peak is not None


# ---- methods ----


def test_arguments_of_a_method_reach_the_sampler() -> None:
    method = parse_method("ntrk:rho=0.3,steps=6,guide_every=2,guide_from=0.9,guide_until=0.4")
    wanted = run_guided("ntrk", GuidedSteps(2, 0.9, 0.4), prompts=[""])
    assert_same_bits(method.sample(LatentFlow(bend=0.1), left_half, [""]).latents, wanted.latents)
    method.check()


def test_a_resolved_method_leaves_out_defaults() -> None:
    plain = Method("ntrk").resolved()
    assert not any(name.startswith("guide") for name in plain.arguments)
    assert parse_method("ntrk:guide_every=1,guide_from=1,guide_until=0").resolved() == plain
    some = parse_method("ntrk:guide_until=0.4").resolved()
    assert some.arguments == {**plain.arguments, "guide_until": 0.4} and some != plain
    assert parse_method(str(some)) == some


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ntrk:guide_every=0", "GuidedSteps: every must be at least 1"),
        ("ntrk:guide_from=0.2,guide_until=0.3", "GuidedSteps: until_t must be below from_t"),
        ("psi:alpha=1,guide_from=0.5", "psi: guide must have from_t=1"),
        ("das:alpha=1,guide_from=0.5,start=pcnl", "das: guide must have from_t=1"),
        ("svdd:guide_every=2", "svdd has no argument 'guide_every'"),
        ("rbf:guide_every=2", "rbf has no argument 'guide_every'"),
        ("fk:alpha=1,guide_every=2", r"fk has no argument 'guide_every'"),
        ("base:guide_from=0.5", "base has no argument 'guide_from'"),
    ],
)
def test_bad_methods(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_method(text).check()
