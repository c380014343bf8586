"""Transformer of MPS that reads a prompt with the tokens of an image.

Each layer attends from the image's tokens to the prompt's, then among the image's tokens with rotary
positions. All heads share one key and one value. Attention and feed-forward run in parallel, on the same
normalized input. The parts have the published names.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class CrossLayer(nn.Module):
    """Attention from image tokens to text tokens, beside a gated feed-forward network.

    Args:
        width: width of the tokens.
        heads: number of heads.
        head_width: width of a head.
        inner: width within the feed-forward network.
    """

    def __init__(self, width: int, heads: int, head_width: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)
        up, down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.ff = nn.ModuleDict({"0": up, "2": down})

    def forward(self, image: Tensor, text: Tensor, read: Tensor) -> Tensor:
        """Return the image tokens (B, n, width).

        Args:
            image: image tokens (B, n, width).
            text: text tokens (B, L, width), not normalized.
            read: True for the text tokens that are read, (B, L).
        """
        x = self.norm(image)
        key, value = self.to_kv(text).chunk(2, dim=-1)
        attended = _attend(self.to_q(x), key, value, self.heads, read[:, None, None])
        return image + self.to_out(attended) + self.ff["2"](_gated(self.ff["0"](x)))


class SelfLayer(nn.Module):
    """Attention among image tokens with rotary positions, beside a gated feed-forward network.

    The arguments are the same as for `CrossLayer`.
    """

    def __init__(self, width: int, heads: int, head_width: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.sizes = (heads * head_width, head_width, head_width, 2 * inner)
        self.norm = nn.LayerNorm(width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.attn_out = nn.Linear(heads * head_width, width, bias=False)
        self.ff_out = nn.ModuleDict({"1": nn.Linear(inner, width, bias=False)})

    def forward(self, image: Tensor, angles: Tensor) -> Tensor:
        """Return the image tokens (B, n, width).

        Args:
            image: image tokens (B, n, width).
            angles: angles of the rotary positions, float32 (n, head_width / 2).
        """
        query, key, value, ff = self.fused_attn_ff_proj(self.norm(image)).split(self.sizes, dim=-1)
        query = _rotated(query.unflatten(-1, (self.heads, -1)), angles[:, None]).flatten(-2)
        attended = _attend(query, _rotated(key, angles), value, self.heads)
        return image + self.attn_out(attended) + self.ff_out["1"](_gated(ff))


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Return the attention of queries (B, n, heads * w) to one key and value (B, L, w) for all heads."""
    split = query.unflatten(-1, (heads, -1)).transpose(1, 2)
    key, value = (x[:, None].expand(-1, heads, -1, -1) for x in (key, value))
    attended = functional.scaled_dot_product_attention(split, key, value, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2)


def _gated(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return functional.silu(gate) * value


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the pairs of the first and second half of the last dimension, in float32."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)
