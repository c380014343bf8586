"""Launches of a compiled kernel pass the same arguments as Triton's launch. The driver is a stand-in."""

import os
import subprocess
import sys
from pathlib import Path

import noisetilt_kernels as nt

SCRIPT = """
from types import SimpleNamespace
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from noisetilt_kernels.backends.triton import order_stats, tile_stats, transforms, wgnc

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
    transforms._plan((1, 1, 1, 8), torch.float64, (1, 8), 3, False, (0.3).hex())[0]: 2,
    order_stats._plan(64, torch.float32, 16, 4, False, (64, 1, 16), 1).sort: 8,
    tile_stats._plan((1, 2, 8, 8), torch.float32, None, (4, 4)): 7,
    wgnc._projection(1, 4, 2, torch.complex64, False): 2,
}
with mock.patch("torch.cuda.current_device", lambda: 0):
    for launch, num_tensors in launches.items():
        dtype = torch.float64 if num_tensors == 2 and "scale" in launch._kernel.arg_names else torch.float32
        tensors = [torch.zeros(256, dtype=dtype).as_subclass(OnGpu) for _ in range(num_tensors)]
        launch(*tensors)
        assert list(launch._compiled) == [0], "not kept"
        launch(*tensors)
        first, second = launched[-2:]
        assert first == second and len(first) >= num_tensors + 5, (first, second)
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
    assert int(done.stdout) == 8
