"""One run by many processes, as `torchrun` starts them: each makes particles of its own, the first one the rest.

Seeds belong to particles, and micro-batches are the same whoever computes them, so that the images are those of a
single process. A process that fails ends, and torchrun ends the others.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from .errors import OtherProcessError

LONGEST_WAIT = timedelta(days=7)
"""For one another, in which the others may still be sampling."""


@dataclass(frozen=True)
class Workers:
    """The processes of a run.

    Attributes:
        rank: which of them this one is; 0 writes what is of the whole run.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that does what is to be done once."""
        return self.rank == 0

    def share(self, particles: list[range], size: int) -> list[range]:
        """This process's part of particles, in pieces of at most `size`, which stay together as in a single process."""
        pieces = [part[start : start + size] for part in particles for start in range(0, len(part), size)]
        return pieces[self.rank :: self.count] if self.count > 1 else particles

    def wait(self) -> None:
        """Until all of them have come here.

        Raises:
            OtherProcessError: one of them has ended.
        """
        if self.count > 1:
            try:
                distributed.barrier()
            except RuntimeError as error:
                raise OtherProcessError(
                    "another process of this run has ended; what it said tells why"
                ) from error


ALONE = Workers()


def in_company() -> bool:
    """Whether torchrun, or something that sets its variables, has started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def speaks() -> bool:
    """Whether this process is the one that tells people of the whole run; known before the processes are connected."""
    return not in_company() or os.environ.get("RANK") == "0"


def own_device(device: str) -> str:
    """The GPU of this process, where it is one of several and no GPU is named by its number.

    Raises:
        ValueError: what has started them does not say which of this machine's processes this one is.
    """
    if not in_company() or device != "cuda":
        return device
    if "LOCAL_RANK" not in os.environ:
        raise ValueError("LOCAL_RANK is not set, from which a process knows its GPU; start with torchrun")
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def joined(device: str) -> Iterator[Workers]:
    """The processes of this run, connected within the block; a single one is alone.

    By NCCL where each has a GPU of its own, else by gloo; all that they do is wait for one another.
    """
    if not in_company():
        yield ALONE
        return
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if place.type == "cuda" and str(place.index) == os.environ.get("LOCAL_RANK"):
        distributed.init_process_group("nccl", timeout=LONGEST_WAIT, device_id=place)
    else:  # NCCL does not serve two processes on one GPU
        distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    # not where the block fails: NCCL may then wait for the others, and the process ends anyway
    yield Workers(distributed.get_rank(), distributed.get_world_size())
    distributed.destroy_process_group()
