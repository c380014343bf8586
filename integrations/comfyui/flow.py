"""A model of ComfyUI during sampling as the package's `FlowModel`, and the start of its trajectories."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import comfy.model_management
import torch
from torch import Tensor

from noisetilt_kernels.sampling.starts import PlainNoise, Point

Decoder = Callable[[Tensor], Tensor]
"""Function from latents (B, *shape) of a model to images (B, 3, H, W) with values in [0, 1]."""


class Coordinates(NamedTuple):
    """Times and latents of a model of ComfyUI, against those of a rectified flow x_t = (1-t) x_0 + t eps.

    A flow (FLUX, Stable Diffusion 3, Z-Image) has these already: t = sigma. Another model (Stable Diffusion
    1.5, SDXL) has latents x_0 + sigma eps. With t = sigma / (1 + sigma) they are x_t / (1-t).
    """

    flow: bool
    """True for a flow, False for latents x_0 + sigma eps."""

    def time(self, sigma: float) -> float:
        """Return the time of a noise level."""
        return sigma if self.flow else sigma / (1 + sigma)

    def sigma(self, t: float) -> float:
        """Return the noise level of a time, below 1 unless the model is a flow."""
        return t if self.flow else t / (1 - t)

    def to_flow(self, x: Tensor, t: float) -> Tensor:
        """Return the flow's latents at time t for those of the model."""
        return x if self.flow else (1 - t) * x

    def from_flow(self, x: Tensor, t: float) -> Tensor:
        """Return the model's latents for those of the flow at time t."""
        return x if self.flow else x / (1 - t)


def coordinates_of(model_sampling: Any) -> Coordinates:
    """Return the coordinates of a model, from how it adds noise to an image.

    Raises:
        ValueError: the model adds noise in another way.
    """
    one, zero, sigma = torch.ones(1), torch.zeros(1), torch.tensor([0.25])
    noise, image = (
        float(model_sampling.noise_scaling(sigma, *pair)) for pair in ((one, zero), (zero.clone(), one))
    )
    if math.isclose(noise, 0.25, rel_tol=1e-4):
        for flow, share in ((True, 0.75), (False, 1.0)):
            if math.isclose(image, share, rel_tol=1e-4):
                return Coordinates(flow)
    raise ValueError(
        f"noisetilt: {type(model_sampling).__name__} adds noise as {image:g} image + {noise:g} noise at "
        "sigma 0.25; the samplers take flows (0.75 image + 0.25 noise) and models such as SDXL (1 and 0.25)"
    )


class Inpainting(NamedTuple):
    """Tensors of an inpainting mask: mask, image and noise, each (P, *shape) or (1, *shape)."""

    mask: Tensor
    image: Tensor
    noise: Tensor


class ComfyFlow:
    """A model of ComfyUI during sampling, as a `FlowModel` of the package.

    Latents are float32 in the coordinates of the flow. The denoised estimate x_0 of ComfyUI gives the
    velocity (x_t - x_0) / t. Prompts are not used: the conditions are those of ComfyUI's guider.

    Args:
        guider: function (x, sigma (B,), model_options=, seed=) -> denoised, with the attribute `inner_model`.
        sigmas: noise levels of ComfyUI, which fall to 0.
        extra_args: keyword arguments of the guider.
        shape: shape of one latent.
        device: device of the latents.
        decode: decoder of the images, or None for a sampler without reward.
        inpainting: mask of the part to paint, or None for all.

    Raises:
        ValueError: the noise levels or the model do not fit.
    """

    def __init__(
        self,
        guider: Any,
        sigmas: Sequence[float],
        extra_args: dict[str, Any],
        shape: tuple[int, ...],
        device: torch.device,
        decode: Decoder | None = None,
        inpainting: Inpainting | None = None,
    ) -> None:
        self.shape, self.device = shape, device
        if inpainting is not None and "denoise_mask_function" in extra_args.get("model_options", {}):
            raise ValueError(
                "noisetilt: a mask must stay the same during sampling, got one of Differential Diffusion, "
                "which changes; remove that node"
            )
        self.coordinates = coordinates_of(guider.inner_model.model_sampling)
        self.decode: Decoder = decode or _no_images
        times = self._times_of(sigmas)
        self._left_out = int(times[0] < 1)
        self.times = [1.0] * self._left_out + times
        self._guider, self._extra_args, self._inpainting = guider, extra_args, inpainting

    @property
    def left_out(self) -> int:
        """Number of first steps that the trajectory leaves out: 1 if it starts below t = 1."""
        return self._left_out

    @property
    def steps(self) -> int:
        """Number of steps of `sigmas`: one more than are made, if the trajectory starts below t = 1."""
        return len(self.times) - 1

    def _times_of(self, sigmas: Sequence[float]) -> list[float]:
        falling = all(a > b for a, b in itertools.pairwise(sigmas))
        if len(sigmas) < 2 or sigmas[-1] != 0 or not falling:
            raise ValueError(
                f"noisetilt: SIGMAS must fall to 0, got {[round(s, 4) for s in sigmas]}; use a scheduler "
                "such as BasicScheduler, and the last part of SplitSigmas"
            )
        times = [self.coordinates.time(sigma) for sigma in sigmas]
        if times[0] > 1 + 1e-5:
            raise ValueError(
                f"noisetilt: the SIGMAS of a flow begin at most at 1, got {sigmas[0]:g}; connect the "
                "scheduler to the same model"
            )
        if times[0] >= 1 - 1e-6:
            times[0] = 1.0
        return times

    def sigmas(self, n: int) -> Tensor:
        """Return the times from 1 to 0. The first step is left out if the trajectory starts below 1."""
        if n != self.steps:
            raise ValueError(f"noisetilt: the SIGMAS have {self.steps} steps, got {n}")
        return torch.tensor(self.times, dtype=torch.float64)

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        """Return (x - x_0) / t for latents x (B, *shape) at time t = sigma.

        Raises:
            comfy.model_management.InterruptProcessingException: the user has pressed Cancel.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        level = x.new_full((len(x),), self.coordinates.sigma(sigma))
        latents = self.coordinates.from_flow(x, sigma)
        if self._inpainting is not None:
            mask, image, noise = (_rows(part, len(x)) for part in self._inpainting)
            known = self._guider.inner_model.scale_latent_inpaint(
                x=latents, sigma=level, noise=noise, latent_image=image
            )
            latents = mask * latents + (1 - mask) * known
        denoised = self._guider(latents, level, **self._extra_args)
        if self._inpainting is not None:
            denoised = mask * denoised + (1 - mask) * image
        return (x - denoised) / sigma


class GivenLatents(PlainNoise):
    """Start of a sampler at given latents, at the first time of ComfyUI's sigmas.

    Args:
        latents: latents (P, *shape) of P particles, in the coordinates of the flow.
        left_out: number of first steps of the model's times that are left out, 0 or 1.
    """

    def __init__(self, latents: Tensor, left_out: int) -> None:
        self._latents, self._left_out = latents, left_out

    def begin(self, batch: Any, model: Any, step: Any, copies: int = 1) -> Point:
        """Return the latents of the particles of a micro-batch, (B copies, *shape)."""
        return Point(batch.rows_of("noisetilt: latents", self._latents).repeat_interleave(copies, dim=0))

    def left_out(self, steps: int) -> int:
        """Return the number of first steps that are left out."""
        return self._left_out


def decoder(vae: Any, unscale: Callable[[Tensor], Tensor] = lambda latents: latents) -> Decoder:
    """Return the differentiable decoder of a VAE of ComfyUI. Networks stay where they are loaded.

    Args:
        vae: ComfyUI's VAE.
        unscale: function from the latents of a model to those of the VAE.
    """

    def decode(latents: Tensor) -> Tensor:
        latents = unscale(latents).to(vae.device, vae.vae_dtype)
        images: Tensor = vae.first_stage_model.decode(latents)
        images = _ToPixels.apply(images.to(torch.float32), vae.process_output)
        if images.dim() == 5 and images.shape[2] == 1:  # an image of a model of videos
            images = images.squeeze(2)
        if images.dim() not in (4, 5) or images.shape[1] < 3:
            raise ValueError(
                f"noisetilt: the VAE must make images (B, 3, H, W) or videos, got {tuple(images.shape)}; "
                "connect the VAE of the model"
            )
        return images[:, :3]

    return decode


class _ToPixels(torch.autograd.Function):
    """Output of a VAE as pixels, by ComfyUI's function, which clamps (x + 1) / 2 to [0, 1] for most VAEs.

    The backward leaves the clamp out, as in the models of the package: pixels outside keep their gradient.
    """

    @staticmethod
    def forward(context: Any, output: Tensor, process: Callable[[Tensor], Tensor]) -> Tensor:
        low, high = (process(torch.full((1,) * output.dim(), value)).item() for value in (0.25, 0.75))
        context.slope = (high - low) / 0.5
        return process(output.clone())  # it may work in place

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return context.slope * gradient, None


def _no_images(latents: Tensor) -> Tensor:
    return latents.new_zeros((len(latents), 3, 1, 1))


def _rows(part: Tensor, count: int) -> Tensor:
    """Return (P, *shape) for `count` entries: P is 1 or `count`."""
    return part.expand(count, *part.shape[1:])
