"""Loading of models, image processors and tokenizers with transformers. Every failure is a RewardError.

A source is a folder or the id of a repository on the Hugging Face hub.
"""

import pickle
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor
from transformers.initialization import no_init_weights

from ..checks import warn_once
from ..hub import explain_failure, is_hub_id, offline
from ..quiet import without_bars_if_small
from .checks import RewardError, first_of
from .preprocessing import Preprocessing
from .weightless import is_weightless

AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)
AnyConfig = TypeVar("AnyConfig", bound=PretrainedConfig)

FAILURES = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    LookupError,
    SafetensorError,
    pickle.UnpicklingError,
)
"""Exceptions of torch.load and transformers for missing, broken or unsuitable files."""


def is_unreachable(source: str) -> bool:
    """Return True for a hub id while the hub cannot be reached, so that only downloaded files can be read.

    Loaders of transformers would repeat their requests, which takes 23 seconds.
    """
    return not Path(source).exists() and is_hub_id(source) and offline()


def model_config(reward: str, source: str, types: Collection[str]) -> Mapping[str, Any]:
    """Return the content of the source's config.json, whose model type must be one of `types`.

    Raises:
        RewardError: the folder or repository does not exist, the hub cannot be reached, or the type is
            another one.
    """
    check_source(reward, source)
    try:
        config, _ = PretrainedConfig.get_config_dict(source, local_files_only=is_unreachable(source))
    except FAILURES as error:
        raise unusable(reward, source, error) from None
    model_type = config.get("model_type")
    if model_type not in types:
        raise RewardError(
            f"{reward}: {source} must hold a config.json with model_type {' or '.join(map(repr, types))}, "
            f"got {model_type!r}"
        )
    return config


def make_config(
    reward: str, source: str, config_class: type[AnyConfig], config: Mapping[str, Any]
) -> AnyConfig:
    """Return the configuration of a model from the content of the source's config.json.

    Raises:
        RewardError: the configuration has values that the model does not take.
    """
    try:
        made: AnyConfig = config_class.from_dict(dict(config))
    except Exception as error:  # transformers has its own kinds for values of a wrong type
        raise unusable(reward, source, error) from None
    return made


def check_source(reward: str, source: str) -> None:
    """Raise RewardError unless `source` is a folder or has the form of a hub id."""
    if Path(source).is_file():
        raise RewardError(
            f"{reward}: {source} is a file; name the folder that has it and the other files of the model"
        )
    if not Path(source).is_dir() and not is_hub_id(source):
        raise RewardError(
            f"{reward}: there is no folder {source}; name the folder of the weights, or an id on the Hugging "
            "Face hub, OWNER/NAME"
        )


def load_model(
    reward: str,
    model_class: type[AnyModel],
    source: str,
    config: PretrainedConfig,
    wanted: str,
    dtype: torch.dtype = torch.float32,
    tensors: Mapping[str, Tensor] | None = None,
    strict: bool = False,
    published_name: Callable[[str], str] = str,
) -> AnyModel:
    """Return the model with frozen weights of this dtype, on the CPU.

    Buffers that are not in the checkpoint keep their dtype.

    Args:
        source: folder or hub id of the weights; the place of `tensors` in errors, if they are given.
        wanted: what the source must have, for the error.
        tensors: weights by the names that transformers uses; None reads them from the source.
        strict: refuse tensors that the model does not have.
        published_name: function from the name of a tensor in transformers to its name in the source, for
            errors.

    Raises:
        RewardError: tensors are missing or have another shape; the message names the first one.
    """
    if is_weightless():
        with no_init_weights():
            made: AnyModel = model_class._from_config(config, dtype=dtype)
        return made.eval().requires_grad_(False)
    if tensors is None:
        place: dict[str, Any] = {"pretrained_model_name_or_path": source}
        place["local_files_only"] = is_unreachable(source)
    else:
        place = {"pretrained_model_name_or_path": None, "state_dict": dict(tensors)}
    try:
        with without_bars_if_small(source):
            loaded: Any = model_class.from_pretrained(
                **place, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except FAILURES as error:
        raise unusable(reward, source, error) from None
    model, info = loaded
    wrong = {
        "lack": info["missing_keys"],
        "have another shape for": {name for name, *_ in info["mismatched_keys"]},
        "have the unknown tensor": info["unexpected_keys"] if strict else (),
    }
    for what, names in wrong.items():
        if names:
            published = sorted(set(map(published_name, names)))
            raise RewardError(
                f"{reward}: the weights in {source} {what} {first_of(published)}; name a source that has "
                f"{wanted}"
            )
    frozen: AnyModel = model.eval().requires_grad_(False)
    return frozen


def load_preprocessing(
    reward: str,
    source: str,
    image_size: int,
    round_crop: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> Preprocessing:
    """Return the image processing of a model for images of this height and width.

    Args:
        reward: name of the reward, for errors.
        source: folder or hub id of the model.
        image_size: height and width of the model's images.
        round_crop: see `Preprocessing`.
        defaults: values for entries that the source's configuration lacks, or for a source without image
            processor; None is those of CLIP.

    Raises:
        RewardError: the configuration cannot be read, asks for an unsupported step, or gives another size.
    """
    defaults = defaults or {"size": image_size, "crop_size": image_size}
    given = processor_config(reward, source)
    config = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    try:
        preprocessing = Preprocessing.from_config(config, round_crop)
    except RewardError as error:
        raise RewardError(f"{reward}: {source}: {error}") from None
    if preprocessing.output_size != (image_size, image_size):
        raise RewardError(
            f"{reward}: the image processor in {source} makes images of {preprocessing.output_size} pixels, "
            f"but its model takes ({image_size}, {image_size}); name a source in which the two match"
        )
    return preprocessing


def processor_config(reward: str, source: str) -> Mapping[str, Any]:
    """Return the configuration of the source's image processor; empty if there is none.

    Raises:
        RewardError: the configuration cannot be read.
    """
    try:
        config: Mapping[str, Any]
        config, _ = BaseImageProcessor.get_image_processor_dict(
            source, local_files_only=is_unreachable(source)
        )
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
    """Return the tokenizer of the first source that has one with `vocabulary` tokens.

    Args:
        added: tokens to add, unless the tokenizer has them already.

    Raises:
        RewardError: no source has such a tokenizer.
    """
    for source in sources:
        try:
            tokenizer = tokenizer_class.from_pretrained(source, local_files_only=is_unreachable(source))
        except FAILURES:
            continue
        tokenizer.add_tokens(list(added), special_tokens=True)
        # without files transformers returns a tokenizer with an empty vocabulary, and no error
        if len(tokenizer) == vocabulary:
            return tokenizer
    files = [file for name, file in tokenizer_class.vocab_files_names.items() if name != "tokenizer_file"]
    raise RewardError(
        f"{reward}: there is no tokenizer of the model's {vocabulary} tokens in {' or '.join(sources)}; put "
        f"its tokenizer.json, or {' and '.join(files)}, beside the weights"
    )


def warn_of_cut(reward: str, tokenizer: Any, prompts: Sequence[str], length: int) -> None:
    """Warn, once in a process, if a prompt has more tokens than the model reads."""
    if any(len(tokens) > length for tokens in tokenizer(list(prompts), verbose=False).input_ids):
        warn_once(
            f"{reward}: a prompt has more than {length} tokens, start and end included; the reward does not "
            "read the rest"
        )


def unusable(reward: str, source: str, error: Exception) -> RewardError:
    """Return the RewardError for an exception that was raised while the source was read."""
    return RewardError(f"{reward}: {explain_failure(source, error)}")
