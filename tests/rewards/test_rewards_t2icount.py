"""T2ICount, compared with a definition in plain torch, and its names with diffusers' conversion."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from reward_checks import (
    check_cut,
    check_each_by_itself,
    check_incomplete,
    check_pickle,
    gradient_of,
    some_images,
)
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import tiny_clip
import tiny_t2icount
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from noisetilt_kernels.rewards import RewardError, load_reward
from noisetilt_kernels.rewards.counting import t2icount
from noisetilt_kernels.rewards.counting.t2icount import T2ICount

NOUNS = ["cat", "red boats", "ab"]
SIDE = 64
"""Height and width to which the tests resize images, instead of 384."""

pytestmark = pytest.mark.usefixtures("offline", "smaller")


@pytest.fixture(autouse=True)
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t2icount, "SIDE", SIDE)


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    return tiny_t2icount.make_parts()


@pytest.fixture(scope="module")
def folder(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t2icount.save_t2icount(tmp_path_factory.mktemp("t2icount"), parts)


@pytest.fixture
def counter(folder: Path) -> T2ICount:
    return T2ICount(folder)


@pytest.fixture
def larger(folder: Path, monkeypatch: pytest.MonkeyPatch) -> T2ICount:
    """Counter for images of 128 x 128, in which no group of a normalization has only two values."""
    monkeypatch.setattr(t2icount, "SIDE", 128)
    return T2ICount(folder)


# ---- published names ----


def test_names_are_those_that_diffusers_converts(parts: dict[str, Any]) -> None:
    tensors = tiny_t2icount.published(parts)
    unet = {
        name.replace("unet.unet.", "model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("unet.")
    }
    converted = convert_ldm_unet_checkpoint(unet, dict(parts["unet"].config))
    expected = parts["unet"].state_dict()
    assert set(converted) == set(expected)
    assert all(torch.equal(converted[name], tensor) for name, tensor in expected.items())

    vae = {
        name.replace("vae.", "first_stage_model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("vae.")
    }
    blocks = {"down_block_types": ("",) * 4, "up_block_types": ()}
    converted = convert_ldm_vae_checkpoint(vae, blocks)
    expected = {f"encoder.{name}": tensor for name, tensor in parts["encoder"].state_dict().items()}
    expected |= {f"quant_conv.{name}": tensor for name, tensor in parts["to_latents"].state_dict().items()}
    assert set(converted) == set(expected)
    assert all(torch.equal(converted[name], tensor) for name, tensor in expected.items())


# ---- the model ----


class Definition:
    """T2ICount in plain torch, by the published names: the decoder, and the U-Net block by block."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = parts
        self.tensors = {f"{name}": t for name, t in parts["decoder"].state_dict().items()}

    def convolved(self, name: str, x: Tensor) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, self.tensors[f"{name}.bias"], padding=weight.shape[-1] // 2, groups=groups)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def normed(self, name: str, x: Tensor) -> Tensor:
        centered = x - x.mean(dim=-1, keepdim=True)
        scaled = centered / (centered.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def attention(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (self.linear(f"{name}.{part}_proj", x) for part, x in (("q", q), ("k", k), ("v", v)))
        width = q.shape[-1] // 8
        heads = []
        for head in range(8):
            own = slice(head * width, (head + 1) * width)
            weights = (q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(width)).softmax(dim=-1)
            heads.append(weights @ v[..., own])
        return self.linear(f"{name}.out_proj", torch.cat(heads, dim=-1))

    def fused(self, name: str, features: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        height, width = features.shape[2:]
        place = self.convolved(f"{name}.img_pe_transform", features).flatten(2).transpose(1, 2)
        image, text = features.flatten(2).transpose(1, 2), text[:, None]
        read = self.normed(
            f"{name}.norm1", text + self.attention(f"{name}.txt2img", text, image + place, image)
        )
        inner = F.gelu(self.linear(f"{name}.mlp.net.0.0", read))
        read = self.normed(f"{name}.norm2", read + self.linear(f"{name}.mlp.net.2", inner))
        image = image + self.attention(f"{name}.img2txt", image + place, read + text, read)
        image = self.normed(f"{name}.norm3", image)
        return image.transpose(1, 2).reshape(len(image), -1, height, width), read[:, 0]

    def joined(self, name: str, low: Tensor, high: Tensor, similarity: Tensor | None) -> Tensor:
        low = self.convolved(f"{name}.conv1.0", twice(low)).relu()
        x = self.convolved(f"{name}.conv2.0", torch.cat([high, low], dim=1)).relu()
        return x if similarity is None else x + similarity * low

    def read(self, name: str, x: Tensor, noun: Tensor) -> tuple[Tensor, Tensor]:
        text = self.linear(f"{name}.text_conv", noun)
        x, text = self.fused(f"{name}.img_txt_fusion1", x, text + self.normed(f"{name}.norm1", text))
        return self.fused(f"{name}.img_txt_fusion2", self.convolved(f"{name}.conv3.0", x).relu(), text)

    def regressed(self, x: Tensor) -> Tensor:
        for number in "12":
            height, width = x.shape[2:]
            place = self.convolved(f"regressor.img_pe_transform{number}", x).flatten(2).transpose(1, 2)
            image = x.flatten(2).transpose(1, 2)
            seen = self.attention(f"regressor.self_attn{number}", image + place, image + place, image)
            image = self.normed(f"regressor.norm{number}", image + seen)
            x = image.transpose(1, 2).reshape(len(image), -1, height, width)
            if number == "1":
                x = self.convolved("regressor.conv.0", x).relu()
        for layer in "024":
            x = self.convolved(f"regressor.reg_head.{layer}", x).relu()
        return x

    def levels(self, latents: Tensor, context: Tensor) -> list[Tensor]:
        unet = self.parts["unet"]
        time = unet.time_embedding(unet.time_proj(torch.zeros(len(latents))))
        x = unet.conv_in(latents)
        skips = [x]
        for block in unet.down_blocks:
            for index, resnet in enumerate(block.resnets):
                x = resnet(x, time)
                if hasattr(block, "attentions"):
                    x = block.attentions[index](x, encoder_hidden_states=context).sample
                skips.append(x)
            for down in block.downsamplers or []:
                x = down(x)
                skips.append(x)
        x = unet.mid_block.resnets[0](x, time)
        x = unet.mid_block.attentions[0](x, encoder_hidden_states=context).sample
        x = unet.mid_block.resnets[1](x, time)
        found = []
        for number, block in enumerate(unet.up_blocks):
            for index, resnet in enumerate(block.resnets):
                x = resnet(torch.cat([x, skips.pop()], dim=1), time)
                if hasattr(block, "attentions"):
                    x = block.attentions[index](x, encoder_hidden_states=context).sample
                if (number, index) in ((0, 1), (1, 1), (2, 1), (3, 2)):
                    found.append(x)
            for up in block.upsamplers or []:
                x = up(x)
        assert not skips
        return found[::-1]

    def count(self, image: Tensor, noun: str) -> Tensor:
        """Return the number of objects in an image (3, 128, 128)."""
        tokens = tiny_clip.make_tokenizer()(noun, padding="max_length", max_length=77, return_tensors="pt")
        states = self.parts["text"](tokens.input_ids).last_hidden_state
        letters = len(noun.replace(" ", ""))  # a token for each
        noun_state = states[:, 1 : 1 + letters].mean(dim=1)
        moments = self.parts["to_latents"](self.parts["encoder"](2 * image[None] - 1))
        finest, fine, coarse, coarsest = self.levels(moments[:, :4], states)
        x, text = self.read("upsample1", self.joined("upsample1", coarsest, coarse, None), noun_state)
        similarity = F.cosine_similarity(twice(twice(x)), text[:, :, None, None], dim=1)[:, None]
        similarity = F.interpolate(similarity, size=fine.shape[2:], mode="bilinear")
        x, text = self.read("upsample2", self.joined("upsample2", x, fine, similarity), noun_state)
        similarity = F.cosine_similarity(twice(x), text[:, :, None, None], dim=1)[:, None]
        return self.regressed(self.joined("upsample3", x, finest, similarity)).sum() / 60


def twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def test_the_count_is_that_of_the_definition(parts: dict[str, Any], larger: T2ICount) -> None:
    images = some_images(3, 128, 128, seed=3)
    counts = larger(images, NOUNS)
    definition = Definition(parts)
    expected = torch.stack([definition.count(image, noun) for image, noun in zip(images, NOUNS, strict=True)])
    assert counts.dtype == torch.float32
    assert expected.std() > 0.01 * expected.max() > 0, "a tolerance that excludes nothing"
    torch.testing.assert_close(counts, expected, rtol=1e-4, atol=0)
    density = larger.density(images, NOUNS)
    assert density.shape == (3, 1, 16, 16) and density.min() >= 0


def test_the_noun_is_read(counter: T2ICount) -> None:
    images = some_images(1, SIDE, SIDE).expand(3, -1, -1, -1)
    counts = counter(images, NOUNS)
    assert (counts[:2] - counts[1:]).abs().min() > 1e-3 * counts.max()


def test_images_are_resized(counter: T2ICount) -> None:
    images = some_images(2, 50, 90)
    resized = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    torch.testing.assert_close(counter(images, NOUNS[:2]), counter(resized, NOUNS[:2]), rtol=1e-4, atol=0)


def test_the_gradient_is_that_of_the_definition(parts: dict[str, Any], larger: T2ICount) -> None:
    """The definition keeps all activations, and nothing stops its gradient."""
    images = some_images(1, 128, 128, seed=3)
    definition = Definition(parts)
    expected = gradient_of(lambda images, nouns: definition.count(images[0], "cat")[None], images, ["cat"])
    gradient = gradient_of(larger, images, ["cat"])
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_no_image_influences_another(larger: T2ICount) -> None:
    check_each_by_itself(larger, some_images(3, 128, 128, seed=3), NOUNS, tolerance=1e-5)


def test_activations_are_computed_again(counter: T2ICount, monkeypatch: pytest.MonkeyPatch) -> None:
    images = some_images(1, SIDE, SIDE)

    def kept(counter: T2ICount) -> int:
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            counter(images.clone().requires_grad_(), ["cat"])
        return sum(seen.values())

    with_it, gradient = kept(counter), gradient_of(counter, images, ["cat"])
    monkeypatch.setattr(
        t2icount,
        "checkpoint",
        lambda forward, *given, use_reentrant, **named: forward(
            *given, **{name: value for name, value in named.items() if name != "preserve_rng_state"}
        ),
    )
    for block in (
        *counter._encoder.down_blocks,
        counter._encoder.mid_block,
        *t2icount._layers(counter._unet),
    ):
        block.forward = type(block).forward.__get__(block)
    assert with_it < 0.5 * kept(counter)
    torch.testing.assert_close(gradient, gradient_of(counter, images, ["cat"]), rtol=1e-3, atol=1e-6)


def test_bfloat16_is_for_stable_diffusion_alone(folder: Path, counter: T2ICount) -> None:
    rounded = T2ICount(folder, dtype=torch.bfloat16)
    networks = (rounded._text, rounded._encoder, rounded._to_latents, rounded._unet)
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in rounded._decoder.parameters()} == {torch.float32}
    images = some_images(2, SIDE, SIDE)
    counts = rounded(images, NOUNS[:2])
    assert counts.dtype == torch.float32
    torch.testing.assert_close(counts, counter(images, NOUNS[:2]), rtol=0.2, atol=0)


def test_weights_are_frozen(counter: T2ICount) -> None:
    networks = (counter._text, counter._encoder, counter._to_latents, counter._unet, counter._decoder)
    for network in networks:
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not any(module.training for module in network.modules())


def test_long_nouns(counter: T2ICount) -> None:
    check_cut(counter, "count", 77)


# ---- by name, and files ----


def test_by_name(folder: Path, counter: T2ICount) -> None:
    images, prompts = some_images(2, SIDE, SIDE), ["5 cat", "two red boats on a lake"]
    counts = counter(images, ["cat", "red boats"])
    for source in (folder, folder / tiny_t2icount.FILE):
        reward = load_reward("count", source=str(source))
        expected = -F.smooth_l1_loss(counts, torch.tensor([5.0, 2.0]), reduction="none")
        torch.testing.assert_close(reward(images, prompts), expected)
    error = load_reward("count-error", source=str(folder))
    torch.testing.assert_close(error(images, prompts), -(counts - torch.tensor([5.0, 2.0])).abs())
    fixed = load_reward("count:9 cat", source=str(folder))
    expected = -F.smooth_l1_loss(counts[:1], torch.tensor([9.0]), reduction="none")
    torch.testing.assert_close(fixed(images[:1], ["a garden"]), expected)


def test_each_tensor(folder: Path, parts: dict[str, Any], tmp_path: Path) -> None:
    tiny_clip.make_tokenizer().save_pretrained(tmp_path)
    check_incomplete(
        "count",
        tmp_path,
        tiny_t2icount.published(parts),
        lambda tensors: torch.save(tensors, tmp_path / tiny_t2icount.FILE),
        unused="position_ids",
        sizes_are_read=True,
    )
    check_pickle("count", tmp_path, tmp_path / tiny_t2icount.FILE)


def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RewardError, match=r"^count: there is no file best_model_paper.pth .*cha15yq/T2ICount"
    ):
        load_reward("count")
    with pytest.raises(RewardError, match=r"^count: \S+ has no .pth file; name best_model_paper.pth"):
        load_reward("count-exact", source=str(tmp_path))
