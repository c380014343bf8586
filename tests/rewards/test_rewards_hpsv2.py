"""Reward by HPS v2, compared with open_clip's model in plain torch on PIL images."""

import math
import pickle
import re
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from reward_checks import (
    Evil,
    check_cut,
    check_each_by_itself,
    check_gradient,
    check_incomplete,
    check_mistakes,
    eight_bits,
    some_images,
)
from torch import Tensor, nn

pytest.importorskip("transformers")

import numpy as np
import tiny_clip
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel

from noisetilt_kernels.rewards import RewardError, checkpoint, load_reward
from noisetilt_kernels.rewards.clip import hpsv2
from noisetilt_kernels.rewards.clip.hpsv2 import HpsScore, WholeImage, convert_hpsv2

PROMPTS = ["a cat", "two red boats", "a cat"]
LONG = "many words " * 60
NAME = "HPS_v2.1_compressed.pt"

SIDE, PATCH, WIDTH, LENGTH = 32, 8, 12, 77
HEADS = 2
VISION_WIDTH, TEXT_WIDTH = HEADS * 80, HEADS * 64
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


pytestmark = pytest.mark.usefixtures("offline")


# ---- open_clip's model ----


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, inner), "gelu": nn.GELU(), "c_proj": nn.Linear(inner, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normal = self.ln_1(x)
        x = x + self.attn(normal, normal, normal, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, inner) for _ in range(2)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, VISION_WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(0.3 * torch.randn(VISION_WIDTH))
        self.positional_embedding = nn.Parameter(0.3 * torch.randn((SIDE // PATCH) ** 2 + 1, VISION_WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(VISION_WIDTH), nn.LayerNorm(VISION_WIDTH)
        self.transformer = Transformer(VISION_WIDTH, 96)
        self.proj = nn.Parameter(torch.randn(VISION_WIDTH, WIDTH))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], dim=1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj


class OpenClip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Vision()
        self.token_embedding = nn.Embedding(len(tiny_clip.make_tokenizer()), TEXT_WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, TEXT_WIDTH))
        self.transformer = Transformer(TEXT_WIDTH, 80)
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.randn(TEXT_WIDTH, WIDTH))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(100.0)))
        self.register_buffer("attn_mask", torch.full((LENGTH, LENGTH), -math.inf).triu(1))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of tokens (B, 77), padded with 0."""
        x = self.transformer(self.token_embedding(tokens) + self.positional_embedding, self.attn_mask)
        return self.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=1)] @ self.text_projection

    @torch.no_grad()
    def cosines(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        images, texts = self.visual(pixels), self.encode_text(tokens)
        logits = (images / images.norm(dim=1, keepdim=True)) @ (texts / texts.norm(dim=1, keepdim=True)).T
        return logits.diagonal()


def make_open_clip(seed: int = 0) -> OpenClip:
    """Return the model with random norms and biases, so that each tensor changes the result."""
    torch.manual_seed(seed)
    model = OpenClip()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale" and parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "conv1" in name or "mlp" in name or "attn" in name:
                parameter.mul_(2)
    return model.eval()


def spelled(prompt: str) -> list[int]:
    """Return the tokens of a prompt by `tiny_clip.make_tokenizer`, padded as in open_clip."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [
        2 * letters.index(letter) + (index == len(word) - 1)
        for word in prompt.split()
        for index, letter in enumerate(word)
    ]
    start, end = 52, 53
    tokens = [start, *tokens[: LENGTH - 2], end]
    return tokens + [0] * (LENGTH - len(tokens))


def whole_image(image: Image.Image, side: int = SIDE) -> Tensor:
    """Return the input of HPS v2 for a PIL image: (1, 3, side, side)."""
    scale = side / max(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (side - width) // 2, (side - height) // 2
    pixels = torch.zeros(1, 3, side, side)
    for channel, plane in zip(pixels[0], image.split(), strict=True):
        # "F": PIL neither rounds nor clamps floats, as torchvision does not
        resized = plane.convert("F").resize((width, height), Image.Resampling.BICUBIC)
        channel[top : top + height, left : left + width] = torch.from_numpy(np.array(resized)) / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


# ---- folders ----


def save_checkpoint(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """Save the model in the published format, with entries of a training run beside the weights."""
    torch.save({"epoch": 3, "name": "hps", "state_dict": tensors}, folder / NAME)
    tiny_clip.make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def open_clip() -> OpenClip:
    return make_open_clip()


@pytest.fixture(scope="module")
def published(open_clip: OpenClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the published file and a tokenizer."""
    return save_checkpoint(tmp_path_factory.mktemp("published"), open_clip.state_dict())


@pytest.fixture(scope="module")
def converted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder written by `convert_hpsv2`, with the tokenizer."""
    folder = tmp_path_factory.mktemp("converted") / "new"
    convert_hpsv2(published / NAME, folder)
    tiny_clip.make_tokenizer().save_pretrained(folder)
    return folder


# ---- values ----


@pytest.mark.parametrize(("height", "width", "tolerance"), [(32, 32, 2e-6), (75, 50, 1e-5), (40, 61, 1e-5)])
def test_it_is_the_published_score(
    open_clip: OpenClip, published: Path, height: int, width: int, tolerance: float
) -> None:
    """The score is the unscaled cosine."""
    images, pil = eight_bits(some_images(3, height, width))
    prompts = ["a cat", LONG, "two red boats"]
    expected = open_clip.cosines(
        torch.cat([whole_image(image) for image in pil]),
        torch.tensor([spelled(prompt) for prompt in prompts]),
    )
    assert expected.std() > 0.04, "a tolerance that excludes nothing"
    torch.testing.assert_close(HpsScore(published)(images, prompts), expected, rtol=0, atol=tolerance)


def test_sizes_are_read_from_the_tensors(published: Path) -> None:
    config = HpsScore(published)._model._model.config
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers) == (VISION_WIDTH, 96, 2)
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (TEXT_WIDTH, 80, 2)
    assert (vision.image_size, vision.patch_size, vision.num_attention_heads) == (SIDE, PATCH, HEADS)
    assert (text.max_position_embeddings, text.vocab_size, text.num_attention_heads) == (LENGTH, 54, HEADS)
    assert vision.hidden_act == text.hidden_act == "gelu"


def renamed_back(model: CLIPModel) -> dict[str, Tensor]:
    """Return the tensors of a `CLIPModel` of transformers by open_clip's names."""
    state = model.state_dict()
    tensors = {
        "logit_scale": state["logit_scale"],
        "text_projection": state["text_projection.weight"].T,
        "visual.proj": state["visual_projection.weight"].T,
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
    }
    norms = {
        "ln_final": "text_model.final_layer_norm",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
    }
    for half, prefix in (("text_model", ""), ("vision_model", "visual.")):
        for layer in range(2):
            theirs, ours = f"{prefix}transformer.resblocks.{layer}", f"{half}.encoder.layers.{layer}"
            norms |= {
                f"{theirs}.ln_1": f"{ours}.layer_norm1",
                f"{theirs}.ln_2": f"{ours}.layer_norm2",
                f"{theirs}.attn.out_proj": f"{ours}.self_attn.out_proj",
                f"{theirs}.mlp.c_fc": f"{ours}.mlp.fc1",
                f"{theirs}.mlp.c_proj": f"{ours}.mlp.fc2",
            }
            for kind in ("weight", "bias"):
                parts = [state[f"{ours}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                tensors[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(parts)
    for theirs, ours in norms.items():
        for kind in ("weight", "bias"):
            tensors[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
    return tensors


def test_conversion_round_trip(tmp_path: Path) -> None:
    """A `CLIPModel` renamed to open_clip and converted back is unchanged, bit for bit."""
    torch.manual_seed(1)
    layers = {
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "hidden_act": "gelu",
    }
    model = CLIPModel(
        CLIPConfig(
            text_config={
                **layers,
                "hidden_size": TEXT_WIDTH,
                "vocab_size": 54,
                "eos_token_id": 53,
                "bos_token_id": 52,
            },
            vision_config={**layers, "hidden_size": VISION_WIDTH, "image_size": SIDE, "patch_size": PATCH},
            projection_dim=WIDTH,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for folder in ("open_clip", "transformers"):
        (tmp_path / folder).mkdir()
    save_checkpoint(
        tmp_path / "open_clip", {name: tensor.clone() for name, tensor in renamed_back(model).items()}
    )
    tiny_clip.save_clip(tmp_path / "transformers", model)
    convert_hpsv2(tmp_path / "open_clip" / NAME, tmp_path / "converted")
    state = CLIPModel.from_pretrained(tmp_path / "converted").state_dict()
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    images = some_images(3, 40, 30)
    scores = [HpsScore(tmp_path / folder)(images, PROMPTS) for folder in ("open_clip", "transformers")]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-6)


def test_the_command_converts(published: Path, converted: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(hpsv2.main, [str(published / NAME), str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    written, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "new", converted))
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    images = some_images(3, 40, 30)
    torch.testing.assert_close(HpsScore(converted)(images, PROMPTS), HpsScore(published)(images, PROMPTS))
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    result = CliRunner().invoke(hpsv2.main, [str(tmp_path / "broken.pt"), str(tmp_path / "other")])
    assert result.exit_code == 1
    assert result.output.startswith("Error: hpsv2: ") and result.output.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_half_precision_files_are_computed_in_float32(
    open_clip: OpenClip, published: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, {name: tensor.half() for name, tensor in open_clip.state_dict().items()})
    reward, images = HpsScore(tmp_path), some_images(3)
    assert all(parameter.dtype == torch.float32 for parameter in reward._model._model.parameters())
    torch.testing.assert_close(
        reward(images, PROMPTS), HpsScore(published)(images, PROMPTS), rtol=0, atol=0.01
    )


# ---- images ----


@pytest.mark.parametrize(
    ("height", "width"), [(224, 224), (512, 512), (300, 200), (97, 331), (640, 352), (224, 101), (50, 31)]
)
def test_whole_images_are_those_of_pil(height: int, width: int) -> None:
    """Values overshoot [0, 1] at edges, as in the authors' code, and agree up to rounding."""
    squares = (torch.rand(1, 3, 7, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    images, pil = eight_bits(nn.functional.interpolate(squares, size=(height, width)))
    processed = WholeImage(224)(images)
    torch.testing.assert_close(processed, whole_image(pil[0], 224), rtol=0, atol=2e-4)
    pixels = processed * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert max(height, width) == 224 or (pixels.max() > 1.01 and pixels.min() < -0.01)


def test_prompts_are_cleaned(published: Path) -> None:
    reward, images = HpsScore(published), some_images(1)
    for prompt, cleaned in {"a&#32;cat": "a cat", "&amp;#97; cat": "a cat", "a ﬁsh": "a fish"}.items():
        assert torch.equal(reward(images, [prompt]), reward(images, [cleaned]))


def test_long_prompts(published: Path) -> None:
    check_cut(HpsScore(published), "hpsv2", 77)


def test_an_image_has_at_least_a_pixel_in_each_direction() -> None:
    assert WholeImage(32)(torch.rand(1, 3, 200, 1)).shape == (1, 3, 32, 32)


# ---- properties of every reward ----


@pytest.mark.parametrize("size", [(32, 32), (60, 41)])
def test_gradients(published: Path, size: tuple[int, int]) -> None:
    check_gradient(HpsScore(published), some_images(3, *size), PROMPTS, size=5e-4)


def test_no_image_influences_another(published: Path) -> None:
    check_each_by_itself(HpsScore(published), some_images(3, 40, 33), PROMPTS, tolerance=1e-5)


def test_weights_are_frozen(published: Path, converted: Path) -> None:
    for folder in (published, converted):
        model = HpsScore(folder)._model._model
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())


def test_bfloat16_is_for_the_model_alone(published: Path) -> None:
    images = some_images(3, 40, 40)
    exact, rounded = (
        HpsScore(published, dtype=dtype)(images, PROMPTS) for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.03)


def test_mistakes(published: Path) -> None:
    check_mistakes(HpsScore(published), "hpsv2")


# ---- sources ----


def test_sources_file_folder_and_hub(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = some_images(3)
    expected = HpsScore(published)(images, PROMPTS)
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    (tmp_path / "HPS_v2_compressed.pt").write_bytes(b"another")
    by_name = load_reward("hpsv2", source=str(tmp_path / NAME))
    torch.testing.assert_close(by_name(images, PROMPTS), expected, rtol=0, atol=0)

    asked: list[tuple[str, str]] = []

    def from_hub(model: str, name: str, **options: bool) -> str:
        asked.append((model, name))
        return str(published / name)

    monkeypatch.setattr(checkpoint, "cached_file", from_hub)
    monkeypatch.setattr(hpsv2, "VIT_H_TOKENIZER", str(published))
    torch.testing.assert_close(load_reward("hpsv2")(images, PROMPTS), expected, rtol=0, atol=0)
    assert asked == [("xswu/HPSv2", NAME)]


def test_the_tokenizer_of_the_base_model(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(published / NAME, tmp_path)
    with pytest.raises(
        RewardError, match=r"^hpsv2: there is no tokenizer of the model's 54 tokens in \S+ or laion/"
    ):
        HpsScore(tmp_path)
    monkeypatch.setattr(hpsv2, "VIT_H_TOKENIZER", str(published))
    images = some_images(3)
    torch.testing.assert_close(HpsScore(tmp_path)(images, PROMPTS), HpsScore(published)(images, PROMPTS))


# ---- errors ----


def check_error(source: Path | str, message: str) -> None:
    with pytest.raises(RewardError, match=f"^hpsv2: {message}") as caught:
        HpsScore(source)
    assert "\n" not in str(caught.value)


def test_missing_sources(tmp_path: Path) -> None:
    missing = re.escape(str(tmp_path / "missing"))
    check_error(tmp_path / "missing", f"there is no folder {missing}; name the folder of the weights")
    check_error(
        tmp_path / "missing.pt", rf"there is no file {missing}\.pt; name the file of the weights, or ID:FILE"
    )
    check_error(f"{tmp_path}/missing:hps.pt", f"there is no folder {missing}; name the folder of the weights")
    check_error(
        "nobody/nothing:hps.pt",
        r"'nobody/nothing' is not a folder, and the hub cannot be reached; .*`hf download nobody/nothing "
        r"hps.pt --local-dir FOLDER` .* and name FOLDER/hps.pt$",
    )
    check_error(
        "nobody/nothing",
        r"'nobody/nothing' is not a folder, and the hub cannot be reached; .*hf download nobody/nothing --",
    )
    check_error(tmp_path, r"\S+ must hold a config.json with model_type 'clip', got None$")


def test_two_files(published: Path, tmp_path: Path) -> None:
    shutil.copy(published / NAME, tmp_path)
    shutil.copy(published / NAME, tmp_path / "HPS_v2_compressed.pt")
    check_error(tmp_path, rf"\S+ holds several .pt files \({NAME}, HPS_v2_compressed.pt\); name one of them")


def test_files_without_weights(tmp_path: Path) -> None:
    file = tmp_path / NAME
    torch.save({"state_dict": {}, "more": Evil()}, file)
    check_error(
        file,
        rf"{re.escape(str(file))} cannot be read as torch.save weights \(.+\); download it again",
    )
    file.write_bytes(pickle.dumps({"state_dict": Evil}, protocol=2))
    check_error(file, r"\S+ cannot be read as torch.save weights \(.+\); download it again")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    check_error(file, r"\S+ cannot be read as torch.save weights \(.+\); download it again")
    for content, kind in (([1], "list"), ({"state_dict": {"a": 1}}, "dict"), ({"state_dict": 1}, "dict")):
        torch.save(content, file)
        check_error(file, rf"\S+ must hold tensors by name, got {kind}; download it again")


def test_models_of_another_kind(open_clip: OpenClip, tmp_path: Path) -> None:
    def check(changes: dict[str, Tensor | None], message: str) -> None:
        tensors = {**open_clip.state_dict(), **changes}
        save_checkpoint(tmp_path, {name: tensor for name, tensor in tensors.items() if tensor is not None})
        check_error(tmp_path, message)

    check(
        {"visual.conv1.weight": None},
        r"\S+ must hold visual.conv1.weight with 4 dimensions, got None; the file belongs to ano",
    )
    check(
        {"visual.proj": torch.ones(3)},
        r"\S+ must hold visual.proj with 2 dimensions, got \(3,\); the file belongs",
    )
    check(
        {"visual.conv1.weight": torch.ones(1024, 3, 14, 14)},
        r"the width of the vision half in \S+ must be a multiple of 80, got 1024; the file belongs to",
    )
    check(
        {"visual.ln_pre.bias": None},
        r"the weights in \S+ lack visual.ln_pre.bias; name a source that has",
    )
    check(
        {"transformer.resblocks.1.attn.in_proj_bias": None},
        r"the weights in \S+ lack transformer.resblocks.1.attn.in_proj_bias; name",
    )
    check(
        {"ln_final.weight": torch.ones(3)},
        r"the weights in \S+ have another shape for ln_final.weight; name",
    )


def test_each_tensor(open_clip: OpenClip, tmp_path: Path) -> None:
    check_incomplete(
        "hpsv2",
        tmp_path,
        open_clip.state_dict(),
        lambda tensors: save_checkpoint(tmp_path, tensors),
        unused="attn_mask",
        sizes_are_read=True,
    )


def test_the_prefix_of_distributed_training(open_clip: OpenClip, published: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {f"module.{name}": tensor for name, tensor in open_clip.state_dict().items()})
    images = some_images(3)
    torch.testing.assert_close(HpsScore(tmp_path)(images, PROMPTS), HpsScore(published)(images, PROMPTS))
