"""Loading of pipelines from a folder or from the Hugging Face hub; every failure is a ModelError."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from ..model_sources import INDEX, Location, locate
from ..quiet import without_bars_if_small
from .errors import ModelError, as_model_error
from .families import FAMILIES, Family
from .files import read_json
from .fine_tuned import GGUF, add_loras, load_denoiser
from .networks import load_network, network_class, variants_in, with_defaults
from .quantize import check_kind, check_not_quantised, quantise

_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")


@torch.inference_mode(False)  # weights must be usable by autograd
def load_pipeline(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device | None = None,
    offload: bool = False,
    denoiser: str | Path | None = None,
    lora: str | Path | Sequence[str | Path] = (),
    variant: str | None = None,
    quantize: str | None = None,
    text_encoders: bool = True,
) -> DiffusionPipeline:
    """Load a pipeline of one of the families (`FAMILIES`), such as FLUX or Wan.

    Args:
        source: one of
            - "digits" or "digits-turbo", which come with the package;
            - a folder, made by `pipe.save_pretrained` or a download; loaded without the network;
            - the id of a model on the hub, such as "black-forest-labs/FLUX.1-dev", downloaded once.
        dtype: dtype of all networks; bfloat16 is meant for large models.
        device: device to compute on; None is the GPU if there is one, else the CPU.
        offload: keep idle networks on the CPU, see `PipelineModel`.
        denoiser: fine-tuned weights that replace the pipeline's transformer or U-Net, see `load_denoiser`.
        lora: LoRA weights, or a sequence of them: each a file, a folder, a hub id, or "FOLDER_OR_ID:FILE",
            with "=WEIGHT" after it for a weight other than 1, such as "style.safetensors=0.8"; needs peft.
        variant: variant of the weights such as "fp16", for networks that are saved in it.
        quantize: quantisation of the denoiser's weights, "int8", "fp8" or "nf4"; None for none. "nf4" needs
            bitsandbytes. Text encoders and VAE are not quantised.
        text_encoders: False leaves text encoders and tokenizers out. The model then takes the embeddings of
            its prompts from `PipelineModel.add_embeddings`.

    Raises:
        ModelError: the model does not exist, is incomplete, belongs to no supported family, or does not fit
            into the device's memory.
        ValueError: offload with a CPU as device, or an unknown quantisation.
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
    configs = configurations(source)
    facts = configs.family.facts
    check_quantize(quantize, source, denoiser)
    if text_encoders:
        _check_present(configs.components, facts.needed_encoders, source)
    absent = [name for name in facts.optional if name not in _present(configs.components)]
    components: dict[str, Any] = dict.fromkeys((*facts.unused, *absent))  # None: not loaded
    if not text_encoders:
        components.update(dict.fromkeys(facts.encoders))
    if denoiser is not None:
        class_name = configs.components[facts.denoiser][1]
        components[facts.denoiser] = load_denoiser(
            str(denoiser), class_name, configs.networks[facts.denoiser], dtype, variant
        )
    with as_model_error(source), without_bars_if_small(location.name):
        if not location.local:
            folder = facts.pipeline.download(
                location.name,
                use_safetensors=True,
                variant=variant,
                local_files_only=location.local_files_only,
                **components,
            )
            location = Location(str(folder), local=True)
        _check_tokenizers(
            location, source, [name for name in _present(configs.components) if name not in components]
        )
        networks = {name: one for name, one in configs.networks.items() if name not in components}
        if (
            variant is not None
            and denoiser is None  # it may be the one that has the variant
            and not any(variant in variants_in(Path(location.name, name)) for name in networks)
        ):
            raise ModelError(f"no weights of {source!r} have the variant {variant!r}; leave it out")
        for name, config in networks.items():
            components[name] = load_network(
                network_class(*configs.components[name]),
                location,
                source,
                config,
                dtype,
                component=name,
                variant=variant,
            )
        pipe = facts.pipeline.from_pretrained(location.name, local_files_only=True, **components)
    add_loras(pipe, [str(one) for one in ([lora] if isinstance(lora, (str, Path)) else lora)], facts.name)
    try:
        if quantize is not None:
            for name in (facts.denoiser, *facts.experts):
                network = getattr(pipe, name)
                if network is not None:
                    quantise(f"the {name} of {source!r}", network, quantize, device)
                    network.to("cpu" if offload else device)  # the next one may need the memory
        if offload:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
    except torch.OutOfMemoryError:
        raise ModelError(
            f"{source!r} does not fit into the memory of {device}; offload=True needs less"
        ) from None
    return pipe


def check_quantize(kind: str | None, source: str | Path, denoiser: str | Path | None = None) -> None:
    """Raise ModelError if a model's denoisers cannot be quantised, as far as their configurations show.

    Args:
        kind, source, denoiser: `quantize`, `source` and `denoiser` of `load_pipeline`.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind is None:
        return
    check_kind(kind)
    if str(denoiser).endswith(GGUF):
        raise ModelError(f"{str(denoiser)!r} is already quantised, so quantize must be None")
    configs = configurations(source)
    facts = configs.family.facts
    for name in (facts.denoiser, *facts.experts):
        if name in configs.networks and not (name == facts.denoiser and denoiser is not None):
            check_not_quantised(f"the {name} of {str(source)!r}", configs.networks[name])


def family_at(source: str | Path) -> Family:
    """Return the family of a model with text encoders, without loading it.

    Args:
        source: see `load_pipeline`; for a hub id, one small file is downloaded.

    Raises:
        ModelError: the model does not exist, has no text encoders, or belongs to no supported family.
    """
    family, index = _read_index(locate(str(source)), str(source))
    _check_present(index, family.facts.needed_encoders, str(source))
    return family


class Configurations(NamedTuple):
    """Configuration files of a pipeline."""

    family: Family
    components: dict[str, Any]
    """Content of model_index.json: library and class of each component by name, and settings."""
    networks: dict[str, dict[str, Any]]
    """Content of each network's config.json, by component name."""
    scheduler: Any
    """The scheduler."""


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
    with as_model_error(source):
        networks = {
            name: read_json(location, f"{name}/config.json")
            for name in _present(index)
            if not name.startswith(("tokenizer", "scheduler")) and name not in family.facts.unused
        }
        config = read_json(location, "scheduler/scheduler_config.json")
        scheduler = network_class(*index["scheduler"]).from_config(config)
        parts = {
            name: SimpleNamespace(
                config=SimpleNamespace(**with_defaults(network_class(*index[name]), networks[name]))
            )
            for name in (family.facts.denoiser, *family.facts.experts, "vae")
            if name in networks
        }
    with _as_refusal():
        family.check_parts(repr(source), SimpleNamespace(scheduler=scheduler, **parts))
    return Configurations(family, index, networks, scheduler)


def prompt_lengths(source: str | Path) -> dict[str, int]:
    """Return the maximum number of tokens of each tokenizer of a pipeline, by component name.

    Arguments and errors are the same as for `configurations`.
    """
    location = locate(str(source))
    with as_model_error(str(source)):
        return {
            name: read_json(location, f"{name}/tokenizer_config.json").get(
                "model_max_length", VERY_LARGE_INTEGER
            )
            for name in _present(_read_index(location, str(source))[1])
            if name.startswith("tokenizer")
        }


def _present(index: Mapping[str, Any]) -> list[str]:
    """Return the names of the components that a pipeline has."""
    return [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]


def _check_present(index: Mapping[str, Any], names: Sequence[str], source: str) -> None:
    """Raise ModelError if a pipeline was saved without one of the named components."""
    for name in names:
        if name not in _present(index):
            without_encoders = ", or load it with text_encoders=False" if "encoder" in name else ""
            raise ModelError(
                f"{source!r} was saved without its {name}; save it again with all components"
                f"{without_encoders}"
            )


def _read_index(location: Location, source: str) -> tuple[Family, dict[str, Any]]:
    """Return the family of a pipeline, and the content of its model_index.json."""
    with as_model_error(source):
        index = read_json(location, INDEX)
    class_name = str(index.get("_class_name"))
    if class_name not in FAMILIES:
        raise ModelError(f"{source!r} is a {class_name}; supported pipelines are {', '.join(FAMILIES)}")
    family = FAMILIES[class_name]
    _check_present(index, (family.facts.denoiser, "vae", "scheduler"), source)
    with _as_refusal():
        family.check_index(repr(source), index)
    return family, index


@contextmanager
def _as_refusal() -> Iterator[None]:
    """Turn a ValueError, whose message names the model, into a ModelError."""
    try:
        yield
    except ValueError as error:
        raise ModelError(str(error)) from None


def _check_tokenizers(location: Location, source: str, components: Sequence[str]) -> None:
    """Raise ModelError if a tokenizer has no vocabulary; transformers would silently make an empty one."""
    for name in components:
        if name.startswith("tokenizer") and not any(
            Path(location.name, name, file).is_file() for file in _VOCABULARY_FILES
        ):
            raise ModelError(f"{source!r} has no vocabulary in {name}; download or save it again")
