"""Samplers advanced step by step: states, changes, cancelled and continued runs, own noise and operators."""

import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest
import torch
from bits import assert_same_bits
from gaussian_flows import LatentFlow, LatentGenerator, Spy, brightness, left_half
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.sampling import (
    PCNL,
    SAMPLERS,
    FromImage,
    GuidedSteps,
    NonFiniteError,
    Result,
    SamplerOptions,
    SamplingRun,
    Schedule,
    stepwise,
)
from noisetilt_kernels.sampling.noise import ParticleNoise
from noisetilt_kernels.sampling.steps import advance, denoised

FLOW, GENERATOR = LatentFlow(bend=0.2), LatentGenerator()
CHAIN = PCNL(2, alpha=2e-3, epsilon=0.4, clip=0.3)

SHORT: dict[str, dict[str, Any]] = {
    "base": {"steps": 3, "start": CHAIN},
    "ntrk": {"steps": 4, "guide": GuidedSteps(every=2), "start": CHAIN},
    "dps": {"steps": 3, "strength": 300.0},
    "freedom": {"steps": 4, "strength": 0.3, "travel": 2},
    "svdd": {"steps": 3, "candidates": 2, "start": CHAIN},
    "rbf": {"steps": 3, "budget": 12, "starts": 2, "start": CHAIN},
    "das": {"steps": 3, "alpha": 1e-3, "copies": 2, "threshold": 0.9},
    "fk": {"steps": 4, "alpha": 1e-3, "copies": 2, "every": 2, "threshold": 0.9},
    "psi": {"steps": 3, "alpha": 1e-3, "copies": 4, "chains": 2, "burn_in": 1, "kept": 4, "threshold": 0.9},
    "dno": {"steps": 2, "iterations": 3, "weight": 0.5, "shuffles": 2},
    "wgnc": {"iterations": 3, "lr": 0.1, "answer": "best"},
    "reno": {"iterations": 3},
    "prno": {"iterations": 3, "shuffles": 2},
    "mpgr": {"iterations": 3},
}
"""Arguments of a short run of every sampler."""


def begin(name: str, options: SamplerOptions | None = None, **changes: Any) -> SamplingRun:
    """Begin a run of three particles in two micro-batches, or more for a sampler with copies."""
    model = FLOW if SAMPLERS[name].kind == "flow" else GENERATOR
    options = options or SamplerOptions(seed=5, micro_batch=2)
    return stepwise(name, model, left_half, ["a", "b", "c"], options=options, **{**SHORT[name], **changes})


def facts(result: Result) -> list[Any]:
    """Return everything of a result but seconds, for comparison."""
    records = [
        {name: value for name, value in asdict(record).items() if not name.startswith("seconds")}
        for record in result.records
    ]
    tensors = (result.latents, result.rewards, result.weights, result.log_z)
    lists = [None if tensor is None else tensor.tolist() for tensor in tensors]
    return [result.method, result.prompts, result.nfe, result.chosen, records, *lists]


def test_every_sampler_has_a_short_run() -> None:
    assert set(SHORT) == set(SAMPLERS)


@pytest.mark.parametrize("name", SHORT)
def test_a_run_can_continue_after_every_step(name: str) -> None:
    """A new run continues from a state on disk, and gives the same result, bit for bit."""
    whole = facts(begin(name).result())
    run = begin(name)
    assert run.steps_done == 0
    for done in range(1, run.steps + 1):
        next(run)
        file = io.BytesIO()
        torch.save(run.state_dict(), file)
        file.seek(0)
        run = begin(name)  # another one
        run.load_state_dict(torch.load(file))  # plain: weights_only is the default
        assert run.steps_done == done
    assert facts(run.result()) == whole
    with pytest.raises(StopIteration):
        next(run)


@pytest.mark.parametrize("name", SHORT)
def test_outputs_of_the_steps(name: str) -> None:
    run = begin(name)
    outputs = list(run)
    result = run.result()
    assert len(outputs) == run.steps == run.steps_done
    assert [record for output in outputs for record in output.records] == list(result.records)
    for output in outputs:
        assert output.count == outputs[0].count and output.last == (output.index == output.count - 1)
        assert [record.particle for record in output.records] == list(output.particles)
        assert {record.step for record in output.records} == {output.index}
        assert output.prompts == tuple("abc"[particle] for particle in output.particles)
        images = output.preview()
        assert images.shape[1] == 3 and len(images) % len(output.particles) == 0
        assert images.dtype == torch.float32 and not images.requires_grad
        assert (output.denoised is None) == (SAMPLERS[name].kind == "one-step")
        assert [one.particle for one in output.finished] == (list(output.particles) if output.last else [])
        if output.last:
            assert_same_bits(output.latents, result.latents[list(output.particles)])
            for image, particle in zip(images, output.finished, strict=True):
                assert_same_bits(image, particle.image)


@pytest.mark.parametrize("name", ["base", "ntrk", "dps", "das"])
def test_estimates_are_those_of_the_step(name: str) -> None:
    """The denoised estimate is x - t v of the latents before the step; the preview is its image."""
    options = SamplerOptions(seed=3, micro_batch=8)
    run = begin(name, options, start="noise", steps=4, **({"guide": GuidedSteps()} if name != "base" else {}))
    first = next(run)
    second = next(run)
    t = second.records[0].t
    x = first.latents
    velocity = FLOW.velocity(x, t, ["a"] * len(x))
    if name != "das":  # its copies are resampled within the step
        torch.testing.assert_close(second.denoised, denoised(x, velocity, t))
    torch.testing.assert_close(second.preview(), FLOW.decode(second.denoised).float())
    rewards = left_half(second.preview(), [""] * len(x))
    if name in ("ntrk", "dps"):
        recorded = torch.tensor([record.reward for record in second.records])
        torch.testing.assert_close(rewards, recorded)


def test_two_runs_at_once_do_not_disturb_each_other() -> None:
    runs = [begin(name) for name in ("ntrk", "das", "ntrk")]
    alone = [facts(begin(name).result()) for name in ("ntrk", "das", "ntrk")]
    while any(run.steps_done < run.steps for run in runs):
        for run in runs:
            next(run, None)
            assert torch.is_grad_enabled()  # the mode of the caller comes back after each step
    assert [facts(run.result()) for run in runs] == alone


def test_a_change_applies_from_the_next_step_on() -> None:
    """rho = 0 after two steps is the rest of a run of `base`."""
    run = begin("ntrk", SamplerOptions(seed=1, micro_batch=8), start="noise", guide=GuidedSteps(), rho=0.4)
    next(run)
    middle = next(run)
    run.change(rho=0.0)
    assert run.arguments["rho"] == 0.0
    result = run.result()
    x, streams = middle.latents, [ParticleNoise(1, particle, FLOW.shape) for particle in range(3)]
    for stream in streams:
        stream.draw(3)
    plan = sampling.parse_method("ntrk:steps=4").plan(FLOW)
    for step in plan[2:]:
        velocity = FLOW.velocity(x, step.t, ["a"] * 3)
        if step is plan[-1]:
            x = denoised(x, velocity, step.t)
        else:
            x = advance(x, velocity, step, torch.cat([stream.draw() for stream in streams]))
    torch.testing.assert_close(result.latents, x)


def test_a_run_goes_on_from_other_latents() -> None:
    """A run whose latents are replaced by those of another run goes on like it."""
    run, other = (begin("ntrk", SamplerOptions(seed=2, noise=noise, micro_batch=8)) for noise in (None, _own))
    for _ in range(4):
        next(run), next(other)
    target = next(other).latents
    next(run)
    run.replace_latents(target)
    assert torch.equal(next(run).latents, next(other).latents)  # the last step draws no noise
    with pytest.raises(RuntimeError, match="ntrk: latents can be replaced only between two steps"):
        run.replace_latents(target)
    with pytest.raises(RuntimeError, match="only between two steps"):
        begin("ntrk").replace_latents(target)
    run = begin("ntrk")
    next(run)
    with pytest.raises(ValueError, match=r"ntrk: latents must be \(2, .*, got \(3, "):
        run.replace_latents(target)


def test_other_latents_are_not_those_whose_gradient_is_known() -> None:
    run, other = begin("ntrk", start=PCNL(1)), begin("ntrk", start=PCNL(1))
    before = next(run).latents
    next(other)
    run.replace_latents(2 * before)
    assert next(run).records[0].reward != next(other).records[0].reward


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("steps", [1, 2])
def test_latents_of_every_sampler_can_be_replaced(name: str, steps: int) -> None:
    """The next step begins there, and no velocity of the old ones is used. Chains of starts included."""
    run, same, other = (begin(name) for _ in range(3))
    for one in (run, same, other):
        for _ in range(steps + 3 * (steps == 2 and name == "rbf")):
            step = next(one)
    before = step.latents.clone()
    same.replace_latents(before)
    with torch.inference_mode():
        other.replace_latents(before + 1)
    following = [next(one).latents for one in (run, same, other)]
    torch.testing.assert_close(following[1], following[0])
    assert not torch.allclose(following[2], following[0])


@pytest.mark.parametrize("name", ["svdd", "rbf"])
def test_the_velocity_of_replaced_latents_is_computed_anew(name: str) -> None:
    """A search keeps the velocity of its best draw, which is not that of other latents."""
    spy = Spy(FLOW)
    arguments = {**SHORT[name], "start": "noise"}
    run = stepwise(name, spy, left_half, "", **arguments)
    latents = next(run).latents + 1
    run.replace_latents(latents)
    before = len(spy.calls)
    next(run)
    assert_same_bits(spy.calls[before][0], latents)


def _own(particle: int, draw: int) -> Tensor:
    return torch.randn(FLOW.shape, generator=torch.Generator().manual_seed(100 * particle + draw))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ntrk", {"steps": 9}, "ntrk: steps cannot change between steps"),
        ("ntrk", {"rho": 2.0}, "ntrk: rho must be"),
        ("ntrk", {"rhoo": 0.2}, "ntrk: unknown rhoo; its arguments are rho, operator"),
        ("das", {"copies": 3}, "das: copies cannot change"),
        ("psi", {"chains": 1, "kept": 9}, "psi: chains, kept cannot change"),
        ("rbf", {"budget": 99}, "rbf: budget cannot change"),
        ("freedom", {"travel": 1}, "freedom: travel cannot change"),
        ("wgnc", {"iterations": 9, "answer": "last"}, "wgnc: answer, iterations cannot change"),
        ("fk", {"potential": "sum"}, "fk: potential cannot change"),
        ("fk", {"start": "pcnl"}, "fk: unknown start"),
    ],
)
def test_refused_changes_change_nothing(name: str, change: dict[str, Any], message: str) -> None:
    run = begin(name)
    next(run)
    with pytest.raises((ValueError, TypeError), match=message):
        run.change(**change)
    assert facts(run.result()) == facts(begin(name).result())


def test_an_optimiser_takes_a_changed_learning_rate() -> None:
    still = begin("wgnc", SamplerOptions(micro_batch=8), project="neither", answer="last")
    moved = next(still).latents
    still.change(lr=0.0)
    assert_same_bits(next(still).latents, moved)


def test_a_cancelled_run_has_its_finished_particles() -> None:
    finished = []
    for step in (run := begin("base", SamplerOptions(seed=5))):
        finished += step.finished
        if finished:
            break
    assert len(finished) == 1 and run.steps_done == run.steps // 3
    assert_same_bits(finished[0].latent, begin("base").result().latents[0])


class Failing:
    """Reward left_half that raises an error at one of its calls."""

    def __init__(self, call: int) -> None:
        self.calls, self.at = 0, call

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise OSError("no connection")
        return left_half(images, prompts)


def test_after_an_error_a_run_goes_on_from_a_state() -> None:
    options = SamplerOptions(seed=5, micro_batch=2)
    run = stepwise("ntrk", FLOW, Failing(3), "abc", steps=4, options=options)
    next(run)
    next(run)
    state = run.state_dict()
    with pytest.raises(OSError, match="no connection"):
        next(run)
    for use in (lambda: next(run), run.state_dict, run.result):
        with pytest.raises(RuntimeError, match="ntrk: a step of this run has failed"):
            use()
    run.load_state_dict(state)
    expected = sampling.ntrk(FLOW, left_half, "abc", steps=4, options=options)
    assert facts(run.result()) == facts(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": ["a", "b"]}, r"with the same prompts, \['a', 'b'\], got \['a'\]"),
        ({"steps": 5}, "with the same arguments, {'steps': 5}, got {'steps': 4}"),
        ({"options": SamplerOptions(seed=1)}, "with the same seed, 1, got 0"),
        ({"options": SamplerOptions(micro_batch=2)}, "with the same micro_batch, 2, got 1"),
        ({"sampler": "base"}, "with the same sampler, 'base', got 'ntrk'"),
        ({"model": LatentFlow(shape=(4, 8, 8))}, r"with the same shape, \[4, 8, 8\]"),
        ({"schedule": "constant"}, "with the same plan"),
        ({"schedule": Schedule("linear", 1.0)}, "with the same plan"),
        ({"start": PCNL(2)}, "with the same records, 6, got 4"),
        ({"start": FromImage(torch.zeros(1, *FLOW.shape), 0.5)}, "with the same records, 2, got 4"),
        ({"start": FromImage(torch.zeros(1, *FLOW.shape), 1.0)}, "with the same start"),
    ],
)
def test_states_of_other_runs_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        **{"sampler": "ntrk", "model": FLOW, "reward": brightness, "prompts": ["a"], "steps": 4},
        **change,
    }
    run = stepwise("ntrk", FLOW, brightness, ["a"], steps=4)
    next(run)
    other = stepwise(**arguments)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(run.state_dict())
    assert other.steps_done == 0


def test_other_forms_of_the_same_arguments_agree() -> None:
    run = stepwise("ntrk", FLOW, left_half, "a", steps=4, start=CHAIN, schedule="linear")
    next(run)
    same = {"start": PCNL(2, alpha=2e-3, epsilon=0.4, clip=0.3), "schedule": Schedule("linear")}
    other = stepwise("ntrk", FLOW, left_half, "a", steps=4, **same)
    other.load_state_dict(run.state_dict())
    assert facts(other.result()) == facts(run.result())
    chain = stepwise("ntrk", FLOW, left_half, "a", steps=4, start=PCNL(2, alpha=1.0))
    with pytest.raises(ValueError, match="with the same start, 'PCNL"):
        chain.load_state_dict(run.state_dict())


def test_incomplete_states_are_refused() -> None:
    run = begin("ntrk")
    next(run)
    state = run.state_dict()
    del state["noise"], state["nfe"]
    with pytest.raises(ValueError, match="ntrk: not a state of a run; it has no nfe, noise"):
        run.load_state_dict(state)


@pytest.mark.parametrize("name", SHORT)
def test_runs_in_inference_mode(name: str) -> None:
    """Programs that load models in inference mode, as ComfyUI does, begin, save and continue there."""
    whole = facts(begin(name).result())
    with torch.inference_mode():
        run = begin(name)
        next(run)
        other = begin(name)
        other.load_state_dict(run.state_dict())
        result = other.result()
    assert facts(result) == whole and not result.latents.is_inference()


CHANGES: dict[str, dict[str, Any]] = {
    "ntrk": {"rho": 0.1, "operator": "norm", "guide": GuidedSteps()},
    "dps": {"strength": 1.0, "guide": GuidedSteps(every=2)},
    "freedom": {"strength": 1.0, "scaling": "none", "guide": GuidedSteps(every=2)},
    "das": {"alpha": 1.0, "tempering": 0.0, "threshold": 0.1, "resampling": "ssp"},
    "fk": {"alpha": 1.0, "every": 1, "threshold": 0.1, "resampling": "ssp"},
    "psi": {"alpha": 1.0, "clip": 1.0, "chain_alpha": 1.0, "chain_epsilon": 0.1, "threshold": 0.1},
    "wgnc": {"lr": 0.01, "clip": 1.0, "operator": "w", "project": "latent"},
    "dno": {"lr": 0.1, "clip": 2.0, "weight": 0.1, "shuffles": 1},
}
"""Changes that every sampler takes between steps."""


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in CHANGES for key in CHANGES[name]])
def test_every_free_argument_can_change_between_steps(name: str, key: str) -> None:
    run = begin(name)
    for _ in range(2):
        next(run)
    run.change(**{key: CHANGES[name][key]})
    result = run.result()
    assert result.rewards.isfinite().all() and result.nfe == begin(name).result().nfe
    if result.weights is not None:
        assert torch.allclose(result.weights.sum(dim=1), torch.ones(3).double())


def test_a_changed_alpha_of_psi_weighs_the_chains_by_the_new_one() -> None:
    """The weights of the first step divide out the law that the chains have at their end."""
    run = begin("psi", chain_alpha=None, alpha=0.5)
    run.change(alpha=1e-3)
    same = begin("psi", chain_alpha=None, alpha=1e-3)
    assert facts(run.result()) == facts(same.result())


def test_a_run_says_that_a_step_is_being_made() -> None:
    errors = []

    def on_record(record: Any) -> None:
        for use in (lambda: next(run), run.state_dict, run.result):
            with pytest.raises(RuntimeError, match="base: a step of this run is being made") as caught:
                use()
            errors.append(caught)

    run = begin("base", SamplerOptions(on_record=on_record))
    next(run)
    assert len(errors) == 3
    next(run)


def test_previews_are_decoded_in_micro_batches() -> None:
    class Counting(LatentFlow):
        largest = 0

        def decode(self, x0: Tensor) -> Tensor:
            self.largest = max(self.largest, len(x0))
            return super().decode(x0)

    model = Counting(bend=0.2)
    options = SamplerOptions(micro_batch=2)
    step = next(stepwise("das", model, left_half, "", alpha=1.0, copies=6, steps=3, options=options))
    assert len(step.preview()) == 6 and model.largest == 2


def test_operators_may_work_in_place() -> None:
    """The record has the cosine with the gradient itself."""
    result = sampling.ntrk(FLOW, left_half, "", operator=lambda x: x.mul_(-1.0), steps=3)
    cosines = [record.cosine for record in result.records[:-1]]
    assert cosines == pytest.approx([-1.0] * len(cosines))


def test_own_noise_of_a_trajectory_of_one_step() -> None:
    options = SamplerOptions(noise=lambda particle, number: torch.ones(FLOW.shape))
    result = sampling.dno(FLOW, left_half, "", steps=1, iterations=1, options=options)
    assert result.latents.isfinite().all()


def test_best_of_n_takes_a_row_for_each_prompt() -> None:
    rows = torch.stack([torch.full(FLOW.shape, value) for value in (0.0, 1.0)])
    spy = Spy(FLOW)
    arguments: dict[str, Any] = {"n": 2, "steps": 2, "options": SamplerOptions(latents=rows, micro_batch=4)}
    sampling.best_of_n(sampling.base, spy, brightness, ["", ""], **arguments)
    assert_same_bits(spy.calls[0][0], rows.repeat_interleave(2, dim=0))
    start = FromImage(rows, 0.5)
    result = sampling.best_of_n(sampling.base, FLOW, brightness, ["", ""], n=2, steps=2, start=start)
    assert len(result.latents) == 4


def test_arguments_of_stepwise_are_checked() -> None:
    with pytest.raises(ValueError, match=r"stepwise: unknown sampler 'ntrkk' \(did you mean 'ntrk'"):
        stepwise("ntrkk", FLOW, brightness, "")
    with pytest.raises(TypeError, match="stepwise: sampler must be a sampler such as ntrk"):
        stepwise(print, FLOW, brightness, "")
    with pytest.raises(TypeError, match="ntrk: unknown rh; its arguments are rho, operator, steps"):
        stepwise("ntrk", FLOW, brightness, "", rh=0.1)
    with pytest.raises(TypeError, match="das: missing alpha"):
        stepwise("das", FLOW, brightness, "")
    with pytest.raises(ValueError, match="ntrk: rho must be"):
        stepwise("ntrk", FLOW, brightness, "", rho=-1.0)
    with pytest.raises(TypeError, match="wgnc: model must be a OneStepModel"):
        stepwise("wgnc", FLOW, brightness, "")


# ---- own noise, own latents, own operator ----


@pytest.mark.parametrize("name", SHORT)
def test_own_noise_equal_to_the_seeds_changes_nothing(name: str) -> None:
    model = FLOW if SAMPLERS[name].kind == "flow" else GENERATOR

    def noise(particle: int, number: int) -> Tensor:
        return ParticleNoise(5, particle, model.shape).draw(number + 1)[number]

    own = begin(name, SamplerOptions(seed=5, micro_batch=2, noise=noise)).result()
    assert facts(own) == facts(begin(name).result())


@pytest.mark.parametrize("name", ["base", "ntrk", "wgnc", "dno", "freedom"])
def test_own_latents_equal_to_the_seeds_change_nothing(name: str) -> None:
    model = FLOW if SAMPLERS[name].kind == "flow" else GENERATOR
    first = torch.cat([ParticleNoise(5, particle, model.shape).draw() for particle in (2, 3, 4)])
    plain = SamplerOptions(seed=5, micro_batch=2, first_particle=2)
    given = SamplerOptions(seed=5, micro_batch=2, first_particle=2, latents=first)
    assert facts(begin(name, given).result()) == facts(begin(name, plain).result())


def test_a_run_with_own_noise_and_latents_can_continue() -> None:
    def noise(particle: int, number: int) -> Tensor:
        return torch.full(FLOW.shape, 0.1 * number - particle)

    options = SamplerOptions(noise=noise, latents=torch.ones(1, *FLOW.shape), micro_batch=2)
    whole, run = begin("svdd", options).result(), begin("svdd", options)
    next(run)
    other = begin("svdd", options)
    other.load_state_dict(run.state_dict())
    assert facts(other.result()) == facts(whole)


def test_a_run_begins_at_own_latents() -> None:
    """All copies begin there, and one row serves all particles."""
    latents = torch.full((1, *FLOW.shape), 0.25)
    spy = Spy(FLOW)
    options = SamplerOptions(micro_batch=8, latents=latents)
    next(stepwise("das", spy, brightness, ["", ""], alpha=1.0, copies=2, steps=3, options=options))
    assert_same_bits(spy.calls[0][0], latents.expand(4, *FLOW.shape))


def test_wrong_noise_and_latents_are_refused() -> None:
    with pytest.raises(ValueError, match=r"SamplerOptions: latents must be \(2, 4, 16, 16\), one for each"):
        stepwise(
            "base", FLOW, brightness, ["", ""], options=SamplerOptions(latents=torch.zeros(3, 4, 16, 16))
        )
    with pytest.raises(ValueError, match="SamplerOptions: latents must be finite"):
        SamplerOptions(latents=torch.full((1, 4, 16, 16), math.inf))
    with pytest.raises(TypeError, match="SamplerOptions: latents must be a tensor or None, got 'x'"):
        SamplerOptions(latents="x")
    with pytest.raises(TypeError, match="SamplerOptions: noise must be callable or None, got 3"):
        SamplerOptions(noise=3)
    options = SamplerOptions(noise=lambda particle, number: torch.zeros(5))
    with pytest.raises(ValueError, match=r"noise\(particle, draw\) must return \(4, 16, 16\), got \(5,\)"):
        sampling.base(FLOW, brightness, "", options=options)


def test_own_operator() -> None:
    options = SamplerOptions(seed=2)
    own = sampling.ntrk(FLOW, left_half, "", operator=torch.ops.noisetilt.whiten, steps=4, options=options)
    named = sampling.ntrk(FLOW, left_half, "", operator="w", steps=4, options=options)
    assert_same_bits(own.latents, named.latents)
    halved = sampling.ntrk(FLOW, left_half, "", operator=lambda x: x / 2, rho=0.3, steps=4, options=options)
    whole = sampling.ntrk(FLOW, left_half, "", operator="identity", rho=0.3, steps=4, options=options)
    assert not torch.equal(halved.latents, whole.latents)
    optimised = sampling.wgnc(GENERATOR, left_half, "", operator=lambda x: x, iterations=2, options=options)
    identity = sampling.wgnc(GENERATOR, left_half, "", operator="identity", iterations=2, options=options)
    assert_same_bits(optimised.latents, identity.latents)


@pytest.mark.parametrize("name", ["ntrk", "wgnc"])
def test_wrong_operators_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name}: operator must be a name or a function of latents .*got 3"):
        begin(name, operator=3)
    with pytest.raises(ValueError, match=rf"{name}: operator must return a tensor .*16.*, got"):
        begin(name, operator=lambda x: x[0]).result()


# ---- image to image ----


def test_image_to_image_begins_at_a_noisy_image() -> None:
    image = torch.randn(2, *FLOW.shape)
    spy = Spy(FLOW)
    options = SamplerOptions(seed=4, micro_batch=2)
    result = sampling.base(spy, brightness, ["", ""], steps=10, start=FromImage(image, 0.35), options=options)
    t = spy.calls[0][1]
    assert math.isclose(t, 0.4, abs_tol=1e-6) and result.nfe == 2 * 4
    noise = torch.cat([ParticleNoise(4, particle, FLOW.shape).draw() for particle in range(2)])
    torch.testing.assert_close(spy.calls[0][0], (1 - t) * image + t * noise)
    assert [record.step for record in result.records] == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("steps", "strength", "made"),
    [(8, 0.6, 5), (28, 0.6, 17), (25, 0.2, 5), (3, 1 / 3, 1), (5, 0.01, 1), (1, 0.5, 1)],
)
def test_image_to_image_makes_as_many_steps_as_diffusers(steps: int, strength: float, made: int) -> None:
    start = FromImage(torch.zeros(1, *FLOW.shape), strength)
    left_out = int(max(steps - min(steps * strength, steps), 0))  # as FluxImg2ImgPipeline.get_timesteps
    assert steps - start.left_out(steps) == made == steps - left_out


def test_image_to_image_of_strength_1_is_a_plain_run() -> None:
    start = FromImage(torch.randn(1, *FLOW.shape), 1.0)
    for name in ("base", "ntrk", "svdd"):
        changes = {"start": start, **({"guide": GuidedSteps()} if name == "ntrk" else {})}
        result = begin(name, SamplerOptions(seed=3), **changes).result()
        plain = begin(name, SamplerOptions(seed=3), **{**changes, "start": "noise"}).result()
        torch.testing.assert_close(result.latents, plain.latents)


def test_a_weak_image_to_image_stays_at_the_image() -> None:
    image = FLOW.decode(torch.zeros(1, *FLOW.shape))  # only the size matters
    assert image.shape[0] == 1
    latents = torch.randn(1, *FLOW.shape) / 2
    strong, weak = (
        sampling.base(FLOW, brightness, "", steps=20, start=FromImage(latents, strength)).latents
        for strength in (1.0, 0.1)
    )
    assert (weak - latents).norm() < 0.2 * (strong - latents).norm()


def test_wrong_images_are_refused() -> None:
    with pytest.raises(TypeError, match=r"FromImage: latents must be a tensor, got 'cat\.png'"):
        FromImage("cat.png", 0.5)
    for strength in (1.5, 0.0):
        with pytest.raises(ValueError, match="FromImage: strength must be"):
            FromImage(torch.zeros(1, 4, 16, 16), strength)
    with pytest.raises(ValueError, match=r"FromImage: latents must be \(1, 4, 16, 16\)"):
        sampling.base(FLOW, brightness, "", start=FromImage(torch.zeros(1, 4, 8, 8), 0.5))


# ---- results ----


@pytest.mark.parametrize("name", ["ntrk", "das"])
def test_results_can_be_saved(name: str, tmp_path: Any) -> None:
    result = begin(name).result()
    result.save(tmp_path / "result.safetensors")
    assert facts(Result.load(tmp_path / "result.safetensors")) == facts(result)
    assert Result.load(tmp_path / "result.safetensors").records == result.records
    plain = result.to_dict()
    assert plain["records"][0] == asdict(result.records[0]) and plain["nfe"] == result.nfe
    torch.save(plain, tmp_path / "plain.pt")
    assert_same_bits(torch.load(tmp_path / "plain.pt")["latents"], result.latents)


def test_other_files_are_no_results(tmp_path: Any) -> None:
    (tmp_path / "text").write_text("no result")
    with pytest.raises(ValueError, match=r"text is not a result saved by Result.save"):
        Result.load(tmp_path / "text")


def test_a_non_finite_reward_stops_a_run() -> None:
    def bad(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return left_half(images, prompts) * math.nan

    with pytest.raises(NonFiniteError):
        next(stepwise("ntrk", FLOW, bad, "", steps=3))
