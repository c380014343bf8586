"""Facts that a step finds, and the cases that it consists of. The driver (`run.py`) reads both.

A fact is a line of JSON on the output. A fault on the GPU makes every later call of the process fail, and a
kernel that never ends blocks it. In both cases the process ends, and the driver starts it again for the
remaining cases: the file that NOISETILT_BEGUN names lists the cases that have begun, which are not run again.
"""

import faulthandler
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FAULT = 70  # exit code after a fault on the GPU

_begun = os.environ.get("NOISETILT_BEGUN")
IN_A_RUN = bool(_begun)
"""True if the driver started this process."""


def tell(fact: str, ok: bool | None = None) -> None:
    """Print a fact. `ok`: whether it is as it should be; None for a figure."""
    print(json.dumps({"fact": fact, "ok": ok}), flush=True)


def tell_row(row: Mapping[str, Any]) -> None:
    """Print a row of the tables of benchmarks, see `bench.report`."""
    print(json.dumps({"row": row}), flush=True)


def tell_machine(facts: Mapping[str, Any]) -> None:
    """Print what the tables say of the machine: `backend` and `machine_info`."""
    print(json.dumps({"machine": facts}), flush=True)


def tell_done() -> None:
    """Tell that the process has run all cases. The driver then does not start it again."""
    print(json.dumps({"done": True}), flush=True)


def begun_before() -> set[str]:
    """Return the cases that an earlier process of this step began."""
    return set(Path(_begun).read_text().splitlines()) if _begun and Path(_begun).exists() else set()


def begin(case: str, seconds: float) -> None:
    """Note that a case begins. If `end` is not called in time, the process ends."""
    if _begun:
        with open(_begun, "a") as file:
            file.write(case + "\n")
        faulthandler.dump_traceback_later(seconds, exit=True)


def end() -> str | None:
    """End a case. Return the message of a fault on the GPU, after which the process must end, or None."""
    import torch

    try:
        torch.cuda.synchronize()
        return None
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        faulthandler.cancel_dump_traceback_later()


def run_cases(cases: Mapping[str, Callable[[], str]], seconds: float) -> int:
    """Run the cases one after the other, each at most `seconds`, and print a fact for each.

    A case returns what it found. An exception is a failure. Returns 1 if a case failed, otherwise 0.
    """
    skipped, failed = begun_before(), False
    for name, case in cases.items():
        if name in skipped:
            continue
        begin(name, seconds)
        start = time.perf_counter()
        try:
            found, ok = case(), True
        except Exception as error:
            found, ok = f"{type(error).__name__}: {str(error)[:300]}", False
        took = time.perf_counter() - start
        fault = end()
        if fault:
            tell(f"{name}: a fault on the GPU: {fault}", False)
            os._exit(FAULT)
        tell(f"{name}: {found} ({took:.1f} s)", ok)
        failed |= not ok
    tell_done()
    return int(failed)
