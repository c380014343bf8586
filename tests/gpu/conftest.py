"""Tests that need a GPU. Without one, nothing is collected here.

A fault on the GPU makes every later call of the process fail, and a kernel that never ends blocks it. In both
cases the process ends, and `bench/gpu.sh` starts another one for the remaining tests. NOISETILT_TESTS_BEGUN
names a file that lists the tests that have begun; they are not run again. Failures are also written to a file
*.where beside it, because a process that ends early prints no report.

NOISETILT_TESTS_SHARE=2/3 runs the second of three shares of the tests. With the Triton backend, all tests
together compile about 800 kernels, 0.4 s each.
"""

import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]

# Time limit of a test. With Triton, a test may have to compile a few dozen kernels.
SECONDS = 150 if os.environ.get("NOISETILT_BACKEND") == "triton" else 60
FAULT = 70  # exit code after a fault on the GPU

_begun = os.environ.get("NOISETILT_TESTS_BEGUN")
_where = open(f"{_begun}.where", "w") if _begun else None  # noqa: SIM115


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share, shares = map(int, os.environ.get("NOISETILT_TESTS_SHARE", "1/1").split("/"))
    begun = set(Path(_begun).read_text().splitlines()) if _begun and Path(_begun).exists() else set()
    chosen = [item for item in items[share - 1 :: shares] if item.nodeid not in begun]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_runtest_logstart(nodeid: str) -> None:
    if _begun:
        with open(_begun, "a") as file:
            file.write(nodeid + "\n")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if _where and report.failed:
        print(f"{report.nodeid}:\n{report.longreprtext[-2000:]}\n", file=_where, flush=True)


@pytest.fixture(autouse=True)
def _end_the_process_after_a_fault() -> Iterator[None]:
    if _where:
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=_where)
    yield
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if _begun:
            pytest.exit(
                f"a fault on the GPU, caused by this test or by work that it left running: {error}",
                returncode=FAULT,
            )
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()
