"""Without the compiled library the same operators run on the reference, after one warning."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bits import assert_same_bits
from inputs import noise, tables, values
from safetensors.torch import load_file, save_file

import noisetilt_kernels as nt

PACKAGE = Path(nt.__file__).parent

SCRIPT = """
import json, sys, warnings
import torch
from safetensors.torch import load_file, save_file

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import noisetilt_kernels as nt
    inputs = load_file(sys.argv[1])
    x, lower, upper = inputs["x"], inputs["lower"], inputs["upper"]
    ops = torch.ops.noisetilt
    results = {
        "project_2os": ops.project_2os(x.flatten(1), lower, upper),
        "project_tile_stats": ops.project_tile_stats(x, [4, 4], [4]),
        "butterfly": ops.butterfly(x, [8, 8], 6),
        "hadamard_transform": nt.hadamard_transform(x, 0.125),
        "project_wgnc_blocks": torch.view_as_real(ops.project_wgnc_blocks(torch.view_as_complex(x.view(2, -1, 2)))),
        "project_wgnc": ops.project_wgnc(x.flatten(1)),
        "compact_fourier": ops.compact_fourier(x.flatten(1)),
        "whiten": nt.whiten(x),
    }
    compiled = torch.compile(lambda x: nt.whiten(x), fullgraph=True, backend="eager")(x)
    assert bool((compiled == results["whiten"]).all())
    try:
        ops.whiten(x, "sdxl")
    except ValueError as error:
        message = str(error)
save_file(results, sys.argv[2])
print(json.dumps({
    "warnings": [[w.category.__name__, str(w.message), w.filename] for w in caught if "noisetilt" in str(w.message)],
    "file": nt.__file__,
    "error": message,
    "backends": {device: [status.backend, status.refused] for device, status in nt.backends().items()},
}))
"""


@pytest.fixture(scope="module", params=["missing", "broken"])
def fallback(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a process says and computes whose copy of the package has no (or no loadable) compiled library."""
    directory = tmp_path_factory.mktemp("fallback")
    shutil.copytree(PACKAGE, directory / "noisetilt_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if request.param == "broken":
        (directory / "noisetilt_kernels" / "_C.abi3.so").write_bytes(b"no library")
    lower, upper = tables("typical", 512, 4)
    inputs = {"x": values("1/k", (2, 8, 16, 16)), "lower": lower, "upper": upper}
    save_file(inputs, directory / "inputs.safetensors")
    (directory / "run.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    done = subprocess.run(
        [sys.executable, "run.py", "inputs.safetensors", "results.safetensors"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert Path(report["file"]).is_relative_to(directory)
    return request.param, report, inputs, load_file(directory / "results.safetensors")


def test_one_warning_says_why_and_how_to_build(fallback: tuple) -> None:
    case, report, _, _ = fallback
    ((category, message, _),) = report["warnings"]
    assert category == "UserWarning"
    assert ("no compiled library is installed" if case == "missing" else "_C.abi3.so") in message
    assert "pip install --no-build-isolation" in message
    assert "noisetilt doctor" in message


def test_backends_tell_the_refusal(fallback: tuple) -> None:
    case, report, _, _ = fallback
    backend, refused = report["backends"]["cpu"]
    assert backend == "reference"
    assert ("no compiled library is installed" if case == "missing" else "_C.abi3.so") in refused["native"]


def test_results_have_the_bits_of_the_kernels(fallback: tuple) -> None:
    _, _, inputs, results = fallback
    x, lower, upper = inputs["x"], inputs["lower"], inputs["upper"]
    ops = torch.ops.noisetilt
    blocks = ops.project_wgnc_blocks(torch.view_as_complex(x.view(2, -1, 2)))
    assert_same_bits(results["project_2os"], ops.project_2os(x.flatten(1), lower, upper))
    assert_same_bits(results["project_tile_stats"], ops.project_tile_stats(x, [4, 4], [4]))
    assert_same_bits(results["butterfly"], ops.butterfly(x, [8, 8], 6))
    assert_same_bits(results["hadamard_transform"], nt.hadamard_transform(x, 0.125))
    assert_same_bits(results["project_wgnc_blocks"], torch.view_as_real(blocks))
    torch.testing.assert_close(results["compact_fourier"], ops.compact_fourier(x.flatten(1)), rtol=0, atol=1e-5)
    torch.testing.assert_close(results["project_wgnc"], ops.project_wgnc(x.flatten(1)), rtol=0, atol=1e-4)
    assert torch.nn.functional.cosine_similarity(results["whiten"].flatten(), nt.whiten(x).flatten(), dim=0) > 0.999


def test_errors_are_the_same(fallback: tuple) -> None:
    with pytest.raises(ValueError) as error:
        torch.ops.noisetilt.whiten(noise(1), "sdxl")
    assert fallback[1]["error"] == str(error.value)


def test_the_compiled_library_serves_the_cpu_here() -> None:
    """Or all comparisons with the reference would compare it with itself."""
    assert nt.backends()["cpu"].backend == "native"
    assert nt.backends()["cpu"].refused == {}
    assert "C++ kernels" in nt.backends()["cpu"].detail
