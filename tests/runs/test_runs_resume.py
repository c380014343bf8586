"""Resuming: the same images as in one piece, damaged files, and files of killed processes."""

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gaussian_flows import LatentFlow, brightness
from run_files import equal_files
from safetensors.torch import save
from torch import Tensor

from noisetilt_kernels.rewards import WeightedSum, parse_rewards
from noisetilt_kernels.runs.errors import RunFolderError
from noisetilt_kernels.runs.execute import execute, open_folder
from noisetilt_kernels.runs.files import append_line, write_whole
from noisetilt_kernels.runs.folder import Outcome, RunFolder, check_folder
from noisetilt_kernels.runs.settings import ComputeOptions, Settings
from noisetilt_kernels.runs.workers import SINGLE_PROCESS, Workers
from noisetilt_kernels.sampling import StepRecord
from noisetilt_kernels.sampling.methods import Method

STEPS = 2
SETTINGS = Settings(
    "none", ("bright", "dark"), Method("ntrk", {"steps": STEPS}), parse_rewards("brightness"), particles=4
)
SVDD = replace(SETTINGS, method=Method("svdd", {"steps": STEPS, "candidates": 2}))


class BatchFlow(LatentFlow):
    """Flow whose values depend on all samples of a batch, as rounding in a network does."""

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        return super().velocity(x, sigma, prompts) + 0.1 * x.mean()


def run(
    path: Path,
    settings: Settings = SETTINGS,
    resume: bool = False,
    workers: Workers = SINGLE_PROCESS,
    reward: Callable[[Tensor, Sequence[str]], Tensor] = brightness,
) -> None:
    compute = ComputeOptions(micro_batch=3)
    steering = WeightedSum({"brightness": (1.0, reward)})
    with open_folder(path, settings, compute, workers, resume) as folder:
        execute(settings, compute, folder, BatchFlow(), steering, {}, workers)


@pytest.mark.parametrize("settings", [SETTINGS, SVDD], ids=["ntrk", "svdd"])
@pytest.mark.parametrize("killed_at", range(8))
def test_a_run_killed_between_two_particles_continues_to_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings, killed_at: int
) -> None:
    """The micro-batch of the kill is computed again as a whole; what is there is kept."""
    run(tmp_path / "whole", settings)
    keep = RunFolder.save_particle

    def killed(folder: RunFolder, one: Outcome, *rest: object) -> None:
        if one.particle == killed_at:
            raise KeyboardInterrupt
        keep(folder, one, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_particle", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", settings)
    kept = (tmp_path / "cut" / "images" / "0000.png").stat() if killed_at else None
    run(tmp_path / "cut", settings, resume=True)
    assert equal_files(tmp_path / "cut") == equal_files(tmp_path / "whole")
    if kept is not None:
        assert (tmp_path / "cut" / "images" / "0000.png").stat().st_mtime_ns == kept.st_mtime_ns
    records = [json.loads(line) for line in (tmp_path / "cut" / "records.jsonl").read_text().splitlines()]
    assert sorted((one["particle"], one["step"]) for one in records) == [
        (particle, step) for particle in range(8) for step in range(STEPS)
    ]


def test_rounds_can_be_added_and_left_out(tmp_path: Path) -> None:
    one = replace(SETTINGS, particles=3)  # micro-batches of 3 end with the rounds
    two = replace(one, rounds=2)
    run(tmp_path / "whole", two)
    run(tmp_path / "grown", one)
    kept = (tmp_path / "grown" / "images" / "0000.png").stat().st_mtime_ns
    run(tmp_path / "grown", two, resume=True)
    assert (tmp_path / "grown" / "images" / "0000.png").stat().st_mtime_ns == kept
    assert equal_files(tmp_path / "grown") == equal_files(tmp_path / "whole")
    run(tmp_path / "grown", one, resume=True)  # the second round stays
    assert len(list((tmp_path / "grown" / "images").iterdir())) == 12
    written = json.loads((tmp_path / "grown" / "run.json").read_text())
    assert written["settings"]["rounds"] == 2


def test_any_lost_particles_are_made_again(tmp_path: Path) -> None:
    run(tmp_path)
    whole = equal_files(tmp_path)
    for particle in (1, 2, 6):
        (tmp_path / "images" / f"{particle:04d}.png").unlink()
    calls: list[int] = []

    def counted(images: Tensor, prompts: Sequence[str]) -> Tensor:
        calls.append(len(prompts))
        return brightness(images, prompts)

    run(tmp_path, resume=True, reward=counted)
    assert equal_files(tmp_path) == whole
    # the first and the last micro-batch, with steps and last images; then each missing particle by itself
    assert calls == [3, 3, 1, 1, 2, 2, 1]


def test_other_rounding_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compute = ComputeOptions(micro_batch=3).to_json()
    assert compute["threads"] == torch.get_num_threads()
    RunFolder(tmp_path, {}, compute=compute)
    assert json.loads((tmp_path / "run.json").read_text())["compute"] == compute
    RunFolder(tmp_path, {}, compute={**compute, "progress": True}, resume=True)
    assert not caplog.records
    RunFolder(tmp_path, {}, compute={**compute, "micro_batch": 2, "threads": 1024}, resume=True)
    (record,) = caplog.records
    threads = torch.get_num_threads()
    assert record.levelno == logging.WARNING
    assert f"begun with --micro-batch 3, not 2, and OMP_NUM_THREADS {threads}, not 1024" in record.message


# ---- damaged files ----


def finished(path: Path) -> RunFolder:
    folder = RunFolder(path, SETTINGS.to_json())
    for particle in range(2):
        folder.save_particle(
            Outcome(particle, "a", 0.5, {"brightness": 0.5}), torch.ones(2, 4, 4), torch.rand(3, 8, 8)
        )
        append_line(folder.records_file, StepRecord("ntrk", particle, 0, 1.0).to_json())
    return folder


def truncations(data: bytes) -> list[bytes]:
    return [data[: len(data) * part // 10] for part in range(10)] + [data[:-13]]


def damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def check_made_again(path: Path, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    again = RunFolder(path, SETTINGS.to_json(), resume=True)
    assert again.missing_batches(2, 1) == [range(1, 2)]
    assert f"{file} is damaged" in caplog.text and "particle 1 is made again" in caplog.text
    assert again.results_file.read_text().count("\n") == again.records_file.read_text().count("\n") == 1


def test_a_damaged_image_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(13):
        folder = finished(tmp_path / str(index))
        data = folder.image_file(1).read_bytes()
        folder.image_file(1).write_bytes([*truncations(data), damaged(data), b"GIF89a"][index])
        check_made_again(folder.path, folder.image_file(1), caplog)


def test_a_damaged_latent_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(14):
        folder = finished(tmp_path / str(index))
        data = folder.latent_file(1).read_bytes()
        others = [save({"latent": torch.ones(0, 4)}), save({"other": torch.ones(2)}), b"\xff" * 80]
        folder.latent_file(1).write_bytes([*truncations(data), *others][index])
        check_made_again(folder.path, folder.latent_file(1), caplog)


OUTCOME = {"particle": 1, "prompt": "a", "reward": 0.5, "parts": {"brightness": 0.5}, "video": False}
RECORD = json.loads(StepRecord("ntrk", 1, 0, 1.0).to_json())


def changed(line: dict, **values: object) -> str:
    return json.dumps({**line, **values})


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("results", "{}", "it has no 'particle'"),
        ("results", "5", "it is 5, not an object"),
        ("results", "[]", "it is [], not an object"),
        ("results", "", "Expecting value"),
        ("results", "[" * 100_000, "it is nested too deeply"),
        ("results", '{"a":' * 100_000, "it is nested too deeply"),
        ("results", changed(OUTCOME, reward="high"), "its 'reward' is 'high'"),
        ("results", changed(OUTCOME, reward=10**400), "a number is too large"),
        ("results", changed(OUTCOME, particle="1"), "its 'particle' is '1'"),
        ("results", changed(OUTCOME, particle=True), "its 'particle' is True"),
        ("results", changed(OUTCOME, particle=1.5), "its 'particle' is 1.5"),
        ("results", changed(OUTCOME, prompt=None), "its 'prompt' is None"),
        ("results", changed(OUTCOME, parts=[]), "its 'parts' is []"),
        ("results", changed(OUTCOME, parts={"brightness": []}), "its 'brightness' is []"),
        ("results", changed(OUTCOME, parts={}), "its 'parts' has no 'brightness'"),
        ("results", changed(OUTCOME, video=1), "its 'video' is 1"),
        ("records", "{}", "it has no 'method'"),
        ("records", "5", "it is 5, not an object"),
        ("records", "[[]]", "it is [[]], not an object"),
        ("records", "[" * 100_000, "it is nested too deeply"),
        ("records", changed(RECORD, step=None), "its 'step' is None"),
        ("records", changed(RECORD, reward="0.5"), "its 'reward' is '0.5'"),
        ("records", changed(RECORD, fallback=3), "its 'fallback' is 3"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, name: str, line: str, reason: str) -> None:
    finished(tmp_path)
    file = tmp_path / f"{name}.jsonl"
    first, *rest = file.read_text().splitlines(keepends=True)
    file.write_text("".join([first, f"{line}\n", *rest]))
    before = equal_files(tmp_path)
    for attempt in (
        lambda: RunFolder(tmp_path, SETTINGS.to_json(), resume=True),
        lambda: check_folder(tmp_path, SETTINGS.to_json(), True),
    ):
        with pytest.raises(RunFolderError) as caught:
            attempt()
        message = str(caught.value)
        assert message.startswith(f"{file}, line 2, does not describe a") and reason in message
        assert "\n" not in message and len(message) < 400
    assert equal_files(tmp_path) == before


def test_bytes_that_are_not_text_are_a_wrong_line(tmp_path: Path) -> None:
    finished(tmp_path)
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(b'{"particle": "\xff"}\n')
    with pytest.raises(RunFolderError, match="line 3, does not describe a finished image"):
        RunFolder(tmp_path, SETTINGS.to_json(), resume=True)


def test_records_and_outcomes_are_read_as_they_were_written() -> None:
    record = StepRecord("ntrk", 3, 1, 0.5, 0.25, math.inf, None, 0.1, 0.2, 0.3, "non-finite reward")
    assert StepRecord.from_json(record.to_json()) == replace(record, gradient_norm=None)
    one = Outcome(3, "caf\N{LATIN SMALL LETTER E WITH ACUTE}", 0.5, {"a": 1.0}, True)
    assert Outcome.from_json(one.to_json()) == one


# ---- run.json ----


@pytest.mark.parametrize(
    "content",
    [
        '{"settings": {}}',
        '{"settings": {}, "made_with": {}, "compute": {}}',
        '{"settings": {}, "made_with": {"versions": {"other": "1"}}, "compute": {}}',
        '{"settings": [], "made_with": {"versions": {"noisetilt_kernels": "1"}}, "compute": {}}',
        "[" * 100_000,
        "5",
        "",
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_json_of_another_program_is_kept(tmp_path: Path, content: str, resume: bool) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"run\.json was not written by a run of this package"):
        RunFolder(tmp_path, {}, resume=resume)
    assert (tmp_path / "run.json").read_text() == content and len(list(tmp_path.iterdir())) == 1


def test_a_run_json_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(RunFolderError, match="it is not a file"):
        RunFolder(tmp_path, {})


def test_all_differences_are_listed(tmp_path: Path) -> None:
    RunFolder(tmp_path, SETTINGS.to_json())
    other = replace(SETTINGS, seed=3, dtype="bfloat16").to_json()
    with pytest.raises(RunFolderError, match="dtype 'float32', not 'bfloat16'; with seed 0, not 3;"):
        RunFolder(tmp_path, other, resume=True)
    # a method that this version does not have
    other = {**SETTINGS.to_json(), "method": {"name": "unknown", "arguments": {}}}
    with pytest.raises(
        RunFolderError,
        match=r"method 'ntrk:rho=0.3,operator=w,steps=2,schedule=linear,scale=2.0,start=noise', not \{",
    ):
        RunFolder(tmp_path, other, resume=True)


# ---- files of killed processes, and files on the disk ----


def test_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    left = [
        folder.path / ".run.json.12.tmp",
        folder.path / "images" / ".0001.png.34.tmp",
        folder.path / "latents" / ".0001.safetensors.56.tmp",
    ]
    mine = folder.path / ".notes.tmp"
    for file in (*left, mine):
        file.touch()
    RunFolder(tmp_path, SETTINGS.to_json(), resume=True)
    assert mine.exists() and not any(file.exists() for file in left)


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a loss of power may leave an empty file behind a finished particle's line."""
    events: list[object] = []
    fsync = os.fsync

    def recorded(handle: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{handle}"))
        events.append((name.name, (tmp_path / "file").exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    write_whole(tmp_path / "file", b"content")
    assert events == [(f".file.{os.getpid()}.tmp", False), (tmp_path.name, True)]
    append_line(tmp_path / "lines", "one")
    assert events[2:] == [("lines", True)] and (tmp_path / "lines").read_text() == "one\n"


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("nowhere")
    with pytest.raises(RunFolderError, match="run is a symbolic link to nowhere, which does not exist"):
        RunFolder(tmp_path / "run", {})
    (tmp_path / "nowhere").mkdir()
    RunFolder(tmp_path / "run", {})
    assert (tmp_path / "nowhere" / "run.json").exists()
