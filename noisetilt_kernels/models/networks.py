"""Loading of single networks, with a check that every weight is there."""

import importlib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import torch
import transformers.utils.logging

from ..hub import first_sentence
from ..model_sources import Location
from ..quiet import errors_only
from .errors import ModelError

LIBRARIES = ("diffusers", "transformers")
"""Libraries that the networks of supported pipelines come from."""


def network_class(library: str, class_name: str) -> Any:
    """Return a class of diffusers or transformers.

    Raises:
        ValueError: the library is another one, or has no such class.
    """
    found = getattr(importlib.import_module(library), class_name, None) if library in LIBRARIES else None
    if found is None:
        raise ValueError(f"{library}.{class_name} is not a class of {' or '.join(LIBRARIES)}")
    return found


def load_network(
    network: Any,
    location: Location,
    source: str,
    config: Mapping[str, Any],
    dtype: torch.dtype,
    *,
    component: str = "",
    variant: str | None = None,
) -> torch.nn.Module:
    """Load a network that was saved with its configuration.

    Args:
        network: class of diffusers or transformers.
        location: folder or hub repository of the pipeline or of the network.
        source: the user's name for it, for error messages.
        config: content of its config.json.
        dtype: dtype of the weights, except those that the library keeps in float32.
        component: name of the subfolder, "" for none.
        variant: variant of the files such as "fp16". A folder without it is read without; a hub repository
            must have it.

    Raises:
        ModelError: a weight is missing, has another shape, or is not a weight of the network. Text encoders
            may have further weights, as they are parts of larger models.
    """
    owner = f"the {component} of {source!r}" if component else repr(source)
    if location.local:
        variant = _variant_of(Path(location.name, component), owner, variant)
    try:
        loaded: torch.nn.Module
        # the reports of missing weights become errors below
        with errors_only(diffusers.utils.logging, transformers.utils.logging):
            loaded, info = network.from_pretrained(
                location.name,
                subfolder=component,
                dtype=dtype,
                variant=variant,
                use_safetensors=True,  # pickled weights could run code
                local_files_only=location.local_files_only,
                ignore_mismatched_sizes=True,  # they are reported below
                output_loading_info=True,
            )
    except Exception as error:
        quantised = config.get("quantization_config")
        if quantised is None:
            raise
        raise ModelError(
            f"{owner} is quantised with {quantised.get('quant_method')}, which cannot be loaded here: "
            f"{first_sentence(error)}"
        ) from None
    unexpected = info["unexpected_keys"]
    if "quantization_config" in config or not network.__module__.startswith("diffusers"):
        unexpected = ()
    remedy = "download or save it again" if component else remedy_for(network.__name__)
    check_weights(owner, info["missing_keys"], unexpected, info["mismatched_keys"], remedy)
    return loaded


def _variant_of(folder: Path, owner: str, variant: str | None) -> str | None:
    """Return the variant if the folder has its files, else None; raise ModelError if it has only others."""
    variants = variants_in(folder)
    if variant in variants:
        return variant
    named = sorted(filter(None, variants))
    if named and None not in variants:
        raise ModelError(
            f"the weights of {owner} are there only as variant {' and '.join(named)}; "
            f"use variant={named[0]!r}, or --variant {named[0]} in the commands"
        )
    return None


def variants_in(folder: Path) -> set[str | None]:
    """Return the variants of a network's weights in its folder; None is the default one."""
    files = [file.name.split(".") for file in folder.glob("*.safetensors")]
    # NAME.VARIANT.safetensors, or NAME.VARIANT-00001-of-00002.safetensors
    return {parts[1].partition("-0")[0] if len(parts) == 3 else None for parts in files}


def remedy_for(class_name: str) -> str:
    """Return the advice for weights that belong to another network than one of this class."""
    return f"weights of a {class_name} of the same size are needed"


def check_weights(
    owner: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Iterable[tuple[str, Iterable[int], Iterable[int]]],
    remedy: str,
) -> None:
    """Raise ModelError if a weight is missing, unexpected or of another shape. The message names the first.

    Args:
        owner: the network, for the message.
        missing, unexpected: names of weights.
        mismatched: name of each weight with another shape, its shape in the file, and the shape needed.
        remedy: what to do, for the message.
    """
    for problem, names in (("lack", missing), ("have an unexpected", unexpected)):
        for name in sorted(names)[:1]:
            raise ModelError(f"the weights of {owner} {problem} {name}; {remedy}")
    for name, found, wanted in sorted(mismatched)[:1]:
        raise ModelError(
            f"{name} of {owner} has the shape {tuple(found)}, but the model needs {tuple(wanted)}; {remedy}"
        )


def with_defaults(network: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a network of diffusers, with defaults for what its file leaves out."""
    parameters = inspect.signature(network.__init__).parameters
    defaults = {
        name: one.default for name, one in parameters.items() if one.default is not inspect.Parameter.empty
    }
    return {**defaults, **config}
