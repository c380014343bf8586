"""Run the benchmarks, write bench/results/<machine>-<date>.json, and print the table."""

import datetime
import json
import platform
import re
import sys
from pathlib import Path

import pytest

from . import report

HERE = Path(__file__).parent


def drop_raw_times(results: Path) -> None:
    """Remove the individual times and the list of processor features from a results file."""
    run = json.loads(results.read_text())
    run["machine_info"]["cpu"].pop("flags", None)
    for benchmark in run["benchmarks"]:
        benchmark["stats"].pop("data", None)
    results.write_text(json.dumps(run, indent=1) + "\n")


def main() -> int:
    """Run with pytest's command-line arguments, for example `-k order_stats` or `--minutes 5`.

    After the time limit, or Ctrl-C, the results of the finished cases are written and printed.
    """
    machine = re.sub(r"[^a-z0-9]+", "-", f"{report.cpu_model()} {platform.machine()}".lower()).strip("-")
    results = HERE / "results" / f"{machine}-{datetime.date.today()}.json"
    results.parent.mkdir(exist_ok=True)
    options = ["-q", "-s", "-p", "no:cacheprovider", "--benchmark-columns=min,median,rounds", "-rs"]
    code = pytest.main(
        [*options, f"--benchmark-json={results}", *sys.argv[1:], *map(str, sorted(HERE.glob("bench_*.py")))]
    )
    if results.exists() and results.stat().st_size:
        drop_raw_times(results)
        print(f"\n{report.table(results)}\n\n{results}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
