"""Time of a call, for `python -m noisetilt_kernels.profile`, `noisetilt bench` and `noisetilt demo`."""

from collections.abc import Callable
from typing import NamedTuple

import torch

NOISY = 0.1
"""Interquartile range, as a share of the median, above which a time is marked as noisy."""
_FEWEST = 4
_MOST_TIMES_LONGER = 4


class Timing(NamedTuple):
    """Time of a call, measured several times.

    Attributes:
        median: seconds.
        iqr: interquartile range in seconds; None if there are fewer than 4 measurements.
        measurements: number of measurements. Each may be the mean of several calls.
    """

    median: float
    iqr: float | None
    measurements: int

    @property
    def noisy(self) -> bool:
        """True if the interquartile range is more than a tenth of the median."""
        return self.iqr is not None and self.iqr > NOISY * self.median


def time_call(function: Callable[[], object], seconds: float) -> Timing:
    """Measure the time of a call.

    The first calls are warm-up and do not count. Then the function is called for at least `seconds`, and up
    to 4 times as long while the interquartile range is above a tenth of the median. On a GPU every
    measurement waits until the current device is done. It contains as many calls as are needed for the wait
    to take a ten-thousandth of it.
    """
    from torch.utils.benchmark import Timer

    function()  # makes tables and compiles
    # the timer would use one thread unless it is given torch's number of threads
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    found = timer.adaptive_autorange(NOISY, min_run_time=seconds, max_run_time=_MOST_TIMES_LONGER * seconds)
    count = len(found.times)
    return Timing(float(found.median), float(found.iqr) if count >= _FEWEST else None, count)
