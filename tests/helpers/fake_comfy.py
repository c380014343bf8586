"""Stand-in of the parts of ComfyUI that the nodes in integrations/comfyui use, written for the tests."""

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

PACK = Path(__file__).parents[2] / "integrations" / "comfyui"


class InterruptProcessingException(Exception):
    """ComfyUI's exception after the user has pressed Cancel."""


class Comfy:
    """State of the stand-in: requests to load models, and the number of checks until an interruption.

    Attributes:
        loaded: patchers of each request.
        memory: memory of each request.
        checks_left: checks that pass before one raises; None for no interruption.
        attention: name of the attention in use.
        fast: values of ComfyUI's option --fast.
        nodes: package of the nodes.
    """

    def __init__(self) -> None:
        self.loaded: list[list[Any]] = []
        self.memory: list[float] = []
        self.checks_left: int | None = None
        self.attention = "pytorch"
        self.fast: set[Any] = set()
        self.nodes: Any = None

    def load_models_gpu(self, models: Any, memory_required: float = 0, **options: Any) -> None:
        self.loaded.append(list(models))
        self.memory.append(memory_required)

    def throw_exception_if_processing_interrupted(self) -> None:
        if self.checks_left is not None:
            self.checks_left -= 1
            if self.checks_left < 0:
                raise InterruptProcessingException

    def run(self, name: str, /, **inputs: Any) -> tuple[Any, ...]:
        """Run a node by its name without the prefix, in inference mode as ComfyUI does."""
        node = self.nodes.NODE_CLASS_MAPPINGS[f"Noisetilt{name}"]
        given = node.INPUT_TYPES()
        named = {**given["required"], **given.get("optional", {})}
        for input_name, (_, *options) in named.items():
            if input_name not in inputs and options and "default" in options[0]:
                inputs[input_name] = options[0]["default"]
        assert set(given["required"]) <= set(inputs) <= set(named)
        with torch.inference_mode():
            outputs: tuple[Any, ...] = getattr(node(), node.FUNCTION)(**inputs)
        assert len(outputs) == len(node.RETURN_TYPES)
        return outputs


def install(monkeypatch: pytest.MonkeyPatch) -> Comfy:
    """Put the stand-in in the place of the package `comfy`, and import the nodes as ComfyUI does."""
    comfy = Comfy()
    management = types.ModuleType("comfy.model_management")
    management.InterruptProcessingException = InterruptProcessingException  # type: ignore[attr-defined]
    management.load_models_gpu = comfy.load_models_gpu  # type: ignore[attr-defined]
    management.throw_exception_if_processing_interrupted = (  # type: ignore[attr-defined]
        comfy.throw_exception_if_processing_interrupted
    )
    management.get_torch_device = lambda: torch.device("cpu")  # type: ignore[attr-defined]
    management.pytorch_attention_enabled = lambda: comfy.attention == "pytorch"  # type: ignore[attr-defined]
    management.xformers_enabled = lambda: False  # type: ignore[attr-defined]
    management.sage_attention_enabled = lambda: comfy.attention == "sage"  # type: ignore[attr-defined]
    management.supports_fp8_compute = lambda device: True  # type: ignore[attr-defined]
    arguments = types.ModuleType("comfy.cli_args")
    arguments.args = comfy  # type: ignore[attr-defined]
    package = types.ModuleType("comfy")
    package.model_management = management  # type: ignore[attr-defined]
    package.cli_args = arguments  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.model_management", management)
    monkeypatch.setitem(sys.modules, "comfy.cli_args", arguments)
    name = "custom_nodes_noisetilt"
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
    assert spec is not None and spec.loader is not None
    comfy.nodes = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, comfy.nodes)
    spec.loader.exec_module(comfy.nodes)
    return comfy


class FlowSampling:
    """Noise of a flow: sigma noise + (1 - sigma) image."""

    sigma_max = 1.0

    def noise_scaling(self, sigma: Tensor, noise: Tensor, image: Tensor, max_denoise: bool = False) -> Tensor:
        sigma = sigma.reshape(-1, *[1] * (noise.dim() - 1))
        return sigma * noise + (1 - sigma) * image


class ExplodingSampling:
    """Noise of Stable Diffusion 1.5 and SDXL: sigma noise + image."""

    sigma_max = 14.0

    def noise_scaling(self, sigma: Tensor, noise: Tensor, image: Tensor, max_denoise: bool = False) -> Tensor:
        sigma = sigma.reshape(-1, *[1] * (noise.dim() - 1))
        noise = noise * ((1 + sigma**2).sqrt() if max_denoise else sigma)
        noise += image
        return noise


class DoubleBlock(nn.Module):
    """Block of two streams that writes into one of them, also after its norm has kept it, as ComfyUI's FLUX.

    Args:
        in_place: True to write into the stream, False for the same values in new tensors.
    """

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor, text: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        first = torch.tanh(self.first(nn.functional.layer_norm(text, (4,)) + x))
        text = text.add_(first) if self.in_place else text + first
        second = torch.tanh(self.second(nn.functional.layer_norm(text, (4,))) * options["scale"])
        text = text.add_(second) if self.in_place else text + second
        return x + self.third(nn.functional.silu(text)), text


class SingleBlock(nn.Module):
    """Block of one stream that writes into it."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place, self.layer = in_place, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        change = self.layer(nn.functional.layer_norm(x, (4,)))
        return x.add_(change) if self.in_place else x + change


class WritingNetwork(nn.Module):
    """Denoiser with blocks that write into their inputs, called by position and by keyword.

    The scale that the blocks read changes from one to the next, as ComfyUI's `transformer_options` do.
    """

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.double_blocks = nn.ModuleList(DoubleBlock(in_place) for _ in range(2))
        self.single_blocks = nn.ModuleList(SingleBlock(in_place) for _ in range(2))
        generator = torch.Generator().manual_seed(0)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.7, generator=generator)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        h = x.movedim(1, -1).tanh()
        text = h.flip(1) * 0.5
        options = {"scale": 1.0}
        for block in self.double_blocks:
            h, text = block(x=h, text=text, options=options)
            options["scale"] += 1
        h = h + text
        for block in self.single_blocks:
            h = block(h)
        return x - sigma.view(-1, 1, 1, 1) * (x - 0.3 * h.movedim(-1, 1))


class Model(nn.Module):
    """ComfyUI's model: the network with the scale of its latents.

    Args:
        network: function (x, sigma (B,), condition) -> denoised latents.
        sampling: how noise is added.
        scale: latents of the model, relative to those of the VAE.
    """

    def __init__(self, network: Callable[..., Tensor], sampling: Any, scale: float = 1.0) -> None:
        super().__init__()
        self.diffusion_model, self.model_sampling, self.scale = network, sampling, scale

    def process_latent_in(self, latents: Tensor) -> Tensor:
        return latents * self.scale

    def process_latent_out(self, latents: Tensor) -> Tensor:
        return latents / self.scale

    def memory_required(self, shape: list[int]) -> float:
        return 1000.0

    def scale_latent_inpaint(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, x: Tensor) -> Tensor:
        return self.model_sampling.noise_scaling(sigma, noise, latent_image)


class Patcher:
    """ComfyUI's holder of a model."""

    def __init__(self, model: nn.Module, dynamic: bool = False) -> None:
        self.model, self.load_device, self._dynamic = model, torch.device("cpu"), dynamic

    def is_dynamic(self) -> bool:
        return self._dynamic


class Condition:
    """ComfyUI's condition of a model, with its tensor."""

    def __init__(self, cond: Tensor) -> None:
        self.cond = cond


class Guider:
    """ComfyUI's guider: it prepares latents, calls the sampler, and predicts x_0.

    Args:
        model: the model.
        condition: tensor (1 or P, ...) that the network reads; None for a network without condition.
    """

    def __init__(self, model: Model, condition: Tensor | None = None, dynamic: bool = False) -> None:
        self.model_patcher, self.loaded_models = Patcher(model, dynamic), []
        self._condition = condition
        self.model_options: dict[str, Any] = {}

    def sample(
        self,
        noise: Tensor,
        latent: Tensor,
        sampler: Any,
        sigmas: Tensor,
        mask: Tensor | None = None,
        callback: Any = None,
        seed: int = 0,
    ) -> Tensor:
        self.inner_model = self.model_patcher.model
        conditions = {} if self._condition is None else {"c": Condition(self._condition)}
        self.conds = {"positive": [{"model_conds": conditions}]}
        if bool(latent.any()):
            latent = self.inner_model.process_latent_in(latent)
        options = {"model_options": {"transformer_options": {}, **self.model_options}, "seed": seed}
        samples = sampler.sample(self, sigmas, options, callback, noise, latent, mask, True)
        return self.inner_model.process_latent_out(samples.to(torch.float32))

    def __call__(self, x: Tensor, sigma: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:
        arguments = [one.cond for one in self.conds["positive"][0]["model_conds"].values()]
        return self.inner_model.diffusion_model(x, sigma, *arguments)


class VAE:
    """ComfyUI's VAE, with a decoder to images with values from -1 to 1."""

    def __init__(self, decoder: nn.Module) -> None:
        self.first_stage_model, self.patcher = decoder, Patcher(decoder)
        self.device, self.vae_dtype = torch.device("cpu"), torch.float32

    def memory_used_decode(self, shape: Any, dtype: torch.dtype) -> float:
        return 100.0

    def process_output(self, images: Tensor) -> Tensor:
        return images.add_(1.0).div_(2.0).clamp_(0.0, 1.0)  # in place, as newer versions do


class RandomNoise:
    """ComfyUI's NOISE."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def generate_noise(self, latent: dict[str, Tensor]) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(latent["samples"].shape, generator=generator)


def sample(
    guider: Guider,
    sampler: Any,
    sigmas: Tensor,
    latent: Tensor,
    noise: Any = None,
    mask: Tensor | None = None,
    callback: Any = None,
) -> Tensor:
    """Sample as the node SamplerCustomAdvanced does, in inference mode."""
    noise = noise or RandomNoise(0)
    with torch.inference_mode():
        made = noise.generate_noise({"samples": latent})
        return guider.sample(made, latent.clone(), sampler, sigmas.clone(), mask, callback, noise.seed)
