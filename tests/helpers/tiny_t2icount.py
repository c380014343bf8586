"""A small T2ICount with random weights, in the published format: networks of the real classes."""

from pathlib import Path
from typing import Any

import tiny_clip
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.vae import Encoder
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from noisetilt_kernels.rewards.counting.t2icount_decoder import Decoder
from noisetilt_kernels.rewards.counting.t2icount_names import encoder_name, unet_name

FILE = "best_model_paper.pth"
LEVELS = (32, 32, 64, 64)
"""Channels of the levels of the U-Net."""
TEXT_WIDTH = 64


def make_parts(seed: int = 0) -> dict[str, Any]:
    """Return the networks of the model by name.

    All random weights matter, and they are small enough for rounding errors not to grow through the layers.
    """
    torch.manual_seed(seed)
    end = len(tiny_clip.make_tokenizer()) - 1
    layers = {"hidden_size": TEXT_WIDTH, "intermediate_size": 32, "num_hidden_layers": 2}
    tokens = {"vocab_size": end + 1, "eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end}
    parts: dict[str, Any] = {
        "text": CLIPTextModel(CLIPTextConfig(**layers, **tokens, num_attention_heads=1)),
        "encoder": Encoder(3, 4, ("DownEncoderBlock2D",) * 4, (32, 32, 64, 64)),
        "to_latents": nn.Conv2d(8, 8, 1),
        "unet": UNet2DConditionModel(block_out_channels=LEVELS, cross_attention_dim=TEXT_WIDTH),
        "decoder": Decoder(LEVELS, 16, TEXT_WIDTH),
    }
    with torch.no_grad():
        for part in parts.values():
            for parameter in part.eval().requires_grad_(False).parameters():
                parameter.add_(0.03 * torch.randn_like(parameter))
        parts["text"].get_input_embeddings().weight.mul_(10)
    return parts


def published(parts: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of the model by their published names and in their published shapes."""
    tensors = {f"vae.quant_conv.{name}": t for name, t in parts["to_latents"].state_dict().items()}
    for name, tensor in parts["text"].state_dict().items():
        tensors[f"clip.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    tensors["clip.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    for name, tensor in parts["encoder"].state_dict().items():
        is_attention = "attentions" in name and tensor.ndim == 2  # published as convolutions
        tensors[encoder_name(name)] = tensor[:, :, None, None] if is_attention else tensor
    tensors |= {unet_name(name): tensor for name, tensor in parts["unet"].state_dict().items()}
    return tensors | {f"decoder.{name}": tensor for name, tensor in parts["decoder"].state_dict().items()}


def save_t2icount(folder: Path, parts: dict[str, Any] | None = None) -> Path:
    """Save the published file and the tokenizer, and return the folder."""
    torch.save(published(parts or make_parts()), folder / FILE)
    tiny_clip.make_tokenizer().save_pretrained(folder)
    return folder
