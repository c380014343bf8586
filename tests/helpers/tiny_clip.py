"""CLIP models of the real classes with random weights, small, in folders as Hugging Face has them."""

from pathlib import Path

import torch
from image_processors import CLIPImageProcessorPil
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

IMAGE_SIZE = 32
WIDTH = 12
"""Of the embeddings."""


def make_tokenizer() -> CLIPTokenizer:
    """One that spells: each letter is a token, at the end of a word another one."""
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    tokens = [*letters, "<|startoftext|>", "<|endoftext|>"]  # the last is the largest, as in the real one
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77
    )


def make_image_processor() -> CLIPImageProcessorPil:
    """The real one, but for small images."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


def make_model(seed: int = 0, logit_scale: float = 4.6052) -> CLIPModel:
    """With weights large enough that images and prompts make a difference."""
    torch.manual_seed(seed)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = len(make_tokenizer()) - 1
    tokens = {"vocab_size": end + 1, "eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end}
    config = CLIPConfig(
        text_config={**layers, **tokens, "projection_dim": WIDTH},
        vision_config={**layers, "image_size": IMAGE_SIZE, "patch_size": 8, "projection_dim": WIDTH},
        projection_dim=WIDTH,
        logit_scale_init_value=logit_scale,
    )
    model = CLIPModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:
                parameter.mul_(2)
    return model.eval()


def save_clip(folder: Path, model: CLIPModel) -> Path:
    """Model, tokenizer and image processor."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    make_image_processor().save_pretrained(folder)
    return folder
