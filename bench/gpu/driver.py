"""Run steps one after the other, and write down each fact as soon as it is found.

A run can be killed at any moment: its folder then holds everything that was found so far. It never holds more
than the FILES, and none of them grows beyond MOST_BYTES.
"""

import io
import json
import os
import re
import sys
import tarfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..report import gpu_tables
from .child import run_child

SUMMARY = "summary.txt"  # a line for each fact
RESULTS = "results.json"  # facts, steps and rows of benchmarks
TABLES = "tables.md"  # of the rows
RUNNING = "running.log"  # output of the step that runs, without the middle
LOGS = "logs.tar.gz"  # output of the steps that ended
FILES = (SUMMARY, RESULTS, TABLES, RUNNING, LOGS)

MOST_BYTES = 16 << 20
LOG_BYTES = 256 << 10  # of the beginning, and of the end, of a step's output
FACT_CHARACTERS = 400
MOST_STEPS = 30  # so many logs fit into the archive, even if they cannot be compressed


@dataclass(frozen=True)
class Step:
    """A child process with a time limit.

    Attributes:
        name: what the step does, in a few words.
        command: program and arguments; "python" is the interpreter of the driver.
        seconds: time limit.
        library: CUDA library that the package loads, a folder of `prepare`; None: the tree as it is.
        environment: variables for the process.
        instead_of: the step runs only if the step of this name failed. If both fail, the run ends.
        faults: regular expression of lines of the output that are failures.
    """

    name: str
    command: Sequence[str]
    seconds: float
    library: str | None = "standard"
    environment: Mapping[str, str] = field(default_factory=dict)
    instead_of: str | None = None
    faults: str | None = None


class Report:
    """Files of a run in a folder."""

    def __init__(self, folder: Path, run: str):
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        self._folder = folder
        self._start = time.monotonic()
        self._logs: dict[str, bytes] = {}
        self._beginning = self._end_bytes = 0
        self._end: deque[bytes] = deque()
        self.results: dict[str, Any] = {
            "run": run,
            "backend": None,
            "machine_info": None,
            "datetime": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "steps": [],
            "facts": [],
            "benchmarks": [],
        }

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def fact(self, step: str, text: str, ok: bool | None) -> None:
        """Write a fact down. `ok` None: a figure, which is neither right nor wrong."""
        mark = {True: "ok", False: "FAILED", None: ""}[ok]
        text = " ".join(text.split())[:FACT_CHARACTERS]
        line = f"{self.seconds():4.0f}s  {mark:6}  {step}: {text}"
        print(line, flush=True)
        with (self._folder / SUMMARY).open("a") as file:
            file.write(line + "\n")
        self.results["facts"].append({"step": step, "fact": text, "ok": ok})
        self.save()

    def save(self) -> None:
        self._replace(RESULTS, (json.dumps(self.results, indent=1) + "\n").encode())

    def log(self, line: str) -> None:
        """Write a line of the running step's output."""
        data = (line + "\n").encode(errors="replace")
        if self._beginning + len(data) <= LOG_BYTES:
            self._beginning += len(data)
            with (self._folder / RUNNING).open("ab") as file:
                file.write(data)
            return
        self._beginning = LOG_BYTES  # no later, shorter line belongs to the beginning
        self._end.append(data[-LOG_BYTES:])
        self._end_bytes += len(self._end[-1])
        while self._end_bytes > LOG_BYTES:
            self._end_bytes -= len(self._end.popleft())

    def end_step(self, step: str) -> None:
        """Move the running step's output into the archive, and make the tables again."""
        running = self._folder / RUNNING
        beginning = running.read_bytes() if running.exists() else b""
        cut = b"... (cut)\n" if self._end else b""
        self._logs[f"{len(self._logs):02}-{step.replace(' ', '-').replace('/', '-')}.log"] = b"".join(
            [beginning, cut, *self._end]
        )
        self._beginning = self._end_bytes = 0
        self._end.clear()
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as file:
            for name, content in self._logs.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
        self._replace(LOGS, archive.getvalue())
        running.unlink(missing_ok=True)
        if self.results["benchmarks"] and self.results["machine_info"]:
            try:
                tables = gpu_tables(self._folder / RESULTS)
            except Exception as error:  # nothing that a step prints may end the run
                self.fact(step, f"no tables: {type(error).__name__}: {error}", False)
            else:
                self._replace(TABLES, (tables + "\n").encode())

    def _replace(self, name: str, content: bytes) -> None:
        """Write a file as a whole: a kill leaves the old one or the new one."""
        temporary = self._folder / f"{name}.new"
        temporary.write_bytes(content)
        temporary.replace(self._folder / name)


class Driver:
    """Runs steps within a time limit of all together."""

    def __init__(
        self, report: Report, seconds: float, scratch: Path, folder_of: Callable[[str | None], Path]
    ):
        """folder_of: returns the folder in which a process finds the package with a library."""
        self._report = report
        self._seconds = seconds
        self._folder_of = folder_of
        self._failed: set[str] = set()
        self._scratch = scratch
        self._last_line = ""

    def run(self, steps: Sequence[Step]) -> bool:
        """Run the steps. Return True if all succeeded."""
        for step in steps:
            if step.instead_of is not None and step.instead_of not in self._failed:
                continue
            if not self._run_step(step):
                self._failed.add(step.name)
            elif step.instead_of is not None:
                self._failed.discard(step.instead_of)
            if {step.instead_of, step.name} <= self._failed:
                self._report.fact(step.name, "nothing else can succeed; the run ends here", False)
                break
        names = ", ".join(sorted(self._failed))
        self._report.fact("end", f"failed: {names}" if names else "all steps succeeded", not names)
        return not names

    def _run_step(self, step: Step) -> bool:
        """Run a step, and again for its remaining cases after a case that ended the process."""
        report, start = self._report, time.monotonic()
        deadline = start + min(step.seconds, self._seconds - report.seconds())
        if deadline - start < 1:
            report.fact(step.name, "not run: the time of this run is over", False)
            return False
        report.fact(step.name, f"begins, at most {deadline - start:.0f} s", None)
        begun = self._scratch / f"{step.name.replace('/', '-')}.begun"
        succeeded, before = False, 0
        facts_before = len(report.results["facts"])
        while True:
            done, self._last_line = False, ""

            def read(line: str) -> None:
                nonlocal done
                done |= self._read(step, line)

            code = run_child(
                [sys.executable if part == "python" else part for part in step.command],
                deadline - time.monotonic(),
                read,
                self._environment(step, begun),
                self._folder_of(step.library),
            )
            cases = begun.read_text().splitlines() if begun.exists() else []
            if code == 0 or (done and code is not None):
                succeeded = code == 0 and all(
                    fact["ok"] is not False for fact in report.results["facts"][facts_before:]
                )
                break
            how = "was killed at its time limit" if code is None else f"ended with code {code}"
            report.fact(
                step.name, f"the process {how}{f' in, or after: {cases[-1]}' if cases else ''}", False
            )
            if len(cases) <= before or deadline - time.monotonic() < 3:
                break
            before = len(cases)
        took = time.monotonic() - start
        report.results["steps"].append({"step": step.name, "succeeded": succeeded, "seconds": round(took, 1)})
        counted = f", {len(cases)} cases" if cases else ""
        last = f" | {self._last_line}" if self._last_line else ""
        report.fact(step.name, f"{'done' if succeeded else 'failed'}, {took:.0f} s{counted}{last}", succeeded)
        report.end_step(step.name)
        return succeeded

    def _read(self, step: Step, line: str) -> bool:
        """Read a line of a step's output. Return True if it is the last of its cases."""
        self._report.log(line)
        message = _message(line)
        if not message and line.strip():
            self._last_line = line.strip()[:200]
        if step.faults and re.match(step.faults, line):
            self._report.fact(step.name, line, False)
        if "fact" in message:
            self._report.fact(step.name, str(message["fact"]), message.get("ok"))
        if "row" in message:
            self._report.results["benchmarks"].append(message["row"])
            self._report.save()
        if "machine" in message:
            self._report.results |= dict(message["machine"])
        return "done" in message

    def _environment(self, step: Step, begun: Path) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "XDG_CACHE_HOME": str(self._scratch / "cache"),  # tables of this run only
            "TRITON_CACHE_DIR": str(self._scratch / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(self._scratch / "inductor"),
            "NOISETILT_BEGUN": str(begun),
            **step.environment,
        }


def _message(line: str) -> dict[str, Any]:
    """Return a line of facts.py, or an empty dictionary for any other line."""
    if not line.startswith("{"):
        return {}
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
