"""Planned memory of large models with the options for small cards: `python -m bench.card_memory`.

Prints a table of model x options as Markdown, from `plan_memory`, without weights. The configurations are
written by hand, after the published models. The reward's network is not counted.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from noisetilt_kernels.models.memory import plan_memory

CARDS = (24, 48, 80)
"""Memory of the cards in GiB."""

SPARE = 2.0e9
"""Bytes left free on a card: the plan does not count workspace and fragmentation."""

OPTIONS: Mapping[str, dict[str, Any]] = {
    "bfloat16": {},
    "`--offload`": {"offload": True},
    "and `--quantize int8`": {"offload": True, "quantize": "int8"},
    "and `--reward-decoder`": {"offload": True, "quantize": "int8", "reward_decoder": True},
    "the same with `nf4`": {"offload": True, "quantize": "nf4", "reward_decoder": True},
}


class Model(NamedTuple):
    """A model, its sizes to plan, and whether a tiny autoencoder fits."""

    pipeline: str
    components: dict[str, tuple[str, str, dict[str, Any]]]
    """Library, class and configuration of each network."""
    lengths: dict[str, int]
    """Maximum number of tokens of each tokenizer."""
    sizes: tuple[dict[str, int], ...]
    tiny_decoder: bool


def _text(class_name: str, config: transformers.PretrainedConfig) -> tuple[str, str, dict[str, Any]]:
    return "transformers", class_name, config.to_dict()


def _t5(class_name: str, **changes: Any) -> tuple[str, str, dict[str, Any]]:
    config_class = transformers.UMT5Config if class_name.startswith("UMT5") else transformers.T5Config
    return _text(
        class_name,
        config_class(
            d_model=4096,
            d_ff=10240,
            d_kv=64,
            num_heads=64,
            num_layers=24,
            feed_forward_proj="gated-gelu",
            **changes,
        ),
    )


def _clip(class_name: str, **config: int) -> tuple[str, str, dict[str, Any]]:
    return _text(class_name, transformers.CLIPTextConfig(**config))


_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
_QWEN3_4B = transformers.Qwen3Config(
    vocab_size=151936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)


def _vae(**changes: Any) -> tuple[str, str, dict[str, Any]]:
    """Return the VAE of FLUX.1, Z-Image and Stable Diffusion 3."""
    config = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 16,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return "diffusers", "AutoencoderKL", {**config, **changes}


def _square(*sides: int) -> tuple[dict[str, int], ...]:
    return tuple({"height": side, "width": side} for side in sides)


MODELS = {
    "FLUX.1 dev": Model(
        "FluxPipeline",
        {
            "transformer": ("diffusers", "FluxTransformer2DModel", {"guidance_embeds": True}),
            "vae": _vae(),
            "text_encoder": _clip("CLIPTextModel", **_CLIP_L),
            "text_encoder_2": _t5("T5EncoderModel"),
        },
        {"tokenizer": 77, "tokenizer_2": 512},
        _square(512, 1024),
        tiny_decoder=True,
    ),
    "Z-Image-Turbo": Model(
        "ZImagePipeline",
        {
            "transformer": ("diffusers", "ZImageTransformer2DModel", {}),
            "vae": _vae(),
            "text_encoder": _text("Qwen3Model", _QWEN3_4B),
        },
        {"tokenizer": 512},
        _square(512, 1024),
        tiny_decoder=True,
    ),
    "Stable Diffusion 3.5 large": Model(
        "StableDiffusion3Pipeline",
        {
            "transformer": (
                "diffusers",
                "SD3Transformer2DModel",
                {
                    "num_layers": 38,
                    "num_attention_heads": 38,
                    "caption_projection_dim": 2432,
                    "pos_embed_max_size": 192,
                    "qk_norm": "rms_norm",
                },
            ),
            "vae": _vae(scaling_factor=1.5305, shift_factor=0.0609),
            "text_encoder": _clip("CLIPTextModelWithProjection", projection_dim=768, **_CLIP_L),
            "text_encoder_2": _clip("CLIPTextModelWithProjection", projection_dim=1280, **_CLIP_G),
            "text_encoder_3": _t5("T5EncoderModel"),
        },
        {"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": 512},
        _square(512, 1024),
        tiny_decoder=True,
    ),
    "Qwen-Image": Model(
        "QwenImagePipeline",
        {
            "transformer": ("diffusers", "QwenImageTransformer2DModel", {}),
            "vae": ("diffusers", "AutoencoderKLQwenImage", {}),
            "text_encoder": _text(
                "Qwen2_5_VLForConditionalGeneration",
                transformers.Qwen2_5_VLConfig(
                    text_config={
                        "vocab_size": 152064,
                        "hidden_size": 3584,
                        "intermediate_size": 18944,
                        "num_hidden_layers": 28,
                        "num_attention_heads": 28,
                        "num_key_value_heads": 4,
                    }
                ),
            ),
        },
        {"tokenizer": 1024},
        _square(512, 1024),
        tiny_decoder=False,
    ),
    "Wan2.1 1.3B": Model(
        "WanPipeline",
        {
            "transformer": (
                "diffusers",
                "WanTransformer3DModel",
                {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
            ),
            "vae": ("diffusers", "AutoencoderKLWan", {}),
            "text_encoder": _t5("UMT5EncoderModel", vocab_size=256384),
        },
        {"tokenizer": 512},
        ({"height": 480, "width": 832, "num_frames": 17}, {"height": 480, "width": 832, "num_frames": 81}),
        tiny_decoder=False,
    ),
}


def write(model: Model, folder: Path) -> None:
    """Write the configuration files of a pipeline."""
    index: dict[str, Any] = {"_class_name": model.pipeline}
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    _write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": index["scheduler"][1]})
    for name, (library, class_name, config) in model.components.items():
        index[name] = [library, class_name]
        _write_json(folder / name / "config.json", {"_class_name": class_name, **config})
    for name, length in model.lengths.items():
        index[name] = ["transformers", "PreTrainedTokenizerFast"]
        _write_json(folder / name / "tokenizer_config.json", {"model_max_length": length})
    _write_json(folder / "model_index.json", index)


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


def total(folder: Path, tiny: Path | None, size: dict[str, int], options: dict[str, Any]) -> int | None:
    """Return the planned bytes, or None if the options do not apply to the model."""
    options = dict(options)
    if options.pop("reward_decoder", False):
        if tiny is None:
            return None
        options["reward_decoder"] = str(tiny)
    return plan_memory(str(folder), dtype=torch.bfloat16, **options, **size).total


def card_of(count: int) -> str:
    """Return the smallest card that holds so many bytes."""
    fitting = [card for card in CARDS if count + SPARE <= card * 2**30]
    return f"{fitting[0]} GB" if fitting else f"over {CARDS[-1]} GB"


def main() -> None:
    header = ["model", "size", *OPTIONS]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for name, model in MODELS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder, tiny = Path(scratch, "model"), Path(scratch, "tiny")
            write(model, folder)
            _write_json(tiny / "config.json", {"_class_name": "AutoencoderTiny", "latent_channels": 16})
            for size in model.sizes:
                cells = []
                for options in OPTIONS.values():
                    count = total(folder, tiny if model.tiny_decoder else None, size, options)
                    cells.append("" if count is None else f"{count / 1e9:.1f} GB: {card_of(count)}")
                extent = " x ".join(map(str, size.values()))
                print(f"| {name} | {extent} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
