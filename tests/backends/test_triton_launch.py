"""Launches of compiled kernels: they pass the arguments of Triton's launch, and are used only where the same
kernel would be launched. The driver or the kernel is a stand-in.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels.backends.triton.launch import Launch, shared_by_warps

SCRIPT = """
from types import SimpleNamespace
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from noisetilt_kernels.backends.triton import fourier, order_stats, tile_stats, transforms, wgnc
from noisetilt_kernels.backends.triton.launch import LAUNCH_TABLE, set_blocks

launched = []


class OnGpu(torch.Tensor):
    is_cuda = True


def launcher(source, metadata):
    def launch(*arguments):
        kept = (bool, int, float, tuple, torch.Tensor)
        found = [a for a in arguments if isinstance(a, kept)]
        launched.append([a.data_ptr() if isinstance(a, torch.Tensor) else a for a in found])

    return launch


triton.runtime.driver.set_active(
    SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        launcher_cls=launcher,
        utils=SimpleNamespace(
            load_binary=lambda *arguments: (0, 1, 32, 0, 1024),
            get_device_properties=lambda device: {
                "max_shared_mem": 232448, "max_num_regs": 65536, "warpSize": 32
            },
            unload_module=lambda module: None,
        ),
    )
)
launches = {
    transforms._plan((1, 1, 1, 8), torch.float64, (1, 8), 3, False, (0.3).hex(), None)[0]: 5,
    order_stats._plan(64, torch.float32, 16, 4, 0, (64, 1, 16), 1).sort: 8,
    order_stats._in_one_launch(2, 64, torch.float32, (2, 16, 4), (2, 4, 16)): 4,
    tile_stats._plan((1, 2, 8, 8), torch.float32, None, (4, 4)): 7,
    fourier._fft_plan(1, 64, torch.float32, (1.0, 2.0), True)[0]: 3,
    wgnc._projection(1, 4, 2, torch.complex64, False): 3,
    wgnc._projection(1, 4, 2, torch.float32, True): 3,
}
with mock.patch("torch.cuda.current_device", lambda: 0):
    for launch, num_tensors in launches.items():
        dtype = torch.float64 if "scale" in launch._kernel.arg_names else torch.float32
        tensors = [torch.zeros(256, dtype=dtype).as_subclass(OnGpu) for _ in range(num_tensors)]
        launch(*tensors)
        assert len(launch._compiled) == 1, "not kept"
        launch(*tensors)
        first, second = launched[-2:]
        assert first == second and len(first) >= num_tensors + 5, (first, second)
    # A kernel that works in place, with fewer elements than threads
    size = LAUNCH_TABLE["project_wgnc_blocks_kernel"]["warps"] * 32 // 4
    set_blocks("project_wgnc_blocks_kernel", blocks=size)
    x = torch.zeros(2 * size + 2).as_subclass(OnGpu)
    before = len(launched)
    try:
        wgnc._projection(1, size, 2, torch.float32, True)(x, x, x)
    except RuntimeError as error:
        message = str(error)
    assert "project_wgnc_blocks_kernel works in place, but two of its 4 warps hold the same" in message
    assert len(launched) == before
print(len(launched))
"""


def test_a_compiled_kernel_gets_the_same_arguments(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(nt.__file__).parents[1]),
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_INTERPRET": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 14


class OnGpu(Tensor):
    """Tensor on the CPU that says it is on a GPU."""

    is_cuda = True


class Kernel:
    """Stand-in for a kernel. `log` lists its launches: "ordinary", or the number of a compiled kernel."""

    fn = SimpleNamespace(__name__="finite_or_nan_kernel")

    def __init__(self, ttgir: str = "") -> None:
        self.log: list[Any] = []
        self.ttgir, self.num_compiled = ttgir, 0

    def compiled(self) -> Any:
        self.num_compiled += 1
        number = self.num_compiled

        class Compiled:
            asm = {"ttgir": self.ttgir}  # noqa: RUF012

            def __getitem__(_, grid: tuple[int, int, int]) -> Any:
                return lambda *arguments: self.log.append(number)

        return Compiled()

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def launch(*arguments: Any, **options: Any) -> Any:
            self.log.append("ordinary")
            return self.compiled()

        return launch

    def warmup(self, *arguments: Any, **options: Any) -> Any:
        return self.compiled()


def test_a_compiled_kernel_serves_only_what_it_was_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    device = 0
    monkeypatch.setattr(torch.cuda, "current_device", lambda: device)
    kernel = Kernel()
    launch = Launch(kernel, 1)
    x = torch.zeros(64).as_subclass(OnGpu)
    y, misaligned, wide = torch.zeros_like(x), x[1:], x.double()
    for tensors in ((x, y), (y, x), (x[4:], y), (misaligned, y), (x, y), (misaligned, x), (y, misaligned)):
        launch(*tensors)
    assert kernel.log == ["ordinary", 1, 1, "ordinary", 1, 2, "ordinary"]
    kernel.log.clear()
    for tensors in ((x, wide), (x, y), (y, wide), (wide, wide)):
        launch(*tensors)
    assert kernel.log == ["ordinary", 1, 4, "ordinary"]
    kernel.log.clear()
    device = 1
    launch(x, y)
    launch(y, x)
    assert kernel.log == ["ordinary", 6]
    launch(*(tensor.as_subclass(Tensor) for tensor in (x, y)))  # in the interpreter
    assert kernel.log == ["ordinary", 6, "ordinary"]


# Layouts of 4 warps, without the parts that do not matter
LAYOUTS = """\
#rows = #ttg.blocked<{sizePerThread = [1, 1], threadsPerWarp = [2, 16], warpsPerCTA = [4, 1]}>
#pairs = #ttg.blocked<{sizePerThread = [1, 1, 2], threadsPerWarp = [2, 16, 1], warpsPerCTA = [4, 1, 1]}>
#line = #ttg.blocked<{sizePerThread = [2], threadsPerWarp = [32], warpsPerCTA = [4]}>
#linear = #ttg.linear<{register = [[1, 0]], lane = [[0, 1], [0, 2]], warp = [[0, 4], [0, 8]], block = []}>
#linear1 = #ttg.linear<{register = [[1, 0]], lane = [[0, 1], [0, 2]], warp = [[0, 4], [0, 0]], block = []}>
"""
UNIQUE = (
    "tt.load %1, %2, %3 : tensor<8x16x!tt.ptr<f32>, #rows> loc(#loc1)",
    "tt.store %1, %2 : tensor<128x16x2x!tt.ptr<f32>, #pairs>",
    "tt.load %1 {a = 1 : i32} : tensor<256x!tt.ptr<f64>, #line> loc(#loc1)",
    "tt.store %1, %2 : tensor<2x16x!tt.ptr<f32>, #linear> loc(#loc1)",
    "%2 = amdg.buffer_load %1[%2], %3 : tensor<8x16xf32, #rows> loc(#loc1)",
    "ttg.local_load %1 : !ttg.memdesc<4x16xf32, #shared> -> tensor<4x16xf32, #rows>",  # shared memory
)
SHARED = (
    "tt.load %1, %2, %3 : tensor<4x16x!tt.ptr<f32>, #rows> loc(#loc1)",
    "tt.store %1, %2 : tensor<4x16x2x!tt.ptr<f32>, #pairs> loc(#loc1)",
    "tt.load %1 : tensor<128x!tt.ptr<f64>, #line> loc(#loc1)",
    "tt.store %1, %2 : tensor<2x16x!tt.ptr<f32>, #linear1> loc(#loc1)",
    "tt.load %1 : tensor<16x!tt.ptr<f32>, #ttg.slice<{dim = 0, parent = #rows}>> loc(#loc1)",
    "tt.load %1 : !tt.ptr<f32> loc(#loc1)",
    "%2 = amdg.buffer_load %1[%2], %3 : tensor<4x16xf32, #rows> loc(#loc1)",
    "tt.store %1, %2 : tensor<8x16x!tt.ptr<f32>, #unknown> loc(#loc1)",
)


def test_elements_that_two_warps_hold_are_found() -> None:
    assert shared_by_warps(LAYOUTS + "\n".join(UNIQUE)) is None
    for line in SHARED:
        assert shared_by_warps(LAYOUTS + "\n".join((*UNIQUE, line))), line


def test_a_kernel_in_place_is_not_launched_if_two_warps_hold_an_element(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    x = torch.zeros(64).as_subclass(OnGpu)
    unsafe = Kernel(LAYOUTS + SHARED[0])
    with pytest.raises(RuntimeError, match=r"two of its 4 warps .* a tensor 4x16 with the layout blocked"):
        Launch(unsafe, 1, in_place=True)(x, x)
    assert unsafe.log == []
    Launch(unsafe, 1)(x, torch.zeros_like(x))  # not in place
    safe = Kernel(LAYOUTS + UNIQUE[0])
    Launch(safe, 1, in_place=True)(x, x)
    assert (unsafe.log, safe.log) == (["ordinary"], ["ordinary"])
