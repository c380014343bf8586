"""HPSv3, compared with Hugging Face's processor and model on PIL images."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from reward_checks import (
    check_each_by_itself,
    check_gradient,
    check_incomplete,
    check_mistakes,
    eight_bits,
    gradient_of,
    some_images,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("transformers")

import tiny_qwen
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from noisetilt_kernels.rewards import RewardError, load_reward
from noisetilt_kernels.rewards import checkpoint as checkpoints
from noisetilt_kernels.rewards.vision_language import hpsv3
from noisetilt_kernels.rewards.vision_language.hpsv3 import HpsV3
from noisetilt_kernels.rewards.vision_language.hpsv3_prompt import MARK, PROMPT_FILE
from noisetilt_kernels.rewards.vision_language.qwen import Patches

PROMPTS = ["a cat", "two red boats on a lake", "a cat"]
FILE = "HPSv3.safetensors"

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen.save_hpsv3(tmp_path_factory.mktemp("hpsv3"))


@pytest.fixture(scope="module")
def reward(folder: Path) -> HpsV3:
    return HpsV3(folder)


# ---- values ----


def published(images: list[Image.Image], prompts: list[str]) -> Tensor:
    """Return mean and uncertainty (B, 2) by the processor and model of transformers.

    Text tokens and image tokens have consecutive positions, as in transformers 4.45 without positions.
    """
    model, head = tiny_qwen.make_hpsv3()
    tokenizer = tiny_qwen.make_hpsv3_tokenizer()
    limit = 256 * 8 * 8
    # not min_pixels and max_pixels: transformers 5.6 keeps them for all later processors
    processor = Qwen2VLImageProcessorPil(
        patch_size=tiny_qwen.SIDE, size={"shortest_edge": limit, "longest_edge": limit}
    )
    mark = tokenizer.convert_tokens_to_ids("<|Reward|>")
    values = []
    for image, prompt in zip(images, prompts, strict=True):
        pixels = processor(image, return_tensors="pt")
        content = [
            {"type": "image"},
            {"type": "text", "text": PROMPT_FILE.read_text().format(text_prompt=prompt)},
        ]
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        count = int(pixels.image_grid_thw.prod()) // 4
        tokens = tokenizer(
            chat.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            seen = model.model.visual(pixels.pixel_values, grid_thw=pixels.image_grid_thw).pooler_output
            embedded = model.model.language_model.embed_tokens(tokens)
            embedded[tokens == model.config.image_token_id] = seen
            hidden = model.model.language_model(
                inputs_embeds=embedded, position_ids=torch.arange(tokens.shape[1]).expand(3, 1, -1)
            ).last_hidden_state
            values.append(head(hidden[tokens == mark])[0])
    return torch.stack(values)


@pytest.mark.parametrize(
    ("height", "width", "tolerance"), [(128, 128, 1e-6), (75, 50, 5e-4), (90, 300, 5e-4)]
)
def test_it_is_the_published_score(reward: HpsV3, height: int, width: int, tolerance: float) -> None:
    brightness = torch.tensor([0.3, 0.6, 1.0])[:, None, None, None]
    images, pil = eight_bits(brightness * some_images(3, height, width, seed=2))
    expected = published(pil, PROMPTS)[:, 0]
    assert expected.std() > 3 * tolerance, "a tolerance that excludes nothing"
    torch.testing.assert_close(reward(images, PROMPTS), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("height", "width"), [(448, 448), (512, 512), (300, 200), (97, 331), (1024, 768)])
def test_images_have_the_published_size(height: int, width: int) -> None:
    """Images of Qwen2-VL get about 256 * 28 * 28 pixels, rounded up if they were fewer and down if more."""
    limit = 256 * 28 * 28
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": limit, "longest_edge": limit})
    pil = Image.new("RGB", (width, height))
    _, down, across = processor(pil, return_tensors="pt").image_grid_thw[0].tolist()
    assert Patches("hpsv3", 14, 2, 2, limit, limit).size(height, width) == (down * 14, across * 14)


def test_the_text_is_the_published_one() -> None:
    """The weights fit no other text, so no space of it may change."""
    text = PROMPT_FILE.read_text(encoding="utf-8")
    assert (text.count(MARK), text.count("{text_prompt}"), text.count("{")) == (1, 1, 1)
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"
    )


def test_prompts_are_inserted_as_they_are(reward: HpsV3) -> None:
    images = some_images(1)
    assert not torch.equal(reward(images, ["{a} cat {0}"]), reward(images, ["a cat"]))
    with pytest.raises(ValueError, match=r"^hpsv3: prompts must not contain <\|Reward\|>, got"):
        reward(images, ["a <|Reward|> cat"])


def test_by_name(reward: HpsV3, folder: Path) -> None:
    images = some_images(1, 40, 40)
    for source in (folder, folder / FILE):
        named = load_reward("hpsv3", source=str(source))
        assert torch.equal(named(images, ["a cat"]), reward(images, ["a cat"]))


def test_the_default_comes_from_the_hub(
    reward: HpsV3, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def from_hub(model: str, name: str, local_files_only: bool) -> str:
        asked.append((model, name))
        return shutil.copy(folder / name, tmp_path)

    monkeypatch.setattr(checkpoints, "cached_file", from_hub)
    monkeypatch.setattr(hpsv3, "BASE", str(folder))
    images = some_images(1)
    assert torch.equal(load_reward("hpsv3")(images, ["a"]), reward(images, ["a"]))
    assert asked == [("MizzenAI/HPSv3", "HPSv3.safetensors")]


def test_names_of_newer_transformers(reward: HpsV3, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    model, _ = tiny_qwen.make_hpsv3()
    head = {name: t for name, t in tiny_qwen.hpsv3_tensors().items() if name.startswith("rm_head")}
    save_file({**model.state_dict(), **head}, tmp_path / FILE)
    images = some_images(1)
    torch.testing.assert_close(HpsV3(tmp_path)(images, ["a"]), reward(images, ["a"]))


# ---- properties ----


def test_gradients(reward: HpsV3) -> None:
    for size in [(128, 128), (61, 41)]:
        check_gradient(reward, some_images(2, *size), PROMPTS[:2], size=5e-4)


def test_no_image_influences_another(reward: HpsV3) -> None:
    images = some_images(2, 40, 40)
    check_each_by_itself(reward, images, PROMPTS[:2], tolerance=1e-6)


def test_weights_are_frozen(reward: HpsV3) -> None:
    parameters = [p for module in (reward._model, *reward._head) for p in module.parameters()]
    assert not any(parameter.requires_grad for parameter in parameters)
    assert not any(module.training for module in reward._model.modules())


def test_bfloat16_is_for_the_model_alone(reward: HpsV3, folder: Path) -> None:
    images = some_images(2, 64, 64)
    rounded = HpsV3(folder, dtype=torch.bfloat16)
    assert all(parameter.dtype == torch.bfloat16 for parameter in rounded._model.parameters())
    assert all(layer.weight.dtype == torch.float32 for layer in rounded._head)
    values = rounded(images, PROMPTS[:2])
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, reward(images, PROMPTS[:2]), rtol=0.2, atol=0.05)
    gradient, expected = gradient_of(rounded, images, PROMPTS[:2]), gradient_of(reward, images, PROMPTS[:2])
    assert torch.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.9


def test_mistakes(reward: HpsV3) -> None:
    check_mistakes(reward, "hpsv3")


# ---- files that are missing or do not match ----


def check(source: Any, message: str) -> None:
    with pytest.raises(RewardError, match=f"^hpsv3: {message}") as caught:
        HpsV3(source)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    check(tmp_path, r"\S+ has no .safetensors file; name HPSv3.safetensors, a folder with it, or ID:FILE on")
    check(tmp_path / "x.safetensors", r"there is no file \S+x.safetensors; name the file of the weights")
    check("nobody/nothing:x.safetensors", r"'nobody/nothing' is not a folder, and the hub cannot be reached")


def test_a_broken_file(folder: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(folder, tmp_path, dirs_exist_ok=True)) / FILE
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    check(tmp_path, r"\S+ cannot be loaded: .+; if it is incomplete, download or save it again")


def test_another_base(folder: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(folder, tmp_path, dirs_exist_ok=True)) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "qwen2_5_vl"}))
    check(tmp_path, r"\S+ must hold a config.json with model_type 'qwen2_vl', got 'qwen2_5_vl'$")


def test_each_tensor(folder: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(folder, tmp_path, dirs_exist_ok=True)) / FILE
    tensors = load_file(file)
    check_incomplete(
        "hpsv3",
        tmp_path,
        tensors,
        lambda changed: save_file(changed, file),
        unused="lm_head",
        same_names=False,
    )
    for name in (name for name in tensors if name.startswith("rm_head")):
        save_file({other: t for other, t in tensors.items() if other != name}, file)
        check(tmp_path, rf"\S+ must hold {re.escape(name)} of shape \(.*\), got None; name HPSv3")
    save_file({**tensors, "visual.extra.weight": torch.ones(2)}, file)
    check(
        tmp_path,
        r"the weights in \S+ have the unknown tensor (model.)?visual.extra.weight; name a source that",
    )


def test_too_few_tokens(folder: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(folder, tmp_path, dirs_exist_ok=True)) / FILE
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1].clone()
    save_file(tensors, file)
    check(tmp_path, r"the weights in \S+ have \d+ tokens, too few for the special tokens of the reward; name")
