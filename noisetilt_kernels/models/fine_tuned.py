"""Fine-tuned weights for a pipeline: LoRA, and complete denoisers as MixGRPO and others publish them."""

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
from .errors import ModelError, as_model_error
from .files import Location, read_json

_CONFIG = "config.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def check_weights_exist(source: str) -> None:
    """Raise ModelError if `source` names no local weights and does not have the form of a hub id.

    Nothing is loaded, and the hub is not contacted.

    Args:
        source: a file, a folder, a hub id, or "FOLDER_OR_ID:FILE".
    """
    place, file = _split_source(source)
    path = Path(place).expanduser()
    if not path.exists() and not is_hub_id(place):
        raise ModelError(f"there are no weights {place!r}; give a file, a folder or a hub id")
    if path.is_dir() and file is not None and not (path / file).is_file():
        raise ModelError(f"there is no file {file!r} in the folder {place!r}; correct its name")


def check_peft() -> None:
    """Raise ModelError unless peft, which adds LoRA weights, is installed."""
    if importlib.util.find_spec("peft") is None:
        raise ModelError("lora needs peft: pip install peft")


def _split_source(source: str) -> tuple[str, str | None]:
    """Split "PLACE:FILE" into both; the file is None if `source` is a path or has no colon."""
    if ":" in source and not Path(source).expanduser().exists():
        place, file = source.rsplit(":", 1)
        return place, file
    return source, None


def _locate(place: str) -> Location:
    path = Path(place).expanduser()
    return Location(str(path), local=True) if path.exists() else Location(place, local=False)


def add_lora(pipe: Any, lora: str, family: str) -> None:
    """Add LoRA weights to a pipeline.

    Args:
        pipe: the pipeline, changed in place.
        lora: a file, a folder, a hub id, or "FOLDER_OR_ID:FILE".
        family: name of the pipeline's family, for the error message.

    Raises:
        ModelError: the weights do not exist or belong to another model, or peft is not installed.
    """
    check_peft()
    check_weights_exist(lora)
    place, file = _split_source(lora)
    with as_model_error(lora):
        pipe.load_lora_weights(_locate(place).name, weight_name=file)
    if not pipe.get_list_adapters():
        # diffusers only logs that no weight matched
        raise ModelError(f"{lora!r} holds no LoRA weights of {family}; it may be of another model")


def load_denoiser(
    source: str, class_name: str, config: dict[str, Any], dtype: torch.dtype
) -> torch.nn.Module:
    """Load a transformer or U-Net with fine-tuned weights.

    Args:
        source: one of
            - a folder or hub id with the network's config.json, as diffusers saves it;
            - a safetensors file;
            - a folder or hub id with `diffusion_pytorch_model.safetensors` alone;
            - "FOLDER_OR_ID:FILE", one file of a folder or hub repository.
            Files without a configuration must use diffusers' parameter names.
        class_name: diffusers class of the network.
        config: configuration of the pipeline's original network, used if `source` has none.
        dtype: dtype of the weights, except those that diffusers keeps in float32.

    Raises:
        ModelError: the weights do not exist, or belong to another network.
    """
    check_weights_exist(source)
    place, file = _split_source(source)
    network: Any = getattr(diffusers, class_name)
    location = _locate(place)
    with as_model_error(source):
        tuned_config = _find_config(location) if file is None else None
        if tuned_config is not None:
            return _load_with_config(network, source, location, tuned_config, dtype)
        file = file or _WEIGHTS
        path = Path(location.name)
        if not location.local:
            path = Path(hf_hub_download(location.name, file))
        elif path.is_dir():
            path = path / file
        return _load_bare_weights(network, source, load_file(path), config, dtype)


def _find_config(location: Location) -> dict[str, Any] | None:
    """Return the configuration beside the weights, or None."""
    try:
        return read_json(location, _CONFIG)
    except (FileNotFoundError, EntryNotFoundError):
        return None


def _load_with_config(
    network: Any, source: str, location: Location, config: dict[str, Any], dtype: torch.dtype
) -> torch.nn.Module:
    """Load a network that was saved with its configuration."""
    name = config.get("_class_name", network.__name__)
    if name != network.__name__:
        raise ModelError(f"{source!r} is a {name}; weights of a {network.__name__} are needed")
    loaded: torch.nn.Module
    loaded, info = network.from_pretrained(
        location.name,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=location.local,
        output_loading_info=True,
    )
    _check_names(source, name, info["missing_keys"], info["unexpected_keys"])
    return loaded


def _load_bare_weights(
    network: Any, source: str, tensors: dict[str, torch.Tensor], config: dict[str, Any], dtype: torch.dtype
) -> torch.nn.Module:
    """Make a network from tensors that were saved without a configuration."""
    with init_empty_weights():
        empty: torch.nn.Module = network.from_config(config)
    expected = empty.state_dict()
    _check_names(source, network.__name__, expected.keys() - tensors.keys(), tensors.keys() - expected.keys())
    in_float32 = set(network._keep_in_fp32_modules or ())
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(
                f"{name} in {source!r} has the shape {tuple(tensor.shape)}, but the model needs "
                f"{tuple(expected[name].shape)}; weights of the same architecture are needed"
            )
        tensors[name] = tensor.to(torch.float32 if in_float32.intersection(name.split(".")) else dtype)
    empty.load_state_dict(tensors, assign=True)
    return empty.eval()


def _check_names(source: str, class_name: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise ModelError if a parameter is missing or unexpected; the message names the first one."""
    for problem, names in (("lack", missing), ("have an unexpected", unexpected)):
        for name in sorted(names)[:1]:
            raise ModelError(
                f"the weights in {source!r} {problem} {name}; "
                f"weights of a {class_name} are needed, named as in diffusers"
            )
