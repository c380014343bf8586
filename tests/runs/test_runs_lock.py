"""One run writes to a folder at a time: the lock, its owner, and locks of ended processes."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from gaussian_flows import LatentFlow

from noisetilt_cli import main
from noisetilt_kernels.rewards import parse_rewards
from noisetilt_kernels.runs import comparison, lock
from noisetilt_kernels.runs.comparison_folder import Comparison
from noisetilt_kernels.runs.errors import RunFolderError
from noisetilt_kernels.runs.execute import open_folder
from noisetilt_kernels.runs.lock import LOCK, check_unlocked, locked
from noisetilt_kernels.runs.settings import ComputeOptions, Settings
from noisetilt_kernels.runs.workers import Workers
from noisetilt_kernels.sampling.methods import Method

SETTINGS = Settings("digits", ("a 7",), Method("base", {"steps": 1}), parse_rewards("brightness"))

HOLDER = """
import sys, time
from pathlib import Path
from noisetilt_kernels.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def open_run(path: Path, workers: Workers = Workers()) -> None:  # noqa: B008  (immutable)
    with open_folder(path, SETTINGS, ComputeOptions(), workers, False):
        pass


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path: Path, holder: subprocess.Popen) -> None:
    in_use = f"{tmp_path} is in use by process {holder.pid}; wait for its end"
    for attempt in (check_unlocked, open_run):
        with pytest.raises(RunFolderError, match=in_use):
            attempt(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    check_unlocked(tmp_path)
    open_run(tmp_path)
    assert (tmp_path / "run.json").exists() and not (tmp_path / LOCK).exists()


def test_every_command_respects_the_lock(tmp_path: Path, holder: subprocess.Popen) -> None:
    model = ["--model", "digits", "--prompt", "a 7", "--reward", "brightness", "--out", str(tmp_path)]
    commands = [
        ["sample", "--steps", "1", *model],
        ["sample", "--steps", "1", *model, "--dry-run"],
        ["compare", "--method", "base:steps=1", *model],
    ]
    for command in commands:
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1, result.output
        assert f"is in use by process {holder.pid}" in result.output.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_run_in_a_running_comparison_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*_: object) -> LatentFlow:
        for path in (tmp_path, tmp_path / comparison.folder_name(SETTINGS.method)):
            with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"):
                open_run(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "load_model", load_model)
    with pytest.raises(KeyboardInterrupt):
        comparison.compare(SETTINGS, Comparison((str(SETTINGS.method),)), ComputeOptions(), tmp_path)
    assert not list(tmp_path.rglob(LOCK))


def test_processes_of_one_run_share_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workers, "wait", lambda workers: None)
    with open_folder(tmp_path, SETTINGS, ComputeOptions(), Workers(0, 2), False):
        assert json.loads((tmp_path / LOCK).read_text()) == {"host": platform.node(), "process": os.getpid()}
        open_run(tmp_path, Workers(1, 2))
        assert (tmp_path / LOCK).exists()


def test_a_lock_of_another_host_is_left_to_the_user(tmp_path: Path) -> None:
    """This host cannot see whether a process of another one still runs."""
    (tmp_path / LOCK).write_text('{"host": "elsewhere", "process": 7}')
    for attempt in (check_unlocked, open_run):
        with pytest.raises(RunFolderError, match=r"by process 7 on elsewhere; choose .*, or delete .*\.lock"):
            attempt(tmp_path)
    (tmp_path / LOCK).unlink()
    open_run(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "' + "x" * 5000, '{"host": 1, "process": 2}'])
def test_a_damaged_lock_of_an_ended_process_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    open_run(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_without_locks_of_the_file_system_the_process_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True)
    for process in (int(ended.stdout), 10**30):
        (tmp_path / LOCK).write_text(json.dumps({"host": platform.node(), "process": process}))
        open_run(tmp_path)
    with locked(tmp_path), pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"):
        check_unlocked(tmp_path)


def test_a_lock_that_is_removed_while_it_is_taken_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, removed = lock.fcntl.flock, []

    def removing(handle: int, how: int) -> None:
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        flock(handle, how)

    monkeypatch.setattr(lock.fcntl, "flock", removing)
    with locked(tmp_path), pytest.raises(RunFolderError, match="in use"):
        open_run(tmp_path)
