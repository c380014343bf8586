"""Diversity of the images of a run: names, sets of images, summary and table, resuming, errors."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_clip
import torch
from click.testing import CliRunner, Result
from gaussian_flows import LatentFlow, brightness
from PIL import Image
from safetensors.torch import load_file

from noisetilt_cli import main
from noisetilt_kernels.diversity import inception_score, pairwise_distance, vendi_score
from noisetilt_kernels.rewards import WeightedSum, parse_rewards
from noisetilt_kernels.rewards.digits import scan
from noisetilt_kernels.runs.diversity import DiversitySpec, features_of_files, parse_diversity
from noisetilt_kernels.runs.early_checks import check_early
from noisetilt_kernels.runs.entry import Entry
from noisetilt_kernels.runs.execute import execute
from noisetilt_kernels.runs.folder import Outcome, Results, RunFolder, read_results
from noisetilt_kernels.runs.settings import ComputeOptions, Settings
from noisetilt_kernels.runs.table import markdown, tabulate
from noisetilt_kernels.sampling.methods import Method, parse_method

SETTINGS = Settings(
    model="none",
    prompts=("bright", "dark"),
    method=Method("base", {"steps": 2}),
    rewards=parse_rewards("brightness"),
    diversity=parse_diversity("vendi:digits,pairwise:digits,inception", "none", {}),
    particles=3,
)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def error_of(result: Result) -> str:
    return " ".join(result.output.split("Error: ")[-1].split())


def test_names_and_defaults_of_features() -> None:
    clip = "openai/clip-vit-large-patch14"
    assert parse_diversity("vendi, pairwise:digits ,inception", "some/model", {}) == (
        DiversitySpec("vendi", "clip", clip),
        DiversitySpec("pairwise", "digits"),
        DiversitySpec("inception", "inception"),
    )
    assert parse_diversity("vendi,vendi:digits", "digits", {"clip": "/c"}) == (
        DiversitySpec("vendi", "digits"),
    )
    (clip_features,) = parse_diversity("vendi:clip", "digits", {"clip": "/c", "digit": "/d"})
    assert clip_features == DiversitySpec("vendi", "clip", "/c") and clip_features.name == "vendi:clip"
    assert clip_features.with_sources({"clip": "/e"}).source == "/e"
    assert parse_diversity("inception", "digits", {})[0].name == "inception"
    assert parse_diversity("", "digits", {}) == ()
    for text, message in {
        "vendy": "unknown measure 'vendy' .did you mean 'vendi'",
        "vendi:clop": "unknown features 'clop' .did you mean 'clip'.*valid: 'clip', 'digits'$",
        "vendi:inception": "unknown features 'inception'",
        "inception:clip": "inception takes no features, got 'inception:clip'; write 'inception'",
    }.items():
        with pytest.raises(ValueError, match=f"^diversity: {message}"):
            parse_diversity(text, "digits", {})


def test_settings_are_read_back() -> None:
    (vendi,) = parse_diversity("vendi", "none", {"clip": "/c"})
    settings = replace(SETTINGS, diversity=(vendi, *SETTINGS.diversity))
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    before = {name: value for name, value in settings.to_json().items() if name != "diversity"}
    assert Settings.from_json(before).diversity == ()  # of a run that was begun before there were measures


def probabilities(images: torch.Tensor) -> torch.Tensor:
    return images.mean(dim=(2, 3)).mul(30).softmax(dim=1)


def run(path: Path, settings: Settings = SETTINGS, resume: bool = False) -> dict:
    folder = RunFolder(path, settings.to_json(), resume=resume)
    features = {"digits": scan, "inception": probabilities}
    return execute(
        settings,
        ComputeOptions(micro_batch=4),
        folder,
        LatentFlow(),
        WeightedSum({"brightness": (1.0, brightness)}),
        {},
        features={name: features[name] for name in {one.features for one in settings.diversity}},
    )


def pixels_of(path: Path, particle: int) -> torch.Tensor:
    with Image.open(path / "images" / f"{particle:04d}.png") as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def test_the_summary_has_the_mean_over_prompts_and_the_value_of_all_images(tmp_path: Path) -> None:
    summary = run(tmp_path)
    assert summary["diversity"] == json.loads((tmp_path / "summary.json").read_text())["diversity"]
    images = torch.cat([pixels_of(tmp_path, particle) for particle in range(6)])
    for name, function in {"vendi:digits": vendi_score, "pairwise:digits": pairwise_distance}.items():
        one, each = summary["diversity"][name], [function(scan(images[:3])), function(scan(images[3:]))]
        assert each[0] != pytest.approx(each[1], rel=1e-4)
        assert one["mean"] == pytest.approx(sum(each) / 2, rel=1e-6)
        assert one["half_width"] == pytest.approx(12.706 * abs(each[0] - each[1]) / 2, rel=1e-3)
        assert one["count"] == 2
        assert one["all_images"] == pytest.approx(function(scan(images)), rel=1e-6)
    score = inception_score(probabilities(images))
    assert score > 1.001
    found = summary["diversity"]["inception"]
    assert found["mean"] == found["all_images"] == pytest.approx(score, rel=1e-6)
    assert (found["half_width"], found["count"]) == (None, 1)
    features = load_file(tmp_path / "features.safetensors")
    assert {name: tuple(one.shape) for name, one in features.items()} == {
        "digits": (6, 64),
        "inception": (6, 3),
    }


def test_every_image_is_computed_alone(tmp_path: Path) -> None:
    sizes = []

    def features(images: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(images.shape))
        return images.mean(dim=(2, 3)).double()

    for number in range(2):
        Image.new("RGB", (5, 4), (255, 51 * number, 0)).save(tmp_path / f"{number}.png")
    found = features_of_files([tmp_path / "0.png", tmp_path / "1.png"], features, "cpu")
    assert sizes == [(1, 3, 4, 5)] * 2 and found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[1.0, 0, 0], [1, 0.2, 0]]))


def test_measures_are_added_to_a_finished_run_and_kept(tmp_path: Path) -> None:
    without = replace(SETTINGS, diversity=())
    before = run(tmp_path / "run", without)
    assert before["diversity"] == {} and not (tmp_path / "run" / "features.safetensors").exists()
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "images").iterdir()}
    after = run(tmp_path / "run", SETTINGS, resume=True)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "images").iterdir()} == files
    assert after == run(tmp_path / "whole")
    written = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert Settings.from_json(written) == SETTINGS


def test_a_particle_that_is_made_again_counts(tmp_path: Path) -> None:
    whole = run(tmp_path)
    (tmp_path / "images" / "0004.png").write_bytes(b"damaged")
    assert run(tmp_path, resume=True) == whole


def results(rewards: Mapping[int, float], features: torch.Tensor | None) -> Results:
    outcomes = {i: Outcome(i, "", r, {}) for i, r in rewards.items()}
    return Results(outcomes, {}, {} if features is None else {"digits": features})


def test_a_table_has_the_diversity_of_the_chosen_particles() -> None:
    first, second = parse_method("base:steps=5"), parse_method("ntrk:steps=5")
    # two prompts with particles 0, 1 and 2, 3; in the second round 4, 5 and 6, 7
    x, y, z = torch.eye(3).unbind()
    base = torch.stack([x, y, x, x, y, y, z, z])
    ntrk = torch.stack([x, x, x, y])
    (pairwise,) = parse_diversity("pairwise:digits", "none", {})
    table = tabulate(
        {
            first: results(dict(enumerate([1, 1, 1, 1, 0, 2, 2, 0])), base),
            second: results(dict(enumerate([1, 1, 1, 1])), ntrk),
        },
        [Entry(first), Entry(first, 2), Entry(second)],
        count=4,
        names=[],
        diversity=[pairwise],
        particles=2,
    )
    name = pairwise.name
    # base: x y and x x; best of 2: x y and z x; ntrk: x x and x y
    assert [row.scores[name].mean for row in table] == pytest.approx([0.5, 1.0, 0.5])
    assert [row.scores[name].count for row in table] == [2, 2, 2]
    assert table[2].differences[name].mean == pytest.approx(0)
    assert table[2].differences[name].half_width == pytest.approx(12.706, rel=1e-3)
    # 0 and 1 are distances here, and not answers no and yes
    assert "1 of 2" not in markdown(table) and "| 0.5 \N{PLUS-MINUS SIGN} 6.4 |" in markdown(table)


def test_a_table_leaves_out_prompts_that_are_not_finished() -> None:
    base = parse_method("base:steps=5")
    vendi, inception = parse_diversity("vendi:digits,inception", "none", {})

    def row(rewards: dict[int, float], features: torch.Tensor | None) -> Mapping[str, object]:
        found = results(rewards, features)
        if features is not None:
            found = found._replace(features={"digits": features, "inception": features})
        entries = [Entry(base)]
        (one,) = tabulate({base: found}, entries, 4, [], diversity=[vendi, inception], particles=2)
        return {
            name: (one.scores[name].count, one.scores[name].mean) for name in ("vendi:digits", "inception")
        }

    finished = dict(enumerate([1.0, 1.0, 1.0, 1.0]))
    some = {place: finished[place] for place in (0, 2, 3)}
    features = torch.eye(4)
    assert row(finished, features) == {
        "vendi:digits": (2, pytest.approx(2)),
        "inception": (1, pytest.approx(4)),
    }
    assert row(some, features) == {
        "vendi:digits": (1, pytest.approx(2)),
        "inception": (0, pytest.approx(float("nan"), nan_ok=True)),
    }
    assert [count for count, _ in row(finished, None).values()] == [0, 0]
    assert [count for count, _ in row(finished, features[:2]).values()] == [1, 0]  # fewer rounds had ended


def test_results_are_read_with_their_features(tmp_path: Path) -> None:
    run(tmp_path)
    found = read_results(tmp_path, SETTINGS.to_json())
    assert set(found.features) == {"digits", "inception"} and len(found.features["digits"]) == 6
    (tmp_path / "features.safetensors").write_bytes(b"damaged")
    assert read_results(tmp_path, SETTINGS.to_json()).features == {}


def test_one_image_of_a_prompt_has_no_diversity() -> None:
    with pytest.raises(
        ValueError, match=r"^--diversity compares the images of a prompt, so --particles must be"
    ):
        check_early(replace(SETTINGS, particles=1, diversity=SETTINGS.diversity[:1]), ComputeOptions())


COMMAND = ["--model", "digits", "--prompt", "a 7", "--prompt", "a 3", "--reward", "brightness"]


@pytest.mark.usefixtures("offline")
def test_the_plan_counts_features_once(tmp_path: Path) -> None:
    from noisetilt_kernels.runs.plan import describe

    tiny_clip.save_clip(tmp_path, model := tiny_clip.make_model())
    settings = replace(SETTINGS, model="digits", diversity=())

    def memory(names: str, source: Path = tmp_path, device: str = "cpu") -> str:
        diversity = parse_diversity(names, "digits", {"clip": str(source)})
        lines = describe(replace(settings, diversity=diversity), ComputeOptions(device), tmp_path).text
        (line,) = (line for line in lines.splitlines() if line.startswith("memory"))
        return line

    vision = sum(p.nbytes for name, p in model.named_parameters() if name.startswith("vis"))
    for names in ("vendi:clip", "vendi:clip,pairwise:clip,vendi:digits"):
        (found,) = re.findall(r"rewards ([\d.]+) KB", memory(names))
        assert float(found) == pytest.approx(vision / 1e3, rel=0.1)
    (found,) = re.findall(r"rewards ([\d.]+) KB", memory("vendi:clip", device="cuda"))
    assert float(found) == pytest.approx(vision / 2e3, rel=0.1)
    assert "rewards 0 B" in memory("vendi") and "plus" not in memory("vendi:clip")
    assert memory("vendi:clip", Path("/nowhere")).endswith("; plus the features of clip")


def test_sample_prints_the_measures(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["sample", *COMMAND, "--method", "base:steps=2", "--particles", 3, "--out", out]
    result = invoke(*arguments, "--diversity", "vendi")
    assert result.exit_code == 0, result.output
    assert "+1 brightness; diversity: vendi:digits" in result.output
    one = json.loads((out / "summary.json").read_text())["diversity"]["vendi:digits"]
    (line,) = (line for line in result.output.splitlines() if line.startswith("vendi:digits"))
    assert line.split() == ["vendi:digits", f"{one['mean']:.5g}", "+-", f"{one['half_width']:.3g}"]
    result = invoke("sample", "--resume", "--diversity", "pairwise", "--out", out)
    assert result.exit_code == 0 and "pairwise:digits" in result.output and "vendi" not in result.output
    assert "pairwise:digits" in invoke("sample", "--resume", "--out", out).output


def test_compare_has_a_column_for_each_measure(tmp_path: Path) -> None:
    methods = ["--method", "base:steps=2,best_of=2", "--method", "ntrk:steps=2"]
    result = invoke(
        "compare",
        *COMMAND,
        *methods,
        "--seeds",
        3,
        "--diversity",
        "vendi,pairwise",
        "--out",
        tmp_path / "out",
    )
    assert result.exit_code == 0, result.output
    assert "| vendi:digits | pairwise:digits |" in (tmp_path / "out" / "table.md").read_text()
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())
    for row in rows:
        assert 1 < row["scores"]["vendi:digits"]["mean"] < 3 and row["scores"]["vendi:digits"]["count"] == 2
    assert rows[0]["differences"] == {} and "vendi:digits" in rows[1]["differences"]
    again = invoke("compare", "--resume", "--out", tmp_path / "out")
    assert again.exit_code == 0
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == rows


@pytest.mark.usefixtures("offline")
def test_mistakes_are_found_before_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["sample", *COMMAND, "--out", tmp_path / "run", "--diversity"]
    assert "--diversity: unknown measure 'vendy'" in error_of(invoke(*arguments, "vendy"))
    assert "--particles must be at least 2, got 1" in error_of(invoke(*arguments, "vendi"))
    several = [*arguments, "vendi:clip", "--particles", 2]
    assert "clip: 'openai/clip-vit-large-patch14' is not a folder, and" in error_of(invoke(*several))
    nowhere = ["--reward-source", f"clip={tmp_path}"]
    assert f"clip: {tmp_path} must hold a config.json with model_type 'clip'" in error_of(
        invoke(*several, *nowhere)
    )
    assert not list((tmp_path / "run" / "images").iterdir())
    monkeypatch.setattr("noisetilt_kernels.rewards.features.find_spec", lambda name: None)
    dry = [*arguments, "inception", "--particles", 2, "--dry-run"]
    assert "inception needs the package torchvision" in error_of(invoke(*dry))
