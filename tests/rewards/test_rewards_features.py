"""Features of images for measures of diversity: values, and missing packages and weights."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from reward_checks import eight_bits, some_images
from torch import Tensor, nn

pytest.importorskip("transformers")

import tiny_clip
from transformers import CLIPVisionModelWithProjection

from noisetilt_kernels.rewards import RewardError
from noisetilt_kernels.rewards.features import FEATURES, check_features, load_features

pytestmark = pytest.mark.usefixtures("offline")


def test_clip_features_are_the_image_embeddings_of_transformers(tmp_path: Path) -> None:
    model = tiny_clip.make_model()
    images, pictures = eight_bits(some_images(3, 40, 56))
    pixels = tiny_clip.make_image_processor()(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        wanted = model.get_image_features(pixel_values=pixels).pooler_output
    folder = tiny_clip.save_clip(tmp_path / "clip", model)
    found = load_features("clip", str(folder))(images)
    assert found.shape == (3, tiny_clip.WIDTH) and found.dtype == torch.float32
    assert not found.requires_grad
    scale = wanted.abs().max()
    torch.testing.assert_close(found / scale, wanted / scale, rtol=0, atol=0.02)
    assert (found[0] - found[1]).abs().max() > 0.1 * scale

    half = tmp_path / "half"  # the vision half alone
    vision = CLIPVisionModelWithProjection.from_pretrained(folder)
    vision.save_pretrained(half)
    tiny_clip.make_image_processor().save_pretrained(half)
    assert torch.equal(load_features("clip", str(half))(images), found)


def test_clip_features_without_weights(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"^clip: there is no folder /nowhere"):
        load_features("clip", "/nowhere")
    with pytest.raises(
        RewardError, match=r"^clip: 'openai/clip-vit-large-patch14' is not a folder, and the hub"
    ):
        load_features("clip")


def test_digits_are_grey_means_of_tiles() -> None:
    images = torch.zeros(2, 3, 32, 32)
    images[0, :, 0:4, 8:12] = 0.5
    images[1, 1, 28:, 30:] = 0.6
    found = load_features("digits")(images)
    assert found.shape == (2, 64)
    assert found[0, 2] == pytest.approx(0.5) and found[0].sum() == pytest.approx(0.5)
    assert found[1, 63] == pytest.approx(0.6 / 3 / 2) and found[1].sum() == pytest.approx(0.1)


@pytest.fixture
def without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "noisetilt_kernels.rewards.inception", raising=False)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr("noisetilt_kernels.rewards.features.find_spec", lambda name: None)


@pytest.mark.usefixtures("without_torchvision")
def test_inception_needs_torchvision() -> None:
    assert "torchvision" not in (FEATURES["clip"].package, FEATURES["digits"].package)
    with pytest.raises(
        RewardError, match=r"^features: inception needs the package torchvision; install the "
    ):
        check_features("inception")
    with pytest.raises(RewardError, match=r"^features: inception needs the package torchvision"):
        load_features("inception")


def stand_in(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    """Put a module in the place of torchvision, with `load` for `inception_v3`."""
    models, package = ModuleType("torchvision.models"), ModuleType("torchvision")
    package.__spec__ = ModuleSpec("torchvision", None)
    weights = SimpleNamespace(url="https://host/inception.pth", transforms=lambda: lambda images: 2 * images)
    models.Inception_V3_Weights = SimpleNamespace(IMAGENET1K_V1=weights)  # type: ignore[attr-defined]
    models.inception_v3 = load  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "noisetilt_kernels.rewards.inception", raising=False)
    for module in (package, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_inception_gives_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    class Means(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert not self.training
            return images.mean(dim=(2, 3))

    stand_in(monkeypatch, lambda weights: Means())
    images = some_images(2)
    found = load_features("inception")(images)
    torch.testing.assert_close(found, (2 * images).mean(dim=(2, 3)).softmax(dim=1))


def test_inception_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(weights: object) -> None:
        raise OSError("Name or service not known")

    stand_in(monkeypatch, fail)
    with pytest.raises(RewardError) as caught:
        load_features("inception")
    message = str(caught.value)
    assert message.startswith(
        "inception: torchvision cannot load https://host/inception.pth (Name or service"
    )
    assert message.endswith("checkpoints/inception.pth")


def test_a_torchvision_for_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, None)
    del sys.modules["torchvision.models"].inception_v3  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match=r"^features: torchvision cannot be imported \(cannot import name"):
        load_features("inception")
