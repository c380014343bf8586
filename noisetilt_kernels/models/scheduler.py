"""The samplers' reverse SDE step as a scheduler for diffusers' pipelines (DESIGN section 7)."""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..sampling.schedules import Schedule
from ..sampling.steps import Step, advance, mean, plan_steps
from .times import from_one


class FlowSDEScheduler(FlowMatchEulerDiscreteScheduler):
    """The reverse SDE of a rectified flow, which leaves its marginals as they are, in the place of the Euler scheduler:

        pipe.scheduler = FlowSDEScheduler.from_config(pipe.scheduler.config, schedule="linear")
        pipe.scheduler.generator = generator = torch.Generator().manual_seed(0)
        image = pipe("a cat", generator=generator).images[0]

    Pipelines such as FLUX's do not hand their generator on to the scheduler, so it has to be given to both. Where
    `generator` is None, torch's global one is used, which `torch.manual_seed` seeds. A list of generators is one for
    each batch entry, as in pipelines.

    The Euler scheduler's own `stochastic_sampling=True` renoises x0_hat instead, which makes marginals too narrow;
    here it has no effect.

    Diffusers loads components from its own package only: save pipelines with their own scheduler, and set this one
    after loading.

    Args:
        schedule, scale: the diffusion coefficient, as of `sampling.Schedule`; scale 0 is the ODE.

    The others are those of FlowMatchEulerDiscreteScheduler.

    Raises:
        ValueError, TypeError: unknown schedule, or a scale that is negative or no number.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
        schedule: str = "linear",
        scale: float | None = None,
    ) -> None:
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            shift=shift,
            use_dynamic_shifting=use_dynamic_shifting,
            base_shift=base_shift,
            max_shift=max_shift,
            base_image_seq_len=base_image_seq_len,
            max_image_seq_len=max_image_seq_len,
            invert_sigmas=invert_sigmas,
            shift_terminal=shift_terminal,
            use_karras_sigmas=use_karras_sigmas,
            use_exponential_sigmas=use_exponential_sigmas,
            use_beta_sigmas=use_beta_sigmas,
            time_shift_type=time_shift_type,
            stochastic_sampling=stochastic_sampling,
        )
        self.generator: torch.Generator | list[torch.Generator] | None = None
        self._schedule = Schedule(schedule, scale)
        self._steps: list[Step] = []

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """As of FlowMatchEulerDiscreteScheduler; the arguments are what pipelines look for by name.

        Raises:
            ValueError: the times do not fall from 1 to 0.
        """
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        times: Any = SimpleNamespace(sigmas=lambda n: from_one(self.sigmas))  # what planning asks of a model
        try:
            self._steps = plan_steps("FlowSDEScheduler", times, len(self.sigmas) - 1, self._schedule)
        except ValueError as error:
            raise ValueError(
                f"FlowSDEScheduler.set_timesteps: sigmas must fall from 1, got {self.sigmas[:-1].tolist()}"
            ) from error

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """One step of the reverse SDE: x_{t-delta} = mu + g sqrt(delta) noise, in the last one mu alone, with g = 0.

        Args:
            model_output: the velocity, of sample's shape.
            timestep: one of `timesteps`; it counts in the first step after `set_timesteps` only.
            sample: x_t, packed or not.
            generator: for the noise, instead of the attribute of this name.
            noise: of sample's shape, instead of noise that is drawn.
            return_dict: return an output object, not a tuple.

        Returns:
            x_{t-delta} as `prev_sample`, computed in float32, and rounded to model_output's dtype, as pipelines give it
            to the model unchanged.

        Raises:
            ValueError: noise has another shape than sample, or `set_timesteps` was not called.
        """
        if not self._steps:
            raise ValueError("FlowSDEScheduler.step: no steps are planned; call set_timesteps(n) before")
        if noise is not None and noise.shape != sample.shape:
            raise ValueError(
                f"FlowSDEScheduler.step: noise must have sample's shape {tuple(sample.shape)}, got {tuple(noise.shape)}"
            )
        if self._step_index is None:
            self._init_step_index(timestep)
        step = self._steps[self._step_index]
        x, velocity = sample.float(), model_output.float()
        if step.sigma == 0:
            x = mean(x, velocity, step)
        else:
            if noise is None:
                generator = generator if generator is not None else self.generator
                noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = advance(x, velocity, step, noise.to(x))
        self._step_index += 1
        x = x.to(model_output.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=x) if return_dict else (x,)
