"""How much memory guided sampling will take, from the configurations of a model alone.

The models are made of torch's fake tensors, which have shapes and no values, and are run with their gradients: weights
and what the graph keeps for its backward are then counted, not guessed. What is not counted are the reward's own
network, temporary buffers and the allocator's own share.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from .loading import Configurations, configurations


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that guided sampling takes.

    Attributes:
        shape: of one latent.
        pixels: of what is made of it, (3, H, W), of videos (3, F, H, W).
        denoiser, vae, text_encoders: weights.
        graph: what is kept of one micro-batch for the backward, at its most.
        total: on the device at once.
    """

    shape: tuple[int, ...]
    pixels: tuple[int, ...]
    denoiser: int
    vae: int
    text_encoders: int
    graph: int
    total: int


def plan_memory(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    micro_batch: int = 1,
    offload: bool = False,
    gradient: bool = True,
    one_step: bool = False,
    **options: Any,
) -> MemoryPlan:
    """Count the memory of guided sampling with a model, without loading its weights.

    Args:
        source: as of `load_pipeline`; only its configurations are read.
        dtype: of the weights.
        micro_batch: images or videos at once.
        offload: as of `load_pipeline`: the text encoders are then not on the device while the denoiser is.
        gradient: whether one is taken; without it no graph is kept.
        one_step: the model is used as a one-step model.
        options: of the model's class, such as height and width.

    Raises:
        ModelError: there is no such model, or it cannot be used so. ValueError: as of the model's class.
    """
    configs = configurations(source)
    adapter = configs.family.adapter(str(source), one_step, options)
    # not the meta device, on which attention is computed by keeping all its weights, as it is on no other
    with FakeTensorMode(), _default_dtype(dtype):
        pipe = _pipeline(configs)
        model = adapter(pipe, **options)
        encoders = [getattr(pipe, name) for name in configs.networks if "text_encoder" in name]
        graph = _graph(model, one_step, micro_batch) if gradient else 0
        with torch.no_grad():
            pixels = model.decode(torch.empty(1, *model.shape, dtype=torch.float32)).shape[1:]
    weights = _bytes(model.denoiser), _bytes(pipe.vae), sum(map(_bytes, encoders))
    text_encoders = 0 if offload else weights[2]
    return MemoryPlan(
        shape=model.shape,
        pixels=tuple(pixels),
        denoiser=weights[0],
        vae=weights[1],
        text_encoders=weights[2],
        graph=graph,
        total=max(weights[0] + weights[1] + text_encoders + graph, weights[2]),
    )


def _pipeline(configs: Configurations) -> Any:
    """The pipeline with networks of its classes, and of its tokenizers what is asked of them without a prompt."""
    components: dict[str, Any] = {}
    for name, config in configs.networks.items():
        library, class_name = configs.index[name]
        network: Any = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
        components[name] = (
            network.from_config(config) if library == "diffusers" else network(network.config_class.from_dict(config))
        )
    names = inspect.signature(configs.family.pipeline.__init__).parameters
    settings = {name: value for name, value in configs.index.items() if name in names and not isinstance(value, list)}
    absent = dict.fromkeys(name for name, value in configs.index.items() if isinstance(value, list))
    pipe = configs.family.pipeline(**{**absent, **components, **settings})
    for name, length in configs.prompt_lengths.items():
        setattr(pipe, name, SimpleNamespace(model_max_length=length))
    with unset_fake_temporarily():  # schedulers compute with numpy
        pipe.scheduler = getattr(diffusers, configs.index["scheduler"][1])()  # no size depends on its numbers
    return pipe


def _graph(model: Any, one_step: bool, micro_batch: int) -> int:
    """Bytes of the graph at its most.

    The denoiser's is there all the time, beside it at first the VAE's. With gradient checkpointing they hold the
    inputs of blocks, and one block at a time is computed anew.
    """
    model.prompts.keep("", model.blank_prompt())
    x = torch.empty(micro_batch, *model.shape, dtype=torch.float32, requires_grad=True)

    def denoise() -> Tensor:
        prompts = [""] * micro_batch
        output: Tensor = model.denoised(x, prompts) if one_step else model.velocity(x, 0.5, prompts)
        return output

    def decode() -> Tensor:
        images: Tensor = model.decode(x)
        return images

    kept, decoding = _saved(denoise), _saved(decode)
    if not model.gradient_checkpointing:
        return kept + decoding
    model.set_gradient_checkpointing(False)
    block, decoder_block = _largest(denoise, model.blocks), _largest(decode, model.decoder_blocks)
    return kept + max(decoding + decoder_block, block)


def _saved(forward: Callable[[], Tensor]) -> int:
    """Bytes that the graph of `forward` keeps for its backward, weights left out."""
    return _largest(forward, [])


def _largest(forward: Callable[[], Tensor], blocks: Sequence[torch.nn.Module]) -> int:
    """As `_saved`, of the block that keeps the most; of all of it where no blocks are named.

    Tensors that share their memory count once.
    """
    storages: dict[int, torch.UntypedStorage] = {}
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and not isinstance(tensor._base, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage
        return tensor

    def close(*_: object) -> None:
        sizes.append(sum(storage.nbytes() for storage in storages.values()))
        storages.clear()

    handles = [block.register_forward_pre_hook(lambda *_: storages.clear()) for block in blocks]
    handles += [block.register_forward_hook(close) for block in blocks]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _output = forward()  # alive until it is counted
    close()
    for handle in handles:
        handle.remove()
    return max(sizes)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New weights are of this dtype; fake ones cannot be cast in place."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _bytes(model: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())
