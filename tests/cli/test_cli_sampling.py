"""`noisetilt sample`, `optimize`, `compare` and `rewards`, with the bundled models in few steps."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file

from noisetilt_cli import main
from noisetilt_kernels import sampling
from noisetilt_kernels.prompt_lists import PROMPT_LISTS, prompts_of
from noisetilt_kernels.rewards import parse_rewards
from noisetilt_kernels.runs import execute as execution
from noisetilt_kernels.runs.loading import load_model
from noisetilt_kernels.runs.settings import ComputeOptions, Settings
from noisetilt_kernels.sampling.methods import Method, split_method

SAMPLE = [
    "sample",
    "--model",
    "digits",
    "--prompt",
    "a handwritten seven",
    "--reward",
    "brightness",
    "--steps",
    "3",
]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def assert_one_sentence(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    last = result.output.strip().splitlines()[-1]
    for word in ("Error: ", *words):
        assert word in last


def test_a_run_equals_the_sampler(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = invoke(
        *SAMPLE, "--particles", 2, "--seed", 5, "--held-out", "digit-judge", "--rho", 0.5, "--out", out
    )
    assert result.exit_code == 0, result.output
    assert "2 of 32 x 32" in result.output and "3 per image, 6 in total" in result.output
    assert "digit-judge" in result.output and str(out) in result.output
    run = json.loads((out / "run.json").read_text())["settings"]
    resolved = {
        **{"rho": 0.5, "operator": "w", "steps": 3, "schedule": "linear", "scale": 2.0, "start": "noise"}
    }
    assert run["method"] == {"name": "ntrk", "arguments": resolved}
    assert "ntrk:rho=0.5,operator=w,steps=3,schedule=linear,scale=2.0" in result.output
    assert run["rewards"] == {"brightness": 1.0} and run["seed"] == 5

    settings = Settings("digits", ("a handwritten seven",), Method("ntrk"), parse_rewards("brightness"))
    model = load_model(settings, ComputeOptions())

    def brightness(images: torch.Tensor, prompts: object) -> torch.Tensor:
        return (images * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(dim=1).mean(dim=(1, 2))

    wanted = sampling.ntrk(
        model,
        brightness,
        ["a handwritten seven"] * 2,
        rho=0.5,
        steps=3,
        options=sampling.SamplerOptions(seed=5),
    )
    for particle in range(2):
        latent = load_file(out / "latents" / f"{particle:04d}.safetensors")["latent"]
        assert (latent - wanted.latents[particle]).norm() < 1e-3 * latent.norm()
        with Image.open(out / "images" / f"{particle:04d}.png") as image:
            assert image.size == (32, 32)


@pytest.mark.parametrize(("method", "shown"), [("ntrk", True), ("ntrk:operator=norm", False), ("dps", False)])
def test_a_dry_run_shows_the_tiles_of_w(tmp_path: Path, method: str, shown: bool) -> None:
    result = invoke(*SAMPLE[:-2], "--prompt", "3", "--method", method, "--dry-run", "--out", tmp_path / "run")
    line = "W       chunks 4, 16; tiles 4x4, 8x8, 16x16; mixing 16x16 in 8 steps, 8x8 in 6 steps"
    assert (line in result.output) == shown, result.output


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a 3\n\na handwritten four\n")
    result = invoke(
        *SAMPLE[:-2], "--prompt-file", prompts, "--method", "svdd", "--dry-run", "--out", tmp_path / "run"
    )
    assert result.exit_code == 0, result.output
    assert "1 for each of 3 prompts" in result.output
    assert "97 per image, 291 in total" in result.output
    assert "memory" in result.output and "MB" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "guided"),
    [
        ("ntrk:guide_every=2", "12 of 25 steps; the last one never is"),
        ("freedom:guide_from=0.5,guide_until=0.2,steps=10", "3 of 10 steps; the last one never is"),
        ("dps:strength=1,guide_from=0.99,schedule=vp,guide_every=30", "1 of 25 steps; the last one never is"),
        ("ntrk:guide_every=1", None),
        ("base", None),
    ],
)
def test_a_dry_run_shows_the_number_of_guided_steps(tmp_path: Path, method: str, guided: str | None) -> None:
    result = invoke(*SAMPLE[:-2], "--prompt", "3", "--method", method, "--dry-run", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    rows = dict(line.split(maxsplit=1) for line in result.output.splitlines() if line)
    assert rows.get("guided") == guided


def test_a_run_without_guided_steps_is_refused_before_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noisetilt_kernels.runs.loading.load_pipeline", None)
    error = (
        "ntrk: guided steps must start at until_t < t <= from_t, got none of 3 for from_t=0.5 and until_t=0.4"
    )
    for dry_run in ([], ["--dry-run"]):
        options = [*dry_run, "--out", tmp_path / "run"]
        run = [*SAMPLE, "--guide-from", 0.5, "--guide-until", 0.4]
        assert_one_sentence(invoke(*run, *options), error)
        method = "ntrk:steps=3,guide_from=0.5,guide_until=0.4"
        compare = ["compare", *SAMPLE[1:-2], "--seeds", 2, "--method", "base", "--method", method]
        assert_one_sentence(invoke(*compare, *options), error)
        wrong = [*SAMPLE, "--guide-from", 0.2, "--guide-until", 0.3]
        assert_one_sentence(invoke(*wrong, *options), "until_t must be below from_t")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*SAMPLE, "--particles", 3, "--method", "base", "--out", tmp_path / "run"]
    keep = execution.RunFolder.save_particle

    def interrupted(self: execution.RunFolder, one: execution.Outcome, *rest: torch.Tensor) -> None:
        if one.particle == 1:
            raise KeyboardInterrupt
        keep(self, one, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(execution.RunFolder, "save_particle", interrupted)
        result = invoke(*arguments)
    assert result.exit_code == 130
    assert "stopped: 1 of 3 images are in" in result.output and "--resume to continue" in result.output

    assert_one_sentence(invoke(*arguments), "already holds a run with finished images (1)", "--resume")
    result = invoke(*arguments, "--resume", "--seed", 1, "--guidance-scale", 2)
    assert_one_sentence(result, "guidance_scale None, not 2.0; with seed 0, not 1; choose another folder")
    result = invoke("sample", "--resume", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "run" / "images").iterdir())) == 3


@pytest.mark.parametrize(
    ("text", "forwards"),
    [
        ("svdd:steps=3,candidates=2", 5),
        ("freedom:steps=5,travel=2", 7),
        ("freedom:steps=5,travel=2,guide_every=2", 7),
        ("das:alpha=0.05,copies=2,steps=4,guide_from=0.8", 8),
        ("das:alpha=0.05,copies=2,steps=3", 6),
        ("fk:alpha=0.05,copies=2,steps=3,every=1", 6),
        ("psi:alpha=0.05,copies=2,chains=1,burn_in=0,kept=2,steps=3,schedule=vp", 7),
        ("rbf:steps=3,starts=2,budget=8,schedule=vp-quadratic", 8),
        ("ntrk:steps=2,start=pcnl,start_iterations=3", 5),
        ("reno:iterations=2", 3),
        ("prno:iterations=2,shuffles=3", 3),
        ("mpgr:iterations=2", 3),
        ("rbf:steps=3,budget=9,starts=2", 9),
        ("dno:iterations=1,steps=2", 4),
        ("wgnc:iterations=2,project=gradient,answer=best", 3),
    ],
)
def test_the_plan_of_a_method_is_its_cost_and_a_run_resumes(tmp_path: Path, text: str, forwards: int) -> None:
    """The plan's NFE are the forwards; a particle that is made again on resuming has the same bits."""
    one_step = Method(*split_method(text)).one_step
    command, model = ("optimize", "digits-turbo") if one_step else ("sample", "digits")
    arguments = [command, "--model", model, *SAMPLE[3:-2], "--method", text, "--particles", 2]
    result = invoke(*arguments, "--dry-run", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert f"{forwards} per image, {2 * forwards} in total" in result.output
    result = invoke(*arguments, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    latent, records = tmp_path / "run" / "latents" / "0001.safetensors", tmp_path / "run" / "records.jsonl"
    before, lines = latent.read_bytes(), records.read_text().splitlines()
    assert len({(line["particle"], line["step"]) for line in map(json.loads, lines)}) == len(lines)
    latent.unlink()
    result = invoke(command, "--resume", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert latent.read_bytes() == before
    assert len(records.read_text().splitlines()) == len(lines)


def test_resume_refuses_another_source_of_a_reward(tmp_path: Path) -> None:
    arguments = ["--resume", "--out", tmp_path / "run", "--reward-source"]
    assert invoke(*SAMPLE, "--held-out", "digit-judge", "--out", tmp_path / "run").exit_code == 0
    result = invoke("sample", *arguments, "digit-judge=other/judge")
    assert_one_sentence(result, "holds a run with sources", "other/judge")
    result = invoke("sample", *arguments, "clip=other/clip")  # the run has no reward of this name
    assert result.exit_code == 0, result.output


def test_optimize_raises_the_reward_of_the_one_step_model(tmp_path: Path) -> None:
    arguments = [
        "optimize",
        "--model",
        "digits-turbo",
        "--prompt",
        "a handwritten seven",
        "--reward",
        "brightness",
    ]
    result = invoke(*arguments, "--iterations", 6, "--lr", 0.1, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert len(records) == 7
    assert records[-1]["reward"] > records[0]["reward"]


def test_compare_writes_table_and_pictures(tmp_path: Path) -> None:
    arguments = ["compare", "--model", "digits", "--reward", "brightness", "--held-out", "digit-judge"]
    prompts = ["--prompt", "a 1", "--prompt", "a 2"]
    methods = ["--method", "ntrk:steps=3", "--method", "base:steps=3"]
    out = tmp_path / "out"
    methods += ["--method", "base:steps=3,best_of=3"]
    result = invoke(*arguments, *prompts, *methods, "--seeds", 2, "--best-of", "1,2", "--out", out)
    assert result.exit_code == 0, result.output
    table = (out / "table.md").read_text()
    assert table.strip() in result.output
    rows = json.loads((out / "comparison.json").read_text())
    assert [(row["method"], row["best_of"], row["nfe"]) for row in rows] == [
        ("ntrk:steps=3", 1, 3),
        ("ntrk:steps=3", 2, 6),
        ("base:steps=3", 1, 3),
        ("base:steps=3", 2, 6),
        ("base:steps=3", 3, 9),
    ]
    lines = (out / "base-steps3" / "results.jsonl").read_text().splitlines()
    results = [json.loads(line)["reward"] for line in lines]
    assert len(results) == 12  # three rounds of two seeds for two prompts
    assert rows[2]["scores"]["reward"]["mean"] == pytest.approx(sum(results[:4]) / 4)
    best = [max(results[seed::4]) for seed in range(4)]
    assert rows[4]["scores"]["reward"]["mean"] == pytest.approx(sum(best) / 4)
    summary = json.loads((out / "base-steps3" / "summary.json").read_text())
    assert summary["best"] == [
        max((0, 1, 4, 5, 8, 9), key=lambda i: results[i]),
        max((2, 3, 6, 7, 10, 11), key=lambda i: results[i]),
    ]
    for picture in ("comparison.png", "contact-sheet.png"):
        with Image.open(out / picture) as image:
            assert image.width > 150
    (out / "base-steps3" / "results.jsonl").unlink()
    again = invoke("compare", "--resume", "--out", out)
    assert again.exit_code == 0 and table.strip() in again.output
    assert (out / "base-steps3" / "results.jsonl").read_text().splitlines() == lines
    result = invoke("compare", "--resume", "--seed", 1, "--reward", "smoothness", "--out", out)
    assert_one_sentence(result, "with rewards {'brightness': 1.0}, not", "; with seed 0, not 1;")
    missing = invoke("compare", "--resume", "--out", tmp_path / "none")
    assert missing.exit_code == 2 and "has no comparison to resume" in missing.output


def test_rewards_are_listed() -> None:
    assert {line.split()[0] for line in invoke("rewards").output.splitlines()} >= {"aesthetic", "digit-judge"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--model", "/nowhere/flux"], ["there is no folder '/nowhere/flux'"]),
        (["--reward", "beauty"], ["unknown reward 'beauty'"]),
        (["--reward", "digit-judge"], ["no gradient"]),
        (["--reward", "digit", "--prompt", "a cat"], ["exactly one digit", "a cat"]),
        (["--height", "33"], ["height must be a multiple of 4", "33"]),
        (["--rho", "2"], ["Error: --rho must be in [0, 1], got 2"]),
        (["--method", "ntrk:rho=2"], ["Error: --method: rho must be in [0, 1], got 2"]),
        (["--method", "base:rho=0.1"], ["--method: base has no argument 'rho'"]),
        (["--method", "ntrk:rh=0.1"], ["has no argument 'rh' (did you mean 'rho'?)"]),
        (["--method", "ntrk:operator=wgn"], ["unknown operator 'wgn' (did you mean 'wgnc'?)"]),
        (["--reward", "brightnes"], ["--reward: unknown reward 'brightnes' (did you mean 'brightness'?)"]),
        (["--held-out", "digitjudge"], ["--held-out: unknown reward", "(did you mean 'digit-judge'?)"]),
        (["--model", "digit"], ["no folder 'digit' (did you mean 'digits'?)", "(digits, digits-turbo)"]),
        (["--reward-source", "brightness=/x"], ["brightness", "no weights"]),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path: Path, changes: list[str], words: list[str]) -> None:
    assert_one_sentence(invoke(*SAMPLE, *changes, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run" / "images" / "0000.png").exists()


@pytest.mark.parametrize(
    "changes",
    [
        ["--prompt-file", "/nowhere"],
        ["--operator", "x"],
        ["--reward-source", "nonsense"],
        ["--particles", "0"],
    ],
)
def test_bad_usage(tmp_path: Path, changes: list[str]) -> None:
    result = invoke(*SAMPLE, *changes, "--out", tmp_path / "run")
    assert result.exit_code == 2 and "Usage:" in result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["--method", "base", "--rho", "0.1"],
            "--rho is not an option of base; it has --steps, --schedule, --scale, --start, ",
        ),
        (
            ["--method", "ntrk:rho=0.3", "--rho", "0.1"],
            "rho is given twice: --rho 0.1 and --method ntrk:rho=0.3",
        ),
        (["--method", "wgnc"], "got 'wgnc'; wgnc is for `noisetilt optimize`"),
        (["--method", "dps"], "dps needs --strength, which has no default"),
        (["--method", "ntkr"], "got 'ntkr' (did you mean 'ntrk'?)"),
        (["--method", "best_of_n"], "for the best of N images give --particles N"),
        (
            ["--method", "nonsense"],
            "--method must be one of base, das, dno, dps, fk, freedom, ntrk, psi, rbf, svdd, got 'nonsense'",
        ),
    ],
)
def test_conflicts_of_methods_and_shorthands(tmp_path: Path, changes: list[str], message: str) -> None:
    result = invoke(*SAMPLE, *changes, "--out", tmp_path / "run")
    assert result.exit_code == 2 and "Usage:" in result.output
    assert message in result.output.splitlines()[-1]


@pytest.mark.parametrize("command", ["sample", "optimize"])
def test_shorthands_are_the_samplers_parameters(command: str) -> None:
    """Types, defaults and helps are the samplers'; the help names the samplers that take an option."""
    kind = {"sample": "flow", "optimize": "one-step"}[command]
    samplers = [sampler for sampler in sampling.SAMPLERS.values() if sampler.kind == kind]
    options = {option.name: option for option in main.commands[command].params}
    for sampler in samplers:
        for name, parameter in sampler.parameters.items():
            assert parameter.help in options[name].help
            for default in {parameter.default} - {None, inspect.Parameter.empty}:
                assert f"default: {default}" in options[name].help
            takers = [other.name for other in samplers if name in other.parameters]
            assert (f"{', '.join(takers)} only" in options[name].help) == (len(takers) < len(samplers))
            given = parameter.choices[-1] if parameter.choices else "1"
            assert type(options[name].type.convert(given, None, None)) is parameter.type


def test_arguments_of_a_method_and_shorthands_are_joined(tmp_path: Path) -> None:
    """One syntax for the method; `--strength`, which dps needs, may be given in either way."""
    for index, options in enumerate([["dps:strength=2,schedule=constant"], ["dps", "--strength", 2]]):
        out = tmp_path / str(index)
        result = invoke(*SAMPLE, "--scale", 0.5, "--method", *options, "--out", out)
        assert result.exit_code == 0, result.output
        arguments = json.loads((out / "run.json").read_text())["settings"]["method"]["arguments"]
        assert arguments == {
            "strength": 2,
            "schedule": ["constant", "linear"][index],
            "steps": 3,
            "scale": 0.5,
            "start": "noise",
        }


def test_every_command_reads_a_method_in_the_same_way(tmp_path: Path) -> None:
    """The shorthand `--scale` takes the default schedule; in a method the schedule has to be named."""
    for command in ("sample", "compare"):
        result = invoke(command, *SAMPLE[1:-2], "--method", "ntrk:scale=0.5", "--out", tmp_path / "run")
        assert result.exit_code == 1
        assert result.output.strip().endswith(": scale=0.5 needs a schedule; add schedule=NAME")
        assert result.output.startswith("Error: --method")


def test_optimize_takes_the_syntax_of_methods(tmp_path: Path) -> None:
    arguments = [
        "optimize",
        "--model",
        "digits-turbo",
        "--prompt",
        "a 7",
        "--reward",
        "brightness",
        "--dry-run",
    ]
    result = invoke(
        *arguments, "--method", "wgnc:lr=0.1,iterations=3", "--clip", 1, "--out", tmp_path / "run"
    )
    assert (
        result.exit_code == 0
        and "wgnc:iterations=3,lr=0.1,clip=1.0,operator=wgnc,project=both,answer=last" in result.output
    )
    assert "4 per image" in result.output


def test_a_prompt_is_needed(tmp_path: Path) -> None:
    result = invoke("sample", "--model", "digits", "--reward", "brightness", "--out", tmp_path / "run")
    assert result.exit_code == 2 and "give --prompt, or a --prompt-file that is not empty" in result.output


def test_prompt_files_have_comments_and_errors_name_the_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    arguments = ["sample", "--model", "digits", "--reward", "digit", "--prompt-file", file, "--dry-run"]
    file.write_text("# handwritten digits\n\na 3\n  # another comment\na cat\n")
    result = invoke(*arguments, "--out", tmp_path / "run")
    assert_one_sentence(
        result, f"--prompt-file {file}, line 5: prompt must name exactly one digit", "'a cat'"
    )
    file.write_bytes(b"a 3\n\xff\n")
    result = invoke(*arguments, "--out", tmp_path / "run")
    assert result.exit_code == 2 and f"{file}, line 2 must be UTF-8 text" in result.output.replace("\n", " ")
    file.write_text("# one\na 3\n")
    result = invoke(*arguments, "--out", tmp_path / "run")
    assert result.exit_code == 0 and "1 for each of 1 prompt;" in result.output


def test_a_prompt_file_can_be_a_bundled_list_or_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dry = [*SAMPLE[:3], *SAMPLE[5:], "--dry-run", "--out", tmp_path / "run", "--prompt-file"]
    result = invoke(*dry, "animals")
    assert result.exit_code == 0 and "1 for each of 45 prompts;" in result.output, result.output
    result = invoke(*dry, "counting", "--reward", "digit")
    assert_one_sentence(
        result, "--prompt-file counting, line 3: prompt must name exactly one digit", "'53 apples'"
    )
    Path("animals").write_text("a cat\n")
    result = invoke(*dry, "animals")
    assert result.exit_code == 0 and "1 for each of 1 prompt;" in result.output
    result = invoke(*dry, "animal")
    assert result.exit_code == 2
    assert "'animal' does not exist. `noisetilt prompts` lists" in " ".join(result.output.split())


def test_prompts_lists_the_bundled_lists_and_prints_one() -> None:
    lines = invoke("prompts").output.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [name, str(len(one.prompts))] for name, one in PROMPT_LISTS.items()
    ]
    assert "; MIT; github.com/kvablack/ddpo-pytorch/blob/1958463/" in lines[0]
    assert invoke("prompts", "animals").output.splitlines() == prompts_of("animals")


def test_unknown_words_are_a_warning(tmp_path: Path) -> None:
    arguments = [*SAMPLE[:-2], "--dry-run", "--out", tmp_path / "run"]
    result = invoke(*arguments)
    assert result.exit_code == 0 and "warning" not in result.output
    result = invoke(*arguments, "--prompt", "A photo of the seven.")
    assert result.exit_code == 0
    assert "warning: 'digits' does not know 'photo', 'of' in the prompt" in result.output


def test_a_strong_guidance_is_a_warning_and_the_default_of_the_digits_is_not(tmp_path: Path) -> None:
    arguments = [*SAMPLE[:-2], "--particles", 4, "--micro-batch", 4]
    results = {}
    for name, options in {"default": [], "strong": ["--rho", 0.3]}.items():
        results[name] = invoke(*arguments, *options, "--out", tmp_path / name)
        assert results[name].exit_code == 0, results[name].output
    assert "ntrk:rho=0.01," in results["default"].output and "warning" not in results["default"].output
    last = results["strong"].output.strip().splitlines()[-1]
    assert last.startswith("warning: ntrk (operator=w, rho=0.3) has probably destroyed the images")
    assert "the limit is 3" in last and "try a smaller rho" in last
    peaks = {
        name: json.loads((tmp_path / name / "summary.json").read_text())["noise_peak"] for name in results
    }
    assert peaks["default"] < 2 and peaks["strong"] > 4


def test_one_particle_has_no_interval(tmp_path: Path) -> None:
    result = invoke(*SAMPLE, "--out", tmp_path / "run")
    assert result.exit_code == 0 and "95 % interval" not in result.output
    assert "not measured, because the run is short" in result.output


@pytest.mark.parametrize("method", ["base", "ntrk:guide_from=0.1"])
def test_a_long_run_tells_its_time(tmp_path: Path, method: str) -> None:
    result = invoke(*SAMPLE[:-2], "--steps", 40, "--method", method, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert re.search(
        r"time +about [\d.]+ \w+, [\d.]+ \w+ per image; measured on 2 of 40 function", result.output
    )


def test_a_comparison_has_a_dry_run(tmp_path: Path) -> None:
    arguments = ["compare", *SAMPLE[1:-2], "--seeds", 3, "--dry-run", "--out", tmp_path / "out"]
    result = invoke(*arguments, "--method", "base", "--method", "svdd:steps=5")
    assert result.exit_code == 0, result.output
    assert "3 of 32 x 32" in result.output and "25 per image, 75 in total" in result.output
    assert "17 per image, 51 in total" in result.output and "not measured" in result.output
    assert not (tmp_path / "out").exists()
    result = invoke(*arguments, "--method", "ntrk", "--method", "ntrk:rho=0.01")
    assert_one_sentence(result, "methods must differ")
    result = invoke(*arguments, "--method", "base", "--method", "ntrk:rho=3")
    assert_one_sentence(result, "--method ntrk:rho=3: rho must be in [0, 1], got 3")


def test_models_are_listed() -> None:
    lines = invoke("models").output.splitlines()
    starts = {line.split()[0]: line for line in lines if line}
    assert "default rho 0.01" in starts["digits"] and starts["digits"].endswith("sample, compare")
    assert starts["digits-turbo"].endswith("optimize") and "FluxPipeline" in starts
