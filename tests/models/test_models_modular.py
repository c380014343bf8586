"""The guided block in modular pipelines of diffusers."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import ComponentsManager, FluxPipeline
from torch import Tensor

from noisetilt_kernels.models import GuidedPipeline, load_pipeline

modular = pytest.importorskip("noisetilt_kernels.models.modular")
PROMPTS = ["a handwritten seven", "a handwritten one"]


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.flatten(1).mean(dim=1)


@pytest.fixture(scope="module")
def digits() -> FluxPipeline:
    pipe = load_pipeline("digits", dtype=torch.float32, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def blocks() -> Any:
    from diffusers.modular_pipelines import FluxAutoBlocks

    made = FluxAutoBlocks()
    made.sub_blocks["denoise"].sub_blocks["denoise"] = modular.GuidedFluxDenoiseStep()
    return made


def call_of(pipe: FluxPipeline, seed: int = 3, **changed: Any) -> dict[str, Any]:
    side = pipe.vae.config.sample_size
    generator = torch.Generator().manual_seed(seed)
    sizes = {"height": side, "width": side, "num_inference_steps": 4, "max_sequence_length": 16}
    return {"prompt": PROMPTS, "generator": generator, "output_type": "pt", **sizes, **changed}


def test_equals_the_guided_pipeline(digits: FluxPipeline) -> None:
    pipe = blocks().init_pipeline()
    pipe.update_components(**digits.components)
    calls: list[None] = []
    spy = digits.transformer.register_forward_hook(lambda *_: calls.append(None))
    state = pipe(reward=brightness, rho=0.1, operator="norm", schedule="quadratic", **call_of(digits))
    assert len(calls) == 4
    spy.remove()
    guided = GuidedPipeline(digits, brightness, rho=0.1, operator="norm", schedule="quadratic")
    expected = guided(**call_of(digits)).images
    torch.testing.assert_close(state.get("images"), expected, rtol=0, atol=1e-5)
    found = [(one.particle, one.step, one.reward) for one in state.get("records")]
    assert found == [(one.particle, one.step, pytest.approx(one.reward, rel=1e-4)) for one in guided.records]
    assert not state.get("images").requires_grad and not digits.transformer._forward_pre_hooks


def test_inputs_and_components() -> None:
    made = blocks()
    assert {"reward", "rho", "operator", "generator", "prompt"} <= set(made.input_names)
    assert {"transformer", "scheduler", "vae", "text_encoder"} <= set(made.component_names)
    assert "records" in made.sub_blocks["denoise"].sub_blocks["denoise"].intermediate_output_names


def test_errors(digits: FluxPipeline) -> None:
    pipe = blocks().init_pipeline()
    pipe.update_components(**digits.components)
    with pytest.raises(ValueError, match="'reward' is missing"):
        pipe(**call_of(digits))
    with pytest.raises(ValueError, match="ntrk: rho must be"):
        pipe(reward=brightness, rho=2.0, **call_of(digits))
    image = torch.rand(1, 3, digits.vae.config.sample_size, digits.vae.config.sample_size)
    with pytest.raises(RuntimeError, match="image to image"):
        pipe(reward=brightness, image=image, strength=0.5, **call_of(digits, prompt="a handwritten one"))
    assert torch.is_grad_enabled()


def test_automatic_offloading_is_refused(digits: FluxPipeline) -> None:
    manager = ComponentsManager()
    pipe = blocks().init_pipeline(components_manager=manager)
    pipe.update_components(**digits.components)
    manager._auto_offload_enabled = True  # enabling it needs a GPU
    with pytest.raises(ValueError, match=r"use disable_auto_cpu_offload\(\)"):
        pipe(reward=brightness, **call_of(digits))
