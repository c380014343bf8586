"""Devices of a pipeline's networks, and offloading that does not break gradients.

Gradients are taken in the order denoiser, VAE, backward of the VAE, backward of the denoiser. Effect of each
kind of offloading:

- `enable_model_cpu_offload()`: accelerate's hook of each network moves the previous network to the CPU. The
  VAE would move the denoiser's weights away before their backward. `rewire_offload_hooks` prevents this.
- `enable_sequential_cpu_offload()`: every layer gets a copy of its weights for one call, and the graph holds
  these copies. Gradients are right. With gradient checkpointing the graph holds the copies of one block only.
- `enable_group_offload()`: weights are swapped within the same tensors, which corrupts the graph.
  `check_hooks` refuses it.

`enable_layerwise_casting()` swaps weights in the same way. The graph of a linear layer keeps a view of the
weights that were used, so its gradient is right; `check_hooks` refuses other layers. It also refuses the step
caches of `enable_cache()`, whose hooks keep results from one call to the next.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.hooks import CpuOffload, UserCpuOffloadHook
from torch.nn import Embedding, Linear

from .quantize import EightBitLinear

_DIFFERENTIATED = ("transformer", "transformer_2", "unet", "vae")
"""Names of the components through which gradients are taken."""


def execution_device(model: torch.nn.Module) -> torch.device:
    """Return the device on which a network computes; with offloading its weights may be elsewhere."""
    for module in model.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(model.parameters()).device


def check_hooks(owner: str, pipe: Any, reward_decoder: Any = None) -> None:
    """Raise ValueError if hooks of diffusers break the gradients of a denoiser, VAE or reward decoder.

    They swap weights before the backward, or reuse results of a call for another time or particle.

    Args:
        owner: subject of the message.
        pipe: the pipeline.
        reward_decoder: the reward decoder, if the model has one.
    """
    networks = {name: getattr(pipe, name, None) for name in _DIFFERENTIATED}
    for name, network in {**networks, "reward decoder": reward_decoder}.items():
        for path, module in network.named_modules() if network is not None else ():
            hooks = getattr(module, "_diffusers_hook", None)
            if hooks is None:
                if ".lora_" in path and any(one.dtype.itemsize == 1 for one in module.parameters(False)):
                    raise ValueError(
                        f"{owner} must have its {name} with LoRA weights of 16 or 32 bits, got float8; "
                        "load LoRA weights before enable_layerwise_casting()"
                    )
            elif hooks.get_hook("group_offloading") is not None:
                raise ValueError(
                    f"{owner} must have its {name} without group offloading, which moves weights away before "
                    "their backward; use enable_model_cpu_offload() or enable_sequential_cpu_offload()"
                )
            elif any(hook._is_stateful for hook in hooks.hooks.values()):
                raise ValueError(
                    f"{owner} must have its {name} without a step cache, which reuses results of earlier "
                    f"calls without their gradients; use pipe.{name}.disable_cache()"
                )
            elif not hooks.get_hook("layerwise_casting"):
                continue
            elif isinstance(module, EightBitLinear):
                raise ValueError(
                    f"{owner} must have its {name} without layerwise casting, because it is quantised already"
                )
            elif not isinstance(module, (Linear, Embedding)):
                raise ValueError(
                    f"{owner} must have its {name} without layerwise casting of a {type(module).__name__}, "
                    "whose weights change before their backward; use "
                    'load_pipeline(quantize="fp8"), or skip_modules_classes'
                )


def rewire_offload_hooks(pipe: Any, idle: Sequence[Any] = (), reward_decoder: Any = None) -> None:
    """Make `enable_model_cpu_offload()` keep the denoiser on the device until its backward is done.

    Text encoders and denoiser then move each other to the CPU. The VAE, which is small, moves no other
    network and stays on the device. Must be called before every use of a network, as each call of a pipeline
    resets the hooks.

    Args:
        pipe: the pipeline.
        idle: denoisers that are not needed now, which are moved to the CPU.
        reward_decoder: the reward decoder, whose hooks are checked; None if there is none.

    Raises:
        ValueError: the pipeline has got other hooks since it was checked, see `check_hooks`.
    """
    check_hooks(type(pipe).__name__, pipe, reward_decoder)
    vae = getattr(pipe.vae, "_hf_hook", None)
    if isinstance(vae, CpuOffload):
        vae.prev_module_hook = None
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", *_DIFFERENTIATED[:-1])
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
