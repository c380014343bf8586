"""Comparison of rewards with their published packages, with small random weights in the published formats.

    python -m bench.reward_parity

The same weights are loaded by both, and images have the size of the model's input, so that nothing is
resized. The table has the largest differences of the values and of the gradients, each divided by the largest
one. The packages are not dependencies of this project: rows of those that cannot be imported say so. Needs
the folder tests/helpers.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisetilt_kernels.rewards import load_reward

from .published_t2icount import t2icount

ROOT = Path(__file__).parents[1]
PROMPTS = ["a cat", "two red boats", "a lighthouse"]

Score = Callable[[Tensor], Tensor]
"""Scores (B,) of the published code, with gradient, for images (B, 3, H, W) in [0, 1]."""


def normalized(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return images normalized by the mean and standard deviation of red, green and blue."""
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def aesthetic(folder: Path) -> tuple[Score, int]:
    """Save the weights of the package simple-aesthetics-predictor and return its score and the image size."""
    import tiny_clip
    from aesthetics_predictor import AestheticsPredictorV2Linear
    from transformers import CLIPVisionConfig

    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(**layers, image_size=32, patch_size=8, projection_dim=12)
    model = randomized(AestheticsPredictorV2Linear(config))
    model.save_pretrained(folder)
    tiny_clip.make_image_processor().save_pretrained(folder)
    return lambda images: model(normalized(images, *CLIP)).logits[:, 0], 32


def aesthetic_v2_5(folder: Path) -> tuple[Score, int]:
    """Save the weights for the package aesthetic-predictor-v2-5 and return its score and the image size."""
    from aesthetic_predictor_v2_5 import AestheticPredictorV2_5Head, convert_v2_5_from_siglip
    from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

    layers = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipVisionConfig(**layers, image_size=36, patch_size=6)
    randomized(SiglipVisionModel(config)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 36, "width": 36}).save_pretrained(folder)
    file = folder / "aesthetic_predictor_v2_5.pth"
    torch.save(randomized(AestheticPredictorV2_5Head(config)).state_dict(), file)
    model, _ = convert_v2_5_from_siglip(str(file), str(folder))
    return lambda images: model(normalized(images, *HALF)).logits[:, 0], 36


def hpsv2(folder: Path) -> tuple[Score, int]:
    """Save the weights of the package hpsv2 and return its score and the image size."""
    from hpsv2.src.open_clip.model import CLIP as Model
    from hpsv2.src.open_clip.model import CLIPTextCfg, CLIPVisionCfg

    return open_clip_score(folder, Model, CLIPVisionCfg, CLIPTextCfg)


def hpsv2_open_clip(folder: Path) -> tuple[Score, int]:
    """Save the weights of the package open_clip_torch and return its score and the image size."""
    from open_clip.model import CLIP as Model
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    return open_clip_score(folder, Model, CLIPVisionCfg, CLIPTextCfg)


def open_clip_score(folder: Path, model_class: Any, vision: Any, text: Any) -> tuple[Score, int]:
    """Save the weights of open_clip's model with the head widths of ViT-H-14; return the cosine and 32."""
    import tiny_clip

    tokenizer = tiny_clip.make_tokenizer()
    model = randomized(
        model_class(
            12,
            vision(layers=2, width=160, head_width=80, patch_size=8, image_size=32),
            text(context_length=77, vocab_size=len(tokenizer), width=128, heads=2, layers=2),
        )
    )
    tokenizer.save_pretrained(folder)
    torch.save({"state_dict": model.state_dict()}, folder / "HPS_v2.1_compressed.pt")
    tokens = torch.zeros(len(PROMPTS), 77, dtype=torch.int64)  # open_clip pads with 0
    for row, prompt in zip(tokens, PROMPTS, strict=True):
        numbers = torch.tensor(tokenizer(prompt).input_ids)
        row[: len(numbers)] = numbers

    def score(images: Tensor) -> Tensor:
        seen = model.encode_image(normalized(images, *CLIP), normalize=True)
        return (seen * model.encode_text(tokens, normalize=True)).sum(dim=1)

    return score, 32


def mps(folder: Path) -> tuple[Score, int]:
    """Save the weights of the package imscore; return its score, one image at a time, and the image size."""
    import tiny_clip
    from imscore.mps.cross import CrossModel
    from imscore.mps.model import CLIPModel as Model
    from imscore.mps.model import XCLIPModel
    from transformers import CLIPConfig

    from noisetilt_kernels.rewards.clip.mps import OVERALL

    layers = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
    tokens = {"vocab_size": 54, "eos_token_id": 53, "bos_token_id": 52}
    config = CLIPConfig(
        text_config={**layers, **tokens, "hidden_size": 128},
        vision_config={**layers, "hidden_size": 160, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    model = Model.__new__(Model)  # its constructor downloads the real CLIP and has fixed sizes
    torch.nn.Module.__init__(model)
    model.model = XCLIPModel(config)
    model.cross_model = CrossModel(dim=32, layer_num=2, heads=2)
    randomized(model)
    tokenizer = tiny_clip.make_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "MPS_overall_checkpoint.pth")

    def numbers(text: str) -> Tensor:
        padded = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return padded.input_ids

    def score(images: Tensor) -> Tensor:
        scores = []
        for image, prompt in zip(images, PROMPTS, strict=True):
            text, eos = model.get_text_features(numbers(prompt))
            condition, _ = model.get_text_features(numbers(OVERALL))
            similarity = torch.einsum("b i d, b j d -> b j i", text, condition).max(dim=1, keepdim=True)[0]
            mask = torch.where(similarity / similarity.max() > 0.01, 0, float("-inf"))
            seen = model.get_image_features(normalized(image[None], *CLIP))
            read = model.cross_model(seen, text, mask.repeat(1, seen.shape[1], 1))[:, 0]
            scores.append(model.logit_scale.exp() * torch.cosine_similarity(read, eos, dim=-1)[0])
        return torch.stack(scores)

    return score, 32


CASES: list[tuple[str, str, Callable[[Path], tuple[Score, int]]]] = [
    ("aesthetic", "simple-aesthetics-predictor", aesthetic),
    ("aesthetic-v2.5", "aesthetic-predictor-v2-5", aesthetic_v2_5),
    ("hpsv2", "hpsv2", hpsv2),
    ("hpsv2", "open_clip_torch", hpsv2_open_clip),
    ("mps", "imscore", mps),
    ("count:3 boats", "T2ICount", t2icount),
]


def randomized(model: Any) -> Any:
    """Add noise to all weights, so that each changes the result, and return the model for inference."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit_scale" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def compare(name: str, build: Callable[[Path], tuple[Score, int]]) -> str:
    """Return the cells of a row: differences of values and gradients, and deviation of the values."""
    with tempfile.TemporaryDirectory() as folder:
        score, side = build(Path(folder))
        reward = load_reward(name, source=folder)
        noise = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        images = torch.nn.functional.interpolate(noise, size=(side, side), mode="bilinear").requires_grad_()
        published, ours = score(images), reward(images, PROMPTS)
        largest = published.abs().max()
        value, spread = (ours - published).abs().max() / largest, published.std() / largest
        (our_gradient,) = torch.autograd.grad(ours.sum(), images)
        try:
            (gradient,) = torch.autograd.grad(published.sum(), images)
        except RuntimeError:  # a tensor that the gradient needs was changed in place
            difference = "the package has none"
        else:
            difference = f"{float((our_gradient - gradient).abs().max() / gradient.abs().max()):.1e}"
    return f"{float(value):.1e} | {difference} | {float(spread):.1e}"


def main() -> None:
    """Print the table."""
    sys.path.append(str(ROOT / "tests" / "helpers"))
    print("| reward | package | largest difference of values | of gradients | deviation of values |")
    print("|---|---|---|---|---|")
    for name, package, build in CASES:
        try:
            cells = compare(name, build)
        except (ImportError, OSError) as error:  # the wheel of hpsv2 lacks a file
            cells = f"not compared: {str(error).splitlines()[0]} | | "
        print(f"| `{name}` | {package} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
