"""Loads CLIP-like models, their image processing and their tokenizers by transformers; every failure is one sentence.

A source is a folder or the id of a model on the Hugging Face hub.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import CLIPTokenizer, PretrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from .checks import RewardError
from .preprocessing import Preprocessing

AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)

_FAILURES = (OSError, ValueError, RuntimeError, SafetensorError)
"""What transformers raises for files that are missing, broken, or of something else."""


def model_config(reward: str, source: str, types: Collection[str]) -> Mapping[str, Any]:
    """The content of the source's config.json, of one of the model types.

    Raises:
        RewardError: there is no such folder or id, the hub cannot be reached, or the model is of another type.
    """
    folder = Path(source)
    if not folder.is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        raise RewardError(
            f"{reward}: there is no folder {source}; name the folder of the weights, or an id on the Hugging Face hub"
        )
    try:
        config, _ = PretrainedConfig.get_config_dict(source)
    except _FAILURES as error:
        if folder.is_dir():
            raise _unusable(reward, source, error) from None
        raise RewardError(
            f"{reward}: {source!r} is no folder here and did not come from the hub ({_first_line(error)}); "
            f"check the name and the connection, or run `hf download {source} --local-dir FOLDER` where there is one "
            "and name that folder as the source"
        ) from None
    model_type = config.get("model_type")
    if model_type not in types:
        raise RewardError(
            f"{reward}: {source} must hold a config.json with model_type {' or '.join(map(repr, types))}, "
            f"got {model_type!r}"
        )
    return config


def load_model(
    reward: str, model_class: type[AnyModel], source: str, config: PretrainedConfig, wanted: str
) -> AnyModel:
    """The model with frozen weights, in float32 on the CPU.

    Raises:
        RewardError: the weights are missing, incomplete, or of another model; the message says what is `wanted`.
    """
    try:
        loaded: Any = model_class.from_pretrained(source, config=config, output_loading_info=True)
    except _FAILURES as error:
        raise _unusable(reward, source, error) from None
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise RewardError(
            f"{reward}: the weights in {source} lack {missing[0]}{_others(missing)}; name a source that has {wanted}"
        )
    frozen: AnyModel = model.float().eval().requires_grad_(False)
    return frozen


def load_preprocessing(reward: str, source: str, image_size: int) -> Preprocessing:
    """The image processing of a model for images of this height and width; CLIP's own where the source has none.

    Raises:
        RewardError: it cannot be read, asks for something that is not done here, or makes another size.
    """
    folder = Path(source)
    names = ("preprocessor_config.json", "processor_config.json")
    config: Mapping[str, Any] = {"size": image_size, "crop_size": image_size}
    try:
        config, _ = BaseImageProcessor.get_image_processor_dict(source)
    except _FAILURES as error:
        if any((folder / name).is_file() for name in names):
            raise _unusable(reward, source, error) from None
    try:
        preprocessing = Preprocessing.from_config(config)
    except RewardError as error:
        raise RewardError(f"{reward}: {source}: {error}") from None
    if preprocessing.output_size != (image_size, image_size):
        raise RewardError(
            f"{reward}: the image processor in {source} makes images of {preprocessing.output_size} pixels, "
            f"but its model takes ({image_size}, {image_size}); name a source where both belong together"
        )
    return preprocessing


def load_tokenizer(reward: str, sources: Sequence[str], vocabulary: int) -> CLIPTokenizer:
    """The tokenizer of the first source that has one of this many tokens.

    Raises:
        RewardError: none has.
    """
    for source in sources:
        try:
            tokenizer = CLIPTokenizer.from_pretrained(source)
        except _FAILURES:
            continue
        # where there are no files transformers makes a tokenizer that knows nothing, and says nothing
        if len(tokenizer) == vocabulary:
            return tokenizer
    raise RewardError(
        f"{reward}: there is no tokenizer of the model's {vocabulary} tokens in {' or '.join(sources)}; put its "
        "tokenizer.json, or vocab.json and merges.txt, beside the weights"
    )


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on GPUs, float32 on the CPU, where it is the faster of the two."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def _unusable(reward: str, source: str, error: Exception) -> RewardError:
    return RewardError(
        f"{reward}: the files in {source} cannot be used ({_first_line(error)}); fetch the model whole, "
        "as `hf download` does, or name another source"
    )


def _others(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
