"""Nodes for ComfyUI against a stand-in of its interfaces, in inference mode as ComfyUI runs them."""

import importlib
import itertools
import json
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_comfy
import pytest
import torch
from fake_comfy import VAE, Comfy, ExplodingSampling, FlowSampling, Guider, Model, RandomNoise
from torch import Tensor, nn

import noisetilt_kernels as nt
from noisetilt_kernels import sampling
from noisetilt_kernels.models.pipeline import to_pixels
from noisetilt_kernels.rewards.simple import brightness
from noisetilt_kernels.sampling.noise import ParticleNoise

SHAPE = (4, 16, 16)
SIGMAS = torch.linspace(1, 0, 6)
EMPTY = torch.zeros(1, *SHAPE)


class Block(nn.Conv2d):
    """Convolution that counts its calls."""

    def __init__(self) -> None:
        super().__init__(4, 4, 3, padding=1)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Network(nn.Module):
    """Denoiser of a flow with two blocks, whose backward needs its weights and the condition."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.3, generator=generator)
        self.inputs: list[tuple[Tensor, float]] = []

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        self.inputs.append((x.detach().clone(), float(sigma[0])))
        h = x
        for block in self.blocks:
            h = torch.tanh(block(h))
        if condition is not None:
            h = h * condition
        return x - sigma.view(-1, 1, 1, 1) * (x - 0.3 * h)


class Exploding(nn.Module):
    """The network for latents x_0 + sigma eps."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        share = (1 + sigma).view(-1, 1, 1, 1)
        return self.network(x / share, sigma / (1 + sigma))


class Decoder(nn.Module):
    """Decoder of a VAE: 2x2 pixels for each latent."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose2d(4, 3, 2, stride=2)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(1))

    def decode(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))


class Reference:
    """The model as a `FlowModel` of the package, made outside of inference mode."""

    def __init__(self) -> None:
        self.shape, self.device = SHAPE, torch.device("cpu")
        self.network, self.decoder = Network(), Decoder()

    def sigmas(self, n: int) -> Tensor:
        return SIGMAS

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        return (x - self.network(x, torch.full((len(x),), sigma))) / sigma

    def decode(self, x0: Tensor) -> Tensor:
        return self.decoder.decode(x0 / 2) / 2 + 0.5


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> Comfy:
    return fake_comfy.install(monkeypatch)


@pytest.fixture
def model() -> Model:
    with torch.inference_mode():  # ComfyUI loads models there
        return Model(Network(), FlowSampling(), scale=2.0)


@pytest.fixture
def vae() -> VAE:
    with torch.inference_mode():
        return VAE(Decoder())


@pytest.fixture
def judge(comfy: Comfy, vae: VAE) -> dict[str, Any]:
    """Inputs of a node that judges: the brightness of the images."""
    return {"reward": comfy.run("Reward", name="brightness")[0], "vae": vae, "prompt": ""}


def run(model: Model, sampler: Any, batch: int = 1, seed: int = 0, **others: Any) -> Tensor:
    """Sample from empty latents, or those in `latent`."""
    latent = others.pop("latent", torch.zeros(batch, *SHAPE))
    sigmas, condition = others.pop("sigmas", SIGMAS), others.pop("condition", None)
    return fake_comfy.sample(Guider(model, condition), sampler, sigmas, latent, RandomNoise(seed), **others)


def options_of(seed: int, batch: int, copies: int = 1) -> sampling.SamplerOptions:
    """Options of the package with the noise of the nodes: first ComfyUI's, then the package's stream."""
    first = RandomNoise(seed).generate_noise({"samples": torch.zeros(batch, *SHAPE)})

    def noise(particle: int, draw: int) -> Tensor:
        if draw < copies:
            return first[particle]
        return ParticleNoise(seed, particle, SHAPE).draw(draw - copies + 1)[-1]

    return sampling.SamplerOptions(seed=seed, micro_batch=batch, noise=noise)


def brightness_of(samples: Tensor, vae: VAE) -> Tensor:
    with torch.inference_mode():
        return brightness(vae.process_output(vae.first_stage_model.decode(samples)), [""] * len(samples))


def test_every_node_has_what_comfyui_asks_for(comfy: Comfy) -> None:
    nodes = comfy.nodes.NODE_CLASS_MAPPINGS
    assert set(nodes) == set(comfy.nodes.NODE_DISPLAY_NAME_MAPPINGS)
    for name, node in nodes.items():
        assert name.startswith("Noisetilt") and node.CATEGORY == "noisetilt" and node.DESCRIPTION
        assert callable(getattr(node, node.FUNCTION))
        json.dumps(node.INPUT_TYPES())  # the server sends them
        assert len(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)) == len(node.RETURN_TYPES)


@pytest.mark.parametrize(
    ("node", "inputs", "method", "arguments"),
    [
        ("BaseSampler", {}, "base", {}),
        ("BaseSampler", {"schedule": "constant", "scale": 0.3}, "base", {"schedule": ("constant", 0.3)}),
        ("NTRKSampler", {"rho": 0.4}, "ntrk", {"rho": 0.4}),
        ("NTRKSampler", {"operator": "norm"}, "ntrk", {"operator": "norm"}),
        ("NTRKSampler", {"guide_every": 2}, "ntrk", {"guide": sampling.GuidedSteps(every=2)}),
        ("SVDDSampler", {"candidates": 3}, "svdd", {"candidates": 3}),
        ("MethodSampler", {"method": "dps:strength=2"}, "dps", {"strength": 2}),
        ("MethodSampler", {"method": "das:alpha=0.1"}, "das", {"alpha": 0.1}),
    ],
)
def test_samplers_are_those_of_the_package(
    comfy: Comfy,
    model: Model,
    judge: dict[str, Any],
    node: str,
    inputs: dict[str, Any],
    method: str,
    arguments: dict[str, Any],
) -> None:
    (sampler,) = comfy.run(node, **inputs, **({} if node == "BaseSampler" else judge))
    samples = run(model, sampler, batch=2, seed=7)
    if "schedule" in arguments:
        arguments = {"schedule": sampling.Schedule(*arguments["schedule"])}
    entry = sampling.SAMPLERS[method]
    copies = 4 if method == "das" else 1
    result = entry.function(
        Reference(), brightness, ["", ""], steps=5, options=options_of(7, 2, copies), **arguments
    )
    torch.testing.assert_close(model.process_latent_in(samples), result.latents, rtol=1e-4, atol=1e-4)


def test_ntrk_leaves_ordinary_weights_and_restored_blocks(
    comfy: Comfy, model: Model, judge: dict[str, Any]
) -> None:
    network = model.diffusion_model
    assert all(weight.is_inference() for weight in network.parameters())
    run(model, comfy.run("NTRKSampler", **judge, rho=0.4)[0])
    networks = [network, judge["vae"].first_stage_model]
    assert not any(weight.is_inference() for one in networks for weight in one.parameters())
    assert all("forward" not in vars(block) for block in network.blocks)
    assert network.blocks[0].calls == 5 + 4  # four steps have a backward, which computes the blocks again


def test_the_gradient_is_right_where_blocks_write_into_their_inputs(
    comfy: Comfy, judge: dict[str, Any]
) -> None:
    (sampler,) = comfy.run("NTRKSampler", **judge, rho=0.5)
    samples = []
    for in_place in (False, True):
        with torch.inference_mode():
            model = Model(fake_comfy.WritingNetwork(in_place), FlowSampling(), scale=2.0)
        samples.append(run(model, sampler, batch=2))
    torch.testing.assert_close(samples[1], samples[0])

    gradients = importlib.import_module(f"{comfy.nodes.__name__}.gradients")
    found, weight = [], torch.randn(2, *SHAPE)
    for in_place, context in (
        (False, nullcontext),
        (False, gradients.recomputed),
        (True, gradients.recomputed),
    ):
        network = fake_comfy.WritingNetwork(in_place).requires_grad_(False)
        leaf = torch.linspace(-2, 2, 2 * EMPTY.numel()).view(2, *SHAPE).requires_grad_()
        with context(network):
            value = (network(leaf, torch.full((2,), 0.6)) * weight).sum()
            found += torch.autograd.grad(value, leaf)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_layers_of_u_nets_are_computed_again(comfy: Comfy) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Block()

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tanh(self.layer(x))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer_blocks = nn.ModuleList([Residual(), Residual()])
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.transformer_blocks[1](self.transformer_blocks[0](x))

    transformer = Transformer()
    first, middle = nn.Sequential(Residual(), transformer), nn.Sequential(Residual())
    network = nn.ModuleDict({"input_blocks": nn.ModuleList([first]), "middle_block": middle})
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    gradients = importlib.import_module(f"{comfy.nodes.__name__}.gradients")
    leaf = torch.randn(1, *SHAPE, requires_grad=True)
    with gradients.recomputed(network):
        x = leaf
        for layer in (*first, *middle):  # one by one, as U-Nets do
            x = layer(x)
        x.sum().backward()
    assert [block.calls for block in blocks] == [2, 2, 2, 2]
    assert transformer.calls == 2


def test_ntrk_raises_the_reward_also_with_a_condition_of_inference_mode(
    comfy: Comfy, model: Model, judge: dict[str, Any]
) -> None:
    with torch.inference_mode():
        condition = torch.full((1, *SHAPE), 0.9)
    (plain,), (guided,) = comfy.run("BaseSampler"), comfy.run("NTRKSampler", **judge, rho=0.8)
    scores = [
        brightness_of(run(model, sampler, batch=3, condition=condition), judge["vae"])
        for sampler in (plain, guided)
    ]
    assert (scores[1] > scores[0]).all()


def test_tied_weights_stay_tied(comfy: Comfy, model: Model, judge: dict[str, Any]) -> None:
    blocks = model.diffusion_model.blocks
    blocks[1].weight = blocks[0].weight
    run(model, comfy.run("NTRKSampler", **judge)[0])
    assert blocks[1].weight is blocks[0].weight


def test_model_and_vae_are_loaded_together(comfy: Comfy, model: Model, judge: dict[str, Any]) -> None:
    guider = Guider(model)
    noise = RandomNoise(0)
    for node in ("SVDDSampler", "NTRKSampler"):
        fake_comfy.sample(guider, comfy.run(node, **judge)[0], SIGMAS, EMPTY, noise)
    assert comfy.loaded == [[guider.model_patcher, judge["vae"].patcher]] * 2
    assert comfy.memory[1] > comfy.memory[0] >= 1100


def test_latents_of_sdxl_are_converted(comfy: Comfy, model: Model, judge: dict[str, Any]) -> None:
    with torch.inference_mode():
        exploding = Model(Exploding(), ExplodingSampling(), scale=2.0)
    times = torch.tensor([0.9, 0.7, 0.5, 0.2, 0.0])
    (sampler,) = comfy.run("NTRKSampler", **judge, rho=0.4)
    image = torch.randn(1, *SHAPE)
    expected = run(model, sampler, sigmas=times, latent=image)
    samples = run(exploding, sampler, sigmas=times / (1 - times), latent=image)
    torch.testing.assert_close(samples, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("exploding", [False, True])
def test_the_ode_is_comfyui_s_euler(comfy: Comfy, exploding: bool) -> None:
    network = Exploding() if exploding else Network()
    model = Model(network, ExplodingSampling() if exploding else FlowSampling(), scale=2.0)
    sigmas = torch.tensor([14.0, 5.0, 2.0, 0.5, 0.0]) if exploding else SIGMAS
    noise = RandomNoise(3).generate_noise({"samples": EMPTY})
    x = model.model_sampling.noise_scaling(sigmas[:1], noise, EMPTY.clone(), True)
    for sigma, after in itertools.pairwise(sigmas):
        x = x + (after - sigma) * (x - network(x, sigma.view(1))) / sigma
    (sampler,) = comfy.run("BaseSampler", scale=0.0)
    samples = run(model, sampler, sigmas=sigmas, seed=3)
    torch.testing.assert_close(model.process_latent_in(samples), x, rtol=1e-4, atol=1e-4)


def test_sdxl_begins_at_its_largest_sigma_with_noise_of_variance_one(comfy: Comfy) -> None:
    exploding = Model(Exploding(), ExplodingSampling())
    (sampler,) = comfy.run("BaseSampler")
    run(exploding, sampler, sigmas=torch.tensor([14.0, 3.0, 0.0]), seed=4)
    x, t = exploding.diffusion_model.network.inputs[0]
    noise = RandomNoise(4).generate_noise({"samples": EMPTY})
    torch.testing.assert_close(x, math.sqrt(1 + 14**2) / 15 * noise)
    assert t == pytest.approx(14 / 15)


def test_image_to_image_begins_at_the_first_sigma(comfy: Comfy, model: Model) -> None:
    (sampler,) = comfy.run("BaseSampler")
    image = torch.randn(1, *SHAPE)
    steps: list[tuple[int, int]] = []
    run(
        model,
        sampler,
        sigmas=torch.tensor([0.4, 0.2, 0.0]),
        latent=image,
        seed=3,
        callback=lambda step, x0, x, total: steps.append((step, total)),
    )
    noise = RandomNoise(3).generate_noise({"samples": EMPTY})
    torch.testing.assert_close(model.diffusion_model.inputs[0][0], 0.4 * noise + 0.6 * 2 * image)
    assert [t for _, t in model.diffusion_model.inputs] == pytest.approx([0.4, 0.2])
    assert steps == [(0, 2), (1, 2)]


@pytest.mark.parametrize("node", ["BaseSampler", "NTRKSampler", "SVDDSampler"])
def test_a_mask_keeps_the_rest_of_the_image(
    comfy: Comfy, model: Model, judge: dict[str, Any], node: str
) -> None:
    (sampler,) = comfy.run(node, **({} if node == "BaseSampler" else judge))
    image, mask = torch.randn(1, *SHAPE), torch.zeros(1, *SHAPE)
    mask[..., 8:] = 1
    samples = run(model, sampler, latent=image, mask=mask)
    torch.testing.assert_close(samples[..., :8], image[..., :8], rtol=1e-4, atol=1e-4)
    assert (samples[..., 8:] - image[..., 8:]).abs().mean() > 0.1
    noise = RandomNoise(0).generate_noise({"samples": EMPTY})
    for x, sigma in model.diffusion_model.inputs:  # the network sees the image with noise there
        known = sigma * noise + (1 - sigma) * 2 * image
        torch.testing.assert_close(x[..., :8], known[..., :8].expand(len(x), -1, -1, -1))
    everywhere = run(model, sampler, latent=image, mask=torch.ones(1, *SHAPE))
    torch.testing.assert_close(everywhere, run(model, sampler, latent=image))


def test_masks_that_change_are_refused(comfy: Comfy, model: Model) -> None:
    guider = Guider(model)
    guider.model_options["denoise_mask_function"] = lambda *arguments, **options: None
    with pytest.raises(ValueError, match="Differential Diffusion"):
        fake_comfy.sample(
            guider, comfy.run("BaseSampler")[0], SIGMAS, torch.randn(1, *SHAPE), mask=torch.ones(1, *SHAPE)
        )


def test_progress_shows_the_estimates(comfy: Comfy, model: Model, judge: dict[str, Any]) -> None:
    das = {"method": "das:alpha=10", **judge}  # whose copies differ at the end
    for node, inputs in (
        ("NTRKSampler", judge),
        ("SVDDSampler", judge),
        ("MethodSampler", das),
        ("BaseSampler", {}),
    ):
        shown: list[Any] = []
        samples = run(
            model,
            comfy.run(node, **inputs)[0],
            batch=2,
            callback=lambda *arguments: shown.append(arguments),  # noqa: B023
        )
        assert [(step, total) for step, _, _, total in shown][-1] == (len(shown) - 1, len(shown))
        assert {tuple(x0.shape) for _, x0, _, _ in shown} == {(2, *SHAPE)}
        torch.testing.assert_close(shown[-1][1], model.process_latent_in(samples))
        if node in (
            "NTRKSampler",
            "BaseSampler",
        ):  # the others make its particles one after another in a small batch
            assert len(shown) == 5
            assert not torch.equal(shown[1][1], shown[2][1])


@pytest.mark.parametrize("node", ["BaseSampler", "NTRKSampler", "SVDDSampler"])
@pytest.mark.parametrize("checks", [0, 3])
def test_cancel_is_honoured_at_each_forward(
    comfy: Comfy, model: Model, judge: dict[str, Any], node: str, checks: int
) -> None:
    (sampler,) = comfy.run(node, **({} if node == "BaseSampler" else judge))
    comfy.checks_left = checks
    with pytest.raises(fake_comfy.InterruptProcessingException):
        run(model, sampler)
    assert len(model.diffusion_model.inputs) <= checks
    comfy.checks_left = None
    run(model, sampler)  # the model still works


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0, 0.5], r"must fall to 0, got \[1.0, 0.5\]"),
        ([1.0, 0.5, 0.5, 0.0], "must fall to 0"),
        ([0.0], "must fall to 0"),
        ([14.6, 3.0, 0.0], "begin at most at 1, got 14.6"),
    ],
)
def test_sigmas_that_do_not_fit_are_refused(
    comfy: Comfy, model: Model, sigmas: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(model, comfy.run("BaseSampler")[0], sigmas=torch.tensor(sigmas))
    assert not model.diffusion_model.inputs


def test_other_ways_to_add_noise_are_refused(comfy: Comfy) -> None:
    class Strange(FlowSampling):
        def noise_scaling(self, *arguments: Any) -> Tensor:
            return 2 * super().noise_scaling(*arguments)

    with pytest.raises(ValueError, match=r"Strange adds noise as 1\.5 image"):
        run(Model(Network(), Strange()), comfy.run("BaseSampler")[0])


def test_gradients_are_refused_where_comfyui_has_none(
    comfy: Comfy, model: Model, judge: dict[str, Any]
) -> None:
    (guided,), (svdd,) = comfy.run("NTRKSampler", **judge), comfy.run("SVDDSampler", **judge)
    for attention in ("sage", "split"):
        comfy.attention = attention
        with pytest.raises(RuntimeError, match="--use-pytorch-cross-attention"):
            run(model, guided)
        with pytest.raises(RuntimeError, match="--use-pytorch-cross-attention"):
            comfy.run("RewardGradient", latent={"samples": torch.randn(1, *SHAPE)}, **judge)
        run(model, svdd)
    comfy.attention = "pytorch"
    dynamic = Guider(model, dynamic=True)
    with pytest.raises(RuntimeError, match="--disable-dynamic-vram"):
        fake_comfy.sample(dynamic, guided, SIGMAS, EMPTY)
    fake_comfy.sample(dynamic, svdd, SIGMAS, EMPTY)
    moving = VAE(Decoder())
    moving.patcher = fake_comfy.Patcher(moving.first_stage_model, dynamic=True)
    with pytest.raises(RuntimeError, match=r"weights of Decoder.*--disable-dynamic-vram"):
        comfy.run("RewardGradient", latent={"samples": torch.randn(1, *SHAPE)}, **judge | {"vae": moving})


@pytest.mark.parametrize("by", ["option", "model"])
def test_products_in_float8_are_refused(comfy: Comfy, model: Model, judge: dict[str, Any], by: str) -> None:
    (guided,) = comfy.run("NTRKSampler", **judge)
    if by == "option":
        comfy.fast = set(Enum("Fast", {"A": "fp8_matrix_mult", "B": "autotune"}))
    else:
        model.model_config = SimpleNamespace(optimizations={"fp8": True})
    run(model, guided)  # no weight is float8
    model.extra = nn.Parameter(torch.ones(1).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(RuntimeError, match=r"--fast fp8_matrix_mult and load .* instead of fp8_e4m3fn_fast"):
        run(model, guided)


def test_tensors_of_inference_mode_that_stay_are_named(
    comfy: Comfy, model: Model, judge: dict[str, Any]
) -> None:
    with torch.inference_mode():
        hidden = torch.ones(1)
    network = model.diffusion_model
    network.register_forward_hook(lambda module, inputs, output: output * hidden)
    (sampler,) = comfy.run("NTRKSampler", **judge)
    with pytest.raises(
        RuntimeError, match=r"Model, the VAE or the reward uses a tensor .* in inference mode"
    ):
        run(model, sampler)


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (lambda module, inputs, output: _written(output), "writes into a tensor that the gradient needs"),
        (lambda module, inputs, output: torch.heaviside(output, output), "operation without gradient"),
        (lambda module, inputs, output: torch.sin(output, out=output), "operation without gradient"),
    ],
)
def test_errors_of_autograd_are_explained(
    comfy: Comfy, model: Model, judge: dict[str, Any], hook: Any, message: str
) -> None:
    (sampler,) = comfy.run("NTRKSampler", **judge)
    judge["vae"].first_stage_model.layer.register_forward_hook(hook)
    with pytest.raises(RuntimeError, match=rf"noisetilt: Model, the VAE or the reward .*{message}"):
        run(model, sampler)
    with pytest.raises(RuntimeError, match=rf"noisetilt: the VAE or the reward brightness .*{message}"):
        comfy.run("RewardGradient", latent={"samples": torch.randn(1, *SHAPE)}, **judge)


def _written(x: Tensor) -> Tensor:
    y = x.exp()
    z = y * 1
    y.add_(1)
    return z


def test_values_that_are_not_finite_are_explained(comfy: Comfy, model: Model, judge: dict[str, Any]) -> None:
    model.diffusion_model.register_forward_hook(lambda module, inputs, output: output * math.nan)
    with pytest.raises(ArithmeticError, match=r"non-finite reward at step 0.*--bf16-vae"):
        run(model, comfy.run("NTRKSampler", **judge)[0])


def test_candidates_of_several_latents_need_common_conditions(
    comfy: Comfy, model: Model, judge: dict[str, Any]
) -> None:
    (svdd,) = comfy.run("SVDDSampler", **judge)
    own = torch.rand(2, *SHAPE)
    with pytest.raises(ValueError, match=r"svdd takes a batch of 2 latents only without conditions.*got c;"):
        run(model, svdd, batch=2, condition=own)
    with pytest.raises(ValueError, match="got an inpainting mask"):
        run(model, svdd, batch=2, mask=torch.ones(2, *SHAPE))
    run(model, svdd, batch=2, condition=own[:1])
    run(model, svdd, batch=1, condition=own[:1])
    run(model, comfy.run("NTRKSampler", **judge)[0], batch=2, condition=own)


class Noised:
    """A sampler of ComfyUI that returns its first noise, with seeds and forwards noted."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.noises: list[Tensor] = []

    def sample(
        self, guider: Any, sigmas: Tensor, extra: Any, callback: Any, noise: Tensor, *others: Any
    ) -> Tensor:
        self.seeds.append(extra["seed"])
        self.noises.append(noise.clone())
        if callback is not None:
            for step in range(2):
                callback(step, noise, noise, 2)
        return noise


def test_best_of_n_keeps_the_best_run_of_each_latent(
    comfy: Comfy, model: Model, judge: dict[str, Any]
) -> None:
    inner = Noised()
    (sampler,) = comfy.run("BestOfSampler", sampler=inner, n=4, **judge)
    steps: list[tuple[int, int]] = []
    shown: list[Tensor] = []

    def callback(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        steps.append((step, total))
        shown.append(denoised)

    samples = run(model, sampler, batch=3, seed=9, callback=callback)
    assert torch.equal(inner.noises[0], RandomNoise(9).generate_noise({"samples": torch.zeros(3, *SHAPE)}))
    assert inner.seeds[0] == 9 and len(set(inner.seeds)) == 4
    scores = torch.stack([brightness_of(noise / 2, judge["vae"]) for noise in inner.noises])
    assert len(scores.unique()) == 12
    torch.testing.assert_close(brightness_of(samples, judge["vae"]), scores.amax(dim=0))
    assert steps == [(index, 8) for index in range(8)] + [(7, 8)]
    torch.testing.assert_close(shown[-1], 2 * samples)  # the second output of SamplerCustomAdvanced
    inner.noises.clear()
    run(model, sampler, batch=3, seed=9)
    torch.testing.assert_close(
        torch.stack([brightness_of(noise / 2, judge["vae"]) for noise in inner.noises]), scores
    )


def test_best_of_n_leaves_disabled_noise_disabled(comfy: Comfy, model: Model, judge: dict[str, Any]) -> None:
    inner = Noised()
    (sampler,) = comfy.run("BestOfSampler", sampler=inner, n=2, **judge)

    class Disabled(RandomNoise):
        def generate_noise(self, latent: dict[str, Tensor]) -> Tensor:
            return torch.zeros_like(latent["samples"])

    fake_comfy.sample(Guider(model), sampler, SIGMAS, torch.ones(1, *SHAPE), Disabled(1))
    assert not any(noise.any() for noise in inner.noises)


def test_rewards_and_their_sum(comfy: Comfy) -> None:
    images = torch.rand(2, 3, 8, 8)
    (bright,), (blue,) = comfy.run("Reward"), comfy.run("RewardBySpec", spec="color:blue")
    (total,) = comfy.run("RewardSum", reward_1=bright, weight_1=2.0, reward_2=blue, weight_2=-0.5)
    torch.testing.assert_close(
        total(images, ["", ""]), 2 * bright(images, ["", ""]) - 0.5 * blue(images, ["", ""])
    )
    (twice,) = comfy.run("RewardSum", reward_1=bright, weight_1=1.0, reward_2=bright, weight_2=1.0)
    torch.testing.assert_close(twice(images, ["", ""]), 2 * bright(images, ["", ""]))
    (nested,) = comfy.run("RewardSum", reward_1=total, reward_2=total, reward_4=bright)
    assert [spec.name for spec in nested.specs] == ["brightness", "color:blue"] * 2 + ["brightness"]


def test_rewards_that_cannot_serve_are_refused_at_once(comfy: Comfy, judge: dict[str, Any]) -> None:
    (digit,), (verdict,) = comfy.run("Reward", name="digit"), comfy.run("Reward", name="digit-judge")
    with pytest.raises(ValueError, match="digit"):
        comfy.run("SVDDSampler", **judge | {"reward": digit, "prompt": "a cat"})
    seven = {"prompt": "a handwritten seven", "reward": verdict}
    comfy.run("SVDDSampler", **judge | seven)
    comfy.run("BestOfSampler", sampler=Noised(), **judge | seven)
    for node in ("NTRKSampler", "RewardGradient"):
        latent = {"latent": {"samples": EMPTY}} if node == "RewardGradient" else {}
        with pytest.raises(ValueError, match=r"no gradient, so it can judge images but not steer"):
            comfy.run(node, **judge | seven, **latent)
    with pytest.raises(ValueError, match="unknown reward 'brightnes'"):
        comfy.run("RewardBySpec", spec="brightnes")


def test_code_of_workflows_is_not_run_unless_allowed(
    comfy: Comfy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "mine.py"
    place.write_text(
        "import pathlib\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "def zero(images, prompts):\n    return images.mean(dim=(1, 2, 3))\n"
    )
    for spec in (f"{place}:zero", f"count:{place}:zero"):
        with pytest.raises(ValueError, match="NOISETILT_CUSTOM_REWARDS=1"):
            comfy.run("RewardBySpec", spec=spec)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("NOISETILT_CUSTOM_REWARDS", "1")
    (reward,) = comfy.run("RewardBySpec", spec=f"{place}:zero")
    assert reward(torch.ones(1, 3, 4, 4), [""]).item() == 1


def test_changed_files_of_rewards_are_loaded_again(
    comfy: Comfy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, spec = tmp_path / "mine.py", f"{tmp_path / 'mine.py'}:score"
    changed = comfy.nodes.NODE_CLASS_MAPPINGS["NoisetiltRewardBySpec"].IS_CHANGED
    images, values, times = torch.ones(1, 3, 4, 4), [], []
    monkeypatch.setenv("NOISETILT_CUSTOM_REWARDS", "1")
    for factor in (2, 3):
        place.write_text(f"def score(images, prompts):\n    return {factor} * images.mean(dim=(1, 2, 3))\n")
        os.utime(place, (factor, factor))
        times.append(changed(spec=spec))
        values.append(comfy.run("RewardBySpec", spec=spec)[0](images, [""]).item())
    assert values == [2, 3]
    assert times[0] != times[1] and changed(spec=f"count:{spec}") == times[1]
    assert changed(spec="color:blue") == changed(spec="color:blue")
    monkeypatch.delenv("NOISETILT_CUSTOM_REWARDS")
    assert changed(spec=spec) == 0


def test_methods_that_cannot_serve_are_refused(comfy: Comfy, judge: dict[str, Any]) -> None:
    for method, message in (
        ("reno", r"takes samplers of flows with any start: base.*got 'reno'"),
        ("fk:alpha=1", "got 'fk'"),
        ("dps:strength=1,steps=4", "ComfyUI gives steps by SIGMAS"),
        ("dps", "needs strength"),
        ("freedom:streng=1", "no argument 'streng'"),
    ):
        with pytest.raises(ValueError, match=message):
            comfy.run("MethodSampler", method=method, **judge)


def test_whitened_noise(comfy: Comfy) -> None:
    field = torch.randn(2, *SHAPE).cumsum(-1)
    latent = {"samples": torch.zeros(2, *SHAPE)}
    plain = RandomNoise(5).generate_noise(latent)
    made = {
        rho: comfy.run("WhitenedNoise", noise=RandomNoise(5), field={"samples": field}, rho=rho)[0]
        for rho in (0.0, 0.3, 1.0)
    }
    assert {noise.seed for noise in made.values()} == {5}
    assert torch.equal(made[0.0].generate_noise(latent), plain)
    torch.testing.assert_close(made[1.0].generate_noise(latent), nt.whiten(field))
    mixed = math.sqrt(0.3) * nt.whiten(field) + math.sqrt(0.7) * plain
    torch.testing.assert_close(made[0.3].generate_noise(latent), mixed)
    one = {"samples": field[:1]}
    (shared,) = comfy.run("WhitenedNoise", noise=RandomNoise(5), field=one, rho=1.0, operator="norm")
    assert torch.equal(shared.generate_noise(latent)[0], shared.generate_noise(latent)[1])
    video = {"samples": torch.zeros(2, 4, 1, 16, 16)}
    assert made[0.3].generate_noise(video).shape == (2, 4, 1, 16, 16)


def test_fields_that_cannot_be_whitened_are_refused(comfy: Comfy) -> None:
    for field, message in (
        (torch.randn(1, 4, 8, 8), r"must have the shape of the latents, \(1, 4, 16, 16\)"),
        (torch.randn(2, *SHAPE), "or one entry of it"),
        (EMPTY, "zero or not finite"),
        (torch.full_like(EMPTY, math.nan), "zero or not finite"),
        (torch.ones(1, 5, 16, 16), "must have the shape"),
    ):
        (noise,) = comfy.run("WhitenedNoise", noise=RandomNoise(0), field={"samples": field})
        with pytest.raises(ValueError, match=message):
            noise.generate_noise({"samples": EMPTY})


def test_gradient_of_a_reward(comfy: Comfy, judge: dict[str, Any]) -> None:
    latents = torch.randn(2, *SHAPE)
    gradient, text = comfy.run("RewardGradient", latent={"samples": latents}, **judge)
    decoder, leaf = Decoder(), latents.clone().requires_grad_()
    images = decoder.decode(leaf) / 2 + 0.5
    brightness(images, ["", ""]).sum().backward()
    torch.testing.assert_close(gradient["samples"], leaf.grad)
    assert text.count("brightness") == 2


def test_pixels_outside_the_range_keep_their_gradient(comfy: Comfy, judge: dict[str, Any]) -> None:
    decoder = judge["vae"].first_stage_model
    decoder.decode = lambda x: 3 * decoder.layer(x)
    latents = torch.randn(1, *SHAPE)
    (reward,) = comfy.run("RewardBySpec", spec="color:blue")
    gradient, text = comfy.run("RewardGradient", latent={"samples": latents}, **judge | {"reward": reward})
    leaf = latents.clone().requires_grad_()
    decoded = 3 * Decoder().layer(leaf)
    assert (decoded.abs() > 1).float().mean() > 0.1
    score = reward(to_pixels(decoded, leaf), [""])
    torch.testing.assert_close(gradient["samples"], torch.autograd.grad(score.sum(), leaf)[0])
    assert f"{score.item():.6g}" in text


def test_picture_of_whitening(comfy: Comfy) -> None:
    latents = torch.randn(2, *SHAPE).cumsum(-1)
    picture, whitened, text = comfy.run("WhiteningPicture", latent={"samples": latents}, channel=2)
    assert torch.equal(whitened["samples"], nt.whiten(latents))
    assert picture.shape == (2, 520, 520, 3)
    assert picture.min() >= 0 and picture.max() <= 1
    before, after = picture[0, :256, :256, 0], picture[0, :256, 264:, 0]
    expected = (nt.whiten(latents)[0, 2] / nt.whiten(latents)[0].std() / 6 + 0.5).clamp(0, 1)
    torch.testing.assert_close(after[::16, ::16], expected)
    assert (before[::16, ::16] - after[::16, ::16]).abs().mean() > 0.05
    flat = [picture[0, 264:, columns, 0].std() for columns in (slice(0, 256), slice(264, 520))]
    assert flat[1] < flat[0]  # the periodogram
    lines = text.splitlines()
    assert len(lines) == 4 and "cosine to the latent 0." in lines[1]
    video, _, _ = comfy.run("WhiteningPicture", latent={"samples": torch.randn(1, 4, 2, 16, 16)})
    assert video.shape == (1, 520, 520, 3)
    with pytest.raises(ValueError, match="channel must be below 4, got 4"):
        comfy.run("WhiteningPicture", latent={"samples": latents}, channel=4)


def test_judged_images_are_sorted(comfy: Comfy, judge: dict[str, Any]) -> None:
    images = torch.stack([torch.full((8, 8, 3), level) for level in (0.2, 0.9, 0.5)])
    best, ordered, text = comfy.run("Judge", images=images, reward=judge["reward"], prompt="")
    assert torch.equal(best, images[1:2]) and torch.equal(ordered, images[[1, 2, 0]])
    assert text.splitlines()[0].startswith("image 1: brightness 0.9")


class DigitsNetwork(nn.Module):
    """The bundled flow of digits as ComfyUI's network, with a condition that numbers the prompt."""

    def __init__(self, flow: Any, prompts: Sequence[str]) -> None:
        super().__init__()
        self.flow, self.prompts = flow, prompts
        self.transformer = flow.pipe.transformer

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        prompts = [self.prompts[int(number)] for number in condition.expand(len(x))]
        return x - sigma.view(-1, 1, 1, 1) * self.flow.velocity(x, float(sigma[0]), prompts)


class DigitsDecoder(nn.Module):
    """The decoder of the bundled flow, with values from -1 to 1 as those of ComfyUI."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow, self.vae = flow, flow.pipe.vae

    def decode(self, x: Tensor) -> Tensor:
        images: Tensor = 2 * self.flow.decode(x) - 1
        return images


def test_digits_end_to_end(comfy: Comfy) -> None:
    from noisetilt_kernels import models

    flow = models.FluxFlow(models.load_pipeline("digits", dtype=torch.float32))
    prompt = "a handwritten seven"
    with torch.inference_mode():  # ComfyUI loads models there
        for network in (flow.pipe.transformer, flow.pipe.vae):
            for module in network.modules():
                for name, weight in list(module.named_parameters(recurse=False)):
                    setattr(module, name, nn.Parameter(weight.clone(), requires_grad=False))
        model = Model(DigitsNetwork(flow, [prompt]), FlowSampling())
        vae = VAE(DigitsDecoder(flow))
        condition = torch.zeros(1)
    assert all(weight.is_inference() for weight in model.parameters())
    (reward,) = comfy.run("Reward", name="digit")
    judge = {"reward": reward, "vae": vae, "prompt": prompt}
    sigmas, latent = flow.sigmas(8).float(), torch.zeros(2, *flow.shape)
    scores = {}
    for name, (sampler,) in {
        "base": comfy.run("BaseSampler"),
        "svdd": comfy.run("SVDDSampler", **judge, candidates=3),
        "ntrk": comfy.run("NTRKSampler", **judge, rho=0.1),
        "best": comfy.run("BestOfSampler", **judge, sampler=comfy.run("BaseSampler")[0], n=3),
    }.items():
        guider = Guider(model, condition)
        samples = fake_comfy.sample(guider, sampler, sigmas, latent, RandomNoise(1))
        with torch.inference_mode():
            images = vae.process_output(vae.first_stage_model.decode(samples)).movedim(1, -1)
        _, _, text = comfy.run("Judge", images=images, reward=reward, prompt=prompt)
        scores[name] = sorted(float(line.rsplit(maxsplit=1)[1]) for line in text.splitlines())
    assert all(sum(scores[name]) > sum(scores["base"]) for name in ("svdd", "ntrk", "best")), scores


WORKFLOWS = sorted((fake_comfy.PACK / "workflows").glob("*.json"))


def test_there_are_example_workflows() -> None:
    assert len(WORKFLOWS) >= 3


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_example_workflows_fit_the_nodes(comfy: Comfy, path: Path) -> None:
    workflow = json.loads(path.read_text())
    nodes = comfy.nodes.NODE_CLASS_MAPPINGS
    ours = {number: node for number, node in workflow.items() if node["class_type"].startswith("Noisetilt")}
    assert ours
    for node in ours.values():
        given = nodes[node["class_type"]].INPUT_TYPES()
        named = {**given["required"], **given.get("optional", {})}
        assert set(given["required"]) <= set(node["inputs"]) <= set(named)
        for name, value in node["inputs"].items():
            kind = named[name][0]
            if isinstance(value, list):
                source = workflow[value[0]]
                if source["class_type"] in nodes:
                    assert nodes[source["class_type"]].RETURN_TYPES[value[1]] == kind
            elif isinstance(kind, list):
                assert value in kind
            else:
                assert kind in ("INT", "FLOAT", "STRING", "BOOLEAN")
