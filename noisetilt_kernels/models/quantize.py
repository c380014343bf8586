"""Quantised weights of denoisers: 8-bit integers, 8-bit floats, or NF4 of bitsandbytes.

The linear layers of a denoiser's blocks, which hold nearly all of its weights, are quantised one by one.
They compute in the dtype of their input. Embeddings, norms, biases, convolutions and LoRA weights stay as
they are.
"""

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, ModuleList, Parameter

from .errors import ModelError

QUANTISATIONS = ("int8", "fp8", "nf4")
"""Kinds of quantisation: 8-bit integers, float8_e4m3fn, or 4-bit NF4."""

NF4_BLOCK = 64
"""Number of weights of NF4 that share a float32 scale."""


def check_package(kind: str | None) -> None:
    """Raise ModelError unless the package that a kind of quantisation needs is installed.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind is not None and kind not in QUANTISATIONS:
        raise ValueError(f"load_pipeline: quantize must be one of {', '.join(QUANTISATIONS)}, got {kind!r}")
    if kind == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError('quantize="nf4" needs bitsandbytes: pip install "noisetilt-kernels[quantize]"')


def check_not_quantised(owner: str, config: Any) -> None:
    """Raise ModelError if a network's configuration says that its weights are quantised already."""
    found = config.get("quantization_config")
    if found is not None:
        method = found.get("quant_method") if hasattr(found, "get") else getattr(found, "quant_method", "")
        raise ModelError(
            f"{owner} is already quantised ({getattr(method, 'value', method)}), so quantize must be None"
        )


def linear_layers(network: torch.nn.Module) -> dict[str, Linear]:
    """Return the layers to quantise by name: linear layers of the blocks, without those of LoRA."""
    blocks = tuple(f"{name}." for name, one in network.named_modules() if isinstance(one, ModuleList))
    return {
        name: one
        for name, one in network.named_modules()
        if type(one) is Linear and name.startswith(blocks) and "lora_" not in name
    }


def quantise(owner: str, network: Any, kind: str, device: torch.device) -> None:
    """Quantise the weights of a network in place, layer by layer.

    At most one layer at a time has unquantised weights on the device.

    Args:
        owner: name of the network in messages.
        network: denoiser of diffusers, with its LoRA layers.
        kind: one of `QUANTISATIONS`.
        device: device on which weights are quantised, and stay; other weights are not moved.

    Raises:
        ModelError: the weights are quantised already, or a LoRA has magnitudes (DoRA), which are computed
            from unquantised weights.
    """
    check_not_quantised(owner, network.config)
    if any("lora_magnitude_vector" in name for name, _ in network.named_parameters()):
        raise ModelError(f"{owner} has a LoRA with magnitudes (DoRA), so quantize must be None")
    for name, layer in linear_layers(network).items():
        weight = layer.weight.detach().to(device)
        if kind == "nf4":
            network.set_submodule(name, _nf4_layer(layer, weight))
        else:
            _store_in_8_bits(layer, weight, torch.int8 if kind == "int8" else torch.float8_e4m3fn)


def _nf4_layer(layer: Linear, weight: Tensor) -> torch.nn.Module:
    """Return a layer of bitsandbytes with this weight in NF4, and the bias of a layer."""
    import bitsandbytes

    options: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": False}
    quantised = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, False, compute_dtype=weight.dtype, device="meta", **options
    )
    parameter = bitsandbytes.nn.Params4bit(weight, requires_grad=False, blocksize=NF4_BLOCK, **options)
    quantised.weight = parameter.to(weight.device)  # quantises
    quantised.bias = layer.bias
    return quantised.train(layer.training)


class EightBitLinear(Linear):
    """Linear layer whose weight (outputs, inputs) is stored in 8 bits, with a scale (outputs, 1) in float32.

    The product has the dtype of the input. The weight gets no gradient.
    """

    scale: Parameter

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _Product.apply(input, self.weight, self.scale)
        return output if self.bias is None else output + self.bias


def _store_in_8_bits(layer: Linear, weight: Tensor, dtype: torch.dtype) -> None:
    """Make a layer an `EightBitLinear` with this weight. The largest weight of a row becomes the largest value of `dtype`."""
    limit = (torch.finfo if dtype.is_floating_point else torch.iinfo)(dtype).max
    weight = weight.float()
    scale = (weight.abs().amax(dim=1, keepdim=True) / limit).clamp_min(torch.finfo(torch.float32).tiny)
    weight = weight / scale
    if not dtype.is_floating_point:
        weight = weight.round()
    layer.weight = Parameter(weight.to(dtype), requires_grad=False)
    layer.scale = Parameter(scale, requires_grad=False)
    layer.__class__ = EightBitLinear


class _Product(torch.autograd.Function):
    """Product of an input and a stored weight. The graph keeps the stored weight, not a copy in 16 bits."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        context.save_for_backward(weight, scale)
        return torch.nn.functional.linear(x, _restored(weight, scale, x.dtype))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = context.saved_tensors
        return gradient @ _restored(weight, scale, gradient.dtype), None, None


def _restored(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight that is stored, in `dtype`."""
    return weight.to(dtype).mul_(scale.to(dtype))


def nf4_difference(network: torch.nn.Module) -> int:
    """Return how many bytes a network takes more in NF4 than with its layers in 8 bits; it is negative.

    A layer in NF4 has four bits for each weight, a float32 scale for each `NF4_BLOCK` weights, and a table of
    16 values in float32.
    """
    difference = 0
    for layer in network.modules():
        if isinstance(layer, EightBitLinear):
            count = layer.weight.numel()
            difference += math.ceil(count / 2) + 4 * math.ceil(count / NF4_BLOCK) + 4 * 16
            difference -= layer.weight.nbytes + layer.scale.nbytes
    return difference
