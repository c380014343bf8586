"""FluxFlow and FluxOneStep against the FluxPipeline of diffusers, on tiny random models of its classes."""

import subprocess
import sys
from contextlib import suppress
from functools import partial
from itertools import pairwise

import model_checks
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload, UserCpuOffloadHook, add_hook_to_module
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.hooks import apply_group_offloading
from model_checks import assert_gradient, gradient, redness
from tiny_flux import LENGTH, SIZE, tiny_flux
from torch import Tensor

from noisetilt_kernels import pack_latents, sampling, unpack_latents
from noisetilt_kernels.models import FluxFlow, FluxOneStep, offload
from noisetilt_kernels.models.times import exact_timestep

ODE = sampling.Schedule("constant", 0)
PROMPTS = ["a red cat", "the dog"]


def flow_of(pipe: FluxPipeline, **options: object) -> FluxFlow:
    return FluxFlow(pipe, **{"height": SIZE, "width": SIZE, **options})


def noise(seed: int = 0, count: int = 1, shape: tuple[int, ...] = (4, 16, 16)) -> Tensor:
    return model_checks.noise(shape, count, seed)


def stock_images(pipe: FluxPipeline, x: Tensor, prompts: list[str], steps: int, **options: object) -> Tensor:
    """Images of `pipe(...)` from the latents x."""
    height, width = (2 * side for side in x.shape[2:])
    return pipe(
        prompts,
        latents=pack_latents(x),
        num_inference_steps=steps,
        **{"height": height, "width": width, "max_sequence_length": LENGTH, "output_type": "pt", **options},
    ).images


# ---- comparison with the pipeline ----


def test_packing_is_the_pipelines() -> None:
    x = torch.randn(2, 4, 6, 8)
    packed = FluxPipeline._pack_latents(x, 2, 4, 6, 8)
    assert torch.equal(pack_latents(x), packed)
    assert torch.equal(FluxPipeline._unpack_latents(packed, 12, 16, 2), unpack_latents(packed, 6, 8))


@pytest.mark.parametrize("dev", [True, False])
@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 8, 20)])
def test_ode_makes_the_pipelines_images(dev: bool, shape: tuple[int, ...]) -> None:
    pipe = tiny_flux(dev)
    expected = stock_images(pipe, noise(0, 2, shape), PROMPTS, steps=4, guidance_scale=2.5)
    flow = FluxFlow(pipe, height=2 * shape[1], width=2 * shape[2], guidance_scale=2.5)
    result = sampling.base(
        flow, redness, PROMPTS, steps=4, schedule=ODE, options=sampling.SamplerOptions(micro_batch=2)
    )
    images = flow.decode(result.latents)
    assert flow.shape == shape
    assert images.std() > 0.1
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dev", [True, False])
@pytest.mark.parametrize(("scale", "negative"), [(1.0, ""), (3.0, "the house"), (2.0, "")])
def test_classifier_free_guidance_is_the_pipelines(dev: bool, scale: float, negative: str) -> None:
    pipe = tiny_flux(dev)
    expected = stock_images(
        pipe,
        noise(0, 2),
        PROMPTS,
        steps=4,
        guidance_scale=2.5,
        true_cfg_scale=scale,
        negative_prompt=[negative] * 2,
    )
    flow = flow_of(pipe, guidance_scale=2.5, true_cfg_scale=scale, negative_prompt=negative)
    options = sampling.SamplerOptions(micro_batch=2)
    result = sampling.base(flow, redness, PROMPTS, steps=4, schedule=ODE, options=options)
    images = flow.decode(result.latents)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    plain = sampling.base(flow_of(pipe, guidance_scale=2.5), redness, PROMPTS, steps=4, schedule=ODE)
    assert torch.allclose(images, flow.decode(plain.latents), atol=1e-4) == (scale == 1)


def test_one_step_with_classifier_free_guidance() -> None:
    pipe = tiny_flux(False)
    expected = stock_images(
        pipe, noise(0, 2), PROMPTS, steps=1, true_cfg_scale=2.0, negative_prompt=["the house"] * 2
    )
    model = FluxOneStep(pipe, height=SIZE, width=SIZE, true_cfg_scale=2.0, negative_prompt="the house")
    torch.testing.assert_close(model.generate(noise(0, 2), PROMPTS), expected, rtol=0, atol=1e-5)


def test_a_negative_prompt_without_guidance_is_an_error() -> None:
    with pytest.raises(
        ValueError,
        match="negative_prompt has no effect without guidance; true_cfg_scale must be above 1, got 1",
    ):
        flow_of(tiny_flux(), negative_prompt="the house")
    with pytest.raises(ValueError, match="true_cfg_scale must be finite and at least 0, got -1"):
        flow_of(tiny_flux(), true_cfg_scale=-1)


def test_guidance_is_for_models_that_embed_it() -> None:
    x = noise()
    dev, schnell = tiny_flux(True), tiny_flux(False)
    low, high = (flow_of(dev, guidance_scale=scale).velocity(x, 0.7, ["a cat"]) for scale in (1.0, 4.0))
    assert not torch.allclose(low, high, atol=1e-3)
    low, high = (flow_of(schnell, guidance_scale=scale).velocity(x, 0.7, ["a cat"]) for scale in (1.0, 4.0))
    assert torch.equal(low, high)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "max_shift": 2.0},
        {"shift": 3.0},
        {"shift": 3.0, "shift_terminal": 0.1},
        {"use_karras_sigmas": True},
    ],
)
@pytest.mark.parametrize("steps", [2, 25])
def test_sigmas_are_the_pipelines(config: dict[str, object], steps: int) -> None:
    pipe = tiny_flux(False, **config)
    before = pipe.scheduler.timesteps.clone()
    sigmas = flow_of(pipe).sigmas(steps)
    assert torch.equal(pipe.scheduler.timesteps, before)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())
    stock_images(pipe, noise(), ["a"], steps)
    torch.testing.assert_close(sigmas, pipe.scheduler.sigmas, rtol=0, atol=2e-7)


def test_times_start_at_one_despite_rounding() -> None:
    pipe = tiny_flux(False, shift=0.3224080502986908)
    pipe.scheduler.set_timesteps(sigmas=[1.0, 0.5])
    assert pipe.scheduler.sigmas[0] != 1  # otherwise this shift would test nothing
    assert flow_of(pipe).sigmas(2)[0] == 1


def test_times_that_do_not_start_at_noise_are_an_error() -> None:
    pipe = tiny_flux(False)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    with pytest.raises(ValueError, match="strictly decreasing times from 1 to 0"):
        sampling.base(flow_of(pipe), redness, "a", steps=4)


# ---- gradients ----


def test_gradient_of_the_velocity() -> None:
    flow = flow_of(tiny_flux().to(dtype=torch.float64))
    # diffusers applies rotary embeddings in float32, so central differences are no more exact
    assert_gradient(lambda x: flow.velocity(x, 0.6, ["a cat"]), noise().double(), step=1e-2, tolerance=1e-3)


@pytest.mark.parametrize("configure", ["", "enable_tiling", "enable_slicing"])
def test_gradient_of_the_decoder(configure: str) -> None:
    pipe = tiny_flux().to(dtype=torch.float64)
    pipe.vae.decoder.conv_out.weight.data *= 0.2  # images stay within [0, 1], where nothing is clamped
    x = noise(0, 2).double()
    plain = flow_of(pipe).decode(x)
    if configure:
        getattr(pipe.vae, configure)()
        pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 8, 16
    flow = flow_of(pipe)
    images = flow.decode(x)
    assert images.min() > 0 and images.max() < 1
    assert_gradient(flow.decode, x, step=1e-4, tolerance=1e-4)
    assert torch.allclose(images, plain, atol=1e-10) == (configure != "enable_tiling")


def test_images_are_clamped_and_their_gradient_is_not() -> None:
    pipe = tiny_flux()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias += torch.tensor([3.0, -3.0, 0.0])
    flow = flow_of(pipe)
    images = flow.decode(noise())
    assert bool((images[:, 0] == 1).all()) and bool((images[:, 1] == 0).all())
    latents = noise() / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    raw = pipe.vae.decode(latents).sample
    assert torch.equal(images, pipe.image_processor.postprocess(raw, output_type="pt"))

    def unclamped(x0: Tensor) -> Tensor:
        return (
            pipe.vae.decode(x0 / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample / 2
            + 0.5
        )

    torch.testing.assert_close(gradient(flow.decode, noise()), gradient(unclamped, noise()))


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_checkpointing_recomputes_and_changes_no_gradient(part: str) -> None:
    calls: list[None] = []
    found = []
    for checkpointing in (False, True):
        pipe = tiny_flux()
        flow = flow_of(pipe, gradient_checkpointing=checkpointing)
        block = (
            pipe.transformer.transformer_blocks[0] if part == "transformer" else pipe.vae.decoder.up_blocks[0]
        )
        block.register_forward_pre_hook(lambda *arguments: calls.append(None))
        function = (
            partial(flow.velocity, sigma=0.6, prompts=["a cat"]) if part == "transformer" else flow.decode
        )
        calls.clear()
        found.append(gradient(function, noise()))
        assert len(calls) == (2 if checkpointing else 1)
    assert torch.equal(*found)


def test_only_latents_have_gradients() -> None:
    pipe = tiny_flux()
    pipe.transformer.train()
    flow = flow_of(pipe)
    models = (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    assert not any(parameter.requires_grad for model in models for parameter in model.parameters())
    assert not any(model.training for model in models)
    assert not flow.velocity(noise(), 0.5, ["a"]).requires_grad


# ---- batches and prompts ----


def test_batch_entries_are_independent() -> None:
    flow = flow_of(tiny_flux())
    x = noise(0, 3)
    prompts = ["a red cat", "the dog", "a red cat"]
    together = flow.velocity(x, 0.8, prompts)
    for index, prompt in enumerate(prompts):
        alone = flow.velocity(x[index : index + 1], 0.8, [prompt])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-5)
    swapped = flow.velocity(x, 0.8, ["the dog", "the dog", "a red cat"])
    assert not torch.allclose(swapped[0], together[0], atol=1e-3)  # the prompt matters


def test_prompts_are_encoded_once() -> None:
    pipe = tiny_flux()
    calls: list[Tensor] = []
    pipe.text_encoder_2.register_forward_pre_hook(lambda module, arguments: calls.append(arguments[0]))
    flow = flow_of(pipe)
    options = sampling.SamplerOptions(micro_batch=2)
    sampling.ntrk(flow, redness, ["a cat", "the dog", "a cat"], steps=3, options=options)
    assert len(calls) == 2
    flow.encode(["a cat", "the house"])
    assert len(calls) == 3


def test_text_encoders_can_be_removed_after_encoding() -> None:
    pipe = tiny_flux()
    flow = flow_of(pipe)
    before = flow.velocity(noise(), 0.5, ["a cat"])
    with torch.inference_mode():
        flow.encode("the dog")
    pipe.text_encoder = pipe.text_encoder_2 = None
    assert torch.equal(flow.velocity(noise(), 0.5, ["a cat"]), before)
    gradient(lambda x: flow.velocity(x, 0.5, ["the dog"]), noise())
    message = "FluxFlow: pipe has no text_encoder, text_encoder_2 to encode 'a house' with; load it with all"
    with pytest.raises(ValueError, match=message):
        flow.velocity(noise(), 0.5, ["a house"])


@pytest.mark.parametrize(("dev", "own", "given", "expected"), [
    (True, 1000, None, 512), (False, 1000, None, 256), (True, 24, None, 24), (True, 1000, 7, 7),
])  # fmt: skip
def test_length_of_prompts(dev: bool, own: int, given: int | None, expected: int) -> None:
    pipe = tiny_flux(dev)
    pipe.tokenizer_2.model_max_length = own
    lengths: list[int] = []
    pipe.text_encoder_2.register_forward_pre_hook(
        lambda module, arguments: lengths.append(arguments[0].shape[1])
    )
    flow_of(pipe, max_sequence_length=given).encode("a cat")
    assert lengths == [expected]


# ---- dtypes ----


def test_bfloat16_weights_see_exact_timesteps() -> None:
    flow = flow_of(tiny_flux().to(dtype=torch.bfloat16))
    exact = flow_of(tiny_flux())
    x = noise()
    seen: list[Tensor] = []
    flow.pipe.transformer.time_text_embed.time_proj.register_forward_hook(
        lambda module, arguments, output: seen.append(arguments[0])
    )
    # neighbours of 1 in bfloat16 are 0.0039 away
    times = (1.0, 0.999, 0.998, 0.997)
    velocities = [flow.velocity(x, t, ["a cat"]) for t in times]
    assert all(not torch.equal(one, other) for one, other in pairwise(velocities))
    # every second call embeds the guidance scale
    assert torch.cat(seen[::2]).tolist() == pytest.approx([1000 * t for t in times], rel=1e-7)
    for t, velocity in zip(times, velocities, strict=True):
        assert velocity.dtype == torch.float32
        torch.testing.assert_close(velocity, exact.velocity(x, t, ["a cat"]), rtol=0, atol=0.1)


def test_calls_of_the_pipeline_are_unchanged() -> None:
    pipe = tiny_flux()
    before = stock_images(pipe, noise(), ["a cat"], 2)
    flow = flow_of(pipe)
    sampling.ntrk(flow, redness, "a cat", steps=2)
    assert torch.equal(stock_images(pipe, noise(), ["a cat"], 2), before)
    with suppress(RuntimeError), exact_timestep(pipe.transformer.time_text_embed.time_proj, torch.ones(1)):
        raise RuntimeError
    assert not pipe.transformer.time_text_embed.time_proj._forward_pre_hooks


def test_bfloat16_runs_end_to_end() -> None:
    flow = flow_of(tiny_flux().to(dtype=torch.bfloat16))
    result = sampling.ntrk(flow, redness, PROMPTS, steps=3, options=sampling.SamplerOptions(micro_batch=2))
    assert result.latents.dtype == torch.float32
    assert all(record.gradient_norm for record in result.records if record.step < 2)


# ---- samplers ----


@pytest.mark.parametrize("operator", ["w", "norm"])
def test_ntrk_raises_the_reward(operator: str) -> None:
    flow = flow_of(tiny_flux())
    options = sampling.SamplerOptions(micro_batch=4)
    plain = sampling.base(flow, redness, PROMPTS * 2, steps=6, options=options)
    tilted = sampling.ntrk(flow, redness, PROMPTS * 2, rho=1.0, operator=operator, steps=6, options=options)
    assert bool((tilted.rewards > plain.rewards).all())
    assert not any(record.fallback for record in tilted.records)


def test_one_step_model() -> None:
    pipe = tiny_flux(False)
    model = FluxOneStep(pipe, height=SIZE, width=SIZE)
    images = stock_images(pipe, noise(0, 2), PROMPTS, steps=1)
    torch.testing.assert_close(model.generate(noise(0, 2), PROMPTS), images, rtol=0, atol=1e-5)
    result = sampling.wgnc(
        model, redness, PROMPTS, iterations=10, lr=0.1, options=sampling.SamplerOptions(micro_batch=2)
    )
    first = [record.reward for record in result.records if record.step == 0]
    assert all(after > before for after, before in zip(result.rewards.tolist(), first, strict=True))


# ---- offloading ----


class Residence(CpuOffload):
    """Stand-in for accelerate's hook without a GPU: a model "on the CPU" has NaN weights."""

    at_work: set[torch.nn.Module] = set()  # noqa: RUF012  (shared by all)
    peak: set[str] = set()  # noqa: RUF012

    def __init__(self, model: torch.nn.Module, before: UserCpuOffloadHook | None) -> None:
        super().__init__("cpu", before)
        self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def init_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        self.at_work.discard(module)
        for parameter in module.parameters():
            parameter.data.fill_(torch.nan)
        return module

    def pre_forward(self, module: torch.nn.Module, *args: object, **kwargs: object) -> tuple[object, object]:
        before = self.prev_module_hook
        if before is not None and before.model in self.at_work:
            before.offload()
        if module not in self.at_work:
            self.at_work.add(module)
            for name, parameter in module.named_parameters():
                parameter.data.copy_(self.weights[name])
        self.peak.add("+".join(sorted(type(model).__name__ for model in self.at_work)))
        return args, kwargs


def offloaded(pipe: FluxPipeline) -> FluxPipeline:
    """Hook a pipeline as `enable_model_cpu_offload` does."""
    Residence.at_work, Residence.peak = set(), set()
    hook = None
    for name in pipe.model_cpu_offload_seq.split("->"):
        model = getattr(pipe, name)
        if model is not None:
            residence = Residence(model, hook)
            add_hook_to_module(model, residence)
            hook = UserCpuOffloadHook(model, residence)
    return pipe


def test_hooks_of_model_offload_are_accelerates() -> None:
    pipe = tiny_flux()
    pipe.enable_model_cpu_offload(device="cpu")
    chain = [
        getattr(pipe, name)._hf_hook for name in ("text_encoder", "text_encoder_2", "transformer", "vae")
    ]
    assert all(isinstance(hook, CpuOffload) for hook in chain)
    assert [hook.prev_module_hook and hook.prev_module_hook.model for hook in chain] == [
        None,
        pipe.text_encoder,
        pipe.text_encoder_2,
        pipe.transformer,
    ]  # fmt: skip  (the order of Residence)
    offload.rewire_offload_hooks(pipe)
    assert [hook.prev_module_hook and hook.prev_module_hook.model for hook in chain] == [
        pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, None
    ]  # fmt: skip
    assert flow_of(pipe).device == torch.device("cpu:0")


def test_model_offload_keeps_weights_until_their_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    options = sampling.SamplerOptions(micro_batch=1)
    expected = sampling.ntrk(flow_of(tiny_flux()), redness, PROMPTS, steps=3, options=options)
    result = sampling.ntrk(flow_of(offloaded(tiny_flux())), redness, PROMPTS, steps=3, options=options)
    assert torch.equal(result.latents, expected.latents)
    # networks that were on the device together: never a text encoder and the transformer
    assert Residence.peak == {
        "CLIPTextModel",
        "T5EncoderModel",
        "FluxTransformer2DModel",
        "AutoencoderKL+FluxTransformer2DModel",
        "AutoencoderKL+CLIPTextModel",
        "AutoencoderKL+T5EncoderModel",
    }
    for module in ("pipeline", "prompts"):
        monkeypatch.setattr(f"noisetilt_kernels.models.{module}.rewire_offload_hooks", lambda *_: None)
    with pytest.raises(sampling.NonFiniteError):
        sampling.ntrk(flow_of(offloaded(tiny_flux())), redness, PROMPTS, steps=3, options=options)


def test_model_offload_without_text_encoders() -> None:
    pipe = offloaded(tiny_flux())
    flow = flow_of(pipe)
    flow.encode("a cat")
    pipe.text_encoder = pipe.text_encoder_2 = None
    expected = gradient(lambda x: flow_of(tiny_flux()).velocity(x, 0.5, ["a cat"]), noise())
    assert torch.equal(gradient(lambda x: flow.velocity(x, 0.5, ["a cat"]), noise()), expected)
    assert pipe.transformer._hf_hook.prev_module_hook is None  # a single network does not move itself


@pytest.mark.parametrize("checkpointing", [True, False])
def test_sequential_offload(checkpointing: bool) -> None:
    options = sampling.SamplerOptions(micro_batch=2)
    expected = sampling.ntrk(flow_of(tiny_flux()), redness, PROMPTS, steps=3, options=options)
    pipe = tiny_flux()
    for model in (pipe.text_encoder, pipe.text_encoder_2, pipe.transformer, pipe.vae):
        cpu_offload(model, torch.device("cpu"))  # as pipe.enable_sequential_cpu_offload() does
    flow = flow_of(pipe, gradient_checkpointing=checkpointing)
    assert flow.device == torch.device("cpu")
    result = sampling.ntrk(flow, redness, PROMPTS, steps=3, options=options)
    torch.testing.assert_close(result.latents, expected.latents, rtol=0, atol=1e-5)
    assert all(parameter.is_meta for parameter in pipe.transformer.parameters())


def test_group_offload_is_refused() -> None:
    pipe = tiny_flux()
    pipe.transformer.enable_group_offload("cpu", offload_type="leaf_level")
    with pytest.raises(ValueError, match="FluxFlow: pipe must have its transformer without group offloading"):
        flow_of(pipe)
    pipe = tiny_flux()
    # text encoders have no gradients
    apply_group_offloading(pipe.text_encoder_2, "cpu", offload_type="leaf_level")
    flow_of(pipe).encode("a cat")


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"height": 30},
            ValueError,
            "FluxFlow: height must be a multiple of 4, got 30; 28 and 32 are nearest",
        ),
        ({"width": 3}, ValueError, "FluxFlow: width must be a multiple of 4, got 3; 4 is nearest"),
        ({"width": 0}, ValueError, "FluxFlow: width must be at least 1, got 0"),
        ({"height": 32.0}, TypeError, "FluxFlow: height must be an integer, got 32.0"),
        (
            {"guidance_scale": -1},
            ValueError,
            "FluxFlow: guidance_scale must be finite and at least 0, got -1",
        ),
        ({"max_sequence_length": 0}, ValueError, "FluxFlow: max_sequence_length must be at least 1, got 0"),
        (
            {"max_sequence_length": 600},
            ValueError,
            "FluxFlow: max_sequence_length must be at most 512, got 600",
        ),
    ],
)
def test_arguments_out_of_range(options: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        flow_of(tiny_flux(), **options)


def test_other_pipelines_and_latents_are_errors() -> None:
    with pytest.raises(TypeError, match="FluxOneStep: pipe must be a FluxPipeline of diffusers, got str"):
        FluxOneStep("black-forest-labs/FLUX.1-schnell")
    pipe = tiny_flux()
    pipe.vae = None
    with pytest.raises(ValueError, match="FluxFlow: pipe must have a transformer and a VAE, its vae is None"):
        flow_of(pipe)
    message = (
        r"FluxFlow.velocity: x must be \(2, 4, 16, 16\), one latent for each prompt, got \(1, 4, 16, 16\)"
    )
    with pytest.raises(ValueError, match=message):
        flow_of(tiny_flux()).velocity(noise(), 0.5, ["a", "the"])


def test_default_size_is_the_vaes() -> None:
    pipe = tiny_flux()
    pipe.vae.register_to_config(sample_size=48)
    assert FluxFlow(pipe).shape == (4, 24, 24)


def test_the_package_works_without_diffusers() -> None:
    code = """
import sys
import noisetilt_kernels
assert not {"diffusers", "transformers", "accelerate"} & set(sys.modules)
sys.modules["diffusers"] = None
try:
    import noisetilt_kernels.models
except ImportError as error:
    print(error)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = 'noisetilt_kernels.models needs diffusers: pip install "noisetilt-kernels[diffusers]"'
    assert process.stdout.strip() == expected
