"""Loading pipelines: a folder or a model of the Hugging Face hub, or one sentence on what is wrong."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.utils.hub import cached_file

from ..hub import is_hub_id
from ..rewards.digits import ASSETS
from .errors import ModelError, one_sentence
from .families import FAMILIES, Family
from .fine_tuned import add_lora, load_denoiser

_INDEX = "model_index.json"


class InTheBox(NamedTuple):
    """A model that comes with the package."""

    path: Path
    one_step: bool


IN_THE_BOX = {
    "digits": InTheBox(ASSETS / "digits", one_step=False),
    "digits-turbo": InTheBox(ASSETS / "digits-turbo", one_step=True),
}
"""A flow that draws handwritten digits, and its one-step student."""

_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")


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
        source: "digits" or "digits-turbo", which come with the package; a folder, as `pipe.save_pretrained` or a
            download makes it, which is loaded without the network; or the id of a model of the hub, such as
            "black-forest-labs/FLUX.1-dev", which is downloaded once.
        dtype: of all networks; large models were made for bfloat16.
        device: None is the GPU, if there is one, else the CPU.
        offload: keep networks on the CPU while they are not at work, see `PipelineModel`.
        denoiser: fine-tuned weights in the place of the pipeline's transformer or U-Net, as of `load_denoiser`.
        lora: a file, folder or hub id of LoRA weights, `place` or `place:file name`; it needs peft.

    Raises:
        ModelError: there is no such model, it is of no family here, it is incomplete, or it does not fit into the
            device's memory.
        ValueError: offload on a CPU.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if offload and device.type == "cpu":
        raise ValueError(
            "load_pipeline: offload must be False where device is the CPU, as everything is there already"
        )
    place = _find(str(source))
    family, index = _family(place, str(source))
    if place.local:
        _check_tokenizers(Path(place.name), _components(index, family))
    given: dict[str, Any] = dict(family.left_out)
    if denoiser is not None:
        name = family.denoiser_name
        with one_sentence(str(source)):
            config = _content(place, name, "config.json")
        given[name] = load_denoiser(str(denoiser), index[name][1], config, dtype)
    with one_sentence(str(source)):
        # pickled weights could run code
        pipe = family.pipeline.from_pretrained(
            place.name, dtype=dtype, local_files_only=place.local, use_safetensors=True, **given
        )
    if lora is not None:
        add_lora(pipe, str(lora), family.name)
    try:
        if offload:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
    except torch.OutOfMemoryError:
        raise ModelError(
            f"{str(source)!r} does not fit into the memory of {device}; offload=True needs less"
        ) from None
    return pipe


def family_at(source: str | Path) -> Family:
    """The family of a model, without loading it.

    Args:
        source: as of `load_pipeline`; of a model of the hub one small file is downloaded.

    Raises:
        ModelError: there is no such model, or it is of no family here.
    """
    return _family(_find(str(source)), str(source))[0]


class Configurations(NamedTuple):
    """What a pipeline says of itself."""

    family: Family
    components: dict[str, Any]
    """Content of its model_index.json: library and class of each component by name, and settings."""
    networks: dict[str, dict[str, Any]]
    """Of its networks, by name."""
    prompt_lengths: dict[str, int]
    """Tokens that its tokenizers take, by name."""


def configurations(source: str | Path) -> Configurations:
    """The configurations of a pipeline, without its weights.

    Args:
        source: as of `load_pipeline`; of a model of the hub only a few small files are downloaded.

    Raises:
        ModelError: there is no such model, or it is of no family here.
    """
    place = _find(str(source))
    family, index = _family(place, str(source))
    with one_sentence(str(source)):
        return Configurations(
            family,
            index,
            {
                name: _content(place, name, "config.json")
                for name in _components(index, family)
                if "tokenizer" not in name and name != "scheduler"
            },
            {
                name: _content(place, name, "tokenizer_config.json").get(
                    "model_max_length", VERY_LARGE_INTEGER
                )
                for name in _components(index, family)
                if "tokenizer" in name
            },
        )


def _components(index: Mapping[str, Any], family: Family) -> list[str]:
    """Names of what a pipeline has."""
    return [
        name
        for name, value in index.items()
        if isinstance(value, list) and value[0] is not None and name not in family.left_out
    ]


def _content(place: "_Place", component: str, name: str) -> dict[str, Any]:
    """Of a JSON file."""
    file = cached_file(place.name, name, subfolder=component, local_files_only=place.local)
    if file is None:
        raise FileNotFoundError(f"there is no {component}/{name}")
    content: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    return content


class _Place(NamedTuple):
    name: str
    """A path, or an id of the hub."""
    local: bool


def _find(source: str) -> _Place:
    path = IN_THE_BOX[source].path if source in IN_THE_BOX else Path(source).expanduser()
    if path.is_dir():
        if not (path / _INDEX).is_file():
            raise ModelError(
                f"the folder {source!r} has no {_INDEX}, and holds no pipeline in diffusers' layout, as "
                "pipe.save_pretrained(folder) makes it"
            )
        return _Place(str(path), local=True)
    if path.exists():
        raise ModelError(f"{source!r} is a file; the folder of a pipeline is needed, with its {_INDEX}")
    if not is_hub_id(source):
        raise ModelError(
            f"there is no folder {source!r}; give one, or an id such as 'black-forest-labs/FLUX.1-dev'"
        )
    return _Place(source, local=False)


def _family(place: _Place, source: str) -> tuple[Family, dict[str, Any]]:
    """The family of a pipeline, and its index."""
    with one_sentence(source):
        index: dict[str, Any] = DiffusionPipeline.load_config(place.name, local_files_only=place.local)
    kind = str(index.get("_class_name"))
    if kind not in FAMILIES:
        raise ModelError(f"{source!r} is a {kind}; what can be sampled from is {', '.join(FAMILIES)}")
    return FAMILIES[kind], index


def _check_tokenizers(folder: Path, components: Sequence[str]) -> None:
    # without its files transformers makes a tokenizer with an empty vocabulary, and says nothing
    for name in components:
        if name.startswith("tokenizer") and not any(
            (folder / name / file).is_file() for file in _VOCABULARIES
        ):
            raise ModelError(f"{str(folder)!r} has no vocabulary in {name}; download or save it anew")
