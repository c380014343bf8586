"""Warnings after a comparison, and settings that are read back from run.json."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from noisetilt_kernels.rewards import parse_rewards
from noisetilt_kernels.runs.comparison import warnings_of
from noisetilt_kernels.runs.comparison_folder import (
    Comparison,
    folder_name,
    read_comparison,
    write_comparison,
)
from noisetilt_kernels.runs.early_checks import warnings_of as warnings_of_prompts
from noisetilt_kernels.runs.errors import RunFolderError
from noisetilt_kernels.runs.settings import Settings
from noisetilt_kernels.runs.statistics import Estimate
from noisetilt_kernels.runs.table import Row
from noisetilt_kernels.sampling.methods import Method, parse_method

SETTINGS = Settings(
    "digits",
    ("a 1", "a 2"),
    Method("ntrk"),
    parse_rewards("brightness=2,color:blue=-1"),
    parse_rewards("digit-judge", {"digit-judge": "/somewhere"}),
    particles=3,
    height=64,
)


def row(method: str, judge: Estimate, best_of: int = 1) -> Row:
    return Row(parse_method(method), best_of, 25, {"reward": Estimate(1, 0, 9), "digit-judge": judge}, {})


def test_a_lower_held_out_score_is_a_warning(tmp_path: Path) -> None:
    rows = [
        row("ntrk:rho=0.01", Estimate(0.90, 0.05, 120)),
        row("ntrk:rho=0.3", Estimate(0.10, 0.05, 120)),
        row("base", Estimate(0.94, 0.04, 120)),
        row("ntrk:rho=0.3", Estimate(0.10, 0.05, 30), best_of=4),
    ]
    for one, warnings in zip(rows, [[], ["destroyed"], []], strict=False):
        folder = tmp_path / folder_name(one.method)
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({"warnings": warnings}))
    assert warnings_of(SETTINGS, rows, tmp_path) == [
        "destroyed",
        "ntrk:rho=0.3 lowers the held-out digit-judge from 0.940 \N{PLUS-MINUS SIGN} 0.040 to 0.100 "
        "\N{PLUS-MINUS SIGN} 0.050; try weaker guidance",
    ]
    assert warnings_of(SETTINGS, rows[:2], tmp_path) == ["destroyed"]  # without base
    several = [replace(one, best_of=best_of) for best_of in (2, 4) for one in rows[:3]]
    assert warnings_of(SETTINGS, several, tmp_path) == warnings_of(SETTINGS, rows, tmp_path)


def test_unknown_words_of_bundled_models() -> None:
    prompts = ("a handwritten seven", "The number 3!", "a dog", "zero")
    (warning,) = warnings_of_prompts(replace(SETTINGS, prompts=prompts))
    assert warning.startswith("'digits' does not know 'dog' in the prompt 'a dog';")
    assert warnings_of_prompts(replace(SETTINGS, model="some/model", prompts=prompts)) == []


def test_settings_are_read_back() -> None:
    assert SETTINGS.method.argument("rho") == 0.01
    assert Settings.from_json(json.loads(json.dumps(SETTINGS.to_json()))) == SETTINGS
    other = replace(SETTINGS, model="some/model", method=Method("ntrk"))
    assert other.method.argument("rho") == 0.3


def test_a_comparison_is_read_back(tmp_path: Path) -> None:
    assert read_comparison(tmp_path) is None
    comparison = Comparison(("ntrk:rho=0.1", "base:best_of=2"), (1, 4))
    write_comparison(tmp_path, comparison)
    assert read_comparison(tmp_path) == comparison
    ntrk, base = Method("ntrk", {"rho": 0.1}), Method("base")
    assert comparison.entries == [(ntrk, 1), (ntrk, 4), (base, 2)]
    (tmp_path / "methods.json").write_text("[]")
    with pytest.raises(RunFolderError, match=r"methods\.json was not written by a comparison"):
        read_comparison(tmp_path)
