"""Commands of runs: Ctrl-C at any time, folders that cannot be used, and numbers that are too large."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from noisetilt_cli import main
from noisetilt_kernels.runs import comparison, execute, loading, plan
from noisetilt_kernels.runs.folder import Outcome

MODEL = ["--model", "digits", "--prompt", "a 7", "--reward", "brightness"]
SAMPLE = ["sample", *MODEL, "--steps", "1"]
COMPARE = ["compare", *MODEL, "--method", "base:steps=1", "--seeds", "2"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def assert_one_sentence(result: Result, *words: str) -> None:
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), result.output
    last = result.output.strip().splitlines()[-1]
    for word in ("Error: ", *words):
        assert word in last, last


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "module", "name"),
    [
        (SAMPLE, loading, "check_settings"),
        (SAMPLE, plan, "describe"),
        (SAMPLE, execute, "check_folder"),
        (SAMPLE, execute, "RunFolder"),
        (SAMPLE, loading, "load_rewards"),
        (SAMPLE, loading, "load_model"),
        (SAMPLE, execute, "write_contact_sheet"),
        (SAMPLE, execute.RunFolder, "write_summary"),
        (COMPARE, comparison, "check_settings"),
        (COMPARE, comparison, "check_folder"),
        (COMPARE, comparison, "load_model"),
        (COMPARE, comparison, "draw_comparison"),
    ],
)
def test_ctrl_c_at_any_time_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], module: object, name: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupt)
        result = invoke(*command, "--out", tmp_path / "run")
    assert result.exit_code == 130, result.output
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("stopped: ") and "run the same command" in last and "Aborted" not in result.output
    assert not list(tmp_path.rglob(".*"))
    assert invoke(*command, "--out", tmp_path / "run", "--resume").exit_code == 0


@pytest.mark.parametrize("command", [SAMPLE, COMPARE])
def test_a_link_to_nothing_is_one_sentence(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "run").symlink_to("nowhere")
    result = invoke(*command, "--out", tmp_path / "run")
    assert_one_sentence(result, "run is a symbolic link to nowhere, which does not exist")


@pytest.mark.parametrize("command", [SAMPLE, COMPARE])
@pytest.mark.parametrize("option", ["--prompt", "--negative-prompt"])
def test_a_prompt_of_other_bytes_is_one_sentence(tmp_path: Path, command: list[str], option: str) -> None:
    """Python passes bytes of an argument that are not UTF-8 as half of a surrogate pair."""
    result = invoke(*command, option, "caf\udce9", "--out", tmp_path / "run")
    assert_one_sentence(result, "the prompt 'caf\\udce9' is not valid text; write it in UTF-8")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--particles", 10**12], ["a run has at most 1,000,000 images, got 1,000,000,000,000"]),
        (["--micro-batch", 10**18], ["--micro-batch must be at most 10,000, got 1,000,000,000,000,000,000"]),
        (["--frames-at-once", 10**30], ["--frames-at-once must be at most 10,000"]),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_numbers_that_are_too_large_are_one_sentence(
    tmp_path: Path, options: list[object], words: list[str], dry_run: list[str]
) -> None:
    assert_one_sentence(invoke(*SAMPLE, *options, *dry_run, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_large_numbers_are_planned(tmp_path: Path) -> None:
    options = ["--particles", 1_000_000, "--micro-batch", 10_000]
    result = invoke(*SAMPLE, *options, "--dry-run", "--out", tmp_path / "run")
    assert result.exit_code == 0 and "1,000,000 of 32 x 32" in result.output, result.output


def test_a_dry_run_says_what_the_run_would_say_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "run.json").write_text("{}")
    run = tmp_path / "run"
    assert invoke(*SAMPLE, "--out", run).exit_code == 0
    cut = tmp_path / "cut"
    assert invoke(*SAMPLE, "--out", cut).exit_code == 0
    (cut / "results.jsonl").write_text("{}\n")
    cases = [
        ([tmp_path], "not empty and not the folder of a run"),
        ([tmp_path / "link"], "symbolic link to nowhere"),
        ([tmp_path / "foreign"], "run.json was not written by a run of this package"),
        ([run], "already holds a run with finished images (1)"),
        ([run, "--resume", "--seed", 4], "holds a run with seed 0, not 4"),
        ([cut, "--resume"], "results.jsonl, line 1, does not describe a finished image"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for (out, *options), message in cases:
        said = [
            invoke(*SAMPLE, *options, *dry_run, "--out", out).output.splitlines()[-1]
            for dry_run in ([], ["--dry-run"])
        ]
        assert said[0] == said[1] and message in said[0]
    assert invoke(*SAMPLE, "--resume", "--dry-run", "--out", run).exit_code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_threads_and_micro_batch_are_in_run_json_and_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    assert invoke(*SAMPLE, "--particles", 2, "--out", run).exit_code == 0
    compute = json.loads((run / "run.json").read_text())["compute"]
    assert compute["micro_batch"] == 1 and compute["threads"] >= 1
    (run / "images" / "0001.png").unlink()
    assert invoke(*SAMPLE, "--particles", 2, "--micro-batch", 2, "--resume", "--out", run).exit_code == 0
    assert "was begun with --micro-batch 1, not 2" in caplog.text and "0001.png is missing" in caplog.text
    assert Outcome.from_json((run / "results.jsonl").read_text().splitlines()[1]).particle == 1
