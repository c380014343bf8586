"""`noisetilt sample`, `optimize`, `compare` and `rewards`, with the bundled models in few steps."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file

from noisetilt_kernels import sampling
from noisetilt_kernels.cli import main
from noisetilt_kernels.rewards import parse_rewards
from noisetilt_kernels.runs import execute as execution
from noisetilt_kernels.runs.loading import load_model
from noisetilt_kernels.runs.settings import ComputeOptions, Settings
from noisetilt_kernels.sampling.methods import Method

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
    assert run["method"] == {"name": "ntrk", "arguments": {"rho": 0.5, "steps": 3}}
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
    assert_one_sentence(invoke(*arguments, "--resume", "--seed", 1), "holds a run with seed 0, not 1")
    result = invoke(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "run" / "images").iterdir())) == 3


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
    result = invoke(*arguments, *prompts, *methods, "--seeds", 2, "--best-of", "1,2", "--out", out)
    assert result.exit_code == 0, result.output
    table = (out / "table.md").read_text()
    assert table.strip() in result.output
    rows = json.loads((out / "comparison.json").read_text())
    assert [(row["method"], row["best_of"], row["nfe"]) for row in rows] == [
        ("ntrk:steps=3", 1, 3),
        ("base:steps=3", 1, 3),
        ("ntrk:steps=3", 2, 6),
        ("base:steps=3", 2, 6),
    ]
    lines = (out / "base-steps3" / "results.jsonl").read_text().splitlines()
    results = [json.loads(line)["reward"] for line in lines]
    assert rows[1]["scores"]["reward"]["mean"] == pytest.approx(sum(results) / 4)
    assert rows[3]["scores"]["reward"]["mean"] == pytest.approx((max(results[:2]) + max(results[2:])) / 2)
    for picture in ("comparison.png", "contact-sheet.png"):
        with Image.open(out / picture) as image:
            assert image.width > 150


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
        (["--rho", "2"], ["rho must be in [0, 1]"]),
        (["--method", "base:rho=0.1"], ["base has no argument 'rho'"]),
        (["--method", "dps"], ["dps needs strength"]),
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
            "--rho is not an option of base; it has --steps, --schedule, --scale",
        ),
        (
            ["--method", "ntrk:rho=0.3", "--rho", "0.1"],
            "rho is given twice: --rho 0.1 and --method ntrk:rho=0.3",
        ),
        (["--method", "wgnc"], "got 'wgnc'; wgnc is for `noisetilt optimize`"),
        (["--method", "nonsense"], "--method must be one of base, dps, ntrk, svdd, got 'nonsense'"),
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
                assert f"default: {default}]" in options[name].help
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
        }


def test_every_command_reads_a_method_in_the_same_way(tmp_path: Path) -> None:
    """The shorthand `--scale` takes the default schedule; in a method the schedule has to be named."""
    for command in ("sample", "compare"):
        result = invoke(command, *SAMPLE[1:-2], "--method", "ntrk:scale=0.5", "--out", tmp_path / "run")
        assert result.exit_code == 1
        assert result.output.strip() == "Error: ntrk: scale=0.5 needs a schedule; add schedule=NAME"


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
    assert result.exit_code == 0 and "wgnc:lr=0.1,iterations=3,clip=1.0" in result.output
    assert "4 per image" in result.output


def test_a_prompt_is_needed(tmp_path: Path) -> None:
    result = invoke("sample", "--model", "digits", "--reward", "brightness", "--out", tmp_path / "run")
    assert result.exit_code == 2 and "there is no prompt" in result.output
