"""One run by several processes: the same images as by one process, and the failure of a process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from gaussian_flows import LatentFlow, brightness
from run_files import equal_files
from torch import distributed

from noisetilt_cli import main
from noisetilt_kernels.cli.errors import explained, on_interrupt
from noisetilt_kernels.rewards import WeightedSum, parse_rewards
from noisetilt_kernels.runs.execute import execute, open_folder
from noisetilt_kernels.runs.folder import Outcome, RunFolder, count_finished
from noisetilt_kernels.runs.settings import ComputeOptions, Settings
from noisetilt_kernels.runs.workers import Workers, connected, device_of_process
from noisetilt_kernels.sampling import StepRecord
from noisetilt_kernels.sampling.methods import Method

MODEL = ["--model", "digits", "--prompt", "a 7", "--prompt", "a 3", "--seed", "3"]
COMMAND = ["sample", *MODEL, "--steps", "2"]


def started(processes: int, *arguments: object, **environment: str) -> subprocess.Popen:
    """Start a command in several processes."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    return subprocess.Popen(
        [*command, "-m", "noisetilt_kernels", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def ended(run: subprocess.Popen) -> tuple[str, str]:
    """Wait for a command and return its stdout and stderr."""
    try:
        return run.communicate(timeout=300)
    finally:
        run.kill()


def torchrun(processes: int, *options: object, check: bool = True) -> subprocess.CompletedProcess:
    """Run `noisetilt sample` in several processes."""
    run = started(processes, *COMMAND, *options)
    done = subprocess.CompletedProcess(run.args, 0, *ended(run))
    done.returncode = run.returncode
    if check:
        done.check_returncode()
    return done


@pytest.mark.slow
def test_two_processes_make_the_same_files_as_one(tmp_path: Path) -> None:
    options = ["--particles", 3, "--micro-batch", 2, "--reward", "brightness", "--held-out", "digit-judge"]
    torchrun(1, *options, "--out", tmp_path / "one")
    printed = torchrun(2, *options, "--out", tmp_path / "two").stdout
    assert equal_files(tmp_path / "one") == equal_files(tmp_path / "two")
    assert len(list((tmp_path / "two").glob("*.jsonl"))) == 2
    records = [json.loads(line) for line in (tmp_path / "two" / "records.jsonl").read_text().splitlines()]
    assert sorted((one["particle"], one["step"]) for one in records) == [
        (p, s) for p in range(6) for s in range(2)
    ]
    assert printed.count("best:") == printed.count("NFE") == 1


@pytest.mark.slow
def test_a_failed_process_ends_the_run_which_can_be_resumed(tmp_path: Path) -> None:
    """A reward fails in the second process. Finished particles are kept; a single process makes the rest."""
    (tmp_path / "failing.py").write_text(
        "import os\n"
        "from noisetilt_kernels.rewards.simple import brightness\n"
        "def reward(images, prompts):\n"
        "    if os.environ.get('RANK') == '1':\n"
        "        raise ValueError('no judge is here')\n"
        "    return brightness(images, prompts)\n"
    )
    options = ["--particles", 2, "--reward", f"{tmp_path / 'failing.py'}:reward", "--out", tmp_path / "run"]
    failed = torchrun(2, *options, check=False)
    assert failed.returncode != 0 and "Error: no judge is here" in failed.stderr
    assert not (tmp_path / "run" / "summary.json").exists()
    torchrun(1, *options, "--resume")
    assert len((tmp_path / "run" / "results.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_stopped_comparison_resumes_with_more_processes(tmp_path: Path) -> None:
    """Ctrl-C is reported once, and a different number of processes makes the rest."""
    (tmp_path / "slow.py").write_text(
        "import os, time\n"
        "from noisetilt_kernels.rewards.simple import brightness\n"
        "def reward(images, prompts):\n"
        "    time.sleep(float(os.environ['SECONDS']))\n"
        "    return brightness(images, prompts)\n"
    )
    methods = ["--method", "base:steps=2", "--method", "svdd:steps=2,candidates=2"]
    options = [*methods, "--seeds", 3, "--micro-batch", 2, "--reward", f"{tmp_path / 'slow.py'}:reward"]
    command = ["compare", *MODEL, *options, "--out", tmp_path / "out"]
    run = started(2, *command, SECONDS="0.5")
    base, svdd = (tmp_path / "out" / name for name in ("base-steps2", "svdd-steps2-candidates2"))
    until = time.monotonic() + 200
    while not all((base / name).exists() for name in ("results.jsonl", "results-1.jsonl")):
        assert time.monotonic() < until and run.poll() is None, ended(run)
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, errors = ended(run)
    assert run.returncode != 0 and errors.count("stopped: finished images are in") == 1, errors
    run = started(3, *command, "--resume", SECONDS="0")
    printed, errors = ended(run)
    assert run.returncode == 0 and printed.count("| method |") == 1, errors
    for folder, steps in ((base, 2), (svdd, 2)):
        lines = {name: (folder / f"{name}.jsonl").read_text().splitlines() for name in ("results", "records")}
        assert [json.loads(line)["particle"] for line in lines["results"]] == list(range(6))
        records = [json.loads(line) for line in lines["records"]]
        assert sorted((one["particle"], one["step"]) for one in records) == [
            (particle, step) for particle in range(6) for step in range(steps)
        ]
        assert len(list(folder.glob("*.jsonl"))) == 2
    assert (tmp_path / "out" / "table.md").exists()


def test_sampling_starts_after_all_processes_have_read_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that read at different times would disagree on the shares and skip some particles."""
    together = threading.Barrier(2)
    monkeypatch.setattr(Workers, "wait", lambda workers: together.wait(timeout=60))
    read = RunFolder.read_outcomes
    monkeypatch.setattr(
        RunFolder, "read_outcomes", lambda folder: (folder._worker and time.sleep(0.3), read(folder))[1]
    )
    settings = Settings("none", ("a",), Method("base"), parse_rewards("brightness"))
    missing: dict[int, list[range]] = {}

    def process(rank: int) -> None:
        with open_folder(tmp_path / "run", settings, ComputeOptions(), Workers(rank, 2), False) as folder:
            missing[rank] = folder.missing_batches(3, 3)
            if rank == 0:
                one = Outcome(0, "a", 0.0, {"brightness": 0.0})
                folder.save_particle(one, torch.zeros(2, 4, 4), torch.zeros(3, 4, 4))

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missing == {0: [range(0, 3)], 1: [range(0, 3)]}


def test_the_end_of_another_process_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(distributed, "barrier", broken)
    with pytest.raises(click.ClickException, match="another process of this run has ended"), explained():
        Workers(0, 2).wait()
    Workers().wait()


def test_one_process_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = [*COMMAND, "--reward", "brightness", "--out", str(tmp_path / "run"), "--dry-run"]

    def printed() -> tuple[bool, bool]:
        with pytest.raises(SystemExit) as ended, on_interrupt(lambda: "halfway"):
            raise KeyboardInterrupt
        assert ended.value.code == 130
        return "NFE" in CliRunner().invoke(
            main, arguments
        ).stdout, "stopped: halfway" in capsys.readouterr().err

    assert printed() == (True, True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert printed() == (rank == "0", rank == "0")


def test_shares_are_whole_micro_batches() -> None:
    missing = [range(0, 2), range(2, 4), range(6, 8), range(8, 9)]
    shares = [Workers(rank, 3).share(missing) for rank in range(3)]
    assert shares == [[range(0, 2), range(8, 9)], [range(2, 4)], [range(6, 8)]]
    assert Workers().share(missing) == [range(0, 4), range(6, 9)]
    assert (
        Method("svdd", {"candidates": 3}).particles_at_once(8) == 2
        and Method("svdd").particles_at_once(2) == 1
    )
    assert Method("ntrk").particles_at_once(8) == 8


def test_a_share_counts_all_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With svdd, a particle takes one entry of the micro-batch per candidate."""
    sizes: list[int] = []
    batches = RunFolder.missing_batches
    monkeypatch.setattr(
        RunFolder, "missing_batches", lambda folder, *given: sizes.append(given[1]) or batches(folder, *given)
    )
    settings = Settings(
        "none", ("a",), Method("svdd", {"candidates": 2, "steps": 1}), parse_rewards("brightness")
    )
    folder = RunFolder(tmp_path, settings.to_json())
    execute(
        settings,
        ComputeOptions(micro_batch=5),
        folder,
        LatentFlow(),
        WeightedSum({"brightness": (1.0, brightness)}),
        {},
    )
    assert sizes == [2]


def test_lines_of_all_processes_are_merged(tmp_path: Path) -> None:
    first = RunFolder(tmp_path, {})
    second = RunFolder(tmp_path, {}, worker=1)
    for folder, particle in ((second, 0), (first, 1), (second, 2)):
        folder.save_particle(
            Outcome(particle, "a", particle / 2, {}), torch.zeros(2, 4, 4), torch.zeros(3, 4, 4)
        )
        with folder.records_file.open("a") as file:
            for one in (particle, particle + 5):  # the second one is not finished
                file.write(f"{StepRecord('base', one, 0, 1.0).to_json()}\n")
    assert second.results_file != first.results_file
    assert count_finished(tmp_path) == 3
    resumed = RunFolder(tmp_path, {}, resume=True)  # as if they had been stopped
    assert sorted(resumed.outcomes) == [0, 1, 2]
    assert [json.loads(line)["particle"] for line in resumed.results_file.read_text().splitlines()] == [
        0,
        1,
        2,
    ]
    assert [json.loads(line)["particle"] for line in resumed.records_file.read_text().splitlines()] in (
        [1, 0, 2],
        [0, 1, 2],
    )
    assert not second.results_file.exists() and not second.records_file.exists()


def test_a_run_of_several_processes_is_not_overwritten(tmp_path: Path) -> None:
    RunFolder(tmp_path, {})
    RunFolder(tmp_path, {}, worker=1).save_particle(
        Outcome(0, "a", 0.0, {}), torch.zeros(2, 4, 4), torch.zeros(3, 4, 4)
    )
    with pytest.raises(Exception, match="already holds a run with finished images"):
        RunFolder(tmp_path, {})


def test_each_process_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of_process("cuda") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert device_of_process("cuda") == "cuda:2"
    assert [device_of_process(device) for device in ("cpu", "cuda:1")] == ["cpu", "cuda:1"]


@pytest.mark.parametrize(("device", "backend"), [("cuda:1", "nccl"), ("cuda:0", "gloo"), ("cpu", "gloo")])
def test_processes_with_a_gpu_each_use_nccl(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str
) -> None:
    """Record the calls to torch; no GPU is needed."""
    asked: list[str] = []
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "set_device", lambda place: asked.append(str(place)))
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, **_: asked.append(backend))
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: asked.append("left"))
    with connected(device) as workers:
        assert workers == Workers(1, 2)
    assert asked == [*([device] if device != "cpu" else []), backend, "left"]


def test_local_rank_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match="LOCAL_RANK is not set"):
        device_of_process("cuda")
    assert device_of_process("cuda:1") == "cuda:1"
