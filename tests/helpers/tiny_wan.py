"""Random Wan pipelines of the diffusers classes, small enough to be made for every test."""

from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tiny_flux import tiny_t5, tiny_t5_tokenizer
from transformers import UMT5EncoderModel

SIZE = {"height": 32, "width": 48, "num_frames": 9}
"""Size of small videos: latents (4, 3, 4, 6)."""


def tiny_wan(seed: int = 0, scheduler: Any = None) -> WanPipeline:
    """Make a pipeline of two blocks of width 24, float32.

    Its VAE makes four frames, of eight times the sides, of each latent frame.

    Args:
        seed: seed of the weights.
        scheduler: scheduler of the pipeline; None is UniPC with the configuration of Wan2.1 for 480p.
    """
    torch.manual_seed(seed)
    transformer, vae = _transformer(), _vae()
    return WanPipeline(
        tokenizer=tiny_t5_tokenizer(),
        text_encoder=tiny_t5(32, UMT5EncoderModel),
        vae=vae,
        scheduler=scheduler
        or UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=transformer,
    )


def tiny_wan_a14b(boundary_ratio: float = 0.875, scheduler: Any = None) -> WanPipeline:
    """Make a pipeline like Wan2.2 A14B, with a second transformer."""
    parts = tiny_wan(scheduler=scheduler).components
    return WanPipeline(**{**parts, "transformer_2": _transformer()}, boundary_ratio=boundary_ratio)


def tiny_wan_5b(scheduler: Any = None) -> WanPipeline:
    """Make a pipeline like Wan2.2 5B, whose VAE makes four frames, of 16 times the sides, of a frame."""
    parts = tiny_wan(scheduler=scheduler).components
    vae = _vae(is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16)
    return WanPipeline(**{**parts, "vae": vae}, expand_timesteps=True)


def _transformer() -> WanTransformer3DModel:
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=64,
    )
    return transformer.eval()


def _vae(**config: Any) -> AutoencoderKLWan:
    vae = AutoencoderKLWan(
        base_dim=12,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.1, 2.0],
        **config,
    )
    return vae.eval()
