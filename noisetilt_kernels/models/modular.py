"""Guided denoising as a block of diffusers' modular pipelines.

Import it by its full name, `noisetilt_kernels.models.modular`. Nothing else of the package needs modular
pipelines.
"""

from typing import Any

from diffusers import FluxPipeline

from ..checks import prompt_list
from ..sampling.records import StepRecord
from .flux import FluxFlow
from .guided_pipeline import GuidedLoop, check_guidance

try:
    from diffusers import AutoencoderKL
    from diffusers.modular_pipelines import ComponentSpec, InputParam, ModularPipelineBlocks, OutputParam
    from diffusers.modular_pipelines.flux.denoise import FluxDenoiseStep
except ImportError:
    raise ImportError(
        "noisetilt_kernels.models.modular needs a diffusers with modular pipelines of FLUX, which yours does "
        "not have; pip install -U diffusers, or use models.GuidedPipeline"
    ) from None

_ARGUMENTS = ("rho", "operator", "schedule", "guide")
"""Inputs of the block that are arguments of `sampling.ntrk`."""


class GuidedFluxDenoiseStep(ModularPipelineBlocks):  # type: ignore[misc]
    """Denoising step of FLUX.1 that is guided by a reward with NTRK, in place of `FluxDenoiseStep`.

        blocks = FluxAutoBlocks()
        blocks.sub_blocks["denoise"].sub_blocks["denoise"] = GuidedFluxDenoiseStep()
        pipe = blocks.init_pipeline()
        pipe.update_components(**flux.components)
        state = pipe(prompt="a cat", reward=reward, rho=0.1, generator=generator)
        image, records = state.get("images")[0], state.get("records")

    Inputs beside those of `FluxDenoiseStep`: `reward`, a differentiable function of the images; `prompt`, its
    prompts; `rho`, `operator`, `schedule` and `guide` as in `sampling.ntrk`; `options`, `generator`, `height`
    and `width` as in `GuidedPipeline`. The output `records` is a tuple of `StepRecord`.

    The block runs `FluxDenoiseStep` and makes no further forward. It needs the VAE as well. Image to image
    and the automatic offloading of a ComponentsManager are refused.

    Raises:
        ValueError, TypeError: an input is missing or out of its range, or a component does not fit.
        RuntimeError: inference mode is on, or the loop leaves out steps.
        NonFiniteError: a reward, gradient or latent is not finite.
    """

    model_name = "flux"

    def __init__(self) -> None:
        super().__init__()
        self._loop = FluxDenoiseStep()

    @property
    def description(self) -> str:
        """Text that diffusers shows."""
        return "Denoising step that is guided by a reward (NTRK)"

    @property
    def expected_components(self) -> list[Any]:
        """Components: those of the loop, and the VAE for the images that are judged."""
        return [*self._loop.expected_components, ComponentSpec("vae", AutoencoderKL)]

    @property
    def inputs(self) -> list[Any]:
        """Inputs: those of the loop, and those of the guidance."""
        return [
            *self._loop.inputs,
            InputParam("reward", required=True, description="Differentiable function (images, prompts)"),
            InputParam("prompt", required=True, description="Prompts for the reward"),
            InputParam("rho", default=0.3, description="Guidance strength, from 0 to 1"),
            InputParam("operator", default="w", description="Operator that whitens the gradient"),
            InputParam("schedule", default="linear", description="Diffusion coefficient of the SDE"),
            InputParam("guide", description="GuidedSteps; all steps by default"),
            InputParam("options", description="SamplerOptions"),
            InputParam("generator", description="Generator of the noise"),
            InputParam("height", description="Height of the images in pixels"),
            InputParam("width", description="Width of the images in pixels"),
        ]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """Outputs: those of the loop, and the records."""
        records = OutputParam("records", type_hint=tuple[StepRecord, ...], description="Record of each step")
        return [*self._loop.intermediate_outputs, records]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Run the loop with guidance."""
        owner, given = type(self).__name__, self.get_block_state(state)
        manager = getattr(components, "_components_manager", None)
        if manager is not None and manager._auto_offload_enabled:
            raise ValueError(
                f"{owner}: components must stay on the device until their backward; use "
                "disable_auto_cpu_offload()"
            )
        arguments = {name: getattr(given, name) for name in _ARGUMENTS if getattr(given, name) is not None}
        check_guidance(owner, "ntrk", given.reward, arguments)
        encoders = dict.fromkeys(FluxFlow.facts.encoders)
        networks = {name: getattr(components, name) for name in ("scheduler", "vae", "transformer")}
        loop = GuidedLoop(
            FluxFlow(FluxPipeline(**networks, **encoders)),
            given.reward,
            prompt_list(owner, given.prompt),
            size=(given.height, given.width),
            generator=given.generator,
            sampler="ntrk",
            options=given.options,
            arguments=arguments,
        )
        with loop.attached():
            components, state = self._loop(components, state)
        state.set("records", loop.records)
        return components, state
