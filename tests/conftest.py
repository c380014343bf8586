"""Fixtures that more than one test file needs."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # the folder of `bench`, which is not installed

# Set before torch loads OpenMP: waiting threads sleep. On a shared machine, spinning threads make thousands
# of small calls ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core, each with one thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The tests make hundreds of tables, which do not belong in the user's cache.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / "build" / "test-cache")

import pytest
import torch

# Without a GPU, Triton's kernels run in its interpreter. Triton reads the variable when the kernels are
# defined.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from noisetilt_kernels.backends.tables import cached_table
from noisetilt_kernels.backends.triton import launch


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Directory of an empty table cache. It does not exist yet. The cache in memory is empty too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cached_table.cache_clear()
    yield tmp_path / "cache" / "noisetilt_kernels"
    cached_table.cache_clear()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make huggingface_hub work offline."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def thread_count() -> Iterator[None]:
    """Restore the number of torch's threads after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def set_blocks() -> Iterator[Callable[..., None]]:
    """Yield `launch.set_blocks(kernel, **sizes)`; undo its changes after the test.

    With small blocks the Triton kernels run as more programs.
    """
    before = {kernel: dict(sizes) for kernel, sizes in launch.LAUNCH_TABLE.items()}
    yield launch.set_blocks
    for kernel, sizes in before.items():
        launch.set_blocks(kernel, **sizes)
