"""Loads CLIP-like models, their image processing and their tokenizers by transformers; every failure is one sentence.

A source is a folder or the id of a model on the Hugging Face hub.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import CLIPTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

from .checks import RewardError, first_line, first_of
from .preprocessing import Preprocessing

AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)

FAILURES = (OSError, ValueError, RuntimeError, SafetensorError)
"""What transformers raises for files that are missing, broken, or of something else."""


def model_config(reward: str, source: str, types: Collection[str]) -> Mapping[str, Any]:
    """The content of the source's config.json, of one of the model types.

    Raises:
        RewardError: there is no such folder or id, the hub cannot be reached, or the model is of another type.
    """
    check_source(reward, source)
    try:
        config, _ = PretrainedConfig.get_config_dict(source)
    except FAILURES as error:
        raise unusable(reward, source, error) from None
    model_type = config.get("model_type")
    if model_type not in types:
        raise RewardError(
            f"{reward}: {source} must hold a config.json with model_type {' or '.join(map(repr, types))}, "
            f"got {model_type!r}"
        )
    return config


def check_source(reward: str, source: str) -> None:
    """Raises RewardError unless `source` is a folder or may be an id on the hub."""
    if not Path(source).is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        raise RewardError(
            f"{reward}: there is no folder {source}; name the folder of the weights, or an id on the Hugging Face hub"
        )


def load_model(
    reward: str,
    model_class: type[AnyModel],
    source: str,
    config: PretrainedConfig,
    wanted: str,
    dtype: torch.dtype = torch.float32,
) -> AnyModel:
    """The model with frozen weights of this dtype, on the CPU. Buffers that are not saved keep their own.

    Raises:
        RewardError: the weights are missing, incomplete, or of another model; the message says what is `wanted`.
    """
    try:
        loaded: Any = model_class.from_pretrained(
            source, config=config, dtype=dtype, output_loading_info=True
        )
    except FAILURES as error:
        raise unusable(reward, source, error) from None
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise RewardError(
            f"{reward}: the weights in {source} lack {first_of(missing)}; name a source that has {wanted}"
        )
    frozen: AnyModel = model.eval().requires_grad_(False)
    return frozen


def load_preprocessing(reward: str, source: str, image_size: int) -> Preprocessing:
    """The image processing of a model for images of this height and width; CLIP's own where the source has none.

    Raises:
        RewardError: it cannot be read, asks for something that is not done here, or makes another size.
    """
    config = processor_config(reward, source) or {"size": image_size, "crop_size": image_size}
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


def processor_config(reward: str, source: str) -> Mapping[str, Any]:
    """What the source says of its image processor; empty where it has none.

    Raises:
        RewardError: it cannot be read.
    """
    try:
        config: Mapping[str, Any]
        config, _ = BaseImageProcessor.get_image_processor_dict(source)
    except FAILURES as error:
        if any(
            (Path(source) / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")
        ):
            raise unusable(reward, source, error) from None
        return {}
    return config


def load_tokenizer(
    reward: str,
    sources: Sequence[str],
    vocabulary: int,
    tokenizer_class: type[PreTrainedTokenizerBase] = CLIPTokenizer,
    added: Sequence[str] = (),
) -> Any:
    """The tokenizer of the first source that has one of this many tokens, with those that are `added` if need be.

    Raises:
        RewardError: none has.
    """
    for source in sources:
        try:
            tokenizer = tokenizer_class.from_pretrained(source)
        except FAILURES:
            continue
        tokenizer.add_tokens(list(added), special_tokens=True)
        # where there are no files transformers makes a tokenizer that knows nothing, and says nothing
        if len(tokenizer) == vocabulary:
            return tokenizer
    files = [file for name, file in tokenizer_class.vocab_files_names.items() if name != "tokenizer_file"]
    raise RewardError(
        f"{reward}: there is no tokenizer of the model's {vocabulary} tokens in {' or '.join(sources)}; put its "
        f"tokenizer.json, or {' and '.join(files)}, beside the weights"
    )


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on GPUs, float32 on the CPU, where it is the faster of the two."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def unusable(reward: str, source: str, error: Exception) -> RewardError:
    """What to raise for an error that came while the source was read."""
    if not Path(source).is_dir():
        return RewardError(
            f"{reward}: {source!r} is no folder here and did not come from the hub ({first_line(error)}); "
            f"check the name and the connection, or run `hf download {source} --local-dir FOLDER` where there is one "
            "and name that folder as the source"
        )
    return RewardError(
        f"{reward}: the files in {source} cannot be used ({first_line(error)}); fetch the model whole, "
        "as `hf download` does, or name another source"
    )
