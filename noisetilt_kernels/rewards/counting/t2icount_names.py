"""Names of T2ICount's tensors in the published file, which are those of the original Stable Diffusion."""

import re

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ENCODER = (
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("group_norm", "norm"),
    ("to_out.0", "proj_out"),
    (r"to_([qkv])", r"\1"),
)
_BLOCK = re.compile(
    r"(down|mid|up)_block(?:s\.(\d))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)"
)


def unet_name(name: str) -> str:
    """Return the published name of a tensor of `UNet2DConditionModel`, with two resnets in a block.

    Three parts of the original make a block on the way down, two resnets and the downsampling, and three
    resnets on the way up.
    """
    block = _BLOCK.fullmatch(name)
    if block is None:
        layer, _, kind = name.rpartition(".")
        return f"unet.unet.diffusion_model.{_OUTSIDE[layer]}.{kind}"
    way, level, part, number, rest = block.groups()
    if part == "resnets":
        rest = re.sub(r"^\w+", lambda layer: _RESNET[layer[0]], rest)
    index = 3 * int(level or 0) + int(number)
    if way == "mid":
        place = f"middle_block.{1 if part == 'attentions' else 2 * int(number)}"
    elif way == "down" and part == "downsamplers":
        place, rest = f"input_blocks.{index + 3}.0", f"op.{rest.removeprefix('conv.')}"
    elif way == "down":
        place = f"input_blocks.{index + 1}.{int(part == 'attentions')}"
    elif part == "upsamplers":
        place = f"output_blocks.{index + 2}.{1 if level == '0' else 2}"  # the first block has no attention
    else:
        place = f"output_blocks.{index}.{int(part == 'attentions')}"
    return f"unet.unet.diffusion_model.{place}.{rest}"


def encoder_name(name: str) -> str:
    """Return the published name of a tensor of diffusers' `Encoder`, the encoder of the VAE."""
    for own, published in _ENCODER:
        name = re.sub(own, published, name)
    return f"vae.encoder.{name}"
