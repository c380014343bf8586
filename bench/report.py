"""Tables of benchmark results. `python -m bench.report RESULTS...` prints the tables of GPU runs."""

import json
import sys
from pathlib import Path
from typing import Any


def cpu_model() -> str:
    """Return the processor's name from /proc/cpuinfo, or "cpu"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def table(results: Path) -> str:
    """Return a Markdown table of a results file, with a row per case and median times."""
    run = json.loads(results.read_text())
    rows = [
        "| case | ours | eager | ratio (medians) | (minima) | target | |",
        "|---|---|---|---|---|---|---|",
    ]
    for benchmark in run["benchmarks"]:
        rows += _rows(benchmark["name"].removeprefix("test_"), benchmark["extra_info"])
    info = run["benchmarks"][0]["extra_info"] if run["benchmarks"] else {}
    machine = (
        f"{cpu_model()}, {info.get('threads')} threads, torch {info.get('torch')}, {run['datetime'][:10]}"
    )
    return "\n".join([machine, "", *rows])


def _rows(name: str, info: dict[str, Any]) -> list[str]:
    rows = []
    ours = _duration(info["seconds"]["ours"]["p50"])
    for baseline, ratio in info["ratios"].items():
        target = info["target"] if baseline == info["eager"] else None
        verdict = "" if target is None else "met" if ratio["medians"] >= target else "missed"
        if not info.get("undisturbed", True):
            verdict = f"{verdict} (busy machine)".strip()
        theirs = f"{_duration(info['seconds'][baseline]['p50'])} ({baseline})"
        medians, minima = f"{ratio['medians']:.1f}", f"{ratio['minima']:.1f}"
        goal = "" if target is None else f">= {target:g}"
        rows.append(f"| {name} | {ours} | {theirs} | {medians} | {minima} | {goal} | {verdict} |")
    return rows


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def gpu_tables(*results: Path) -> str:
    """Return Markdown of results files of `python -m bench.gpu`, one per backend, and a comparison of the
    backends.
    """
    runs = [json.loads(path.read_text()) for path in results]
    parts = [_gpu_run(run) for run in runs]
    if len(runs) > 1:
        parts.append(_gpu_backends(runs))
    return "\n\n".join(parts)


def _gpu_run(run: dict[str, Any]) -> str:
    """Return Markdown of one run: times, details, failures, targets."""
    machine = run["machine_info"]
    failed = [result for result in run["benchmarks"] if "error" in result]
    rows = [result for result in run["benchmarks"] if "error" not in result]
    versions = f"torch {machine['torch']}, CUDA {machine['cuda']}, Triton {machine['triton']}"
    parts = [f"**{run['backend']}**, {machine['gpu']}, {versions}, {run['datetime'][:10]}, medians"]
    parts.append(_gpu_times([row for row in rows if row["seconds"]]))
    parts.append(
        "\n".join(f"- {row['name'].strip()}: {_notes(row)}" for row in rows if row["notes"] or row["against"])
    )
    if failed:
        parts.append("\n".join(["Failed:", *(f"- {result['name']}: {result['error']}" for result in failed)]))
    parts.append(_gpu_targets(rows))
    return "\n\n".join(parts)


def _gpu_backends(runs: list[dict[str, Any]]) -> str:
    """Return a table of GPU times of all cases that every run has."""
    times = [
        {
            row["name"]: row["seconds"]["warm"]["p50"]
            for row in run["benchmarks"]
            if "warm" in row.get("seconds", {})
        }
        for run in runs
    ]
    lines = [
        f"| GPU, L2 warm | {' | '.join(run['backend'] for run in runs)} |",
        "|---" * (len(runs) + 1) + "|",
    ]
    for name in times[0]:
        if all(name in others for others in times):
            lines.append(f"| {name} | {' | '.join(fine(run[name]) for run in times)} |")
    return "\n".join(lines)


def _gpu_times(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| case | GPU, L2 warm | L2 cold | call | copy, warm | copy, cold "
        "| launches | as many tiny kernels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = [
            fine(row["seconds"][kind]["p50"]) if kind in row["seconds"] else ""
            for kind in ("warm", "cold", "call")
        ]
        floors = [
            fine(row["floors"][kind]) if kind in row["floors"] else "" for kind in ("copy", "copy, cold")
        ]
        nothing = fine(row["floors"]["launches"]) if "launches" in row["floors"] else ""
        lines.append(f"| {' | '.join([row['name'], *times, *floors, str(row['launches'] or ''), nothing])} |")
    return "\n".join(lines)


def _gpu_targets(rows: list[dict[str, Any]]) -> str:
    lines = ["| target | case | measured | wanted | |", "|---|---|---|---|---|"]
    for row in rows:
        for check in row["checks"]:
            show = fine if check["unit"] == "s" else "{:.2f}x".format
            sign = ">=" if check["at_least"] else "<="
            verdict = "met" if check["met"] else "**missed**"
            value, target = show(check["value"]), show(check["target"])
            lines.append(f"| {check['what']} | {row['name']} | {value} | {sign} {target} | {verdict} |")
    return "\n".join(lines)


def _notes(row: dict[str, Any]) -> str:
    notes = [f"{name} {fine(seconds)}" for name, seconds in row["against"].items()]
    for name, value in row["notes"].items():
        if isinstance(value, dict):
            value = ", ".join(f"{key}: {fine(seconds)}" for key, seconds in value.items())
        elif name.endswith("time"):
            value = fine(value)
        notes.append(f"{name} {value}")
    return "; ".join(notes)


def fine(seconds: float) -> str:
    """Return a time with three or four digits, from 0.1 us on."""
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-4 else _duration(seconds)


if __name__ == "__main__":
    print(gpu_tables(*map(Path, sys.argv[1:])))
