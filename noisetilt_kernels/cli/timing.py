"""Time of a call, for `noisetilt bench` and `noisetilt demo`."""

from collections.abc import Callable

import torch


def median_seconds(function: Callable[[], object], min_run_time: float) -> float:
    """Return the median time of a call in seconds.

    The function is called repeatedly for at least `min_run_time` seconds. On a GPU every measurement waits
    until the device is done.
    """
    from torch.utils.benchmark import Timer

    # the timer would use one thread unless it is given torch's number of threads
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=min_run_time).median)
