"""Rewards by CLIP models, compared with Hugging Face's processor and model on PIL images."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil

pytest.importorskip("transformers")

import numpy as np
import tiny_clip
from PIL import Image
from transformers import CLIPModel, CLIPProcessor, CLIPVisionModelWithProjection

from noisetilt_kernels.rewards import RewardError, load_reward, preprocessing
from noisetilt_kernels.rewards.clip import aesthetic
from noisetilt_kernels.rewards.clip.aesthetic import AestheticScore
from noisetilt_kernels.rewards.clip.clip_score import ClipScore
from noisetilt_kernels.rewards.clip.image_text import ImageTextModel
from noisetilt_kernels.rewards.clip.openai_prompts import clean_prompt
from noisetilt_kernels.rewards.clip.pickscore import PickScore
from noisetilt_kernels.rewards.preprocessing import Preprocessing

PROMPTS = ["a cat", "two red boats", "a cat"]
LONG = "many words " * 60

Build = Callable[..., Any]


pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a CLIP model."""
    return tiny_clip.save_clip(tmp_path_factory.mktemp("clip"), tiny_clip.make_model())


def predictor_as_published() -> nn.Sequential:
    """Return the aesthetic predictor with its dropout layers, for embeddings of the small model."""
    torch.manual_seed(5)
    predictor = nn.Sequential(
        nn.Linear(tiny_clip.WIDTH, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.mul_(2)
        predictor[-1].bias.add_(5)
    return predictor.eval()


def named_layers() -> dict[str, Tensor]:
    """Return the state of the predictor; both formats have the same names."""
    return {f"layers.{name}": tensor for name, tensor in predictor_as_published().state_dict().items()}


def save_conversion(folder: Path, clip: Path) -> Path:
    """Folder with vision half and predictor in one checkpoint, with their own configuration type."""
    vision = CLIPVisionModelWithProjection.from_pretrained(clip)
    vision.save_pretrained(folder)
    # save_pretrained of transformers 5.6 renames weights that were loaded from a model with both halves
    save_file({**vision.state_dict(), **named_layers()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="aesthetics_predictor", architectures=["AestheticsPredictorV2Linear"])
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(clip / "preprocessor_config.json", folder)
    return folder


@pytest.fixture(scope="module")
def conversion(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_conversion(tmp_path_factory.mktemp("conversion"), clip)


@pytest.fixture(scope="module")
def original(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of CLIP with LAION's file of the predictor."""
    folder = tmp_path_factory.mktemp("original")
    shutil.copytree(clip, folder, dirs_exist_ok=True)
    torch.save(named_layers(), folder / "sac+logos+ava1-l14-linearMSE.pth")
    return folder


# ---- preprocessing ----


def patterns(height: int, width: int) -> dict[str, Tensor]:
    """Return images (3, height, width): smooth, noise, and black-and-white noise."""
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    return {"smooth": some_images(1, height, width)[0], "noise": noise, "black and white": noise.round()}


@pytest.mark.parametrize(
    ("height", "width"),
    [(224, 224), (512, 512), (32, 32), (300, 200), (97, 331), (640, 352), (224, 500), (225, 226)],
)
def test_preprocessing_is_that_of_the_processor(height: int, width: int) -> None:
    """Compare up to two roundings to 8 bits: at most 1.25 of 255 in a pixel, 0.05 in the mean."""
    processor = CLIPImageProcessorPil()
    preprocessing = Preprocessing.from_config(processor.to_dict())
    for name, image in patterns(height, width).items():
        images, pil = eight_bits(image[None])
        expected = torch.from_numpy(np.asarray(processor(pil[0]).pixel_values[0]))
        difference = (
            (preprocessing(images)[0] - expected) * torch.tensor(processor.image_std)[:, None, None] * 255
        )
        assert difference.abs().max() < 1.25, name
        assert difference.mean().abs() < 0.05, name


@pytest.mark.parametrize(
    "options",
    [
        {"do_resize": False},
        {"do_resize": False, "crop_size": {"height": 51, "width": 20}},
        {"do_center_crop": False, "size": {"height": 30, "width": 50}},
        {"do_center_crop": False},
        {"resample": 2},
        {"do_normalize": False},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 24, "width": 31}},
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 24, "width": 35}},
    ],
)
def test_preprocessing_follows_the_configuration(options: dict[str, Any]) -> None:
    processor = CLIPImageProcessorPil(
        **{"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, **options}
    )
    images, pil = eight_bits(some_images(1, 46, 37))
    actual = Preprocessing.from_config(processor.to_dict())(images)[0]
    expected = torch.from_numpy(np.asarray(processor(pil[0]).pixel_values[0]))
    std = min(processor.image_std) if processor.do_normalize else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=1.25 / 255 / std)


def test_old_configurations_are_read() -> None:
    old = {"size": 224, "crop_size": 224, "resample": 3, "feature_extractor_type": "CLIPFeatureExtractor"}
    assert Preprocessing.from_config(old) == Preprocessing.from_config(CLIPImageProcessorPil().to_dict())
    assert Preprocessing.from_config({}).output_size == (224, 224)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"resample": 1}, "resample must be 2 (bilinear) or 3 (bicubic), got 1"),
        ({"do_rescale": False}, "do_rescale must be true"),
        (
            {"size": {"longest_edge": 3}},
            "size must be given by shortest_edge, or height and width, got {'longest_edge': 3}",
        ),
        ({"crop_size": {"shortest_edge": 3}}, "crop_size must be given by height and width"),
    ],
)
def test_unsupported_configurations(config: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=f"^the image processor's {re.escape(message)}"):
        Preprocessing.from_config(config)


@pytest.mark.parametrize(("height", "width"), [(1, 2000), (2000, 1), (3, 602), (250, 7)])
@pytest.mark.parametrize("round_crop", [True, False])
def test_ends_of_long_images_are_cut_before_they_are_resized(
    height: int, width: int, round_crop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The centre crop has the pixels of the whole image, as if all of it had been resized."""
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    preprocess = Preprocessing.from_config({"size": 32, "crop_size": 32}, round_crop)
    monkeypatch.setattr(preprocessing, "LONGEST", 10_000)
    whole = preprocess(image)
    monkeypatch.undo()
    sizes = []
    interpolate = nn.functional.interpolate

    def watched(images: Tensor, size: tuple[int, int], **options: Any) -> Tensor:
        sizes.append(size)
        return interpolate(images, size=size, **options)

    monkeypatch.setattr(nn.functional, "interpolate", watched)
    # a whole number of pixels for each pixel, or one side rounded down: 0.2 pixels at most
    exact = 32 * max(height, width) % min(height, width) == 0
    torch.testing.assert_close(preprocess(image), whole, rtol=0, atol=1e-5 if exact else 0.05)
    assert max(max(size) for size in sizes) <= 32 * (preprocessing.LONGEST + 2)


def test_long_images_without_a_crop_stay_whole() -> None:
    image = torch.rand(1, 3, 2, 90)
    shapes = [
        Preprocessing.from_config({"do_center_crop": False, **config})(image).shape[2:]
        for config in ({"size": 8}, {"size": {"height": 8, "width": 8}})
    ]
    assert shapes == [(8, 360), (8, 8)]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_plain_black_and_white_have_a_gradient(value: float) -> None:
    images = torch.full((1, 3, 50, 70), value)
    preprocessing = Preprocessing.from_config({"size": 32, "crop_size": 32})
    gradient = gradient_of(lambda images, prompts: preprocessing(images).sum(dim=(1, 2, 3)), images, [""])
    assert gradient[..., 10:40, 20:50].min() > 0


# ---- values ----


@pytest.mark.parametrize(("height", "width"), [(32, 32), (75, 50)])
def test_clip_and_pickscore_are_those_of_transformers(clip: Path, height: int, width: int) -> None:
    images, pil = eight_bits(some_images(3, height, width))
    prompts = ["a cat", LONG, "two red boats"]
    processor, model = CLIPProcessor.from_pretrained(clip), CLIPModel.from_pretrained(clip)
    inputs = processor(
        text=prompts, images=pil, padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**inputs).logits_per_image.diagonal()
    tolerance = 1e-3 if height == 32 else 0.6
    torch.testing.assert_close(PickScore(clip)(images, prompts), logits, rtol=0, atol=tolerance)
    cosines = logits / model.logit_scale.exp()
    torch.testing.assert_close(ClipScore(clip)(images, prompts), 100 * cosines, rtol=0, atol=tolerance)
    assert logits.std() > 5, "a tolerance that excludes nothing"


def test_the_scale_is_the_models_own(tmp_path: Path) -> None:
    folder = tiny_clip.save_clip(tmp_path, tiny_clip.make_model(logit_scale=3.0))
    images = some_images(3)
    ratio = PickScore(folder)(images, PROMPTS) / ClipScore(folder)(images, PROMPTS)
    torch.testing.assert_close(ratio, torch.full((3,), 20.0855 / 100))
    # not rounded to 20.1 with the weights
    scale = ImageTextModel.load("clip", folder, dtype=torch.bfloat16).scale
    assert float(scale) == pytest.approx(20.0855, rel=1e-5)
    assert ImageTextModel.load("clip", folder, dtype=torch.bfloat16)._model.dtype == torch.bfloat16


def published_aesthetic(clip: Path, images: list[Image.Image]) -> Tensor:
    """Return the scores (B,) of the published code."""
    processor, model = (
        CLIPProcessor.from_pretrained(clip),
        CLIPVisionModelWithProjection.from_pretrained(clip),
    )
    with torch.no_grad():
        embeddings = model(**processor(images=images, return_tensors="pt")).image_embeds
        return predictor_as_published()(embeddings / embeddings.norm(dim=-1, keepdim=True))[:, 0]


def test_aesthetic_is_that_of_the_published_code(clip: Path, conversion: Path, original: Path) -> None:
    images, pil = eight_bits(some_images(3))
    expected = published_aesthetic(clip, pil)
    assert expected.std() > 0.1, "a tolerance that excludes nothing"
    for folder in (conversion, original):
        torch.testing.assert_close(AestheticScore(folder)(images, [""] * 3), expected, rtol=0, atol=1e-4)


def test_the_width_of_embeddings_is_that_of_the_whole_model(original: Path, tmp_path: Path) -> None:
    """Some configurations of the vision half lack the width."""
    file = copy_of(original, tmp_path) / "config.json"
    vision = json.loads(file.read_text())["vision_config"]
    change_json(
        file, vision_config={name: value for name, value in vision.items() if name != "projection_dim"}
    )
    images = some_images(3)
    torch.testing.assert_close(
        AestheticScore(tmp_path)(images, [""] * 3), AestheticScore(original)(images, [""] * 3)
    )


def test_a_predictor_alone_takes_clip_from_the_hub(
    clip: Path, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(original / "sac+logos+ava1-l14-linearMSE.pth", tmp_path)
    monkeypatch.setattr(aesthetic, "CLIP", str(clip))
    images = some_images(3)
    torch.testing.assert_close(
        AestheticScore(tmp_path)(images, [""] * 3), AestheticScore(original)(images, [""] * 3)
    )


# ---- properties of every reward ----


@pytest.fixture(params=["clip", "pickscore", "aesthetic", "aesthetic, original"])
def reward(request: pytest.FixtureRequest, clip: Path, conversion: Path, original: Path) -> Any:
    name, _, layout = request.param.partition(", ")
    source = clip if name != "aesthetic" else original if layout else conversion
    return load_reward(name, source=str(source))


@pytest.mark.parametrize("size", [(32, 32), (60, 41)])
def test_gradients(reward: Any, size: tuple[int, int]) -> None:
    check_gradient(reward, some_images(3, *size), PROMPTS, size=5e-4)


def test_no_image_influences_another(reward: Any) -> None:
    check_each_by_itself(reward, some_images(3, 40, 40), PROMPTS, tolerance=1e-3)


def test_weights_are_frozen(reward: Any) -> None:
    modules = [module for part in vars(reward).values() for module in _modules(part)]
    assert modules
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    assert not any(child.training for module in modules for child in module.modules())


def _modules(part: Any) -> list[nn.Module]:
    if isinstance(part, ImageTextModel):
        return [part._model]
    return [part] if isinstance(part, nn.Module) else []


@pytest.mark.parametrize("reward_class", [ClipScore, PickScore, AestheticScore])
def test_bfloat16_is_for_the_model_alone(reward_class: Any, clip: Path, conversion: Path) -> None:
    source = conversion if reward_class is AestheticScore else clip
    images = some_images(3, 40, 40)
    exact, rounded = (reward_class(source, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    values = rounded(images, PROMPTS)
    assert values.dtype == torch.float32
    assert not torch.equal(values, exact(images, PROMPTS))
    torch.testing.assert_close(values, exact(images, PROMPTS), rtol=0.03, atol=1.5)
    gradient, expected = gradient_of(rounded, images, PROMPTS), gradient_of(exact, images, PROMPTS)
    assert gradient.dtype == torch.float32
    assert torch.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("name", ["clip", "pickscore"])
def test_long_prompts(name: str, clip: Path) -> None:
    check_cut(load_reward(name, source=str(clip)), name, 77)


def test_prompts_are_cleaned_as_in_openai_s_code(clip: Path) -> None:
    """PickScore's own code does not clean its prompts."""
    images = some_images(1)
    for prompt, cleaned in DIRTY.items():
        assert clean_prompt(prompt) == cleaned
    for prompt, cleaned in {"a&#32;cat": "a cat", "&amp;#97; cat": "a cat", "a ﬁsh": "a fish"}.items():
        for reward_class, same in ((ClipScore, True), (PickScore, False)):
            reward = reward_class(clip)
            assert torch.equal(reward(images, [prompt]), reward(images, [cleaned])) is same


DIRTY = {  # tokens of the published vocabulary for these were compared with open_clip's tokenizer
    "\u201ca cat\u2019s hat\u201d": '"a cat\'s hat"',
    "A Cat": "a cat",
    "caf&amp;eacute; &amp; bar": "café & bar",
    "cafÃ©": "café",
    "ﬁsh": "fish",
    "\uff37\uff29\uff24\uff25": "wide",
    "ΣΟΣ": "σος",
    " a cat ": "a cat",
}


@pytest.mark.parametrize(("height", "width"), [(41, 60), (32, 51), (33, 32), (75, 50), (47, 32)])
def test_crops_are_those_of_each_reward_s_code(
    height: int, width: int, clip: Path, conversion: Path, original: Path
) -> None:
    """OpenAI's and LAION's code crop by torchvision, which rounds to even; Hugging Face rounds down."""
    images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    for reward, rounds in (
        (ClipScore(clip)._model, True),
        (PickScore(clip)._model, False),
        (AestheticScore(original), True),
        (AestheticScore(conversion), False),
    ):
        preprocess: Any = reward._preprocess
        whole = replace(preprocess, crop=None)(images)
        excess = [n - tiny_clip.IMAGE_SIZE for n in whole.shape[2:]]
        top, left = (round(n / 2) if rounds else n // 2 for n in excess)
        expected = whole[..., top : top + tiny_clip.IMAGE_SIZE, left : left + tiny_clip.IMAGE_SIZE]
        assert torch.equal(preprocess(images), expected)


def test_a_prompt_is_encoded_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = CLIPModel.get_text_features

    def counted(self: CLIPModel, **tokens: Tensor) -> Any:
        asked.append(len(tokens["input_ids"]))
        return original(self, **tokens)

    monkeypatch.setattr(CLIPModel, "get_text_features", counted)
    reward, images = ClipScore(clip), some_images(3)
    for _ in range(3):
        reward(images, PROMPTS)
    reward(images[:1], ["another"])
    assert asked == [1, 1, 1]


def test_prompts_cached_in_inference_mode_allow_gradients(clip: Path) -> None:
    reward, images = ClipScore(clip), some_images(3)
    with torch.inference_mode():
        reward(images, PROMPTS)
    check_gradient(reward, images, PROMPTS, size=5e-4)


def test_default_tokenizer_and_processor(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(clip / name, tmp_path)
    monkeypatch.setattr("noisetilt_kernels.rewards.clip.pickscore.VIT_H_TOKENIZER", str(clip))
    images = some_images(3, 50, 40)
    torch.testing.assert_close(
        PickScore(tmp_path)(images, PROMPTS), PickScore(clip)(images, PROMPTS), rtol=0, atol=0
    )


def test_a_processor_of_transformers_5(clip: Path, tmp_path: Path) -> None:
    """Tokenizer and image processor may be saved as one processor."""
    shutil.copytree(clip, tmp_path, dirs_exist_ok=True)
    (tmp_path / "preprocessor_config.json").unlink()
    processor = CLIPProcessor(tiny_clip.make_image_processor(), tiny_clip.make_tokenizer())
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "processor_config.json").exists()
    assert ImageTextModel.load("clip", tmp_path)._preprocess.mean == (0.1, 0.2, 0.3)


# ---- files that are missing or do not match ----


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to


def test_loading_a_small_model_prints_nothing(clip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_reward("clip", source=str(clip))
    assert capfd.readouterr() == ("", "")


class Evil:
    """Object that runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('it ran')",)


@pytest.mark.parametrize("content", [pickle.dumps({"a": Evil()}, protocol=2), b"", b"not weights"])
def test_pickled_weights_that_are_not_tensors(clip: Path, tmp_path: Path, content: bytes) -> None:
    folder = copy_of(clip, tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(RewardError, match=r"clip: \S+ cannot be loaded: .+; if it is incomplete"):
        load_reward("clip", source=str(folder))


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("name", ["clip", "pickscore", "aesthetic"])
class TestEveryReward:
    def check(self, name: str, source: Any, message: str) -> None:
        with pytest.raises(RewardError, match=f"^{name}: {message}") as caught:
            load_reward(name, source=str(source))
        assert "\n" not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    def test_no_folder(self, name: str, tmp_path: Path) -> None:
        missing = tmp_path / "missing"
        self.check(
            name, missing, f"there is no folder {re.escape(str(missing))}; name the folder of the weights, or"
        )

    def test_no_hub(self, name: str) -> None:
        self.check(
            name,
            "nobody/nothing",
            r"'nobody/nothing' is not a folder, and the hub cannot be reached; .*hf download nobody/no",
        )

    def test_an_empty_folder(self, name: str, tmp_path: Path) -> None:
        self.check(name, tmp_path, r"\S+ must hold a config.json with model_type 'clip'.*, got None$")

    def test_another_model(self, name: str, clip: Path, tmp_path: Path) -> None:
        change_json(copy_of(clip, tmp_path) / "config.json", model_type="bert")
        self.check(name, tmp_path, r"\S+ must hold a config.json with model_type 'clip'.*, got 'bert'$")

    def test_a_broken_configuration(self, name: str, clip: Path, tmp_path: Path) -> None:
        (copy_of(clip, tmp_path) / "config.json").write_text("{")
        self.check(name, tmp_path, r"\S+ cannot be loaded: .+; if it is incomplete, download or save")

    def test_no_weights(self, name: str, clip: Path, tmp_path: Path) -> None:
        (copy_of(clip, tmp_path) / "model.safetensors").unlink()
        self.check(
            name,
            tmp_path,
            r"\S+ cannot be loaded: .*model.safetensors.*; if it is incomplete, download or",
        )

    def test_broken_weights(self, name: str, clip: Path, tmp_path: Path) -> None:
        (copy_of(clip, tmp_path) / "model.safetensors").write_bytes(
            b"version https://git-lfs.github.com/spec/v1"
        )
        self.check(name, tmp_path, r"\S+ cannot be loaded: .+; if it is incomplete, download or save")

    def test_incomplete_weights(self, name: str, conversion: Path, clip: Path, tmp_path: Path) -> None:
        file = copy_of(conversion if name == "aesthetic" else clip, tmp_path) / "model.safetensors"
        tensors = load_file(file)
        del tensors["visual_projection.weight"]
        save_file(tensors, file)
        self.check(
            name, tmp_path, r"the weights in \S+ lack visual_projection.weight; name a source that has"
        )

    def test_each_tensor(self, name: str, conversion: Path, clip: Path, tmp_path: Path) -> None:
        file = copy_of(conversion if name == "aesthetic" else clip, tmp_path) / "model.safetensors"
        check_incomplete(
            name, tmp_path, load_file(file), lambda tensors: save_file(tensors, file, {"format": "pt"})
        )

    def test_a_pickle(self, name: str, conversion: Path, clip: Path, tmp_path: Path) -> None:
        (copy_of(conversion if name == "aesthetic" else clip, tmp_path) / "model.safetensors").unlink()
        check_pickle(name, tmp_path, tmp_path / "pytorch_model.bin")

    def test_a_file_as_source(self, name: str, clip: Path) -> None:
        file = clip / "model.safetensors"
        self.check(
            name, file, rf"{re.escape(str(file))} is a file; name the folder that has it and the other"
        )

    def test_a_strange_configuration(self, name: str, clip: Path, tmp_path: Path) -> None:
        change_json(copy_of(clip, tmp_path) / "config.json", vision_config={"hidden_size": "wide"})
        self.check(name, tmp_path, r"\S+ cannot be loaded: .+; if it is incomplete, download or save")

    def test_another_image_size(self, name: str, clip: Path, tmp_path: Path) -> None:
        change_json(copy_of(clip, tmp_path) / "preprocessor_config.json", crop_size=28)
        self.check(
            name,
            tmp_path,
            r"the image processor in \S+ makes images of \(28, 28\) pixels, but its model takes \(32",
        )

    def test_a_broken_image_processor(self, name: str, clip: Path, tmp_path: Path) -> None:
        (copy_of(clip, tmp_path) / "preprocessor_config.json").write_text("{")
        self.check(name, tmp_path, r"\S+ cannot be loaded: ")

    def test_an_unsupported_image_processor(self, name: str, clip: Path, tmp_path: Path) -> None:
        change_json(copy_of(clip, tmp_path) / "preprocessor_config.json", resample=1)
        self.check(
            name,
            tmp_path,
            r"\S+: the image processor's resample must be 2 \(bilinear\) or 3 \(bicubic\), got 1$",
        )


@pytest.mark.parametrize("reward_class", [ClipScore, PickScore])
def test_no_tokenizer(reward_class: Any, clip: Path, tmp_path: Path) -> None:
    for file in copy_of(clip, tmp_path).glob("*token*"):
        file.unlink()
    with pytest.raises(
        RewardError, match=r"there is no tokenizer of the model's 54 tokens in \S+( or laion/\S+)?; put "
    ):
        reward_class(tmp_path)


def test_no_predictor(clip: Path) -> None:
    message = (
        r"^aesthetic: the weights in \S+ lack layers.0.bias and 9 more; name a source that has .*, or add "
        r"LAION's sac\+"
    )
    with pytest.raises(RewardError, match=message):
        AestheticScore(clip)


PREDICTOR = "sac+logos+ava1-l14-linearMSE.pth"


def test_two_predictors(original: Path, tmp_path: Path) -> None:
    file = copy_of(original, tmp_path) / PREDICTOR
    shutil.copy(file, tmp_path / "ava.pth")
    with pytest.raises(
        RewardError, match=r"^aesthetic: \S+ holds several .pth files \(ava.pth, sac\+.*; name"
    ):
        AestheticScore(tmp_path)
    images = some_images(2)  # the file itself is unambiguous
    expected = AestheticScore(original)(images, ["", ""])
    torch.testing.assert_close(load_reward("aesthetic", source=str(file))(images, ["", ""]), expected)


def test_the_predictor_of_distributed_training(original: Path, tmp_path: Path) -> None:
    file = copy_of(original, tmp_path) / PREDICTOR
    for prefix, nested in (("module.", False), ("module.", True), ("", True)):
        tensors = {f"{prefix}{name}": tensor for name, tensor in named_layers().items()}
        torch.save({"state_dict": tensors} if nested else tensors, file)
        images = some_images(2)
        torch.testing.assert_close(
            AestheticScore(tmp_path)(images, ["", ""]), AestheticScore(original)(images, ["", ""])
        )


def test_no_predictor_file(tmp_path: Path) -> None:
    with pytest.raises(
        RewardError, match=r"^aesthetic: there is no file \S+none.pth; name the file of the weig"
    ):
        AestheticScore(tmp_path / "none.pth")


def test_another_predictor(original: Path, tmp_path: Path) -> None:
    file = copy_of(original, tmp_path) / PREDICTOR
    check_incomplete("aesthetic", tmp_path, named_layers(), lambda tensors: torch.save(tensors, file))
    check_pickle("aesthetic", tmp_path, file)
    with_relus = {**named_layers(), "layers.3.bias": torch.ones(2)}
    wider = {**named_layers(), "layers.0.weight": torch.ones(1024, 768)}
    for content, message in {
        "relus": (with_relus, r"must be LAION's .*, with layers.3.bias of shape None, got \(2,\)"),
        "wider": (
            wider,
            r"must be LAION's .*, with layers.0.weight of shape \(1024, 12\), got \(1024, 768\)",
        ),
        "list": ([1], "must hold tensors by name, got list; download it again"),
        "bytes": (b"nothing", r"cannot be read as torch.save weights \(.+\); download it again"),
    }.values():
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        with pytest.raises(RewardError, match=f"^aesthetic: {re.escape(str(file))} {message}$"):
            AestheticScore(tmp_path)


@pytest.mark.parametrize("name", ["clip", "pickscore", "aesthetic"])
def test_mistakes(name: str, clip: Path, conversion: Path) -> None:
    reward = load_reward(name, source=str(conversion if name == "aesthetic" else clip))
    check_mistakes(reward, name)
