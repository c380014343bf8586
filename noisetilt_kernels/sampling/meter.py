"""Count of function evaluations and clock, shared by all samplers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

Stage = Literal["model", "reward", "whitening"]


class Meter:
    """NFE of one call of a sampler, and seconds in each stage since the last `lap`.

    NFE (number of function evaluations): a forward of the model counts 1 for each entry of its batch.
    Backwards, decoding and rewards do not count.
    """

    def __init__(self, device: torch.device) -> None:
        self.nfe = 0
        self._device = torch.device(device)
        self._seconds: dict[Stage, float] = {"model": 0.0, "reward": 0.0, "whitening": 0.0}

    def forward(self, model: Callable[..., Tensor], x: Tensor, *arguments: Any) -> Tensor:
        """Return `model(x, *arguments)`, counted and timed, for a batch x (B, ...)."""
        self.nfe += len(x)
        with self.time("model"):
            return model(x, *arguments)

    @contextmanager
    def time(self, stage: Stage) -> Iterator[None]:
        """Add the time of the block to a stage, including pending work on the device."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self._seconds[stage] += time.perf_counter() - start

    def lap(self) -> dict[Stage, float]:
        """Return the seconds in each stage since the last lap, and reset them."""
        seconds, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        return seconds

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
