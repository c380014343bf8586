"""Stand-in for a GPU, for rehearsals of `bench/gpu.sh`. Python imports it at its start, if this folder is on
PYTHONPATH, and it changes the programs that would use the GPU.

The device is the CPU, whose kernels serve in place of those of CUDA and Triton. A stream does nothing. The
clock is the CPU's. A graph records the operations of its capture, and repeats them into the same results.
"""

import contextlib
import faulthandler
import importlib
import os
import sys
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

PROGRAMS = {"bench.gpu.checks", "bench.gpu.sanitize", "bench.gpu", "pytest"}


def simulate() -> None:
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    def on_cpu(value: Any) -> Any:
        there = str(value).startswith("cuda") if isinstance(value, (torch.device, str)) else False
        return torch.device("cpu") if there else value

    class OnCpu(TorchFunctionMode):
        """Put on the CPU what a call puts on the GPU."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.cuda:
                return args[0]
            kwargs = {name: on_cpu(value) for name, value in (kwargs or {}).items()}
            return func(*map(on_cpu, args), **kwargs)

    class Recorder(TorchDispatchMode):
        def __init__(self, calls: list[Any]):
            super().__init__()
            self._calls = calls

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            self._calls.append((func, args, kwargs or {}, result))
            return result

    class Graph:
        def __init__(self, keep_graph: bool = False):
            self.calls: list[Any] = []

        def instantiate(self) -> None:
            pass

        def raw_cuda_graph(self) -> int:
            raise RuntimeError("a simulated graph has no nodes")

        def replay(self) -> None:
            for func, args, kwargs, result in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    class Event:
        def __init__(self, enable_timing: bool = False):
            self.seconds = 0.0

        def record(self, stream: Any = None) -> None:
            self.seconds = time.perf_counter()

        def query(self) -> bool:
            return False  # for tests that a call returns before the device is done

        def elapsed_time(self, end: "Event") -> float:
            return (end.seconds - self.seconds) * 1e3

    class Stream:
        cuda_stream = 0

        def wait_stream(self, other: Any) -> None:
            pass

        def synchronize(self) -> None:
            pass

    @contextlib.contextmanager
    def graph(graph: Graph) -> Iterator[None]:
        with Recorder(graph.calls):
            yield

    @contextlib.contextmanager
    def stream(stream: Stream) -> Iterator[None]:
        yield

    memory = 1 << 30
    device = SimpleNamespace(
        name="simulated GPU", multi_processor_count=132, total_memory=memory, L2_cache_size=1 << 16
    )
    stand_ins = {
        "CUDAGraph": Graph,
        "Event": Event,
        "Stream": Stream,
        "graph": graph,
        "stream": stream,
        "current_stream": lambda *_: Stream(),
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: device.name,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: device,
        "mem_get_info": lambda *_: (memory, memory),
        "memory_allocated": lambda *_: 0,
        **dict.fromkeys(("synchronize", "empty_cache", "set_sync_debug_mode", "_sleep"), lambda *_: None),
    }
    for name, value in stand_ins.items():
        setattr(torch.cuda, name, value)
    OnCpu().__enter__()


def serve_by_the_cpu() -> None:
    """Let the CPU kernels serve under the name of the backend that NOISETILT_BACKEND names."""
    backends = importlib.import_module("noisetilt_kernels.backends")  # the package also has this function
    stand_in = ModuleType("stand_in")
    vars(stand_in).update(vars(backends.cpu))
    vars(stand_in).update(
        NAME=os.environ.get("NOISETILT_BACKEND", "cuda"),
        refusal=lambda *_: None,
        describe=lambda: "the CPU kernels, in place of the GPU's",
    )
    backends.FORCED = stand_in
    backends.cuda._projections = backends.cpu._projections
    backends.library.cuda_failure = None
    backends.library.cuda_build_info = lambda: {"architectures": "9.0"}


if PROGRAMS & set(sys.orig_argv):
    faulthandler.dump_traceback_later = lambda *_, **__: None  # a CPU may need longer than a GPU
    sys.path.insert(0, os.getcwd())  # as `python -m` does later
    simulate()
    serve_by_the_cpu()
