"""Fixtures that more than one test file needs."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch loads OpenMP: threads that wait sleep. On a machine shared with other work, threads that spin for one
# another make thousands of small calls ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The tests make hundreds of tables, which are not for the user's cache.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / "build" / "test-cache")

import pytest
import torch

# Where there is no GPU, Triton's kernels run in its interpreter; it asks when they are defined.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from noisetilt_kernels.backends import tables as bounds
from noisetilt_kernels.backends.triton import launch


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of an empty cache of bounds tables, in memory and on disk; it does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bounds.cached_tables.cache_clear()
    yield tmp_path / "cache" / "noisetilt_kernels"
    bounds.cached_tables.cache_clear()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing asks the hub."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def thread_count() -> Iterator[None]:
    """Restores the number of torch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def set_blocks() -> Iterator[Callable[..., None]]:
    """`set_blocks(kernel, **sizes)` of the Triton kernels, undone at the end: small blocks are many of little work."""
    before = {kernel: dict(sizes) for kernel, sizes in launch.LAUNCH_TABLE.items()}
    yield launch.set_blocks
    for kernel, sizes in before.items():
        launch.set_blocks(kernel, **sizes)
