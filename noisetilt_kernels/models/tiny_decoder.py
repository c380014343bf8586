"""Tiny autoencoders such as TAESD, whose decoder takes the place of a VAE's to judge images during sampling.

`AutoencoderTiny` of diffusers has its own scaling and shift factors, 1 and 0 in published configurations. So
it decodes the latents that the denoiser sees, which are already scaled by the factors of the model's VAE.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny

from .. import hub
from .errors import ModelError, as_model_error
from .files import read_json
from .fine_tuned import locate_weights
from .networks import load_network

_CONFIG = "config.json"


def check_tiny(owner: str, vae: AutoencoderTiny, channels: int, factor: int) -> None:
    """Raise ValueError unless an AutoencoderTiny decodes latents of the model to images of the same size.

    Args:
        owner: subject of the message.
        vae: the autoencoder.
        channels: number of channels of the model's latents.
        factor: sides of the model's images divided by those of its latents.
    """
    config = vae.config
    if config.latent_channels != channels:
        raise ValueError(
            f"{owner} must decode latents with {channels} channels, got an AutoencoderTiny for "
            f"{config.latent_channels}; TAESD, TAESDXL, TAESD3 and TAEF1 are for models of different VAEs"
        )
    found = config.upsampling_scaling_factor ** (len(config.decoder_block_out_channels) - 1)
    if found != factor:
        raise ValueError(
            f"{owner} must make images with {factor} times the sides of latents, got an AutoencoderTiny with "
            f"{found} times"
        )


def tiny_config(source: str) -> dict[str, Any]:
    """Return the configuration of an AutoencoderTiny, without its weights.

    Args:
        source: folder made by `save_pretrained`, or hub id such as "madebyollin/taef1".

    Raises:
        ModelError: there is no such folder or hub repository, or it holds another network.
    """
    location = locate_weights(source)
    found = Path(location.name, _CONFIG).is_file() if location.local else hub.is_hub_id(source)
    if not found:
        raise ModelError(
            f"the reward decoder {source!r} is not a folder with a {_CONFIG}; a folder or hub id of an "
            "AutoencoderTiny is needed, such as 'madebyollin/taef1'"
        )
    with as_model_error(source):
        config = read_json(location, _CONFIG)
    name = config.get("_class_name")
    if name != AutoencoderTiny.__name__:
        raise ModelError(f"the reward decoder {source!r} must be an AutoencoderTiny, got {name}")
    return config


def load_tiny(
    source: str | Path, *, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu"
) -> AutoencoderTiny:
    """Load an AutoencoderTiny, see `tiny_config`.

    Args:
        source: see `tiny_config`.
        dtype: dtype of the weights.
        device: device of the weights.

    Raises:
        ModelError: there is no such autoencoder, or a weight is missing.
    """
    source = str(source)
    config = tiny_config(source)
    with as_model_error(source):
        loaded: Any = load_network(AutoencoderTiny, locate_weights(source), source, config, dtype)
    tiny: AutoencoderTiny = loaded.to(device)
    return tiny
