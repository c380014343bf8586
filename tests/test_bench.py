"""`python -m bench`: rounds on a quiet and on a busy machine, and the time limit."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import conftest as bench

ROOT = Path(__file__).parents[1]
FUNCTIONS = {"ours": lambda: time.sleep(0.001), "eager": lambda: time.sleep(0.002)}
CALLS = {"ours": 3, "eager": 2}


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept any spread of the times, which depends on the machine that runs the test."""
    monkeypatch.setattr(bench, "MOST_SPREAD", float("inf"))


def test_a_quiet_machine_repeats_nothing(steady: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.MachineLoad, "since", lambda self: 0.0)
    times, repeated, undisturbed = bench.alternate(FUNCTIONS, CALLS)
    assert {name: len(measured) for name, measured in times.items()} == {"ours": 24, "eager": 16}
    assert repeated == 0 and undisturbed


def test_a_busy_machine_is_reported_and_has_a_time_limit(
    steady: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.MachineLoad, "since", lambda self: 1e9)
    monkeypatch.setattr(bench, "MOST_REPEATS", 10**9)
    monkeypatch.setattr(bench, "REPORT_SECONDS", 0.0)
    start = time.monotonic()
    times, repeated, undisturbed = bench.alternate(FUNCTIONS, CALLS, seconds=0.1)
    assert time.monotonic() - start < 30
    assert len(times["ours"]) == 3 and repeated > 0 and not undisturbed
    assert "0 of 8 rounds, 1 repeated because of other processes" in capsys.readouterr().err


def test_cases_after_the_time_limit_are_skipped(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--minutes", "0"),
            f"--benchmark-json={tmp_path / 'results.json'}",
            "bench/bench_order_stats.py",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the time limit is over; give --minutes a larger number" in done.stdout
    assert " passed" not in done.stdout
