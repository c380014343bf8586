"""Aesthetic Predictor V2.5, compared with Hugging Face's SigLIP processor and model on PIL images."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from reward_checks import (
    check_each_by_itself,
    check_gradient,
    check_incomplete,
    check_mistakes,
    check_pickle,
    eight_bits,
    gradient_of,
    some_images,
)
from torch import Tensor, nn

pytest.importorskip("transformers")

import numpy as np
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from noisetilt_kernels.rewards import RewardError, load_reward
from noisetilt_kernels.rewards.clip import aesthetic_v2_5
from noisetilt_kernels.rewards.clip.aesthetic_v2_5 import AestheticV25Score
from noisetilt_kernels.rewards.loading import load_preprocessing
from noisetilt_kernels.rewards.registry import ENTRIES

SIDE, WIDTH = 36, 24
PROMPTS = ["a cat", "two red boats", "a cat"]
FILE = "aesthetic_predictor_v2_5.pth"

pytestmark = pytest.mark.usefixtures("offline")


def make_siglip() -> SiglipModel:
    torch.manual_seed(0)
    layers = {
        "hidden_size": WIDTH,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = SiglipConfig(
        text_config={**layers, "vocab_size": 60},
        vision_config={**layers, "image_size": SIDE, "patch_size": 6},
    )
    model = SiglipModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def predictor_as_published() -> nn.Sequential:
    """Return the layers with the dropout of the training, as the published file numbers them."""
    torch.manual_seed(5)
    layers: list[nn.Module] = []
    for inner, outer in [(WIDTH, 1024), (1024, 128), (128, 64), (64, 16)]:
        layers += [nn.Linear(inner, outer), nn.Dropout(0.5)]
    predictor = nn.Sequential(*layers, nn.Linear(16, 1))
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.mul_(3)
    return predictor.eval()


def named_layers() -> dict[str, Tensor]:
    return {f"scoring_head.{name}": tensor for name, tensor in predictor_as_published().state_dict().items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole SigLIP model, its image processor and the published file."""
    folder = tmp_path_factory.mktemp("siglip")
    make_siglip().save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    torch.save(named_layers(), folder / FILE)
    return folder


@pytest.fixture(scope="module")
def reward(folder: Path) -> AestheticV25Score:
    return AestheticV25Score(folder)


# ---- values ----


def published(folder: Path, images: list[Image.Image]) -> Tensor:
    """Return the scores (B,) by the processor and model of transformers."""
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    model = SiglipModel.from_pretrained(folder).vision_model
    with torch.no_grad():
        embeddings = model(**processor(images=images, return_tensors="pt")).pooler_output
        return predictor_as_published()(embeddings / embeddings.norm(dim=-1, keepdim=True))[:, 0]


@pytest.mark.parametrize(("height", "width", "tolerance"), [(36, 36, 1e-4), (75, 50, 0.012), (20, 51, 0.01)])
def test_it_is_the_published_score(
    reward: AestheticV25Score, folder: Path, height: int, width: int, tolerance: float
) -> None:
    brightness = torch.tensor([0.3, 0.6, 1.0])[:, None, None, None]
    images, pil = eight_bits(brightness * some_images(3, height, width))
    expected = published(folder, pil)
    assert expected.std() > 3 * tolerance, "a tolerance that excludes nothing"
    torch.testing.assert_close(reward(images, PROMPTS), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("height", "width"), [(384, 384), (300, 200), (97, 331), (640, 352)])
def test_images_are_those_of_the_processor(height: int, width: int, folder: Path, tmp_path: Path) -> None:
    """The whole image becomes a square, also for a source without an image processor.

    The order of Pillow's passes depends on its version; here the width is first.
    """
    processor = SiglipImageProcessorPil(size={"height": 384, "width": 384})
    processor.save_pretrained(tmp_path / "with")
    (tmp_path / "without").mkdir()
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    for image in (some_images(1, height, width)[0], noise, noise.round()):
        images, pil = eight_bits(image[None])
        across = pil[0].resize((384, height), Image.Resampling.BICUBIC)
        expected = torch.from_numpy(np.asarray(processor(across).pixel_values[0]))
        for source in ("with", "without"):
            preprocess = load_preprocessing(
                "aesthetic-v2.5", str(tmp_path / source), 384, defaults=aesthetic_v2_5._defaults(384)
            )
            assert ((preprocess(images)[0] - expected) * 0.5 * 255).abs().max() < 1.25


def test_a_vision_half_alone(reward: AestheticV25Score, folder: Path, tmp_path: Path) -> None:
    vision = SiglipVisionModel(SiglipVisionConfig(**make_siglip().config.vision_config.to_dict()))
    vision.load_state_dict(make_siglip().vision_model.state_dict())
    vision.save_pretrained(tmp_path)
    shutil.copy(folder / FILE, tmp_path)
    images = some_images(3)
    torch.testing.assert_close(AestheticV25Score(tmp_path)(images, PROMPTS), reward(images, PROMPTS))


def test_a_predictor_alone_takes_siglip_from_the_hub(
    reward: AestheticV25Score, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(folder / FILE, tmp_path)
    monkeypatch.setattr(aesthetic_v2_5, "SIGLIP", str(folder))
    images = some_images(3)
    for source in (tmp_path, tmp_path / FILE):
        torch.testing.assert_close(AestheticV25Score(source)(images, PROMPTS), reward(images, PROMPTS))


def test_the_default_is_downloaded_once(
    reward: AestheticV25Score, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = []

    def download(address: str, file: str, digest: str, progress: bool) -> None:
        addresses.append(f"{address}#sha256={digest}" if digest else address)
        shutil.copy(folder / FILE, file)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(aesthetic_v2_5, "SIGLIP", str(folder))
    images = some_images(3)
    for _ in range(2):
        torch.testing.assert_close(load_reward("aesthetic-v2.5")(images, PROMPTS), reward(images, PROMPTS))
    assert addresses == [ENTRIES["aesthetic-v2.5"].source]
    elsewhere = f"https://example.org/{FILE}"  # another file of the same name
    AestheticV25Score(elsewhere)
    assert addresses[1:] == [elsewhere]


def test_a_download_has_its_digest(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", lambda request: urlopen((folder / FILE).as_uri()))
    monkeypatch.setattr(aesthetic_v2_5, "SIGLIP", str(folder))
    address = f"https://example.org/{FILE}"
    check(f"{address}#sha256={64 * '0'}", f"the file at {address} must have the SHA-256 digest 0+, got anoth")
    assert not list(tmp_path.rglob("*.pth"))
    AestheticV25Score(f"{address}#sha256={hashlib.sha256((folder / FILE).read_bytes()).hexdigest()}")


# ---- properties ----


@pytest.mark.parametrize("size", [(36, 36), (60, 41)])
def test_gradients(reward: AestheticV25Score, size: tuple[int, int]) -> None:
    check_gradient(reward, some_images(3, *size), PROMPTS, size=2e-3)


def test_no_image_influences_another(reward: AestheticV25Score) -> None:
    check_each_by_itself(reward, some_images(3, 40, 40), PROMPTS, tolerance=1e-4)


def test_weights_are_frozen(reward: AestheticV25Score) -> None:
    modules = [reward._vision, *reward._predictor]
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    assert not any(module.training for module in reward._vision.modules())


def test_bfloat16_is_for_the_model_alone(reward: AestheticV25Score, folder: Path) -> None:
    images = some_images(3, 40, 40)
    rounded = AestheticV25Score(folder, dtype=torch.bfloat16)
    values = rounded(images, PROMPTS)
    assert values.dtype == torch.float32 and not torch.equal(values, reward(images, PROMPTS))
    torch.testing.assert_close(values, reward(images, PROMPTS), rtol=0.05, atol=0.1)
    gradient, expected = gradient_of(rounded, images, PROMPTS), gradient_of(reward, images, PROMPTS)
    assert torch.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.9


def test_mistakes(reward: AestheticV25Score) -> None:
    check_mistakes(reward, "aesthetic-v2.5")


# ---- files that are missing or do not match ----


def check(source: Any, message: str) -> None:
    with pytest.raises(RewardError, match=f"^aesthetic-v2.5: {message}") as caught:
        AestheticV25Score(source)
    assert "\n" not in str(caught.value)


def test_no_predictor(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / FILE).unlink()
    check(tmp_path, r"\S+ has no .pth file; name aesthetic_predictor_v2_5.pth, or a folder with it and")
    check(tmp_path / "none.pth", r"there is no file \S+none.pth; name the file of the weights")


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(address: str, file: str, digest: str, progress: bool) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    check(
        aesthetic_v2_5.SOURCE,
        r"https://github.com/\S+ cannot be downloaded \(Name or service not known\); check the network, or",
    )


def test_another_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))
    check(tmp_path, r"\S+ must hold a config.json with model_type 'siglip' or 'siglip_vision_model', got 'cl")


def test_another_predictor(folder: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(folder, tmp_path, dirs_exist_ok=True)) / FILE
    check_incomplete("aesthetic-v2.5", tmp_path, named_layers(), lambda tensors: torch.save(tensors, file))
    check_pickle("aesthetic-v2.5", tmp_path, file)
    torch.save({**named_layers(), "scoring_head.1.bias": torch.ones(2)}, file)
    check(tmp_path, r"\S+ must be the predictor V2.5, .*, with scoring_head.1.bias of shape None, got \(2,\)")


def test_each_tensor_of_siglip(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = Path(shutil.copytree(folder, tmp_path, dirs_exist_ok=True)) / "model.safetensors"
    check_incomplete(
        "aesthetic-v2.5",
        tmp_path,
        {name: tensor for name, tensor in load_file(file).items() if name.startswith("vision_model.")},
        lambda tensors: save_file(tensors, file, {"format": "pt"}),
        same_names=False,
    )
