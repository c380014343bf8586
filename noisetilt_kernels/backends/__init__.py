"""Backends, the implementations of the operators, and the choice of one for each call.

A backend is a module with one function per operation. The functions take arguments that `ops` has checked:
contiguous float32 or float64 samples, batch first. The function `refusal` of a backend returns the reason why
it cannot serve an operator on a device. The dispatch, `backends()`, `noisetilt doctor` and the tests all call
`refusal`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from ..checks import NoisetiltError
from . import cpu, cuda, reference, triton
from .tables import Extents

# In order of preference. The reference serves every call that the others refuse.
_PREFERENCES: dict[str, tuple[ModuleType, ...]] = {
    "cpu": (cpu, reference),
    "cuda": (cuda, triton, reference),
}

_VARIABLE = "NOISETILT_BACKEND"


def _preferences(device: torch.device) -> tuple[ModuleType, ...]:
    return _PREFERENCES.get(device.type, (reference,)) if FORCED is None else (FORCED,)


class BackendError(NoisetiltError, RuntimeError):
    """NOISETILT_BACKEND names a backend that cannot serve the call."""


@dataclass(frozen=True)
class _Unknown:
    """Stands for a backend that NOISETILT_BACKEND names and that does not exist. It refuses every call."""

    NAME: str

    def refusal(self, op: str, device: torch.device, extents: Extents) -> str:
        return f"there is no backend of this name; valid: {', '.join(_BY_NAME)}"


_BY_NAME = {backend.NAME: backend for backend in (cpu, cuda, triton, reference)}


def _forced() -> Any:
    """Return the backend that NOISETILT_BACKEND names, the only one allowed, or None if it is not set."""
    name = os.environ.get(_VARIABLE)
    return _BY_NAME.get(name, _Unknown(name)) if name else None


FORCED = _forced()


def available(device: torch.device) -> list[ModuleType]:
    """Return the backends that can serve samples of the usual sizes on a device, in order of preference."""
    usual = Extents()
    return [one for one in _preferences(device) if one.refusal("whiten", device, usual) is None]


@contextmanager
def forced(backend: ModuleType) -> Iterator[None]:
    """Choose this backend alone within the block, as NOISETILT_BACKEND does for a process."""
    global FORCED
    before, FORCED = FORCED, backend
    try:
        yield
    finally:
        FORCED = before


def check_forced() -> None:
    """Raise BackendError if NOISETILT_BACKEND names no backend. Call this before heavy work."""
    if isinstance(FORCED, _Unknown):
        raise BackendError(f"{_VARIABLE}={FORCED.NAME}: {FORCED.refusal('', torch.device('cpu'), Extents())}")


@dataclass(frozen=True)
class BackendStatus:
    """Backend that serves a device type, and the reason why each preferred one does not.

    Attributes:
        device: device type, "cpu" or "cuda".
        backend: "cpu", "cuda", "triton" or "reference"; "none" if the backend that NOISETILT_BACKEND names
            cannot serve.
        detail: description of the backend, with the calls that it leaves to the next one.
        refused: reason why each preferred backend does not serve, by name.
    """

    device: str
    backend: str
    detail: str
    refused: dict[str, str]


def backend_for(op: str, device: torch.device, extents: Extents) -> ModuleType:
    """Return the preferred backend that serves the operator on the device, for arguments of these sizes.

    Raises:
        BackendError: NOISETILT_BACKEND names a backend that cannot serve the call.
    """
    check_forced()
    for backend in _preferences(device):
        reason = backend.refusal(op, device, extents)
        if reason is None:
            return backend
    raise BackendError(f"{op}: {_VARIABLE} asks for {backend.NAME}, which cannot serve {device}: {reason}")


def backends() -> dict[str, BackendStatus]:
    """Return for "cpu" and "cuda" the backend that serves, and the reason why each preferred one does not.

    The status is that of `whiten` for samples of the usual sizes. `detail` names the calls that a backend
    leaves to the next one.
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
