"""MPS, compared with its definition in plain torch on images of Hugging Face's processor."""

import math
import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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
from safetensors.torch import save_file
from torch import Tensor, nn

pytest.importorskip("transformers")

import tiny_clip
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from noisetilt_kernels.rewards import RewardError, load_reward
from noisetilt_kernels.rewards.clip.cross_attention import SelfLayer
from noisetilt_kernels.rewards.clip.mps import OVERALL, MpsScore

PROMPTS = ["a cat", "two red boats", "a cat"]
FILE = "MPS_overall_checkpoint.pth"
WIDTH, HEADS, HEAD, INNER, LAYERS = 32, 3, 8, 64, 2

pytestmark = pytest.mark.usefixtures("offline")


# ---- the definition ----


class Fn(nn.Module):
    """Holder of a part under the name "fn"."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.fn = part


class Norm(nn.Module):
    """Norm whose bias is a buffer of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.2 * torch.randn(WIDTH))
        self.register_buffer("bias", torch.zeros(WIDTH))


class Cross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm()
        self.to_q = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.to_kv = nn.Linear(WIDTH, 2 * HEAD, bias=False)
        self.to_out = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        layers = [nn.Linear(WIDTH, 2 * INNER, bias=False), nn.Identity(), nn.Linear(INNER, WIDTH, bias=False)]
        self.ff = nn.Sequential(*layers)


class Parallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm()
        self.fused_attn_ff_proj = nn.Linear(WIDTH, (HEADS + 2) * HEAD + 2 * INNER, bias=False)
        self.attn_out = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.ff_out = nn.Sequential(nn.Identity(), nn.Linear(INNER, WIDTH, bias=False))
        self.rotary_emb = nn.Module()
        self.rotary_emb.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, HEAD, 2) / HEAD))
        self.register_buffer("pos_emb", torch.randn(3, HEAD), persistent=False)  # a cache, not a weight


class Published(nn.Module):
    """MPS as a whole module, as the authors save it."""

    def __init__(self) -> None:
        super().__init__()
        layers = {
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "hidden_act": "gelu",
        }
        self.model = CLIPModel(
            CLIPConfig(
                text_config={
                    **layers,
                    "hidden_size": 128,
                    "vocab_size": 54,
                    "eos_token_id": 53,
                    "bos_token_id": 52,
                },
                vision_config={**layers, "hidden_size": 160, "image_size": 32, "patch_size": 8},
                projection_dim=WIDTH,
                logit_scale_init_value=math.log(50.0),
            )
        )
        self.cross_model = nn.Module()
        pairs = [nn.ModuleList([Fn(Cross()), Fn(Parallel())]) for _ in range(LAYERS)]
        self.cross_model.layers = nn.ModuleList(pairs)


def norm(x: Tensor, part: Norm) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * part.weight


def gated(x: Tensor) -> Tensor:
    return x[..., :INNER] * torch.sigmoid(x[..., INNER:]) * x[..., INNER:]


def rotate(x: Tensor) -> Tensor:
    """Multiply pairs of coordinates (k, k + HEAD / 2) of token n by exp(i n 10000^(-2k / HEAD))."""
    half = HEAD // 2
    numbers = torch.complex(x[..., :half], x[..., half:])
    angle = torch.outer(torch.arange(len(x)), 10000.0 ** (-torch.arange(half) * 2 / HEAD))
    turned = numbers * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | float) -> Tensor:
    """Attend head by head, with one key and value (n, HEAD) for all heads of the query (n, HEADS * HEAD)."""
    heads = [(q @ key.T / HEAD**0.5 + bias).softmax(dim=-1) @ value for q in query.split(HEAD, dim=-1)]
    return torch.cat(heads, dim=-1)


@torch.no_grad()
def score(model: Published, pixels: Tensor, prompt: str, condition: str, threshold: float = 0.01) -> Tensor:
    """Return the score of one image (1, 3, h, w) by the definition."""
    tokenizer, clip = tiny_clip.make_tokenizer(), model.model

    def read(text: str) -> tuple[Tensor, Tensor]:
        tokens = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        output = clip.text_model(input_ids=tokens.input_ids)
        last = int(tokens.input_ids[0].argmax())  # first end of the text
        return clip.text_projection(output.last_hidden_state[0]), clip.text_projection(
            output.last_hidden_state[0, last]
        )

    (text, embedding), (about, _) = read(prompt), read(condition)
    similarity = (text @ about.T).max(dim=1).values
    bias = torch.where(similarity / similarity.max() > threshold, 0.0, -math.inf)
    x = clip.visual_projection(clip.vision_model(pixel_values=pixels).last_hidden_state[0])
    for first, second in model.cross_model.layers:
        part = first.fn
        y = norm(x, part.norm)
        attended = attention(part.to_q(y), *part.to_kv(text).split(HEAD, dim=-1), bias)
        x = x + part.to_out(attended) + part.ff[2](gated(part.ff[0](y)))
        part = second.fn
        query, key, value, ff = part.fused_attn_ff_proj(norm(x, part.norm)).split(
            [HEADS * HEAD, HEAD, HEAD, 2 * INNER], dim=-1
        )
        query = torch.cat([rotate(q) for q in query.split(HEAD, dim=-1)], dim=-1)
        x = x + part.attn_out(attention(query, rotate(key), value, 0.0)) + part.ff_out[1](gated(ff))
    return clip.logit_scale.exp() * torch.cosine_similarity(x[0], embedding, dim=0)


def make_published() -> Published:
    torch.manual_seed(0)
    model = Published()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "model.logit_scale":
                parameter.add_(0.1 * torch.randn_like(parameter))
            if name.endswith("token_embedding.weight"):
                parameter.mul_(100)  # different tokens get different features
    return model.eval()


# ---- folders ----


def save_module(model: Published, file: Path) -> None:
    """Save the whole module; its classes belong to a package that nobody can import later."""
    package = ModuleType("trainer_of_mps")
    classes = [Published, Cross, Parallel, Norm, Fn]
    before = [one.__module__ for one in classes]
    sys.modules[package.__name__] = package
    try:
        for one in classes:
            setattr(package, one.__name__, one)
            one.__module__ = package.__name__
        torch.save(model, file)
    finally:
        del sys.modules[package.__name__]
        for one, name in zip(classes, before, strict=True):
            one.__module__ = name


@pytest.fixture(scope="module")
def model() -> Published:
    return make_published()


@pytest.fixture(scope="module")
def folder(model: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the published file and a tokenizer."""
    folder = tmp_path_factory.mktemp("mps")
    save_module(model, folder / FILE)
    tiny_clip.make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward(folder: Path) -> MpsScore:
    return MpsScore(folder)


# ---- values ----


def expected_scores(model: Published, pil: list[Image.Image], prompts: list[str], condition: str) -> Tensor:
    processor = tiny_clip.make_image_processor()
    pixels = [processor(image, return_tensors="pt").pixel_values for image in pil]
    return torch.stack(
        [score(model, p, prompt, condition) for p, prompt in zip(pixels, prompts, strict=True)]
    )


@pytest.mark.parametrize(("height", "width", "tolerance"), [(32, 32, 1e-4), (75, 50, 0.3), (40, 61, 0.3)])
def test_it_is_the_definition(
    reward: MpsScore, model: Published, height: int, width: int, tolerance: float
) -> None:
    brightness = torch.tensor([0.3, 0.6, 1.0])[:, None, None, None]
    images, pil = eight_bits(brightness * some_images(3, height, width))
    expected = expected_scores(model, pil, PROMPTS, OVERALL)
    assert expected.std() > 3 * tolerance, "a tolerance that excludes nothing"
    torch.testing.assert_close(reward(images, PROMPTS), expected, rtol=0, atol=tolerance)


def test_the_condition_masks_the_prompt(folder: Path, model: Published) -> None:
    images, pil = eight_bits(some_images(2))
    prompts = ["abcdefghij klm", "nopqrst uvwxyz"]
    values, masks = [], []
    for condition in ("x", "shape"):
        reward = MpsScore(folder, condition=condition)
        values.append(reward(images, prompts))
        expected = expected_scores(model, pil, prompts, condition)
        torch.testing.assert_close(values[-1], expected, rtol=0, atol=1e-4)
        masks.append(torch.stack([reward._prompt(prompt).read for prompt in prompts]))
    assert masks[0].any(dim=1).all() and not masks[0].all(), "nothing is masked"
    assert not torch.equal(*masks) and not torch.allclose(*values, rtol=0, atol=1e-2)


def test_frequencies_are_those_of_the_file(folder: Path, model: Published, tmp_path: Path) -> None:
    """A file in half precision has rounded frequencies, with which the model was used."""
    file = Path(shutil.copytree(folder, tmp_path, dirs_exist_ok=True)) / FILE
    rounded = make_published().half()
    save_module(rounded, file)
    exact, reward = MpsScore(folder)._angles[1], MpsScore(tmp_path)
    kept = rounded.cross_model.layers[1][1].fn.rotary_emb.inv_freq.float()
    torch.testing.assert_close(reward._angles[1], torch.outer(torch.arange(17), kept))
    assert not torch.equal(reward._angles[1], exact)
    assert all(parameter.dtype == torch.float32 for parameter in reward._model.parameters())
    images = some_images(3)
    torch.testing.assert_close(reward(images, PROMPTS), MpsScore(folder)(images, PROMPTS), rtol=0, atol=0.3)


def test_scores_depend_on_distances_between_positions() -> None:
    """Rotary positions: attention does not change if all positions move by the same number."""
    torch.manual_seed(0)
    layer, x = SelfLayer(WIDTH, HEADS, HEAD, INNER), torch.randn(1, 5, WIDTH)
    angles = torch.outer(torch.arange(9), torch.rand(HEAD // 2))
    torch.testing.assert_close(layer(x, angles[:5]), layer(x, angles[4:]))
    assert not torch.allclose(layer(x, angles[:5]), layer(x, 0 * angles[:5]))


def test_the_conversion_of_imscore(reward: MpsScore, model: Published, folder: Path, tmp_path: Path) -> None:
    """The copy on the hub has the same names after a prefix, and the buffers."""
    tensors = {f"mps.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    tiny_clip.make_tokenizer().save_pretrained(tmp_path)
    images = some_images(3)
    for source in (tmp_path, tmp_path / "model.safetensors"):
        torch.testing.assert_close(MpsScore(source)(images, PROMPTS), reward(images, PROMPTS))


def test_tensors_alone(reward: MpsScore, model: Published, folder: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(folder, tmp_path, dirs_exist_ok=True)) / FILE
    torch.save(model.state_dict(), file)
    images = some_images(3)
    torch.testing.assert_close(MpsScore(tmp_path)(images, PROMPTS), reward(images, PROMPTS))


# ---- properties ----


@pytest.mark.parametrize("size", [(32, 32), (60, 41)])
def test_gradients(reward: MpsScore, size: tuple[int, int]) -> None:
    check_gradient(reward, some_images(3, *size), PROMPTS, size=2e-3)


def test_no_image_influences_another(reward: MpsScore) -> None:
    check_each_by_itself(reward, some_images(3, 40, 40), PROMPTS, tolerance=1e-3)


def test_weights_are_frozen(reward: MpsScore) -> None:
    assert not any(parameter.requires_grad for parameter in reward._model.parameters())
    assert not any(module.training for module in reward._model.modules())


def test_bfloat16_is_for_the_model_alone(reward: MpsScore, folder: Path) -> None:
    images = some_images(3, 40, 40)
    rounded = MpsScore(folder, dtype=torch.bfloat16)
    values = rounded(images, PROMPTS)
    assert values.dtype == torch.float32 and not torch.equal(values, reward(images, PROMPTS))
    assert rounded._angles[0].dtype == torch.float32
    torch.testing.assert_close(values, reward(images, PROMPTS), rtol=0.05, atol=1.0)
    gradient, expected = gradient_of(rounded, images, PROMPTS), gradient_of(reward, images, PROMPTS)
    assert torch.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.9


def test_long_prompts(folder: Path) -> None:
    check_cut(MpsScore(folder, condition="shape"), "mps", 77)


def test_mistakes(reward: MpsScore) -> None:
    check_mistakes(reward, "mps")


def test_by_name(reward: MpsScore, folder: Path) -> None:
    images = some_images(3)
    named = load_reward("mps", source=str(folder))
    torch.testing.assert_close(named(images, PROMPTS), reward(images, PROMPTS))


# ---- files that are missing or do not match ----


def check(source: Any, message: str) -> None:
    with pytest.raises(RewardError, match=f"^mps: {message}") as caught:
        MpsScore(source)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    check(tmp_path, r"\S+ has no .pth or .safetensors file; name MPS_overall_checkpoint.pth, a folder with")
    check(tmp_path / "none.pth", r"there is no file \S+none.pth; name the file of the weights")


def test_broken_files(folder: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(folder, tmp_path, dirs_exist_ok=True)) / FILE
    for content in (b"version https://git-lfs.github.com/spec/v1", b"", pickle.dumps([1], 2)):
        file.write_bytes(content)
        check(tmp_path, r"\S+ cannot be read as torch.save weights \(.+\); download it again$")
    file.unlink()
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    check(tmp_path, r"\S+ cannot be loaded: .+; if it is incomplete, download or save it again")


def test_code_in_a_file_is_not_run(folder: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(folder, tmp_path, dirs_exist_ok=True)) / FILE
    check_pickle("mps", tmp_path, file)


def test_each_tensor(model: Published, folder: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(folder, tmp_path, dirs_exist_ok=True)) / FILE
    check_incomplete(
        "mps",
        tmp_path,
        model.state_dict(),
        lambda tensors: torch.save(tensors, file),
        same_names=False,
        sizes_are_read=True,
    )
    name = "cross_model.layers.1.0.fn.to_q.weight"
    torch.save({other: tensor for other, tensor in model.state_dict().items() if other != name}, file)
    check(tmp_path, rf"the weights in \S+ lack {name}; name a source that has the whole of MPS")
