"""Quantised denoisers: gradients of latents, stored values, memory, and hooks that swap weights."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig
from model_checks import assert_planned, gradient, kept_for_backward, noise, redness
from tiny_flux import SIZE, tiny_flux
from tiny_ltx import SIZE as LTX_SIZE
from tiny_ltx import tiny_ltx
from tiny_models import SIZE as WIDE
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
from tiny_wan import SIZE as WAN_SIZE
from tiny_wan import tiny_wan, tiny_wan_a14b
from torch import Tensor

from noisetilt_cli import main
from noisetilt_kernels.models import FluxFlow, ModelError, family_of, load_pipeline
from noisetilt_kernels.models.memory import plan_memory
from noisetilt_kernels.models.quantize import EightBitLinear, kind_on_disk, linear_layers, quantise
from noisetilt_kernels.models.weights import compute_dtype
from noisetilt_kernels.sampling import base

CPU = torch.device("cpu")
SIDES = {"height": SIZE, "width": SIZE}
PROMPT = "a cat"


def wide_flux(seed: int = 0) -> Any:
    """Make a pipeline whose transformer has a width of 64, a whole block of NF4."""
    pipe = tiny_flux(seed=seed)
    config = {"attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)}
    pipe.transformer = FluxTransformer2DModel.from_config({**pipe.transformer.config, **config}).eval()
    return pipe


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux") / "tiny"
    wide_flux().save_pretrained(folder)
    return folder


def reward_gradient(pipe: Any, checkpointing: bool = False, **sides: int) -> Tensor:
    """Gradient from pixels through VAE and denoiser to the latent, for the family of the pipeline."""
    family = family_of(pipe)
    adapter: Any = family.flow or family.one_step
    model = adapter(pipe, gradient_checkpointing=checkpointing, **(sides or SIDES))

    def image(x: Tensor) -> Tensor:
        return model.decode(model.velocity(x, 0.6, [PROMPT]) if family.flow else model.denoised(x, [PROMPT]))

    return gradient(image, noise(model.shape))


def cosine(one: Tensor, other: Tensor) -> float:
    return torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()


# ---- quantize= ----


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
def test_gradient_of_each_kind(flux: Path, kind: str, checkpointing: bool) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    expected = reward_gradient(wide_flux())
    for dtype in (torch.float32, torch.bfloat16):
        pipe = load_pipeline(flux, dtype=dtype, device="cpu", quantize=kind)
        assert not linear_layers(pipe.transformer, kind) and compute_dtype(pipe.transformer) == dtype
        found = reward_gradient(pipe, checkpointing)
        assert found.dtype == torch.float32
        assert cosine(found, expected) > 0.98 and not torch.allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
def test_gradient_after_calls_without_gradient_and_casts(flux: Path, kind: str) -> None:
    """A call without a gradient, and a cast of the pipeline, leave the weights as they are."""
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    pipe = load_pipeline(flux, dtype=torch.float32, device="cpu", quantize=kind)
    expected = reward_gradient(pipe)
    if kind != "nf4":  # diffusers refuses a cast of bitsandbytes
        pipe.transformer.to(torch.bfloat16).to(torch.float32)
    model = FluxFlow(pipe, **SIDES)
    with torch.no_grad():
        model.velocity(noise(model.shape), 0.6, [PROMPT])
    for layer in pipe.transformer.modules():
        if isinstance(layer, EightBitLinear):
            assert layer.weight.dtype.itemsize == 1 and layer.scale.dtype == torch.float32
        assert not getattr(layer, "support_avx512bf16_for_cpu", False)
    assert cosine(reward_gradient(pipe), expected) > 0.999


def test_quantised_layers_refuse_layerwise_casting(flux: Path) -> None:
    pipe = load_pipeline(flux, dtype=torch.float32, device="cpu", quantize="int8")
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    with pytest.raises(ValueError, match="because it is quantised already"):
        FluxFlow(pipe, **SIDES)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_everything_under_inference_mode(flux: Path, kind: str) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    expected = reward_gradient(load_pipeline(flux, dtype=torch.float32, device="cpu", quantize=kind))
    with torch.inference_mode():
        pipe = load_pipeline(flux, dtype=torch.float32, device="cpu", quantize=kind)
        model = FluxFlow(pipe, **SIDES)
    with torch.enable_grad():
        found = gradient(lambda x: model.decode(model.velocity(x, 0.6, [PROMPT])), noise(model.shape))
    assert cosine(found, expected) > 0.999


def test_plan_of_an_unknown_kind_is_an_error(flux: Path) -> None:
    with pytest.raises(ValueError, match="unknown quantize 'int4'"):
        plan_memory(str(flux), quantize="int4", **SIDES)


FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, int]]] = {
    "wan": (tiny_wan, WAN_SIZE),
    "wan-a14b": (tiny_wan_a14b, WAN_SIZE),
    "ltx": (tiny_ltx, LTX_SIZE),
    "z-image": (tiny_z_image, WIDE),
    "qwen-image": (tiny_qwen_image, WIDE),
    "sd3": (tiny_sd3, WIDE),
    "flux2": (tiny_flux2, WIDE),
    "flux2-klein": (tiny_flux2_klein, WIDE),
    "sd-turbo": (tiny_sd_turbo, WIDE),
    "sdxl-turbo": (tiny_sdxl_turbo, WIDE),
    "sana-sprint": (tiny_sana_sprint, {"height": 32, "width": 32}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_of_each_family(name: str) -> None:
    make, sides = FAMILIES[name]
    expected = reward_gradient(make(), **sides)
    pipe = make()
    for component in ("transformer", "transformer_2", "unet"):
        denoiser = getattr(pipe, component, None)
        if denoiser is not None:
            quantise(component, denoiser, "int8", CPU)
            assert sum(isinstance(one, EightBitLinear) for one in denoiser.modules()) >= 8
            assert compute_dtype(denoiser) == torch.float32
    found = reward_gradient(pipe, **sides)
    assert cosine(found, expected) > 0.98 and not torch.allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.5 / 127), ("fp8", 2**-4)])
def test_stored_values(kind: str, error: float) -> None:
    """The layer is a linear layer with the stored weights; the graph keeps no copy of them."""
    network = wide_flux().transformer
    name = "transformer_blocks.0.attn.to_q"
    before = network.get_submodule(name).weight.detach().clone()
    quantise("it", network, kind, CPU)
    layer = network.get_submodule(name)
    stored = layer.weight.float() * layer.scale
    largest = before.abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(stored.abs().amax(dim=1, keepdim=True), largest)
    tolerance = error * largest if kind == "int8" else error * before.abs() + largest * 2**-9 / 448
    assert ((stored - before).abs() <= 1.0001 * tolerance).all()
    dense = torch.nn.Linear(64, 64)
    dense.weight.data, dense.bias.data = stored, layer.bias
    x = torch.randn(2, 3, 64)
    torch.testing.assert_close(layer(x), dense(x))
    torch.testing.assert_close(gradient(layer, x), gradient(dense, x))
    assert kept_for_backward([network], lambda: layer(x.requires_grad_())) == 0


def test_a_row_of_zeros() -> None:
    network = wide_flux().transformer
    layer = network.transformer_blocks[0].attn.to_q
    layer.weight.data[3] = 0
    for kind in ("int8", "fp8"):
        quantise("it", network, kind, CPU)
        assert torch.equal(layer(torch.ones(1, 64))[0, 3], layer.bias[3])


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_lora_is_added_to_quantised_weights(flux: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("peft")
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(2, 64, generator=generator), torch.randn(64, 2, generator=generator)
    name = "transformer.transformer_blocks.0.attn.to_v"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "l.safetensors")
    options: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    whole = wide_flux()
    whole.transformer.transformer_blocks[0].attn.to_v.weight.data += up @ down
    expected = reward_gradient(whole)
    pipe = load_pipeline(flux, **options, lora=tmp_path / "l.safetensors", quantize=kind)
    layer = pipe.transformer.transformer_blocks[0].attn.to_v
    assert layer.lora_A["lora_0"].weight.dtype == torch.float32
    assert type(layer.base_layer).__name__ == ("EightBitLinear" if kind == "int8" else "Linear4bit")
    assert cosine(reward_gradient(pipe), expected) > 0.98
    assert cosine(reward_gradient(wide_flux()), expected) < 0.97
    save_file(
        {
            f"{name}.lora_A.weight": down,
            f"{name}.lora_B.weight": up,
            f"{name}.lora_magnitude_vector": torch.ones(64),
        },
        tmp_path / "dora.safetensors",
    )
    with pytest.raises(ModelError, match=r"the transformer of .* has a LoRA with magnitudes \(DoRA\), so"):
        load_pipeline(flux, **options, lora=tmp_path / "dora.safetensors", quantize=kind)


def test_what_cannot_be_quantised(flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(error: type[Exception], **options: Any) -> str:
        with pytest.raises(error) as raised:
            load_pipeline(flux, device="cpu", **options)
        return str(raised.value)

    assert refusal(ValueError, quantize="int4") == (
        "load_pipeline: unknown quantize 'int4' (did you mean 'int8'?); valid: 'int8', 'fp8', 'nf4'"
    )
    assert refusal(ModelError, quantize="int8", denoiser="q4.gguf") == (
        "'q4.gguf' is already quantised, so quantize must be None"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal(ModelError, quantize="nf4") == (
        "quantize='nf4' needs bitsandbytes: pip install \"noisetilt-kernels[quantize]\""
    )


def test_models_that_are_already_quantised(tmp_path: Path) -> None:
    pipe = wide_flux()
    pipe.save_pretrained(tmp_path)
    file = tmp_path / "transformer" / "config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "quantization_config": {"quant_method": "bitsandbytes"}})
    )
    for check in (lambda **options: load_pipeline(tmp_path, device="cpu", **options), None):
        if check is None:
            result = sample(tmp_path, tmp_path / "run", "--quantize", "int8", "--dry-run")
            message = result.output
        else:
            with pytest.raises(ModelError) as raised:
                check(quantize="int8")
            message = str(raised.value)
        assert "is already quantised (bitsandbytes), so quantize must be None" in message


# ---- memory ----


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_planned_memory_is_that_of_the_quantised_model(flux: Path, kind: str) -> None:
    pipe = load_pipeline(flux, dtype=torch.float32, device="cpu", quantize=kind)
    assert_planned(flux, FluxFlow(pipe), quantize=kind)
    whole = plan_memory(flux, dtype=torch.float32)
    assert plan_memory(flux, dtype=torch.float32, quantize=kind).denoiser < 0.45 * whole.denoiser


def test_planned_memory_of_nf4(flux: Path) -> None:
    pytest.importorskip("bitsandbytes")
    pipe = load_pipeline(flux, dtype=torch.bfloat16, device="cpu", quantize="nf4")
    states = [one.weight.quant_state for one in pipe.transformer.modules() if hasattr(one, "quant_state")]
    scales = sum(state.absmax.nbytes + state.code.nbytes for state in states)
    weights = sum(parameter.nbytes for parameter in pipe.transformer.parameters())
    assert plan_memory(flux, quantize="nf4").denoiser == weights + scales


# ---- pipelines that the user quantised ----


def assert_works(pipe: Any, expected: Tensor, dtype: torch.dtype = torch.bfloat16) -> None:
    """Assert that gradients are right, and that the denoiser gets its input in `dtype`."""
    assert compute_dtype(pipe.transformer) == dtype
    seen: list[torch.dtype] = []
    hook = pipe.transformer.x_embedder.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    for checkpointing in (False, True):
        assert cosine(reward_gradient(pipe, checkpointing), expected) > 0.98
    hook.remove()
    assert set(seen) == {dtype}


def in_bfloat16(folder: Path) -> Any:
    return load_pipeline(folder, dtype=torch.bfloat16, device="cpu")


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao(flux: Path, config: str) -> None:
    pytest.importorskip("torchao")
    from torchao import quantization

    pipe = in_bfloat16(flux)
    quantization.quantize_(pipe.transformer, getattr(quantization, config)())
    assert_works(pipe, reward_gradient(wide_flux()))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_bitsandbytes(flux: Path, kind: str) -> None:
    """Layers outside of the blocks are quantised too. Diffusers' own function does this, but refuses CPUs."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    pipe = in_bfloat16(flux)
    network = pipe.transformer
    for name, layer in list(network.named_modules()):
        if type(layer) is not torch.nn.Linear or layer.in_features % 64:
            continue
        sides = layer.in_features, layer.out_features
        if kind == "nf4":
            new = bitsandbytes.nn.Linear4bit(*sides, quant_type="nf4", compute_dtype=torch.bfloat16)
            new.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        else:
            new = bitsandbytes.nn.Linear8bitLt(*sides, has_fp16_weights=False)
            new.weight = bitsandbytes.nn.Int8Params(
                layer.weight.data, requires_grad=False, has_fp16_weights=False
            )
        new.bias = layer.bias
        network.set_submodule(name, new.to("cpu"))
    assert_works(pipe, reward_gradient(wide_flux()))


def write_gguf(file: Path, network: torch.nn.Module) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(file, "flux")
    for name, weight in network.state_dict().items():
        values, kind = weight.float().numpy(), gguf.GGMLQuantizationType.Q8_0
        if weight.ndim == 2 and weight.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf(flux: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "q8.gguf", wide_flux(seed=1).transformer)
    pipe = in_bfloat16(flux)
    pipe.transformer = type(pipe.transformer).from_single_file(
        tmp_path / "q8.gguf",
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16),
        config=str(flux),
        subfolder="transformer",
        torch_dtype=torch.bfloat16,
    )
    whole = wide_flux()
    whole.transformer = wide_flux(seed=1).transformer
    expected = reward_gradient(whole)
    assert_works(pipe, expected)
    for source in (tmp_path / "q8.gguf", f"{tmp_path}:q8.gguf"):
        assert_works(load_pipeline(flux, device="cpu", denoiser=source), expected)


def test_the_plan_has_the_bytes_of_a_gguf_file(flux: Path, tmp_path: Path) -> None:
    file = tmp_path / "q8.gguf"
    write_gguf(file, wide_flux(seed=1).transformer)
    whole = plan_memory(flux, **SIDES)
    for source in (str(file), f"{tmp_path}:{file.name}"):
        plan = plan_memory(flux, denoiser=source, **SIDES)
        assert plan.denoiser == file.stat().st_size < whole.denoiser
        assert (
            plan.total - plan.activations == whole.total - whole.activations - whole.denoiser + plan.denoiser
        )
    for other in ("nobody/nothing:q8.gguf", str(tmp_path / "absent.gguf"), str(flux / "transformer")):
        assert plan_memory(flux, denoiser=other, **SIDES) == whole


IN_4_BITS = [
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    {"quant_method": "quanto", "weights_dtype": "int4"},
    {"quant_method": "gptq", "bits": 4},
    {"quant_method": "torchao", "quant_type": "int4wo"},
    {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {}}}},
]
IN_8_BITS = [
    {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True},
    {"quant_method": "quanto", "weights_dtype": "float8"},
    {"quant_method": "torchao", "quant_type": "int8wo"},
    {"quant_method": "quanto", "weights_dtype": "int8", "modules_to_not_convert": ["point4", "int4"]},
    {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}},
]


@pytest.mark.parametrize(
    ("config", "kind"), [*((one, "nf4") for one in IN_4_BITS), *((one, "int8") for one in IN_8_BITS)]
)
def test_the_plan_has_the_bytes_of_a_quantised_folder(
    flux: Path, tmp_path: Path, config: dict[str, Any], kind: str
) -> None:
    """A folder whose configuration says that its denoiser is quantised has the plan of `quantize`."""
    folder = tmp_path / "quantised"
    shutil.copytree(flux, folder)
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": config}))
    assert kind_on_disk(json.loads(file.read_text())) == kind
    plan = plan_memory(folder, **SIDES)
    assert plan == plan_memory(flux, quantize=kind, **SIDES)
    assert plan.denoiser < plan_memory(flux, **SIDES).denoiser


def test_the_plan_has_the_bytes_of_a_quantised_text_encoder(flux: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quantised"
    shutil.copytree(flux, folder)
    file = folder / "text_encoder_2" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": IN_8_BITS[0]}))
    whole, plan = plan_memory(flux, **SIDES), plan_memory(folder, **SIDES)
    assert plan.text_encoders < whole.text_encoders
    assert plan.total == whole.total - (whole.text_encoders - plan.text_encoders)


def test_faults_of_gguf_files(flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = wide_flux().transformer
    file = tmp_path / "q8.gguf"

    def refusal() -> str:
        with pytest.raises(ModelError) as raised:
            load_pipeline(flux, device="cpu", denoiser=file)
        return str(raised.value)

    del network.proj_out.bias
    write_gguf(file, network)
    assert refusal().startswith(f"the weights of {str(file)!r} lack proj_out.bias; weights of a Flux")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal() == f'{str(file)!r} needs gguf: pip install "noisetilt-kernels[quantize]"'


def test_dtypes_of_networks_without_floating_point_weights_are_computed_ones() -> None:
    class GGUFLinear(torch.nn.Linear):
        compute_dtype = torch.bfloat16

    class Network(torch.nn.Sequential):
        dtype = torch.uint8

    assert compute_dtype(Network(GGUFLinear(2, 2))) == torch.bfloat16
    float8 = torch.nn.Linear(2, 2).to(torch.float8_e4m3fn)
    assert compute_dtype(Network(float8, torch.nn.Linear(2, 2).half())) == torch.float16


# ---- weights that change between forward and backward ----


def test_layerwise_casting_of_linear_layers(flux: Path) -> None:
    pipe = in_bfloat16(flux)
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    assert pipe.transformer.x_embedder.weight.dtype == torch.float8_e4m3fn
    assert_works(pipe, reward_gradient(wide_flux()))


def test_layerwise_casting_with_lora(flux: Path) -> None:
    peft = pytest.importorskip("peft")

    def add(pipe: Any) -> Any:
        config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
        torch.manual_seed(0)
        pipe.transformer.add_adapter(config)
        return pipe

    expected = reward_gradient(add(wide_flux()))
    pipe = add(in_bfloat16(flux))
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    assert_works(pipe, expected)
    pipe = in_bfloat16(flux)
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    flow = FluxFlow(pipe, **SIDES)
    add(pipe)
    with pytest.raises(ValueError, match="load LoRA weights before enable_layerwise_casting"):
        flow.velocity(noise(flow.shape), 0.5, [PROMPT])


def test_layerwise_casting_of_convolutions_is_refused() -> None:
    pipe = tiny_sd_turbo()
    model: Any = family_of(pipe).one_step
    turbo = model(pipe, **WIDE)
    turbo.encode(PROMPT)
    pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    message = (
        r"must have its unet without layerwise casting of a Conv2d, .* use load_pipeline\(quantize=\"fp8\"\)"
    )
    with pytest.raises(ValueError, match=f"StableDiffusionPipeline {message}"):
        turbo.denoised(noise(turbo.shape), [PROMPT])
    with pytest.raises(ValueError, match=f"SDTurbo: pipe {message}"):
        model(pipe, **WIDE)
    pipe = tiny_sd_turbo()
    pipe.unet.enable_layerwise_casting(
        torch.float8_e4m3fn, torch.float32, skip_modules_classes=(torch.nn.Conv2d,)
    )
    assert cosine(reward_gradient(pipe, **WIDE), reward_gradient(tiny_sd_turbo(), **WIDE)) > 0.98


def test_group_offload_is_refused_when_it_is_used() -> None:
    pipe = wide_flux()
    flow = FluxFlow(pipe, **SIDES)
    flow.encode(PROMPT)
    pipe.vae.enable_group_offload(CPU, offload_type="leaf_level")
    message = "FluxPipeline must have its vae without group offloading"
    with pytest.raises(ValueError, match=message):
        flow.decode(noise(flow.shape))
    with pytest.raises(ValueError, match=message):
        flow.velocity(noise(flow.shape), 0.5, [PROMPT])


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        pipe = wide_flux()
    weight = pipe.transformer.x_embedder.weight
    assert weight.is_inference()
    torch.testing.assert_close(reward_gradient(pipe), reward_gradient(wide_flux()))
    assert not pipe.transformer.x_embedder.weight.is_inference()


# ---- the command ----


def sample(model: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(
        main,
        [
            *("sample", "--model", str(model), "--prompt", PROMPT, "--reward", "brightness"),
            *("--method", "base", "--steps", "2", "--dtype", "float32", "--device", "cpu"),
            *("--height", str(SIZE), "--width", str(SIZE), "--out", str(out), *options),
        ],
    )


def test_the_command(flux: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    planned = sample(flux, tmp_path / "run", "--quantize", "fp8", "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert f"model   {flux}, float32 with the denoiser in fp8 on cpu" in planned.output
    result = sample(flux, tmp_path / "run", "--quantize", "fp8")
    assert result.exit_code == 0, result.output
    pipe = load_pipeline(flux, dtype=torch.float32, device="cpu", quantize="fp8")
    expected = base(FluxFlow(pipe, **SIDES), redness, [PROMPT], steps=2).latents[0]
    latent = load_file(tmp_path / "run" / "latents" / "0000.safetensors")["latent"]
    torch.testing.assert_close(latent, expected, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["quantize"] == "fp8"
    again = CliRunner().invoke(main, ["sample", "--resume", "--out", str(tmp_path / "run")])
    assert again.exit_code == 0, again.output
    other = sample(flux, tmp_path / "run", "--quantize", "int8", "--resume")
    assert other.exit_code == 1 and "holds a run with quantize" in other.output
