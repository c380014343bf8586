"""Random FLUX pipelines of the diffusers classes, small enough to be made for every test."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

_WORDS = ("a", "cat", "dog", "red", "house", "of", "the", "runs")
SIZE = 32
"""Height and width of small images, in pixels: latents (4, 16, 16), 64 tokens."""
LENGTH = 24
"""Number of tokens of both text encoders."""


def tiny_flux(dev: bool = True, seed: int = 0, **scheduler: Any) -> FluxPipeline:
    """Make a pipeline of two blocks of width 32 and a VAE that halves both sides, float32.

    Args:
        dev: True for embedded guidance and dynamic shifting of times, like FLUX.1 dev; False for neither,
            like schnell.
        seed: seed of the weights.
        scheduler: further configuration of the scheduler.
    """
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=dev,
        axes_dims_rope=(4, 4, 8),
    )
    vae = tiny_autoencoder(**FLUX_VAE)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{**_SCHEDULERS[dev], **scheduler}),
        vae=vae,
        text_encoder=_clip().eval(),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=tiny_t5(32),
        tokenizer_2=tiny_t5_tokenizer(model_max_length=LENGTH),
        transformer=transformer.eval(),
    )


FLUX_VAE = {
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""Configuration of FLUX's autoencoder, which Z-Image uses too."""


def tiny_autoencoder(vae_class: Any = AutoencoderKL, **config: Any) -> Any:
    """Make an autoencoder of images (3, 32, 32) and latents (4, 16, 16), with further configuration."""
    vae = vae_class(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        **config,
    )
    return vae.eval()


def tiny_taesd(seed: int = 5, stages: int = 2, **config: Any) -> AutoencoderTiny:
    """Make an autoencoder like TAESD for latents (4, 16, 16), whose decoder doubles both sides.

    Args:
        seed: seed of the weights.
        stages: number of stages; each but the first doubles the sides.
        config: further configuration.
    """
    torch.manual_seed(seed)
    channels, blocks = (8,) * stages, (1,) * stages
    vae = AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
        **config,
    )
    with torch.no_grad():  # images within [0, 1], where nothing is clamped
        vae.decoder.layers[-1].weight.mul_(0.3)
        vae.decoder.layers[-1].bias.fill_(0.5)
    return vae.eval()


_SCHEDULERS = {True: {"shift": 3.0, "use_dynamic_shifting": True}, False: {"shift": 1.0}}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CLIP_VOCABULARY = ("<|startoftext|>", "<|endoftext|>", *_LETTERS, *(f"{letter}</w>" for letter in _LETTERS))


def _clip() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(_CLIP_VOCABULARY),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config)


def tiny_t5(width: int, encoder_class: Any = T5EncoderModel) -> Any:
    """Make a text encoder of one layer."""
    sizes = {"vocab_size": 64, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return encoder_class(encoder_class.config_class(d_model=width, **sizes)).eval()


def _clip_tokenizer() -> CLIPTokenizer:
    vocabulary = {token: index for index, token in enumerate(_CLIP_VOCABULARY)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=LENGTH)


def tiny_t5_tokenizer(**config: Any) -> T5Tokenizer:
    """Make a tokenizer of whole words, with further configuration."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -2.0) for word in _WORDS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, **config)
