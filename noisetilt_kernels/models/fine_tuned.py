"""Fine-tuned weights in the place of a pipeline's own: LoRA, and whole denoisers as MixGRPO and others publish them."""

import importlib.util
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file

from .errors import ModelError, one_sentence
from .hub import HUB_ID

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def check_there(source: str) -> None:
    """Raises ModelError if weights of this name are neither here nor could be on the hub; nothing is loaded."""
    name, _ = _place_and_file(source)
    if not Path(name).expanduser().exists() and not HUB_ID.fullmatch(name):
        raise ModelError(f"there are no weights {name!r}; give a file, a folder or an id of the hub")


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
    if importlib.util.find_spec("peft") is None:
        raise ModelError("lora needs peft: pip install peft")
    check_there(lora)
    name, file = _place_and_file(lora)
    path = Path(name).expanduser()
    with one_sentence(lora):
        pipe.load_lora_weights(str(path) if path.exists() else name, weight_name=file)
    if not pipe.get_list_adapters():
        # diffusers only logs it
        raise ModelError(f"{lora!r} holds no LoRA weights of {family}; it may be of another model")


def load_denoiser(source: str, class_name: str, config: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    """A pipeline's transformer or U-Net with other weights.

    Args:
        source: a folder as diffusers saves such a network, with its config.json; a safetensors file, or a folder or hub
            id with `diffusion_pytorch_model.safetensors` alone, whose names are those of diffusers.
        class_name: of the network in diffusers.
        config: of the pipeline's own, for weights that come without one.
        dtype: of the weights.

    Raises:
        ModelError: there are no such weights, or they are of another network.
    """
    check_there(source)
    network: Any = getattr(diffusers, class_name)
    path = Path(source).expanduser()
    with one_sentence(source):
        if (path / "config.json").is_file() or (not path.exists() and _is_whole(source)):
            loaded, info = network.from_pretrained(
                str(path) if path.exists() else source,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=path.exists(),
                output_loading_info=True,
            )
            missing, unexpected = info["missing_keys"], info["unexpected_keys"]
        else:
            file = path / _WEIGHTS if path.is_dir() else path
            tensors = load_file(file if path.exists() else hf_hub_download(source, _WEIGHTS))
            with init_empty_weights():
                loaded = network.from_config(config)
            missing, unexpected = loaded.load_state_dict(tensors, strict=False, assign=True)
            if not missing:
                loaded.to(dtype)
    if missing or unexpected:
        what, names = ("lack", missing) if missing else ("have a needless", unexpected)
        raise ModelError(
            f"the weights in {source!r} {what} {sorted(names)[0]}; weights of a {class_name} are needed, named as in "
            "diffusers"
        )
    return loaded  # type: ignore[no-any-return]


def _is_whole(hub_id: str) -> bool:
    """Whether a model of the hub has a configuration beside its weights."""
    try:
        hf_hub_download(hub_id, "config.json")
    except EntryNotFoundError:
        return False
    return True
