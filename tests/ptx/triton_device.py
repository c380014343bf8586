"""A stand-in for Triton's driver: kernels are compiled to PTX, which is executed on CPU tensors."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from .build import load

MAX_SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}
"""Shared memory of a block, by compute capability."""
FLOATS = {"fp32": "<f", "fp64": "<d"}


class Device:
    """A GPU for Triton.

    Attributes:
        machine: the interpreter, with its settings.
        residents: number of blocks that run at the same time.
        edit: function that changes the PTX of a kernel before it is loaded, to plant faults.
    """

    def __init__(self, capability: int) -> None:
        self.interpreter = load("interpreter")
        self.machine = self.interpreter.Machine()
        self.target = GPUTarget("cuda", capability, 32)
        self.residents = 2
        self.edit = lambda ptx: ptx

    # ---- what Triton asks of a driver ----

    def driver(self) -> SimpleNamespace:
        properties = {"max_shared_mem": MAX_SHARED_BYTES[self.target.arch], "multiprocessor_count": 132}
        return SimpleNamespace(
            get_current_target=lambda: self.target,
            get_current_device=lambda: self,  # Triton keeps compiled kernels by device
            get_current_stream=lambda device: 0,
            launcher_cls=lambda source, metadata: self.launcher(source, metadata),
            utils=SimpleNamespace(
                get_device_properties=lambda device: properties,
                load_binary=self.load_binary,
                unload_module=lambda module: None,
            ),
        )

    def load_binary(self, name: str, binary: bytes, shared: int, device: object) -> tuple[Any, ...]:
        kernel = self.interpreter.Kernel(self.edit(binary.decode()))
        return kernel, kernel, 0, 0, 1024  # module, function, registers, spills, threads at most

    def launcher(self, source: Any, metadata: Any) -> Any:
        types = list(source.signature.values())

        def launch(x: int, y: int, z: int, stream: int, kernel: Any, *rest: Any) -> None:
            *_, arguments = rest[:4], rest[4:]  # metadata and hooks come first
            given = [value for value, kind in zip(arguments, types, strict=True) if kind != "constexpr"]
            kinds = [kind for kind in types if kind != "constexpr"]
            words = [word_of(value, kind) for value, kind in zip(given, kinds, strict=True)]
            words += [0] * (kernel.num_parameters - len(words))  # scratch memory, which no kernel here has
            assert (y, z) == (1, 1)
            with memory_of(self.machine, given):
                self.machine.run(kernel, x, metadata.num_warps * 32, metadata.shared, self.residents, words)

        return launch


def word_of(value: Any, kind: str) -> int:
    """Return the bits of an argument."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    if kind in FLOATS:
        return int.from_bytes(struct.pack(FLOATS[kind], value), "little")
    return int(value) & (2**64 - 1)


@contextmanager
def memory_of(machine: Any, arguments: list[Any]) -> Iterator[None]:
    """Let kernels access the memory of all tensors among the arguments."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in arguments
        if isinstance(tensor, torch.Tensor)
    }
    for address, size in storages.items():
        machine.add_memory(address, size)
    try:
        yield
    finally:
        for address in storages:
            machine.remove_memory(address)


def ptx_as_binary(*of: Any) -> tuple[str, str] | None:
    """Take the PTX for the machine code, which nobody needs here: a hook of Triton."""
    if not of:
        return "ptx", "ptx"  # key and hash of this change
    _, stages, *_ = of
    stages["cubin"] = lambda ptx, metadata: ptx.encode()
    return None


@contextmanager
def triton_device(capability: int, cache: str) -> Iterator[Device]:
    """Make a device Triton's active one.

    Args:
        capability: compute capability, such as 90.
        cache: folder of compiled kernels.
    """
    device = Device(capability)
    active = triton.runtime.driver._active
    triton.runtime.driver.set_active(device.driver())
    try:
        with (
            mock.patch.object(triton.knobs.runtime, "add_stages_inspection_hook", ptx_as_binary),
            mock.patch.dict("os.environ", TRITON_CACHE_DIR=cache),
        ):
            yield device
    finally:
        triton.runtime.driver._active = active
