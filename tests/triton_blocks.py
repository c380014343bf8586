import pytest

from noisetilt_kernels.triton import launch


def set_blocks(monkeypatch: pytest.MonkeyPatch, kernel: str, **sizes: int) -> None:
    monkeypatch.setitem(launch.LAUNCH_TABLE, kernel, launch.LAUNCH_TABLE[kernel] | sizes)
    launch.set_blocks(kernel)
