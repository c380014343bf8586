"""Fine-tuned denoisers and LoRA on tiny models, in Python and on the command line."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from huggingface_hub import errors
from model_checks import redness
from safetensors.torch import load_file, save_file
from tiny_flux import LENGTH, SIZE, tiny_flux
from tiny_wan import SIZE as WAN_SIZE
from tiny_wan import tiny_wan
from torch import Tensor

from noisetilt_cli import main
from noisetilt_kernels import hub
from noisetilt_kernels.models import FluxFlow, ModelError, WanFlow, load_pipeline
from noisetilt_kernels.sampling import base

WEIGHTS = "diffusion_pytorch_model.safetensors"
PROJECTION = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a pipeline; its transformer has a configuration and broken weights."""
    folder = tmp_path_factory.mktemp("flux") / "tiny"
    tiny_flux().save_pretrained(folder)
    (folder / "transformer" / WEIGHTS).write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of another transformer."""
    folder = tmp_path_factory.mktemp("tuned")
    tiny_flux(seed=1).transformer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan") / "tiny"
    tiny_wan().save_pretrained(folder)
    return folder


def velocity(pipe: Any) -> Tensor:
    """Velocity of fixed noise."""
    flow = FluxFlow(pipe, height=SIZE, width=SIZE, max_sequence_length=LENGTH)
    x = torch.randn(1, *flow.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return flow.velocity(x, 0.7, ["a cat"])


def with_tuned() -> Any:
    """Pipeline with the other transformer."""
    pipe = tiny_flux()
    pipe.transformer = tiny_flux(seed=1).transformer
    return pipe


def load(folder: Path, denoiser: object, **options: Any) -> Any:
    return load_pipeline(folder, **{"device": "cpu", "dtype": torch.float32, **options}, denoiser=denoiser)


def raised_by(folder: Path, denoiser: object) -> str:
    """Return the message of the ModelError, and check that it is one line without a cause."""
    with pytest.raises(ModelError) as caught:
        load(folder, denoiser)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def only(tensors: Mapping[str, Tensor], folder: Path, config: Path | None = None) -> Path:
    """Make a folder of weights, with or without a configuration."""
    folder.mkdir()
    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    if config is not None:
        shutil.copy(config, folder)
    return folder


# ---- whole denoisers ----


@pytest.mark.parametrize("form", ["folder", "shards", "file", "folder of a file", "folder:name"])
def test_fine_tuned_weights_replace_the_originals_unread(
    flux: Path, tuned: Path, tmp_path: Path, form: str
) -> None:
    source: object = tuned
    if form == "shards":
        source = tmp_path / "shards"
        tiny_flux(seed=1).transformer.save_pretrained(source, max_shard_size="20KB")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    elif form == "file":
        source = shutil.copy(tuned / WEIGHTS, tmp_path / "tuned.safetensors")
    elif form == "folder of a file":
        source = only(load_file(tuned / WEIGHTS), tmp_path / "bare")
    elif form == "folder:name":
        shutil.copy(tuned / WEIGHTS, tmp_path / "step-100.safetensors")
        source = f"{tmp_path}:step-100.safetensors"
    pipe = load(flux, source)
    assert not pipe.transformer.training and pipe.transformer.dtype == torch.float32
    torch.testing.assert_close(velocity(pipe), velocity(with_tuned()), rtol=0, atol=1e-5)
    assert not torch.allclose(velocity(pipe), velocity(tiny_flux()), atol=1e-2)


def test_a_pipeline_without_a_denoiser(flux: Path, tuned: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(flux, tmp_path / "tiny"))
    (folder / "transformer" / WEIGHTS).unlink()
    load(folder, tuned)
    shutil.rmtree(folder / "transformer")
    assert "there is no transformer/config.json" in raised_by(folder, tuned)


@pytest.mark.parametrize("bare", [False, True])
def test_dtypes_are_those_of_diffusers(wan: Path, tmp_path: Path, bare: bool) -> None:
    """Some weights of Wan stay in float32."""
    source = wan / "transformer"
    if bare:
        source = only(load_file(source / WEIGHTS), tmp_path / "bare")

    def dtypes(denoiser: Path | None) -> dict[str, torch.dtype]:
        pipe = load(wan, denoiser, dtype=torch.bfloat16)
        return {name: weight.dtype for name, weight in pipe.transformer.named_parameters()}

    assert dtypes(source) == dtypes(None)
    assert set(dtypes(source).values()) == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("whole", [False, True])
def test_weights_with_wrong_names_or_shapes(flux: Path, tuned: Path, tmp_path: Path, whole: bool) -> None:
    own = load_file(tuned / WEIGHTS)
    name = f"{PROJECTION}.weight"
    config = tuned / "config.json" if whole else None
    less = {key: tensor for key, tensor in own.items() if key != name}
    message = raised_by(flux, only(less, tmp_path / "less", config))
    assert message.endswith(f"lack {name}; weights of a FluxTransformer2DModel of the same size are needed")
    message = raised_by(flux, only({**own, "needless": torch.zeros(3)}, tmp_path / "more", config))
    assert f"the weights of {str(tmp_path / 'more')!r} have an unexpected needless; " in message
    message = raised_by(flux, only({**own, name: torch.zeros(3)}, tmp_path / "shape", config))
    assert message == (
        f"{name} of '{tmp_path / 'shape'}' has the shape (3,), but the model needs (32, 32); "
        "weights of a FluxTransformer2DModel of the same size are needed"
    )


def test_denoisers_of_other_models(flux: Path, wan: Path, tmp_path: Path) -> None:
    assert raised_by(flux, wan / "transformer").endswith(
        "is a WanTransformer3DModel; weights of a FluxTransformer2DModel are needed"
    )
    assert " lack " in raised_by(flux, only(load_file(wan / "transformer" / WEIGHTS), tmp_path / "bare"))


def test_missing_and_broken_weights(flux: Path, tuned: Path, tmp_path: Path) -> None:
    assert raised_by(flux, "./nowhere") == (
        "there are no weights './nowhere'; give a file, a folder or a hub id"
    )
    assert raised_by(flux, tmp_path) == (
        f"{str(tmp_path)!r} has neither a config.json nor a {WEIGHTS}; it has no safetensors files"
    )
    shutil.copy(tuned / WEIGHTS, tmp_path / "step-100.safetensors")
    assert raised_by(flux, tmp_path).endswith(
        f"; for one of its files write '{tmp_path}:step-100.safetensors'"
    )
    assert raised_by(flux, flux) == (
        f"{str(flux)!r} is a whole pipeline; use it as the model, or its folder 'transformer' as the denoiser"
    )
    assert "there is no file 'nothing.safetensors'" in raised_by(flux, f"{tmp_path}:nothing.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tuned / WEIGHTS).read_bytes()[:500])
    assert "cannot be loaded: Error while deserializing header" in raised_by(
        flux, tmp_path / "cut.safetensors"
    )
    for name in ("pickle.bin", "model.ckpt", "model.pt"):
        (tmp_path / name).write_bytes(b"GGUF")
        for source in (tmp_path / name, f"{tmp_path}:{name}"):
            assert raised_by(flux, source).endswith(
                "is not a safetensors or GGUF file; convert its weights to safetensors"
            )
    shutil.copy(tuned / "config.json", tmp_path)
    assert "no file named diffusion_pytorch_model.safetensors" in raised_by(flux, tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "not a valid JSON file" in raised_by(flux, tmp_path)


def test_denoisers_of_the_hub(flux: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository without a configuration is asked for one weights file."""
    asked: list[tuple[str, str]] = []

    def download(hub_id: str, name: str) -> Path:
        asked.append((hub_id, name))
        if name == "config.json":
            raise errors.EntryNotFoundError
        return tuned / WEIGHTS

    monkeypatch.setattr(hub, "download", download)
    for source in ("some/flux", "some/flux:tuned.safetensors"):
        torch.testing.assert_close(velocity(load(flux, source)), velocity(with_tuned()), rtol=0, atol=1e-5)
    assert asked == [("some/flux", "config.json"), ("some/flux", WEIGHTS), ("some/flux", "tuned.safetensors")]
    monkeypatch.setattr(hub, "download", lambda *_: (_ for _ in ()).throw(errors.OfflineModeIsEnabled))
    assert "the hub cannot be reached" in raised_by(flux, "some/flux")


# ---- LoRA ----


def lora(layer: str, width: int, file: Path) -> Tensor:
    """Save LoRA weights of a square projection, and return what they add to its weight."""
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, width, generator=generator), torch.randn(width, 2, generator=generator)
    name = f"transformer.{layer}" if layer.startswith("transformer") else f"diffusion_model.{layer}"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, file)
    return up @ down


def test_lora_on_top_of_a_denoiser(flux: Path, tuned: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    added = lora(PROJECTION, 32, tmp_path / "style.safetensors")
    expected = with_tuned()
    expected.transformer.get_submodule(PROJECTION).weight.data += added
    pipe = load(flux, tuned, lora=tmp_path / "style.safetensors")
    torch.testing.assert_close(velocity(pipe), velocity(expected), rtol=0, atol=1e-5)


# ---- by the command ----


def sample(model: Path, out: Path, *options: object) -> Result:
    """Run two steps by the command; the latent is written to `out`."""
    arguments = [
        "sample",
        "--model",
        model,
        "--prompt",
        "a cat",
        "--reward",
        "brightness",
        "--method",
        "base",
    ]
    return CliRunner().invoke(main, list(map(str, [*arguments, "--steps", 2, "--out", out, *options])))


def latent(out: Path) -> Tensor:
    return load_file(out / "latents" / "0000.safetensors")["latent"]


def test_a_fine_tuned_model_by_the_command(flux: Path, tuned: Path, tmp_path: Path) -> None:
    """The latent is the same whether the transformer is named separately or saved in the pipeline."""
    tiny_flux(seed=0).save_pretrained(tmp_path / "whole")
    tiny_flux(seed=1).transformer.save_pretrained(tmp_path / "whole" / "transformer")
    size = ("--height", SIZE, "--width", SIZE)
    one = sample(flux, tmp_path / "one", *size, "--denoiser", tuned)
    two = sample(tmp_path / "whole", tmp_path / "two", *size)
    assert one.exit_code == two.exit_code == 0, one.output + two.output
    assert torch.equal(latent(tmp_path / "one"), latent(tmp_path / "two"))
    settings = json.loads((tmp_path / "one" / "run.json").read_text())["settings"]
    assert settings["denoiser"] == str(tuned)
    refused = sample(
        flux, tmp_path / "one", *size, "--denoiser", tmp_path / "whole" / "transformer", "--resume"
    )
    assert refused.exit_code == 1 and "holds a run with denoiser" in refused.output


def test_several_loras_and_guidance_by_the_command(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny_flux().save_pretrained(tmp_path / "model", variant="fp16")
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    added = [
        lora(f"transformer_blocks.0.attn.{name}", 32, file)
        for name, file in zip(("to_q", "to_k"), files, strict=True)
    ]
    result = sample(
        tmp_path / "model",
        tmp_path / "run",
        *("--height", SIZE, "--width", SIZE, "--variant", "fp16"),
        *("--lora", f"{files[0]}=0.8", "--lora", files[1]),
        *("--true-cfg-scale", 2, "--negative-prompt", "the house"),
    )
    assert result.exit_code == 0, result.output
    pipe = tiny_flux()
    attention = pipe.transformer.transformer_blocks[0].attn
    attention.to_q.weight.data += 0.8 * added[0]
    attention.to_k.weight.data += added[1]
    flow = FluxFlow(pipe, height=SIZE, width=SIZE, true_cfg_scale=2, negative_prompt="the house")
    expected = base(flow, redness, ["a cat"], steps=2).latents[0]
    torch.testing.assert_close(latent(tmp_path / "run"), expected, rtol=0, atol=1e-5)
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["lora"] == [f"{files[0]}=0.8", str(files[1])]
    assert (settings["variant"], settings["true_cfg_scale"]) == ("fp16", 2)


def test_faults_of_models_by_the_command(tmp_path: Path) -> None:
    """The sentence comes before any weights are read."""
    folder = tmp_path / "model"
    tiny_flux().save_pretrained(folder)
    size = ("--height", SIZE, "--width", SIZE)
    for file in folder.rglob("*.safetensors"):
        file.write_bytes(b"broken")
    for options, message in (
        (("--height", SIZE), "height and width must be given together, got height 32 and width None"),
        ((*size, "--negative-prompt", "a"), "negative_prompt has no effect without guidance"),
        ((*size, "--denoiser", folder / "model.gguf"), "there are no weights"),
        ((*size, "--lora", f"{folder}=strong"), "the weight of a LoRA must be a finite number"),
        ((*size, "--guidance-scale", -1), "--guidance-scale must be finite and at least 0"),
    ):
        result = sample(folder, tmp_path / "run", *options)
        assert result.exit_code == 1 and message in result.output, result.output
        assert not (tmp_path / "run").exists()
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "text_encoder_2": [None, None]}))
    result = sample(folder, tmp_path / "run", *size)
    assert result.exit_code == 1 and "was saved without its text_encoder_2" in result.output


def test_lora_of_wan_by_the_command(wan: Path, tmp_path: Path) -> None:
    """LoRA weights have the names that Wan's trainers use."""
    pytest.importorskip("peft")
    pytest.importorskip("av")
    added = lora("blocks.0.self_attn.q", 24, tmp_path / "style.safetensors")
    size = [f"--{name.replace('_', '-')}={value}" for name, value in WAN_SIZE.items()]
    result = sample(wan, tmp_path / "run", *size, "--lora", tmp_path / "style.safetensors")
    assert result.exit_code == 0, result.output
    pipe = tiny_wan()
    pipe.transformer.blocks[0].attn1.to_q.weight.data += added
    expected = base(WanFlow(pipe, **WAN_SIZE), redness, ["a cat"], steps=2).latents[0]
    torch.testing.assert_close(latent(tmp_path / "run"), expected, rtol=0, atol=1e-4)
    for layer, width, message in (
        (PROJECTION, 24, f"Target modules {{'{PROJECTION}'}} not found in the base model"),
        (
            "blocks.0.self_attn.q",
            32,
            "Error(s) in loading state_dict for WanTransformer3DModel: size mismatch for",
        ),
    ):
        lora(layer, width, tmp_path / "other.safetensors")
        result = sample(wan, tmp_path / "other", *size, "--lora", tmp_path / "other.safetensors")
        assert result.exit_code == 1 and f"cannot be loaded: {message}" in result.output, result.output
