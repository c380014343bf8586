"""Decoder of AutoencoderKLWan with bounded memory and without a clamp."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, WanResidualBlock
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .recompute import replace_forwards


def decode_frames(vae: Any, latents: Tensor, checkpointing: bool) -> Tensor:
    """Decode latents (B, C, F, H, W) to (B, 3, 4 (F - 1) + 1, 8H, 8W), as `vae.decode` but without its clamp.

    The decoder is causal: it decodes a latent frame from the frame and a memory, the cached inputs of its
    convolutions. `AutoencoderKLWan` has no gradient checkpointing, so here each step is checkpointed as a
    function of frame and memory. The memory of all frames would take many GB, so checkpoints are nested. The
    forward keeps the memory once for each group of about sqrt(F) frames, the backward of a group once for
    each of its frames, and the backward of a frame once for each block. Each frame is thus decoded four
    times.

    Args:
        vae: AutoencoderKLWan of Wan2.1.
        latents: unscaled latents, in the dtype of the VAE's weights.
        checkpointing: recompute activations in the backward.
    """
    recompute = checkpointing and torch.is_grad_enabled()
    lengths = (math.isqrt(latents.shape[2]), 1) if recompute else (1,)
    vae.clear_cache()
    decoded: Tensor = _decode(vae, lengths, recompute, vae.post_quant_conv(latents), True, *vae._feat_map)[0]
    return decoded


def _decode(
    vae: Any, lengths: Sequence[int], recompute: bool, latents: Tensor, first: bool, *memory: Any
) -> tuple[Any, ...]:
    """Return the decoded pixels, followed by the memory after the last frame.

    Args:
        vae: AutoencoderKLWan of Wan2.1.
        lengths: lengths of the nested parts that the latents are split into, down to single frames; () for
            one frame.
        recompute: checkpoint every part.
        latents: latent frames (B, C, F, H, W).
        first: True if there are no frames before.
        memory: memory before the first of these frames.
    """
    if not lengths:
        after = list(memory)  # a copy, as the decoder writes into it
        blocks = [
            block for block in vae.decoder.modules() if isinstance(block, (WanResidualBlock, WanResample))
        ]
        with replace_forwards(blocks, _checkpointed) if recompute else nullcontext():
            return vae.decoder(latents, feat_cache=after, feat_idx=[0], first_chunk=first), *after
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
