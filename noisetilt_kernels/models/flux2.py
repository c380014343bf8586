"""FLUX.2 dev and klein as models for the samplers."""

from collections.abc import Sequence

import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from ..checks import check_number
from ..functional import pack_latents, unpack_latents
from .patched import PatchedFlow
from .pipeline import FamilyFacts
from .times import exact_timestep, shifted_sigmas
from .weights import compute_dtype


class Flux2KleinFlow(PatchedFlow):
    """A Flux2KleinPipeline as `sampling.FlowModel`. See `PipelineModel` for how the pipeline is used.

    Latents are unpacked, (32, H/8, W/8). They are float32 outside of the networks, in any dtype of the
    networks. In place of a scaling factor, the VAE has a mean and a variance for each channel of a 2x2 patch.
    With `Schedule("constant", 0)` the samplers follow the same path as `pipe(...)`.
    Prompts are cut or padded to 512 tokens; the transformer reads the padding too.

    Args:
        pipe: FLUX.2 klein, distilled or base, or a model derived from it.
        height, width: size of images in pixels, multiples of 16; None is 1024.
        guidance_scale: scale of classifier-free guidance, v = v(negative) + scale (v(prompt) - v(negative)).
            A guided velocity takes two passes through the transformer; at 1 and below there is one pass and
            no guidance. A distilled model ignores it, as in the pipeline.
        negative_prompt: prompt that guidance leads away from; the pipeline always takes an empty one.
        gradient_checkpointing: see `PipelineModel`.

    Raises:
        ValueError, TypeError: an argument is out of its range, the pipeline has no transformer or no VAE, or
            it is under group offloading.
    """

    facts = FamilyFacts("FLUX.2 klein", Flux2KleinPipeline, packing=4)

    def __init__(
        self,
        pipe: Flux2KleinPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float = 4.0,
        negative_prompt: str = "",
        gradient_checkpointing: bool | None = None,
    ) -> None:
        self.check(pipe)
        if pipe.config.is_distilled and negative_prompt:
            raise ValueError(
                "Flux2KleinFlow: negative_prompt must be empty for a distilled model, which has no guidance, "
                f"got {negative_prompt!r}"
            )
        self.check_guidance(guidance_scale, negative_prompt)
        super().__init__(
            pipe,
            height,
            width,
            gradient_checkpointing,
            weight=1 if pipe.config.is_distilled else guidance_scale,
            negative_prompt=negative_prompt,
        )

    def sigmas(self, n: int) -> Tensor:
        shift = compute_empirical_mu(self._shape[1] * self._shape[2] // 4, n)
        return shifted_sigmas(self.pipe.scheduler, n, shift)

    def embedded_guidance(self) -> float | None:
        """Return the guidance scale that the transformer gets; None for a transformer without one."""
        return None

    def conditional_velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        pipe, transformer, (height, width) = self.pipe, self.pipe.transformer, self._shape[1:]
        dtype, tokens = compute_dtype(transformer), self.prompts.batch(prompts)["tokens"]
        self.prepare()
        time = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
        guidance = self.embedded_guidance()
        patches = torch.empty(1, 0, height // 2, width // 2)
        with exact_timestep(transformer.time_guidance_embed.time_proj, 1000 * time):
            velocity: Tensor = transformer(
                hidden_states=pack_latents(x).to(dtype),
                timestep=time,
                guidance=None if guidance is None else torch.full_like(time, guidance),
                encoder_hidden_states=tokens.to(x.device, dtype),
                txt_ids=pipe._prepare_text_ids(tokens[:1])[0].to(x.device),
                img_ids=pipe._prepare_latent_ids(patches)[0].to(x.device),
                return_dict=False,
            )[0]
        return unpack_latents(velocity.to(x.dtype), height, width)

    def unscaled(self, x0: Tensor) -> Tensor:
        vae = self.pipe.vae
        mean = vae.bn.running_mean.to(x0)
        std = (vae.bn.running_var.to(x0) + vae.config.batch_norm_eps).sqrt()
        return unpack_latents(pack_latents(x0) * std + mean, *x0.shape[2:])


class Flux2Flow(Flux2KleinFlow):
    """A Flux2Pipeline as `sampling.FlowModel`. See `Flux2KleinFlow` for latents and times.

    Args:
        pipe: FLUX.2 dev, or a model derived from it.
        height, width, gradient_checkpointing: see `Flux2KleinFlow`.
        guidance_scale: scale of embedded guidance, at least 0; it always takes one pass.

    Raises:
        ValueError, TypeError: see `Flux2KleinFlow`.
    """

    facts = FamilyFacts("FLUX.2", Flux2Pipeline, packing=4)

    def __init__(
        self,
        pipe: Flux2Pipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float = 4.0,
        gradient_checkpointing: bool | None = None,
    ) -> None:
        self.check(pipe)
        check_number("Flux2Flow", "guidance_scale", guidance_scale, 0)
        self._guidance_scale = float(guidance_scale)
        # the parent's __init__ is for klein
        PatchedFlow.__init__(self, pipe, height, width, gradient_checkpointing, weight=1, negative_prompt="")

    def embedded_guidance(self) -> float:
        return self._guidance_scale
