"""Loading of pipelines from folders, LoRA, and the messages of errors."""

import json
import shutil
import socket
import time
import warnings
from pathlib import Path
from typing import NoReturn

import diffusers
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file
from tiny_flux import LENGTH, SIZE, tiny_flux

from noisetilt_kernels import hub
from noisetilt_kernels.models import ModelError, fine_tuned, load_pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a pipeline, shared and not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "tiny-flux"
    tiny_flux().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """Folder of a pipeline that a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if anything opens a connection."""

    def refuse(*arguments: object) -> NoReturn:
        pytest.fail(f"connection to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def image(pipe: diffusers.FluxPipeline) -> torch.Tensor:
    return pipe(
        "a red cat",
        height=SIZE,
        width=SIZE,
        num_inference_steps=2,
        max_sequence_length=LENGTH,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images


def raised_by(*arguments: object, **options: object) -> str:
    """Return the message of the ModelError, and check that it is one line without a cause."""
    with pytest.raises(ModelError) as caught:
        load_pipeline(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


# ---- folders ----


def test_saving_and_loading(saved: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = load_pipeline(saved, dtype=torch.float32, device="cpu")
    assert isinstance(pipe, diffusers.FluxPipeline)
    assert pipe.transformer.dtype == pipe.vae.dtype == pipe.text_encoder_2.dtype == torch.float32
    torch.testing.assert_close(image(pipe), image(tiny_flux()), rtol=0, atol=1e-5)


def test_bfloat16_is_the_default(saved: Path) -> None:
    pipe = load_pipeline(str(saved), device="cpu")
    assert pipe.transformer.dtype == pipe.vae.dtype == pipe.text_encoder_2.dtype == torch.bfloat16


def test_home_is_expanded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(saved.parent))
    load_pipeline("~/tiny-flux", device="cpu")


def test_a_gpu_is_the_default_where_there_is_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(diffusers.FluxPipeline, "to", lambda pipe, device: places.append(device))
    monkeypatch.setattr(
        diffusers.FluxPipeline,
        "enable_model_cpu_offload",
        lambda pipe, device: places.append(("offload", device)),
    )
    load_pipeline(saved)
    load_pipeline(saved, device="cuda:1", offload=True)
    assert places == [torch.device("cuda"), ("offload", torch.device("cuda:1"))]


def test_offload_needs_a_gpu(saved: Path) -> None:
    with pytest.raises(ValueError, match="offload must be False if device is the CPU"):
        load_pipeline(saved, device="cpu", offload=True)


def test_too_little_memory_is_one_sentence(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr(diffusers.FluxPipeline, "to", fail)
    assert raised_by(saved, device="cuda").endswith(
        "does not fit into the memory of cuda; offload=True needs less"
    )


def test_no_such_folder() -> None:
    assert raised_by("./nowhere") == (
        "there is no folder './nowhere'; give a folder, a bundled model (digits, digits-turbo), or an id "
        "such as 'black-forest-labs/FLUX.1-dev'"
    )
    assert "there is no folder 'flux'" in raised_by("flux")


def test_files_and_other_folders(tmp_path: Path) -> None:
    assert "has no model_index.json" in raised_by(tmp_path)
    file = tmp_path / "flux.safetensors"
    file.touch()
    assert raised_by(file).endswith(
        "is a file; the folder of a pipeline is needed, with its model_index.json"
    )


def test_other_pipelines(copy: Path) -> None:
    index = copy / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "HunyuanVideoPipeline"}))
    assert raised_by(copy).startswith(
        f"{str(copy)!r} is a HunyuanVideoPipeline; supported pipelines are FluxPipeline, "
    )
    index.write_text("{")
    assert "not a valid JSON file" in raised_by(copy)


@pytest.mark.parametrize(
    "missing",
    [
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder_2/model.safetensors",
        "vae",
        "scheduler/scheduler_config.json",
    ],
)
def test_missing_parts(copy: Path, missing: str) -> None:
    part = copy / missing
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink()
    message = raised_by(copy)
    assert str(copy) in message and message.endswith("; if it is incomplete, download or save it again")


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_missing_vocabularies(copy: Path, name: str) -> None:
    (copy / name / "tokenizer.json").unlink()
    assert raised_by(copy) == f"'{copy}' has no vocabulary in {name}; download or save it again"


def test_broken_weights(copy: Path) -> None:
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be loaded" in raised_by(copy)


# ---- the hub ----


def test_without_a_network_a_hub_id_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download would repeat its requests for 23 seconds."""

    def fail(*arguments: object, **options: object) -> NoReturn:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    hub._offline_in.cache_clear()
    start = time.perf_counter()
    assert raised_by("some/flux").startswith("'some/flux' is not a folder, and the hub cannot be reached")
    assert time.perf_counter() - start < 5
    hub._offline_in.cache_clear()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            errors.GatedRepoError,
            "'some/flux' is gated: accept its licence",
        ),
        (errors.RepositoryNotFoundError, "'some/flux' is neither a folder nor a repository on the hub"),
        (errors.LocalEntryNotFoundError, "'some/flux' is not a folder, and the hub cannot be reached"),
        (errors.OfflineModeIsEnabled, "'some/flux' is not a folder, and the hub cannot be reached"),
        (PermissionError, "'some/flux' cannot be loaded: PermissionError"),
    ],
)
def test_errors_of_the_hub(kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> NoReturn:
        raise kind.__new__(kind)  # without __init__, which needs an HTTP response

    monkeypatch.setattr("noisetilt_kernels.hub.download", fail)
    assert raised_by("some/flux").startswith(message)


# ---- LoRA ----


def lora_weights(prefix: str = "transformer.") -> dict[str, torch.Tensor]:
    """LoRA weights of one projection of a tiny FLUX."""
    generator = torch.Generator().manual_seed(0)
    layer = f"{prefix}transformer_blocks.0.attn.to_q"
    return {
        f"{layer}.lora_A.weight": torch.randn(2, 32, generator=generator),
        f"{layer}.lora_B.weight": torch.randn(32, 2, generator=generator),
    }


@pytest.mark.parametrize("form", ["file", "folder", "folder:name"])
def test_lora(saved: Path, tmp_path: Path, form: str) -> None:
    pytest.importorskip("peft")
    save_file(lora_weights(), tmp_path / "style.safetensors")
    if form == "folder:name":  # diffusers would load this other file by default
        save_file(lora_weights("unet."), tmp_path / "pytorch_lora_weights.safetensors")
    lora = {
        "file": tmp_path / "style.safetensors",
        "folder": tmp_path,
        "folder:name": f"{tmp_path}:style.safetensors",
    }
    pipe = load_pipeline(saved, dtype=torch.float32, device="cpu", lora=lora[form])
    # the same change made in the weights
    expected = tiny_flux()
    down, up = lora_weights().values()
    expected.transformer.transformer_blocks[0].attn.to_q.weight.data += up @ down
    torch.testing.assert_close(image(pipe), image(expected), rtol=0, atol=1e-5)
    assert not torch.allclose(image(pipe), image(tiny_flux()), atol=1e-3)


def weights_of_layer(layer: str, seed: int) -> dict[str, torch.Tensor]:
    """LoRA weights of one projection of a tiny FLUX."""
    generator = torch.Generator().manual_seed(seed)
    layer = f"transformer.transformer_blocks.0.attn.{layer}"
    return {
        f"{layer}.lora_A.weight": torch.randn(2, 32, generator=generator),
        f"{layer}.lora_B.weight": torch.randn(32, 2, generator=generator),
    }


def test_weights_of_several_loras(saved: Path, tmp_path: Path) -> None:
    """The images are those of diffusers' set_adapters, and of the sum in the weights."""
    pytest.importorskip("peft")
    files = [tmp_path / "one.safetensors", tmp_path / "two=2.safetensors"]
    layers = [("to_q", 0.8, 0, files[0]), ("to_k", 0.8, 1, files[0]), ("to_q", -0.5, 2, files[1])]
    save_file({**weights_of_layer("to_q", 0), **weights_of_layer("to_k", 1)}, files[0])
    save_file(weights_of_layer("to_q", 2), files[1])
    pipe = load_pipeline(
        saved, dtype=torch.float32, device="cpu", lora=[f"{files[0]}=0.8", f"{files[1]}=-0.5"]
    )
    adapters = tiny_flux()
    for number, file in enumerate(files):
        adapters.load_lora_weights(str(file), adapter_name=f"a{number}")
    adapters.set_adapters(["a0", "a1"], [0.8, -0.5])
    torch.testing.assert_close(image(pipe), image(adapters), rtol=0, atol=1e-6)
    merged = tiny_flux()
    for layer, weight, seed, _ in layers:
        down, up = weights_of_layer(layer, seed).values()
        attention = merged.transformer.transformer_blocks[0].attn
        getattr(attention, layer).weight.data += weight * up @ down
    torch.testing.assert_close(image(pipe), image(merged), rtol=0, atol=1e-5)
    # a path with an equals sign is a path
    plain = load_pipeline(saved, dtype=torch.float32, device="cpu", lora=files[1])
    assert not torch.allclose(image(plain), image(pipe), atol=1e-3)


@pytest.mark.parametrize("weight", ["strong", "nan", ""])
def test_weights_of_loras_are_numbers(saved: Path, tmp_path: Path, weight: str) -> None:
    pytest.importorskip("peft")
    assert raised_by(saved, device="cpu", lora=f"{tmp_path}={weight}") == (
        f"the weight of a LoRA must be a finite number, as in {tmp_path}=0.8, got {weight!r}"
    )


def test_a_lora_without_one_of_its_factors(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    down = {name: tensor for name, tensor in lora_weights().items() if "lora_A" in name}
    save_file(down, tmp_path / "half.safetensors")
    assert "there is no transformer_blocks.0.attn.to_q.lora_B.weight" in raised_by(
        saved, device="cpu", lora=tmp_path / "half.safetensors"
    )


def test_files_that_are_no_lora(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    save_file(lora_weights("unet."), tmp_path / "other.safetensors")
    assert "holds no LoRA weights of FLUX" in raised_by(
        saved, device="cpu", lora=tmp_path / "other.safetensors"
    )
    save_file({"weight": torch.zeros(1)}, tmp_path / "none.safetensors")
    assert "Invalid LoRA checkpoint" in raised_by(saved, device="cpu", lora=tmp_path / "none.safetensors")
    assert "there are no weights './nowhere'" in raised_by(saved, device="cpu", lora="./nowhere")
    assert "there is no file 'nothing" in raised_by(
        saved, device="cpu", lora=f"{tmp_path}:nothing.safetensors"
    )


def test_lora_needs_peft(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine_tuned.importlib.util, "find_spec", lambda name: None)
    assert raised_by(saved, device="cpu", lora="some/lora") == "lora needs peft: pip install peft"
