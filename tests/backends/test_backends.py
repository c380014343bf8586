"""Choice of the backend, reasons of the refusals, and NOISETILT_BACKEND."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bits import assert_same_bits
from every_operator import assert_bits_of_the_kernels, call_every_operator
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels import registration
from noisetilt_kernels.backends import Extents, backend_for, cpu, cuda, reference, triton
from noisetilt_kernels.backends.tables import Projections
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
ALL = (cpu, cuda, triton, reference)
SOURCES = Path(nt.__file__).parents[1]


@pytest.mark.parametrize("backend", ALL, ids=lambda backend: backend.NAME)
def test_every_backend_has_every_operation(backend) -> None:
    if backend is triton and (reason := triton.refusal("whiten", CPU, Extents())):
        pytest.fail(reason)
    for operation in OPERATIONS:
        assert callable(getattr(backend, operation))


def test_each_backend_refuses_other_devices() -> None:
    assert "for the CPU, not for cuda" in cpu.refusal("whiten", CUDA, Extents())
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
    assert backend_for("whiten", CPU, Extents()) is cpu
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "compiles for GPUs" in triton.refusal("whiten", CPU, Extents())


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[int, int]]:
    """Pretend that torch is built for CUDA and that GPUs of these capabilities exist, with no driver."""
    found: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: found[index])
    return found


def test_triton_serves_gpus_that_it_compiles_for(gpus: dict[int, tuple[int, int]]) -> None:
    gpus[0] = 7, 5
    assert "GPU 0 has 7.5" in triton.refusal("whiten", CUDA, Extents())
    gpus[0] = 8, 0
    assert triton.refusal("whiten", CUDA, Extents()) is None
    assert backend_for("whiten", CUDA, Extents()) is triton
    assert list(nt.backends()["cuda"].refused) == ["cuda"]
    gpus[1] = 7, 5
    assert triton.refusal("whiten", torch.device("cuda:0"), Extents()) is None
    assert "GPU 1 has 7.5" in triton.refusal("whiten", torch.device("cuda:1"), Extents())
    assert "GPU 1 has 7.5" in triton.refusal("whiten", CUDA, Extents())


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("sample_size", triton.MOST_SAMPLE_VALUES),
        ("tile_size", triton.MOST_TILE_VALUES),
        ("block_size", triton.MOST_BLOCK_COEFFICIENTS),
    ],
)
def test_triton_refuses_sizes_above_its_limits(
    name: str, most: int, gpus: dict[int, tuple[int, int]]
) -> None:
    gpus[0] = 9, 0
    assert backend_for("whiten", CUDA, Extents(**{name: most})) is triton
    assert backend_for("whiten", CUDA, Extents(**{name: most + 1})) is reference
    assert str(most + 1) in triton.refusal("whiten", CUDA, Extents(**{name: most + 1}))


@pytest.mark.parametrize(
    ("call", "extents"),
    [
        (lambda x: nt.whiten(x), Extents(64, 64)),
        (lambda x: nt.whiten(x, nt.WhiteningConfig((4,), ((2, 2), (4, 2)), ())), Extents(64, 8)),
        (lambda x: torch.ops.noisetilt.project_tile_stats(x, [8, 4], [2]), Extents(64, 32)),
        (lambda x: torch.ops.noisetilt.project_wgnc(x.flatten(1), 4), Extents(64, 0, 4)),
        (lambda x: torch.ops.noisetilt.project_wgnc_blocks(x.flatten(1) + 0j, 8), Extents(64, 0, 8)),
        (lambda x: torch.ops.noisetilt.compact_fourier(x.flatten(1)), Extents(64)),
    ],
)
def test_backend_for_receives_the_sizes_of_the_arguments(
    call: Callable[[Tensor], Tensor], extents: Extents, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = []
    monkeypatch.setattr(
        registration, "backend_for", lambda op, device, extents: received.append(extents) or reference
    )
    call(torch.randn(97, 1, 8, 8, dtype=torch.float64))  # no other test has this shape, so no call is cached
    assert received == [extents]


@pytest.mark.parametrize(
    ("version", "served"), [("3.5.1", False), ("3.6.0", True), ("3.10.0", True), ("4.0.0", True)]
)
def test_triton_must_be_new_enough(version: str, served: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_version", lambda: version)
    reason = triton._refused_installation.__wrapped__()
    assert reason is None if served else f"Triton {version} is installed" in reason


def test_missing_triton_is_refused_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install" in triton._refused_installation.__wrapped__()


def test_a_driver_that_cannot_be_built_is_a_refusal(
    gpus: dict[int, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton cannot build its driver without a C compiler."""
    gpus[0] = 9, 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("triton.runtime.driver", SimpleNamespace(active=None))
    triton._refused_driver.cache_clear()
    try:
        assert "it needs a C compiler" in triton.refusal("whiten", CUDA, Extents())
        assert backend_for("whiten", CUDA, Extents()) is reference
    finally:
        triton._refused_driver.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
@pytest.mark.parametrize("name", [pytest.param("triton", marks=pytest.mark.slow), "reference"])
def test_a_forced_backend_serves_every_operator(name: str, tmp_path: Path) -> None:
    """The operators also work under torch.compile(fullgraph=True)."""
    outcome = call_every_operator(tmp_path, SOURCES, NOISETILT_BACKEND=name, TRITON_INTERPRET="1")
    assert outcome.report["backends"]["cpu"] == [name, {}]
    assert outcome.report["warnings"] == []
    assert_bits_of_the_kernels(outcome)
    x = outcome.inputs["x"]
    config = resolve_preset("auto", Sample(*x.shape[1:]), 1e-3)
    # both use torch's rfft, so not even the FFT differs
    assert_same_bits(outcome.results["whiten"], reference.whiten(x, config))


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100
    )


COMMAND = "from noisetilt_cli import main; main({})"
CALL = "import torch, noisetilt_kernels as nt; nt.whiten(torch.randn(64))"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the refused backends depend on the machine")
@pytest.mark.parametrize(
    ("name", "reason"),
    [("cuda", "its kernels are for CUDA devices, not for cpu"), ("triton", "Triton compiles for GPUs")],
)
def test_a_forced_backend_that_cannot_serve_is_an_error(name: str, reason: str) -> None:
    done = python(CALL, NOISETILT_BACKEND=name, TRITON_INTERPRET="0")
    last = done.stderr.splitlines()[-1]
    assert done.returncode != 0
    assert f"whiten: NOISETILT_BACKEND asks for {name}, which cannot serve cpu: {reason}" in last
    listed = python(
        "import noisetilt_kernels as nt; print(nt.backends())", NOISETILT_BACKEND=name, TRITON_INTERPRET="0"
    )
    assert listed.returncode == 0, listed.stderr
    assert "backend='none'" in listed.stdout
    assert reason in listed.stdout


def test_the_doctor_reports_a_forced_backend() -> None:
    code = COMMAND.format(["doctor"])
    report = python(code, NOISETILT_BACKEND="cuda", TRITON_INTERPRET="0").stdout
    assert re.search(r"^NOISETILT_BACKEND +cuda$", report, re.MULTILINE)
    assert re.search(r"^cpu backend +none: NOISETILT_BACKEND allows no other$", report, re.MULTILINE)
    assert report.splitlines()[-1].startswith("cpu: none")
    report = python(code, NOISETILT_BACKEND="reference").stdout
    assert report.splitlines()[-1].startswith("cpu: reference")


def test_an_unknown_backend_is_an_error() -> None:
    done = python(CALL, NOISETILT_BACKEND="tritom")
    assert (
        "NOISETILT_BACKEND=tritom: there is no backend of this name; valid: cpu, cuda, triton, reference"
        in done.stderr.splitlines()[-1]
    )
    imported = python("import noisetilt_kernels as nt; print(nt.backends())", NOISETILT_BACKEND="tritom")
    assert (imported.returncode, imported.stderr) == (0, "")
    report = python(COMMAND.format(["doctor"]), NOISETILT_BACKEND="tritom")
    assert report.returncode == 0
    assert "not tritom: there is no backend of this name" in report.stdout
    command = ["sample", "--model", "absent", "--prompt", "x", "--reward", "brightness", "--out", "absent"]
    done = python(COMMAND.format(command), NOISETILT_BACKEND="tritom")
    assert done.stderr.startswith(
        "Error: NOISETILT_BACKEND=tritom: there is no backend of this name; valid: "
    )
    assert len(done.stderr.splitlines()) == 1


def test_an_empty_variable_forces_no_backend() -> None:
    done = python(CALL, NOISETILT_BACKEND="")
    assert done.returncode == 0, done.stderr


def test_other_devices_use_the_reference() -> None:
    assert backend_for("whiten", META, Extents()) is reference


def test_the_tables_of_a_projection_serve_every_batch() -> None:
    """One call before the capture of a CUDA graph puts them on the device for calls of any batch."""
    made = []

    def make(*tables: object) -> object:
        made.append(tables)
        return tables

    projections, x = Projections(make), torch.zeros(1, 4, 8, 8)

    def number_made(x: Tensor, alpha: float = 1e-3, tiles: tuple[tuple[int, int], ...] = ((4, 4),)) -> int:
        projections(x, (4,), (4,), tiles, alpha)
        return len(made)

    assert [number_made(y) for y in (x, x.expand(5, 4, 8, 8), x[:0], x.clone())] == [1, 1, 1, 1]
    assert number_made(x, alpha=0.01) == 2
    assert number_made(x, tiles=((2, 2),)) == 3
    assert number_made(x.double()) == 4
    assert number_made(x.view(1, 1, 16, 16)) == 5
    assert number_made(x) == 5
