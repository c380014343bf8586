"""`noisetilt doctor`, with and without the compiled library, and the ways to call the command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import noisetilt_kernels as nt
from noisetilt_kernels.backends import library, table_cache
from noisetilt_kernels.cli import main

REASON = "no compiled library is installed"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate an installation without a compiler, as `doctor` sees it."""
    monkeypatch.setattr(library, "failure", REASON)


def assert_agrees_with_backends(report: dict[str, Any]) -> None:
    statuses = nt.backends()
    assert set(report["devices"]) == set(statuses)
    for device, status in statuses.items():
        reported = report["devices"][device]
        assert (reported["backend"], reported["detail"]) == (status.backend, status.detail)
        assert reported["refused"] == status.refused
    assert report["devices"]["cpu"]["present"]
    assert report["devices"]["cuda"]["present"] == torch.cuda.is_available()


def test_doctor_json() -> None:
    report = json.loads(run("doctor", "--json"))
    assert_agrees_with_backends(report)
    assert report["versions"]["noisetilt_kernels"] == nt.__version__
    assert report["versions"]["torch"] == torch.__version__
    assert report["cpu"]["torch_threads"] == torch.get_num_threads()
    assert report["cpu"]["variant"] == library.build_info()["variant"]
    assert report["cuda"]["version"] == torch.version.cuda
    assert Path(report["library"]["path"]).is_file()
    assert report["library"]["failure"] is None
    assert report["library"]["build"] == library.build_info()
    assert report["verdict"].startswith(f"cpu: cpu, C++ kernels, {report['cpu']['variant']} variant")


def test_doctor_text_has_the_facts_of_the_json() -> None:
    report = json.loads(run("doctor", "--json"))
    text = run("doctor")
    lines = text.splitlines()
    assert lines[-1] == report["verdict"]
    for fact in (
        *report["versions"].values(),
        report["platform"],
        report["library"]["path"],
        *library.build_info().values(),
    ):
        assert fact in text
    for device, status in report["devices"].items():
        (line,) = (line for line in lines if line.startswith(f"{device} backend"))
        assert f"{status['backend']}: {status['detail']}" in line
        for backend, reason in status["refused"].items():
            assert f"not {backend}: {reason}" in text


def test_doctor_without_library_gives_reason_and_remedy(without_library: None) -> None:
    report = json.loads(run("doctor", "--json"))
    assert_agrees_with_backends(report)
    assert report["devices"]["cpu"]["backend"] == "reference"
    assert report["devices"]["cpu"]["refused"]["cpu"] == REASON
    assert report["cpu"]["variant"] is None
    assert report["library"]["path"] is None
    assert report["library"]["failure"] == REASON
    assert report["library"]["build"] == {}

    text = run("doctor")
    assert f"not in use: {REASON}" in text
    verdict = text.splitlines()[-1]
    assert verdict == report["verdict"]
    assert (
        "reference" in verdict
        and "C++17 compiler" in verdict
        and "pip install --no-build-isolation" in verdict
    )


def test_doctor_measures_the_table_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(table_cache, "directory", lambda: tmp_path / "absent")
    assert json.loads(run("doctor", "--json"))["table_cache"] == {
        "directory": str(tmp_path / "absent"),
        "files": 0,
        "bytes": 0,
        "most_bytes": table_cache.MOST_BYTES,
    }
    monkeypatch.setattr(table_cache, "directory", lambda: tmp_path)
    (tmp_path / "one.safetensors").write_bytes(b"x" * 1_000_000)
    (tmp_path / "two.safetensors").write_bytes(b"x" * 500_000)
    cache = json.loads(run("doctor", "--json"))["table_cache"]
    assert (cache["files"], cache["bytes"]) == (2, 1_500_000)
    assert f"{tmp_path}  (2 files, 1.5 MB of at most 256.0 MB)" in run("doctor")


def test_module_runs_without_any_library(tmp_path: Path) -> None:
    """Run the package as installed without a compiler, in a separate process."""
    shutil.copytree(
        Path(nt.__file__).parent,
        tmp_path / "noisetilt_kernels",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    process = subprocess.run(
        [sys.executable, "-m", "noisetilt_kernels", "doctor", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)  # the import's warning goes to stderr
    assert report["devices"]["cpu"]["backend"] == "reference"
    assert "no compiled library" in report["library"]["failure"]
    assert process.stderr.count("runs on its slow pure-PyTorch reference") == 1


def test_help_names_the_subcommands() -> None:
    text = run("--help")
    assert "doctor" in text and "demo" in text


@pytest.mark.parametrize("arguments", [["nonsense"], ["doctor", "--nonsense"], ["demo", "--seed", "-1"]])
def test_bad_arguments_are_usage_errors(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.output
