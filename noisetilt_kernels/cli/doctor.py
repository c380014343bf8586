"""Report of `noisetilt doctor`: the installed parts, and the backend of each device."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from ..backends import FORCED, backends, library, table_cache
from ..checks import shown
from ..config import DEFAULT_ALPHA, describe, resolve_preset, sample_of
from ..versions import versions

Report = dict[str, Any]


def examine(latents: str | None = None) -> Report:
    """Return the state of this installation as a JSON object.

    Args:
        latents: shape of latents, such as "16x64x64", for which the preset "auto" is resolved.

    Returns:
        versions: versions of the package, Python, torch, and of the optional packages that are installed.
        platform: operating system and architecture.
        cpu: model, cores this process may use, torch_threads, and variant of the compiled kernels (or None).
        cuda: version of CUDA that torch was built for (or None), and names of the devices.
        library: path of the compiled library in use and its build flags; or failure, the reason why there is
            none, and how_to_build.
        cuda_library: path, failure and build flags of the CUDA library; its failure is also the reason why
            the cuda backend refuses.
        forced_backend: backend named by NOISETILT_BACKEND (or None).
        devices: for each device type: present, the backend that serves it, and for every preferred backend
            the reason why it does not.
        table_cache: directory of the confidence tables kept on disk (None if there is no home directory or no
            safetensors), number of files, their bytes, and most_bytes, the limit at which the oldest are
            removed.
        whitening: description of the preset "auto" for the latents, and their shape; only with latents.
        verdict: one line of text.

    Raises:
        ValueError: the latents are no shape of one sample, or the preset does not fit them.
    """
    report: Report = {
        "versions": versions(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cuda": _cuda(),
        "library": _compiled_library(),
        "cuda_library": _cuda_library(),
        "forced_backend": None if FORCED is None else FORCED.NAME,
        "devices": _devices(),
        "table_cache": _table_cache(),
    }
    if latents is not None:
        report["whitening"] = {"latents": latents, "auto": _whitening(latents)}
    report["verdict"] = _verdict(report)
    return report


def render(report: Report) -> str:
    """Return the report of `examine` as aligned text; the last line is the verdict."""
    rows = list(report["versions"].items())
    rows.append(("platform", report["platform"]))
    rows += _render_hardware(report)
    rows += _render_library("library", report["library"])
    rows += _render_library("cuda library", report["cuda_library"])
    if report["forced_backend"] is not None:
        rows.append(("NOISETILT_BACKEND", report["forced_backend"]))
    for device, status in report["devices"].items():
        absent = "" if status["present"] else "  (no such device here)"
        rows.append((f"{device} backend", f"{status['backend']}: {status['detail']}{absent}"))
        rows += [("", f"not {backend}: {reason}") for backend, reason in status["refused"].items()]
    rows.append(("table cache", _render_cache(report["table_cache"])))
    if "whitening" in report:
        rows.append((f"W of {report['whitening']['latents']}", report["whitening"]["auto"]))

    width = max(len(label) for label, _ in rows)
    lines = [f"{label:{width}}  {text}" for label, text in rows]
    return "\n".join([*lines, "", report["verdict"]])


def _whitening(latents: str) -> str:
    try:
        shape = [int(side) for side in latents.lower().split("x")]
    except ValueError:
        raise ValueError(f"doctor: must be a shape such as 16x64x64, got {shown(latents)}") from None
    sample = sample_of("doctor", [1, *shape] if len(shape) == 4 else shape, "the shape")
    return describe(resolve_preset("auto", sample, DEFAULT_ALPHA), sample)


def _cpu() -> dict[str, Any]:
    return {
        "model": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "variant": library.build_info().get("variant"),
    }


def cpu_model() -> str:
    """Return the name of the processor."""
    # on Linux platform.processor() gives at most the architecture; on aarch64 /proc/cpuinfo names no model
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cuda() -> dict[str, Any]:
    return {
        "version": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _compiled_library() -> dict[str, Any]:
    if library.failure is not None:
        return {"path": None, "failure": library.failure, "how_to_build": library.HOW_TO_BUILD, "build": {}}
    path = str(library.path("_C"))
    return {"path": path, "failure": None, "how_to_build": None, "build": library.build_info()}


def _cuda_library() -> dict[str, Any]:
    path = None if library.cuda_failure is not None else str(library.path("_C_cuda"))
    return {"path": path, "failure": library.cuda_failure, "build": library.cuda_build_info()}


def _devices() -> dict[str, Any]:
    return {
        device: {
            "present": device == "cpu" or (device == "cuda" and torch.cuda.is_available()),
            "backend": status.backend,
            "detail": status.detail,
            "refused": dict(status.refused),
        }
        for device, status in backends().items()
    }


def _table_cache() -> dict[str, Any]:
    folder = table_cache.directory()
    files = [] if folder is None else table_cache.files(folder)
    return {
        "directory": None if folder is None else str(folder),
        "files": len(files),
        "bytes": sum(status.st_size for _, status in files),
        "most_bytes": table_cache.MOST_BYTES,
    }


def _verdict(report: Report) -> str:
    cpu = report["devices"]["cpu"]["backend"]
    if cpu == "reference" and report["forced_backend"] is None:
        return f"cpu: slow pure-PyTorch reference; for the compiled kernels {library.HOW_TO_BUILD}"
    return "; ".join(
        f"{device}: {status['backend']}, {status['detail']}"
        for device, status in report["devices"].items()
        if status["present"]
    )


def _render_hardware(report: Report) -> list[tuple[str, str]]:
    cpu, cuda = report["cpu"], report["cuda"]
    version = (
        "torch is built without CUDA"
        if cuda["version"] is None
        else f"torch is built for CUDA {cuda['version']}"
    )
    return [
        ("cpu", f"{cpu['model']}, {cpu['cores']} cores, {cpu['torch_threads']} torch threads"),
        ("cuda", f"{', '.join(cuda['devices']) or 'no device'}; {version}"),
    ]


def _render_cache(cache: dict[str, Any]) -> str:
    if cache["directory"] is None:
        return "in memory only: there is no home directory, or no safetensors"
    size, most = (f"{cache[name] / 1e6:.1f} MB" for name in ("bytes", "most_bytes"))
    return f"{cache['directory']}  ({cache['files']} files, {size} of at most {most})"


def _render_library(label: str, library: dict[str, Any]) -> list[tuple[str, str]]:
    if library["failure"] is not None:
        return [(label, f"not in use: {library['failure']}")]
    return [(label, library["path"]), *((f"  {key}", value) for key, value in library["build"].items())]
