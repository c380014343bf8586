"""Several processes make one run: the same images as one process, and what happens when one of them fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from noisetilt_kernels.runs.folder import Outcome, RunFolder
from noisetilt_kernels.runs.methods import Method
from noisetilt_kernels.runs.workers import Workers, own_device

COMMAND = ["sample", "--model", "digits", "--prompt", "a 7", "--prompt", "a 3", "--steps", "2", "--seed", "3"]


def torchrun(processes: int, *options: object, check: bool = True) -> subprocess.CompletedProcess:
    """`noisetilt sample` in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*command, "-m", "noisetilt_kernels", *COMMAND, *map(str, options)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=check,
    )


def files(folder: Path) -> dict[str, bytes]:
    """What two runs of the same settings have in common."""
    differ = {"run.json", "records.jsonl"}  # times are in them
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name not in differ
    }


def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    options = ["--particles", 3, "--micro-batch", 2, "--reward", "brightness", "--held-out", "digit-judge"]
    torchrun(1, *options, "--out", tmp_path / "one")
    told = torchrun(2, *options, "--out", tmp_path / "two").stdout
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len(list((tmp_path / "two").glob("*.jsonl"))) == 2
    records = [json.loads(line) for line in (tmp_path / "two" / "records.jsonl").read_text().splitlines()]
    assert sorted((one["particle"], one["step"]) for one in records) == [(p, s) for p in range(6) for s in range(2)]
    assert told.count("best:") == told.count("NFE") == 1


def test_a_process_that_fails_ends_the_run_and_it_goes_on(tmp_path: Path) -> None:
    """Of the second process a reward fails; what was finished is kept, and a single process makes the rest."""
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


def test_each_has_its_own_share_in_whole_micro_batches() -> None:
    missing = [range(0, 5), range(7, 10)]
    shares = [Workers(rank, 3).share(missing, 2) for rank in range(3)]
    assert shares == [
        [range(0, 2), range(7, 9)],
        [range(2, 4), range(9, 10)],
        [range(4, 5)],
    ]
    assert Workers().share(missing, 2) == missing
    assert Method("svdd", {"candidates": 3}).at_once(8) == 2 and Method("svdd").at_once(2) == 1
    assert Method("ntrk").at_once(8) == 8


def test_lines_of_all_processes_are_gathered(tmp_path: Path) -> None:
    first = RunFolder(tmp_path, {})
    second = RunFolder(tmp_path, {}, worker=1)
    for folder, particle in ((second, 0), (first, 1), (second, 2)):
        folder.keep(Outcome(particle, "a", particle / 2, {}), torch.zeros(2, 4, 4), torch.zeros(3, 4, 4))
        with folder.records_file.open("a") as file:
            file.write(f'{{"particle": {particle}, "step": 0}}\n')
            file.write(f'{{"particle": {particle + 5}, "step": 0}}\n')  # of one that was not finished
    assert second.results_file != first.results_file
    resumed = RunFolder(tmp_path, {}, resume=True)  # as if they had been stopped
    assert sorted(resumed.outcomes) == [0, 1, 2]
    assert [json.loads(line)["particle"] for line in resumed.records_file.read_text().splitlines()] in (
        [1, 0, 2],
        [0, 1, 2],
    )
    assert not second.results_file.exists() and not second.records_file.exists()


def test_a_run_of_several_processes_is_not_begun_anew(tmp_path: Path) -> None:
    RunFolder(tmp_path, {})
    RunFolder(tmp_path, {}, worker=1).keep(Outcome(0, "a", 0.0, {}), torch.zeros(2, 4, 4), torch.zeros(3, 4, 4))
    with pytest.raises(Exception, match="holds a run with 1 images already"):
        RunFolder(tmp_path, {})


def test_the_gpu_of_a_process_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert own_device("cuda") == "cuda:2" and own_device("cpu") == "cpu"
