"""The implementations behind the operators, and the one decision which of them serves a device.

A backend is a module with one function per operation; all of them take what `ops` has checked:
contiguous float32 or float64 samples, batch first.
"""

from dataclasses import dataclass
from functools import cache
from types import ModuleType

from . import native, reference

# In order of preference; the reference serves whatever no other does.
_BACKENDS: tuple[ModuleType, ...] = (native, reference)
_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class BackendStatus:
    """Which backend serves a device type, and why the ones preferred to it do not."""

    device: str
    backend: str
    detail: str
    refused: dict[str, str]


@cache
def backend_for(device_type: str) -> ModuleType:
    """The preferred backend that does not refuse the device type ("cpu", "cuda", ...)."""
    return next(backend for backend in _BACKENDS if backend.refusal(device_type) is None)


def backends() -> dict[str, BackendStatus]:
    """For each device type the backend that serves it, and the reason why each one preferred to it does not."""
    table = {}
    for device_type in _DEVICES:
        serving = backend_for(device_type)
        preferred = _BACKENDS[: _BACKENDS.index(serving)]
        refused = {backend.NAME: backend.refusal(device_type) for backend in preferred}
        table[device_type] = BackendStatus(device_type, serving.NAME, serving.describe(device_type), refused)
    return table
