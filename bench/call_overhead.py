"""Gain of the autograd shortcut and of every cache of a call: `python -m bench.call_overhead`.

Each row compares a call with the same call without the shortcut or without one cache. The two alternate in
short rounds. The table gives medians, and the ratio without / with.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels import autograd_shortcut, ops, registration
from noisetilt_kernels.backends import cpu, reference, table_cache, tables
from noisetilt_kernels.backends.tables import ExaminedTables, check_table
from noisetilt_kernels.config import DEFAULT_ALPHA

from .timing import Function, time_calls

ROUNDS = 15
ROUND_SECONDS = 0.02


def seconds(function: Function, calls: int) -> float:
    """Return the median time of a call."""
    return median(time_calls(function, calls))


def compare(name: str, function: Function, without: Function) -> None:
    """Print a row: medians of both, alternating, and their ratio."""
    calls = []
    for one in (function, without):
        one()
        calls.append(max(1, int(ROUND_SECONDS / seconds(one, 3))))
    pairs = [(seconds(function, calls[0]), seconds(without, calls[1])) for _ in range(ROUNDS)]
    with_it, without_it = median(a for a, _ in pairs), median(b for _, b in pairs)
    print(
        f"| {name} | {with_it * 1e6:.1f} us | {without_it * 1e6:.1f} us | {without_it / with_it:.2f} |",
        flush=True,
    )


# ---- the autograd shortcut: the operators, registered a second time without it ----

PLANS = {
    "whiten": ops._whiten,
    "butterfly": ops._butterfly,
    "hadamard_transform": ops._hadamard_transform,
    "project_2os": ops._project_2os,
}


@contextmanager
def registered(namespace: str) -> Iterator[Any]:
    """Register the operators of PLANS in another namespace, and yield the namespace."""
    library = torch.library.Library(namespace, "FRAGMENT")
    for name in PLANS:
        library.define(str(getattr(torch.ops.noisetilt, name).default._schema).replace("noisetilt::", ""))
    register_fake, register_autograd = torch.library.register_fake, torch.library.register_autograd

    def renamed(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda op, *args, lib, **kw: function(
            op.replace("noisetilt::", f"{namespace}::"), *args, lib=library, **kw
        )

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(registration, "_registry", library))
        stack.enter_context(mock.patch.object(torch.library, "register_fake", renamed(register_fake)))
        stack.enter_context(mock.patch.object(torch.library, "register_autograd", renamed(register_autograd)))
        stack.enter_context(mock.patch.object(autograd_shortcut, "register", lambda *args, **named: None))
        for name, make_plan in PLANS.items():
            registration.register(name, make_plan, num_tensors=2 if name == "project_2os" else 0)
            registration.register_without_gradient(name)
        yield getattr(torch.ops, namespace)


def shortcut_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 64, 64, generator=generator)
    row = torch.randn(1, 4096, generator=generator)
    table = [bounds.float() for bounds in nt.confidence_table(1024, 4)]
    calls: dict[str, Callable[[Any], Tensor]] = {
        "hadamard_transform, 4096": lambda ops: ops.hadamard_transform(row),
        "butterfly, 4096, 12 steps": lambda ops: ops.butterfly(row, [1, 4096], 12),
        "project_2os, 4096": lambda ops: ops.project_2os(row, *table),
        "whiten, 16x64x64": lambda ops: ops.whiten(x),
    }
    with registered("noisetilt_without_shortcut") as others:
        for name, call in calls.items():
            compare(
                f"autograd shortcut: {name}",
                lambda call=call: call(torch.ops.noisetilt),
                lambda call=call: call(others),
            )


# ---- caches ----


def cache_rows() -> None:
    row, scales = torch.randn(1, 4096), itertools.count(1.0)
    compare(
        "plans of calls: hadamard_transform, 4096",
        lambda: torch.ops.noisetilt.hadamard_transform(row, 1.0),
        lambda: torch.ops.noisetilt.hadamard_transform(row, next(scales)),  # no scale twice: no plan is found
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 64, 64, generator=generator)
    flux = nt.preset("flux", (16, 64, 64))

    def arguments(projections: Callable[..., Any]) -> Any:
        return projections(x, flux.chunk_sizes, flux.chunk_sizes, flux.tile_sizes, flux.alpha)

    def whiten_without_projections() -> Tensor:
        cpu._projections._kept.cache_clear()
        return cpu.whiten(x, flux)

    compare("projections: whiten, 16x64x64", lambda: cpu.whiten(x, flux), whiten_without_projections)
    compare(
        "projections: their arguments alone",
        lambda: arguments(cpu._projections),
        lambda: (cpu._projections._kept.cache_clear(), arguments(cpu._projections)),
    )
    key = 16384, 4, DEFAULT_ALPHA, nt.Normal(), torch.float32, torch.device("cpu")
    compare(
        "tables in memory, against disk: 16384x4",
        lambda: tables.cached_table(*key),
        lambda: tables.cached_table.__wrapped__(*key),
    )

    def computed() -> Any:
        with (
            mock.patch.object(table_cache, "read", lambda *_: None),
            mock.patch.object(table_cache, "write", lambda *_: None),
        ):
            return tables.cached_table.__wrapped__(*key)

    compare(
        "tables on disk, against computing: 16384x4", lambda: tables.cached_table.__wrapped__(*key), computed
    )
    lower, upper = (bounds.float() for bounds in nt.confidence_table(1024, 4))
    examined = ExaminedTables(check_table)
    compare("examined user tables: 1024x4", lambda: examined(lower, upper), lambda: check_table(lower, upper))
    compare(
        "tables in memory: project_tile_stats of the reference",
        lambda: reference.project_tile_stats(x, (8, 8), (4, 16), DEFAULT_ALPHA),
        lambda: (
            tables.cached_table.cache_clear(),
            reference.project_tile_stats(x, (8, 8), (4, 16), DEFAULT_ALPHA),
        ),
    )


def prompt_rows() -> None:
    try:
        from noisetilt_kernels import models
    except ImportError:
        return
    model = models.FluxFlow(models.load_pipeline("digits", dtype=torch.float32, device="cpu"))
    x = torch.randn(1, *model.shape)

    def velocity() -> Tensor:
        with torch.no_grad():
            return model.velocity(x, 0.5, ["a handwritten seven"])

    compare(
        "prompt embeddings: a step of `digits`",
        velocity,
        lambda: (model.prompts._encoded.clear(), velocity()),
    )


def triton_rows() -> None:
    try:
        from noisetilt_kernels.backends.triton import order_stats, transforms
    except ImportError:
        return
    shape, table = (1, 16, 64, 64), (65536, torch.float32, 16384, 4, 0, (65536, 1, 16384), 1)
    butterfly = shape, torch.float32, (64, 64), 12, False, None, None
    for name, plan, arguments in (
        ("butterfly", transforms._plan, butterfly),
        ("2OS", order_stats._plan, table),
    ):
        compare(
            f"Triton launch plans: {name}",
            lambda plan=plan, arguments=arguments: plan(*arguments),
            lambda plan=plan, arguments=arguments: plan.__wrapped__(*arguments),
        )


def main() -> None:
    torch.set_num_threads(1)
    print("| shortcut or cache: call | with | without | ratio |\n|---|---|---|---|")
    shortcut_rows()
    cache_rows()
    prompt_rows()
    triton_rows()


if __name__ == "__main__":
    main()
