"""Blocks of the Triton kernels other than those of the launch table."""

import pytest

from noisetilt_kernels.triton.launch import LAUNCH_TABLE


def set_blocks(monkeypatch: pytest.MonkeyPatch, kernel: str, **sizes: int) -> None:
    """Until the test ends, the kernel's blocks have these sizes: small ones make many of little work."""
    assert sizes.keys() <= LAUNCH_TABLE[kernel].keys()
    monkeypatch.setitem(LAUNCH_TABLE, kernel, LAUNCH_TABLE[kernel] | sizes)
