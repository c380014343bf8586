"""Runs of videos: files, contact sheet, and options refused before any work."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file
from tiny_wan import SIZE, tiny_wan

from noisetilt_cli import main
from noisetilt_kernels.models import WanFlow
from noisetilt_kernels.rewards import WeightedSum, parse_rewards
from noisetilt_kernels.rewards.frames import of_videos
from noisetilt_kernels.rewards.simple import brightness
from noisetilt_kernels.runs import videos
from noisetilt_kernels.runs.execute import execute
from noisetilt_kernels.runs.folder import Outcome, RunFolder
from noisetilt_kernels.runs.settings import ComputeOptions, Settings
from noisetilt_kernels.sampling.methods import Method

av = pytest.importorskip("av")


def gradient_video(frames: int = 9, height: int = 32, width: int = 48) -> torch.Tensor:
    """Return a smooth video, easy to compress: red to the right, green down, blue with time."""
    t, y, x = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (frames, height, width)), indexing="ij")
    return torch.stack([x, y, t])


def decoded(data: bytes) -> list[torch.Tensor]:
    with av.open(io.BytesIO(data)) as container:
        return [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_an_mp4_holds_the_frames() -> None:
    video = gradient_video()
    data = videos.mp4(video, fps=12)
    frames = decoded(data)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 12 and stream.codec_context.name == "h264"
    assert len(frames) == 9
    for frame, expected in zip(frames, videos.to_frames(video), strict=True):
        assert (frame.float() - expected.float()).abs().mean() < 4


def test_a_strip_has_the_first_and_the_last_frame() -> None:
    video = gradient_video(frames=17)
    strip = videos.film_strip(video)
    assert strip.size == (6 * 48, 32)
    blue = [strip.getpixel((48 * index, 0))[2] for index in range(6)]
    assert blue[0] == 0 and blue[-1] == 255 and blue == sorted(blue)
    assert videos.film_strip(video[:, :1]).size == (48, 32)


def test_nan_is_black_and_values_are_clamped() -> None:
    frames = videos.to_frames(torch.tensor([torch.nan, -1.0, 2.0]).view(3, 1, 1, 1))
    assert frames.flatten().tolist() == [0, 0, 255]


def test_a_lost_video_is_missing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {})
    for particle in range(2):
        folder.save_particle(Outcome(particle, "a", 0.5, {}), torch.zeros(2, 4, 4), gradient_video(), fps=8)
    assert decoded(folder.video_file(1).read_bytes())
    folder.video_file(0).unlink()
    assert RunFolder(tmp_path, {}, resume=True).missing_batches(2, 1) == [range(0, 1)]


def test_a_damaged_video_is_made_again(tmp_path: Path) -> None:
    for index, part in enumerate((0.0, 0.1, 0.5, 0.9)):
        folder = RunFolder(tmp_path / str(index), {})
        folder.save_particle(Outcome(0, "a", 0.5, {}), torch.zeros(2, 4, 4), gradient_video(), fps=8)
        assert RunFolder(folder.path, {}, resume=True).missing_batches(1, 1) == []
        data = folder.video_file(0).read_bytes()
        folder.video_file(0).write_bytes(data[: int(part * len(data))])
        assert RunFolder(folder.path, {}, resume=True).missing_batches(1, 1) == [range(0, 1)]


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan") / "tiny"
    tiny_wan().save_pretrained(folder)
    return folder


def invoke(model: Path, *options: object) -> Result:
    size = [f"--{name.replace('_', '-')}={value}" for name, value in SIZE.items()]
    arguments = [
        "sample",
        "--model",
        model,
        *size,
        "--prompt",
        "a cat",
        "--reward",
        "brightness",
        "--steps",
        2,
    ]
    return CliRunner().invoke(main, list(map(str, [*arguments, *options])))


def test_a_run_of_videos(wan: Path, tmp_path: Path) -> None:
    options = [
        "--particles",
        2,
        "--micro-batch",
        2,
        "--held-out",
        "symmetry",
        "--negative-prompt",
        "the house",
    ]
    result = invoke(wan, *options, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "2 of 9 frames of 32 x 48" in result.output and "4 of 9 frames at once" in result.output
    for particle in range(2):
        latent = load_file(tmp_path / "run" / "latents" / f"{particle:04d}.safetensors")["latent"]
        with torch.no_grad():
            (expected,) = WanFlow(tiny_wan(), **SIZE).decode(latent[None])
        frames = decoded((tmp_path / "run" / "videos" / f"{particle:04d}.mp4").read_bytes())
        difference = torch.stack(frames).float() - videos.to_frames(expected).float()
        assert len(frames) == 9 and difference.abs().mean() < 25  # noise: colours lose resolution
        with Image.open(tmp_path / "run" / "images" / f"{particle:04d}.png") as strip:
            apart = np.asarray(strip).astype(int) - np.asarray(videos.film_strip(expected))
        # another micro-batch may round differently
        assert apart.shape == (32, 6 * 48, 3) and abs(apart).max() <= 1
    results = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [one["particle"] for one in results] == [0, 1] and all(
        "symmetry" in one["parts"] for one in results
    )
    with Image.open(tmp_path / "run" / "contact-sheet.png") as sheet:
        assert sheet.width > 2 * 720


class RateJudge:
    """Reward of videos that knows their frame rate, and returns it."""

    takes_videos = True
    fps = 16.0

    def __call__(self, videos: torch.Tensor, prompts: object) -> torch.Tensor:
        return torch.full((len(videos),), self.fps)


def test_videos_have_the_models_frame_rate(tmp_path: Path) -> None:
    settings = Settings("none", ("a cat",), Method("base", {"steps": 1}), parse_rewards("brightness"))
    reward = WeightedSum({"brightness": (1.0, of_videos(brightness, 4))})
    folder = RunFolder(tmp_path, settings.to_json())
    model = WanFlow(tiny_wan(), fps=8, **SIZE)
    execute(settings, ComputeOptions(), folder, model, reward, {"rate": RateJudge()})
    assert folder.outcomes[0].parts["rate"] == 8
    with av.open(io.BytesIO(folder.video_file(0).read_bytes())) as container:
        assert container.streams.video[0].average_rate == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-frames", "8"], "--num-frames must be 4 k + 1, got 8; 5 and 9 are nearest"),
        (["--height", "40"], "height must be a multiple of 16"),
        (["--method", "dps:strength=x"], "--method: strength must be a number"),
    ],
)
def test_options_refused_before_any_work(wan: Path, tmp_path: Path, options: list[str], message: str) -> None:
    result = invoke(wan, *options, "--out", tmp_path / "run")
    assert result.exit_code == 1 and message in result.output.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_comparison_refuses_sizes_before_any_work(wan: Path, tmp_path: Path) -> None:
    arguments = ["compare", "--model", wan, "--prompt", "a cat", "--reward", "brightness", "--method", "base"]
    result = CliRunner().invoke(
        main, list(map(str, [*arguments, "--num-frames", 8, "--out", tmp_path / "out"]))
    )
    assert (
        result.exit_code == 1 and "--num-frames must be 4 k + 1, got 8; 5 and 9 are nearest" in result.output
    )
    assert not (tmp_path / "out").exists()


def test_videos_need_av(wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos.importlib.util, "find_spec", lambda name: None)
    result = invoke(wan, "--out", tmp_path / "run")
    assert result.exit_code == 1 and 'videos need av: pip install "noisetilt-kernels[video]"' in result.output
    assert not (tmp_path / "run").exists()


def test_wgnc_is_not_for_flows_of_videos(wan: Path, tmp_path: Path) -> None:
    arguments = [
        "optimize",
        "--model",
        wan,
        "--prompt",
        "a cat",
        "--reward",
        "brightness",
        "--out",
        tmp_path / "run",
    ]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 1
    wanted = "(Wan) takes more than one step, which wgnc cannot steer; use `noisetilt sample`"
    assert wanted in result.output
