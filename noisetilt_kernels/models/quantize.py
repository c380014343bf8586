"""Quantised weights of denoisers: 8-bit integers, 8-bit floats, or NF4 of bitsandbytes.

The linear layers of a denoiser's blocks, which hold nearly all of its weights, are quantised one by one.
They compute in the dtype of their input. Embeddings, norms, biases, convolutions and LoRA weights stay as
they are.
"""

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, ModuleList, Parameter

from ..checks import check_choice
from .errors import ModelError
from .weights import disable_cpu_packing

QUANTISATIONS = ("int8", "fp8", "nf4")
"""Kinds of quantisation: 8-bit integers, float8_e4m3fn, or 4-bit NF4."""

NF4_BLOCK = 64
"""Number of weights of NF4 that share a float32 scale."""


def check_kind(kind: str) -> None:
    """Raise ModelError unless the package that a kind of quantisation needs is installed.

    Raises:
        ValueError: the kind is unknown.
    """
    check_choice("load_pipeline", "quantize", kind, QUANTISATIONS)
    if kind == "nf4":
        check_package("bitsandbytes", "quantize='nf4'")


def check_package(name: str, owner: str) -> None:
    """Raise ModelError, which says that `owner` needs it, unless a package for quantised weights is there."""
    if importlib.util.find_spec(name) is None:
        raise ModelError(f'{owner} needs {name}: pip install "noisetilt-kernels[quantize]"')


def check_not_quantised(owner: str, config: Any) -> None:
    """Raise ModelError if a network's configuration says that its weights are quantised already."""
    found = config.get("quantization_config")
    if found is not None:
        method = found.get("quant_method") if hasattr(found, "get") else getattr(found, "quant_method", "")
        raise ModelError(
            f"{owner} is already quantised ({getattr(method, 'value', method)}), so quantize must be None"
        )


def kind_on_disk(config: Mapping[str, Any]) -> str | None:
    """Return the kind of quantisation that takes the memory of the weights that a configuration describes.

    Args:
        config: content of a network's config.json.

    Returns:
        "nf4" for weights in 4 bits, "int8" for other quantised weights, None for weights that are not
        quantised.
    """
    found = config.get("quantization_config")
    if found is None:
        return None
    in_4_bits = found.get("load_in_4bit") or found.get("bits") == 4 or "int4" in _type_of_weights(found)
    return "nf4" if in_4_bits else "int8"


def _type_of_weights(config: Mapping[str, Any]) -> str:
    """Return what a quantization_config of quanto or torchao calls its weights, in small letters."""
    found = next((config[name] for name in ("weights_dtype", "weights", "quant_type") if name in config), "")
    if isinstance(found, Mapping):  # torchao: a class and its arguments
        found = found.get("default", {}).get("_type", "")
    return str(found).lower()


def linear_layers(network: torch.nn.Module, kind: str) -> dict[str, Linear]:
    """Return the layers to quantise by name: linear layers of the blocks, without those of LoRA.

    NF4 needs rows of whole blocks, which all large models have.
    """
    multiple = NF4_BLOCK if kind == "nf4" else 1
    blocks = tuple(f"{name}." for name, one in network.named_modules() if isinstance(one, ModuleList))
    return {
        name: one
        for name, one in network.named_modules()
        if type(one) is Linear
        and name.startswith(blocks)
        and "lora_" not in name
        and one.in_features % multiple == 0
    }


def quantise(owner: str, network: Any, kind: str, device: torch.device, *, stand_in: bool = False) -> None:
    """Quantise the weights of a network in place, layer by layer.

    At most one layer at a time has unquantised weights on the device.

    Args:
        owner: name of the network in messages.
        network: denoiser of diffusers, with its LoRA layers.
        kind: one of `QUANTISATIONS`.
        device: device on which weights are quantised, and stay; other weights are not moved.
        stand_in: use layers that can be fake in place of layers in NF4, to plan memory; see
            `quantise_stand_ins`.

    Raises:
        ModelError: the weights are quantised already, or a LoRA has magnitudes (DoRA), which are computed
            from unquantised weights.
    """
    check_choice("quantise", "quantize", kind, QUANTISATIONS)
    check_not_quantised(owner, network.config)
    if any("lora_magnitude_vector" in name for name, _ in network.named_parameters()):
        raise ModelError(f"{owner} has a LoRA with magnitudes (DoRA), so quantize must be None")
    if stand_in:
        quantise_stand_ins(network, kind)
        return
    for name, layer in linear_layers(network, kind).items():
        weight = layer.weight.detach().to(device)
        if kind == "nf4":
            network.set_submodule(name, _nf4_layer(layer, weight))
        else:
            _store_in_8_bits(layer, weight, torch.float8_e4m3fn if kind == "fp8" else torch.int8)


def quantise_stand_ins(network: Any, kind: str) -> None:
    """Quantise the weights of a fake network in place, to plan memory.

    Layers in NF4 become layers in 8 bits, which can be fake, and take the same memory beside their weights.
    `nf4_difference` counts what their weights take less.
    """
    for layer in linear_layers(network, kind).values():
        _store_in_8_bits(layer, layer.weight.detach(), torch.float8_e4m3fn if kind == "fp8" else torch.int8)
        if kind == "nf4":
            layer.__class__ = StandInForNF4


def _nf4_layer(layer: Linear, weight: Tensor) -> torch.nn.Module:
    """Return a layer of bitsandbytes with this weight in NF4, and the bias of a layer."""
    import bitsandbytes

    options: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": False}
    quantised = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, False, compute_dtype=weight.dtype, device="meta", **options
    )
    parameter: Any = bitsandbytes.nn.Params4bit(weight, requires_grad=False, blocksize=NF4_BLOCK, **options)
    quantised.weight = parameter.to(weight.device)  # quantises
    quantised.bias = layer.bias
    disable_cpu_packing(quantised)
    return quantised.train(layer.training)


class EightBitLinear(Linear):
    """Linear layer whose weight (outputs, inputs) is stored in 8 bits, with a scale (outputs, 1) in float32.

    It computes in the dtype of the input. Weight and bias get no gradients.
    """

    scale: Parameter

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _Linear.apply(input, self.weight, self.scale, self.bias)
        return output

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Apply `fn`, such as a move to a device, and keep the dtypes of weight and scale."""
        stored = {name: getattr(self, name).data for name in ("weight", "scale")}
        super()._apply(fn, recurse)
        for name, before in stored.items():
            after = getattr(self, name)
            if after.dtype != before.dtype:
                setattr(self, name, Parameter(before.to(after.device), requires_grad=False))
        return self


class StandInForNF4(EightBitLinear):
    """Layer in 8 bits that stands for one in NF4, in a plan of memory."""


def _store_in_8_bits(layer: Linear, weight: Tensor, dtype: torch.dtype) -> None:
    """Make a layer an `EightBitLinear` with this weight.

    The largest magnitude of a row becomes the largest value of `dtype`.
    """
    limit = (torch.finfo if dtype.is_floating_point else torch.iinfo)(dtype).max
    weight = weight.float()
    scale = (weight.abs().amax(dim=1, keepdim=True) / limit).clamp_min(torch.finfo(torch.float32).tiny)
    weight = weight / scale
    if not dtype.is_floating_point:
        weight = weight.round()
    layer.weight = Parameter(weight.to(dtype), requires_grad=False)
    layer.scale = Parameter(scale, requires_grad=False)
    layer.__class__ = EightBitLinear


class _Linear(torch.autograd.Function):
    """Linear function with a stored weight. The graph keeps the stored weight, not a copy in 16 bits."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(weight, scale)
        return torch.nn.functional.linear(x, _restored(weight, scale, x.dtype), bias)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = context.saved_tensors
        return gradient @ _restored(weight, scale, gradient.dtype), None, None, None


def _restored(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight that is stored, in `dtype`."""
    return weight.to(dtype, copy=True).mul_(scale.to(dtype))


def nf4_difference(network: torch.nn.Module) -> int:
    """Return how many bytes the layers in NF4 take more than their stand-ins in 8 bits; it is not positive.

    A layer in NF4 has four bits for each weight, a float32 scale for each `NF4_BLOCK` weights, and a table of
    16 values in float32.
    """
    difference = 0
    for layer in network.modules():
        if isinstance(layer, StandInForNF4):
            count = layer.weight.numel()
            difference += math.ceil(count / 2) + 4 * math.ceil(count / NF4_BLOCK) + 4 * 16
            difference -= layer.weight.nbytes + layer.scale.nbytes
    return difference
