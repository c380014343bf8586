"""Rehearsals of `bench/gpu.sh` without a GPU: order, time limits, what is left after a kill at any moment,
what travels to the machine with the GPU and what comes back. In the slow ones the CPU stands in for the GPU.
"""

import base64
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import child, driver, prepare
from bench.gpu.driver import Driver, Report, Step
from bench.gpu.run import RUNS

ROOT = Path(__file__).parents[1]
HELPERS = ROOT / "tests" / "helpers"
MEBIBYTE = 1 << 20

LENT = {"cuda": 240, "sanitize": 200, "clusters": 120, "triton": 120}
"""Runs on a machine that is lent for minutes, and their seconds."""
STEPS = {
    "cuda": ["load", "build here", "bits", "repeats", "times", "barrier", "blocks", "streams"],
    "sanitize": ["memcheck", "racecheck", "initcheck", "tests"],
    "clusters": ["load", "bits flux", "times flux"],
    "triton": ["load", "bits flux", "times flux"],
}
TOGETHER = [name for name in STEPS["cuda"] if name != "build here"]  # steps that run if all succeed

FACT = "from bench.gpu.facts import tell; tell('seen', True)"
WAIT = f"{FACT}; print('in the log', flush=True); import time; time.sleep(60)"


def steps_of(run: str, folder: Path) -> list[Step]:
    return RUNS[run].steps(folder)


def rehearse(run: str, out: Path, programs: dict[str, str]) -> subprocess.Popen[str]:
    """Start a run whose steps are these Python programs."""
    command = [sys.executable, str(HELPERS / "rehearsal.py"), run, str(out), json.dumps(programs)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*")}


def facts_of(folder: Path, step: str) -> list[str]:
    facts = json.loads((folder / driver.RESULTS).read_text())["facts"]
    return [fact["fact"] for fact in facts if fact["step"] == step]


def logs_of(folder: Path) -> list[str]:
    if not (folder / driver.LOGS).exists():
        return []
    with tarfile.open(folder / driver.LOGS) as archive:
        return archive.getnames()


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- plans ----


@pytest.mark.parametrize("run", LENT)
def test_steps_and_their_limits(run: str, tmp_path: Path) -> None:
    """Even if every step hangs and its process cannot be killed, the last one has its time."""
    steps = steps_of(run, tmp_path)
    assert [step.name for step in steps] == STEPS[run]
    usual = [step for step in steps if step.instead_of is None]
    assert RUNS[run].seconds == LENT[run]
    assert sum(step.seconds + child.SECONDS_TO_DIE for step in usual) <= LENT[run]


def test_a_full_run_has_every_step_once(tmp_path: Path) -> None:
    names = [step.name for step in steps_of("full", tmp_path)]
    assert len(set(names)) == len(names) <= driver.MOST_STEPS
    assert {*TOGETHER, *STEPS["sanitize"], "synccheck", "cuda: benchmarks", "triton: tuning"} <= set(names)


# ---- what comes back ----


@pytest.mark.parametrize("run", LENT)
def test_a_run_leaves_few_files(run: str, tmp_path: Path) -> None:
    names = [step.name for step in steps_of(run, tmp_path) if step.instead_of is None]
    done = rehearse(run, tmp_path, dict.fromkeys(names, FACT))
    printed = done.communicate(timeout=60)[0]
    assert done.returncode == 0, printed
    summary = (tmp_path / driver.SUMMARY).read_text()
    assert summary == printed
    assert re.findall(r"ok +(.*): seen", summary) == names
    assert [name[3:-4] for name in logs_of(tmp_path)] == [name.replace(" ", "-") for name in names]
    assert set(files_of(tmp_path)) == {driver.SUMMARY, driver.RESULTS, driver.LOGS}


@pytest.mark.parametrize(("run", "step"), [(run, step) for run in LENT for step in STEPS[run]])
def test_a_kill_at_any_step_leaves_what_was_found(run: str, step: str, tmp_path: Path) -> None:
    names = STEPS[run]
    if "build here" in names and step != "build here":
        names = TOGETHER
    before = names[: names.index(step)]
    programs = dict.fromkeys(before, FACT) | {step: f"import os; print(os.getpid()); {WAIT}"}
    if step == "build here":
        programs["load"] = f"{FACT}; raise SystemExit('does not load')"
    process = rehearse(run, tmp_path, programs)
    summary, running = tmp_path / driver.SUMMARY, tmp_path / driver.RUNNING
    wait_for(lambda: summary.exists() and f"{step}: seen" in summary.read_text())
    wait_for(lambda: "in the log" in running.read_text())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)

    for name in (*before, step):
        assert "seen" in facts_of(tmp_path, name)
    assert len(logs_of(tmp_path)) == len(before)
    wait_for(lambda: not Path("/proc", running.read_text().split()[0]).exists())  # the step is gone too
    assert set(files_of(tmp_path)) <= {*driver.FILES, f"{driver.RESULTS}.new", f"{driver.LOGS}.new"}


def test_logs_are_bounded(tmp_path: Path) -> None:
    """The middle of a log is left out. Logs of random text, of as many steps as there may be, fit."""
    report = Report(tmp_path, "cuda")
    for k in range(driver.MOST_STEPS):
        lines = base64.b64encode(os.urandom(MEBIBYTE)).decode()
        for begin in range(0, len(lines), 500):
            report.log(lines[begin : begin + 500])
        assert (tmp_path / driver.RUNNING).stat().st_size <= driver.LOG_BYTES
        report.log(f"last line {k}")
        if k in (0, driver.MOST_STEPS - 1):  # each makes the archive of all steps again
            report.end_step(f"step {k}")
        else:
            report._logs[f"step {k}"] = report._logs["00-step-0.log"]
    assert all(size < driver.MOST_BYTES for size in files_of(tmp_path).values())
    with tarfile.open(tmp_path / driver.LOGS) as archive:
        first = archive.extractfile("00-step-0.log")
        assert first is not None and first.read().endswith(b"last line 0\n")


def test_rows_become_tables(tmp_path: Path) -> None:
    row = {
        "name": "whiten flux",
        "seconds": {"warm": {"p50": 1e-3}},
        "launches": 4,
        **{key: {} for key in ("floors", "against", "notes")},
        "checks": [],
    }
    machine = {"gpu": "G", "torch": "2.11", "cuda": "13.0", "triton": "3.6.0"}
    programs = {
        "load": "from bench.gpu.facts import tell_machine; "
        f"tell_machine({{'backend': 'cuda', 'machine_info': {machine!r}}})",
        "times": f"from bench.gpu.facts import tell_row; tell_row({row!r})",
    }
    rehearse("cuda", tmp_path, programs).communicate(timeout=60)
    assert "| whiten flux | 1.00 ms |" in (tmp_path / driver.TABLES).read_text()


def test_what_a_step_prints_does_not_end_the_run(tmp_path: Path) -> None:
    """Lines that look like facts, rows without a time, bytes that are no text."""
    lines = [{"fact": 1}, {"row": {}}, {"machine": {"machine_info": {"gpu": "G"}}}, {"none": 1}, []]
    text = "".join(f"print({json.dumps(json.dumps(line))});" for line in lines)
    text += "import sys; print('{'); sys.stdout.flush(); sys.stdout.buffer.write(bytes([255, 10]))"
    programs = {"load": text, "bits": FACT}
    printed = rehearse("cuda", tmp_path, programs).communicate(timeout=60)[0]
    assert (
        "load: 1\n" in printed and "load: no tables: KeyError" in printed and "ok      bits: seen" in printed
    )


# ---- steps that fail ----


def perform(steps: list[Step], folder: Path, seconds: float = 60) -> tuple[bool, str]:
    """Perform steps, and return whether all succeeded, and the summary."""
    report = Report(folder / "out", "cuda")
    succeeded = Driver(report, seconds, folder, lambda _: ROOT).run(steps)
    return succeeded, (folder / "out" / driver.SUMMARY).read_text()


def program(name: str, text: str, seconds: float = 20, **more: Any) -> Step:
    return Step(name, ("python", "-c", text), seconds, **more)


def test_a_failed_step_is_reported_and_the_next_one_runs(tmp_path: Path) -> None:
    steps = [program("first", "raise SystemExit('what was wrong')"), program("second", FACT)]
    succeeded, summary = perform(steps, tmp_path)
    assert not succeeded
    assert "first: the process ended with code 1" in summary and "| what was wrong" in summary
    assert "ok      second: done" in summary and "end: failed: first" in summary


def test_a_fact_that_failed_makes_the_step_fail(tmp_path: Path) -> None:
    text = "from bench.gpu.facts import tell; tell('other bits', False)"
    succeeded, summary = perform([program("first", text)], tmp_path)
    assert not succeeded and "FAILED  first: other bits" in summary


def test_a_program_that_is_missing_is_a_failed_step(tmp_path: Path) -> None:
    succeeded, summary = perform([Step("first", ("no-such-program",), 5), program("second", "")], tmp_path)
    assert not succeeded and "no-such-program: No such file" in summary and "second: done" in summary


def test_a_hung_step_is_killed_at_its_limit(tmp_path: Path) -> None:
    ignoring = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAIT}"
    start = time.monotonic()
    succeeded, summary = perform([program("first", ignoring, 2), program("second", FACT)], tmp_path)
    assert not succeeded and time.monotonic() - start < 10
    assert "first: seen" in summary and "first: the process was killed at its time limit" in summary
    assert "left behind" not in summary
    assert "ok      second: seen" in summary


def test_a_process_that_cannot_be_killed_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL does not end a process whose kernel never ends; here it is not sent."""
    left: list[int] = []
    monkeypatch.setattr(child, "SECONDS_TO_DIE", 0.2)
    monkeypatch.setattr(child.os, "killpg", lambda group, _: left.append(group))
    succeeded, summary = perform([program("first", WAIT, 1), program("second", FACT)], tmp_path)
    monkeypatch.undo()
    os.killpg(left[0], signal.SIGKILL)
    assert not succeeded and "does not end after SIGKILL" in summary and "ok      second: seen" in summary


def test_steps_after_the_end_of_a_run_are_not_run(tmp_path: Path) -> None:
    succeeded, summary = perform([program("first", WAIT, 20), program("second", FACT)], tmp_path, seconds=2)
    assert not succeeded and "second: not run: the time of this run is over" in summary


@pytest.mark.parametrize(("load", "build", "runs"), [("", "x", True), ("x", "", True), ("x", "x", False)])
def test_libraries_that_do_not_load_are_built(load: str, build: str, runs: bool, tmp_path: Path) -> None:
    """If they cannot be built either, the run ends: nothing else can succeed."""
    steps = [
        program("load", f"raise SystemExit({load!r} or 0)"),
        program("build", f"raise SystemExit({build!r} or 0)", instead_of="load"),
        program("bits", FACT),
    ]
    succeeded, summary = perform(steps, tmp_path)
    assert succeeded == runs and ("bits: seen" in summary) == runs
    assert ("build: begins" in summary) == bool(load)


def test_what_a_sanitizer_finds_is_a_failure(tmp_path: Path) -> None:
    faults = steps_of("sanitize", tmp_path)[0].faults
    text = "print('========= Invalid __global__ read of size 4 bytes'); print('========= COMPUTE-SANITIZER')"
    succeeded, summary = perform([program("memcheck", text, faults=faults)], tmp_path)
    assert not succeeded and summary.count("=========") == 2
    assert "FAILED  memcheck: ========= Invalid __global__ read of size 4 bytes" in summary


CASES = """
import os, sys, time, types
torch = sys.modules["torch"] = types.ModuleType("torch")
torch.cuda = types.SimpleNamespace(synchronize=lambda: None)
from bench.gpu.facts import run_cases

def fault():
    def synchronize():
        raise RuntimeError("an illegal address")
    torch.cuda.synchronize = synchronize
    return "wrong"

def failed():
    raise ValueError("other bits")

cases = {"good": lambda: "equal", "hung": lambda: time.sleep(60), "failed": failed, "fault": fault,
         "ended": lambda: os._exit(3), "last": lambda: "equal"}
sys.exit(run_cases(cases, 0.5))
"""


def test_the_cases_after_one_that_ends_the_process_are_run(tmp_path: Path) -> None:
    succeeded, summary = perform([program("bits", CASES, 40)], tmp_path)
    assert not succeeded
    found = [
        "ok      bits: good: equal",
        "FAILED  bits: the process ended with code 1 in, or after: hung",
        "FAILED  bits: failed: ValueError: other bits",
        "FAILED  bits: fault: a fault on the GPU: an illegal address",
        "FAILED  bits: the process ended with code 70 in, or after: fault",
        "FAILED  bits: the process ended with code 3 in, or after: ended",
        "ok      bits: last: equal",
    ]
    places = [summary.index(line) for line in found]
    assert places == sorted(places)
    assert summary.count("bits: good") == 1


# ---- what travels ----


def travelling() -> list[Path]:
    """Files of the sources that travel: those that git knows, and those that it does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs the git repository")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [Path(name) for name in listed.split("\0") if name and name != ".venv"]
    return [path for path in paths if (ROOT / path).exists()]


def test_what_travels_is_small() -> None:
    size = sum((ROOT / path).lstat().st_size for path in travelling())
    assert size + prepare.MOST_CARRIED < 64 * MEBIBYTE


def test_the_head_of_the_script_names_every_run() -> None:
    head = (ROOT / "bench" / "gpu.sh").read_text().split("\nset -")[0]
    for name, run in RUNS.items():
        assert f"bench/gpu.sh {name} " in head
        assert name == "full" or f" {run.seconds} s" in head, name
    assert str(prepare.CARRIED.relative_to(ROOT)) in head and all(name in head for name in driver.FILES)


def test_tables_survive_the_journey(
    fresh_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.gpu import expected
    from noisetilt_kernels.backends import table_cache
    from noisetilt_kernels.backends.tables import cached_table
    from noisetilt_kernels.python_ref import NORMAL, ChiSquare

    monkeypatch.setattr(expected, "TABLES", tmp_path / "tables.npz")
    wanted = [
        (num_chunks, chunk_size, 1e-3, reference, dtype, torch.device("cpu"))
        for num_chunks, chunk_size, reference in ((300, 4, NORMAL), (1, 7, ChiSquare(15)), (2000, 1, NORMAL))
        for dtype in (torch.float32, torch.float64)
    ]
    tables = [cached_table(*key) for key in wanted]
    expected.pack_tables(fresh_cache)
    raw = sum(path.stat().st_size for path in fresh_cache.glob("*"))
    assert expected.TABLES.stat().st_size < raw
    shutil.rmtree(fresh_cache)
    assert expected.unpack_tables() == len(wanted)
    cached_table.cache_clear()
    monkeypatch.setattr(table_cache, "write", lambda *_: pytest.fail("a table was made again"))
    for key, table in zip(wanted, tables, strict=True):
        again = cached_table(*key)
        assert torch.equal(again.lower, table.lower) and torch.equal(again.upper, table.upper)
        assert again.monotone == table.monotone


# ---- kernels that only the runs have ----


@pytest.mark.parametrize("seen", [True, False])
def test_the_exchange_of_words_tests_the_barrier(seen: bool, tmp_path: Path) -> None:
    """In the emulation, every word is seen after a barrier. Without the barrier of blocks, some are not."""
    source = tmp_path / "barrier.cu"
    text = (ROOT / "bench" / "gpu" / "barrier.cu").read_text()
    text = text.replace("../../csrc", str(ROOT / "csrc"))
    written = "turn[team.rank] = k;\n"
    assert written in text
    if not seen:
        text = text.replace(f"{written}    team.sync();", f"{written}    __syncthreads();")
    source.write_text(text)
    options = ["-x", "c++", "-std=c++17", "-O1", "-fPIC", "-shared", f"-I{ROOT / 'tests' / 'cuda_emulation'}"]
    library = tmp_path / "barrier.so"
    subprocess.run(["g++", *options, source, "-o", library, "-ldl"], check=True)
    for blocks, threads, barriers in ((4, 64, 50), (3, 32, 50), (1, 32, 5)):
        arrivals, wrong = ctypes.c_uint32(0), ctypes.c_uint32(0)
        words = (ctypes.c_uint32 * (2 * blocks))()
        pointers = ctypes.byref(arrivals), words, ctypes.byref(wrong), None
        assert ctypes.CDLL(str(library)).noisetilt_exchanges(blocks, threads, barriers, *pointers) == 0
        assert (wrong.value == 0) == (seen or blocks == 1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("name", ["any_blocks", "barrier"])
def test_nvcc_compiles(name: str, tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++17", "--Werror=all-warnings", f"-I{ROOT / 'csrc'}", "-arch=sm_90", "-cubin"]
    subprocess.run([*command, ROOT / f"bench/gpu/{name}.cu", "-o", tmp_path / "cubin"], check=True)


# ---- the real steps, with the CPU in place of the GPU ----

SMALLER = {  # for a CPU: {file: {text: replacement}}
    "bench/inputs.py": {"WAN = (336, 60, 104)": "WAN = (8, 60, 104)"},
    "bench/gpu/measure.py": {"ROUNDS = 5, 60": "ROUNDS = 2, 3"},
    "bench/gpu/checks.py": {
        "REPEATS = 20": "REPEATS = 3",
        "torch.randn(1024, *FLUX": "torch.randn(4, *FLUX",
        "for batch in (1, 8, 64)": "for batch in (1, 2, 3)",
        "for batch in (8, 64)": "for batch in (2, 3)",
    },
}
SIMULATED = HELPERS / "simulated_gpu"
PATIENT = """
import sys
from dataclasses import replace
from pathlib import Path
from bench.gpu import run

name = sys.argv[1]
real = run.RUNS[name]
steps = lambda folder: [replace(step, seconds=600) for step in real.steps(folder)]
run.RUNS[name] = replace(real, seconds=3600, steps=steps)
sys.exit(not run.perform(name, Path(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def lent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that travelled to a machine with a simulated GPU."""
    tree = tmp_path_factory.mktemp("lent")
    for path in travelling():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tree / path, follow_symlinks=False)
    for name, replacements in SMALLER.items():
        text = (tree / name).read_text()
        for old, new in replacements.items():
            assert old in text
            text = text.replace(old, new)
        (tree / name).write_text(text)
    carried = tree / prepare.CARRIED.relative_to(ROOT)
    for folder in ("standard", "any_blocks", "debug"):
        (carried / folder).mkdir(parents=True)
        (carried / folder / prepare.CUDA_LIBRARY).touch()
    (library,) = (ROOT / "noisetilt_kernels").glob("_C.*so")
    shutil.copy(library, carried / "standard" / prepare.CPU_LIBRARY)
    for name in ("barrier.so", "radix_sort.so"):
        source = SIMULATED / "libraries.cpp"
        subprocess.run(["g++", "-shared", "-fPIC", source, "-o", carried / name], check=True)
    manifest = {"sources": prepare.digest_of_sources(), "architectures": "9.0"}
    (carried / prepare.MANIFEST).write_text(json.dumps(manifest))
    made = subprocess.run(
        [sys.executable, "-c", "from bench.gpu import prepare; prepare.make_expected()"],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return tree


ON_A_GPU_ONLY = (
    # The stand-in cannot pass them: its device is the CPU, and captures nothing.
    "test_tables_of_another_device_are_an_error",
    "test_tables_are_not_made_during_a_capture",
    # They would take minutes.
    "test_results_are_the_same_beside_other_work",
    "test_results_of_videos_are_the_same_every_time",
)


@pytest.mark.slow
@pytest.mark.parametrize("run", LENT)
def test_the_real_steps(run: str, lent: Path, tmp_path: Path) -> None:
    environment = {
        name: f"{SIMULATED}{os.pathsep}{os.environ.get(name, '')}" for name in ("PATH", "PYTHONPATH")
    }
    # Other files begin processes of their own, or test streams and graphs that the stand-in does not have.
    rehearsed = ROOT / "tests" / "gpu" / "test_gpu_runtime.py"
    others = set((ROOT / "tests" / "gpu").glob("test_gpu_*.py")) - {rehearsed}
    environment["PYTEST_ADDOPTS"] = " ".join(
        [f"--deselect={rehearsed.relative_to(ROOT)}::{name}" for name in ON_A_GPU_ONLY]
        + [f"--deselect={file.relative_to(ROOT)}" for file in others]
    )
    done = subprocess.run(
        [sys.executable, "-c", PATIENT, run, str(tmp_path)],
        cwd=lent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    results = json.loads((tmp_path / driver.RESULTS).read_text())
    failed = [fact for fact in results["facts"] if fact["ok"] is False]
    assert not failed and done.returncode == 0, done.stdout + done.stderr
    assert [step["step"] for step in results["steps"]] == [n for n in STEPS[run] if n != "build here"]
    assert len(files_of(tmp_path)) <= len(driver.FILES)
