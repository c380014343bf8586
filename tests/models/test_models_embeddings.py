"""Embeddings of prompts that were computed earlier, for pipelines without text encoders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_checks import noise, steered
from tiny_flux import LENGTH, tiny_flux
from tiny_flux import SIZE as FLUX_SIZE
from tiny_ltx import SIZE as LTX_SIZE
from tiny_ltx import tiny_ltx
from tiny_models import (
    SIZE,
    tiny_flux2,
    tiny_flux2_klein,
    tiny_qwen_image,
    tiny_sana_sprint,
    tiny_sd3,
    tiny_sd_turbo,
    tiny_sdxl_turbo,
    tiny_z_image,
)
from tiny_wan import SIZE as WAN_SIZE
from tiny_wan import tiny_wan
from torch import Tensor

from noisetilt_kernels.models import FluxFlow, ZImageFlow, family_of, load_pipeline

Maker = Callable[[], Any]
FAMILIES: dict[str, tuple[Maker, dict[str, Any]]] = {
    "flux": (tiny_flux, {"height": FLUX_SIZE, "width": FLUX_SIZE, "max_sequence_length": LENGTH}),
    "flux guided": (
        tiny_flux,
        {"height": FLUX_SIZE, "width": FLUX_SIZE, "true_cfg_scale": 2.0, "negative_prompt": "the house"},
    ),
    "wan": (tiny_wan, {**WAN_SIZE, "negative_prompt": "the house"}),
    "sd": (tiny_sd_turbo, SIZE),
    "sdxl": (tiny_sdxl_turbo, SIZE),
    "sana": (tiny_sana_sprint, SIZE),
    "z-image": (tiny_z_image, SIZE),
    "qwen": (tiny_qwen_image, SIZE),
    "sd3": (tiny_sd3, SIZE),
    "flux2": (tiny_flux2, SIZE),
    "klein": (tiny_flux2_klein, SIZE),
    "ltx": (tiny_ltx, LTX_SIZE),
}
PROMPTS = ["a red cat", "the dog"]


def output(model: Any) -> Tensor:
    """Output of the denoiser for fixed noise."""
    x = noise(model.shape, 2)
    with torch.no_grad():
        return model.velocity(x, 0.7, PROMPTS) if hasattr(model, "velocity") else model.denoised(x, PROMPTS)


def adapted(pipe: Any, options: dict[str, Any]) -> Any:
    family = family_of(pipe)
    adapter: Any = family.flow or family.one_step
    return adapter(pipe, **options)


def test_embeddings_keep_no_graph_of_trainable_encoders() -> None:
    model = adapted(tiny_sd3(), SIZE)
    model.pipe.text_encoder.requires_grad_(True)
    tensors = [tensor for encoded in model.embeddings("a red cat").values() for tensor in encoded.values()]
    assert tensors and not any(tensor.requires_grad for tensor in tensors)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_without_text_encoders(name: str, tmp_path: Path) -> None:
    make, options = FAMILIES[name]
    pipe = make()
    pipe.save_pretrained(tmp_path / "model")
    model = adapted(pipe, options)
    embeddings = model.embeddings(PROMPTS)
    negative = {
        "wan": ["the house"],
        "flux guided": ["the house"],
        "z-image": [""],
        "qwen": [" "],
        "sd3": [""],
        "klein": [""],
        "ltx": [""],
    }
    assert list(embeddings) == PROMPTS + negative.get(name, [])
    torch.save(embeddings, tmp_path / "embeddings.pt")
    alone = load_pipeline(tmp_path / "model", dtype=torch.float32, device="cpu", text_encoders=False)
    assert not [key for key, one in alone.components.items() if one is not None and "text_encoder" in key]
    assert not [key for key, one in alone.components.items() if one is not None and "tokenizer" in key]
    without = adapted(alone, options)
    with pytest.raises(ValueError, match=r"pipe has no tokenizer, .*add_embeddings"):
        output(without)
    without.add_embeddings(torch.load(tmp_path / "embeddings.pt", weights_only=True))
    assert torch.equal(output(without), output(model))
    assert torch.equal(steered(without, PROMPTS), steered(model, PROMPTS))


def test_tokens_and_mask_have_the_same_length() -> None:
    model = adapted(tiny_sana_sprint(), SIZE)
    tensors = {"tokens": torch.zeros(1, 4, 16), "mask": torch.ones(1, 5, dtype=torch.int64)}
    with pytest.raises(ValueError, match="of 'a' must have the same number of tokens, got 4 and 5"):
        model.add_embeddings({"a": tensors})


def test_text_encoders_of_another_model() -> None:
    pipe = tiny_sd_turbo()
    pipe.text_encoder = tiny_flux().text_encoder  # 32 channels instead of 16
    pipe.tokenizer = tiny_flux().tokenizer
    model = adapted(pipe, SIZE)
    with pytest.raises(ValueError) as caught:
        model.encode("a")
    assert str(caught.value) == (
        "SDTurbo: text encoders of pipe must belong to its unet: tokens of 'a' must be floating-point of "
        "shape (1, tokens, 16), got torch.float32 of shape (1, 24, 32)"
    )


def test_embeddings_of_the_pipeline_itself() -> None:
    """Other code computes embeddings with the pipeline's encode_prompt."""
    pipe = tiny_flux()
    model = FluxFlow(pipe, height=FLUX_SIZE, width=FLUX_SIZE, max_sequence_length=LENGTH)
    expected = output(model)
    tokens, pooled, _ = pipe.encode_prompt(PROMPTS, prompt_2=None, max_sequence_length=LENGTH)
    pipe.text_encoder = pipe.text_encoder_2 = None
    model = FluxFlow(pipe, height=FLUX_SIZE, width=FLUX_SIZE)
    model.add_embeddings(
        {
            prompt: {"tokens": tokens[index, None], "pooled": pooled[index, None]}
            for index, prompt in enumerate(PROMPTS)
        }
    )
    torch.testing.assert_close(output(model), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "embeddings of 'a' must be named tokens, pooled, got none"),
        (
            {"tokens": torch.zeros(1, 4, 32)},
            "embeddings of 'a' must be named tokens, pooled, got tokens",
        ),
        (
            {"tokens": torch.zeros(1, 4, 31), "pooled": torch.zeros(1, 32)},
            "tokens of 'a' must be floating-point of shape (1, tokens, 32), "
            "got torch.float32 of shape (1, 4, 31)",
        ),
        (
            {"tokens": torch.zeros(4, 32), "pooled": torch.zeros(1, 32)},
            "tokens of 'a' must be floating-point of shape (1, tokens, 32), "
            "got torch.float32 of shape (4, 32)",
        ),
        (
            {"tokens": torch.zeros(1, 0, 32), "pooled": torch.zeros(1, 32)},
            "tokens of 'a' must be floating-point of shape (1, tokens, 32), "
            "got torch.float32 of shape (1, 0, 32)",
        ),
        (
            {"tokens": torch.zeros(1, 4, 32, dtype=torch.int64), "pooled": torch.zeros(1, 32)},
            "tokens of 'a' must be floating-point of shape (1, tokens, 32), "
            "got torch.int64 of shape (1, 4, 32)",
        ),
        (
            {"tokens": torch.zeros(1, 4, 32), "pooled": torch.zeros(1, 16)},
            "pooled of 'a' must be floating-point of shape (1, 32), got torch.float32 of shape (1, 16)",
        ),
    ],
)
def test_embeddings_of_another_model(tensors: dict[str, Tensor], message: str) -> None:
    model = FluxFlow(tiny_flux(), height=FLUX_SIZE, width=FLUX_SIZE)
    with pytest.raises(ValueError) as caught:
        model.add_embeddings({"a": tensors})
    assert str(caught.value) == f"FluxFlow.add_embeddings: {message}"


def test_prompts_of_one_batch_must_have_the_same_length() -> None:
    model = FluxFlow(tiny_flux(), height=FLUX_SIZE, width=FLUX_SIZE)
    for prompt, length in zip(PROMPTS, (4, 6), strict=True):
        model.add_embeddings({prompt: {"tokens": torch.zeros(1, length, 32), "pooled": torch.zeros(1, 32)}})
    with pytest.raises(ValueError, match=r"together must have the same shape, got tokens of shapes \(1, 4"):
        output(model)
    free = ZImageFlow(tiny_z_image(), **SIZE, guidance_scale=0)
    for prompt, length in zip(PROMPTS, (4, 6), strict=True):
        free.add_embeddings({prompt: {"tokens": torch.zeros(1, length, 16)}})
    assert output(free).isfinite().all()
