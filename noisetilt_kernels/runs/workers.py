"""One run by several processes, started with `torchrun`: the processes share the particles.

The first process also writes the files of the whole run. Seeds belong to particles, and micro-batches do not
depend on the process that computes them, so the images are the same as with a single process that has the
same number of threads. If a process fails, torchrun ends the others.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from .errors import OtherProcessError

BARRIER_TIMEOUT = timedelta(days=7)
"""Longest time to wait for other processes, which may still be sampling."""


@dataclass(frozen=True)
class Workers:
    """Processes of a run.

    Attributes:
        rank: number of this process; process 0 writes the files of the whole run.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """True in process 0, which does the work that is needed only once."""
        return self.rank == 0

    def share(self, batches: list[range]) -> list[range]:
        """Return the particles of this process: every `count`-th micro-batch, neighbours joined."""
        joined: list[range] = []
        for batch in batches[self.rank :: self.count]:
            if joined and joined[-1].stop == batch.start:
                joined[-1] = range(joined[-1].start, batch.stop)
            else:
                joined.append(batch)
        return joined

    def wait(self) -> None:
        """Wait until all processes have called this.

        Raises:
            OtherProcessError: another process has ended.
        """
        if self.count > 1:
            try:
                distributed.barrier()
            except RuntimeError as error:
                raise OtherProcessError(
                    "another process of this run has ended; its error message above gives the reason"
                ) from error


SINGLE_PROCESS = Workers()
"""The workers of a run in one process."""


def is_distributed() -> bool:
    """Return True if torchrun, or a launcher that sets the same variables, has started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_reporting_process() -> bool:
    """Return True in the process that prints messages; works before the processes are connected."""
    return not is_distributed() or os.environ.get("RANK") == "0"


def device_of_process(device: str) -> str:
    """Return the device of this process.

    If there are several processes and the device is "cuda" without a number, each process gets its own GPU.

    Raises:
        ValueError: the launcher has not set LOCAL_RANK, the number of the process on this machine.
    """
    if not is_distributed() or device != "cuda":
        return device
    if "LOCAL_RANK" not in os.environ:
        raise ValueError(
            "LOCAL_RANK is not set, so the process cannot choose its GPU; start it with torchrun"
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def connected(device: str) -> Iterator[Workers]:
    """Connect the processes of this run within the block and yield them.

    The connection uses NCCL if each process has its own GPU, else gloo. It only lets processes wait for each
    other. A single process needs no connection.
    """
    if not is_distributed():
        yield SINGLE_PROCESS
        return
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if place.type == "cuda" and str(place.index) == os.environ.get("LOCAL_RANK"):
        distributed.init_process_group("nccl", timeout=BARRIER_TIMEOUT, device_id=place)
    else:  # NCCL does not support two processes on one GPU
        distributed.init_process_group("gloo", timeout=BARRIER_TIMEOUT)
    # not in a finally block: after an error NCCL may wait for the others, and this process ends anyway
    yield Workers(distributed.get_rank(), distributed.get_world_size())
    distributed.destroy_process_group()
