"""Lifetime on a GPU of what is kept for later calls, with a model of PyTorch's allocator and of streams.

A kernel reads its tensors when its stream runs, perhaps long after the call. Until then nobody else may get
their memory.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from noisetilt_kernels.backends import tables
from noisetilt_kernels.backends.tables import ExaminedTables, Kept, KeptResults, Projections, cached_table

GPU = torch.device("cuda", 0)


@dataclass(eq=False)
class Stream:
    """Stream that does its work only when the host waits for it."""

    stream_id: int
    queued: list[Callable[[], None]] = field(default_factory=list)

    def synchronize(self) -> None:
        while self.queued:
            self.queued.pop(0)()


@dataclass(eq=False)
class Block:
    """Memory: what it holds, and who may get it when it is free."""

    stream: Stream
    content: str = ""
    recorded: list[Stream] = field(default_factory=list)
    awaited: int = 0  # streams whose work at the release is not done
    free: bool = False

    def release(self) -> None:
        self.free, self.awaited = True, len(self.recorded)
        for stream in self.recorded:
            stream.queued.append(self._done)

    def _done(self) -> None:
        self.awaited -= 1


class OnGpu(Tensor):
    """Tensor without values that says it is on a GPU."""

    block: Block
    content: str
    device, is_cuda = GPU, True  # type: ignore[assignment]

    def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
        self.block.recorded.append(stream)


class Model:
    """A GPU. Free memory serves the stream that it was made on at once, but for the recorded streams."""

    def __init__(self) -> None:
        self.streams = [Stream(number) for number in range(3)]
        self.current = self.streams[0]
        self.capturing = False
        self.blocks: list[Block] = []
        self.wrong: list[str] = []

    def on(self, number: int) -> None:
        self.current = self.streams[number]

    def tensor(self, content: str) -> OnGpu:
        """Return a new tensor, into which a kernel on the current stream writes."""
        usable = (b for b in self.blocks if b.free and b.awaited == 0 and b.stream is self.current)
        block = next(usable, None)
        if block is None:
            block = Block(self.current)
            self.blocks.append(block)
        block.free, block.recorded = False, []
        tensor = torch.zeros(()).as_subclass(OnGpu)
        tensor.block, tensor.content = block, content
        weakref.finalize(tensor, block.release)
        self.current.queued.append(lambda: setattr(block, "content", content))
        return tensor

    def read(self, tensor: OnGpu) -> None:
        """Enqueue a kernel on the current stream that reads the tensor. It does not own the tensor."""
        block, content = tensor.block, tensor.content

        def kernel() -> None:
            if block.content != content:
                self.wrong.append(f"{content} has become {block.content}")

        self.current.queued.append(kernel)

    def finish(self) -> list[str]:
        """Let all streams do their work, the others first. Return what their kernels found wrong."""
        for stream in self.streams:
            stream.synchronize()
        return self.wrong


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    model = Model()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: model.current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: model.capturing)
    monkeypatch.setattr(tables, "_in_graphs", set())
    yield model


@pytest.fixture(params=["recorded", "not recorded"])
def recorded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return False after `Kept.read` has been replaced by one that records nothing."""
    if request.param == "not recorded":
        monkeypatch.setattr(Kept, "read", lambda kept: kept._value)
    return bool(request.param == "recorded")


def kept_results(gpu: Model, most: int = 1) -> KeptResults[tuple[str, list[OnGpu]]]:
    return KeptResults(lambda name, device: (name, [gpu.tensor(name)]), most)


def test_a_result_is_dropped_while_another_stream_reads_it(gpu: Model, recorded: bool) -> None:
    results = kept_results(gpu)
    results("first", GPU)
    gpu.on(1)
    gpu.read(results("first", GPU)[1][0])
    gpu.on(0)
    results("second", GPU)  # the first is dropped when the second is there
    results("third", GPU)
    assert (gpu.finish() == []) == recorded


def test_a_result_is_dropped_between_its_use_and_the_launch(gpu: Model, recorded: bool) -> None:
    """Another thread drops the result. The caller owns it until the kernel is enqueued."""
    results = kept_results(gpu)
    results("first", GPU)
    gpu.on(1)
    _, (tensor,) = results("first", GPU)
    gpu.on(0)
    results("second", GPU)
    gpu.on(1)
    gpu.read(tensor)
    del tensor
    gpu.on(0)
    results("third", GPU)
    results("fourth", GPU)
    assert (gpu.finish() == []) == recorded


def test_projections(gpu: Model, recorded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "projection_tables", lambda *key: ([], [str(key[4])]))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    projections = Projections(lambda _, __, names: [gpu.tensor(name) for name in names])
    x = gpu.tensor("x")

    def tables_of(alpha: float) -> OnGpu:
        return projections(x, (), (), (), alpha)[0]

    tables_of(0.5)
    gpu.on(1)
    gpu.read(tables_of(0.5))
    gpu.on(0)
    for k in range(33):
        tables_of(0.25 / (k + 1))
    assert (gpu.finish() == []) == recorded
    assert len(gpu.blocks) <= 2 + 33, "free memory is used again"


def test_tables_are_kept_in_the_same_way() -> None:
    """The reference reads them without `Projections`."""
    assert isinstance(cached_table, KeptResults)


@pytest.mark.parametrize("ending", ["the table is deleted", "the table is changed"])
def test_rank_ranges_of_a_users_table(gpu: Model, ending: str, recorded: bool) -> None:
    examine = ExaminedTables(lambda lower, upper: gpu.tensor("ranges"))
    lower, upper = torch.zeros(4, 1), torch.ones(4, 1)
    examine(lower, upper)
    gpu.current.synchronize()  # the host has looked for faults
    gpu.on(1)
    gpu.read(examine(lower, upper))
    gpu.on(0)
    if ending == "the table is deleted":
        del lower
    else:
        lower.add_(0.5)
        examine(lower, upper)
    gpu.tensor("something else")
    gpu.tensor("something else")
    assert (gpu.finish() == []) == recorded


def test_a_graph_may_be_replayed_at_any_time(gpu: Model, recorded: bool) -> None:
    results = kept_results(gpu)
    results("first", GPU)
    gpu.on(1)
    gpu.capturing = True
    _, (tensor,) = results("first", GPU)
    gpu.read(tensor)
    replay = gpu.current.queued.pop()
    gpu.capturing = False
    del tensor
    gpu.on(0)
    for name in ("second", "third"):
        results(name, GPU)
        gpu.finish()
    replay()
    assert (gpu.wrong == []) == recorded


def test_nothing_is_made_during_a_capture(gpu: Model) -> None:
    gpu.capturing = True
    results = kept_results(gpu)
    with pytest.raises(RuntimeError, match="a CUDA graph is being captured"):
        results("first", GPU)
    gpu.capturing = False
    assert results("first", GPU)[0] == "first"


def test_a_stream_is_recorded_once(gpu: Model) -> None:
    results = kept_results(gpu)
    for number in (0, 1, 1, 2, 0, 1):
        gpu.on(number)
        _, (tensor,) = results("first", GPU)
    assert [stream.stream_id for stream in tensor.block.recorded] == [0, 1, 2]


def test_memory_is_used_again_when_its_readers_are_done(gpu: Model) -> None:
    results = kept_results(gpu)
    results("first", GPU)
    gpu.on(1)
    gpu.read(results("first", GPU)[1][0])
    gpu.on(0)
    results("second", GPU)
    assert len(gpu.blocks) == 2
    assert gpu.finish() == []
    results("third", GPU)
    assert len(gpu.blocks) == 2


def test_tensors_on_the_cpu_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "current_stream")
    assert Kept((torch.zeros(2), ["text"])).read()[1] == ["text"]
