"""Random LTX-Video pipelines of the diffusers classes, small enough to be made for every test."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from tiny_flux import tiny_t5, tiny_t5_tokenizer

SIZE = {"height": 32, "width": 64, "num_frames": 9}
"""Size of small videos: latents (4, 5, 4, 8)."""


def tiny_ltx(**vae: Any) -> LTXPipeline:
    """Make a pipeline of two blocks of width 32, float32, with further configuration of its VAE.

    Its VAE makes two frames, of eight times the sides, of each latent frame.
    """
    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=24,
    )
    return LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=64,
            max_image_seq_len=256,
            shift_terminal=0.1,
        ),
        vae=_vae(**vae),
        text_encoder=tiny_t5(24),
        tokenizer=tiny_t5_tokenizer(),
        transformer=transformer.eval(),
    )


def tiny_ltx_0_9_1() -> LTXPipeline:
    """Make a pipeline like LTX-Video 0.9.1, whose decoder reads a time and makes noise."""
    pipe = tiny_ltx(timestep_conditioning=True, decoder_inject_noise=(True, True))
    with torch.no_grad():
        for name, parameter in pipe.vae.named_parameters():
            if "per_channel_scale" in name:  # initially zero, which would hide the noise
                parameter.normal_()
    return pipe


def _vae(**config: Any) -> AutoencoderKLLTXVideo:
    channels = {"block_out_channels": (8,), "decoder_block_out_channels": (8,)}
    layers = {"layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    scaling = {"spatio_temporal_scaling": (True,), "decoder_spatio_temporal_scaling": (True,)}
    single = {"downsample_type": ("conv",), "upsample_residual": (False,), "upsample_factor": (1,)}
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        down_block_types=("LTXVideoDownBlock3D",),
        **{"decoder_inject_noise": (False, False), **channels, **layers, **scaling, **single, **config},
    )
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2.0)
    return vae.eval()
