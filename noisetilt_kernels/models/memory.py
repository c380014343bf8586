"""How much memory guided sampling will take, from the configurations of a model alone.

The models are made on torch's meta device, where tensors have shapes and no values, and are run there with their
gradients: weights and what the graph keeps for its backward are then counted, not guessed. What is not counted are the
reward's own network, temporary buffers and the allocator's own share.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from .flux import FluxFlow
from .loading import configurations
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
) -> MemoryPlan:
    """Count the memory of guided sampling with a FLUX model, without loading its weights.

    Args:
        source: as of `load_flux`; only its configurations are read.
        dtype: of the weights.
        height, width: of the images in pixels; None is the model's own.
        micro_batch: images at once.
        offload: as of `load_flux`: the text encoders are then not on the device while the transformer is.

    Raises:
        ModelError: there is no such model. ValueError: a size that the model does not have.
    """
    configs = configurations(source)
    with torch.device("meta"):
        pipe = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=AutoencoderKL.from_config(configs["vae"]),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=FluxTransformer2DModel.from_config(configs["transformer"]),
        ).to(dtype=dtype)
        encoders = [
            CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"])),
            T5EncoderModel(T5Config.from_dict(configs["text_encoder_2"])),
        ]
    flow = FluxFlow(pipe, height=height, width=width)
    transformer, vae = _bytes(pipe.transformer, dtype), _bytes(pipe.vae, dtype)
    text_encoders = sum(_bytes(encoder, dtype) for encoder in encoders)
    image = tuple(side * pipe.vae_scale_factor for side in flow.shape[1:])
    graph = _graph(flow, micro_batch, configs["transformer"])
    together = transformer + vae + graph + (0 if offload else text_encoders)
    return MemoryPlan(flow.shape, image, transformer, vae, text_encoders, graph, max(together, text_encoders))


def _graph(flow: FluxFlow, micro_batch: int, config: dict[str, Any]) -> int:
    """Bytes of the graph: the transformer's stays while first the VAE's is there, then one block's of the transformer."""
    length, dtype = flow._prompts.length, flow.pipe.transformer.dtype
    with torch.device("meta"):
        flow._prompts.keep(
            "",
            Encoded(
                torch.empty(1, length, config["joint_attention_dim"], dtype=dtype),
                torch.empty(1, config["pooled_projection_dim"], dtype=dtype),
                torch.empty(length, 3),
            ),
        )
        x = torch.empty(micro_batch, *flow.shape, requires_grad=True)
    prompts = [""] * micro_batch

    def forward() -> Tensor:
        return flow.velocity(x, 0.5, prompts)

    kept = _saved(forward, flow)
    decoding = _saved(lambda: flow.decode(x), flow)
    flow.pipe.transformer.disable_gradient_checkpointing()
    blocks = config["num_layers"] + config["num_single_layers"]
    # blocks of two streams hold as much as two of one, at most
    one_block = 2 * _saved(forward, flow) // blocks
    return kept + max(decoding, one_block)


def _saved(forward: Callable[[], Tensor], flow: FluxFlow) -> int:
    """Bytes that a graph keeps for its backward, without the weights; tensors that share their memory count once."""
    weights = {
        parameter.untyped_storage()._cdata
        for model in (flow.pipe.transformer, flow.pipe.vae)
        for parameter in model.parameters()
    }
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    total = sum(storage.nbytes() for storage in storages.values())
    del output
    return total


def _bytes(model: torch.nn.Module, dtype: torch.dtype) -> int:
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
