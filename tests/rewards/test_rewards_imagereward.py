"""Reward by ImageReward, compared with BLIP in plain torch, with the published names, on PIL images."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reward_checks import (
    check_cut,
    check_each_by_itself,
    check_gradient,
    check_incomplete,
    check_mistakes,
    check_pickle,
    eight_bits,
    gradient_of,
    some_images,
)
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessorPil

pytest.importorskip("transformers")

import numpy as np
from PIL import Image
from transformers import BertTokenizer

from noisetilt_kernels.rewards import RewardError, checkpoint, load_reward
from noisetilt_kernels.rewards.clip import imagereward
from noisetilt_kernels.rewards.clip.imagereward import ImageRewardScore

PROMPTS = ["a cat", "two red boats", "a cat"]
LONG = "many words " * 60
NAME = "ImageReward.pt"

SIDE, PATCH, HEAD = 32, 8, 64
VISION_WIDTH, VISION_INNER = 3 * HEAD, 160
TEXT_WIDTH, TEXT_INNER = 2 * HEAD, 96
LAYERS, LENGTH = 2, 35
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
TOKENS = len(WORDS) + 2
"""Size of the vocabulary with the two tokens that BLIP adds."""

Tensors = dict[str, Tensor]


pytestmark = pytest.mark.usefixtures("offline")


# ---- ImageReward ----


def make_tensors(seed: int = 0) -> Tensors:
    """Return random weights by the published names, with the other tensors of the published file."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}

    def random(name: str, *shape: int, scale: float = 1.0, mean: float = 0.0) -> None:
        tensors[name] = mean + scale * torch.randn(*shape, generator=generator)

    def linear(name: str, inputs: int, outputs: int, gain: float = 1.5) -> None:
        random(f"{name}.weight", outputs, inputs, scale=gain * inputs**-0.5)
        random(f"{name}.bias", outputs, scale=0.2)

    def norm(name: str, width: int) -> None:
        random(f"{name}.weight", width, scale=0.2, mean=1.0)
        random(f"{name}.bias", width, scale=0.2)

    # small inputs of the first norms, so that the epsilon of the norms matters
    vision = "blip.visual_encoder"
    random(f"{vision}.cls_token", 1, 1, VISION_WIDTH, scale=1e-3)
    random(f"{vision}.pos_embed", 1, (SIDE // PATCH) ** 2 + 1, VISION_WIDTH, scale=1e-3)
    random(f"{vision}.patch_embed.proj.weight", VISION_WIDTH, 3, PATCH, PATCH, scale=3e-4)
    random(f"{vision}.patch_embed.proj.bias", VISION_WIDTH, scale=1e-3)
    for layer in range(LAYERS):
        block = f"{vision}.blocks.{layer}"
        norm(f"{block}.norm1", VISION_WIDTH)
        norm(f"{block}.norm2", VISION_WIDTH)
        linear(f"{block}.attn.qkv", VISION_WIDTH, 3 * VISION_WIDTH)
        linear(f"{block}.attn.proj", VISION_WIDTH, VISION_WIDTH)
        linear(f"{block}.mlp.fc1", VISION_WIDTH, VISION_INNER)
        linear(f"{block}.mlp.fc2", VISION_INNER, VISION_WIDTH)
    norm(f"{vision}.norm", VISION_WIDTH)

    text = "blip.text_encoder"
    random(f"{text}.embeddings.word_embeddings.weight", TOKENS, TEXT_WIDTH, scale=3e-3)
    random(f"{text}.embeddings.position_embeddings.weight", 40, TEXT_WIDTH, scale=3e-3)
    norm(f"{text}.embeddings.LayerNorm", TEXT_WIDTH)
    tensors[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    for layer in range(LAYERS):
        block = f"{text}.encoder.layer.{layer}"
        for part, width in (("attention", TEXT_WIDTH), ("crossattention", VISION_WIDTH)):
            linear(f"{block}.{part}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            linear(f"{block}.{part}.self.key", width, TEXT_WIDTH)
            linear(f"{block}.{part}.self.value", width, TEXT_WIDTH)
            linear(f"{block}.{part}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            norm(f"{block}.{part}.output.LayerNorm", TEXT_WIDTH)
        linear(f"{block}.intermediate.dense", TEXT_WIDTH, TEXT_INNER)
        linear(f"{block}.output.dense", TEXT_INNER, TEXT_WIDTH)
        norm(f"{block}.output.LayerNorm", TEXT_WIDTH)

    linear("blip.vision_proj", VISION_WIDTH, 16)
    linear("blip.text_proj", TEXT_WIDTH, 16)
    sizes = (TEXT_WIDTH, 1024, 128, 64, 16, 1)
    for number, inputs, outputs in zip((0, 2, 4, 6, 7), sizes, sizes[1:], strict=False):
        linear(f"mlp.layers.{number}", inputs, outputs)
    return tensors


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return multi-head attention (B, L, width).

    Args:
        query: (B, L, width).
        key, value: (B, M, width).
        mask: (B, M), true for the keys that count.
    """
    query, key, value = (part.unflatten(2, (-1, HEAD)).transpose(1, 2) for part in (query, key, value))
    scores = query @ key.transpose(2, 3) / HEAD**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return (scores.softmax(dim=3) @ value).transpose(1, 2).flatten(2)


@torch.no_grad()
def published_score(tensors: Tensors, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the scores (B,) of pixels (B, 3, 32, 32) with tokens and mask (B, 35)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    vision = "blip.visual_encoder"
    patches = functional.conv2d(
        pixels,
        tensors[f"{vision}.patch_embed.proj.weight"],
        tensors[f"{vision}.patch_embed.proj.bias"],
        stride=PATCH,
    )
    classes = tensors[f"{vision}.cls_token"].expand(len(pixels), 1, -1)
    x = torch.cat([classes, patches.flatten(2).transpose(1, 2)], dim=1) + tensors[f"{vision}.pos_embed"]
    for layer in range(LAYERS):
        block = f"{vision}.blocks.{layer}"
        query, key, value = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, dim=2)
        x = x + linear(f"{block}.attn.proj", attention(query, key, value))
        inner = functional.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6)))
        x = x + linear(f"{block}.mlp.fc2", inner)
    seen = norm(f"{vision}.norm", x, 1e-6)

    text = "blip.text_encoder"
    y = tensors[f"{text}.embeddings.word_embeddings.weight"][tokens]
    y = y + tensors[f"{text}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    y = norm(f"{text}.embeddings.LayerNorm", y, 1e-12)
    for layer in range(LAYERS):
        block = f"{text}.encoder.layer.{layer}"
        for part in ("attention", "crossattention"):
            source, counts = (y, mask) if part == "attention" else (seen, None)
            name = f"{block}.{part}"
            query, key, value = (
                linear(f"{name}.self.{what}", y if what == "query" else source)
                for what in ("query", "key", "value")
            )
            attended = linear(f"{name}.output.dense", attention(query, key, value, counts))
            y = norm(f"{name}.output.LayerNorm", y + attended, 1e-12)
        inner = linear(f"{block}.output.dense", functional.gelu(linear(f"{block}.intermediate.dense", y)))
        y = norm(f"{block}.output.LayerNorm", y + inner, 1e-12)

    score = y[:, 0]
    for number in (0, 2, 4, 6, 7):
        score = linear(f"mlp.layers.{number}", score)
    return (score[:, 0] - 0.16717362830052426) / 1.0333394966054072


def spelled(prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Return tokens and mask (B, 35) of lower-case prompts: start, letters, end and padding."""
    rows = []
    for prompt in prompts:
        letters = [
            WORDS.index(f"{'##' if index else ''}{one}")
            for word in prompt.split()
            for index, one in enumerate(word)
        ]
        row = [WORDS.index("[CLS]"), *letters[: LENGTH - 2], WORDS.index("[SEP]")]
        rows.append(row + [0] * (LENGTH - len(row)))
    tokens = torch.tensor(rows)
    return tokens, tokens != 0


def processed(images: list[Image.Image]) -> Tensor:
    """Return pixels (B, 3, 32, 32) of PIL images by Hugging Face's processor with the published values."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        resample=Image.Resampling.BICUBIC,
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
    )
    return torch.from_numpy(np.stack(processor(images).pixel_values))


# ---- folders ----


def save_tokenizer(folder: Path) -> Path:
    """Save a BERT tokenizer with a token for each letter, without BLIP's tokens, and return the folder."""
    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


def save_checkpoint(folder: Path, tensors: Tensors) -> Path:
    torch.save(tensors, folder / NAME)
    return save_tokenizer(folder)


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return make_tensors()


@pytest.fixture(scope="module")
def published(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the published file and a tokenizer."""
    return save_checkpoint(tmp_path_factory.mktemp("published"), tensors)


# ---- values ----


@pytest.mark.parametrize(("height", "width", "tolerance"), [(32, 32, 1e-4), (75, 50, 0.3), (40, 61, 0.3)])
def test_it_is_the_published_score(
    tensors: Tensors, published: Path, height: int, width: int, tolerance: float
) -> None:
    """Larger images differ by PIL's rounding to 8 bits."""
    images, pil = eight_bits(some_images(4, height, width))
    prompts = ["a cat", LONG, "two red boats", ""]
    expected = published_score(tensors, processed(pil), *spelled(prompts))
    assert expected.std() > 5 * tolerance, "a tolerance that excludes nothing"
    torch.testing.assert_close(ImageRewardScore(published)(images, prompts), expected, rtol=0, atol=tolerance)


def test_images_and_prompts_both_count(published: Path) -> None:
    reward, images = ImageRewardScore(published), some_images(3)
    assert reward(images, ["a cat"] * 3).std() > 0.05
    assert reward(images[:1].expand(3, -1, -1, -1), ["a cat", "a dog", "two red boats"]).std() > 0.05


def test_sizes_are_read_from_the_tensors(published: Path) -> None:
    config = ImageRewardScore(published)._model.config
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers) == (
        VISION_WIDTH,
        VISION_INNER,
        2,
    )
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (TEXT_WIDTH, TEXT_INNER, 2)
    assert (vision.image_size, vision.patch_size, vision.num_attention_heads) == (SIDE, PATCH, 3)
    assert (text.max_position_embeddings, text.vocab_size, text.num_attention_heads) == (40, TOKENS, 2)
    assert text.encoder_hidden_size == VISION_WIDTH


def test_preprocessing_is_that_of_the_processor(published: Path) -> None:
    images, pil = eight_bits(some_images(3, 75, 46))
    actual = ImageRewardScore(published)._preprocess(images)
    torch.testing.assert_close(actual, processed(pil), rtol=0, atol=1.25 / 255 / 0.26)


def test_the_crop_is_that_of_the_published_code(published: Path) -> None:
    """Its torchvision rounds half pixels to even numbers; the processor of Hugging Face rounds down."""
    preprocess = ImageRewardScore(published)._preprocess
    for extra, left in ((1, 0), (3, 2), (5, 2), (7, 4)):
        images = torch.rand(1, 3, SIDE, SIDE + extra)
        whole = replace(preprocess, crop=None)(images)
        assert torch.equal(preprocess(images), whole[..., left : left + SIDE])


# ---- properties of every reward ----


@pytest.mark.parametrize("size", [(32, 32), (60, 41)])
def test_gradients(published: Path, size: tuple[int, int]) -> None:
    check_gradient(ImageRewardScore(published), some_images(3, *size), PROMPTS, size=1e-3)


def test_no_image_influences_another(published: Path) -> None:
    check_each_by_itself(ImageRewardScore(published), some_images(3, 40, 40), PROMPTS, tolerance=1e-3)


def test_long_prompts(published: Path) -> None:
    check_cut(ImageRewardScore(published), "imagereward", 35)


def test_weights_are_frozen(published: Path) -> None:
    reward = ImageRewardScore(published)
    modules = [reward._model, *reward._head]
    assert len(modules) == 6
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    assert not any(child.training for child in reward._model.modules())


def test_bfloat16_is_for_blip_alone(published: Path) -> None:
    images = some_images(3, 40, 40)
    exact, rounded = (ImageRewardScore(published, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    values = rounded(images, PROMPTS)
    assert values.dtype == torch.float32
    assert {layer.weight.dtype for layer in rounded._head} == {torch.float32}
    assert not torch.equal(values, exact(images, PROMPTS))
    torch.testing.assert_close(values, exact(images, PROMPTS), rtol=0, atol=0.3)
    gradient, expected = gradient_of(rounded, images, PROMPTS), gradient_of(exact, images, PROMPTS)
    assert gradient.dtype == torch.float32
    assert torch.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.9


def test_mistakes(published: Path) -> None:
    check_mistakes(ImageRewardScore(published), "imagereward")


# ---- sources ----


def test_sources_file_folder_and_hub(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = some_images(3)
    expected = ImageRewardScore(published)(images, PROMPTS)
    by_name = load_reward("imagereward", source=str(published / NAME))
    torch.testing.assert_close(by_name(images, PROMPTS), expected, rtol=0, atol=1e-5)

    asked: list[tuple[str, str]] = []

    def from_hub(model: str, name: str, **options: bool) -> str:
        asked.append((model, name))
        return str(published / name)

    monkeypatch.setattr(checkpoint, "cached_file", from_hub)
    monkeypatch.setattr(imagereward, "TOKENIZER", str(save_tokenizer(tmp_path)))
    torch.testing.assert_close(load_reward("imagereward")(images, PROMPTS), expected, rtol=0, atol=1e-5)
    assert asked == [("THUDM/ImageReward", NAME)]


@pytest.mark.parametrize("form", ["vocab.txt", "with BLIP's tokens"])
def test_other_formats_of_the_tokenizer(published: Path, tmp_path: Path, form: str) -> None:
    shutil.copy(published / NAME, tmp_path)
    if form == "vocab.txt":
        (tmp_path / form).write_text("\n".join(WORDS))
    else:
        tokenizer = BertTokenizer.from_pretrained(published)
        assert tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True) == 2
        tokenizer.save_pretrained(tmp_path)
    images = some_images(3)
    expected = ImageRewardScore(published)(images, PROMPTS)
    torch.testing.assert_close(ImageRewardScore(tmp_path)(images, PROMPTS), expected, rtol=0, atol=1e-5)


# ---- errors ----


def check_error(source: Path | str, message: str) -> None:
    with pytest.raises(RewardError, match=f"^imagereward: {message}") as caught:
        ImageRewardScore(source)
    assert "\n" not in str(caught.value)


def test_missing_sources(tmp_path: Path) -> None:
    missing = re.escape(str(tmp_path / "missing"))
    check_error(
        tmp_path / "missing.pt", rf"there is no file {missing}\.pt; name the file of the weights, or ID:FILE"
    )
    check_error(
        "nobody/nothing:a.pt",
        r"'nobody/nothing' is not a folder, and the hub cannot be reached; .*`hf download nobody/nothing "
        r"a.pt --local-dir FOLDER` .* and name FOLDER/a.pt$",
    )
    for source in (tmp_path, tmp_path / "missing", "THUDM/ImageReward"):
        check_error(
            source,
            rf"{re.escape(str(source))} has no .pt file; name ImageReward.pt, a folder with it, or ID",
        )


def test_two_files(published: Path, tmp_path: Path) -> None:
    shutil.copy(published / NAME, tmp_path)
    shutil.copy(published / NAME, tmp_path / "other.pt")
    check_error(
        tmp_path, rf"\S+ holds several .pt files \({NAME}, other.pt\); name one of them as the source"
    )


def test_no_tokenizer(published: Path, tmp_path: Path) -> None:
    shutil.copy(published / NAME, tmp_path)
    message = (
        rf"there is no tokenizer of the model's {TOKENS} tokens in \S+ or google-bert/bert-base-uncased; "
    )
    check_error(tmp_path, message + "put its tokenizer.json, or vocab.txt, beside the weights")


def test_models_of_another_kind(tensors: Tensors, tmp_path: Path) -> None:
    def check(changes: dict[str, Tensor | None], message: str) -> None:
        changed = {**tensors, **changes}
        save_checkpoint(tmp_path, {name: tensor for name, tensor in changed.items() if tensor is not None})
        check_error(tmp_path, message)

    embeddings = "blip.text_encoder.embeddings.word_embeddings.weight"
    check(
        {embeddings: None},
        rf"\S+ must hold {embeddings} with 2 dimensions, got None; the file belongs to another model, so",
    )
    check(
        {embeddings: torch.ones(TOKENS, 100)},
        r"the width of the text half in \S+ must be a multiple of 64, got 100; the file belongs to another",
    )
    check(
        {"mlp.layers.7.bias": None},
        r"the weights in \S+ lack mlp.layers.7.bias; name a source that has the whole of ImageReward",
    )
    check(
        {"blip.visual_encoder.blocks.1.attn.qkv.weight": torch.ones(3, 3), "mlp.layers.0.bias": None},
        r"the weights in \S+ lack mlp.layers.0.bias; name",
    )


def test_each_tensor(tensors: Tensors, tmp_path: Path) -> None:
    check_incomplete(
        "imagereward",
        tmp_path,
        {name: tensor for name, tensor in tensors.items() if "_proj." not in name},
        lambda changed: save_checkpoint(tmp_path, changed),
        unused="position_ids",
        sizes_are_read=True,
    )
    check_pickle("imagereward", tmp_path, tmp_path / NAME)


def test_the_prefix_of_distributed_training(tensors: Tensors, published: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {f"module.{name}": tensor for name, tensor in tensors.items()})
    images = some_images(3)
    torch.testing.assert_close(
        ImageRewardScore(tmp_path)(images, PROMPTS), ImageRewardScore(published)(images, PROMPTS)
    )
