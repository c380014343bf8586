"""SDTurbo, SDXLTurbo and SanaSprint against the diffusers pipelines, on tiny random models."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LCMScheduler
from model_checks import assert_gradient, gradient, kept_for_backward, noise, redness
from tiny_models import SIZE, tiny_sana_sprint, tiny_sd_turbo, tiny_sdxl_turbo, tiny_z_image
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.models import ModelError, SanaSprint, SDTurbo, SDXLTurbo, family_of, load_pipeline
from noisetilt_kernels.models.memory import plan_memory
from noisetilt_kernels.models.pipeline import OneStepPipelineModel

SHAPE = (4, 16, 32)
PROMPTS = ["a red cat", "the dog"]


class Kind(NamedTuple):
    make: Callable[..., Any]
    adapter: Callable[..., OneStepPipelineModel]
    call: dict[str, Any]
    """Arguments for one step by the pipeline itself."""
    layers: dict[str, str]
    """Names of a layer in a block of the denoiser, and of one in the VAE's decoder."""

    def model(self, pipe: Any = None, **options: Any) -> OneStepPipelineModel:
        return self.adapter(pipe or self.make(), **{**SIZE, **options})

    def stock_images(self, pipe: Any, x: Tensor, prompts: list[str], **options: Any) -> Tensor:
        size = {"height": 2 * x.shape[2], "width": 2 * x.shape[3]}
        call = {"latents": x, "num_inference_steps": 1, "output_type": "pt", **size, **self.call, **options}
        return pipe(prompts, **call).images


UNET, DECODER = "down_blocks.1.resnets.0.conv1", "decoder.up_blocks.1.resnets.0.conv1"
SD = Kind(tiny_sd_turbo, SDTurbo, {"guidance_scale": 0.0}, {"denoised": UNET, "decode": DECODER})
SDXL = Kind(tiny_sdxl_turbo, SDXLTurbo, {"guidance_scale": 0.0}, {"denoised": UNET, "decode": DECODER})
SANA = Kind(
    tiny_sana_sprint,
    SanaSprint,
    {"intermediate_timesteps": None, "use_resolution_binning": False},
    {"denoised": "transformer_blocks.0.ff.conv_depth", "decode": "decoder.up_blocks.0.1.conv1"},
)
KINDS = {"SD-Turbo": SD, "SDXL-Turbo": SDXL, "SANA-Sprint": SANA}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


# ---- comparison with the pipeline ----


def assert_stock_images(kind: Kind, pipe: Any, shape: tuple[int, ...] = SHAPE, **options: Any) -> None:
    x = noise(shape, 2)
    model = kind.model(pipe, height=2 * shape[1], width=2 * shape[2], **options)
    images = model.generate(x, PROMPTS)
    assert model.shape == shape
    assert images.std() > 0.1
    torch.testing.assert_close(images, kind.stock_images(pipe, x, PROMPTS, **options), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [SHAPE, (4, 16, 16), (4, 48, 16)])
def test_images_are_the_pipelines(kind: Kind, shape: tuple[int, ...]) -> None:
    assert_stock_images(kind, kind.make(), shape)


CONFIGS: list[dict[str, Any]] = [
    {"prediction_type": "v_prediction"},
    {"num_train_timesteps": 500},
    {"beta_schedule": "linear"},
    {"rescale_betas_zero_snr": True},
]


@pytest.mark.parametrize(
    ("scheduler", "config"),
    [
        *product([EulerDiscreteScheduler, EulerAncestralDiscreteScheduler], CONFIGS),
        # the ancestral scheduler does not support "sample"
        (EulerDiscreteScheduler, {"prediction_type": "sample"}),
    ],
)
def test_schedulers_are_followed(scheduler: type, config: dict[str, Any]) -> None:
    pipe = tiny_sd_turbo(**config)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    assert_stock_images(SD, pipe)


def test_schedulers_are_unchanged() -> None:
    pipe = tiny_sd_turbo()
    pipe.scheduler.set_timesteps(7)
    before = pipe.scheduler.timesteps.clone()
    SD.model(pipe).generate(noise(SHAPE), ["a"])
    assert torch.equal(pipe.scheduler.timesteps, before)


def test_latents_of_sdxl_may_be_normalised() -> None:
    pipe = tiny_sdxl_turbo(latents_mean=[0.1, -2.0, 0.3, 0.0], latents_std=[1.5, 0.8, 1.1, 2.0])
    assert_stock_images(SDXL, pipe)


@pytest.mark.parametrize("guidance_scale", [0.0, 9.0])
def test_sana_uses_its_guidance_scale(guidance_scale: float) -> None:
    assert_stock_images(SANA, tiny_sana_sprint(), guidance_scale=guidance_scale)
    usual, other = (
        SANA.model(guidance_scale=scale).denoised(noise(SHAPE), ["a"]) for scale in (4.5, guidance_scale)
    )
    assert not torch.allclose(usual, other, atol=1e-3)


def test_sigma_data_of_sana_makes_no_difference() -> None:
    assert_stock_images(SANA, tiny_sana_sprint(sigma_data=2.0))


@pytest.mark.parametrize(("kind", "size"), [(SD, (32, 64)), (SDXL, (32, 32)), (SANA, (32, 32))])
def test_default_size_is_the_denoisers(kind: Kind, size: tuple[int, int]) -> None:
    pipe = kind.make()
    if kind is SDXL:  # the released configuration has a number
        pipe.unet.register_to_config(sample_size=16)
    assert kind.adapter(pipe).shape == (4, size[0] // 2, size[1] // 2)


# ---- gradients ----


@pytest.mark.parametrize("kind", [SD, SDXL])
def test_gradient_of_the_images(kind: Kind) -> None:
    pipe = kind.make()
    # images stay within [0, 1], where nothing is clamped
    pipe.vae.decoder.conv_out.weight.data *= 0.1
    model = kind.model(pipe.to(dtype=torch.float64))
    x = noise(SHAPE, 2).double()
    images = model.generate(x, PROMPTS)
    assert images.min() > 0 and images.max() < 1
    assert_gradient(lambda x: model.generate(x, PROMPTS), x, step=1e-5, tolerance=1e-5)


def test_gradient_of_sana() -> None:
    model = SANA.model(tiny_sana_sprint().to(dtype=torch.float64))
    # the network has kinks, and its linear attention is in float32, so central differences are no more exact
    assert_gradient(lambda x: model.denoised(x, PROMPTS), noise(SHAPE, 2).double(), step=1e-4, tolerance=5e-3)


def test_gradient_of_the_decoder_is_the_vaes(kind: Kind) -> None:
    pipe = kind.make()
    model, vae = kind.model(pipe), pipe.vae

    def plain(x0: Tensor) -> Tensor:
        return vae.decode(x0 / vae.config.scaling_factor).sample / 2 + 0.5

    torch.testing.assert_close(gradient(model.decode, noise(SHAPE)), gradient(plain, noise(SHAPE)))


def test_images_are_clamped_and_their_gradient_is_not(kind: Kind) -> None:
    pipe = kind.make()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias += torch.tensor([30.0, -30.0, 0.0])
    model = kind.model(pipe)
    images = model.decode(noise(SHAPE))
    assert bool((images[:, 0] == 1).all()) and bool((images[:, 1] == 0).all())
    assert bool((gradient(lambda x: model.decode(x)[:, :2], noise(SHAPE)) != 0).all())


@pytest.mark.parametrize("part", ["denoised", "decode"])
def test_checkpointing_recomputes_and_changes_no_gradient(kind: Kind, part: str) -> None:
    found, calls, kept = [], [], []
    for checkpointing in (False, True):
        pipe = kind.make()
        model = kind.model(pipe, gradient_checkpointing=checkpointing)
        layer = (model.denoiser if part == "denoised" else pipe.vae).get_submodule(kind.layers[part])
        counted: list[None] = []
        layer.register_forward_pre_hook(lambda *arguments, counted=counted: counted.append(None))

        def function(x: Tensor, model: OneStepPipelineModel = model) -> Tensor:
            return model.denoised(x, ["a cat"]) if part == "denoised" else model.decode(x)

        found.append(gradient(function, noise(SHAPE)))
        calls.append(len(counted))
        x = noise(SHAPE).requires_grad_()
        kept.append(kept_for_backward((model.denoiser, pipe.vae), lambda function=function, x=x: function(x)))
    assert calls == [1, 2]
    assert torch.equal(*found)
    assert kept[1] < 0.6 * kept[0]


def test_forwards_of_sanas_decoder_are_restored() -> None:
    pipe = tiny_sana_sprint()
    model = SANA.model(pipe, gradient_checkpointing=True)
    first, second, *others = [layer for block in pipe.vae.decoder.up_blocks for layer in block]
    second.forward = forward = second.forward  # on the instance, as hooks of offloading set it
    model.decode(noise(SHAPE).requires_grad_())
    assert vars(second)["forward"] is forward
    assert not any("forward" in vars(layer) for layer in (first, *others))


def test_only_latents_have_gradients(kind: Kind) -> None:
    pipe = kind.make()
    model = kind.model(pipe)
    networks = [component for component in pipe.components.values() if isinstance(component, torch.nn.Module)]
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())
    assert not model.generate(noise(SHAPE), ["a"]).requires_grad


# ---- batches and prompts ----


def test_batch_entries_are_independent(kind: Kind) -> None:
    model = kind.model()
    x, prompts = noise(SHAPE, 3), ["a red cat", "the dog", "a red cat"]
    together = model.denoised(x, prompts)
    for index, prompt in enumerate(prompts):
        alone = model.denoised(x[index : index + 1], [prompt])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-4)
    swapped = model.denoised(x, ["the dog", "the dog", "a red cat"])
    assert not torch.allclose(swapped[0], together[0], atol=1e-3)  # the prompt matters


def test_text_encoders_can_be_removed_after_encoding(kind: Kind) -> None:
    pipe = kind.make()
    model = kind.model(pipe)
    model.encode("the dog")
    for name in model.facts.encoders:
        setattr(pipe, name, None)
    gradient(lambda x: model.denoised(x, ["the dog"]), noise(SHAPE))
    with pytest.raises(
        ValueError, match=rf"{type(model).__name__}: pipe has no {', '.join(model.facts.encoders)} to"
    ):
        model.denoised(noise(SHAPE), ["a house"])


def test_placeholder_prompts_are_like_encoded_ones(kind: Kind) -> None:
    model = kind.model()
    encoded, blank = model.encode_prompt("a cat"), model.placeholder_prompt()
    assert {name: tensor.shape for name, tensor in encoded.items()} == {
        name: tensor.shape for name, tensor in blank.items()
    }


# ---- runs ----


def test_wgnc_raises_the_reward(kind: Kind) -> None:
    model = kind.model()
    options = sampling.SamplerOptions(micro_batch=2)
    result = sampling.wgnc(model, redness, PROMPTS, iterations=5, lr=0.1, options=options)
    first = [record.reward for record in result.records if record.step == 0]
    assert all(after > before for after, before in zip(result.rewards.tolist(), first, strict=True))
    assert not any(record.fallback for record in result.records)
    images = model.generate(result.latents, PROMPTS)
    torch.testing.assert_close(redness(images, PROMPTS), result.rewards, rtol=0, atol=1e-4)
    alone = sampling.wgnc(
        model, redness, PROMPTS, iterations=1, lr=0.1, options=sampling.SamplerOptions(micro_batch=1)
    )
    together = sampling.wgnc(model, redness, PROMPTS, iterations=1, lr=0.1, options=options)
    torch.testing.assert_close(together.latents, alone.latents, rtol=0, atol=1e-3)


def test_bfloat16_runs_end_to_end(kind: Kind) -> None:
    pipe = kind.make().to(dtype=torch.bfloat16)
    result = sampling.wgnc(kind.model(pipe), redness, ["a cat"], iterations=2)
    assert result.latents.dtype == torch.float32
    assert all(record.gradient_norm for record in result.records if record.step < 2)
    exact, rounded = (kind.model(p).generate(noise(SHAPE), ["a cat"]) for p in (kind.make(), pipe))
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().mean() < 0.05


def test_saving_and_loading(kind: Kind, tmp_path: Path) -> None:
    kind.make().save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, dtype=torch.float32, device="cpu")
    adapter = family_of(pipe).adapter("it", one_step=True)
    assert adapter is kind.adapter
    x = noise(SHAPE, 2)
    torch.testing.assert_close(adapter(pipe, **SIZE).generate(x, PROMPTS), kind.model().generate(x, PROMPTS))
    with pytest.raises(ModelError, match="is a one-step model"):
        family_of(pipe).adapter("it", one_step=False)


def test_image_encoders_and_safety_checker_are_not_loaded(tmp_path: Path) -> None:
    tiny_sd_turbo().save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(
        index.read_text()
        .replace(
            '"safety_checker": [\n    null,\n    null',
            '"safety_checker": ["stable_diffusion", "SafetyChecker"',
        )
        .replace(
            '"feature_extractor": [\n    null,\n    null', '"feature_extractor": ["transformers", "Absent"'
        )
    )
    assert "Absent" in index.read_text() and "SafetyChecker" in index.read_text()
    pipe = load_pipeline(tmp_path, dtype=torch.float32, device="cpu")
    assert pipe.safety_checker is pipe.feature_extractor is None
    assert plan_memory(tmp_path, one_step=True).shape == SHAPE


@pytest.mark.parametrize("checkpointing", [False, True])
def test_planned_memory_matches_the_real_graph(kind: Kind, tmp_path: Path, checkpointing: bool) -> None:
    kind.make().save_pretrained(tmp_path)
    options = {**SIZE, "gradient_checkpointing": checkpointing}
    plan = plan_memory(tmp_path, dtype=torch.float32, micro_batch=2, one_step=True, **options)
    assert plan.shape == SHAPE and plan.pixels == (3, *SIZE.values())
    model = kind.model(gradient_checkpointing=checkpointing)
    assert plan.denoiser == sum(parameter.nbytes for parameter in model.denoiser.parameters())
    assert plan.text_encoders > 0
    model.encode(["a"])
    networks = (model.denoiser, model.pipe.vae)
    x = noise(SHAPE, 2).requires_grad_()
    kept = [kept_for_backward(networks, lambda: model.denoised(x, ["a", "a"]))]
    kept += [kept_for_backward(networks, lambda: model.decode(x))]
    # the backward's own memory is added
    assert sum(kept) < plan.activations < (8 if checkpointing else 1.5) * sum(kept)


# ---- operators ----


@pytest.mark.parametrize("shape", [(4, 64, 64), (4, 128, 128), (32, 32, 32), (16, 128, 128)])
def test_operators_serve_the_latents_of_the_released_models(shape: tuple[int, ...]) -> None:
    x = noise(shape)
    for operator in ("w", "wgnc"):
        whitened = sampling.operators.operator_by_name("test", operator, shape)(x)
        assert whitened.shape == x.shape
        # noise is nearly unchanged
        assert torch.nn.functional.cosine_similarity(whitened.flatten(), x.flatten(), dim=0) > 0.9


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 31}, "height must be a multiple of 2, got 31; 30 and 32 are nearest"),
        ({"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_sizes_out_of_range(kind: Kind, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=rf"{kind.adapter.__name__}: {message}"):
        kind.model(**options)


def test_other_pipelines_and_latents_are_errors(kind: Kind) -> None:
    name = kind.adapter.__name__
    with pytest.raises(TypeError, match=rf"{name}: pipe must be a \w+ of diffusers, got ZImagePipeline"):
        kind.model(tiny_z_image())
    message = (
        rf"{name}.denoised: x must be \(2, 4, 16, 32\), one latent for each prompt, got \(1, 4, 16, 32\)"
    )
    with pytest.raises(ValueError, match=message):
        kind.model().denoised(noise(SHAPE), PROMPTS)


def test_schedulers_of_another_kind_are_errors() -> None:
    pipe = tiny_sd_turbo()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(
        ValueError, match=r"SDTurbo: pipe must have an EulerDiscreteScheduler or .*, got LCMScheduler"
    ):
        SD.model(pipe)
    with pytest.raises(ValueError, match=r"must have a scheduler that ends at sigma 0, got 0\.029"):
        SD.model(tiny_sd_turbo(final_sigmas_type="sigma_min"))
    valid = "'epsilon', 'v_prediction', 'sample'"
    message = f"SDTurbo: pipe: unknown prediction_type of the scheduler 'score'; valid: {valid}"
    with pytest.raises(ValueError, match=message):
        SD.model(tiny_sd_turbo(prediction_type="score"))


def test_the_vae_of_sdxl_overflows_in_float16() -> None:
    pipe = tiny_sdxl_turbo()
    pipe.vae.to(torch.float16)
    with pytest.raises(
        ValueError, match="SDXLTurbo: pipe must have its VAE in bfloat16 or float32, as this one overf"
    ):
        SDXL.model(pipe)
    pipe.vae.register_to_config(force_upcast=False)
    SDXL.model(pipe)


def test_sana_without_guidance_is_an_error() -> None:
    pipe = tiny_sana_sprint()
    pipe.transformer.register_to_config(guidance_embeds=False)
    with pytest.raises(ValueError, match="SanaSprint: pipe must have a transformer with guidance_embeds"):
        SANA.model(pipe)
    with pytest.raises(ValueError, match="SanaSprint: guidance_scale must be finite and at least 0, got -1"):
        SANA.model(guidance_scale=-1)
