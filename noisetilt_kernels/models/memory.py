"""How much memory guided sampling will take, from the configurations of a model alone.

The models are made of torch's fake tensors, which have shapes and no values, and are run with their gradients: weights
and what the graph keeps for its backward are then counted, not guessed. What is not counted are the reward's own
network, temporary buffers and the allocator's own share.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from .flux import FluxFlow
from .loading import Configurations, configurations
from .prompts import Encoded


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that guided sampling takes.

    Attributes:
        shape: of one latent.
        image: height and width in pixels.
        transformer, vae, text_encoders: weights.
        graph: what is kept of one micro-batch for the backward, at its most.
        total: on the device at once.
    """

    shape: tuple[int, ...]
    image: tuple[int, int]
    transformer: int
    vae: int
    text_encoders: int
    graph: int
    total: int


def plan_memory(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    height: int | None = None,
    width: int | None = None,
    micro_batch: int = 1,
    offload: bool = False,
    gradient: bool = True,
) -> MemoryPlan:
    """Count the memory of guided sampling with a FLUX model, without loading its weights.

    Args:
        source: as of `load_flux`; only its configurations are read.
        dtype: of the weights.
        height, width: of the images in pixels; None is the model's own.
        micro_batch: images at once.
        offload: as of `load_flux`: the text encoders are then not on the device while the transformer is.
        gradient: whether one is taken; without it no graph is kept.

    Raises:
        ModelError: there is no such model. ValueError: a size that the model does not have.
    """
    configs = configurations(source)
    # not the meta device, on which attention is computed by keeping all its weights, as it is on no other
    with FakeTensorMode(), _default_dtype(dtype):
        flow, *encoders = _models(configs, height, width)
        graph = _graph(flow, micro_batch) if gradient else 0
    weights = _bytes(flow.pipe.transformer), _bytes(flow.pipe.vae), sum(map(_bytes, encoders))
    text_encoders = 0 if offload else weights[2]
    _, rows, columns = flow.shape
    factor = flow.pipe.vae_scale_factor
    return MemoryPlan(
        shape=flow.shape,
        image=(rows * factor, columns * factor),
        transformer=weights[0],
        vae=weights[1],
        text_encoders=weights[2],
        graph=graph,
        total=max(weights[0] + weights[1] + text_encoders + graph, weights[2]),
    )


def _models(
    configs: Configurations, height: int | None, width: int | None
) -> tuple[FluxFlow, CLIPTextModel, T5EncoderModel]:
    transformer = FluxTransformer2DModel.from_config(configs.models["transformer"])
    vae = AutoencoderKL.from_config(configs.models["vae"])
    pipe = FluxPipeline(
        scheduler=None,
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    flow = FluxFlow(pipe, height=height, width=width)
    flow.prompts.length = min(flow.prompts.length, configs.prompt_length)
    return (
        flow,
        CLIPTextModel(CLIPTextConfig.from_dict(configs.models["text_encoder"])),
        T5EncoderModel(T5Config.from_dict(configs.models["text_encoder_2"])),
    )


def _graph(flow: FluxFlow, micro_batch: int) -> int:
    """Bytes of the graph at its most.

    The transformer's is there all the time, beside it at first the VAE's. With gradient checkpointing they hold the
    inputs of blocks, and one block at a time is computed anew.
    """
    transformer, vae = flow.pipe.transformer, flow.pipe.vae
    config, length = transformer.config, flow.prompts.length
    tokens = torch.empty(1, length, config.joint_attention_dim)
    pooled = torch.empty(1, config.pooled_projection_dim)
    flow.prompts.keep("", Encoded(tokens, pooled, torch.empty(length, 3, dtype=torch.float32)))
    x = torch.empty(micro_batch, *flow.shape, dtype=torch.float32, requires_grad=True)

    def velocity() -> Tensor:
        return flow.velocity(x, 0.5, [""] * micro_batch)

    def decode() -> Tensor:
        return flow.decode(x)

    kept, decoding = _saved(velocity), _saved(decode)
    if not transformer.is_gradient_checkpointing:
        return kept + decoding
    transformer.disable_gradient_checkpointing()
    vae.disable_gradient_checkpointing()
    block = _largest(velocity, [*transformer.transformer_blocks, *transformer.single_transformer_blocks])
    decoder_block = _largest(decode, [vae.decoder.mid_block, *vae.decoder.up_blocks])
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
