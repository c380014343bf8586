"""Runs with --reward-decoder: images judged during sampling come from a tiny autoencoder."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from run_files import equal_files
from safetensors.torch import load_file
from tiny_flux import tiny_autoencoder, tiny_taesd

from noisetilt_cli import main
from noisetilt_kernels import rewards, sampling
from noisetilt_kernels.models import FluxFlow, load_pipeline

PROMPT = "a handwritten seven"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taesd")
    tiny_taesd().save_pretrained(folder)
    return folder


def invoke(command: str, out: Path, *options: Any, model: str = "digits") -> Result:
    arguments = [
        *(command, "--model", model, "--prompt", PROMPT, "--reward", "brightness", "--device", "cpu"),
        *("--out", out, *options),
    ]
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_a_run_is_guided_by_the_tiny_decoder_and_finished_by_the_vae(tiny: Path, tmp_path: Path) -> None:
    options = ("--steps", 3, "--rho", 0.3, "--particles", 2, "--held-out", "color")
    done = invoke("sample", tmp_path / "run", *options, "--reward-decoder", tiny)
    assert done.exit_code == 0, done.output
    assert re.search(r"VAE [\d.]+ KB, reward decoder [\d.]+ KB, text", done.output)
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["reward_decoder"] == str(tiny)

    pipe = load_pipeline("digits", dtype=torch.float32, device="cpu")
    reward = rewards.load_rewards("brightness")
    flow = FluxFlow(pipe, reward_decoder=tiny_taesd())
    expected = sampling.ntrk(flow, reward, [PROMPT] * 2, steps=3, rho=0.3)
    lines = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    for particle, line in enumerate(lines):
        latent = load_file(tmp_path / "run" / "latents" / f"{particle:04d}.safetensors")["latent"]
        assert torch.equal(latent, expected.latents[particle])
        image = FluxFlow(pipe).decode(latent[None])
        assert line["reward"] == pytest.approx(float(reward(image, [PROMPT])), abs=1e-6)
        color = rewards.load_rewards("color")(image, [PROMPT])
        assert line["parts"]["color"] == pytest.approx(float(color), abs=1e-6)
    plain = invoke("sample", tmp_path / "plain", *options)
    assert "reward decoder" not in plain.output
    assert (tmp_path / "plain" / "latents" / "0000.safetensors").read_bytes() != (
        tmp_path / "run" / "latents" / "0000.safetensors"
    ).read_bytes()


def test_a_resumed_run_keeps_its_reward_decoder(tiny: Path, tmp_path: Path) -> None:
    options = ("--steps", 2, "--particles", 2, "--reward-decoder", tiny)
    assert invoke("sample", tmp_path / "run", *options).exit_code == 0
    before = equal_files(tmp_path / "run")
    (tmp_path / "run" / "images" / "0001.png").unlink()
    again = CliRunner().invoke(main, ["sample", "--resume", "--out", str(tmp_path / "run")])
    assert again.exit_code == 0, again.output
    assert equal_files(tmp_path / "run") == before
    other = invoke("sample", tmp_path / "run", "--resume", "--reward-decoder", tmp_path / "other")
    assert other.exit_code == 1 and f"holds a run with reward_decoder '{tiny}', not" in other.output


def test_one_step_models_and_comparisons(tiny: Path, tmp_path: Path) -> None:
    options = ("--iterations", 2, "--reward-decoder", tiny)
    optimized = invoke("optimize", tmp_path / "one", *options, model="digits-turbo")
    assert optimized.exit_code == 0, optimized.output
    methods = ("--method", "base:steps=2", "--method", "ntrk:steps=2,rho=0.3")
    compared = invoke("compare", tmp_path / "many", *methods, "--reward-decoder", tiny)
    assert compared.exit_code == 0, compared.output
    folders = [file.parent for file in (tmp_path / "many").glob("*/run.json")]
    assert len(folders) == 2
    for folder in folders:
        settings = json.loads((folder / "run.json").read_text())["settings"]
        assert settings["reward_decoder"] == str(tiny)


def test_decoders_that_do_not_fit_are_refused_before_any_work(tmp_path: Path) -> None:
    tiny_taesd(latent_channels=16).save_pretrained(tmp_path / "channels")
    tiny_taesd(stages=4).save_pretrained(tmp_path / "sides")
    tiny_autoencoder().save_pretrained(tmp_path / "vae")
    (tmp_path / "empty").mkdir()
    messages = {
        "channels": "--reward-decoder must decode latents with 4 channels, got an AutoencoderTiny for 16",
        "sides": "--reward-decoder must make images with 2 times the sides of latents",
        "vae": "must be an AutoencoderTiny, got AutoencoderKL",
        "empty": "is not a folder with a config.json; a folder or hub id of an AutoencoderTiny is needed",
        "nowhere": "is not a folder with a config.json",
    }
    compare = ("compare", tmp_path / "run", "--method", "base:steps=2")
    for name, message in messages.items():
        for command in (("sample", tmp_path / "run"), ("sample", tmp_path / "run", "--dry-run"), compare):
            refused = invoke(*command, "--reward-decoder", tmp_path / name)
            assert refused.exit_code == 1 and message in refused.output, refused.output
            assert not (tmp_path / "run").exists() and "block_out_channels" not in refused.output
