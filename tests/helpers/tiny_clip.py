"""Small CLIP models of the real classes with random weights, in folders in the format of Hugging Face."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

IMAGE_SIZE = 32
WIDTH = 12
"""Width of the embeddings."""


def make_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer with a token for each letter, and one for each letter that ends a word."""
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    # the last number is the end of the text, as in the real tokenizer
    tokens = [*letters, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77
    )


def make_image_processor() -> CLIPImageProcessorPil:
    """Return the real image processor with a smaller image size."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


def make_model(seed: int = 0, logit_scale: float = 4.6052) -> CLIPModel:
    """Return a model with weights so large that different images and prompts get different values."""
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
    """Save model, tokenizer and image processor, and return the folder."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    make_image_processor().save_pretrained(folder)
    return folder
