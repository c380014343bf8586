"""Where the models of a pipeline are, and that they stay there until their backward is through.

What the ways of offloading do to a gradient, which is taken in the order denoiser, VAE, backward of the VAE,
backward of the denoiser:

- `enable_model_cpu_offload()`: accelerate's hook of each model sends its predecessor to the CPU, so the VAE would take
  the denoiser's weights away before their backward. `keep_until_backward` changes who sends away whom.
- `enable_sequential_cpu_offload()`: every layer has weights of its own for the time of a call, which the graph holds on
  to. Gradients are right as it is; with gradient checkpointing the graph holds no more than one block of them.
- `enable_group_offload()`: weights change places in the same tensors, under the graph's feet. `check_offload` refuses.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.hooks import CpuOffload, UserCpuOffloadHook


def execution_device(model: torch.nn.Module) -> torch.device:
    """Where a model computes, which with offloading is not where its weights are."""
    for module in model.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(model.parameters()).device


def check_offload(function: str, pipe: Any, names: Sequence[str]) -> None:
    """Raises ValueError if one of the named networks is under a kind of offloading that breaks its gradients."""
    for name in names:
        for module in getattr(pipe, name).modules():
            hooks = getattr(module, "_diffusers_hook", None)
            if hooks is not None and hooks.get_hook("group_offloading") is not None:
                raise ValueError(
                    f"{function}: pipe must have its {name} without group offloading, which takes weights away before "
                    "their backward; enable_model_cpu_offload() and enable_sequential_cpu_offload() do not"
                )


def keep_until_backward(pipe: Any) -> None:
    """Make `enable_model_cpu_offload()` fit for gradients: text encoders and denoiser take turns, the VAE is apart.

    A text encoder sends the denoiser away and the other way round; the VAE, which is small, sends nobody and stays.
    It has to be called before every use of a network, as the call of a pipeline ends with hooks as they were.
    """
    vae = getattr(pipe.vae, "_hf_hook", None)
    if isinstance(vae, CpuOffload):
        vae.prev_module_hook = None
    networks = (
        pipe.components.get(name) for name in ("text_encoder", "text_encoder_2", "transformer", "unet")
    )
    turns = [
        UserCpuOffloadHook(network, network._hf_hook)
        for network in networks
        if isinstance(getattr(network, "_hf_hook", None), CpuOffload)
    ]
    for index, turn in enumerate(turns):
        before = turns[index - 1]  # of the first it is the last
        turn.hook.prev_module_hook = before if before is not turn else None
