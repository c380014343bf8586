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

import noisetilt_cli
import noisetilt_kernels as nt
from noisetilt_cli import main
from noisetilt_kernels.backends import library, table_cache

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


def test_doctor_shows_the_tiles_of_a_size() -> None:
    report = json.loads(run("doctor", "--json", "--latents", "16x134x240"))
    assert report["whitening"] == {
        "latents": "16x134x240",
        "auto": "chunks 4, 16; tiles 4x4 (4-5 x 4), 8x8 (7-8 x 8), 16x16 (16-17 x 16); "
        "mixing 134x240 in 15 steps, 8x8 (7-8 x 8) in 6 steps",
    }
    text = run("doctor", "--latents", "16x134x240")
    assert report["whitening"]["auto"] in next(line for line in text.splitlines() if line.startswith("W of "))
    assert "whitening" not in json.loads(run("doctor", "--json"))
    for latents in ("16x21x60x104", "1X4096"):
        assert "mixing" in run("doctor", "--latents", latents)


@pytest.mark.parametrize(
    ("latents", "words"),
    [
        ("16 by 4", "--latents: must be a shape such as 16x64x64, got '16 by 4'"),
        ("1x2x3x4x5x6", "--latents: the shape must be (N,)"),
        ("3x5x7", "--latents: preset 'auto' needs a number of values divisible by 4 or 16"),
    ],
)
def test_doctor_refuses_what_is_no_shape(latents: str, words: str) -> None:
    result = CliRunner().invoke(main, ["doctor", "--latents", latents])
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {words}")


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
    for package in (nt, noisetilt_cli):
        shutil.copytree(
            Path(package.__file__).parent,
            tmp_path / package.__name__,
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


def test_the_version_is_the_package_s() -> None:
    assert run("--version").split()[-1] == nt.__version__


LIBRARIES = ("torch", "scipy", "diffusers", "transformers", "matplotlib", "bokeh")


def imported_by(*command_lines: str) -> dict[str, list[str]]:
    """Run commands in a new process. Return the last line of output of each, and the libraries imported."""
    program = f"""
import json, sys
from click.testing import CliRunner
from noisetilt_cli import main
report = {{}}
for line in sys.argv[1:]:
    output = CliRunner().invoke(main, line.split()).output.strip().splitlines()[-1]
    report[line] = [output, *(name for name in {LIBRARIES!r} if name in sys.modules)]
print(json.dumps(report))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *command_lines], capture_output=True, text=True, check=True
    )
    report: dict[str, list[str]] = json.loads(done.stdout)
    return report


def test_help_and_wrong_options_do_not_import_torch() -> None:
    commands = ("sample", "optimize", "compare", "view", "demo", "doctor", "bench", "rewards", "models")
    lines = ["--help", "--version", *(f"{command} --help" for command in (*commands, "prompts"))]
    lines += ["view /nowhere", "sample --particles 0 --out x", "compare --best-of 0 --method base --out x"]
    report = imported_by(*lines)
    assert {line: modules for line, (_, *modules) in report.items() if modules} == {}
    assert "is not in the range" in report[lines[-2]][0]


def test_mistakes_are_found_before_diffusers_is_imported(tmp_path: Path) -> None:
    run = f"--model digits --prompt a7 --out {tmp_path / 'run'} --reward"
    lines = {
        f"sample {run} brightness --rho 1.5": "--rho must be in [0, 1], got 1.5",
        f"sample {run} beauty": "unknown reward 'beauty'",
        f"sample {run} brightness --model /nowhere": "there is no folder '/nowhere'",
        f"sample {run} brightness --held-out beauty": "unknown reward 'beauty'",
        f"optimize {run} brightness": "'digits' is for `noisetilt sample`",
        f"compare {run} brightness --method ntrk:rho=2": "rho must be in [0, 1]",
        f"sample {run} digit": "must name exactly one digit",
        f"sample {run} /nowhere/mine.py:reward": "there is no file /nowhere/mine.py",
    }
    for line, (message, *modules) in imported_by(*lines).items():
        assert message.startswith("Error: ") and lines[line] in message
        assert not {"diffusers", "transformers", "matplotlib"} & set(modules)


def test_importing_and_loading_small_models_prints_nothing() -> None:
    program = "from noisetilt_kernels import models; models.load_pipeline('digits')"
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
