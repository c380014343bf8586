"""Nodes of noisetilt-kernels for ComfyUI: rewards, whitened noise, samplers guided by a reward.

ComfyUI imports this folder from its `custom_nodes`. See README.md.
"""

from .noise import RewardGradientNode, WhitenedNoiseNode
from .pictures import WhiteningPictureNode
from .rewards import JudgeNode, RewardBySpecNode, RewardNode, RewardSumNode
from .samplers import (
    BaseSamplerNode,
    BestOfSamplerNode,
    MethodSamplerNode,
    NTRKSamplerNode,
    SVDDSamplerNode,
)

_NODES = {
    "Reward": (RewardNode, "Reward"),
    "RewardBySpec": (RewardBySpecNode, "Reward (by text)"),
    "RewardSum": (RewardSumNode, "Weighted sum of rewards"),
    "Judge": (JudgeNode, "Judge images"),
    "RewardGradient": (RewardGradientNode, "Gradient of a reward"),
    "WhitenedNoise": (WhitenedNoiseNode, "Whitened noise"),
    "WhiteningPicture": (WhiteningPictureNode, "Picture of whitening"),
    "BaseSampler": (BaseSamplerNode, "Sampler: reverse SDE"),
    "NTRKSampler": (NTRKSamplerNode, "Sampler: NTRK"),
    "SVDDSampler": (SVDDSamplerNode, "Sampler: SVDD"),
    "MethodSampler": (MethodSamplerNode, "Sampler: by text"),
    "BestOfSampler": (BestOfSamplerNode, "Sampler: best of n"),
}

NODE_CLASS_MAPPINGS = {f"Noisetilt{name}": node for name, (node, _) in _NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {
    f"Noisetilt{name}": f"{title} (noisetilt)" for name, (_, title) in _NODES.items()
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
