"""Without the compiled library the operators run on the reference, after one warning."""

import shutil
from pathlib import Path

import pytest
import torch
from every_operator import Outcome, assert_bits_of_the_kernels, call_every_operator
from inputs import noise

import noisetilt_kernels as nt

PACKAGE = Path(nt.__file__).parent


@pytest.fixture(scope="module", params=["missing", "broken"])
def fallback(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Outcome]:
    """Outcome of a process whose copy of the package has no compiled library, or a broken one."""
    directory = tmp_path_factory.mktemp("fallback")
    shutil.copytree(
        PACKAGE, directory / "noisetilt_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    if request.param == "broken":
        (directory / "noisetilt_kernels" / "_C.abi3.so").write_bytes(b"no library")
    outcome = call_every_operator(directory, directory)
    assert Path(outcome.report["file"]).is_relative_to(directory)
    return request.param, outcome


def test_one_warning_gives_reason_and_remedy(fallback: tuple[str, Outcome]) -> None:
    case, (report, _, _) = fallback
    ((category, message, filename),) = report["warnings"]
    assert category == "UserWarning"
    assert Path(filename).name == "run.py"  # the script that imports the package
    assert ("no compiled library is installed" if case == "missing" else "_C.abi3.so") in message
    assert "pip install --no-build-isolation" in message
    assert "noisetilt doctor" in message


def test_backends_gives_the_reason_of_the_refusal(fallback: tuple[str, Outcome]) -> None:
    case, (report, _, _) = fallback
    backend, refused = report["backends"]["cpu"]
    assert backend == "reference"
    assert ("no compiled library is installed" if case == "missing" else "_C.abi3.so") in refused["cpu"]


def test_results_have_the_bits_of_the_kernels(fallback: tuple[str, Outcome]) -> None:
    assert_bits_of_the_kernels(fallback[1])


def test_errors_are_the_same(fallback: tuple[str, Outcome]) -> None:
    with pytest.raises(ValueError) as error:
        torch.ops.noisetilt.whiten(noise(1), "sdxl")
    assert fallback[1].report["error"] == str(error.value)


def test_the_compiled_library_serves_the_cpu_here() -> None:
    """Otherwise comparisons with the reference would compare it with itself."""
    assert nt.backends()["cpu"].backend == "cpu"
    assert nt.backends()["cpu"].refused == {}
    assert "C++ kernels" in nt.backends()["cpu"].detail
