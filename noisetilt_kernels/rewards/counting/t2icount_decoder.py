"""Decoder of T2ICount: features of the U-Net and of the noun to a density of objects.

The names of layers are those of the published weights. The code follows the description of the model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

HEADS = 8
"""Number of attention heads, which cannot be read from the weights."""


class Attention(nn.Module):
    """Attention with `HEADS` heads of queries (B, n, width) to keys and values (B, m, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (
            layer(tokens).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for layer, tokens in ((self.q_proj, queries), (self.k_proj, keys), (self.v_proj, values))
        )
        read = functional.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.out_proj(read.transpose(1, 2).flatten(2))
        return result


def positions(width: int) -> nn.Conv2d:
    """Return the layer that encodes positions: a convolution of each channel."""
    return nn.Conv2d(width, width, 3, padding=1, groups=width)


def convolution(channels: int, width: int) -> nn.Sequential:
    """Return a 3 x 3 convolution with ReLU."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())


def tokens_of(features: Tensor) -> Tensor:
    """Return features (B, C, h, w) as tokens (B, h w, C)."""
    return features.flatten(2).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with GELU; the published names leave room for a dropout layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU()), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(x)
        return result


class Fusion(nn.Module):
    """The noun reads the image, and then the image reads the noun."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.img_pe_transform = positions(width)
        self.txt2img, self.img2txt = Attention(width), Attention(width)
        self.mlp = FeedForward(width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, features: Tensor, noun: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new features (B, C, h, w) and the new noun (B, C)."""
        image = tokens_of(features)
        placed = image + tokens_of(self.img_pe_transform(features))
        text = noun[:, None]
        read = self.norm1(text + self.txt2img(text, placed, image))
        read = self.norm2(read + self.mlp(read))
        image = self.norm3(image + self.img2txt(placed, read + text, read))
        return image.transpose(1, 2).unflatten(2, features.shape[2:]), read[:, 0]


class Join(nn.Module):
    """Features of one level of the U-Net joined with those of the level below, enlarged twice.

    Args:
        below: channels of the level below.
        level: channels of this level.
        width: channels of the result.
        text_width: width of the noun's embedding; None for a level that does not read the noun.
    """

    def __init__(self, below: int, level: int, width: int, text_width: int | None = None) -> None:
        super().__init__()
        self.conv1 = convolution(below, width)
        self.conv2 = convolution(width + level, width)
        if text_width is not None:
            self.text_conv, self.norm1 = nn.Linear(text_width, width), nn.LayerNorm(width)
            self.img_txt_fusion1, self.img_txt_fusion2 = Fusion(width), Fusion(width)
            self.conv3 = convolution(width, width)

    def forward(self, below: Tensor, level: Tensor, similarity: Tensor | None = None) -> Tensor:
        """Return the joined features (B, width, h, w).

        Args:
            below: features of the level below, (B, below, h/2, w/2).
            level: features of this level, (B, level, h, w).
            similarity: weights (B, 1, h, w) with which the level below is added again.
        """
        below = self.conv1(enlarged(below))
        joined: Tensor = self.conv2(torch.cat([level, below], dim=1))
        return joined if similarity is None else joined + similarity * below

    def read_noun(self, features: Tensor, noun: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features after reading the noun, (B, width, h, w), and the noun, (B, width).

        Args:
            features: joined features (B, width, h, w).
            noun: embedding of the noun, (B, text_width).
        """
        text = self.text_conv(noun)
        features, text = self.img_txt_fusion1(features, text + self.norm1(text))
        features, text = self.img_txt_fusion2(self.conv3(features), text)
        return features, text


def enlarged(features: Tensor, factor: int = 2) -> Tensor:
    """Return features with `factor` times the height and width, by bilinear interpolation."""
    return functional.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)


class Regressor(nn.Module):
    """Self-attention, convolution and self-attention, and then the density (B, 1, h, w), at least 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.img_pe_transform1, self.img_pe_transform2 = positions(width), positions(width)
        self.self_attn1, self.self_attn2 = Attention(width), Attention(width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.conv = convolution(width, width)
        self.reg_head = nn.Sequential(
            *convolution(width, width), *convolution(width, 128), nn.Conv2d(128, 1, 1), nn.ReLU()
        )

    def forward(self, features: Tensor) -> Tensor:
        features = attended(features, self.img_pe_transform1, self.self_attn1, self.norm1)
        features = self.conv(features)
        features = attended(features, self.img_pe_transform2, self.self_attn2, self.norm2)
        density: Tensor = self.reg_head(features)
        return density


def attended(features: Tensor, places: nn.Conv2d, attention: Attention, norm: nn.LayerNorm) -> Tensor:
    """Return features (B, C, h, w) after self-attention with positions."""
    image = tokens_of(features)
    placed = image + tokens_of(places(features))
    image = norm(image + attention(placed, placed, image))
    return image.transpose(1, 2).unflatten(2, features.shape[2:])


class Decoder(nn.Module):
    """Decoder of T2ICount.

    Args:
        levels: channels of the four levels of the U-Net, from the finest to the coarsest.
        width: channels of the last features.
        text_width: width of the noun's embedding.
    """

    def __init__(self, levels: Sequence[int], width: int, text_width: int) -> None:
        super().__init__()
        finest, fine, coarse, coarsest = levels
        self.upsample1 = Join(coarsest, coarse, coarsest // 2, text_width)
        self.upsample2 = Join(coarsest // 2, fine, coarsest // 4, text_width)
        self.upsample3 = Join(coarsest // 4, finest, width)
        self.regressor = Regressor(width)

    def forward(self, levels: Sequence[Tensor], noun: Tensor) -> Tensor:
        """Return the density of objects (B, 1, h, w), at least 0; the sum over one object is 60.

        Args:
            levels: features of the four levels, from (B, C, h, w) to (B, C, h/8, w/8).
            noun: embedding of the noun, (B, text_width).
        """
        finest, fine, coarse, coarsest = levels
        features, text = self.upsample1.read_noun(self.upsample1(coarsest, coarse), noun)
        similarity = cosines(enlarged(enlarged(features)), text)
        similarity = functional.interpolate(similarity, size=fine.shape[2:], mode="bilinear")
        features, text = self.upsample2.read_noun(self.upsample2(features, fine, similarity), noun)
        features = self.upsample3(features, finest, cosines(enlarged(features), text))
        density: Tensor = self.regressor(features)
        return density


def cosines(features: Tensor, noun: Tensor) -> Tensor:
    """Return the cosines (B, 1, h, w) of features (B, C, h, w) and a noun (B, C)."""
    return functional.cosine_similarity(features, noun[:, :, None, None], dim=1)[:, None]
