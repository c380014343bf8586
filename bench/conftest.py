"""Fixture `compare`: an operation against its baselines, alternating in one process."""

import os
import sys
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import pytest
import torch

from .timing import Function, time_calls

ROUNDS = 8
ROUND_SECONDS = 0.03  # for each function in a round, with at least one call
CLEARLY_SLOWER = 1.5  # baselines slower than the fastest by this factor are not measured further
MOST_REPEATS = 24
MOST_SPREAD = 1.25  # largest ratio of a function's median in a round to its best median
MOST_FOREIGN_LOAD = 0.05  # share of one core that other processes may take in a round
CASE_SECONDS = 60  # after this time rounds of a case are taken as they are
REPORT_SECONDS = 5  # between two messages about a case that takes long


class MachineLoad:
    """CPU seconds of other processes, from the kernel's accounting. Always 0 without /proc/stat."""

    def __init__(self) -> None:
        self.start = self._others()

    def since(self) -> float:
        return self._others() - self.start

    @staticmethod
    def _others() -> float:
        try:
            with open("/proc/stat") as file:
                user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
        except OSError:
            return 0.0
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        own = os.times()
        return busy - own.user - own.system


def warm_up(function: Function) -> float:
    """Return the seconds of a call with warm caches, tables and compiled code.

    If the first call takes more than 2 seconds, its time is returned.
    """
    (first,) = time_calls(function, 1)
    return first if first > 2 else min(time_calls(function, 3))


Round = dict[str, list[float]]


def alternate(
    functions: dict[str, Function], calls: dict[str, int], seconds: float = CASE_SECONDS
) -> tuple[Round, int, bool]:
    """Return the times of all calls, with every function in each round, and how quiet the machine was.

    A round is repeated if other processes took processor time, or if the median of a function is far above
    that of its best round. The host of a virtual machine can take time that the accounting does not show.
    After `seconds` no round is repeated, and the rounds so far are returned, at least one.

    Returns:
        Times of each function, the number of repeated rounds, and True if all rounds were undisturbed.
    """
    rounds: list[Round] = []
    repeated, undisturbed = 0, True
    end = time.monotonic() + seconds
    reported = time.monotonic()
    while len(rounds) < ROUNDS:
        late = time.monotonic() >= end
        if late and rounds:
            break
        if time.monotonic() >= reported + REPORT_SECONDS:
            reported = time.monotonic()
            print(
                f"  {len(rounds)} of {ROUNDS} rounds, {repeated} repeated because of other processes",
                file=sys.stderr,
                flush=True,
            )
        load, start = MachineLoad(), time.perf_counter()
        measured = {name: time_calls(function, calls[name]) for name, function in functions.items()}
        # the accounting ticks in hundredths of a second
        quiet = load.since() <= MOST_FOREIGN_LOAD * (time.perf_counter() - start) + 0.02
        if quiet or late or repeated >= MOST_REPEATS:
            rounds.append(measured)
            undisturbed &= quiet
        else:
            repeated += 1
        if len(rounds) == ROUNDS and repeated < MOST_REPEATS:
            best = {name: min(median(r[name]) for r in rounds) for name in functions}
            steady = [
                r for r in rounds if all(median(r[name]) <= MOST_SPREAD * best[name] for name in functions)
            ]
            repeated += len(rounds) - len(steady)
            rounds = steady
    times = {name: [t for r in rounds for t in r[name]] for name in functions}
    return times, repeated, undisturbed and len(rounds) == ROUNDS


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--minutes", type=float, default=20.0, help="time limit; later cases are skipped")


@pytest.fixture(scope="session")
def deadline(request: Any) -> float:
    """Time by `time.monotonic` after which no case begins."""
    return time.monotonic() + 60 * float(request.config.getoption("--minutes"))


@pytest.fixture
def compare(benchmark: Any, request: Any, deadline: float) -> Callable[..., None]:
    """Return `compare(ours, eager={name: function}, target=20.0, **others)`.

    It reports ours against the fastest of `eager` and against each of the others, as ratios of medians and
    minima.
    """

    def run(
        ours: Function, eager: dict[str, Function], target: float | None = None, **others: Function
    ) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            pytest.skip(f"{request.node.name}: the time limit is over; give --minutes a larger number")
        print(request.node.name, file=sys.stderr, flush=True)
        functions = {"ours": ours, **eager, **others}
        warm = {name: warm_up(function) for name, function in functions.items()}
        fastest = min(eager, key=lambda name: warm[name])
        for name in eager:
            if warm[name] > CLEARLY_SLOWER * warm[fastest]:
                del functions[name]
        calls = {name: max(1, int(ROUND_SECONDS / warm[name])) for name in functions}
        times, repeated, undisturbed = alternate(functions, calls, min(CASE_SECONDS, left))
        fastest = min(eager.keys() & functions.keys(), key=lambda name: median(times[name]))
        ratios = {
            name: {
                "medians": median(times[name]) / median(times["ours"]),
                "minima": min(times[name]) / min(times["ours"]),
            }
            for name in (fastest, *others)
        }
        benchmark.extra_info.update(
            target=target,
            eager=fastest,
            ratios=ratios,
            repeated_rounds=repeated,
            undisturbed=undisturbed,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            seconds={name: _percentiles(measured) for name, measured in times.items()},
        )
        benchmark.pedantic(ours, rounds=max(1, len(times["ours"]) // ROUNDS))

    return run


def _percentiles(times: list[float]) -> dict[str, float]:
    fifths = quantiles(times, n=5) if len(times) > 1 else times * 4
    return {"min": min(times), "p20": fifths[0], "p50": median(times), "p80": fifths[3]}
