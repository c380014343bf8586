"""Tensors that are kept for later calls are dropped while another stream still reads them.

The allocator has exactly the memory free that was dropped, if it does not wait for the other stream. Tensors
full of NaN then take it at once.
"""

from collections.abc import Callable

import pytest
import torch
from bits import assert_same_bits
from device import BACKEND, DEVICE, ops
from inputs import noise, tables, values
from torch import Tensor

from noisetilt_kernels.backends import cuda
from noisetilt_kernels.backends.tables import cached_table

SLEEP = 200_000_000  # cycles, about 100 ms


def drop_everything() -> None:
    """Drop the projections and tables that are kept, as if other calls had taken their place."""
    if BACKEND == "cuda":
        cuda._projections._kept.cache_clear()
    else:
        from noisetilt_kernels.backends.triton import operations

        operations._projections._kept.cache_clear()
    cached_table.cache_clear()


def fill_free_memory() -> list[Tensor]:
    """Return NaN in many tensors of the sizes of tables, on the current stream."""
    return [
        torch.full((2**exponent,), torch.nan, device=DEVICE) for exponent in range(4, 20) for _ in range(20)
    ]


def on_a_busy_stream(call: Callable[[], Tensor]) -> tuple[Tensor, torch.cuda.Event]:
    """Return the result of a call on another stream, which begins its work only after a while, and an event
    before that work.
    """
    stream, event = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP)
        event.record()
        result = call()
    return result, event


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "whiten": lambda x: ops.whiten(x, "auto", 0.0321),
    "project_tile_stats": lambda x: ops.project_tile_stats(x, [4, 4], [4, 16], 0.0321),
}


@pytest.mark.parametrize("name", CALLS)
def test_tables_that_are_dropped_while_another_stream_reads_them(name: str) -> None:
    x = noise(2, (4, 16, 16)).to(DEVICE)
    expected = CALLS[name](x).clone()
    torch.cuda.synchronize()
    result, event = on_a_busy_stream(lambda: CALLS[name](x))
    drop_everything()
    full = fill_free_memory()
    if event.query():
        pytest.skip("the other stream was too early: nothing was tested")
    torch.cuda.synchronize()
    assert_same_bits(result, expected)
    assert full


@pytest.mark.skipif(BACKEND != "cuda", reason="only the CUDA library keeps rank ranges of a user's table")
def test_a_users_table_that_is_deleted_while_another_stream_reads_its_rank_ranges() -> None:
    """The table itself is kept here: it is the user's duty."""
    x, pair = (
        values("1/k", (2, 4096)).to(DEVICE),
        [bounds.to(DEVICE) for bounds in tables("typical", 1024, 4)],
    )
    expected = ops.project_2os(x, *pair)
    torch.cuda.synchronize()
    result, event = on_a_busy_stream(lambda: ops.project_2os(x, *pair))
    owners = [bounds.detach() for bounds in pair]  # they own the memory, and are other tensors
    pair.clear()
    full = fill_free_memory()
    if event.query():
        pytest.skip("the other stream was too early: nothing was tested")
    torch.cuda.synchronize()
    assert_same_bits(result, expected)
    assert full
    assert owners


@pytest.mark.parametrize("name", CALLS)
def test_tables_that_are_dropped_after_a_capture(name: str) -> None:
    x = noise(2, (4, 16, 16)).to(DEVICE)
    expected = CALLS[name](x).clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = CALLS[name](x)
    drop_everything()
    full = fill_free_memory()
    for _ in range(2):
        result.fill_(torch.nan)
        graph.replay()
        assert_same_bits(result, expected)
    assert full
