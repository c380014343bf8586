"""Run a child process with a time limit, and read its output line by line."""

import ctypes
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

SECONDS_TO_DIE = 3.0
_GIVES_UP = "Timeout ("  # what faulthandler prints before it ends a process that is stuck (facts.py)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def _die_with_the_parent() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def run_child(
    command: Sequence[str],
    seconds: float,
    on_line: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> int | None:
    """Run a command, and call `on_line` for each line of its output and errors as soon as it is there.

    At the time limit the process and those that it started are killed. SIGKILL may not end a process whose
    kernel never ends. Such a process is left behind: this function returns all the same.

    Returns:
        The exit code, negative for a signal. None if the time limit was reached.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
            preexec_fn=_die_with_the_parent,
        )
    except OSError as error:
        on_line(f"{command[0]}: {error.strerror}")
        return 127
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    deadline, partial, open_pipe = time.monotonic() + seconds, b"", True
    with process.stdout, selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while open_pipe and time.monotonic() < deadline:
            # A process that the child started may hold the pipe open after the child has ended.
            ended = process.poll() is not None
            if not selector.select(0 if ended else max(0.0, min(0.2, deadline - time.monotonic()))):
                if ended:
                    break
                continue
            piece = process.stdout.read() or b""
            open_pipe = piece != b""
            *lines, partial = (partial + piece).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace")
                if text.startswith(_GIVES_UP):
                    deadline = min(deadline, time.monotonic() + SECONDS_TO_DIE)
                on_line(text)
        if partial:
            on_line(partial.decode(errors="replace"))
        try:
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = None
    if code is None:
        _kill(process, on_line)
    return code


def _kill(process: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(SECONDS_TO_DIE)
    except subprocess.TimeoutExpired:
        on_line(f"process {process.pid} does not end after SIGKILL; it is left behind")
