"""Runs into folders, with a flow in closed form: written files, Ctrl-C and resuming, too little memory."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from gaussian_flows import LatentFlow, brightness, left_half
from PIL import Image
from torch import Tensor

from noisetilt_kernels.rewards import RewardSpec, WeightedSum, parse_rewards
from noisetilt_kernels.rewards.registry import ENTRIES
from noisetilt_kernels.runs.errors import OutOfMemoryError
from noisetilt_kernels.runs.execute import execute
from noisetilt_kernels.runs.folder import RunFolder, to_image
from noisetilt_kernels.runs.settings import ComputeOptions, Settings
from noisetilt_kernels.sampling import SamplerOptions
from noisetilt_kernels.sampling.methods import Method

STEPS = 3
SETTINGS = Settings(
    model="none",
    prompts=("bright", "dark"),
    method=Method("ntrk", {"steps": STEPS}),
    rewards=parse_rewards("brightness"),
    held_out=(RewardSpec("left", ENTRIES["symmetry"]),),
    particles=3,
    seed=4,
)
REWARD = WeightedSum({"brightness": (1.0, brightness)})


def run(
    path: Path, reward: WeightedSum = REWARD, resume: bool = False, micro_batch: int = 2
) -> dict[str, object]:
    folder = RunFolder(path, SETTINGS.to_json(), resume=resume)
    return execute(
        SETTINGS, ComputeOptions(micro_batch=micro_batch), folder, LatentFlow(), reward, {"left": left_half}
    )


def images(path: Path) -> list[bytes]:
    return [(path / "images" / f"{particle:04d}.png").read_bytes() for particle in range(6)]


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_equals_the_sampler(tmp_path: Path) -> None:
    summary = run(tmp_path)
    prompts = ["bright"] * 3 + ["dark"] * 3
    result = SETTINGS.method.sample(LatentFlow(), brightness, prompts, SamplerOptions(seed=4))
    pictures = LatentFlow().decode(result.latents)
    left = left_half(pictures, prompts)
    results = lines(tmp_path / "results.jsonl")
    assert [(one["particle"], one["prompt"]) for one in results] == list(enumerate(prompts))
    for particle, one in enumerate(results):
        assert one["reward"] == one["parts"]["brightness"] == float(result.rewards[particle])
        assert one["parts"]["left"] == float(left[particle])
        with Image.open(tmp_path / "images" / f"{particle:04d}.png") as image:
            assert image.tobytes() == to_image(pictures[particle]).tobytes()
    assert len(lines(tmp_path / "records.jsonl")) == 6 * STEPS
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["nfe"] == result.nfe == SETTINGS.nfe == 6 * STEPS
    rewards = result.rewards
    assert summary["best"] == [int(rewards[:3].argmax()), 3 + int(rewards[3:].argmax())]
    assert summary["reward"]["mean"] == pytest.approx(float(rewards.double().mean()))
    with Image.open(tmp_path / "contact-sheet.png") as sheet:
        assert sheet.width > 3 * 160 and sheet.height > 2 * 160


def test_a_resumed_run_makes_the_same_images(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    calls = 0

    def interrupted(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        nonlocal calls
        calls += 1
        # in the second micro-batch; each of the two finished particles was judged once more
        if calls == 2 * STEPS + 3:
            raise KeyboardInterrupt
        return brightness(pictures, prompts)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", WeightedSum({"brightness": (1.0, interrupted)}))
    assert 0 < len(lines(tmp_path / "cut" / "results.jsonl")) < 6
    assert not (tmp_path / "cut" / "summary.json").exists()
    summary = run(tmp_path / "cut", resume=True)
    assert images(tmp_path / "cut") == images(tmp_path / "whole")
    assert lines(tmp_path / "cut" / "results.jsonl") == lines(tmp_path / "whole" / "results.jsonl")
    assert len(lines(tmp_path / "cut" / "records.jsonl")) == 6 * STEPS
    assert summary == json.loads((tmp_path / "whole" / "summary.json").read_text())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_explained(tmp_path: Path, error: Exception) -> None:
    def greedy(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        raise error

    with pytest.raises(
        OutOfMemoryError, match=r"smaller --micro-batch than 2 with --resume, or smaller images"
    ):
        run(tmp_path, WeightedSum({"brightness": (1.0, greedy)}))


def test_other_errors_are_not_explained_as_memory(tmp_path: Path) -> None:
    def broken(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        run(tmp_path, WeightedSum({"brightness": (1.0, broken)}))
