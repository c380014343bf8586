"""Models that share networks: each gives the results that it gives alone, also in turns with the other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import CpuOffload, UserCpuOffloadHook, add_hook_to_module
from diffusers import FluxPipeline, StableDiffusionXLPipeline
from model_checks import gradient, kept_for_backward, noise, redness, steered
from tiny_flux import tiny_flux, tiny_taesd
from tiny_models import SIZE, tiny_sd3, tiny_sdxl_turbo
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.models import FluxFlow, FluxOneStep, SD3Flow, SDXLTurbo

PROMPTS = ["a red cat", "the dog"]
SHAPE = (4, 16, 32)
LARGER = {"height": 64, "width": 64}


def in_turns(first: Any, second: Any) -> list[Tensor]:
    """Return the latents of runs of two models, each step of one followed by a step of the other."""
    found: dict[str, Tensor] = {}

    def run_second(record: sampling.StepRecord) -> None:
        if record.particle == 0:
            found["second"] = steered(second, PROMPTS)

    options = sampling.SamplerOptions(micro_batch=2, on_record=run_second)
    result = sampling.ntrk(first, redness, PROMPTS, steps=3, rho=0.5, options=options)
    return [result.latents, found["second"]]


PAIRS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "two sizes": lambda pipe: (FluxFlow(pipe, **SIZE), FluxFlow(pipe, **LARGER)),
    "guided and not": lambda pipe: (
        FluxFlow(pipe, **SIZE),
        FluxFlow(pipe, **SIZE, true_cfg_scale=3.0, negative_prompt="the house"),
    ),
    "a flow and a one-step model": lambda pipe: (FluxFlow(pipe, **SIZE), FluxOneStep(pipe, **SIZE)),
    "two pipelines": lambda pipe: (
        FluxFlow(pipe, **SIZE),
        FluxFlow(FluxPipeline(**pipe.components), **LARGER),
    ),
    "from_pipe": lambda pipe: (
        FluxFlow(pipe, **SIZE),
        FluxFlow(FluxPipeline.from_pipe(pipe), **SIZE, guidance_scale=1.0),
    ),
    "with and without previews": lambda pipe: (
        FluxFlow(pipe, **SIZE),
        FluxFlow(pipe, **SIZE, reward_decoder=tiny_taesd()),
    ),
    "checkpointing": lambda pipe: (
        FluxFlow(pipe, **SIZE, gradient_checkpointing=True),
        FluxFlow(pipe, **SIZE, gradient_checkpointing=False),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_two_models_in_turns(name: str) -> None:
    alone = [steered(PAIRS[name](tiny_flux())[index], PROMPTS) for index in (0, 1)]
    assert alone[0].shape != alone[1].shape or name == "checkpointing" or not torch.equal(*alone)
    found = in_turns(*PAIRS[name](tiny_flux()))
    assert all(torch.equal(*pair) for pair in zip(found, alone, strict=True))


def test_two_pipelines_with_the_same_encoders_and_vae() -> None:
    """A second U-Net in a pipeline made of the components of the first."""

    def pair() -> tuple[SDXLTurbo, SDXLTurbo]:
        pipe, other = tiny_sdxl_turbo(), tiny_sdxl_turbo().unet
        torch.manual_seed(1)
        with torch.no_grad():
            other.conv_out.weight.normal_(std=0.1)
        second = StableDiffusionXLPipeline(**{**pipe.components, "unet": other}, add_watermarker=False)
        return SDXLTurbo(pipe, **SIZE), SDXLTurbo(second, **SIZE, gradient_checkpointing=True)

    alone = [steered(pair()[index], PROMPTS) for index in (0, 1)]
    assert not torch.equal(*alone)
    models = pair()
    x = noise(SHAPE)
    for _ in range(2):
        for model, expected in zip(models, alone, strict=True):
            assert torch.equal(steered(model, PROMPTS), expected)
            assert model.generate(x, ["a cat"]).isfinite().all()


@pytest.mark.parametrize("make", [tiny_flux, tiny_sd3])
def test_each_model_keeps_its_gradient_checkpointing(make: Callable[[], Any]) -> None:
    """The setting belongs to the model; the networks hold that of the model that was used last."""
    pipe = make()
    adapter: Any = FluxFlow if isinstance(pipe, FluxPipeline) else SD3Flow
    recomputing, keeping = (adapter(pipe, **SIZE, gradient_checkpointing=one) for one in (True, False))
    x = noise(SHAPE).requires_grad_()
    networks = (pipe.transformer, pipe.vae)
    for part in (lambda model: model.velocity(x, 0.6, ["a"]), lambda model: model.decode(x)):
        small, large = (kept_for_backward(networks, lambda m=m, p=part: p(m)) for m in (recomputing, keeping))
        assert small < 0.6 * large
        again = kept_for_backward(networks, lambda p=part: p(recomputing))
        assert again == small
    assert recomputing.gradient_checkpointing and not keeping.gradient_checkpointing
    slopes = [
        gradient(lambda x, m=m: m.velocity(x, 0.6, ["a"]), noise(SHAPE)) for m in (recomputing, keeping)
    ]
    torch.testing.assert_close(*slopes)


class Offloaded(CpuOffload):
    """Hook of model offloading without a GPU: a network that is not at work has NaN weights."""

    def __init__(self, model: torch.nn.Module, before: UserCpuOffloadHook | None) -> None:
        super().__init__("cpu", before)
        self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def init_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        for parameter in module.parameters():
            parameter.data.fill_(torch.nan)
        return module

    def pre_forward(self, module: torch.nn.Module, *args: object, **kwargs: object) -> tuple[object, object]:
        if self.prev_module_hook is not None:
            self.prev_module_hook.offload()
        for name, parameter in module.named_parameters():
            parameter.data.copy_(self.weights[name])
        return args, kwargs


def offloaded(pipe: Any) -> Any:
    """Hook a pipeline as `enable_model_cpu_offload` does."""
    before = None
    for name in pipe.model_cpu_offload_seq.split("->"):
        network = getattr(pipe, name, None)
        if network is not None:
            hook = Offloaded(network, before)
            add_hook_to_module(network, hook)
            before = UserCpuOffloadHook(network, hook)
    return pipe


@pytest.mark.parametrize("name", ["two sizes", "two pipelines", "from_pipe", "with and without previews"])
def test_offloaded_models_in_turns(name: str) -> None:
    alone = [steered(PAIRS[name](tiny_flux())[index], PROMPTS) for index in (0, 1)]
    found = in_turns(*PAIRS[name](offloaded(tiny_flux())))
    assert all(torch.equal(*pair) for pair in zip(found, alone, strict=True))
