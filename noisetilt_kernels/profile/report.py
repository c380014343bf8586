"""Measurements of every operator for one shape, as a table and as JSON."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from textwrap import wrap
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..backends import BackendError
from ..config import DEFAULT_ALPHA, describe, resolve_preset
from ..registration import served_by
from .cases import Case, cases_for
from .counting import count_launches
from .inputs import batch_of
from .limits import RULE, Costs, limit_of, measure_costs, time_copy
from .parts import Part, parts_of_whiten
from .shapes import Shape
from .step import StepTime
from .timing import NOISY, Timing, time_call

SECONDS = 0.2
"""Shortest duration of a measurement."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class PartTime:
    """Time of a part of `whiten`, without the copy of its input if it works in place."""

    name: str
    timing: Timing


@dataclass(frozen=True)
class Measured:
    """Time and counts of an operator on a backend.

    Attributes:
        timing: time of a call.
        launches: operators of PyTorch, or kernels on a GPU, that a call starts.
        moved: bytes of the inputs and results of PyTorch's operators within a call.
        kernels: names of the kernels on a GPU, and how often a call starts each.
        shares: shares of the time that launches and a copy of the bytes take alone, see `limits.RULE`.
        limit: "launches", "memory" or "compute".
        parts: parts of `whiten`; empty for other operators.
    """

    timing: Timing
    launches: int
    moved: int
    kernels: dict[str, int]
    shares: dict[str, float]
    limit: str
    parts: tuple[PartTime, ...] = ()


@dataclass(frozen=True)
class Row:
    """An operator, and what was measured on each backend.

    Attributes:
        operator: name in `torch.ops.noisetilt`.
        name: name with the arguments.
        backends: measurements by name of the backend, or the reason why there are none: the backend does not
            serve the call, or memory ran out.
    """

    operator: str
    name: str
    backends: dict[str, Measured | str]

    @property
    def times(self) -> dict[str, float]:
        """Median seconds by name of the backend, for those that serve the call."""
        return {
            name: found.timing.median for name, found in self.backends.items() if isinstance(found, Measured)
        }

    @property
    def best(self) -> str | None:
        """Name of the fastest backend, or None if no backend serves the call."""
        times = self.times
        return min(times, key=times.__getitem__, default=None)


@dataclass(frozen=True)
class Profile:
    """All measurements for one shape on one device.

    Attributes:
        shape: the shape.
        dtype, field: dtype and name of the input, see `inputs.INPUTS`.
        device: device, as text.
        costs: costs of the device.
        rows: one for each call of an operator.
        step: time of a step of a model, or None.
    """

    shape: Shape
    dtype: str
    field: str
    device: str
    costs: Costs
    rows: tuple[Row, ...]
    step: StepTime | None


def profile(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    backends: Sequence[ModuleType],
    *,
    field: str = "1/k",
    step: StepTime | None = None,
    seconds: float = SECONDS,
    progress: Progress = lambda text: None,
) -> Profile:
    """Measure every operator, and the parts of `whiten`, for one shape.

    Args:
        shape: shape of the tensor.
        device: device of the tensor. A GPU must be the current one.
        dtype: dtype of the tensor.
        backends: modules of `noisetilt_kernels.backends` to measure.
        field: name of the input, see `inputs.INPUTS`.
        step: time of a step of a model, for the shares.
        seconds: shortest duration of each measurement.
        progress: function that is told what is measured next.
    """
    samples = batch_of(field, shape.sample, shape.batch).to(device, dtype)
    x = samples.view(shape.sides)
    progress("costs of the device")
    costs = measure_costs(samples, list(backends), seconds)
    rows = []
    for case in cases_for(x):
        found: dict[str, Measured | str] = {}
        for backend in backends:
            progress(f"{case.name} on {backend.NAME}")
            try:
                with served_by(backend):
                    found[backend.NAME] = _measure(case, backend, shape, samples, costs, seconds)
            except (BackendError, ValueError, torch.OutOfMemoryError) as error:
                found[backend.NAME] = str(error).removeprefix(f"{case.operator}: ")
        rows.append(Row(case.operator, case.name, found))
    return Profile(shape, _name_of(dtype), field, str(device), costs, tuple(rows), step)


def _measure(
    case: Case, backend: ModuleType, shape: Shape, samples: Tensor, costs: Costs, seconds: float
) -> Measured:
    timing = time_call(case.call, seconds)
    count = count_launches(case)
    shares = costs.shares(backend.NAME, timing.median, count.number, count.bytes)
    parts = _time_parts(backend, shape, samples, costs, seconds) if case.operator == "whiten" else ()
    return Measured(timing, count.number, count.bytes, dict(count.kernels), shares, limit_of(shares), parts)


def _time_parts(
    backend: ModuleType, shape: Shape, samples: Tensor, costs: Costs, seconds: float
) -> tuple[PartTime, ...]:
    """Measure the parts of `whiten`, each on the result of the part before it."""
    dtype = samples.dtype
    half = dtype in (torch.float16, torch.bfloat16)
    x = samples.float() if half else samples
    config = resolve_preset("auto", shape.sample, DEFAULT_ALPHA)
    parts = parts_of_whiten(backend, x, config)
    copy = costs.copy
    if half:
        copy = time_copy(x, seconds)  # parts work on float32
        parts = [
            Part("conversion to float32", Tensor.float),
            *parts,
            Part(f"conversion to {_name_of(dtype)}", lambda x: x.to(dtype)),
        ]
    x, times = samples, []
    for part in parts:
        timing = time_call(partial(part.run, x), seconds)
        if part.copies:
            timing = timing._replace(median=max(0.0, timing.median - copy))
        times.append(PartTime(part.name, timing))
        x = part.run(x)
    return tuple(times)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- text ----


def render(profile: Profile) -> str:
    """Return a profile as text: a table of the operators, one of the parts of `whiten`, and notes."""
    costs = profile.costs
    calls = ", ".join(f"{format_time(seconds)} on {name}" for name, (seconds, _) in costs.calls.items())
    head = [
        f"{profile.shape.text}, {profile.dtype}, {profile.field} input, {profile.device}",
        profile.shape.describe(),
        f"a copy: {format_time(costs.copy)}, {costs.bandwidth / 1e9:.3g} GB/s; a call with 2 values: "
        f"{calls}; a PyTorch operator on 1 value: {format_time(costs.operator)}",
    ]
    lines = [
        *_wrapped(head),
        "",
        _table_of_operators(profile),
        "",
        _table_of_parts(profile),
        "",
        *_wrapped(_notes(profile)),
    ]
    return "\n".join(lines)


def _wrapped(paragraphs: Sequence[str]) -> list[str]:
    return [line for one in paragraphs for line in wrap(one, 100, subsequent_indent="  ")]


def _table_of_operators(profile: Profile) -> str:
    header = [
        *("operator", "backend", "median", "IQR", "ratio", "launches", "GB/s"),
        *("starts", "copy", "limit"),
        *(["of step"] if profile.step else []),
    ]
    rows = [header]
    for row in profile.rows:
        for name, found in row.backends.items():
            if isinstance(found, str):
                rows.append([row.name, name, "-"])
                continue
            seconds = found.timing.median
            assert row.best is not None
            cells = [
                row.name,
                name + (" *" if name == row.best else ""),
                format_time(seconds),
                _spread(found.timing),
                f"{seconds / row.times[row.best]:.1f}",
                f"{found.launches:,}",
                f"{found.moved / seconds / 1e9:.2g}",
                _percent(found.shares["launches"]),
                _percent(found.shares["memory"]),
                found.limit,
            ]
            rows.append([*cells, *([_percent(seconds / profile.step.seconds)] if profile.step else [])])
    return _aligned(rows, left=(0, 1, 9))


def _table_of_parts(profile: Profile) -> str:
    """Return the table of the parts of `whiten`: for each backend the time and the share of the whole."""
    found = {
        name: measured
        for name, measured in profile.rows[0].backends.items()
        if isinstance(measured, Measured)
    }
    rows = [["part of whiten", *(cell for name in found for cell in (name, "of whole"))]]
    names = list(dict.fromkeys(part.name for measured in found.values() for part in measured.parts))
    for k, name in enumerate(names):
        cells = [name]
        for measured in found.values():
            seconds = measured.parts[k].timing.median
            cells += [format_time(seconds), _percent(seconds / measured.timing.median)]
        rows.append(cells)
    together = ["together"]
    for measured in found.values():
        seconds = sum(part.timing.median for part in measured.parts)
        together += [format_time(seconds), _percent(seconds / measured.timing.median)]
    return _aligned([*rows, together], left=(0,))


def _notes(profile: Profile) -> list[str]:
    refused = [
        f"{row.name} on {name}: {found}"
        for row in profile.rows
        for name, found in row.backends.items()
        if isinstance(found, str)
    ]
    timings = [
        timing
        for row in profile.rows
        for found in row.backends.values()
        if isinstance(found, Measured)
        for timing in (found.timing, *(part.timing for part in found.parts))
    ]
    noisy = sum(timing.noisy for timing in timings)
    notes = [
        *refused,
        "*: fastest backend; ratio: to its time. GB/s: bytes of the inputs and results of PyTorch's "
        "operators in a call, over the median",
        "launches: on the CPU PyTorch operators, of which a compiled kernel is one; on a GPU kernels, copies "
        "and fills",
        RULE,
        "parts: each on the result of the one before; a part that works in place without its copy; mixing: "
        "the butterfly there and back, with the projections after each step there",
    ]
    if profile.step:
        notes.append(profile.step.words)
    if noisy:
        notes.append(
            f"noise: {noisy} of {len(timings)} medians have an interquartile range above {NOISY:.0%} "
            "(marked !); other processes may be running"
        )
    return notes


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Return rows as aligned text: columns in `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    lines = [
        [
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        for row in rows
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in lines)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _spread(timing: Timing) -> str:
    if timing.iqr is None:
        return "-"
    return f"{timing.iqr / timing.median:.0%}{'!' if timing.noisy else ''}"


def format_time(seconds: float) -> str:
    """Return a time with three digits and a unit, such as "7.35 ms"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:#.3g}".rstrip(".") + f" {unit}"
    return f"{seconds * 1e9:.0f} ns"


# ---- JSON ----


def to_json(profile: Profile) -> dict[str, Any]:
    """Return a profile as a JSON object. Times are in seconds, sizes in bytes."""
    shape = profile.shape
    return {
        "shape": list(shape.sides),
        "batch": shape.batch,
        "sample": list(shape.sample[:3]),
        "dtype": profile.dtype,
        "input": profile.field,
        "device": profile.device,
        "whitening": describe(resolve_preset("auto", shape.sample, DEFAULT_ALPHA), shape.sample),
        "costs": {
            "copy": {"seconds": profile.costs.copy, "bytes": profile.costs.copied_bytes},
            "pytorch_operator_seconds": profile.costs.operator,
            "calls": {
                name: {"seconds": seconds, "launches": launches}
                for name, (seconds, launches) in profile.costs.calls.items()
            },
        },
        "step": None if profile.step is None else asdict(profile.step),
        "operators": [
            {
                "operator": row.operator,
                "name": row.name,
                "best": row.best,
                "backends": {
                    name: _measured_json(found, profile.step) for name, found in row.backends.items()
                },
            }
            for row in profile.rows
        ],
    }


def _measured_json(found: Measured | str, step: StepTime | None) -> dict[str, Any]:
    if isinstance(found, str):
        return {"refused": found}
    return {
        **found.timing._asdict(),
        "launches": found.launches,
        "moved_bytes": found.moved,
        "kernels": found.kernels,
        "shares": found.shares,
        "limit": found.limit,
        "share_of_step": None if step is None else found.timing.median / step.seconds,
        "parts": [{"name": part.name, **part.timing._asdict()} for part in found.parts],
    }
