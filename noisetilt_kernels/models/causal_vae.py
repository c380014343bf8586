"""Decoders of the causal video VAEs of Wan and Qwen-Image, with bounded memory and without a clamp."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageResample, QwenImageResidualBlock
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, WanResidualBlock, unpatchify
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..recompute import replace_forwards
from .offload import execution_device, rewire_offload_hooks
from .pipeline import to_pixels
from .weights import compute_dtype

_BLOCKS = (QwenImageResample, QwenImageResidualBlock, WanResample, WanResidualBlock)


def decode_causal(pipe: Any, x0: Tensor, checkpointing: bool) -> Tensor:
    """Decode latents x0 (B, C, F, H, W) to videos (B, 3, F', H', W') in [0, 1], see `PipelineModel.decode`.

    The means and standard deviations in the VAE's configuration scale the latents. Tiling and slicing of the
    VAE are ignored.

    Args:
        pipe: pipeline with an AutoencoderKLWan or AutoencoderKLQwenImage.
        x0: latents as the denoiser makes them.
        checkpointing: recompute activations in the backward.
    """
    vae = pipe.vae
    rewire_offload_hooks(pipe)
    hook = getattr(vae, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(vae)  # moves the weights to the device, like vae.decode
    device = execution_device(vae)
    mean, std = (
        torch.tensor(values, device=device, dtype=x0.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    decoded = decode_frames(vae, (x0.to(device) * std + mean).to(compute_dtype(vae)), checkpointing)
    if vae.config.get("patch_size") is not None:
        decoded = unpatchify(decoded, vae.config.patch_size)
    return to_pixels(decoded, x0)


def decode_frames(vae: Any, latents: Tensor, checkpointing: bool) -> Tensor:
    """Decode latents (B, C, F, H, W) frame by frame, as `vae.decode` but without its clamp and patches.

    The decoder is causal: it decodes a latent frame from the frame and a memory, the cached inputs of its
    convolutions. The VAEs have no gradient checkpointing, so here each step is checkpointed as a function of
    frame and memory. The memory of all frames would take many GB, so checkpoints are nested. The forward
    keeps the memory once for each group of about sqrt(F) frames, the backward of a group once for each of its
    frames, and the backward of a frame once for each block. Each frame is thus decoded four times. A single
    frame has no memory, and its blocks are checkpointed by themselves: it is decoded twice.

    Args:
        vae: AutoencoderKLWan or AutoencoderKLQwenImage.
        latents: unscaled latents, in the dtype of the VAE's weights.
        checkpointing: recompute activations in the backward.
    """
    recompute = checkpointing and torch.is_grad_enabled()
    frames, latents = latents.shape[2], vae.post_quant_conv(latents)
    decoded: Tensor
    if frames == 1:
        call = partial(checkpoint, use_reentrant=False)
        with replace_forwards(_blocks(vae), call) if recompute else nullcontext():
            decoded = vae.decoder(latents, **_position(vae, True))
        return decoded
    vae.clear_cache()
    decoded = _decode(
        vae, (math.isqrt(frames), 1) if recompute else (1,), recompute, latents, True, *vae._feat_map
    )[0]
    return decoded


def _blocks(vae: Any) -> list[torch.nn.Module]:
    """Return the blocks of the decoder that are checkpointed."""
    return [block for block in vae.decoder.modules() if isinstance(block, _BLOCKS)]


def _position(vae: Any, first: bool) -> dict[str, bool]:
    """Return the decoder's argument for the first frame or a later one."""
    return {"first_chunk": first} if isinstance(vae, AutoencoderKLWan) else {}


def _decode(
    vae: Any, lengths: Sequence[int], recompute: bool, latents: Tensor, first: bool, *memory: Any
) -> tuple[Any, ...]:
    """Return the decoded pixels, followed by the memory after the last frame.

    Args:
        vae: AutoencoderKLWan or AutoencoderKLQwenImage.
        lengths: lengths of the nested parts that the latents are split into, down to single frames; () for
            one frame.
        recompute: checkpoint every part.
        latents: latent frames (B, C, F, H, W).
        first: True if there are no frames before.
        memory: memory before the first of these frames.
    """
    if not lengths:
        after = list(memory)  # a copy, as the decoder writes into it
        with replace_forwards(_blocks(vae), _checkpointed) if recompute else nullcontext():
            return vae.decoder(latents, feat_cache=after, feat_idx=[0], **_position(vae, first)), *after
    length, *shorter = lengths
    decoded = []
    for index, part in enumerate(latents.split(length, dim=2)):
        arguments = (vae, shorter, recompute, part, first and index == 0, *memory)
        pixels, *rest = (
            checkpoint(_decode, *arguments, use_reentrant=False) if recompute else _decode(*arguments)
        )
        decoded.append(pixels)
        memory = tuple(rest)
    return torch.cat(decoded, dim=2), *memory


def _checkpointed(
    forward: Callable[..., Tensor], x: Tensor, feat_cache: list[Any], feat_idx: list[int]
) -> Tensor:
    """Call a block's forward under checkpointing; update memory and index in place, like the block."""
    start = feat_idx[0]

    def step(x: Tensor, *memory: Any) -> tuple[Any, ...]:
        after, index = list(memory), [start]
        return forward(x, feat_cache=after, feat_idx=index), index[0], *after

    x, feat_idx[0], *feat_cache[:] = checkpoint(step, x, *feat_cache, use_reentrant=False)
    return x
