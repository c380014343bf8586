"""Devices of a pipeline's networks, and offloading that does not break gradients.

Gradients are taken in the order denoiser, VAE, backward of the VAE, backward of the denoiser. Effect of each
kind of offloading:

- `enable_model_cpu_offload()`: accelerate's hook of each network moves the previous network to the CPU. The
  VAE would move the denoiser's weights away before their backward. `rewire_offload_hooks` prevents this.
- `enable_sequential_cpu_offload()`: every layer gets a copy of its weights for one call, and the graph holds
  these copies. Gradients are right. With gradient checkpointing the graph holds the copies of one block only.
- `enable_group_offload()`: weights are swapped within the same tensors, which corrupts the graph.
  `check_offload` refuses it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.hooks import CpuOffload, UserCpuOffloadHook


def execution_device(model: torch.nn.Module) -> torch.device:
    """Return the device on which a network computes; with offloading its weights may be elsewhere."""
    for module in model.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(model.parameters()).device


def check_offload(function: str, pipe: Any, names: Sequence[str]) -> None:
    """Raise ValueError if one of the named networks is under group offloading, which breaks its gradients."""
    for name in names:
        for module in getattr(pipe, name).modules():
            hooks = getattr(module, "_diffusers_hook", None)
            if hooks is not None and hooks.get_hook("group_offloading") is not None:
                raise ValueError(
                    f"{function}: pipe must have its {name} without group offloading, which moves weights "
                    "away before their backward; use enable_model_cpu_offload() or "
                    "enable_sequential_cpu_offload()"
                )


def rewire_offload_hooks(pipe: Any, idle: Sequence[Any] = ()) -> None:
    """Make `enable_model_cpu_offload()` keep the denoiser on the device until its backward is done.

    Text encoders and denoiser then move each other to the CPU. The VAE, which is small, moves no other
    network and stays on the device. Must be called before every use of a network, as each call of a pipeline
    resets the hooks.

    Args:
        pipe: the pipeline.
        idle: denoisers that are not needed now, which are moved to the CPU.
    """
    vae = getattr(pipe.vae, "_hf_hook", None)
    if isinstance(vae, CpuOffload):
        vae.prev_module_hook = None
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "transformer_2", "unet")
    hooks = []
    for network in map(pipe.components.get, names):
        hook = getattr(network, "_hf_hook", None)
        if not isinstance(hook, CpuOffload):
            continue
        if any(network is one for one in idle):
            hook.init_hook(network)
        else:
            hooks.append(UserCpuOffloadHook(network, hook))
    for index, hook in enumerate(hooks):
        previous = hooks[index - 1]  # the first network follows the last one
        hook.hook.prev_module_hook = previous if previous is not hook else None
