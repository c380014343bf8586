"""VideoReward with small checkpoints in the published format, compared with Hugging Face's classes."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reward_checks import check_incomplete, check_pickle, gradient_of, some_images
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("transformers")

import tiny_qwen
from PIL import Image

from noisetilt_kernels.rewards import RewardError, load_reward, load_rewards
from noisetilt_kernels.rewards.vision_language import videoreward
from noisetilt_kernels.rewards.vision_language.qwen import Patches
from noisetilt_kernels.rewards.vision_language.videoreward import VideoReward, chosen_frames
from noisetilt_kernels.rewards.vision_language.videoreward_checkpoint import (
    Settings,
    merge_lora,
    plain_name,
    read_settings,
)
from noisetilt_kernels.rewards.vision_language.videoreward_prompt import MARKS, PARTS, PROMPT_FILE

PROMPTS = ["a cat runs", "two red boats on a lake", "a cat runs"]
SHORT = "\nRate it. VQ: <|VQ_reward|>\nMQ: <|MQ_reward|>\nPrompt - {text_prompt}\nTA: <|TA_reward|>\nEND\n"


pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(autouse=True)
def short_text(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Use a short text: the real one has 4,000 tokens with a tokenizer by letters."""
    file = tmp_path_factory.mktemp("text") / "prompt.txt"
    file.write_text(SHORT)
    monkeypatch.setattr(videoreward, "PROMPT_FILE", file)


def whole(folder: Path, **options: Any) -> Path:
    """Folder of a checkpoint beside its base model."""
    return tiny_qwen.save_videoreward(tiny_qwen.save_base(folder), **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(tmp_path_factory.mktemp("videoreward"))


@pytest.fixture
def reward(folder: Path, short_text: None) -> VideoReward:
    return VideoReward(folder, fps=4)


def some_videos(count: int, frames: int = 9, height: int = 24, width: int = 16) -> Tensor:
    """Return smooth videos (count, 3, frames, height, width) that move."""
    ends = some_images(2 * count, height, width).unflatten(0, (2, count))
    times = torch.linspace(0, 1, frames)[:, None, None]
    return ends[0][:, :, None] * (1 - times) + ends[1][:, :, None] * times


# ---- which frames ----


@pytest.mark.parametrize(
    ("count", "fps", "expected"),
    [
        (81, 16, [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]),
        (33, 16, [0, 11, 21, 32]),
        (9, 4, [0, 3, 5, 8]),
        (5, 16, [0, 1, 3, 4]),
        (3, 16, [0, 2]),
        (2, 16, [0, 1]),
        (4, 1, [0, 1, 2, 3]),
        (7, 2, [0, 1, 2, 4, 5, 6]),
    ],
)
def test_frames_are_two_of_each_second(count: int, fps: float, expected: list[int]) -> None:
    assert chosen_frames(count, fps, 2.0).tolist() == expected


def test_frames_are_at_most_768() -> None:
    assert len(chosen_frames(5000, 2, 2.0)) == 768
    assert len(chosen_frames(160, 16, 4.0)) == 40


def test_a_single_frame() -> None:
    with pytest.raises(ValueError, match=r"^videoreward: videos must have at least 2 frames, got 1$"):
        chosen_frames(1, 16, 2.0)


# ---- preprocessing ----


def patches_by_definition(video: np.ndarray, side: int, merged: int) -> list[np.ndarray]:
    """Return the patches of normalized frames (F, 3, H, W).

    Their order is by token, then patch; within a patch by color, frame, row and column.
    """
    token = side * merged
    rows = []
    for time in range(0, len(video), 2):
        for top in range(0, video.shape[2], token):
            for left in range(0, video.shape[3], token):
                for y in range(top, top + token, side):
                    for x in range(left, left + token, side):
                        rows.append(
                            video[time : time + 2, :, y : y + side, x : x + side]
                            .transpose(1, 0, 2, 3)
                            .ravel()
                        )
    return rows


@pytest.mark.parametrize(("height", "width"), [(32, 48), (45, 30), (64, 64), (20, 20)])
def test_patches_are_those_of_pairs_of_frames(height: int, width: int) -> None:
    """Frames are resized like PIL images, up to the rounding to 8 bits."""
    patches = Patches("videoreward", side=4, merged=2, frames=2, least=1000, most=1600)
    numbers = (some_videos(1, 4, height, width)[0].transpose(0, 1) * 255).round().byte()
    actual, grid = patches(numbers.float() / 255)
    new = patches.size(height, width)
    assert grid.tolist() == [[2, new[0] // 4, new[1] // 4]]
    assert patches.tokens(grid) == (2, new[0] // 8, new[1] // 8)
    mean, std = (np.array(values)[:, None, None] for values in (patches.mean, patches.std))
    frames = []
    for frame in numbers:
        pil = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize(new[::-1], Image.Resampling.BICUBIC)
        frames.append((np.asarray(pil).transpose(2, 0, 1) / 255 - mean) / std)
    expected = torch.from_numpy(np.stack(patches_by_definition(np.stack(frames), 4, 2))).float()
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1.25 / 255 / min(patches.std)


def test_the_last_frame_fills_the_last_patch() -> None:
    patches = Patches("videoreward", side=4, merged=2, frames=2, least=64, most=1024)
    frames = some_images(3, 16, 16)
    odd, grid = patches(frames)
    even, _ = patches(torch.cat([frames, frames[2:]]))
    assert grid.tolist() == [[2, 4, 4]]
    assert torch.equal(odd, even)


# ---- the text ----


def test_the_text_is_the_authors() -> None:
    """The text is an exact copy, with the spaces at line ends that editors tend to remove."""
    text = PROMPT_FILE.read_bytes()
    assert (
        hashlib.sha256(text).hexdigest() == "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700"
    )
    places = [text.decode().index(mark) for mark in MARKS]
    assert places == sorted(places)
    assert text.count(b"{text_prompt}") == 1
    assert MARKS == ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")


def test_the_whole_text_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videoreward, "PROMPT_FILE", PROMPT_FILE)
    reward = VideoReward(folder, fps=4)
    seen: list[Tensor] = []
    reward._model.register_forward_pre_hook(
        lambda m, a, inputs: seen.append(inputs["input_ids"]), with_kwargs=True
    )
    with torch.no_grad():
        assert reward(some_videos(1), ["a {cat}"]).isfinite().all()
    text = tiny_qwen.make_marked_tokenizer().decode(seen[0][0])
    question = PROMPT_FILE.read_text().replace("{text_prompt}", "a {cat}")
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|>{'<|video_pad|>' * 12}<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_prompts_with_special_tokens(reward: VideoReward) -> None:
    for token in ("<|video_pad|>", "<|MQ_reward|>"):
        with pytest.raises(
            ValueError, match=rf"^videoreward: prompts must not contain {re.escape(token)}, got "
        ):
            reward(some_videos(1), [f"a {token} cat"])


# ---- values ----


def raw_values(videos: Tensor, prompts: list[str], head_rows: int) -> Tensor:
    """Return VQ, MQ and TA (B, 3) before normalization: the head applied to the marks' hidden states."""
    model, head = tiny_qwen.merged_model(head_rows)
    tokenizer = tiny_qwen.make_marked_tokenizer()
    patches = Patches("", side=4, merged=2, frames=2, least=384, most=384)
    rows = []
    for video, prompt in zip(videos, prompts, strict=True):
        pixels, grid = patches(video.transpose(0, 1)[[0, 3, 5, 8]])
        chat = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"<|vision_start|>{'<|video_pad|>' * (int(grid.prod()) // 4)}<|vision_end|>"
            f"{SHORT.format(text_prompt=prompt)}<|im_end|>\n<|im_start|>assistant\n"
        )
        tokens = tokenizer(chat, return_tensors="pt").input_ids
        with torch.no_grad():
            words = model.model.language_model.embed_tokens(tokens)
            words[tokens == model.config.video_token_id] = torch.cat(
                model.model.get_video_features(pixels, grid).pooler_output
            )
            # without positions the model numbers them consecutively
            hidden = model.model.language_model(inputs_embeds=words).last_hidden_state
        scores = hidden[0] @ head.T  # (tokens, rows of the head)
        places = [tokens[0].tolist().index(tokenizer.convert_tokens_to_ids(mark)) for mark in tiny_qwen.MARKS]
        rows.append(torch.stack([scores[place, row % head_rows] for row, place in enumerate(places)]))
    return torch.stack(rows)


def normalised(raw: Tensor) -> Tensor:
    return (raw - torch.tensor([0.3, -0.2, 0.1])) / torch.tensor([0.5, 2.0, 1.25])


@pytest.mark.parametrize("head_rows", [1, 3])
@pytest.mark.parametrize("full", [True, False])
def test_values_follow_the_definition(tmp_path: Path, full: bool, head_rows: int) -> None:
    source = whole(tmp_path, full=full, head_rows=head_rows)
    videos = some_videos(3)
    expected = normalised(raw_values(videos, PROMPTS, head_rows))
    assert (expected.std(dim=0) > 0.05).all(), "the videos are too similar to test anything"
    torch.testing.assert_close(
        VideoReward(source, fps=4)(videos, PROMPTS), expected.sum(dim=1), rtol=1e-3, atol=1e-3
    )
    for index, part in enumerate(("visual", "motion", "text")):
        values = VideoReward(source, part=part, fps=4)(videos, PROMPTS)
        torch.testing.assert_close(values, expected[:, index], rtol=1e-3, atol=1e-3)
        assert values.dtype == torch.float32


def test_lora_changes_it() -> None:
    """LoRA changes the values, so the test above shows that it is merged."""
    base = tiny_qwen.make_base_model().state_dict()
    merged = tiny_qwen.merged_model()[0].state_dict()
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert (merged[name] - base[name]).norm() > 0.1 * base[name].norm()


def test_by_name(folder: Path, short_text: None) -> None:
    videos = some_videos(2)
    named = load_reward("videoreward:motion", source=str(folder))
    assert named.takes_videos  # type: ignore[attr-defined]
    expected = VideoReward(folder, part="motion", fps=16)
    torch.testing.assert_close(named(videos, PROMPTS[:2]), expected(videos, PROMPTS[:2]), rtol=0, atol=0)
    total = sum(load_reward(f"videoreward:{part}", source=str(folder))(videos, PROMPTS[:2]) for part in PARTS)
    torch.testing.assert_close(load_reward("videoreward", source=str(folder))(videos, PROMPTS[:2]), total)
    both = load_rewards("videoreward:motion=2,videoreward:text=-1", sources={"videoreward": str(folder)})
    motion, text = (
        both.rewards[f"videoreward:{part}"][1](videos, PROMPTS[:2]) for part in ("motion", "text")
    )
    torch.testing.assert_close(both(videos, PROMPTS[:2]), 2 * motion - text)
    for bad in ("videoreward:sound", "videoreward:"):
        with pytest.raises(
            ValueError, match=r"^videoreward: unknown part '\w*'; valid: 'visual', 'motion', 'text'$"
        ):
            load_reward(bad, source="/nowhere")


def test_lora_is_divided_by_its_rank_or_its_root() -> None:
    tensors = {
        "a.weight": torch.zeros(2, 3),
        "a.lora_A.weight": torch.ones(4, 3),
        "a.lora_B.weight": torch.ones(2, 4),
        "b.weight": torch.ones(1),
    }
    for root, expected in {True: 4 * 4 / 2, False: 4 * 4 / 4}.items():
        merged = merge_lora(tensors, Settings(2.0, 100, {}, 4.0, root), torch.bfloat16)
        assert set(merged) == {"a.weight", "b.weight"}
        assert torch.equal(merged["a.weight"], torch.full((2, 3), expected, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("base_model.model.visual.blocks.0.attn.qkv.weight", "visual.blocks.0.attn.qkv.weight"),
        (
            "base_model.model.model.layers.1.mlp.up_proj.base_layer.weight",
            "language_model.layers.1.mlp.up_proj.weight",
        ),
        (
            "base_model.model.model.layers.1.mlp.up_proj.lora_A.default.weight",
            "language_model.layers.1.mlp.up_proj.lora_A.weight",
        ),
        ("base_model.model.model.embed_tokens.weight", "language_model.embed_tokens.weight"),
        ("base_model.model.rm_head.weight", "rm_head.weight"),
        ("base_model.model.rm_head.modules_to_save.default.weight", "rm_head.weight"),
        ("model.language_model.norm.weight", "language_model.norm.weight"),
        ("model.visual.merger.ln_q.bias", "visual.merger.ln_q.bias"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_names(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_missing_settings_have_published_values(tmp_path: Path) -> None:
    (tmp_path / "model_config.json").write_text("{}")
    settings = read_settings(tmp_path)
    assert (settings.fps, settings.most_pixels, settings.alpha) == (2.0, 200_704, None)
    assert settings.normal == {"VQ": (3.6757, 2.2476), "MQ": (1.1646, 1.3811), "TA": (2.8105, 2.5121)}


# ---- properties of every reward ----


def test_gradients(reward: VideoReward) -> None:
    """Compare the gradient with finite differences of fourth order, along itself and random directions."""
    videos = some_videos(2, 9, 25, 17)
    gradient = gradient_of(reward, videos, PROMPTS[:2])
    looked_at = [0, 3, 5, 8]
    assert gradient.isfinite().all()
    assert (gradient.abs().amax(dim=(0, 1, 3, 4)) > 0).nonzero().flatten().tolist() == looked_at
    for seed in range(4):
        direction = (
            gradient
            if seed == 0
            else torch.randn(videos.shape, generator=torch.Generator().manual_seed(seed))
        )
        direction = direction / direction.flatten(1).abs().amax(dim=1)[:, None, None, None, None]
        size = 5e-4
        with torch.no_grad():
            a, b, c, d = (
                reward(videos + size * k * direction / 2, PROMPTS[:2]).double() for k in (2, 1, -1, -2)
            )
        expected = (8 * (b - c) - (a - d)) / (6 * size)
        actual = (gradient.double() * direction).flatten(1).sum(dim=1)
        scale = gradient.flatten(1).norm(dim=1) * direction.flatten(1).norm(dim=1)
        assert ((actual - expected).abs() / scale).max() < 2e-3


def test_no_video_influences_another(reward: VideoReward) -> None:
    videos = some_videos(3)
    prompts = ["a cat", "two red boats on a lake " * 3, "b"]
    values, gradient = reward(videos, prompts), gradient_of(reward, videos, prompts)
    assert values.shape == (3,)
    for index, prompt in enumerate(prompts):
        one = videos[index : index + 1]
        assert torch.equal(reward(one, [prompt])[0], values[index]), "to the bit"
        torch.testing.assert_close(
            gradient_of(reward, one, [prompt])[0], gradient[index], rtol=1e-4, atol=1e-6
        )


def test_frames_between_do_not_count(reward: VideoReward) -> None:
    videos = some_videos(1)
    other = videos.clone()
    other[:, :, [1, 2, 4, 6, 7]] = 0
    assert torch.equal(reward(videos, PROMPTS[:1]), reward(other, PROMPTS[:1]))


def test_the_order_of_frames_counts(reward: VideoReward) -> None:
    videos = some_videos(1)
    assert (reward(videos, PROMPTS[:1]) - reward(videos.flip(2), PROMPTS[:1])).abs() > 1e-3


def test_weights_are_frozen(reward: VideoReward) -> None:
    assert not any(parameter.requires_grad for parameter in reward._model.parameters())
    assert not any(module.training for module in reward._model.modules())
    assert not reward._head.requires_grad


def test_blocks_are_computed_again_in_the_backward(reward: VideoReward) -> None:
    calls: list[bool] = []
    for block in (reward._model.language_model.layers[1].self_attn, reward._model.visual.blocks[1].attn):
        block.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    value = reward(some_videos(1).requires_grad_(), PROMPTS[:1])
    assert len(calls) == 2
    value.sum().backward()
    assert len(calls) == 4


def test_bfloat16_is_for_the_model_alone(reward: VideoReward, folder: Path) -> None:
    videos = some_videos(2)
    rounded = VideoReward(folder, fps=4, dtype=torch.bfloat16)
    assert all(parameter.dtype == torch.bfloat16 for parameter in rounded._model.parameters())
    assert all(buffer.dtype == torch.float32 for buffer in rounded._model.buffers())
    assert rounded._head.dtype == torch.float32
    values, exact = rounded(videos, PROMPTS[:2]), reward(videos, PROMPTS[:2])
    assert values.dtype == torch.float32
    assert not torch.equal(values, exact)
    torch.testing.assert_close(values, exact, rtol=0.1, atol=1.5)


def test_arguments(reward: VideoReward, folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^videoreward: videos must be \(B, 3, F, H, W\), got \(1, 3, 8, 8\)"
    ):
        reward(some_images(1, 8, 8), ["a"])
    with pytest.raises(ValueError, match=r"^videoreward: needs one prompt for each of the 2 videos, got 1"):
        reward(some_videos(2), ["a"])
    with pytest.raises(ValueError, match=r"^VideoReward: fps must be finite and at least 0.001, got 0"):
        VideoReward(folder, fps=0)
    with pytest.raises(ValueError, match=r"^videoreward: unknown part 'sound'"):
        VideoReward(folder, part="sound")


# ---- places of the files ----


def test_the_base_model_in_another_folder(tmp_path: Path, folder: Path, reward: VideoReward) -> None:
    base, alone = tmp_path / "base", tmp_path / "alone"
    base.mkdir()
    alone.mkdir()
    tiny_qwen.save_base(base)
    tiny_qwen.save_videoreward(alone, full=False)
    # leaves the base model's tokenizer, to which the marks are added
    shutil.rmtree(alone / "checkpoint-12" / "tokenizer")
    videos = some_videos(2)
    values = VideoReward(alone, fps=4, base=base)(videos, PROMPTS[:2])
    torch.testing.assert_close(values, reward(videos, PROMPTS[:2]), rtol=1e-4, atol=1e-4)


def test_the_base_is_on_the_hub_if_it_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_qwen.save_videoreward(tmp_path)
    check(tmp_path, r"'Qwen/Qwen2-VL-2B-Instruct' is not a folder, and the hub cannot be reached")


def test_the_newest_checkpoint_counts(folder: Path, tmp_path: Path) -> None:
    copy_of(folder, tmp_path)
    (tmp_path / "checkpoint-100").mkdir()
    (tmp_path / "checkpoint-last").mkdir()
    check(
        tmp_path,
        r"there must be model.pth, or adapter_model.safetensors and non_lora_state_dict.pth, in \S+-100;",
    )


# ---- files that are missing or do not match ----


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to


def check(source: Any, message: str) -> None:
    with pytest.raises(RewardError, match=f"^videoreward: {message}") as caught:
        VideoReward(source)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "checkpoint-12" / "model.pth"
    tensors = torch.load(file)
    change(tensors)
    torch.save(tensors, file)


def test_no_folder(tmp_path: Path) -> None:
    check(tmp_path / "missing", r"there is no folder \S+missing; name the folder of the weights, or an id")


def test_no_hub() -> None:
    check(
        "nobody/nothing",
        r"'nobody/nothing' is not a folder, and the hub cannot be reached; .*hf download nobody/nothing --",
    )


def test_a_plain_qwen(tmp_path: Path) -> None:
    check(
        tiny_qwen.save_base(tmp_path),
        r"there is no model_config.json in \S+; name a folder of VideoReward itself",
    )


def test_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model_config.json").write_text("{}")
    check(tmp_path, r"there is no folder checkpoint-NUMBER in \S+; download all of VideoReward$")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"data_config": {"fps": "fast"}}', '{"peft_lora_config": {"lora_enable": 1}}']
)
def test_broken_settings(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_config.json").write_text(text)
    check(tmp_path, r"\S+ cannot be loaded: .+; if it is incomplete, download or save it again$")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("data_config", {"prompt_template_type": "simple"}, "prompt_template_type 'simple'"),
        ("data_config", {"sample_type": "multi_pts"}, "sample_type 'multi_pts'"),
        ("data_config", {"num_frames": 12}, "num_frames 12"),
        ("model_config", {"reward_token": "last"}, "reward_token 'last'"),
    ],
)
def test_other_kinds_of_checkpoints(tmp_path: Path, part: str, change: dict[str, Any], message: str) -> None:
    settings = {**tiny_qwen.SETTINGS, part: {**tiny_qwen.SETTINGS[part], **change}}
    tiny_qwen.save_videoreward(tmp_path, settings=settings)
    check(
        tmp_path,
        rf"the checkpoint in \S+ is of an unsupported kind, with {message}; name one with",
    )


def test_broken_weights(folder: Path, tmp_path: Path) -> None:
    file = copy_of(folder, tmp_path) / "checkpoint-12" / "model.pth"
    for content in (b"version https://git-lfs.github.com/spec/v1", file.read_bytes()[:3000], b""):
        file.write_bytes(content)
        check(tmp_path, r"'\S+checkpoint-12' cannot be loaded: .*; if it is incomplete, download")


def test_no_reward_head(folder: Path, tmp_path: Path) -> None:
    change_weights(copy_of(folder, tmp_path), lambda tensors: tensors.pop("base_model.model.rm_head.weight"))
    check(
        tmp_path,
        r"the checkpoint in \S+ has no reward head \(rm_head.weight\); name a folder of VideoReward itself",
    )


def test_a_head_of_other_rewards(folder: Path, tmp_path: Path) -> None:
    head = {"base_model.model.rm_head.weight": torch.zeros(4, tiny_qwen.WIDTH)}
    change_weights(copy_of(folder, tmp_path), lambda tensors: tensors.update(head))
    check(
        tmp_path,
        r"the reward head in \S+ must have 1 or 3 rows, got \(4, 24\); name a folder of VideoReward$",
    )


NORM = "base_model.model.model.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(NORM), "lack language_model.norm.weight;"),
        (
            lambda tensors: tensors.update({NORM: torch.ones(3)}),
            "have another shape for language_model.norm.weight;",
        ),
        (
            lambda tensors: tensors.update(more=torch.ones(3), most=torch.ones(1)),
            "have the unknown tensor .*more and 1 more;",
        ),
        (
            lambda tensors: tensors.pop("base_model.model.model.embed_tokens.weight"),
            "lack language_model.embed_tokens",
        ),
    ],
)
def test_weights_of_another_model(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    change_weights(copy_of(folder, tmp_path), change)
    check(tmp_path, rf"the weights in \S+ {message}")


def test_each_tensor(folder: Path, tmp_path: Path) -> None:
    file = copy_of(folder, tmp_path) / "checkpoint-12" / "model.pth"
    check_incomplete(
        "videoreward",
        tmp_path,
        torch.load(file),
        lambda tensors: torch.save(tensors, file),
        unused="lm_head",
        same_names=False,
    )
    check_pickle("videoreward", tmp_path, file)


def test_the_prefix_of_distributed_training(folder: Path, tmp_path: Path, reward: VideoReward) -> None:
    file = copy_of(folder, tmp_path) / "checkpoint-12" / "model.pth"
    torch.save({f"module.{name}": tensor for name, tensor in torch.load(file).items()}, file)
    videos = some_videos(1)
    assert torch.equal(VideoReward(tmp_path)(videos, ["a"]), reward(videos, ["a"]))


def test_incomplete_lora(folder: Path, tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight"
    change_weights(copy_of(folder, tmp_path), lambda tensors: tensors.pop(name))
    check(
        tmp_path,
        r"the checkpoint has LoRA's language_model.layers.0.mlp.up_proj.lora_A.weight but no "
        r"language_model.layers.0.mlp.up_proj.lora_B.weight; download all of VideoReward$",
    )


def test_lora_of_unknown_size(tmp_path: Path) -> None:
    settings = {**tiny_qwen.SETTINGS, "peft_lora_config": {"lora_enable": False}}
    check(
        whole(tmp_path, settings=settings), r"the checkpoint has LoRA's \S+ but no peft_lora_config; download"
    )


def test_lora_of_another_kind(folder: Path, tmp_path: Path) -> None:
    more = {"base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector": torch.ones(2)}
    change_weights(copy_of(folder, tmp_path), lambda tensors: tensors.update(more))
    check(
        tmp_path,
        r"the checkpoint has LoRA's \S+lora_magnitude_vector but no use for \S+lora_magnitude_vector; down",
    )


def test_an_adapter_without_the_rest(tmp_path: Path) -> None:
    source = whole(tmp_path, full=False)
    (source / "checkpoint-12" / "non_lora_state_dict.pth").unlink()
    check(
        source,
        r"there must be model.pth, or adapter_model.safetensors and non_lora_state_dict.pth, in \S+-12; down",
    )


def test_an_incomplete_base(tmp_path: Path) -> None:
    source = whole(tmp_path, full=False)
    tensors = load_file(source / "model.safetensors")
    del tensors["model.norm.weight" if "model.norm.weight" in tensors else "model.language_model.norm.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    check(source, r"the weights in \S+ lack \S*norm.weight; name a source that has a whole Qwen2-VL model$")


def test_words_too_few_for_the_marks(folder: Path, tmp_path: Path) -> None:
    name = "base_model.model.model.embed_tokens.weight"
    change_weights(copy_of(folder, tmp_path), lambda tensors: tensors.update({name: tensors[name][:-1]}))
    check(
        tmp_path,
        r"the weights in \S+ have \d+ tokens, too few for the special tokens of the reward; name",
    )


def test_no_tokenizer(folder: Path, tmp_path: Path) -> None:
    copy_of(folder, tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-12" / "tokenizer")
    (tmp_path / "tokenizer.json").unlink()
    check(
        tmp_path,
        r"there is no tokenizer with <\|video_pad\|> as number \d+, which the model expects, in \S+ or \S+;",
    )


def test_another_base(folder: Path, tmp_path: Path) -> None:
    file = copy_of(folder, tmp_path) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "qwen2_5_vl"}))
    check(tmp_path, r"\S+ must hold a config.json with model_type 'qwen2_vl', got 'qwen2_5_vl'$")
