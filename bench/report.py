"""The table of a benchmark run."""

import json
from pathlib import Path
from typing import Any


def cpu_model() -> str:
    """The processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def table(results: Path) -> str:
    """Markdown table of a results file: one row a case, times as medians."""
    run = json.loads(results.read_text())
    rows = ["| case | ours | eager | ratio (medians) | (minima) | target | |", "|---|---|---|---|---|---|---|"]
    for benchmark in run["benchmarks"]:
        rows += _rows(benchmark["name"].removeprefix("test_"), benchmark["extra_info"])
    info = run["benchmarks"][0]["extra_info"] if run["benchmarks"] else {}
    machine = f"{cpu_model()}, {info.get('threads')} threads, torch {info.get('torch')}, {run['datetime'][:10]}"
    return "\n".join([machine, "", *rows])


def _rows(name: str, info: dict[str, Any]) -> list[str]:
    rows = []
    ours = _duration(info["seconds"]["ours"]["p50"])
    for baseline, ratio in info["ratios"].items():
        target = info["target"] if baseline == info["eager"] else None
        verdict = "" if target is None else "met" if ratio["medians"] >= target else "missed"
        theirs = f"{_duration(info['seconds'][baseline]['p50'])} ({baseline})"
        medians, minima = f"{ratio['medians']:.1f}", f"{ratio['minima']:.1f}"
        goal = "" if target is None else f">= {target:g}"
        rows.append(f"| {name} | {ours} | {theirs} | {medians} | {minima} | {goal} | {verdict} |")
    return rows


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"
