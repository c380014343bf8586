"""Calls on a machine with other work: no barrier of OpenMP in a call, and threads that may be missing."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from bits import assert_same_bits
from inputs import values

import noisetilt_kernels as nt
from bench.inputs import FLUX
from noisetilt_kernels.backends import backend_for, cpu, cuda, library, reference
from noisetilt_kernels.backends.tables import Extents

HELPERS = Path(__file__).parents[1] / "helpers"

COUNT_REGIONS = """
import ctypes, json, sys
import torch
import noisetilt_kernels as nt

count = ctypes.CDLL(sys.argv[1]).openmp_regions
torch.set_num_threads(2)

def regions(call):
    call()
    before = count()
    call()
    return count() - before

x = torch.randn(16, 64, 64)
batch = torch.randn(3, 16, 64, 64)
lower, upper = (bounds.float() for bounds in nt.confidence_table(16384, 4))
calls = {
    "torch": lambda: torch.randn(1 << 20).sin(),
    "whiten": lambda: nt.whiten(x),
    "whiten a batch": lambda: nt.whiten(batch),
    "whiten in half precision": lambda: nt.whiten(half),
    "whiten a view": lambda: nt.whiten(batch.transpose(2, 3)),
    "project_2os": lambda: nt.project_2os(x.flatten(), lower, upper),
    "project_tile_stats": lambda: nt.project_tile_stats(x, (4, 4), (4, 16)),
    "project_wgnc": lambda: nt.project_wgnc(x.flatten()),
    "project_wgnc_blocks": lambda: nt.project_wgnc_blocks(spectrum),
    "compact_fourier": lambda: nt.compact_fourier(x.flatten()),
    "compact_fourier inverse": lambda: nt.compact_fourier(x.flatten(), inverse=True),
    "butterfly": lambda: nt.butterfly(x, (64, 64), 12),
    "hadamard_transform": lambda: nt.hadamard_transform(x.view(16, 4096)),
    "torch again": lambda: torch.randn(1 << 20).sin(),
}
half, spectrum = batch.half(), torch.randn(32768, dtype=torch.complex64)
print(json.dumps({name: regions(call) for name, call in calls.items()}))
"""


@pytest.mark.skipif(
    library.failure is not None or sys.platform != "linux" or shutil.which("cc") is None,
    reason="needs the compiled library, and Linux and a C compiler to count regions",
)
def test_operators_enter_no_openmp_region(tmp_path: Path) -> None:
    counter = tmp_path / "openmp_regions.so"
    source = HELPERS / "openmp_regions.c"
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(counter), "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(counter), "OMP_WAIT_POLICY": "passive"}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-c", COUNT_REGIONS, str(counter)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    counts = json.loads(run.stdout)
    assert counts.pop("torch") == counts.pop("torch again") > 0  # the counter works, and the threads are back
    assert counts == dict.fromkeys(counts, 0)


def test_an_error_gives_the_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.compiled, "fft_factors", lambda *_: 1 / 0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(ZeroDivisionError):
            nt.compact_fourier(torch.randn(1 << 16))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_calls_from_many_threads_have_the_same_bits() -> None:
    x = values("1/k", (1, *FLUX))
    expected = nt.whiten(x)
    with ThreadPoolExecutor(5) as pool:
        for result in pool.map(nt.whiten, [x] * 15):
            assert_same_bits(result, expected)


FORK = """
import os, torch
import noisetilt_kernels as nt

torch.set_num_threads(2)
x = torch.randn(16, 64, 64)
expected = nt.whiten(x)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(nt.whiten(x), expected) else 3)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(nt.whiten(x), expected)
"""


@pytest.mark.skipif(
    library.failure is not None or not hasattr(os, "fork"), reason="needs the kernels, and fork"
)
def test_a_forked_process_has_its_own_threads() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=300)


# ---- sizes beyond 32 bits ----


@pytest.mark.skipif(library.failure is not None, reason="needs the compiled library")
def test_the_kernels_refuse_samples_beyond_32_bits(tmp_path: Path) -> None:
    path, values_beyond = tmp_path / "sparse", cpu.MOST_SAMPLE_VALUES + 2
    with path.open("wb") as file:
        file.truncate(4 * values_beyond)  # takes no space on disk
    x = torch.from_file(str(path), size=values_beyond, dtype=torch.float32)[None]
    with pytest.raises(ValueError, match="at most 2147483648 values"):
        torch.ops.noisetilt._hadamard_transform(x, 1.0)


@pytest.mark.parametrize("op", ["whiten", "project_2os", "butterfly", "project_wgnc_blocks"])
def test_samples_beyond_32_bits_are_left_to_the_reference(op: str) -> None:
    largest = cpu.MOST_SAMPLE_VALUES // (2 if op == "project_wgnc_blocks" else 1)
    assert backend_for(op, torch.device("cpu"), Extents(largest + 1)) is reference
    assert "too large" in (cpu.compiled.refused_size(op, Extents(largest + 1), cpu.MOST_SAMPLE_VALUES) or "")
    assert cpu.compiled.refused_size(op, Extents(largest), cpu.MOST_SAMPLE_VALUES) is None
    assert cuda.MOST_SAMPLE_VALUES < cpu.MOST_SAMPLE_VALUES
