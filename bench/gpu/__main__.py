"""Run the benchmarks on the current GPU, write bench/results/<device>-<date>.json, and print the tables.

The preferred backend is measured. NOISETILT_BACKEND=triton measures the Triton backend and writes
<device>-triton-<date>.json.

Every group of cases runs in a separate process with a time limit. A fault on the GPU, or a kernel that never
ends, costs only the rest of its group.
"""

import argparse
import datetime
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import noisetilt_kernels as nt

from .. import report
from .child import run_child
from .measure import machine_info

RESULTS = Path(__file__).parents[1] / "results"


def run_group(name: str) -> None:
    """Run a group of cases, and print a line of JSON for each. Meant for a separate process."""
    from .. import baselines
    from . import cases, measure

    baselines.device = measure.DEVICE
    for row in cases.GROUPS[name][1]():
        if isinstance(row, cases.Failure):
            result: dict[str, Any] = row._asdict()
        else:
            result = asdict(row) | {"checks": [asdict(check) | {"met": check.met} for check in row.checks]}
        print(json.dumps(result), flush=True)
        torch.cuda.synchronize()  # raises after a fault: no later result of this process is reliable
        torch.cuda.empty_cache()


def collect(name: str, seconds: float) -> list[dict[str, Any]]:
    """Run a group in a process and return its results. If some are missing, the last result says why."""
    results: list[dict[str, Any]] = []

    def read(line: str) -> None:
        if line.startswith("{") and line.endswith("}"):
            results.append(json.loads(line))
        else:
            print(line, flush=True)

    code = run_child([sys.executable, "-u", "-m", "bench.gpu", "--group", name], seconds, read)
    if code is None:
        results.append({"name": name, "error": f"not finished within {seconds:.0f} s"})
    elif code:
        results.append({"name": name, "error": f"ended with code {code}"})
    return [result | {"group": name} for result in results]


def commit() -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return (
            subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=RESULTS).stdout.strip()
            or None
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=400, help="time limit of all groups together (default: 400)"
    )
    parser.add_argument("--only", nargs="*", help="names of the groups to run (default: all)")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.gpu: torch finds no GPU; nothing was measured")
        return 2
    if options.group:
        run_group(options.group)
        return 0

    from .cases import GROUPS

    machine = machine_info()
    backend = nt.backends()["cuda"].backend
    slug = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
    other = "" if backend == "cuda" else f"-{backend}"
    path = RESULTS / f"{slug}{other}-{datetime.date.today()}.json"
    run: dict[str, Any] = {
        "backend": backend,
        "machine_info": machine,
        "commit": commit(),
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "benchmarks": [],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    for name, (limit, _) in GROUPS.items():
        if options.only and name not in options.only:
            continue
        left = deadline - time.monotonic()
        results = [{"name": name, "error": "not run: the time limit was reached", "group": name}]
        if left > 10:
            start = time.monotonic()
            results = collect(name, min(limit, left))
            print(f"{name}: {len(results)} results, {time.monotonic() - start:.0f} s", flush=True)
        run["benchmarks"] += results
        path.write_text(json.dumps(run, indent=1) + "\n")
    print(f"\n{report.gpu_tables(path)}\n\n{path}")
    return int(any("error" in result for result in run["benchmarks"]))


if __name__ == "__main__":
    sys.exit(main())
