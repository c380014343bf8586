"""Which backend serves, why the others do not, and how one is forced."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bits import assert_same_bits
from every_operator import assert_bits_of_the_kernels, call_every_operator

import noisetilt_kernels as nt
from noisetilt_kernels.backends import Extents, backend_for, cuda, native, reference, triton
from noisetilt_kernels.config import Sample, resolve_preset

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda"), torch.device("meta")
OPERATIONS = (
    "whiten",
    "project_2os",
    "project_tile_stats",
    "project_wgnc",
    "project_wgnc_blocks",
    "compact_fourier",
    "butterfly",
    "hadamard_transform",
)
ALL = (native, cuda, triton, reference)
SOURCES = Path(nt.__file__).parents[1]


@pytest.mark.parametrize("backend", ALL, ids=lambda backend: backend.NAME)
def test_every_backend_has_every_operation(backend) -> None:
    if backend is triton and (reason := triton.refusal("whiten", CPU, Extents())):
        pytest.fail(reason)
    for operation in OPERATIONS:
        assert callable(getattr(backend, operation))


def test_each_backend_refuses_what_it_is_not_for() -> None:
    assert "for the CPU, not for cuda" in native.refusal("whiten", CUDA, Extents())
    assert "not for cpu" in cuda.refusal("whiten", CPU, Extents())
    assert "no Triton kernels for meta" in triton.refusal("whiten", META, Extents())
    for device in (CPU, CUDA, META):
        assert reference.refusal("whiten", device, Extents()) is None


def test_the_choice_agrees_with_the_refusals() -> None:
    for device in (CPU, CUDA):
        for op in OPERATIONS:
            chosen = backend_for(op, device, Extents())
            assert chosen.refusal(op, device, Extents()) is None
        status = nt.backends()[device.type]
        assert status.backend == chosen.NAME
        assert all(status.refused.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
def test_triton_is_not_chosen_on_the_cpu_unless_it_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton.refusal("whiten", CPU, Extents()) is None
    assert backend_for("whiten", CPU, Extents()) is native
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "compiles for GPUs" in triton.refusal("whiten", CPU, Extents())


def test_triton_serves_gpus_that_it_compiles_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with one GPU, of the given capability, and a torch built for it."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert "a GPU has 7.5" in triton.refusal("whiten", CUDA, Extents())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert triton.refusal("whiten", CUDA, Extents()) is None
    backend_for.cache_clear()
    try:
        assert backend_for("whiten", CUDA, Extents()) is triton
        assert backend_for("project_wgnc", CUDA, Extents(block_size=8192)) is reference
        assert backend_for("project_tile_stats", CUDA, Extents(tile_size=1 << 20)) is reference
        assert backend_for("project_2os", CUDA, Extents(sample_size=(1 << 30) + 1)) is reference
        assert list(nt.backends()["cuda"].refused) == ["cuda"]
    finally:
        backend_for.cache_clear()


@pytest.mark.parametrize(("version", "served"), [("3.5.1", False), ("3.6.0", True), ("3.10.0", True), ("4.0.0", True)])
def test_triton_must_be_new_enough(version: str, served: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_version", lambda: version)
    triton._refused_installation.cache_clear()
    try:
        reason = triton._refused_installation()
        assert reason is None if served else f"Triton {version} is installed" in reason
    finally:
        triton._refused_installation.cache_clear()


def test_without_triton_the_refusal_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    triton._refused_installation.cache_clear()
    try:
        assert "pip install" in triton._refused_installation()
    finally:
        triton._refused_installation.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
@pytest.mark.parametrize("name", ["triton", "reference"])
def test_a_forced_backend_serves_every_operator(name: str, tmp_path: Path) -> None:
    """Under torch.compile(fullgraph=True) as well."""
    outcome = call_every_operator(tmp_path, SOURCES, NOISETILT_BACKEND=name, TRITON_INTERPRET="1")
    assert outcome.report["backends"]["cpu"] == [name, {}]
    assert outcome.report["warnings"] == []
    assert_bits_of_the_kernels(outcome)
    x = outcome.inputs["x"]
    config = resolve_preset("auto", Sample(*x.shape[1:]), 1e-4)
    assert_same_bits(outcome.results["whiten"], reference.whiten(x, config))  # with torch's rfft both, to the bit


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)


CALL = "import torch, noisetilt_kernels as nt; nt.whiten(torch.randn(64))"


@pytest.mark.skipif(torch.cuda.is_available(), reason="what cannot serve depends on the machine")
@pytest.mark.parametrize(
    ("name", "reason"),
    [("cuda", "its kernels are for CUDA devices, not for cpu"), ("triton", "Triton compiles for GPUs")],
)
def test_a_forced_backend_that_cannot_serve_is_an_error(name: str, reason: str) -> None:
    done = python(CALL, NOISETILT_BACKEND=name, TRITON_INTERPRET="0")
    last = done.stderr.splitlines()[-1]
    assert done.returncode != 0
    assert f"whiten: NOISETILT_BACKEND asks for {name}, which cannot serve cpu: {reason}" in last
    told = python("import noisetilt_kernels as nt; print(nt.backends())", NOISETILT_BACKEND=name, TRITON_INTERPRET="0")
    assert told.returncode == 0, told.stderr
    assert "backend='none'" in told.stdout
    assert reason in told.stdout


def test_the_doctor_tells_of_a_forced_backend() -> None:
    code = "from noisetilt_kernels.cli import main; main(['doctor'])"
    told = python(code, NOISETILT_BACKEND="cuda", TRITON_INTERPRET="0").stdout
    assert re.search(r"^NOISETILT_BACKEND +cuda$", told, re.MULTILINE)
    assert re.search(r"^cpu backend +none: NOISETILT_BACKEND allows no other$", told, re.MULTILINE)
    assert told.splitlines()[-1].startswith("cpu: none")
    told = python(code, NOISETILT_BACKEND="reference").stdout
    assert told.splitlines()[-1].startswith("cpu: reference")


def test_an_unknown_name_is_an_error() -> None:
    done = python(CALL, NOISETILT_BACKEND="tritom")
    assert "NOISETILT_BACKEND=tritom: there is no such backend; valid: native, cuda, triton, reference" in done.stderr


def test_an_empty_name_forces_nothing() -> None:
    done = python(CALL, NOISETILT_BACKEND="")
    assert done.returncode == 0, done.stderr


def test_other_devices_have_the_reference() -> None:
    assert backend_for("whiten", META, Extents()) is reference
