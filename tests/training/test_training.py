"""Bundled models: size, quality and architecture; their training runs from scratch."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

from noisetilt_kernels import sampling
from noisetilt_kernels.model_sources import ASSETS
from noisetilt_kernels.models import FluxFlow, FluxOneStep, load_pipeline
from noisetilt_kernels.rewards import load_reward, load_rewards
from noisetilt_kernels.rewards.digits import WORDS
from noisetilt_kernels.sampling import SamplerOptions, Schedule

PROMPTS = [f"a handwritten {word}" for word in WORDS]


def judged(images: torch.Tensor, prompts: list[str]) -> float:
    """Return the share of images in which the independent judge sees the digit of the prompt."""
    return float(load_reward("digit-judge")(images, prompts).mean())


@pytest.fixture(scope="module")
def digits() -> FluxFlow:
    return FluxFlow(load_pipeline(ASSETS / "digits", dtype=torch.float32, device="cpu"))


def test_the_models_are_small() -> None:
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) <= 8e6


def test_the_models_load_in_diffusers() -> None:
    pipe = FluxPipeline.from_pretrained(ASSETS / "digits")
    assert isinstance(pipe.transformer, FluxTransformer2DModel) and isinstance(pipe.vae, AutoencoderKL)
    images = pipe(
        ["a handwritten seven"] * 12,
        height=32,
        width=32,
        num_inference_steps=20,
        max_sequence_length=8,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert judged(images, ["7"] * 12) >= 0.8


@pytest.mark.parametrize("schedule", [Schedule("linear"), Schedule("constant", 0)])
def test_unguided_digits_are_read_right(digits: FluxFlow, schedule: Schedule) -> None:
    result = sampling.base(
        digits,
        load_reward("brightness"),
        PROMPTS * 6,
        steps=15,
        schedule=schedule,
        options=SamplerOptions(seed=1, micro_batch=30),
    )
    assert judged(digits.decode(result.latents), PROMPTS * 6) >= 0.85


def test_other_wordings_of_prompts(digits: FluxFlow) -> None:
    prompts = [
        template.format(name)
        for template in ("{}", "the digit {}", "a {}")
        for name in (*WORDS, *"0123456789")
    ]
    result = sampling.base(
        digits, load_reward("brightness"), prompts, steps=15, options=SamplerOptions(seed=2, micro_batch=30)
    )
    assert judged(digits.decode(result.latents), prompts) >= 0.7


def test_the_student_draws_digits_in_one_step() -> None:
    model = FluxOneStep(load_pipeline(ASSETS / "digits-turbo", dtype=torch.float32, device="cpu"))
    noise = torch.randn(60, *model.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert judged(model.generate(noise, PROMPTS * 6), PROMPTS * 6) >= 0.8


@pytest.mark.slow
def test_steering_raises_the_reward_and_the_classifier_reward_the_digit(digits: FluxFlow) -> None:
    options = SamplerOptions(seed=3, micro_batch=20)
    base = sampling.base(digits, load_reward("brightness"), PROMPTS * 2, steps=15, options=options)
    brighter = sampling.ntrk(
        digits, load_reward("brightness"), PROMPTS * 2, rho=0.1, steps=15, options=options
    )
    assert (brighter.rewards > base.rewards).float().mean() > 0.9
    surer = sampling.ntrk(digits, load_rewards("digit"), PROMPTS * 2, rho=0.1, steps=15, options=options)
    before = load_reward("digit")(digits.decode(base.latents), PROMPTS * 2)
    assert surer.rewards.mean() > before.mean()


@pytest.mark.slow
def test_training_runs_from_scratch(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from noisetilt_kernels.training.__main__ import main

    result = CliRunner().invoke(main, ["--out", str(tmp_path), "--share", "0.001"])
    assert result.exit_code == 0, result.output
    made = {file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()}
    bundled = {file.relative_to(ASSETS) for file in ASSETS.rglob("*") if file.is_file()}
    assert made == {file for file in bundled if file.parts[0] not in ("experiments", "prompts")}
    load_pipeline(tmp_path / "digits-turbo", dtype=torch.float32, device="cpu")
