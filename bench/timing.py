"""Wall-clock times of calls on the CPU. `gpu/measure.py` times a GPU."""

import time
from collections.abc import Callable

Function = Callable[[], object]


def time_calls(function: Function, calls: int) -> list[float]:
    """Return the seconds of each call."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times
