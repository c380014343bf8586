"""Tests that need a GPU. Without one, nothing is collected here.

In a run of `bench/gpu.sh`, a test that leaves a fault on the GPU, or that never ends, ends the process, and
the run starts another one for the remaining tests (bench/gpu/facts.py). A failure becomes a fact at once.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from bench.gpu import facts

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]

# Time limit of a test. With Triton, a test may have to compile a few dozen kernels.
SECONDS = 150 if os.environ.get("NOISETILT_BACKEND") == "triton" else 60

ENDED = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    begun = facts.begun_before()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in begun])
    items[:] = [item for item in items if item.nodeid not in begun]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if facts.IN_A_RUN and report.failed:
        message = getattr(report.longrepr, "reprcrash", None)
        facts.tell(f"{report.nodeid}: {message.message if message else report.longreprtext[-300:]}", False)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if facts.IN_A_RUN and exitstatus in ENDED:
        facts.tell_done()


@pytest.fixture(autouse=True)
def _end_the_process_after_a_fault(request: pytest.FixtureRequest) -> Iterator[None]:
    facts.begin(request.node.nodeid, SECONDS)
    yield
    fault = facts.end()
    if fault and facts.IN_A_RUN:
        facts.tell(f"{request.node.nodeid}: a fault on the GPU, or in work before it: {fault}", False)
        pytest.exit("a fault on the GPU", returncode=facts.FAULT)
    assert fault is None, fault
