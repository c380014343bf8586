"""Fine-tuned weights for a pipeline: LoRA, and complete denoisers as MixGRPO and others publish them."""

import importlib.util
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from .. import hub
from ..checks import finite_number
from ..model_sources import Location
from .errors import ModelError, as_model_error
from .files import read_json
from .networks import check_weights, load_network, remedy_for
from .quantize import check_package

_CONFIG = "config.json"
GGUF = ".gguf"
"""End of the names of files with quantised weights."""
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_ORIGINAL_PREFIX = "model.diffusion_model."
"""Prefix of names of weights in files that hold more than the denoiser, and in ComfyUI's files."""
_PREFIXES = ("module.", "_orig_mod.", _ORIGINAL_PREFIX)
"""Prefixes of names of weights; the first two are from DistributedDataParallel and torch.compile."""


def check_weights_exist(source: str) -> None:
    """Raise ModelError if `source` names no local weights and does not have the form of a hub id.

    Nothing is loaded, and the hub is not contacted.

    Args:
        source: a file, a folder, a hub id, or "FOLDER_OR_ID:FILE".
    """
    place, file = _split_source(source)
    path = Path(place).expanduser()
    if not path.exists() and not hub.is_hub_id(place):
        raise ModelError(f"there are no weights {place!r}; give a file, a folder or a hub id")
    if path.is_dir() and file is not None and not (path / file).is_file():
        raise ModelError(f"there is no file {file!r} in the folder {place!r}; correct its name")


def check_denoiser(source: str) -> None:
    """Raise ModelError unless the weights of a denoiser exist, see `load_denoiser`, as far as can be seen.

    Nothing is loaded, and the hub is not contacted.
    """
    check_weights_exist(source)
    place, file = _split_source(source)
    name = file or (place if Path(place).expanduser().is_file() else _WEIGHTS)
    if not name.endswith((".safetensors", GGUF)):
        raise ModelError(f"{source!r} is not a safetensors or GGUF file; convert its weights to safetensors")
    if name.endswith(GGUF):
        check_package("gguf", f"{source!r}")


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


def locate_weights(place: str) -> Location:
    """Return the folder, file or hub repository of weights; the hub is not contacted."""
    path = Path(place).expanduser()
    return Location(str(path), local=True) if path.exists() else Location(place, local=False)


def check_loras(loras: Sequence[str]) -> None:
    """Raise ModelError unless peft is installed and all LoRA weights exist, see `add_loras`.

    Nothing is loaded, and the hub is not contacted.
    """
    for lora in loras:
        check_peft()
        check_weights_exist(_split_weight(lora)[0])


def _split_weight(lora: str) -> tuple[str, float]:
    """Split "SOURCE=WEIGHT" into both; the weight is 1 if there is none, or if `lora` is a path."""
    source, equals, number = lora.rpartition("=")
    if not equals or Path(lora).expanduser().exists():
        return lora, 1.0
    weight = finite_number(number)
    if weight is None:
        raise ModelError(f"the weight of a LoRA must be a finite number, as in {source}=0.8, got {number!r}")
    return source, weight


def add_loras(pipe: Any, loras: Sequence[str], family: str) -> None:
    """Add LoRA weights to a pipeline.

    Args:
        pipe: the pipeline, changed in place.
        loras: each a file, a folder, a hub id, or "FOLDER_OR_ID:FILE", and "=WEIGHT" after it for a weight
            other than 1.
        family: name of the pipeline's family, for the error message.

    Raises:
        ModelError: the weights do not exist or belong to another model, or peft is not installed.
    """
    check_loras(loras)
    weights: dict[str, float] = {}
    for number, lora in enumerate(loras):
        source, weight = _split_weight(lora)
        place, file = _split_source(source)
        location, name = locate_weights(place), f"lora_{number}"
        with as_model_error(source), warnings.catch_warnings():
            # peft warns of several LoRAs, which are meant here
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            pipe.load_lora_weights(
                location.name,
                weight_name=file,
                adapter_name=name,
                local_files_only=location.local_files_only,
            )
        if not any(name in names for names in pipe.get_list_adapters().values()):
            # diffusers only logs that no weight matched
            raise ModelError(f"{source!r} holds no LoRA weights of {family}; it may be of another model")
        weights[name] = weight
    if weights:
        pipe.set_adapters(list(weights), list(weights.values()))


def load_denoiser(
    source: str,
    class_name: str,
    config: dict[str, Any],
    dtype: torch.dtype,
    variant: str | None = None,
) -> torch.nn.Module:
    """Load a transformer or U-Net with fine-tuned weights.

    Args:
        source: one of
            - a folder or hub id with the network's config.json, as diffusers saves it;
            - a safetensors file, or a GGUF file, whose weights stay quantised;
            - a folder or hub id with `diffusion_pytorch_model.safetensors` alone;
            - "FOLDER_OR_ID:FILE", one file of a folder or hub repository.
            Files without a configuration have diffusers' parameter names or the original ones.
        class_name: diffusers class of the network.
        config: configuration of the pipeline's original network, used if `source` has none.
        dtype: dtype of the weights, except those that diffusers keeps in float32.
        variant: variant of the files such as "fp16", used for a folder with a configuration that has it.

    Raises:
        ModelError: the weights do not exist, or belong to another network.
    """
    check_denoiser(source)
    place, file = _split_source(source)
    network: Any = getattr(diffusers, class_name)
    location = locate_weights(place)
    with as_model_error(source):
        tuned_config = _find_config(location) if file is None else None
        if tuned_config is not None:
            name = tuned_config.get("_class_name", class_name)
            if name != class_name:
                raise ModelError(f"{source!r} is a {name}; weights of a {class_name} are needed")
            return load_network(network, location, source, tuned_config, dtype, variant=variant)
        file = file or _WEIGHTS
        path = Path(location.name)
        if not location.local:
            path = hub.download(location.name, file)
        elif path.is_dir():
            path = path / file
            if not path.is_file():
                raise _no_weights_in(source, path.parent)
        if path.suffix == GGUF:
            return _load_gguf(network, source, path, config, dtype)
        return _load_bare_weights(network, source, load_file(path), config, dtype)


def gguf_bytes(source: str) -> int | None:
    """Return the size of a GGUF file on this machine.

    Args:
        source: see `load_denoiser`.

    Returns:
        Bytes of the file, or None if the weights are no GGUF file or on the hub.
    """
    place, file = _split_source(source)
    path = Path(locate_weights(place).name, file or "")
    return path.stat().st_size if path.suffix == GGUF and path.is_file() else None


def _no_weights_in(source: str, folder: Path) -> ModelError:
    """Return the error for a folder without a network."""
    if (folder / "model_index.json").is_file():
        parts = [name for name in ("transformer", "unet") if (folder / name).is_dir()]
        return ModelError(
            f"{source!r} is a whole pipeline; use it as the model, or its folder "
            f"{' or '.join(map(repr, parts))} as the denoiser"
        )
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    return ModelError(
        f"{source!r} has neither a {_CONFIG} nor a {_WEIGHTS}; "
        + (f"for one of its files write '{source}:{files[0]}'" if files else "it has no safetensors files")
    )


def _find_config(location: Location) -> dict[str, Any] | None:
    """Return the configuration beside the weights, or None."""
    try:
        return read_json(location, _CONFIG)
    except (FileNotFoundError, EntryNotFoundError):
        return None


def _load_bare_weights(
    network: Any, source: str, tensors: dict[str, torch.Tensor], config: dict[str, Any], dtype: torch.dtype
) -> torch.nn.Module:
    """Make a network from tensors that were saved without a configuration."""
    empty, tensors = _checked_weights(network, source, tensors, config)
    in_float32 = set(network._keep_in_fp32_modules or ())
    for name, tensor in tensors.items():
        tensors[name] = tensor.to(torch.float32 if in_float32.intersection(name.split(".")) else dtype)
    empty.load_state_dict(tensors, assign=True)
    return empty.eval()


def _load_gguf(
    network: Any, source: str, path: Path, config: dict[str, Any], dtype: torch.dtype
) -> torch.nn.Module:
    """Make a network from a GGUF file, with diffusers' names or the original ones."""
    _, tensors = _checked_weights(network, source, load_gguf_checkpoint(str(path)), config)
    with TemporaryDirectory() as folder:
        Path(folder, _CONFIG).write_text(json.dumps(config), encoding="utf-8")
        loaded: torch.nn.Module = network.from_single_file(
            tensors,
            config=folder,
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
            torch_dtype=dtype,
            local_files_only=True,
        )
    return loaded


def _checked_weights(
    network: Any, source: str, tensors: dict[str, torch.Tensor], config: dict[str, Any]
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return a network without weights, and tensors with its names; raise ModelError if one does not fit."""
    with init_empty_weights():
        empty: torch.nn.Module = network.from_config(config)
    expected = empty.state_dict()
    tensors = _named_as_in_diffusers(network, tensors, config, expected)
    shapes = {name: getattr(tensor, "quant_shape", tensor.shape) for name, tensor in tensors.items()}
    check_weights(
        repr(source),
        expected.keys() - tensors.keys(),
        tensors.keys() - expected.keys(),
        [
            (name, shape, expected[name].shape)
            for name, shape in shapes.items()
            if name in expected and shape != expected[name].shape
        ],
        remedy_for(network.__name__),
    )
    return empty, tensors


def _named_as_in_diffusers(
    network: Any,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any],
    expected: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Return tensors with diffusers' names.

    Original names, such as those of Black Forest Labs and ComfyUI, are converted by diffusers. Prefixes are
    removed.
    """
    for prefix in _PREFIXES:
        consume_prefix_in_state_dict_if_present(tensors, prefix)
    if tensors.keys() == expected.keys():
        return tensors
    candidates = [tensors]
    for prefix in ("", _ORIGINAL_PREFIX):  # the functions for some networks need the prefix
        try:
            convert = SINGLE_FILE_LOADABLE_CLASSES[network.__name__]["checkpoint_mapping_fn"]
            candidates.append(
                convert(checkpoint={prefix + name: one for name, one in tensors.items()}, config=config)
            )
        except Exception:  # the functions raise errors of all kinds if a name is missing
            continue
    return max(candidates, key=lambda names: len(names.keys() & expected.keys()))
