"""Operators on the GPU within PyTorch: streams, graphs, devices, compilation, gradients, races."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bits import assert_same_bits
from device import BACKEND, CASES, DEVICE, LINEAR, PROJECTIONS, Case, assert_agrees, on_cpu, ops
from inputs import noise, tables, values
from torch import Tensor

from bench.inputs import power_law
from noisetilt_kernels.backends import reference

DISTRIBUTIONS = ("1/k", "normal", "few values")
SLEEP = 200_000_000  # cycles, about 100 ms
TWO_STREAMS_SECONDS = 40 if BACKEND == "cuda" else 120  # Triton compiles


def check(case: Case, actual: Tensor, expected: Tensor, context: str = "") -> None:
    """Assert equal bits, for results of the same batch size."""
    assert_same_bits(actual.cpu(), expected.cpu(), context)


# ---- streams ----


@pytest.mark.parametrize("name", CASES)
def test_a_warm_call_does_not_wait_for_the_device(name: str) -> None:
    case, x = CASES[name], CASES[name].input()
    expected = case(x)
    case(x)  # makes memory for another result available
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(SLEEP)
        result = case(x)
        event = torch.cuda.Event()
        event.record()
        waited = event.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not waited, "the call returned only after earlier work on the stream was done"
    check(case, result, expected)


@pytest.mark.parametrize("name", CASES)
def test_the_current_stream_is_used(name: str) -> None:
    """Operators wait for earlier work on the current stream, which writes their input."""
    case, good = CASES[name], CASES[name].input()
    expected = case(good)
    x = torch.full_like(good, torch.nan)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP)
        x.copy_(good)
        result = case(x)
        x.fill_(torch.nan)
    stream.synchronize()
    check(case, result, expected)


def test_two_streams_at_once() -> None:
    """Launches on two streams do not block each other. Runs in another process, which may deadlock."""
    command = [sys.executable, str(Path(__file__).parent / "two_streams.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=TWO_STREAMS_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired as expired:
        pytest.fail(
            f"two_streams.py did not end within {TWO_STREAMS_SECONDS} s; it printed: {expired.stdout!r}"
        )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", CASES)
def test_another_device_than_the_current_one(name: str) -> None:
    case, x = CASES[name], CASES[name].input()
    expected = case(x)
    with torch.cuda.device(0):
        result = case(x.to("cuda:1"))
        assert torch.cuda.current_device() == 0
    assert result.device == torch.device("cuda:1")
    check(case, result, expected)


def test_tables_of_another_device_are_an_error() -> None:
    x, pair = values("normal", (1, 1200)), tables("typical", 300, 4)
    there = [t.to(DEVICE) for t in pair]
    for arguments in ((x.to(DEVICE), *pair), (x.to(DEVICE), there[0], pair[1]), (x, *there)):
        with pytest.raises(ValueError, match=r"project_2os: (lower|upper) is on .*, x on "):
            ops.project_2os(*arguments)


# ---- graphs ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_graphs(name: str, dtype: torch.dtype) -> None:
    """A graph is captured once and replayed on changing inputs."""
    case = CASES[name]
    inputs = [case.input(name=distribution, dtype=dtype) for distribution in DISTRIBUTIONS]
    expected = [case(x) for x in inputs]
    x = inputs[0].clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = case(x)
    for _ in range(3):
        for k, y in enumerate(inputs):
            x.copy_(y)
            result.fill_(torch.nan)
            graph.replay()
            check(case, result, expected[k], DISTRIBUTIONS[k])
    kept = result.clone()
    case(inputs[0])
    check(case, result, kept, "after a call outside of the graph")


def test_many_calls_in_one_graph() -> None:
    whiten, x = CASES["whiten"], CASES["whiten"].input(1)
    expected = whiten(whiten(whiten(x)))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = whiten(whiten(whiten(x)))
    for _ in range(5):
        graph.replay()
    check(whiten, result, expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, alpha: ops.whiten(x, "auto", alpha),
        lambda x, alpha: ops.project_tile_stats(x, [4, 4], [4, 16], alpha),
    ],
    ids=["whiten", "project_tile_stats"],
)
def test_tables_are_not_made_during_a_capture(call: Callable[[Tensor, float], Tensor]) -> None:
    """The error comes before anything is enqueued. After an ordinary call on the stream, capture works."""
    x, alpha = CASES["whiten, small"].input(), 0.0123  # not yet in the table cache
    torch.cuda.synchronize()
    with (
        pytest.raises(RuntimeError, match="a CUDA graph is being captured"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        call(x + 1, alpha)
    expected = call(x, alpha)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call(x, alpha)
    graph.replay()
    assert_same_bits(result, expected)


# ---- layouts ----

STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "expanded": lambda x: x[:1].expand_as(x),
    "every other": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "at an odd place": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view_as(x),
}


@pytest.mark.parametrize("stride", STRIDED)
@pytest.mark.parametrize("name", CASES)
def test_strided_input(name: str, stride: str) -> None:
    case = CASES[name]
    x = STRIDED[stride](case.input(3))
    before = x.clone()
    result = case(x)
    check(case, result, case(x.clone(memory_format=torch.contiguous_format)))
    assert_same_bits(x, before, "the input")
    assert result.is_contiguous()


@pytest.mark.parametrize("name", CASES)
def test_empty_batch(name: str) -> None:
    result = CASES[name](CASES[name].input()[:0])
    assert (result.shape, result.device.type) == ((0, *CASES[name].shape), DEVICE.type)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.has_cufft])
def test_the_batch_size_changes_no_bit(name: str) -> None:
    case, x = CASES[name], CASES[name].input(9)
    together = case(x)
    for batch in (1, 2, 3, 4, 5, 8):
        check(case, case(x[:batch].clone()), together[:batch], f"the first {batch} of 9")


# ---- compilation, gradients ----


@pytest.mark.parametrize("name", CASES)
def test_compiles_into_one_graph(name: str) -> None:
    case, x = CASES[name], CASES[name].input()
    case(x)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: case.op(x * 2, *arguments) + 1, fullgraph=True, backend="aot_eager")
    arguments = [a.to(DEVICE) if isinstance(a, Tensor) else a for a in case.args]
    check(case, compiled(x), case(x * 2) + 1)


def test_inductor() -> None:
    torch._dynamo.reset()
    whiten, x = CASES["whiten"], CASES["whiten"].input(1)
    compiled = torch.compile(lambda x: torch.relu(whiten.op(x * 2)) + 1, fullgraph=True)
    check(whiten, compiled(x), torch.relu(whiten(x * 2)) + 1)


@pytest.mark.parametrize("name", LINEAR)
def test_gradients_of_linear_operators(name: str) -> None:
    case = CASES[name]
    x = case.input(dtype=torch.float64).requires_grad_()
    weight = case.input(name="normal", dtype=torch.float64)
    (case(x) * weight).sum().backward()
    there = x.detach().cpu().requires_grad_()
    (on_cpu(case.op, there, *case.args, backend=reference) * weight.cpu()).sum().backward()
    assert x.grad is not None and there.grad is not None
    assert_agrees(x.grad, there.grad)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_backpropagation_through_a_projection_is_refused(name: str) -> None:
    case, x = CASES[name], CASES[name].input().requires_grad_()
    result = case(x)
    with pytest.raises(NotImplementedError, match=r"has no gradient: it is a projection.*detach"):
        result.abs().sum().backward()
    check(case, case(x.detach()), result.detach())
    with torch.inference_mode():
        check(case, case(x.detach()).clone(), result.detach(), "inference mode")


# ---- races ----


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("name", CASES)
def test_results_are_the_same_every_time(name: str, distribution: str, batch: int) -> None:
    case, x = CASES[name], CASES[name].input(batch, distribution)
    first = case(x)
    different = sum((torch.view_as_real(y) if y.is_complex() else y).isnan().any() for y in [first])
    for _ in range(20):
        again = case(x)
        different = different + (again != first).sum()
    assert int(different) == 0


def test_results_of_videos_are_the_same_every_time() -> None:
    for x in (power_law(1.0, (336, 60, 104)).float()[None], noise(1, (336, 60, 104))):
        x = x.to(DEVICE)
        first = torch.ops.noisetilt.whiten(x)
        for _ in range(10):
            assert_same_bits(torch.ops.noisetilt.whiten(x), first)


@pytest.mark.parametrize("name", ["whiten", "project_2os", "butterfly", "project_wgnc_blocks"])
def test_results_are_the_same_beside_other_work(name: str) -> None:
    case, x = CASES[name], CASES[name].input(2)
    expected = case(x)
    a = torch.randn(4096, 4096, device=DEVICE)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    results = []
    for _ in range(30):
        with torch.cuda.stream(stream):
            a = (a @ a).clamp_(-1, 1)
        results.append(case(x))
    torch.cuda.synchronize()
    for result in results:
        check(case, result, expected)


def test_calls_leave_no_memory_behind() -> None:
    for name, case in CASES.items():
        x = case.input()
        case(x)
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            case(x)
        assert torch.cuda.memory_allocated() == before, name
