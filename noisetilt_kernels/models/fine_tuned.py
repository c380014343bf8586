"""Fine-tuned weights in the place of a pipeline's own: LoRA, and whole denoisers as MixGRPO and others publish them."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file

from ..hub import is_hub_id
from .errors import ModelError, one_sentence

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def check_there(source: str) -> None:
    """Raises ModelError if weights of this name are neither here nor could be on the hub; nothing is loaded."""
    name, file = _place_and_file(source)
    path = Path(name).expanduser()
    if not path.exists() and not is_hub_id(name):
        raise ModelError(f"there are no weights {name!r}; give a file, a folder or an id of the hub")
    if path.is_dir() and file is not None and not (path / file).is_file():
        raise ModelError(f"there is no file {file!r} in the folder {name!r}; correct its name")


def check_peft() -> None:
    """Raises ModelError unless peft is installed, which adds LoRA weights."""
    if importlib.util.find_spec("peft") is None:
        raise ModelError("lora needs peft: pip install peft")


def _place_and_file(source: str) -> tuple[str, str | None]:
    if ":" in source and not Path(source).expanduser().exists():
        place, file = source.rsplit(":", 1)
        return place, file
    return source, None


def add_lora(pipe: Any, lora: str, family: str) -> None:
    """Add LoRA weights to a pipeline.

    lora: a file, folder or hub id, `place` or `place:file name`.

    Raises:
        ModelError: there are none there, they are of another model, or peft is not installed.
    """
    check_peft()
    check_there(lora)
    name, file = _place_and_file(lora)
    path = Path(name).expanduser()
    with one_sentence(lora):
        pipe.load_lora_weights(str(path) if path.exists() else name, weight_name=file)
    if not pipe.get_list_adapters():
        # diffusers only logs it
        raise ModelError(f"{lora!r} holds no LoRA weights of {family}; it may be of another model")


def load_denoiser(
    source: str, class_name: str, config: dict[str, Any], dtype: torch.dtype
) -> torch.nn.Module:
    """A pipeline's transformer or U-Net with other weights.

    Args:
        source: a folder or hub id of what diffusers saves of such a network, with its config.json; a safetensors file,
            a folder or hub id with `diffusion_pytorch_model.safetensors` alone, or `place:file name`; names in such a
            file are those of diffusers.
        class_name: of the network in diffusers.
        config: of the pipeline's own, for weights that come without one.
        dtype: of the weights, but for those that diffusers keeps in float32.

    Raises:
        ModelError: there are no such weights, or they are of another network.
    """
    check_there(source)
    name, file = _place_and_file(source)
    network: Any = getattr(diffusers, class_name)
    path = Path(name).expanduser()
    here = path.exists()
    with one_sentence(source):
        if file is None and ((path / "config.json").is_file() if here else _is_whole(name)):
            return _whole(network, source, str(path) if here else name, dtype, here)
        within = file or _WEIGHTS
        local = path / within if path.is_dir() else path
        return _bare(
            network, source, load_file(local if here else hf_hub_download(name, within)), config, dtype
        )


def _whole(network: Any, source: str, place: str, dtype: torch.dtype, here: bool) -> torch.nn.Module:
    """A network with a configuration of its own."""
    name = network.load_config(place, local_files_only=here).get("_class_name", network.__name__)
    if name != network.__name__:
        raise ModelError(f"{source!r} is a {name}; weights of a {network.__name__} are needed")
    loaded: torch.nn.Module
    loaded, info = network.from_pretrained(
        place, dtype=dtype, use_safetensors=True, local_files_only=here, output_loading_info=True
    )
    _check_names(source, name, info["missing_keys"], info["unexpected_keys"])
    return loaded


def _bare(
    network: Any, source: str, tensors: dict[str, torch.Tensor], config: dict[str, Any], dtype: torch.dtype
) -> torch.nn.Module:
    """A network of tensors that came without a configuration."""
    with init_empty_weights():
        empty: torch.nn.Module = network.from_config(config)
    expected = empty.state_dict()
    _check_names(source, network.__name__, expected.keys() - tensors.keys(), tensors.keys() - expected.keys())
    in_float32 = set(network._keep_in_fp32_modules or ())
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(
                f"in {source!r} {name} has the shape {tuple(tensor.shape)}, and the model's own "
                f"{tuple(expected[name].shape)}; weights of the same architecture are needed"
            )
        tensors[name] = tensor.to(torch.float32 if in_float32.intersection(name.split(".")) else dtype)
    empty.load_state_dict(tensors, assign=True)
    return empty.eval()


def _check_names(source: str, class_name: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    for what, names in (("lack", missing), ("have a needless", unexpected)):
        for name in sorted(names)[:1]:
            raise ModelError(
                f"the weights in {source!r} {what} {name}; weights of a {class_name} are needed, named as in diffusers"
            )


def _is_whole(hub_id: str) -> bool:
    """Whether a model of the hub has a configuration beside its weights."""
    try:
        hf_hub_download(hub_id, "config.json")
    except EntryNotFoundError:
        return False
    return True
