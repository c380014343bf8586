"""The implementations behind the operators, and the one decision which of them serves a call.

A backend is a module with one function per operation; all of them take what `ops` has checked: contiguous float32 or
float64 samples, batch first. Its `refusal` tells why it cannot serve an operator on a device; that is what dispatch,
`backends()`, `noisetilt doctor` and the tests go by.
"""

import os
from dataclasses import dataclass
from types import ModuleType

import torch

from . import compiled as native
from . import cuda, reference, triton
from .extents import Extents

# In order of preference; the reference serves whatever no other does.
_PREFERENCES: dict[str, tuple[ModuleType, ...]] = {
    "cpu": (native, reference),
    "cuda": (cuda, triton, reference),
}

_VARIABLE = "NOISETILT_BACKEND"


def _preferences(device: torch.device) -> tuple[ModuleType, ...]:
    return _PREFERENCES.get(device.type, (reference,)) if FORCED is None else (FORCED,)


def _forced() -> ModuleType | None:
    """The one backend that may serve, if the environment names one."""
    name = os.environ.get(_VARIABLE)
    if not name:
        return None
    by_name = {backend.NAME: backend for backend in (native, cuda, triton, reference)}
    if name not in by_name:
        raise ValueError(f"{_VARIABLE}={name}: there is no such backend; valid: {', '.join(by_name)}")
    return by_name[name]


FORCED = _forced()


@dataclass(frozen=True)
class BackendStatus:
    """Which backend serves a device type, and why the ones preferred to it do not."""

    device: str
    backend: str  # "none" where the one that NOISETILT_BACKEND names does not serve
    detail: str
    refused: dict[str, str]


def backend_for(op: str, device: torch.device, extents: Extents) -> ModuleType:
    """The preferred backend that does not refuse the operator on the device, for arguments of such extents.

    Raises:
        RuntimeError: it is not the one that the environment variable NOISETILT_BACKEND names.
    """
    for backend in _preferences(device):
        reason = backend.refusal(op, device, extents)
        if reason is None:
            return backend
    raise RuntimeError(f"{op}: {_VARIABLE} asks for {backend.NAME}, which cannot serve {device}: {reason}")


def backends() -> dict[str, BackendStatus]:
    """For each device type the backend that serves it, and the reason why each one preferred to it does not.

    Told of `whiten` in the usual sizes; `detail` names what a backend leaves to the next.
    """
    return {device_type: _status(torch.device(device_type)) for device_type in _PREFERENCES}


def _status(device: torch.device) -> BackendStatus:
    refused: dict[str, str] = {}
    for backend in _preferences(device):
        reason = backend.refusal("whiten", device, Extents())
        if reason is None:
            return BackendStatus(device.type, backend.NAME, backend.describe(), refused)
        refused[backend.NAME] = reason
    return BackendStatus(device.type, "none", f"{_VARIABLE} allows no other", refused)
