"""Plan of a run: sizes, number of function evaluations and memory, before any work."""

import math
from collections.abc import Collection, Sequence
from math import fsum
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..config import DEFAULT_ALPHA, resolve_preset, sample_of
from ..config import describe as describe_whitening
from ..models.memory import flow_without_weights, plan_memory
from ..sampling import Reward, SamplerOptions
from ..sampling.flow import ALL_STEPS
from ..sampling.methods import Method
from ..sampling.operators import TILED
from ..sampling.records import StepRecord
from ..sampling.registry import DETAILS
from . import loading
from .settings import ComputeOptions, Settings
from .units import format_bytes, format_seconds


class Plan(NamedTuple):
    """Plan of a run."""

    text: str
    """Shapes, numbers of images and of function evaluations, tiles of W, memory."""
    memory: int
    """Memory in bytes, as far as it is counted."""


def describe(settings: Settings, compute: ComputeOptions, out: Path, runs: Collection[Settings] = ()) -> Plan:
    """Return the plan of a run or of a comparison.

    Args:
        settings: settings of the run, or those that all runs of a comparison share.
        compute: how to compute it.
        out: its folder.
        runs: runs of a comparison, in place of one run with `settings`.

    Raises:
        ModelError: the model does not exist.
        ValueError: the model has no images of that size, or the operator does not take its latents.
    """
    runs = runs or [settings]
    rewards = loading.CountedRewards(settings, compute)
    # a micro-batch is never larger than the run
    entries = (
        run.method.entries * min(run.count, run.method.particles_at_once(compute.micro_batch)) for run in runs
    )
    micro_batch = min(compute.micro_batch, max(entries))
    memory = plan_memory(
        settings.model,
        dtype=getattr(torch, settings.dtype),
        micro_batch=micro_batch,
        offload=compute.offload,
        gradient=any(run.method.needs_gradient for run in runs),
        one_step=next(iter(runs)).one_step,
        quantize=settings.quantize,
        load_reward=rewards,
        reward_decoder=settings.reward_decoder,
        denoiser=settings.denoiser,
        **settings.model_options,
    )
    for run in runs:
        run.method.check_shape(memory.shape)
    shape = " x ".join(map(str, memory.shape))
    steering = " ".join(f"{reward.weight:+g} {reward.name}" for reward in settings.rewards)
    held_out = (
        f"; held out: {', '.join(reward.name for reward in settings.held_out)}" if settings.held_out else ""
    )
    diversity = (
        f"; diversity: {', '.join(one.name for one in settings.diversity)}" if settings.diversity else ""
    )
    *frames, height, width = memory.pixels[1:]
    extent = f"{height} x {width}" if not frames else f"{frames[0]} frames of {height} x {width}"
    at_once = ""
    if frames:
        count_at_once = min(compute.frames_at_once, frames[0])
        pixels = 4 * 3 * micro_batch * count_at_once * height * width
        at_once = f"; {count_at_once} of {frames[0]} frames at once ({format_bytes(pixels)} of pixels)"
    prompts = f"{len(settings.prompts)} prompt{'s' if len(settings.prompts) > 1 else ''}"
    reward_memory = "".join(
        f"; plus the {what} of {', '.join(names)}"
        for what, names in {
            "reward model": rewards.uncounted,
            "graph": rewards.without_graph,
            "features": rewards.uncounted_features,
        }.items()
        if names
    )
    quantised = f" with the denoiser in {settings.quantize}" if settings.quantize else ""
    decoder = f"reward decoder {format_bytes(memory.reward_decoder)}, " if settings.reward_decoder else ""
    offloaded = " (offloaded)" if compute.offload else ""
    kind = "video" if frames else "image"
    rows = [
        ("model", f"{settings.model}, {settings.dtype}{quantised} on {compute.device}"),
        (
            f"{kind}s",
            f"{settings.count:,} of {extent}: {settings.particles:,} for each of {prompts}; "
            f"latents {shape} (N = {math.prod(memory.shape):,})",
        ),
        ("reward", steering + held_out + diversity + at_once),
    ]
    for run in runs:
        rows += [
            ("method", str(run.method)),
            ("NFE", f"{run.method.nfe} per {kind}, {run.nfe:,} in total{_rounds(run, kind)}"),
        ]
        if guided := guided_steps(run):
            rows.append(("guided", guided))
    if any(_cuts_tiles(run.method) for run in runs):
        sample = sample_of("whiten", (1, *memory.shape))
        rows.append(("W", describe_whitening(resolve_preset("auto", sample, DEFAULT_ALPHA), sample)))
    rows += [
        (
            "memory",
            f"{format_bytes(memory.total)}: denoiser {format_bytes(memory.denoiser)}, "
            f"VAE {format_bytes(memory.vae)}, "
            f"{decoder}"
            f"text encoders {format_bytes(memory.text_encoders)}{offloaded}, "
            f"rewards {format_bytes(memory.rewards)}, "
            f"activations of {micro_batch} at once {format_bytes(memory.activations)}{reward_memory}",
        ),
        ("folder", str(out)),
    ]
    return Plan("\n".join(row(name, text) for name, text in rows), memory.total)


def guided_steps(run: Settings) -> str | None:
    """Return text on the number of guided steps, or None if the method does not choose some of them.

    Raises:
        ValueError: no step would be guided.
    """
    if run.method.guide == ALL_STEPS:
        return None
    plan = run.method.plan(flow_without_weights(run.model, **run.model_options))
    return f"{sum(step.guided for step in plan)} of {len(plan)} steps; the last one never is"


def _rounds(run: Settings, kind: str) -> str:
    return f" for {run.count:,} {kind}s, to keep the best of {run.rounds}" if run.rounds > 1 else ""


def _cuts_tiles(method: Method) -> bool:
    return "operator" in method.sampler.parameters and method.argument("operator") in TILED


def row(name: str, text: str) -> str:
    """Return one line of a plan."""
    return f"{name:<8}{text}"


_PROBE_SHARE = 0.05
"""Largest part of a run's function evaluations that may be spent on measuring its time."""


class PlannedTime(NamedTuple):
    """Time that a run is expected to take."""

    text: str
    """Line of the plan."""
    seconds: float
    """Time for each image."""


def measure_time(
    settings: Settings, compute: ComputeOptions, model: Any, reward: Reward, particles: int
) -> PlannedTime | None:
    """Measure a short run of the method, and expect the whole run to be as fast.

    The sampler runs with two steps, of which it guides the first one, or with one iteration, on one
    micro-batch. Its images are thrown away. Its records tell the time of guided steps or iterations from that
    of the last one, see `estimated_seconds`.

    Args:
        settings: settings of the run.
        compute: how to compute it.
        model, reward: the loaded model and the steering reward.
        particles: number of particles that are still to be sampled.

    Returns:
        The time, or None if the run is so short that measuring would take a relevant part of it.
    """
    shortest = {"steps": 2, "iterations": 1, "start_iterations": 1, "burn_in": 0, "starts": 1, "budget": 3}
    method = settings.method
    arguments, guide = method.arguments.items(), DETAILS["guide"].arguments
    short = Method(
        method.name,
        {name: shortest.get(name, value) for name, value in arguments if name not in guide},
    )
    batch = min(method.particles_at_once(compute.micro_batch), particles)
    total = method.nfe * particles
    if short.nfe * batch > _PROBE_SHARE * total:
        return None
    records: list[StepRecord] = []
    options = SamplerOptions(
        micro_batch=compute.micro_batch, non_finite="plain_noise", on_record=records.append
    )
    short.sample(model, reward, settings.particle_prompts[:batch], options)
    guided = 1.0
    if method.guide != ALL_STEPS:
        *before, _ = method.plan(model)
        guided = sum(step.guided for step in before) / max(1, len(before))
    each = estimated_seconds(method, short, records, guided)
    text = row(
        "time",
        f"about {format_seconds(each * particles)}, {format_seconds(each)} per image; measured on "
        f"{short.nfe * batch} of {total:,} function evaluations",
    )
    return PlannedTime(text, each)


def estimated_seconds(method: Method, short: Method, records: Sequence[StepRecord], guided: float) -> float:
    """Return the seconds that a particle takes, by the records of a short run of the method.

    An evaluation before the last step or iteration takes as long as in the short run. The last one has no
    gradient, and finishes the image, once. A step that is not guided takes as long as the model in the last
    one. All evaluations of a search with a budget take the same time.

    Args:
        method: the method.
        short: the method with fewer steps or iterations, all guided but the last one.
        records: records of the short run.
        guided: share of the steps before the last one that the method guides.
    """
    ends = {record.particle: record for record in records}  # the last one of each particle
    if "budget" in method.sampler.parameters:
        return fsum(map(_seconds_of, records)) / len(ends) / short.nfe * method.nfe
    last = fsum(map(_seconds_of, ends.values())) / len(ends)
    before = fsum(map(_seconds_of, records)) / len(ends) - last
    of_last = _last_evaluations(method)
    plain = fsum(record.seconds_model for record in ends.values()) / len(ends) / _last_evaluations(short)
    skipped = (1 - guided) * (method.nfe - _with(method, steps=1).nfe) if guided < 1 else 0.0
    steered = before / (short.nfe - _last_evaluations(short)) * (method.nfe - of_last - skipped)
    return last * of_last / _last_evaluations(short) + steered + skipped * plain


def _last_evaluations(method: Method) -> int:
    """Return the number of function evaluations of a particle in the last step or iteration."""
    if "iterations" in method.sampler.parameters:
        return _with(method, iterations=0).nfe
    one, two = (_with(method, steps=steps).nfe for steps in (1, 2))
    return min(one, two - one)


def _with(method: Method, **numbers: int) -> Method:
    """Return a method with other numbers of steps or iterations."""
    return Method(method.name, {**method.arguments, **numbers})


def _seconds_of(record: StepRecord) -> float:
    return record.seconds_model + record.seconds_reward + record.seconds_whitening
