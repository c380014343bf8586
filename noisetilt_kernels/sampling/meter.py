"""Counts function evaluations and takes the time, in one place for every method."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

Stage = Literal["model", "reward", "whitening"]


class Meter:
    """NFE of a whole run, and seconds since the last `lap`.

    NFE: a forward of the model counts 1 for every entry of its batch. Backwards, decoding and rewards count
        nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.nfe = 0
        self._device = torch.device(device)
        self._seconds: dict[Stage, float] = {"model": 0.0, "reward": 0.0, "whitening": 0.0}

    def forward(self, model: Callable[..., Tensor], x: Tensor, *arguments: Any) -> Tensor:
        """`model(x, *arguments)`, counted and timed; x has the batch first."""
        self.nfe += len(x)
        with self.time("model"):
            return model(x, *arguments)

    @contextmanager
    def time(self, stage: Stage) -> Iterator[None]:
        """Adds the time of the block to a stage, work still under way on the device included."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self._seconds[stage] += time.perf_counter() - start

    def lap(self) -> dict[Stage, float]:
        """The seconds since the last lap."""
        seconds, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        return seconds

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
