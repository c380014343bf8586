"""Small Qwen2-VL and Qwen2.5-VL models of the real classes with random weights, in folders.

The folders have the formats of Hugging Face and of VideoReward.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

SIDE = 4
"""Side of a patch in pixels; a token has 8 x 8 pixels."""
LEAST, MOST = 8 * 8 * 4, 8 * 8 * 40
"""Smallest and largest number of pixels of a resized image."""

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

TEMPLATE = (
    "{% for message in messages %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Chat template with the result of the real one for a single message."""

WIDTH = 24


def make_tokenizer(template: str | None = TEMPLATE) -> Qwen2Tokenizer:
    """Return a tokenizer with a token for each letter, and one for "Yes"."""
    words = [*sorted(ByteLevel.alphabet()), "Ye", "Yes", *SPECIAL]
    tokenizer = Qwen2Tokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[("Y", "e"), ("Ye", "s")]
    )
    tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def make_image_processor() -> Qwen2VLImageProcessorPil:
    """Return the real image processor with smaller patches and images."""
    # not min_pixels and max_pixels: transformers 5.6 keeps them for all later processors
    return Qwen2VLImageProcessorPil(patch_size=SIDE, size={"shortest_edge": LEAST, "longest_edge": MOST})


def make_config(config_class: Any, words: int) -> Any:
    """Return a configuration with heads of width 12, which three dimensions of positions need."""
    number = make_tokenizer().convert_tokens_to_ids
    text = {
        "vocab_size": words,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 2, 2]},
        "bos_token_id": number("<|endoftext|>"),
        "eos_token_id": number("<|im_end|>"),
    }
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": SIDE}
    if config_class is Qwen2VLConfig:
        vision |= {"embed_dim": 16, "hidden_size": WIDTH}
    else:
        vision |= {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": WIDTH, "window_size": 16}
        vision |= {"fullatt_block_indexes": [1]}
    return config_class(
        text_config=text,
        vision_config=vision,
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )


def widen(model: nn.Module) -> None:
    """Set random weights that are large enough for different images and prompts to get different values."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" not in name and "ln_q" not in name:
                parameter.normal_(std=0.1)
            elif parameter.ndim > 1:
                parameter.normal_(
                    std=0.6 / (1 if "embed_tokens" in name else parameter[0].numel() ** 0.5 / 2)
                )


def make_vqa_model(seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """Return a Qwen2.5-VL."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(make_config(Qwen2_5_VLConfig, len(make_tokenizer()) + 3))
    widen(model)
    return model.eval()


def save_vqa(folder: Path, model: Qwen2_5_VLForConditionalGeneration) -> Path:
    """Save model, tokenizer and image processor, and return the folder."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    make_image_processor().save_pretrained(folder)
    return folder


# ---- VideoReward ----

MARKS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")

SETTINGS: Mapping[str, Any] = {
    "data_config": {
        "fps": 2.0,
        "max_frame_pixels": 8 * 8 * 6,
        "num_frames": None,
        "prompt_template_type": "detailed_special",
        "sample_type": "uniform",
    },
    "model_config": {"output_dim": 1, "use_special_tokens": True, "reward_token": "special"},
    "peft_lora_config": {"lora_enable": True, "lora_r": 2, "lora_alpha": 4, "use_rslora": False},
    "inference_config": {
        "VQ_mean": 0.3,
        "VQ_std": 0.5,
        "MQ_mean": -0.2,
        "MQ_std": 2.0,
        "TA_mean": 0.1,
        "TA_std": 1.25,
    },
}


def make_marked_tokenizer() -> Qwen2Tokenizer:
    """Return the tokenizer with the marks of VideoReward."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(list(MARKS), special_tokens=True)
    return tokenizer


def make_base_model(seed: int = 0) -> Qwen2VLForConditionalGeneration:
    """Return a Qwen2-VL with more rows in its embedding than tokens, like the real model."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(make_config(Qwen2VLConfig, len(make_marked_tokenizer()) + 5))
    widen(model)
    return model.eval()


def old_name(name: str) -> str:
    """Return a tensor's name in models of transformers before 4.52, with the prefix of PEFT."""
    name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
    return f"base_model.model.{name}"


def make_lora(model: Qwen2VLForConditionalGeneration, rank: int = 2) -> dict[str, Tensor]:
    """Return the LoRA matrices A and B of the language model's linear layers, by the names of the layers."""
    torch.manual_seed(9)
    factors = {}
    for name, module in model.model.language_model.named_modules(prefix="model.language_model"):
        if isinstance(module, nn.Linear):
            factors[f"{name}.lora_A"] = torch.randn(rank, module.in_features)
            factors[f"{name}.lora_B"] = 0.1 * torch.randn(module.out_features, rank)
    return factors


def tuned_weights(model: Qwen2VLForConditionalGeneration, head_rows: int) -> dict[str, Tensor]:
    """Return the weights trained without LoRA: vision model, token embeddings with the marks, and head."""
    torch.manual_seed(7)
    words = model.model.language_model.embed_tokens.weight[: len(make_marked_tokenizer())]
    weights = {
        f"model.visual.{name}": 1.1 * tensor for name, tensor in model.model.visual.state_dict().items()
    }
    weights["model.language_model.embed_tokens.weight"] = words + 0.1 * torch.randn(words.shape)
    weights["rm_head.weight"] = torch.randn(head_rows, WIDTH)
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def save_base(folder: Path) -> Path:
    """Save the base model of VideoReward with its tokenizer, and return the folder."""
    make_base_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_videoreward(
    folder: Path, full: bool = True, head_rows: int = 1, settings: Mapping[str, Any] = SETTINGS
) -> Path:
    """Save a checkpoint in the published format, or as LoRA adapter and other trained weights."""
    model = make_base_model()
    lora, tuned = make_lora(model), tuned_weights(model, head_rows)
    (folder / "model_config.json").write_text(json.dumps(settings))
    checkpoint = folder / "checkpoint-12"
    checkpoint.mkdir()
    make_marked_tokenizer().save_pretrained(checkpoint / "tokenizer")
    (folder / "checkpoint-7").mkdir()  # an older checkpoint, empty
    if not full:
        adapter = {old_name(f"{name}.weight"): tensor for name, tensor in lora.items()}
        save_file(adapter, checkpoint / "adapter_model.safetensors")
        torch.save(
            {old_name(name): tensor for name, tensor in tuned.items()}, checkpoint / "non_lora_state_dict.pth"
        )
        return folder
    state = {}
    for name, tensor in {**model.state_dict(), **tuned}.items():
        layer = name.removesuffix(".weight").removesuffix(".bias")
        state[old_name(name.replace(layer, f"{layer}.base_layer") if f"{layer}.lora_A" in lora else name)] = (
            tensor
        )
    for name, tensor in lora.items():
        state[old_name(f"{name}.default.weight")] = tensor
    torch.save(state, checkpoint / "model.pth")
    return folder


def merged_model(head_rows: int = 1) -> tuple[Qwen2VLForConditionalGeneration, Tensor]:
    """Return the model that the checkpoints describe, with LoRA's 4 / 2 B A merged by hand, and the head."""
    model = make_base_model()
    tuned = tuned_weights(model, head_rows)
    model.resize_token_embeddings(len(make_marked_tokenizer()))
    head = tuned.pop("rm_head.weight")
    state = {**model.state_dict(), **tuned}
    lora = make_lora(model)
    for name in [name for name in lora if name.endswith("lora_A")]:
        layer = name.removesuffix(".lora_A")
        state[f"{layer}.weight"] = state[f"{layer}.weight"] + 2 * lora[f"{layer}.lora_B"] @ lora[name]
    model.load_state_dict(state)
    return model.eval(), head


# ---- HPSv3 ----

HPSV3_MARK = "<|Reward|>"


def make_hpsv3_tokenizer() -> Qwen2Tokenizer:
    """Return the tokenizer with the mark of HPSv3."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([HPSV3_MARK], special_tokens=True)
    return tokenizer


def make_hpsv3(seed: int = 0) -> tuple[Qwen2VLForConditionalGeneration, nn.Sequential]:
    """Return the model, with as many tokens as its tokenizer, and the head with its dropout layer."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(make_config(Qwen2VLConfig, len(make_hpsv3_tokenizer())))
    widen(model)
    head = nn.Sequential(
        nn.Linear(WIDTH, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    return model.eval(), head.eval()


def hpsv3_tensors() -> dict[str, Tensor]:
    """Return the tensors by the published names, those of transformers 4.45."""
    model, head = make_hpsv3()
    tensors = {old_name(name).removeprefix("base_model.model."): t for name, t in model.state_dict().items()}
    tensors |= {f"rm_head.{name}": tensor for name, tensor in head.state_dict().items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def save_hpsv3(folder: Path) -> Path:
    """Save the published file and the configuration and tokenizer of the base model; return the folder."""
    save_file(hpsv3_tensors(), folder / "HPSv3.safetensors")
    make_config(Qwen2VLConfig, len(make_tokenizer()) + 5).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
