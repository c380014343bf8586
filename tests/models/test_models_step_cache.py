"""Step caches of diffusers, which every family refuses when a model is made and when it is called."""

from collections.abc import Callable
from typing import Any

import pytest
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.hooks import (
    FasterCacheConfig,
    MagCacheConfig,
    TaylorSeerCacheConfig,
    apply_pyramid_attention_broadcast,
)
from model_checks import noise, redness
from tiny_flux import tiny_flux
from tiny_ltx import SIZE as LTX_SIZE
from tiny_ltx import tiny_ltx
from tiny_models import (
    tiny_flux2,
    tiny_flux2_klein,
    tiny_qwen_image,
    tiny_sana_sprint,
    tiny_sd3,
    tiny_sd_turbo,
    tiny_sdxl_turbo,
    tiny_z_image,
)
from tiny_wan import tiny_wan, tiny_wan_a14b

from noisetilt_kernels import models, sampling
from noisetilt_kernels.models import family_of

FAMILIES: dict[str, Callable[[], Any]] = {
    "flux": tiny_flux,
    "wan": tiny_wan,
    "wan a14b": tiny_wan_a14b,
    "ltx": tiny_ltx,
    "z-image": tiny_z_image,
    "qwen": tiny_qwen_image,
    "sd3": tiny_sd3,
    "flux2": tiny_flux2,
    "klein": tiny_flux2_klein,
    "sd": tiny_sd_turbo,
    "sdxl": tiny_sdxl_turbo,
    "sana": tiny_sana_sprint,
}

SIZES = {
    "wan": {"height": 32, "width": 32, "num_frames": 5},
    "wan a14b": {"height": 32, "width": 32, "num_frames": 5},
    "ltx": LTX_SIZE,
    "z-image": {"height": 64, "width": 64},
}
"""Small sizes for the families whose defaults do not follow the model's configuration."""


def broadcast() -> PyramidAttentionBroadcastConfig:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1001),
        spatial_attention_block_identifiers=("blocks", "layers"),
        current_timestep_callback=lambda: 500,
    )


CACHES: dict[str, Callable[[], Any]] = {
    "first block": lambda: FirstBlockCacheConfig(threshold=0.1),
    "broadcast": broadcast,
    "faster": lambda: FasterCacheConfig(
        spatial_attention_timestep_skip_range=(0, 1001), current_timestep_callback=lambda: 500
    ),
    "taylorseer": TaylorSeerCacheConfig,
    "mag": lambda: MagCacheConfig(num_inference_steps=4, mag_ratios=[1.0] * 4),
}


def call(model: Any) -> None:
    x = noise(model.shape)
    if isinstance(model, sampling.FlowModel):
        model.velocity(x, 0.5, ["a cat"])
    else:
        model.generate(x, ["a cat"])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_is_refused_before_and_after_a_model_is_made(name: str) -> None:
    pipe = FAMILIES[name]()
    family = family_of(pipe)
    adapter, size = family.flow or family.one_step, SIZES.get(name, {})
    model = adapter(pipe, **size)
    call(model)
    denoiser = family.facts.denoiser
    cached = getattr(pipe, denoiser)
    if hasattr(cached, "enable_cache"):
        cached.enable_cache(broadcast())
    else:
        apply_pyramid_attention_broadcast(cached, broadcast())
    error = rf"must have its {denoiser} without a step cache, .*; use pipe\.{denoiser}\.disable_cache\(\)$"
    with pytest.raises(ValueError, match=rf"^{type(pipe).__name__} {error}"):
        call(model)
    with pytest.raises(ValueError, match=rf"^{adapter.__name__}: pipe {error}"):
        adapter(pipe, **size)
    if hasattr(cached, "enable_cache"):
        cached.disable_cache()
        call(model)
        adapter(pipe, **size)


@pytest.mark.parametrize("name", CACHES)
def test_every_cache_is_refused(name: str) -> None:
    pipe = tiny_flux()
    model = models.FluxFlow(pipe)
    pipe.transformer.enable_cache(CACHES[name]())
    for refused in (lambda: models.FluxFlow(pipe), lambda: call(model)):
        with pytest.raises(ValueError, match="must have its transformer without a step cache"):
            refused()
    with pytest.raises(ValueError, match="without a step cache"):
        sampling.ntrk(model, redness, "a cat", steps=2)


def test_a_cache_of_the_second_expert_is_refused() -> None:
    pipe = tiny_wan_a14b()
    model = models.WanFlow(pipe, **SIZES["wan"])
    pipe.transformer_2.enable_cache(broadcast())
    with pytest.raises(ValueError, match="must have its transformer_2 without a step cache"):
        call(model)
