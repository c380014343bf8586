"""Nodes with samplers: values of the type SAMPLER for SamplerCustom and SamplerCustomAdvanced."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import comfy.model_management
import numpy as np
import torch
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.sampling.noise import ParticleNoise

from .flow import ComfyFlow, Decoder, GivenLatents, Inpainting, decoder
from .gradients import explained, load_differentiable, recomputed, without_inference
from .noise import OPERATOR
from .rewards import CATEGORY, PROMPT, LoadedReward

log = logging.getLogger(__name__)

Callback = Callable[[int, Tensor, Tensor, int], None]
"""ComfyUI's function of (step, denoised, latents, number of steps), which shows progress and previews."""


class Judge(NamedTuple):
    """Reward of a sampler, the VAE that makes its images, and the prompt that it reads."""

    reward: LoadedReward
    vae: Any
    prompt: str


class NoisetiltSampler:
    """Value of the type SAMPLER: a sampler of the package on a model of ComfyUI.

    The first latents are those of ComfyUI: its noise and image at the first sigma. Later noise of latent p of
    the batch is the package's stream of (seed, p), which depends on nothing else.

    Args:
        method: sampler of flows with its arguments, without `steps` and `start`.
        judge: reward, VAE and prompt; None for the sampler `base`.
    """

    def __init__(self, method: sampling.Method, judge: Judge | None = None) -> None:
        method.check()
        if judge is not None:
            judge.reward.check(judge.prompt, steers=method.needs_gradient)
        self._method, self._judge = method, judge

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callback | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Return the latents x_0 (P, *shape) of the model. The arguments are those of ComfyUI's samplers."""
        gradient = self._method.needs_gradient
        decode = None
        if self._judge is not None:
            decode = prepare(model_wrap, self._judge.vae, noise, gradient)
        with torch.inference_mode(False), torch.no_grad():
            sigmas, noise = sigmas.clone(), noise.clone()
            image = torch.zeros_like(noise) if latent_image is None else latent_image.clone()
            mask = None if denoise_mask is None else Inpainting(denoise_mask.clone(), image, noise)
            if gradient and hasattr(model_wrap, "conds"):
                model_wrap.conds = without_inference(model_wrap.conds)
            flow = ComfyFlow(
                model_wrap, sigmas.tolist(), extra_args, tuple(noise.shape[1:]), noise.device, decode, mask
            )
            self._check_batch(model_wrap, len(noise), mask is not None)
            first = model_wrap.inner_model.model_sampling.noise_scaling(
                sigmas[0], noise.clone(), image, _is_largest(model_wrap, sigmas)
            )
            given = flow.coordinates.to_flow(first, flow.coordinates.time(float(sigmas[0])))
            network = model_wrap.inner_model.diffusion_model
            parts = f"{type(model_wrap.inner_model).__name__}, the VAE or the reward"
            with recomputed(network) if gradient else nullcontext(), explained(parts):
                latents = self._run(flow, given, int(extra_args.get("seed") or 0), callback)
            return latents.to(noise.device, noise.dtype)

    def _run(self, flow: ComfyFlow, given: Tensor, seed: int, callback: Callback | None) -> Tensor:
        reward = _no_reward if self._judge is None else self._judge.reward
        prompt = "" if self._judge is None else self._judge.prompt
        given_start = {"steps": flow.steps, "start": GivenLatents(given, flow.left_out)}
        method = sampling.Method(self._method.name, {**self._method.arguments, **given_start})
        options = sampling.SamplerOptions(seed=seed, micro_batch=len(given))
        run = method.stepwise(flow, reward, [prompt] * len(given), options)
        estimates = given.clone()
        try:
            for step in run:
                comfy.model_management.throw_exception_if_processing_interrupted()
                if callback is not None:
                    latents = step.latents if step.denoised is None else step.denoised
                    estimates[list(step.particles)] = latents.unflatten(0, (len(step.particles), -1))[:, 0]
                    callback(run.steps_done - 1, estimates.clone(), estimates.clone(), run.steps)
        except sampling.NonFiniteError as error:
            raise ArithmeticError(
                f"noisetilt: {error.what}; model or VAE may overflow in float16, so start ComfyUI with "
                "--bf16-vae or --fp32-vae, or use a lower rho"
            ) from error
        result = run.result()
        if self._judge is not None:
            log.info("%s: reward %s", self._method.name, [round(r, 4) for r in result.rewards.tolist()])
        return result.latents

    def _check_batch(self, guider: Any, batch: int, masked: bool) -> None:
        """Raise ValueError if candidates of several latents would mix up what belongs to each latent."""
        if batch == 1 or (self._method.entries == 1 and not self._method.sampler.alone):
            return
        own = {
            name
            for conditions in getattr(guider, "conds", {}).values()
            for condition in conditions
            for name, value in condition.get("model_conds", {}).items()
            if isinstance(getattr(value, "cond", None), Tensor) and len(value.cond) > 1
        }
        if masked or own:
            what = ", ".join(sorted(own)) or "an inpainting mask"
            raise ValueError(
                f"noisetilt: {self._method.name} takes a batch of {batch} latents only without conditions of "
                f"each latent, got {what}; use a batch of 1"
            )


class _Steps:
    """Steps of several runs, shown by one callback of ComfyUI.

    Args:
        callback: ComfyUI's function, or None.
        runs: number of runs.
        total: number of steps of a run, unless the run names another one.
    """

    def __init__(self, callback: Callback | None, runs: int, total: int) -> None:
        self._callback, self._runs, self._total = callback, runs, total

    def of_run(self, run: int) -> Callback | None:
        """Return the callback of a run."""
        if self._callback is None:
            return None
        shown = self._callback

        def callback(step: int, denoised: Tensor, latents: Tensor, total: int) -> None:
            self._total = total
            shown(run * total + step, denoised, latents, self._runs * total)

        return callback

    def show(self, latents: Tensor) -> None:
        """Show the result as the last step. ComfyUI returns it as the second output."""
        if self._callback is not None:
            steps = self._runs * self._total
            self._callback(steps - 1, latents.clone(), latents.clone(), steps)


class BestOf:
    """Value of the type SAMPLER: the best of n runs of any sampler, for each latent of the batch.

    The first run has ComfyUI's noise and seed. The noise of run r is the package's stream of a seed made from
    (seed, r). Noise that is zero (DisableNoise) stays zero.

    Args:
        sampler: any SAMPLER.
        n: number of runs, at least 1.
        judge: reward, VAE and prompt.
    """

    def __init__(self, sampler: Any, n: int, judge: Judge) -> None:
        judge.reward.check(judge.prompt, steers=False)
        self._sampler, self._n, self._judge = sampler, n, judge

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callback | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Return the latents of the best run of each latent. Arguments: those of ComfyUI's samplers."""
        decode = prepare(model_wrap, self._judge.vae, noise, gradient=False)
        seed = int(extra_args.get("seed") or 0)
        best, scores, log_lines = None, None, []
        steps = _Steps(callback, self._n, len(sigmas) - 1)
        for run in range(self._n):
            samples = self._sampler.sample(
                model_wrap,
                sigmas,
                {**extra_args, "seed": seed if run == 0 else _seed_of(seed, run)},
                steps.of_run(run),
                noise.clone() if run == 0 else _noise_of(noise, _seed_of(seed, run)),
                latent_image,
                denoise_mask,
                disable_pbar,
            )
            with torch.inference_mode(False), torch.no_grad():
                judged = torch.cat(
                    [
                        self._judge.reward(decode(x), [self._judge.prompt]).float()
                        for x in samples.clone().split(1)
                    ]
                ).cpu()
            judged = judged.nan_to_num(-torch.inf)
            log_lines.append([round(value, 4) for value in judged.tolist()])
            if best is None or scores is None:
                best, scores = samples, judged
            else:
                better = judged > scores
                best = torch.where(better.to(best.device).view(-1, *[1] * (best.dim() - 1)), samples, best)
                scores = torch.where(better, judged, scores)
        log.info("best of %d: rewards %s", self._n, log_lines)
        assert best is not None
        steps.show(best)
        return best


def prepare(guider: Any, vae: Any, noise: Tensor, gradient: bool) -> Decoder:
    """Load the model and the VAE together, and return the decoder of the model's latents.

    Both stay loaded during sampling, because a graph refers to the weights of both.

    Raises:
        RuntimeError: `gradient`, but an option of ComfyUI rules one out.
    """
    patchers = [guider.model_patcher, *getattr(guider, "loaded_models", ()), vae.patcher]
    model = guider.inner_model
    memory = model.memory_required(list(noise.shape)) + vae.memory_used_decode(noise.shape, vae.vae_dtype)
    if gradient:
        load_differentiable(patchers, memory)
    else:
        comfy.model_management.load_models_gpu(patchers, memory_required=memory)
    return decoder(vae, model.process_latent_out)


def _is_largest(guider: Any, sigmas: Tensor) -> bool:
    """Return True if the first sigma is the model's largest one, so that nothing of an image is left."""
    largest = float(guider.inner_model.model_sampling.sigma_max)
    return float(sigmas[0]) >= largest * (1 - 1e-5)


def _no_reward(images: Tensor, prompts: Any) -> Tensor:
    return images.new_zeros(len(images))


def _seed_of(seed: int, run: int) -> int:
    return int(np.random.SeedSequence([seed, run]).generate_state(1, np.uint64)[0])


def _noise_of(noise: Tensor, seed: int) -> Tensor:
    """Return other noise of the same shape, device and dtype; zero noise stays zero."""
    if not bool(noise.any()):
        return noise.clone()
    count, shape = len(noise), noise.shape[1:]
    drawn = [ParticleNoise(seed, count + index, shape).draw() for index in range(count)]
    return torch.cat(drawn).to(noise.device, noise.dtype)


class _SamplerNode:
    """Common parts of the nodes that make samplers."""

    CATEGORY, FUNCTION = CATEGORY, "make"
    RETURN_TYPES = ("SAMPLER",)


class BaseSamplerNode(_SamplerNode):
    """Node with the unguided reverse SDE."""

    DESCRIPTION = "The reverse SDE without guidance, to compare with. It needs no reward."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs of the node."""
        return {"required": _noise_inputs("base")}

    def make(self, schedule: str, scale: float) -> tuple[NoisetiltSampler]:
        """Return the sampler."""
        return (NoisetiltSampler(sampling.Method("base", _schedule(schedule, scale))),)


class NTRKSamplerNode(_SamplerNode):
    """Node with NTRK, which tilts the noise of each step along the whitened gradient of the reward."""

    DESCRIPTION = (
        "Guidance by noise sqrt(rho) W(gradient of the reward) + sqrt(1 - rho) eps at each step. It needs a "
        "gradient through the model and the VAE: several times the memory of a normal step."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs of the node."""
        return {
            "required": _JUDGE
            | {
                "rho": _number("ntrk", "rho", "FLOAT", min=0.0, max=1.0, step=0.001),
                "operator": OPERATOR,
                **_noise_inputs("ntrk"),
            },
            "optional": {"guide_every": _number("ntrk", "guide_every", "INT", min=1, max=100)},
        }

    def make(
        self,
        reward: LoadedReward,
        vae: Any,
        prompt: str,
        rho: float,
        operator: str,
        schedule: str,
        scale: float,
        guide_every: int = 1,
    ) -> tuple[NoisetiltSampler]:
        """Return the sampler."""
        arguments = {"rho": rho, "operator": operator, "guide_every": guide_every}
        method = sampling.Method("ntrk", arguments | _schedule(schedule, scale))
        return (NoisetiltSampler(method, Judge(reward, vae, prompt)),)


class SVDDSamplerNode(_SamplerNode):
    """Node with SVDD, which draws candidates at each step and keeps the best."""

    DESCRIPTION = (
        "Guidance without gradients: candidates at each step, of which the one with the best reward stays. "
        "Each candidate costs a forward of the model and of the VAE."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs of the node."""
        candidates = _number("svdd", "candidates", "INT", min=1, max=64)
        return {"required": _JUDGE | {"candidates": candidates, **_noise_inputs("svdd")}}

    def make(
        self, reward: LoadedReward, vae: Any, prompt: str, candidates: int, schedule: str, scale: float
    ) -> tuple[NoisetiltSampler]:
        """Return the sampler."""
        method = sampling.Method("svdd", {"candidates": candidates} | _schedule(schedule, scale))
        return (NoisetiltSampler(method, Judge(reward, vae, prompt)),)


class MethodSamplerNode(_SamplerNode):
    """Node with another sampler of the package, by its text."""

    DESCRIPTION = (
        "A sampler by its text, as in the commands of the package: dps:strength=0.5, rbf, das:alpha=0.1"
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs of the node."""
        text = f"NAME or NAME:ARGUMENT=VALUE,...; names: {', '.join(_METHODS)}."
        return {"required": {"method": ("STRING", {"default": "freedom", "tooltip": text}), **_JUDGE}}

    def make(self, method: str, reward: LoadedReward, vae: Any, prompt: str) -> tuple[NoisetiltSampler]:
        """Return the sampler."""
        parsed = sampling.parse_method(method.strip())
        if parsed.name not in _METHODS:
            raise ValueError(
                f"noisetilt: the node takes samplers of flows with any start: {', '.join(_METHODS)}; got "
                f"{parsed.name!r}"
            )
        for name in ("steps", "start"):
            if name in parsed.arguments:
                raise ValueError(f"noisetilt: ComfyUI gives {name} by SIGMAS and noise; leave it out")
        return (NoisetiltSampler(parsed, Judge(reward, vae, prompt)),)


class BestOfSamplerNode(_SamplerNode):
    """Node with the best of n runs of any sampler."""

    DESCRIPTION = "Runs any sampler n times with other noise, and keeps the latents with the highest reward."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs of the node."""
        n = ("INT", {"default": 4, "min": 1, "max": 1000, "tooltip": "Number of runs."})
        return {"required": {"sampler": ("SAMPLER",), **_JUDGE, "n": n}}

    def make(self, sampler: Any, reward: LoadedReward, vae: Any, prompt: str, n: int) -> tuple[BestOf]:
        """Return the sampler."""
        return (BestOf(sampler, n, Judge(reward, vae, prompt)),)


_JUDGE = {"reward": ("REWARD",), "vae": ("VAE",), "prompt": PROMPT}
_OWN_SCALE = -1.0
_METHODS = [name for name, entry in sampling.SAMPLERS.items() if {"steps", "start"} <= set(entry.parameters)]
"""Samplers of flows that can begin at given latents."""


def _number(method: str, name: str, kind: str, **limits: float) -> tuple[str, dict[str, Any]]:
    """Return the input of a sampler's parameter, with the default and help of the sampler."""
    parameter = sampling.SAMPLERS[method].parameters[name]
    return kind, {"default": parameter.default, "tooltip": parameter.help, **limits}


def _noise_inputs(method: str) -> dict[str, Any]:
    """Return the inputs of the diffusion coefficient."""
    parameter = sampling.SAMPLERS[method].parameters["schedule"]
    scale = {"default": _OWN_SCALE, "min": -1.0, "max": 10.0, "step": 0.01}
    return {
        "schedule": (list(sampling.SCHEDULES), {"default": parameter.default, "tooltip": parameter.help}),
        "scale": ("FLOAT", {**scale, "tooltip": "Factor of the noise; 0 is the ODE, -1 the schedule's own."}),
    }


def _schedule(schedule: str, scale: float) -> dict[str, Any]:
    return {"schedule": schedule} if scale == _OWN_SCALE else {"schedule": schedule, "scale": scale}
