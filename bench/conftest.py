"""Fixture `compare`: an operation against its baselines, alternating in one process."""

import os
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


def alternate(functions: dict[str, Function], calls: dict[str, int]) -> tuple[Round, int]:
    """Return the times of all calls, with every function in each round, and the number of repeated rounds.

    A round is repeated if other processes took processor time, or if the median of a function is far above
    that of its best round. The host of a virtual machine can take time that the accounting does not show.
    """
    rounds: list[Round] = []
    repeated = 0
    while len(rounds) < ROUNDS:
        load, start = MachineLoad(), time.perf_counter()
        measured = {name: time_calls(function, calls[name]) for name, function in functions.items()}
        # the accounting ticks in hundredths of a second
        quiet = load.since() <= MOST_FOREIGN_LOAD * (time.perf_counter() - start) + 0.02
        if quiet or repeated >= MOST_REPEATS:
            rounds.append(measured)
        else:
            repeated += 1
        if len(rounds) == ROUNDS and repeated < MOST_REPEATS:
            best = {name: min(median(r[name]) for r in rounds) for name in functions}
            steady = [
                r for r in rounds if all(median(r[name]) <= MOST_SPREAD * best[name] for name in functions)
            ]
            repeated += len(rounds) - len(steady)
            rounds = steady
    return {name: [t for r in rounds for t in r[name]] for name in functions}, repeated


@pytest.fixture
def compare(benchmark: Any) -> Callable[..., None]:
    """Return `compare(ours, eager={name: function}, target=20.0, **others)`.

    It reports ours against the fastest of `eager` and against each of the others, as ratios of medians and
    minima.
    """

    def run(
        ours: Function, eager: dict[str, Function], target: float | None = None, **others: Function
    ) -> None:
        functions = {"ours": ours, **eager, **others}
        warm = {name: warm_up(function) for name, function in functions.items()}
        fastest = min(eager, key=lambda name: warm[name])
        for name in eager:
            if warm[name] > CLEARLY_SLOWER * warm[fastest]:
                del functions[name]
        calls = {name: max(1, int(ROUND_SECONDS / warm[name])) for name in functions}
        times, repeated = alternate(functions, calls)
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
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            seconds={name: _percentiles(measured) for name, measured in times.items()},
        )
        benchmark.pedantic(ours, rounds=len(times["ours"]) // ROUNDS)

    return run


def _percentiles(times: list[float]) -> dict[str, float]:
    fifths = quantiles(times, n=5) if len(times) > 1 else times * 4
    return {"min": min(times), "p20": fifths[0], "p50": median(times), "p80": fifths[3]}
