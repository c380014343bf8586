"""The decoder of AutoencoderKLWan with bounded memory and without its clamp."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, WanResidualBlock
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .recompute import forwards_replaced


def decode_frames(vae: Any, latents: Tensor, checkpointing: bool) -> Tensor:
    """What `vae.decode` makes of latents (B, C, F, H, W), but for its clamp to [-1, 1]: (B, 3, 4 (F - 1) + 1, 8H, 8W).

    The decoder is causal: a latent frame is decoded with what its convolutions remember of those before. So every
    step is a function of frame and memory, which with checkpointing is computed anew in the backward;
    `AutoencoderKLWan` has nothing of this kind. As the memory of all frames would be many GB itself, it is kept of
    every group of about sqrt(F) frames, in the backward of a group of every frame in it, and in that of a frame of
    every block. A frame is then decoded four times.

    Args:
        vae: AutoencoderKLWan of Wan2.1.
        latents: unscaled, in the dtype of its weights.
        checkpointing: recompute in the backward.
    """
    recompute = checkpointing and torch.is_grad_enabled()
    lengths = (math.isqrt(latents.shape[2]), 1) if recompute else (1,)
    vae.clear_cache()
    decoded: Tensor = _decode(vae, lengths, recompute, vae.post_quant_conv(latents), True, *vae._feat_map)[0]
    return decoded


def _decode(
    vae: Any, lengths: Sequence[int], recompute: bool, latents: Tensor, first: bool, *memory: Any
) -> tuple[Any, ...]:
    """Pixels of latents, followed by the memory after them.

    lengths: of the parts that latents are split into, of their parts, and so on down to single frames.
    first: there are no frames before.
    """
    if not lengths:
        after = list(memory)  # the decoder writes into it
        blocks = [
            block for block in vae.decoder.modules() if isinstance(block, (WanResidualBlock, WanResample))
        ]
        with forwards_replaced(blocks, _recomputed) if recompute else nullcontext():
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


def _recomputed(
    forward: Callable[..., Tensor], x: Tensor, feat_cache: list[Any], feat_idx: list[int]
) -> Tensor:
    """A block's forward, computed anew in the backward; memory and the place in it are changed as the block does."""
    start = feat_idx[0]

    def step(x: Tensor, *memory: Any) -> tuple[Any, ...]:
        after, place = list(memory), [start]
        return forward(x, feat_cache=after, feat_idx=place), place[0], *after

    x, feat_idx[0], *feat_cache[:] = checkpoint(step, x, *feat_cache, use_reentrant=False)
    return x
