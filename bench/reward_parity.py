"""Comparison of rewards with their published packages, with small random weights in the published formats.

    python -m bench.reward_parity
    python -m bench.reward_parity --old FOLDER

The same weights are loaded by both, and images have the size of the model's input and values of 8 bits, so
that nothing is resized or rounded. The table has the largest differences of the values and of the gradients,
each divided by the largest one. The packages are not dependencies of this project: rows of those that cannot
be imported say so. Needs the folder tests/helpers.

ImageReward, HPSv3 and VideoReward need an old transformers, so their published code runs in a second process
(`bench.published_rewards`) with the packages in FOLDER:

    pip install --no-deps --target FOLDER transformers==4.45.2 tokenizers==0.20.3 huggingface-hub==0.26.5 \
        accelerate==0.34.2 peft==0.13.2 image-reward==1.5 timm==0.6.13 fairscale==0.4.13 hpsv3==1.0.0 \
        omegaconf==2.3.0 antlr4-python3-runtime==4.9.3
    git clone https://github.com/KwaiVGI/VideoAlign FOLDER/VideoAlign
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisetilt_kernels.rewards import load_reward

from .published_t2icount import t2icount

ROOT = Path(__file__).parents[1]
PROMPTS = ["a cat", "two red boats", "a lighthouse"]

Score = Callable[[Tensor], Tensor]
"""Scores (B,) of the published code, with gradient, for images (B, 3, H, W) or videos in [0, 1]."""

Case = tuple[Score, tuple[int, ...]]
"""Score, and the size of an image H, W or of a video F, H, W."""


def normalized(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return images normalized by the mean and standard deviation of red, green and blue."""
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def aesthetic(folder: Path) -> Case:
    """Save the weights of the package simple-aesthetics-predictor and return its score and the image size."""
    import tiny_clip
    from aesthetics_predictor import AestheticsPredictorV2Linear
    from transformers import CLIPVisionConfig

    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(**layers, image_size=32, patch_size=8, projection_dim=12)
    model = randomized(AestheticsPredictorV2Linear(config))
    model.save_pretrained(folder)
    tiny_clip.make_image_processor().save_pretrained(folder)
    return lambda images: model(normalized(images, *CLIP)).logits[:, 0], (32, 32)


def aesthetic_v2_5(folder: Path) -> Case:
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
    return lambda images: model(normalized(images, *HALF)).logits[:, 0], (36, 36)


def hpsv2(folder: Path) -> Case:
    """Save the weights of the package hpsv2 and return its score and the image size."""
    from hpsv2.src.open_clip.model import CLIP as Model
    from hpsv2.src.open_clip.model import CLIPTextCfg, CLIPVisionCfg

    return open_clip_score(folder, Model, CLIPVisionCfg, CLIPTextCfg)


def hpsv2_open_clip(folder: Path) -> Case:
    """Save the weights of the package open_clip_torch and return its score and the image size."""
    from open_clip.model import CLIP as Model
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    return open_clip_score(folder, Model, CLIPVisionCfg, CLIPTextCfg)


def open_clip_score(folder: Path, model_class: Any, vision: Any, text: Any) -> Case:
    """Save open_clip's model with the head widths of ViT-H-14; return the cosine and the image size."""
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

    return score, (32, 32)


def mps(folder: Path) -> Case:
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

    return score, (32, 32)


def in_second_process(name: str, size: tuple[int, ...], packages: Path, folder: Path) -> Case:
    """Return the score of the published code that needs the old packages, which also saves its weights."""

    def score(images: Tensor) -> Tensor:
        torch.save(images.detach(), folder / "images.pt")
        path = os.pathsep.join(map(str, (packages, packages / "VideoAlign", ROOT)))
        command = [sys.executable, "-m", "bench.published_rewards", name, str(folder)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
        if done.returncode:
            raise ImportError((done.stderr.splitlines() or ["no message"])[-1])
        values, gradient = torch.load(folder / "published.pt")
        # a linear function with these values and this gradient
        return values + (gradient * (images - images.detach())).flatten(1).sum(dim=1)

    return score, size


def cases(old: Path | None) -> list[tuple[str, str, Callable[[Path], Case]]]:
    """Return name of the reward, name of the package, and builder of the score, of each row.

    Args:
        old: folder of the packages that need an old transformers, or None.
    """
    rows: list[tuple[str, str, Callable[[Path], Case]]] = [
        ("aesthetic", "simple-aesthetics-predictor", aesthetic),
        ("aesthetic-v2.5", "aesthetic-predictor-v2-5", aesthetic_v2_5),
        ("hpsv2", "hpsv2", hpsv2),
        ("hpsv2", "open_clip_torch", hpsv2_open_clip),
        ("mps", "imscore", mps),
        ("count:3 boats", "T2ICount", t2icount),
    ]
    if old is not None:
        # HPSv3 takes 256 tokens of 28 x 28 pixels; a frame of VideoReward 128 to 256
        for name, package, size in [
            ("hpsv3", "hpsv3", (448, 448)),
            ("imagereward", "image-reward", (224, 224)),
            ("videoreward", "VideoAlign", (9, 308, 364)),
        ]:
            rows.append((name, package, partial(in_second_process, name, size, old.absolute())))
    return rows


def randomized(model: Any, size: float = 0.1) -> Any:
    """Add noise to all weights, so that each changes the result, and return the model for inference."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit_scale" not in name:
                parameter.add_(size * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def compare(name: str, build: Callable[[Path], Case]) -> str:
    """Return the cells of a row: differences of values and gradients, and deviation of the values."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        score, size = build(Path(folder))
        noise = torch.rand(3, 3, *[8] * len(size), generator=torch.Generator().manual_seed(1))
        mode = "bilinear" if len(size) == 2 else "trilinear"
        images = torch.nn.functional.interpolate(noise, size=size, mode=mode).mul(255).round().div(255)
        published = score(images.requires_grad_())
        weights = Path(folder) / "weights"  # of the second process
        ours = load_reward(name, source=str(weights if weights.is_dir() else folder))(images, PROMPTS)
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
    parser = argparse.ArgumentParser(description="Comparison of rewards with their published packages.")
    parser.add_argument("--old", type=Path, metavar="FOLDER", help="packages of the second process")
    arguments = parser.parse_args()
    sys.path.append(str(ROOT / "tests" / "helpers"))
    print("| reward | package | largest difference of values | of gradients | deviation of values |")
    print("|---|---|---|---|---|")
    for name, package, build in cases(arguments.old):
        try:
            cells = compare(name, build)
        except (ImportError, OSError) as error:  # the wheel of hpsv2 lacks a file
            cells = f"not compared: {str(error).splitlines()[0]} | | "
        print(f"| `{name}` | {package} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
