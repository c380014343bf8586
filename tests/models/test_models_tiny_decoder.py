"""Tiny autoencoders such as TAESD: decoders for the images judged during sampling, or VAEs of pipelines."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from model_checks import assert_gradient, gradient, noise, ode_latents, redness
from tiny_flux import LENGTH, tiny_flux, tiny_taesd
from tiny_models import (
    SIZE,
    tiny_flux2,
    tiny_flux2_klein,
    tiny_qwen_image,
    tiny_sana_sprint,
    tiny_sd3,
    tiny_sd_turbo,
    tiny_sdxl_turbo,
    tiny_z_image,
)
from tiny_wan import tiny_wan
from torch import Tensor

from noisetilt_kernels import pack_latents, sampling
from noisetilt_kernels.models import FluxFlow, FluxOneStep, ModelError, family_of, load_pipeline
from noisetilt_kernels.models.memory import PeakMemory, _activations, plan_memory
from noisetilt_kernels.sampling.methods import parse_method

PROMPTS = ["a red cat", "the dog"]
SHAPE = (4, 16, 32)
MAKERS: dict[str, Callable[[], Any]] = {
    "flux": tiny_flux,
    "z-image": tiny_z_image,
    "sd3": tiny_sd3,
    "sd": tiny_sd_turbo,
    "sdxl": tiny_sdxl_turbo,
}
"""Families whose latents an AutoencoderTiny can decode."""
OTHERS: dict[str, Callable[[], Any]] = {
    "sana": tiny_sana_sprint,
    "qwen": tiny_qwen_image,
    "flux2": tiny_flux2,
    "klein": tiny_flux2_klein,
    "wan": tiny_wan,
}
METHODS = [
    "base:steps=3",
    "base:steps=3,start=pcnl,start_iterations=2",
    "ntrk:steps=4,rho=0.5",
    "dps:strength=2,steps=3",
    "freedom:travel=2,steps=4,strength=1",
    "svdd:candidates=3,steps=3",
    "rbf:budget=12,starts=3,steps=4",
    "das:alpha=0.1,copies=2,steps=3",
    "das:alpha=0.1,copies=2,steps=3,start=pcnl,start_iterations=2",
    "fk:alpha=0.1,copies=2,steps=3",
    "psi:alpha=0.1,copies=2,chains=2,burn_in=1,kept=2,steps=3",
    "dno:iterations=2,steps=2,lr=0.1,answer=last",
    "dno:iterations=2,steps=2,lr=0.1",
    "wgnc:iterations=3,lr=0.1",
    "reno:iterations=3",
    "prno:iterations=3,lr=0.1",
    "mpgr:iterations=2",
]


def with_tiny_vae(pipe: Any) -> Any:
    pipe.vae = tiny_taesd()
    return pipe


def adapted(pipe: Any, one_step: bool | None = None, **options: Any) -> Any:
    """Return the model of a pipeline; a flow if the family has one and `one_step` is None."""
    family = family_of(pipe)
    adapter: Any = family.one_step if one_step or family.flow is None else family.flow
    return adapter(pipe, **{**SIZE, **options})


def images_of(tiny: AutoencoderTiny, latents: Tensor) -> Tensor:
    with torch.no_grad():
        return (tiny.decode(latents).sample / 2 + 0.5).clamp(0, 1)


class Decodings:
    """Counts the images that each of a model's two decoders makes, with and without a gradient."""

    def __init__(self, model: Any) -> None:
        self.counts = {"vae": 0, "vae with gradient": 0, "tiny": 0, "tiny with gradient": 0}
        for name, network in (("vae", model.pipe.vae), ("tiny", model.reward_decoder)):
            network.decode = self._counted(name, network.decode)

    def _counted(self, name: str, decode: Callable[..., Any]) -> Callable[..., Any]:
        def counted(latents: Tensor, **options: Any) -> Any:
            self.counts[name + " with gradient" * latents.requires_grad] += len(latents)
            return decode(latents, **options)

        return counted


def sample(method: str, model: Any, reward: Any = redness, **options: Any) -> sampling.Result:
    given = sampling.SamplerOptions(**{"micro_batch": 2, **options})
    return parse_method(method).sample(model, reward, PROMPTS, given)


# ---- the decoder of images that are judged during sampling ----


@pytest.mark.parametrize("name", MAKERS)
def test_a_preview_decodes_the_latents_of_the_denoiser(name: str) -> None:
    """Published configurations have factors 1 and 0; the factors of the VAE do not matter."""
    pipe, tiny, x0 = MAKERS[name](), tiny_taesd(), noise(SHAPE, 2)
    assert (tiny.config.scaling_factor, tiny.config.shift_factor) == (1.0, 0.0)
    model = adapted(pipe, reward_decoder=tiny)
    assert pipe.vae.config.scaling_factor != 1
    preview, finished = model.decode_preview(x0), model.decode(x0)
    assert preview.shape == finished.shape == (2, 3, 32, 64)
    torch.testing.assert_close(preview, images_of(tiny, x0), rtol=0, atol=1e-6)
    assert not torch.allclose(preview, finished, atol=1e-2)
    assert torch.equal(finished, adapted(MAKERS[name]()).decode(x0))
    pipe.vae = tiny  # diffusers' own treatment of its factors
    assert torch.equal(adapted(pipe).decode(x0), preview)


def test_factors_of_the_tiny_autoencoder_itself() -> None:
    tiny, x0 = tiny_taesd(scaling_factor=0.5, shift_factor=0.1), noise(SHAPE)
    preview = adapted(tiny_flux(), reward_decoder=tiny).decode_preview(x0)
    torch.testing.assert_close(preview, images_of(tiny, 2 * x0 + 0.1), rtol=0, atol=1e-6)


def test_a_model_without_a_reward_decoder_has_no_previews() -> None:
    assert adapted(tiny_flux()).decode_preview is None


@pytest.mark.parametrize("method", METHODS)
def test_samplers_judge_previews_and_finish_with_the_vae(method: str) -> None:
    """The path is that of a pipeline whose VAE is the tiny one; images and their rewards are the VAE's."""
    one_step = parse_method(method).one_step
    model = adapted(tiny_flux(), one_step, reward_decoder=tiny_taesd())
    guided = adapted(with_tiny_vae(tiny_flux()), one_step)
    decodings, finished, judged = Decodings(model), [], []

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        judged.append(len(images))
        return redness(images, prompts)

    result = sample(method, model, reward, on_finished=finished.append)
    counts = decodings.counts
    assert counts["vae with gradient"] == 0
    assert counts["tiny with gradient"] > 0 or not parse_method(method).needs_gradient
    copies = parse_method(method).arguments.get("copies")
    assert counts["vae"] == 2 * (1 + copies if copies else 1)
    assert sum(counts.values()) == sum(judged)
    expected = sample(method, guided)
    if not copies:  # the final rewards of copies choose the answer
        assert torch.equal(result.latents, expected.latents)
    with torch.no_grad():
        images = model.generate(result.latents, PROMPTS) if one_step else model.decode(result.latents)
    torch.testing.assert_close(torch.stack([one.image for one in finished]), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.rewards, redness(images, PROMPTS), rtol=0, atol=1e-4)
    last = {record.particle: record.reward for record in result.records}
    assert list(last.values()) == result.rewards.tolist()
    assert not torch.allclose(result.rewards, expected.rewards, atol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_the_vae_as_reward_decoder_changes_nothing(method: str) -> None:
    pipe = with_tiny_vae(tiny_flux())
    one_step = parse_method(method).one_step
    twice = sample(method, adapted(pipe, one_step, reward_decoder=pipe.vae))
    once = sample(method, adapted(pipe, one_step))
    assert torch.equal(twice.latents, once.latents) and torch.equal(twice.rewards, once.rewards)
    assert twice.nfe == once.nfe


def test_the_best_iterate_is_the_best_preview() -> None:
    model = adapted(tiny_flux(), True, reward_decoder=tiny_taesd())

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return -((redness(images, prompts) - 0.3) ** 2)  # long moves lead past its peak

    best = sampling.wgnc(model, reward, PROMPTS, iterations=6, lr=3.0, answer="best")
    previews = torch.tensor(
        [[one.reward for one in best.records if one.particle == p and one.step < 6] for p in (0, 1)]
    )
    with torch.no_grad():
        answer = reward(model.decode_preview(model.denoised(best.latents, PROMPTS)), PROMPTS)
    assert bool((previews.argmax(dim=1) < 5).any())
    assert bool((answer >= previews.amax(dim=1) - 1e-4).all())


@pytest.mark.parametrize("non_finite", ["raise", "plain_noise"])
def test_a_preview_that_is_not_finite(non_finite: str) -> None:
    model = adapted(tiny_flux(), True, reward_decoder=tiny_taesd())
    calls: list[None] = []

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        calls.append(None)
        return redness(images, prompts) * (torch.nan if len(calls) == 3 else 1)

    def run() -> sampling.Result:
        return sampling.wgnc(
            model, reward, "a cat", iterations=2, options=sampling.SamplerOptions(non_finite=non_finite)
        )

    if non_finite == "raise":
        with pytest.raises(sampling.NonFiniteError, match="non-finite reward"):
            run()
    else:
        assert run().rewards.isfinite().all() and len(calls) == 4


def test_third_party_models_with_and_without_previews() -> None:
    class Flow:
        shape, device = (4, 8, 8), torch.device("cpu")

        def sigmas(self, n: int) -> Tensor:
            return torch.linspace(1, 0, n + 1)

        def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
            return x

        def decode(self, x0: Tensor) -> Tensor:
            return x0[:, :3].sigmoid()

    class Previewed(Flow):
        def decode_preview(self, x0: Tensor) -> Tensor:
            return x0[:, 1:].sigmoid()

    for method in ("ntrk:steps=3,rho=0.5", "svdd:candidates=3,steps=3", "dno:iterations=2,steps=2,lr=0.1"):
        plain, previewed = sample(method, Flow()), sample(method, Previewed())
        assert not torch.equal(plain.latents, previewed.latents)
        for result in (plain, previewed):
            torch.testing.assert_close(result.rewards, redness(Flow().decode(result.latents), PROMPTS))

    class Generator:
        shape, device = (4, 8, 8), torch.device("cpu")
        generate = decode_preview = staticmethod(lambda x, prompts=None: x[:, :3].sigmoid())

    with pytest.raises(TypeError, match="Generator has no decode, denoised"):
        sample("wgnc:iterations=1", Generator())


def test_gradients_of_previews() -> None:
    tiny = tiny_taesd().double()
    model = adapted(tiny_flux(), reward_decoder=tiny)
    images = model.decode_preview(noise(SHAPE, 2).double())
    assert images.min() > 0 and images.max() < 1
    # a short step crosses few kinks of the activations
    assert_gradient(model.decode_preview, noise(SHAPE, 2).double(), step=1e-7, tolerance=1e-4)
    assert not any(parameter.requires_grad for parameter in tiny.parameters())


def test_the_reward_decoder_follows_gradient_checkpointing() -> None:
    tiny = tiny_taesd().train()
    model = adapted(tiny_flux(), reward_decoder=tiny, gradient_checkpointing=True)
    calls: list[None] = []
    tiny.decoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(None))
    found = []
    for enabled, expected in ((True, 2), (False, 1)):
        model.set_gradient_checkpointing(enabled)
        calls.clear()
        found.append(gradient(model.decode_preview, noise(SHAPE)))
        assert len(calls) == expected
    torch.testing.assert_close(found[0], found[1])
    assert not tiny.training


def test_a_reward_decoder_made_in_inference_mode() -> None:
    with torch.inference_mode():
        tiny = tiny_taesd()
    found = gradient(adapted(tiny_flux(), reward_decoder=tiny).decode_preview, noise(SHAPE))
    expected = gradient(adapted(tiny_flux(), reward_decoder=tiny_taesd()).decode_preview, noise(SHAPE))
    assert torch.equal(found, expected)


def test_bfloat16_previews() -> None:
    model = adapted(tiny_flux(), reward_decoder=tiny_taesd().to(torch.bfloat16))
    preview = model.decode_preview(noise(SHAPE))
    assert preview.dtype == torch.float32
    torch.testing.assert_close(preview, images_of(tiny_taesd(), noise(SHAPE)), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (
            tiny_taesd(latent_channels=16),
            "FluxFlow: reward_decoder must decode latents with 4 channels, got an AutoencoderTiny for 16",
        ),
        (
            tiny_taesd(stages=4),
            "FluxFlow: reward_decoder must make images with 2 times the sides of latents, "
            "got an AutoencoderTiny with 8 times",
        ),
        (
            tiny_taesd(upsampling_scaling_factor=4),
            "FluxFlow: reward_decoder must make images with 2 times the sides of latents, "
            "got an AutoencoderTiny with 4 times",
        ),
    ],
)
def test_decoders_that_do_not_fit(decoder: AutoencoderTiny, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        adapted(tiny_flux(), reward_decoder=decoder)
    assert str(caught.value).startswith(message)


def test_a_vae_is_no_reward_decoder() -> None:
    pipe = tiny_flux()
    with pytest.raises(TypeError) as caught:
        adapted(pipe, reward_decoder=pipe.vae)
    assert str(caught.value) == (
        "FluxFlow: reward_decoder must be an AutoencoderTiny of diffusers, got AutoencoderKL"
    )


@pytest.mark.parametrize("gradient", [True, False])
def test_the_plan_counts_the_reward_decoder_and_the_vae(gradient: bool, tmp_path: Path) -> None:
    tiny = tiny_taesd()
    tiny_flux().save_pretrained(tmp_path / "model")
    tiny.save_pretrained(tmp_path / "tiny")
    given: dict[str, Any] = {"dtype": torch.float32, "gradient": gradient, "height": 128, "width": 128}
    source = tmp_path / "model"
    plain = plan_memory(source, **given)
    plan = plan_memory(source, reward_decoder=str(tmp_path / "tiny"), **given)
    assert plan.reward_decoder == sum(parameter.nbytes for parameter in tiny.parameters())
    assert (
        plan.total == plan.denoiser + plan.vae + plan.reward_decoder + plan.text_encoders + plan.activations
    )
    assert (plan.shape, plan.pixels) == (plain.shape, plain.pixels)

    model = FluxFlow(tiny_flux(), height=128, width=128, reward_decoder=tiny)
    model.prompts.put("", {name: torch.ones_like(one) for name, one in model.placeholder_prompt().items()})
    taken, _ = _activations(model, False, gradient, 1, None)
    assert plan.activations == pytest.approx(taken, rel=0.02)
    if gradient:
        assert plan.activations < 0.8 * plain.activations
    else:  # the VAE without a gradient, which is larger than all other parts
        assert plan.activations == pytest.approx(plain.activations, rel=0.02)
        with PeakMemory() as memory, torch.no_grad():
            model.decode(torch.zeros(1, *model.shape))
        assert plan.activations == pytest.approx(memory.peak, rel=0.05)


@pytest.mark.parametrize("name", OTHERS)
def test_reward_decoders_of_other_families_are_refused(name: str, tmp_path: Path) -> None:
    pipe = OTHERS[name]()
    message = r"\) cannot have a reward decoder: diffusers' AutoencoderTiny is for the images of FLUX.1, "
    with pytest.raises(ModelError, match=message):
        family_of(pipe).check_tiny("it")
    with pytest.raises(TypeError, match="reward_decoder"):
        adapted(pipe, reward_decoder=tiny_taesd())


# ---- a tiny autoencoder as the pipeline's own VAE ----


@pytest.mark.parametrize("name", MAKERS)
def test_a_tiny_vae_makes_the_pipelines_images(name: str, tmp_path: Path) -> None:
    pipe, x = with_tiny_vae(MAKERS[name]()), noise(SHAPE, 2)
    model = adapted(pipe)
    given: dict[str, Any] = {**SIZE, "output_type": "pt"}
    if family_of(pipe).flow is None:
        given.update(num_inference_steps=1, guidance_scale=0.0)
        found = model.generate(x, PROMPTS)
    else:
        given["num_inference_steps"] = 4
        found = model.decode(ode_latents(model, PROMPTS))
    if name == "flux":
        given["max_sequence_length"] = LENGTH
    expected = pipe(PROMPTS, latents=pack_latents(x) if name == "flux" else x, **given).images
    assert found.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path, dtype=torch.float32, device="cpu")
    assert type(loaded.vae) is AutoencoderTiny
    x0 = noise(SHAPE)
    torch.testing.assert_close(adapted(loaded).decode(x0), model.decode(x0))
    one_step = family_of(pipe).flow is None
    plan = plan_memory(tmp_path, dtype=torch.float32, one_step=one_step, **SIZE)
    assert plan.vae == sum(parameter.nbytes for parameter in pipe.vae.parameters())
    method = "wgnc:iterations=2,lr=0.1" if one_step else "ntrk:steps=3,rho=0.5"
    assert sample(method, adapted(loaded)).rewards.isfinite().all()


def test_the_default_size_of_flux_with_a_tiny_vae() -> None:
    pipe = with_tiny_vae(tiny_flux())
    assert FluxFlow(pipe).shape == FluxOneStep(pipe).shape == (4, 128, 128)  # the pipeline's default


@pytest.mark.parametrize("name", OTHERS)
def test_tiny_vaes_of_other_families_are_refused(name: str, tmp_path: Path) -> None:
    pipe = OTHERS[name]()
    pipe.save_pretrained(tmp_path)
    pipe.vae = tiny_taesd(latent_channels=16 if name == "wan" else 4)
    pattern = r"must have the VAE that .* was made with, got an AutoencoderTiny, which cannot decode"
    with pytest.raises(ValueError, match=f": pipe {pattern}"):
        adapted(pipe)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderTiny"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=pattern):
        load_pipeline(tmp_path, dtype=torch.float32, device="cpu")


def test_a_tiny_vae_must_make_images_of_the_pipelines_size() -> None:
    pipe = tiny_flux()
    pipe.vae = tiny_taesd(stages=4)
    with pytest.raises(
        ValueError, match="the VAE of pipe must make images with 2 times the sides of latents"
    ):
        adapted(pipe)
