"""Experiments: their files, runs, reports, and the command."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

from noisetilt_cli import main
from noisetilt_kernels.experiments import run as experiment_run
from noisetilt_kernels.experiments.report import markdown, read_tables, write_report
from noisetilt_kernels.experiments.run import check_experiment, run_experiment
from noisetilt_kernels.experiments.spec import ExperimentError, bundled_experiments, read_experiment
from noisetilt_kernels.runs.settings import ComputeOptions

FILE = """
title = "Two methods"
source = "A paper, Table 1"
notes = ["A note."]

[[comparison]]
name = "ink"
title = "More ink"
model = "digits"
prompts = ["a handwritten one", "a handwritten two"]
seeds = 2
reward = "brightness"
held_out = ["digit-judge"]

[comparison.columns]
reward = "Brightness"

[comparison.scale]
reward = 100

[[comparison.method]]
label = "Base"
method = "base:steps=2"
paper = { nfe = 2, reward = 12.5 }

[[comparison.method]]
label = "Best"
method = "ntrk:steps=2,rho=0.01,best_of=2"
paper = { nfe = 5 }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(FILE)
    return path


# ---- files ----


@pytest.mark.parametrize("name", bundled_experiments())
def test_bundled_experiments_are_valid(name: str) -> None:
    experiment = read_experiment(name)
    assert experiment.title and experiment.source and experiment.notes
    for comparison in experiment.comparisons:
        texts = [row.text for row in comparison.methods]
        assert len(set(texts)) == len(texts)
        for row in comparison.methods:
            row.entry.method.check()
            # the papers count an SVDD of 481 evaluations and a Psi-Sampler of 495 as 500
            assert row.paper.get("nfe", row.entry.nfe) == pytest.approx(row.entry.nfe, rel=0.05), row


def test_numbers_of_the_papers_are_those_of_their_tables() -> None:
    def paper(name: str, label: str, nfe: int) -> dict[str, float]:
        rows = read_experiment(name).comparisons[0].methods
        (found,) = [row.paper for row in rows if row.label == label and row.paper.get("nfe", nfe) == nfe]
        return dict(found)

    assert paper("aesthetic-flux", "SVDD", 500) == {
        "nfe": 500,
        "reward": 7.1363,
        "pickscore": 0.2177,
        "hpsv2": 0.2814,
        "imagereward": 1.0256,
        "vqascore": 0.951,
    }
    assert paper("text-aligned-flux", "RBF", 100) == {
        "nfe": 100,
        "reward": 0.215,
        "aesthetic": 5.6813,
        "hpsv2": 0.2603,
        "imagereward": 0.5993,
        "vqascore": 0.8031,
    }
    assert paper("aesthetic-z-image", "DAS", 500)["reward"] == 6.2449
    assert paper("text-aligned-z-image", "NTRK†", 500)["vqascore"] == 0.8405
    assert paper("video-wan", "NTRK", 25)["reward"] == 3.465
    assert paper("wgnc-flux", "WGNC, 60 iterations", 61) == {"reward": 7.12, "pickscore": 0.22}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('title = "Two methods"', ""), "mine.toml has no 'title'"),
        (("seeds = 2", "sedes = 2"), "comparison 1, has an unknown key 'sedes' (did you mean 'seeds'?)"),
        (("seeds = 2", 'seeds = "2"'), "comparison 1, must have an integer as 'seeds', got '2'"),
        (('reward = "brightness"', 'reward = "lightness"'), "comparison 1, cannot be used: "),
        (('reward = "brightness"', 'reward = "digit-judge"'), "digit-judge"),
        (("seeds = 2", 'diversity = ["vendy"]'), "comparison 1, cannot be used: "),
        (
            ("rho=0.01", "rho=2"),
            "comparison 1, method 2, has a wrong method: ntrk: rho must be in [0, 1], got 2",
        ),
        (("reward = 12.5", "judge = 12.5"), "names 'judge', which is none of reward, digit-judge"),
        (
            ("reward = 12.5", "reward = true"),
            "comparison 1, method 1, must have a number as paper.reward, got True",
        ),
        (('prompts = ["a handwritten one", "a handwritten two"]', 'prompt_lists = ["beasts"]'), "'beasts'"),
        (('prompts = ["a handwritten one", "a handwritten two"]', ""), "comparison 1, has no prompts"),
        (("[comparison.scale]", "[comparison.scale"), "is not a TOML file"),
        (("seeds = 2", "seeds = 0"), "comparison 1, must have a seeds that is at least 1"),
        (("seeds = 2", "seed = -1"), "comparison 1, must have a seed that is not negative"),
        (("seeds = 2", 'dtype = "bf16"'), "comparison 1, must have a dtype that is one of bfloat16, float16"),
        (("seeds = 2", 'lora = "org/style"'), "comparison 1, must have a list as 'lora', got 'org/style'"),
        (("seeds = 2", "height = 1.5"), "comparison 1, must have an integer as 'height', got 1.5"),
        (('model = "digits"', ""), "comparison 1, has no 'model'"),
        (('name = "ink"', 'name = ".."'), "comparison 1, must have a name for a folder as 'name', got '..'"),
        (('reward = "Brightness"', "reward = 2"), "must have a string as columns.reward, got 2"),
        (("reward = 100", 'reward = "100"'), "must have a number as scale.reward, got '100'"),
        (("reward = 100", "reward = -1"), "must have factors above 0 in 'scale'"),
        (("reward = 12.5", "reward = nan"), "must have a number as paper.reward, got nan"),
        (("ntrk:steps=2,rho=0.01,best_of=2", "base:steps=2"), "comparison 1, must have different methods"),
    ],
)
def test_mistakes_in_a_file_name_the_place(file: Path, change: tuple[str, str], message: str) -> None:
    assert FILE.count(change[0]) == 1
    file.write_text(FILE.replace(*change))
    with pytest.raises(ExperimentError, match=re.escape(message)) as caught:
        read_experiment(str(file))
    assert str(file) in str(caught.value)


def test_unknown_experiment_names_those_that_exist() -> None:
    with pytest.raises(ExperimentError, match=r"did you mean 'operators'.*aesthetic-flux"):
        read_experiment("operator")


def test_prompt_lists_are_bundled_or_files_beside_the_experiment(file: Path) -> None:
    (file.parent / "own.txt").write_text("# mine\na handwritten six\n\n")
    file.write_text(FILE.replace("seeds = 2", 'seeds = 2\nprompt_lists = ["own.txt", "animals"]'))
    prompts = read_experiment(str(file)).comparisons[0].settings.prompts
    assert prompts[:4] == ("a handwritten one", "a handwritten two", "a handwritten six", "cat")
    assert len(read_experiment(str(file), prompts=2).comparisons[0].settings.prompts) == 2


def test_rows_can_be_chosen_by_label_or_sampler(file: Path) -> None:
    experiment = read_experiment(str(file))
    for name in ("Best", "ntrk"):
        (comparison,) = experiment.only([name]).comparisons
        assert [row.label for row in comparison.methods] == ["Best"]
    with pytest.raises(
        ExperimentError, match=r"has no method 'Bets' \(did you mean 'Best'\?\); it has: Base, base"
    ):
        experiment.only(["Bets"])


# ---- runs and reports ----


def test_experiment_runs_and_reports(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = read_experiment(str(file))
    compute = ComputeOptions(micro_batch=4)
    out = tmp_path / "out"
    # a part, with one of two rounds
    (one,) = run_experiment(experiment.only(["Base"]), compute, out)
    assert one.complete and [row.method.name for row in one.rows] == ["base"]
    (part,) = read_tables(experiment, out)
    assert not part.complete and (part.finished, part.total) == (4, 12)
    assert part.cells[1] == ["Best (0 of 4)", "4 (5)", "", ""]
    assert "Not finished: 4 of 12 images." in markdown(experiment, [part])

    # the rest; images that exist are kept
    kept = (out / "ink" / "base-steps2" / "images" / "0000.png").stat().st_mtime_ns
    (table,) = run_experiment(experiment, compute, out, resume=True)
    assert (out / "ink" / "base-steps2" / "images" / "0000.png").stat().st_mtime_ns == kept
    assert table.complete
    base, best = table.cells
    mean = table.rows[0].scores["reward"].mean
    assert 0 < mean < 1
    assert base[:2] == ["Base", "2"] and base[2].endswith(" (12.5)")
    assert float(base[2].split()[0]) == pytest.approx(100 * mean, rel=0.1)
    assert float(best[2].split()[0]) > float(base[2].split()[0])
    assert table.header == ["Method", "NFE", "Brightness (target)", "digit-judge"]
    text = (out / "report.md").read_text()
    assert "Not finished" not in text and "A note." in text and f"| {' | '.join(best)} |" in text
    values = json.loads((out / "report.json").read_text())
    rows = values["comparisons"][0]["rows"]
    assert [row["paper"] for row in rows] == [{"nfe": 2, "reward": 12.5}, {"nfe": 5}]
    assert all(row["seconds"] > 0 for row in rows)
    page = (out / "report.html").read_text()
    assert "Two methods" in page and "a handwritten two" in page
    sources = re.findall(r'(?:src|href)="([^"]{5})', page)
    assert len(sources) == 3 and set(sources) == {"data:"}  # a plot and two sheets, all inside of the page

    # finished comparisons are not run again
    def fail(*arguments: object, **others: object) -> None:
        raise AssertionError("compare must not be called")

    monkeypatch.setattr(experiment_run, "compare", fail)
    (out / "report.html").unlink()  # an earlier call was stopped while it wrote the report
    run_experiment(experiment, compute, out, resume=True)
    assert (out / "report.html").read_text() == page
    with pytest.raises(Exception, match="--resume"):
        check_experiment(experiment, compute, out, resume=False)

    # all images are finished, and the last run is not: a report can be written, and the comparison goes on
    (out / "ink" / "ntrk-steps2-rho0.01" / "summary.json").unlink()
    (table,) = read_tables(experiment, out)
    assert table.complete and not table.carried_out
    write_report(experiment, [table], out)
    with pytest.raises(AssertionError, match="compare must not be called"):
        run_experiment(experiment, compute, out, resume=True)


def test_measures_of_diversity_are_columns(file: Path, tmp_path: Path) -> None:
    text = FILE.replace("seeds = 2", 'seeds = 2\ndiversity = ["vendi", "pairwise"]')
    file.write_text(text.replace("paper = { nfe = 5 }", 'paper = { "vendi:digits" = 1.75 }'))
    experiment = read_experiment(str(file))
    (table,) = run_experiment(experiment, ComputeOptions(), tmp_path / "out")
    assert table.header[-2:] == ["vendi:digits", "pairwise:digits"]
    means = [row.scores["vendi:digits"].mean for row in table.rows]
    assert all(1 < mean < 2 for mean in means) and means[0] != means[1]
    assert table.cells[1][-2].endswith("(1.75)")
    assert read_tables(experiment, tmp_path / "out")[0].cells == table.cells


def test_rows_of_one_label_name_what_differs(file: Path, tmp_path: Path) -> None:
    more = """
[[comparison.method]]
label = "Best"
method = "ntrk:steps=4,rho=0.03"

[[comparison.method]]
label = "Base"
method = "base:steps=4"
"""
    file.write_text(FILE + more)
    (table,) = read_tables(read_experiment(str(file)), tmp_path)
    # Best has two rows of 4 evaluations; the rows of Base have 2 and 4
    assert table.names == ["Base", "Best, steps = 2, rho = 0.01", "Best, steps = 4, rho = 0.03", "Base"]


def test_pages_escape_texts(file: Path, tmp_path: Path) -> None:
    file.write_text(FILE.replace("A note.", "<script>alert(1)</script>"))
    experiment = read_experiment(str(file))
    write_report(experiment, read_tables(experiment, tmp_path), tmp_path)
    assert "<script>" not in (tmp_path / "report.html").read_text()


# ---- command ----


def test_command_lists_plans_and_refuses(file: Path, tmp_path: Path) -> None:
    listed = CliRunner().invoke(main, ["experiment", "--list"])
    assert listed.exit_code == 0 and "aesthetic-flux" in listed.output
    plan = CliRunner().invoke(main, ["experiment", str(file), "--dry-run"])
    assert plan.exit_code == 0, plan.output
    assert "2 per image, 8 in total" in plan.output and "best of 2" in plan.output.replace("the best", "best")
    for arguments, message in (
        ([], "Missing argument 'NAME'"),
        ([str(file)], "Missing option '--out'"),
        ([str(file), "--report", "--out", str(tmp_path / "none")], "does not exist"),
        ([str(file), "--report", "--out", str(tmp_path)], "has no finished images of the experiment mine"),
        ([str(file), "--only", "Bets", "--out", "x"], "did you mean 'Best'"),
    ):
        result = CliRunner().invoke(main, ["experiment", *arguments])
        assert result.exit_code != 0 and message in result.output, result.output
