"""Loading of pipelines from a folder or from the Hugging Face hub; every failure is a ModelError."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from ..model_sources import INDEX, Location, locate
from ..quiet import without_bars_if_small
from .errors import ModelError, as_model_error
from .families import FAMILIES, Family
from .files import read_json
from .fine_tuned import add_lora, load_denoiser

_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")


def load_pipeline(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device | None = None,
    offload: bool = False,
    denoiser: str | Path | None = None,
    lora: str | Path | None = None,
) -> DiffusionPipeline:
    """Load a pipeline of one of the families (`FAMILIES`), such as FLUX or Wan2.1.

    Args:
        source: one of
            - "digits" or "digits-turbo", which come with the package;
            - a folder, made by `pipe.save_pretrained` or a download; loaded without the network;
            - the id of a model on the hub, such as "black-forest-labs/FLUX.1-dev", downloaded once.
        dtype: dtype of all networks; bfloat16 is meant for large models.
        device: device to compute on; None is the GPU if there is one, else the CPU.
        offload: keep idle networks on the CPU, see `PipelineModel`.
        denoiser: fine-tuned weights that replace the pipeline's transformer or U-Net, see `load_denoiser`.
        lora: LoRA weights: a file, a folder, a hub id, or "FOLDER_OR_ID:FILE"; needs peft.

    Raises:
        ModelError: the model does not exist, is incomplete, belongs to no supported family, or does not fit
            into the device's memory.
        ValueError: offload with a CPU as device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if offload and device.type == "cpu":
        raise ValueError(
            "load_pipeline: offload must be False if device is the CPU, where all networks are already"
        )
    source = str(source)
    location = locate(source)
    family, index = _read_index(location, source)
    facts = family.facts
    if location.local:
        _check_tokenizers(Path(location.name), _components(index, family))
    components: dict[str, Any] = dict.fromkeys(facts.unused)  # None: not loaded
    if denoiser is not None:
        with as_model_error(source):
            config = read_json(location, f"{facts.denoiser}/config.json")
        class_name = index[facts.denoiser][1]
        components[facts.denoiser] = load_denoiser(str(denoiser), class_name, config, dtype)
    with as_model_error(source), without_bars_if_small(location.name):
        # safetensors only: pickled weights could run code
        pipe = facts.pipeline.from_pretrained(
            location.name, dtype=dtype, local_files_only=location.local, use_safetensors=True, **components
        )
    if lora is not None:
        add_lora(pipe, str(lora), facts.name)
    try:
        if offload:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
    except torch.OutOfMemoryError:
        raise ModelError(
            f"{source!r} does not fit into the memory of {device}; offload=True needs less"
        ) from None
    return pipe


def family_at(source: str | Path) -> Family:
    """Return the family of a model, without loading it.

    Args:
        source: see `load_pipeline`; for a hub id, one small file is downloaded.

    Raises:
        ModelError: the model does not exist, or belongs to no supported family.
    """
    return _read_index(locate(str(source)), str(source))[0]


class Configurations(NamedTuple):
    """Configuration files of a pipeline."""

    family: Family
    components: dict[str, Any]
    """Content of model_index.json: library and class of each component by name, and settings."""
    networks: dict[str, dict[str, Any]]
    """Content of each network's config.json, by component name."""
    prompt_lengths: dict[str, int]
    """Maximum number of tokens of each tokenizer, by component name."""


def configurations(source: str | Path) -> Configurations:
    """Read the configuration files of a pipeline, without its weights.

    Args:
        source: see `load_pipeline`; for a hub id, only a few small files are downloaded.

    Raises:
        ModelError: the model does not exist, is incomplete, or belongs to no supported family.
    """
    source = str(source)
    location = locate(source)
    family, index = _read_index(location, source)
    networks: dict[str, dict[str, Any]] = {}
    prompt_lengths: dict[str, int] = {}
    with as_model_error(source):
        for name in _components(index, family):
            if "tokenizer" in name:
                config = read_json(location, f"{name}/tokenizer_config.json")
                prompt_lengths[name] = config.get("model_max_length", VERY_LARGE_INTEGER)
            elif name != "scheduler":
                networks[name] = read_json(location, f"{name}/config.json")
    return Configurations(family, index, networks, prompt_lengths)


def _components(index: Mapping[str, Any], family: Family) -> list[str]:
    """Return the names of the components that are loaded."""
    return [
        name
        for name, value in index.items()
        if isinstance(value, list) and value[0] is not None and name not in family.facts.unused
    ]


def _read_index(location: Location, source: str) -> tuple[Family, dict[str, Any]]:
    """Return the family of a pipeline, and the content of its model_index.json."""
    with as_model_error(source):
        index = read_json(location, INDEX)
    class_name = str(index.get("_class_name"))
    if class_name not in FAMILIES:
        raise ModelError(f"{source!r} is a {class_name}; supported pipelines are {', '.join(FAMILIES)}")
    return FAMILIES[class_name], index


def _check_tokenizers(folder: Path, components: Sequence[str]) -> None:
    """Raise ModelError if a tokenizer has no vocabulary; transformers would silently make an empty one."""
    for name in components:
        if name.startswith("tokenizer") and not any(
            (folder / name / file).is_file() for file in _VOCABULARY_FILES
        ):
            raise ModelError(f"{str(folder)!r} has no vocabulary in {name}; download or save it again")
