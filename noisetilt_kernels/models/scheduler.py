"""The samplers' reverse SDE step as a scheduler for diffusers pipelines (DESIGN section 7)."""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..checks import check_choice
from ..sampling.schedules import SCHEDULES, Schedule
from ..sampling.steps import Step, advance, mean, plan_steps
from .times import snap_start


class FlowSDEScheduler(FlowMatchEulerDiscreteScheduler):
    """Reverse SDE of a rectified flow, in place of the pipeline's Euler scheduler; marginals stay the same.

        pipe.scheduler = FlowSDEScheduler.from_config(pipe.scheduler.config, schedule="linear")
        pipe.scheduler.generator = generator = torch.Generator().manual_seed(0)
        image = pipe("a cat", generator=generator).images[0]

    Some pipelines, such as FLUX's, do not pass their generator to the scheduler, so set it on both. If
    `generator` is None, torch's global generator is used, which `torch.manual_seed` seeds. A list holds one
    generator for each batch entry, as in pipelines.

    `stochastic_sampling=True` has no effect here. In the Euler scheduler it adds noise to x0_hat, which makes
    the marginals too narrow.

    Diffusers can load only components of its own package. Save pipelines with their original scheduler, and
    set this one after loading.

    Args:
        schedule, scale: name and scale of the diffusion coefficient, see `sampling.Schedule`; scale 0 is the
            ODE.

    Other arguments are the same as for FlowMatchEulerDiscreteScheduler.

    Raises:
        ValueError, TypeError: the schedule is unknown, or the scale is negative or not a number.
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
        check_choice("FlowSDEScheduler", "schedule", schedule, SCHEDULES)  # the times are the scheduler's
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
        """Set the times of the steps, see FlowMatchEulerDiscreteScheduler.

        Pipelines look for these arguments by name.

        Raises:
            ValueError: the times do not decrease from 1 to 0.
        """
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        # plan_steps calls only this method of a model
        times: Any = SimpleNamespace(sigmas=lambda n: snap_start(self.sigmas))
        try:
            self._steps = plan_steps("FlowSDEScheduler", times, len(self.sigmas) - 1, self._schedule)
        except ValueError as error:
            raise ValueError(
                "FlowSDEScheduler.set_timesteps: sigmas must decrease from 1, "
                f"got {self.sigmas[:-1].tolist()}"
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
        """Make one step of the reverse SDE: x_{t-delta} = mu + g sqrt(delta) noise; g = 0 in the last step.

        Args:
            model_output: velocity, of sample's shape.
            timestep: one of `timesteps`; used only in the first step after `set_timesteps`.
            sample: x_t, packed or not.
            generator: generator of the noise; None uses the attribute `generator`.
            noise: noise of sample's shape; None draws it.
            return_dict: return an output object instead of a tuple.

        Returns:
            x_{t-delta} as `prev_sample`, computed in float32 and rounded to model_output's dtype, in which
            pipelines pass it to the model.

        Raises:
            ValueError: noise has another shape than sample, or `set_timesteps` was not called.
        """
        if not self._steps:
            raise ValueError("FlowSDEScheduler.step: no steps are planned; call set_timesteps(n) first")
        if noise is not None and noise.shape != sample.shape:
            raise ValueError(
                f"FlowSDEScheduler.step: noise must have sample's shape {tuple(sample.shape)}, "
                f"got {tuple(noise.shape)}"
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
