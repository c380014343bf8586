"""Weights as their authors publish them: one file by torch.save, which is of another layout than transformers has."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils import cached_file

from ..checks import RewardError, first_line, first_of
from ..loading import AnyModel, check_source

_FAILURES = (OSError, EOFError, RuntimeError, AttributeError, KeyError, ValueError, pickle.UnpicklingError)
"""What torch.load raises for files that are broken, or hold more than tensors."""


def find_checkpoint(reward: str, source: str) -> tuple[Path, str] | None:
    """The .pt file of a source, and the folder or hub id that it is from; None if the source has none.

    A source is the file itself, a folder with one such file, or ID:FILE, a file of a model on the hub.

    Raises:
        RewardError: there is no such file, it did not come from the hub, or the folder has several.
    """
    path = Path(source)
    if path.is_file():
        return path, str(path.parent)
    if path.is_dir():
        files = sorted(path.glob("*.pt"))
        if len(files) > 1:
            raise RewardError(
                f"{reward}: {source} holds several .pt files ({', '.join(file.name for file in files)}); "
                "name one of them as the source"
            )
        return (files[0], source) if files else None
    model, colon, name = source.rpartition(":")
    if not name.endswith(".pt"):
        return None
    if not colon:
        raise RewardError(
            f"{reward}: there is no file {source}; name the file of the weights, or ID:FILE on the Hugging Face hub"
        )
    check_source(reward, model)
    try:
        return Path(cached_file(model, name)), model
    except OSError as error:
        raise RewardError(
            f"{reward}: {name} of {model!r} did not come from the hub ({first_line(error)}); check the name and the "
            f"connection, or run `hf download {model} {name} --local-dir FOLDER` where there is one and name "
            f"FOLDER/{name} as the source"
        ) from None


def read_checkpoint(reward: str, file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU; those of a training's checkpoint are under "state_dict".

    No code in the file is run.

    Raises:
        RewardError: the file is broken, or holds something else.
    """
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except _FAILURES as error:
        raise RewardError(
            f"{reward}: {file} cannot be read as weights by torch.save ({first_line(error)}); fetch it again"
        ) from None
    tensors = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(tensors, Mapping) or not any(isinstance(value, Tensor) for value in tensors.values()):
        raise RewardError(
            f"{reward}: {file} must hold tensors by name, got {type(content).__name__}; fetch it again"
        )
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}


def load_tensors(
    reward: str,
    model_class: type[AnyModel],
    file: Path,
    config: PretrainedConfig,
    wanted: str,
    tensors: Mapping[str, Tensor],
) -> AnyModel:
    """The model of these tensors, by the names that transformers has, with frozen weights in float32 on the CPU.

    Args:
        reward, file, wanted: for errors: where the tensors are from, and what should be there.

    Raises:
        RewardError: tensors are missing or of other shapes.
    """
    loaded: Any = model_class.from_pretrained(
        None,
        config=config,
        state_dict=dict(tensors),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    model, info = loaded
    wrong = sorted([*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])])
    if wrong:
        raise RewardError(
            f"{reward}: {file} lacks {first_of(wrong)}, or has another shape for it; name a source that has {wanted}"
        )
    frozen: AnyModel = model.eval().requires_grad_(False)
    return frozen


def shape_of(reward: str, file: Path, tensors: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    """The shape of one of the tensors, which must be there and have so many dimensions.

    Raises:
        RewardError: it is not, or has not.
    """
    shape = tuple(tensors[name].shape) if name in tensors else None
    if shape is None or len(shape) != dims:
        raise RewardError(
            f"{reward}: {file} must hold {name} of {dims} dimensions, got {shape}; it is of another model, so name "
            "another file as the source"
        )
    return shape


def heads_of(reward: str, file: Path, what: str, width: int, head_width: int) -> int:
    """How many attention heads a transformer of this width has, which no tensor tells.

    Raises:
        RewardError: the width is no multiple of that of a head.
    """
    if width % head_width:
        raise RewardError(
            f"{reward}: the width of {what} in {file} must be a multiple of {head_width}, got {width}; it is of "
            "another model, so name another file as the source"
        )
    return width // head_width


def count_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many layers there are whose tensors are called prefix + "0.", prefix + "1.", and so on."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    return len(numbers)
