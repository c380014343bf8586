"""Guided sampling in the denoising loops of diffusers.

A loop calls the denoiser once or more, and then the scheduler's step. A `GuidedLoop` records the graph of the
same calls, and makes the step of a sampler in place of the scheduler's.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    Flux2KleinPipeline,
    Flux2Pipeline,
    FluxPipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    WanPipeline,
    ZImagePipeline,
)
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..checks import check_choice, prompt_list
from ..functional import pack_latents, unpack_latents
from ..sampling.flow import ALL_STEPS, plan_flow
from ..sampling.options import SamplerOptions
from ..sampling.protocols import Reward, check_reward
from ..sampling.records import StepRecord
from ..sampling.registry import SAMPLERS
from ..sampling.schedules import as_schedule
from ..sampling.stepwise import SamplingRun, stepwise
from .families import family_of
from .pipeline import FlowPipelineModel
from .times import snap_start

_GUIDED = (
    FluxPipeline,
    Flux2Pipeline,
    Flux2KleinPipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    WanPipeline,
    ZImagePipeline,
)
"""Pipelines that give their scheduler the latents and velocities of the flow."""


class GuidedPipeline:
    """A diffusers pipeline whose calls are guided by a reward.

        guided = models.GuidedPipeline(pipe, reward, rho=0.1)
        images = guided("a cat", num_inference_steps=28, generator=generator).images
        print(guided.records[-1].reward)

    A call takes the arguments of the pipeline, and returns what the pipeline returns. The pipeline's own loop
    runs: its times, its classifier-free guidance, its callbacks and its interruption. The gradient goes
    through the forwards that the loop makes, so their number stays the same. Only the scheduler's step is
    replaced, by that of a sampler. Between two calls the pipeline is unchanged, except for what
    `PipelineModel` says.

    The first noise and that of the steps come from the call's `generator`, as for `FlowSDEScheduler`. With
    rho = 0 the latents have the bits of `FlowSDEScheduler` with the same generator. `sampler="base"` gives
    the same latents and takes less time and memory, because rho = 0 still computes gradients.

    All images of a call are one micro-batch. A callback may change the latents. `seconds_model` of the
    records is the time of the backward alone.

    Args:
        pipe: pipeline of FLUX.1, FLUX.2, Qwen-Image, Stable Diffusion 3, Wan or Z-Image.
        reward: differentiable function of the images, to be increased.
        sampler: name of a sampler that makes one forward in each step: "ntrk", "dps", or "base" for no
            guidance.
        options: sampler options, of which only `on_record`, `on_finished` and `non_finite` have an effect.
        gradient_checkpointing, reward_decoder: see `PipelineModel`. The models of some pipelines take no
            reward decoder.
        **arguments: further arguments of the sampler, such as rho, operator, schedule and guide for "ntrk".

    Raises:
        ValueError, TypeError: the pipeline is not supported, or an argument is unknown or out of its range.
    """

    def __init__(
        self,
        pipe: Any,
        reward: Reward,
        *,
        sampler: str = "ntrk",
        options: SamplerOptions | None = None,
        gradient_checkpointing: bool | None = None,
        reward_decoder: AutoencoderTiny | None = None,
        **arguments: Any,
    ) -> None:
        if not isinstance(pipe, _GUIDED):
            names = ", ".join(one.__name__ for one in _GUIDED)
            raise TypeError(f"GuidedPipeline: pipe must be one of {names}, got {type(pipe).__name__}")
        check_guidance("GuidedPipeline", sampler, reward, arguments)
        given = {"gradient_checkpointing": gradient_checkpointing, "reward_decoder": reward_decoder}
        settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        adapter = family_of(pipe).adapter(type(pipe).__name__, one_step=False, options=settings)
        self.pipe = pipe
        self._model: Any = adapter(pipe, **settings)
        self._sampler, self._reward, self._options, self._arguments = sampler, reward, options, arguments
        self._loop: GuidedLoop | None = None

    @property
    def records(self) -> tuple[StepRecord, ...]:
        """Records of the last call, of every step and image. An interrupted call has those of its steps."""
        return () if self._loop is None else self._loop.records

    @property
    def nfe(self) -> int:
        """Number of function evaluations of the last call: one for each step and image."""
        return 0 if self._loop is None else self._loop.nfe

    def __call__(self, *args: Any, reward_prompts: str | Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Call the pipeline with guidance.

        Args:
            *args, **kwargs: arguments of the pipeline.
            reward_prompts: prompts for the reward, one for all images or one for each prompt of the call.
                None means those of the call. Needed if the call has embeddings in place of prompts.

        Returns:
            What the pipeline returns.

        Raises:
            ValueError, TypeError: the call has no prompt, or an error of the pipeline or of the sampler.
            RuntimeError: inference mode is on, or the loop does not fit.
            NonFiniteError: a reward, gradient or latent is not finite.
        """
        bound = inspect.signature(self.pipe.__call__).bind(*args, **kwargs)
        bound.apply_defaults()
        call = bound.arguments
        prompts = call.get("prompt") if reward_prompts is None else reward_prompts
        if prompts is None:
            raise ValueError("GuidedPipeline: a call without prompt must have reward_prompts, got neither")
        self._loop = GuidedLoop(
            self._model,
            self._reward,
            prompt_list("GuidedPipeline", prompts),
            size=(call.get("height"), call.get("width")),
            generator=call.get("generator"),
            sampler=self._sampler,
            options=self._options,
            arguments=self._arguments,
        )
        with self._loop.attached():
            return self.pipe(*args, **kwargs)


def check_guidance(function: str, sampler: str, reward: Any, arguments: Mapping[str, Any]) -> None:
    """Check what does not depend on a call: the sampler, its arguments and the reward.

    Raises:
        ValueError, TypeError: the sampler makes other forwards than one in each step, an argument is unknown
            or out of its range, or the reward cannot be called.
    """
    check_choice(function, "sampler", sampler, SAMPLERS)
    found = SAMPLERS[sampler]
    valid = [name for name in found.keywords if name not in ("steps", "start")]
    unknown = sorted(set(arguments) - set(valid))
    if unknown:
        raise TypeError(
            f"{function}: {sampler} takes no {', '.join(unknown)} here; its arguments are {', '.join(valid)}"
        )
    given = {**found.defaults, **arguments}
    missing = [name for name in found.keywords if name not in given]
    if missing:
        raise TypeError(f"{function}: {sampler} needs {', '.join(missing)}")
    if found.kind != "flow" or found.nfe(given) != given["steps"] or found.entries(given) != 1:
        raise ValueError(
            f"{function}: sampler must make one forward in each step, like 'ntrk' and 'dps', got {sampler!r}"
        )
    found.algorithm(**given)  # checks the values
    schedule = as_schedule(function, given["schedule"])
    if schedule.vp is not None:
        raise ValueError(
            f"{function}: schedule {schedule.name!r} has times of its own, but the times are those of the "
            "pipeline; use 'constant', 'linear', 'quadratic' or 'flow-grpo'"
        )
    check_reward(function, reward)


class GuidedLoop:
    """One run of a denoising loop of diffusers, guided by a reward.

    Args:
        model: model of the pipeline's networks.
        reward: differentiable function of the images.
        prompts: prompts for the reward; the images of one prompt follow each other.
        size: height and width in pixels, None for the pipeline's default. Only latents in tokens need it.
        generator: generator of the noise, or one for each image; None is torch's global one.
        sampler, options, arguments: see `GuidedPipeline`, already checked by `check_guidance`.
    """

    def __init__(
        self,
        model: FlowPipelineModel,
        reward: Reward,
        prompts: Sequence[str],
        *,
        size: tuple[int | None, int | None],
        generator: torch.Generator | list[torch.Generator] | None,
        sampler: str,
        options: SamplerOptions | None,
        arguments: Mapping[str, Any],
    ) -> None:
        if torch.is_inference_mode_enabled():
            raise RuntimeError(f"{sampler}: guided calls need gradients; leave torch.inference_mode first")
        self._model, self._reward, self._prompts = model, reward, prompts
        self._size, self._generator = size, generator
        self._sampler, self._options = sampler, SamplerOptions() if options is None else options
        self._arguments = arguments
        self._scheduler = model.pipe.scheduler
        self._flow = _LoopFlow(model, self._scheduler)
        self._graphs: list[bool] = []  # steps that need the graph of their forwards
        self._inputs: list[Tensor] = []  # of the denoiser, since the last step
        self._run: SamplingRun | None = None
        self._noise: Tensor | None = None  # next draw of every image

    @property
    def records(self) -> tuple[StepRecord, ...]:
        """Records of all steps so far."""
        return () if self._run is None else self._run.records

    @property
    def nfe(self) -> int:
        """Number of function evaluations so far."""
        return 0 if self._run is None else self._run.nfe

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Guide the loop that runs in this block. Afterwards hooks and scheduler are as before.

        Raises:
            RuntimeError: the scheduler's step is already replaced.
        """
        if "step" in vars(self._scheduler):
            raise RuntimeError(
                f"{self._sampler}: the pipeline's scheduler must have the step of its class, got one that is "
                "replaced, by another guided call or by an assignment; end that call, or `del scheduler.step`"
            )
        before = torch.is_grad_enabled()
        hooks = [
            denoiser.register_forward_pre_hook(self._open, with_kwargs=True)
            for denoiser in self._model.denoisers
        ]
        self._scheduler.step = self._step
        try:
            yield
        finally:
            del self._scheduler.step
            for hook in hooks:
                hook.remove()
            torch.set_grad_enabled(before)

    def _open(self, denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pass a leaf to the denoiser, and record graphs until the scheduler's step.

        Everything that the loop computes from the output, such as classifier-free guidance, is then
        differentiable, although the loop runs under `no_grad`.
        """
        if not args and "hidden_states" not in kwargs:
            raise RuntimeError(
                f"{self._sampler}: the loop must give the denoiser the latents as its first argument or as "
                f"hidden_states, got {', '.join(kwargs) or 'nothing'}; this loop is not supported"
            )
        self._model.prepare()
        if not self._graphs:
            self._graphs = self._plan()
        graph = self._graphs[self._index]
        torch.set_grad_enabled(graph)
        given = args[0] if args else kwargs["hidden_states"]
        listed = isinstance(given, list)  # Z-Image: one tensor for each entry
        leaf = (torch.stack(given) if listed else given).detach().requires_grad_(graph)
        self._inputs.append(leaf)
        passed = list(leaf.unbind()) if listed else leaf
        return ((passed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": passed})

    def _plan(self) -> list[bool]:
        """Return which steps need the graph of their forwards."""
        sampler = SAMPLERS[self._sampler]
        given = {**sampler.defaults, **self._arguments}
        steps = len(self._scheduler.sigmas) - 1
        plan = plan_flow(
            self._sampler, self._flow, steps, given["schedule"], guide=given.get("guide", ALL_STEPS)
        )
        return [sampler.needs_gradient and step.guided for step in plan[:-1]] + [False]

    @property
    def _index(self) -> int:
        """Number of the present step."""
        return 0 if self._run is None else self._run.steps_done

    def _step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **unused: Any
    ) -> Any:
        """Make the next step of the sampler, in place of the scheduler's step."""
        torch.set_grad_enabled(False)
        inputs, self._inputs = self._inputs, []
        index, steps = self._index, len(self._graphs)
        if not inputs or index == steps or float(timestep) != float(self._scheduler.timesteps[index]):
            raise RuntimeError(
                f"{self._sampler}: the loop must call the denoiser and make all steps of the scheduler in "
                "order; loops that leave out steps, as for image to image, are not supported"
            )
        if self._run is None:
            self._run = self._begin(sample)
        else:
            self._run.replace_latents(self._unpacked(sample).float())  # a callback may have changed them
        if index < steps - 1:
            noise = randn_tensor(
                sample.shape, generator=self._generator, device=sample.device, dtype=torch.float32
            )
            self._noise = self._unpacked(noise)
        self._check_inputs(inputs, sample)
        velocity = self._unpacked(model_output.detach()).float()
        pull_back = self._pull_back(model_output, inputs, sample) if self._graphs[index] else None
        self._flow.computed = velocity, pull_back
        x = self._packed(next(self._run).latents).to(sample.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def _begin(self, sample: Tensor) -> SamplingRun:
        """Return the run that begins at the loop's first latents, and check that they fit."""
        self._flow.shape = self._shape_of(sample)
        first, count = self._unpacked(sample).float(), len(sample)
        if count % len(self._prompts):
            raise ValueError(
                f"{self._sampler}: {count} images must have one prompt for all of them or for each, "
                f"got {len(self._prompts)}"
            )

        def noise(particle: int, draw: int) -> Tensor:
            drawn = first if draw == 0 else self._noise
            assert drawn is not None
            return drawn[particle]

        return stepwise(
            self._sampler,
            self._flow,
            self._reward,
            [prompt for prompt in self._prompts for _ in range(count // len(self._prompts))],
            options=replace(self._options, noise=noise, latents=None, first_particle=0, micro_batch=count),
            steps=len(self._graphs),
            **self._arguments,
        )

    def _check_inputs(self, inputs: Sequence[Tensor], sample: Tensor) -> None:
        """Raise ValueError unless each input of the denoiser holds the latents, once or several times."""
        for one in inputs:
            copies = one.numel() // sample.numel()
            same = one.numel() == copies * sample.numel() and torch.equal(
                one.detach().view(copies, *sample.shape), sample.to(one.dtype).expand(copies, *sample.shape)
            )
            if not same:
                raise ValueError(
                    f"{self._sampler}: the loop must give the denoiser the latents alone; loops for "
                    "inpainting, editing or control are not supported"
                )

    def _pull_back(
        self, output: Tensor, inputs: Sequence[Tensor], sample: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """Return the function that multiplies by the transposed Jacobian of the output in the latents.

        The output is differentiated in the inputs of the denoiser. An input holds the latents once or several
        times, so the gradients of all of them are added.
        """
        if not output.requires_grad:
            raise RuntimeError(
                f"{self._sampler}: the velocity has no gradient in the latents; the denoiser must not use "
                "no_grad"
            )

        def pull_back(cotangent: Tensor) -> Tensor:
            gradients = torch.autograd.grad(
                output, inputs, self._packed(cotangent).to(output.dtype), materialize_grads=True
            )
            total = torch.zeros_like(sample, dtype=torch.float32)
            for one in gradients:
                total += one.float().view(-1, *sample.shape).sum(dim=0)
            return self._unpacked(total)

        return pull_back

    @property
    def _tokens(self) -> bool:
        """True if the loop's latents are tokens of 2x2 values."""
        return self._model.facts.packing > 1

    def _shape_of(self, sample: Tensor) -> tuple[int, ...]:
        """Return the shape of one latent that is not packed."""
        if not self._tokens:
            return tuple(sample.shape[1:])
        pipe = self._model.pipe
        factor = 2 * pipe.vae_scale_factor
        default = pipe.default_sample_size * pipe.vae_scale_factor
        height, width = (2 * ((side or default) // factor) for side in self._size)
        if height * width != 4 * sample.shape[1]:
            raise ValueError(
                f"{self._sampler}: the loop's latents must have {height * width // 4} tokens for images of "
                f"{height * factor // 2}x{width * factor // 2} pixels, got {tuple(sample.shape)}"
            )
        return sample.shape[2] // 4, height, width

    def _unpacked(self, x: Tensor) -> Tensor:
        return unpack_latents(x, *self._flow.shape[1:]) if self._tokens else x

    def _packed(self, x: Tensor) -> Tensor:
        return pack_latents(x) if self._tokens else x


class _LoopFlow:
    """The flow of a denoising loop, as `sampling.FlowModel`: its velocities are those that the loop computed.

    Attributes:
        shape: shape of one latent, known from the first step on.
        computed: velocity at the latents of the present step, (B, *shape), and the function that multiplies
            by its transposed Jacobian, or None.
    """

    def __init__(self, model: FlowPipelineModel, scheduler: Any) -> None:
        self._model, self._scheduler = model, scheduler
        self.shape: tuple[int, ...] = ()
        self.computed: tuple[Tensor, Callable[[Tensor], Tensor] | None] | None = None

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def decode_preview(self) -> Callable[[Tensor], Tensor] | None:
        return self._model.decode_preview

    def decode(self, x0: Tensor) -> Tensor:
        return self._model.decode(x0)

    def sigmas(self, n: int) -> Tensor:
        return snap_start(self._scheduler.sigmas)

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        assert self.computed is not None  # checked: one forward in each step
        (velocity, pull_back), self.computed = self.computed, None
        if pull_back is None:
            return velocity
        result: Tensor = _Computed.apply(x, velocity, pull_back)
        return result


class _Computed(torch.autograd.Function):
    """A known function value, with the function for its vector-Jacobian product."""

    @staticmethod
    def forward(context: Any, x: Tensor, value: Tensor, pull_back: Callable[[Tensor], Tensor]) -> Tensor:
        context.pull_back = pull_back
        return value.clone()

    @staticmethod
    def backward(context: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        return context.pull_back(cotangent), None, None
