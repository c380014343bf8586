"""Reader of checkpoints published as one file, not in the format of transformers."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import cached_file

from ..hub import explain_failure, first_sentence
from .checks import RewardError
from .loading import FAILURES, check_source, is_unreachable
from .weightless import is_weightless, read_pickle


def find_checkpoint(reward: str, source: str, ending: str = ".pt") -> tuple[Path, str] | None:
    """Return the file of a source and the folder or hub id it belongs to, or None without such a file.

    A source is the file itself, a folder with one such file, ID:FILE, a file in a repository on the hub, or
    the https address of a file, which is downloaded once into the cache of torch.hub. The address may end
    with #sha256=DIGEST; the downloaded file must then have this digest.

    Args:
        ending: ending of the file's name.

    Raises:
        RewardError: the file does not exist, cannot be downloaded or has another digest, or the folder has
            several.
    """
    path = Path(source)
    if path.is_file() and (path.suffix == ending or path.suffix != ".safetensors"):
        return path, str(path.parent)
    if path.is_dir():
        files = sorted(path.glob(f"*{ending}"))
        if len(files) > 1:
            raise RewardError(
                f"{reward}: {source} holds several {ending} files "
                f"({', '.join(file.name for file in files)}); name one of them as the source"
            )
        return (files[0], source) if files else None
    if source.startswith("https://"):
        file = _downloaded(reward, source)
        return file, str(file.parent)
    model, colon, name = source.rpartition(":")
    if not name.endswith(ending):
        return None
    if not colon:
        raise RewardError(
            f"{reward}: there is no file {source}; name the file of the weights, or ID:FILE on the Hugging "
            "Face hub"
        )
    check_source(reward, model)
    try:
        only_local = is_weightless() or is_unreachable(model)
        return Path(cached_file(model, name, local_files_only=only_local)), model
    except OSError as error:
        raise RewardError(f"{reward}: {explain_failure(model, error, name)}") from None


def _downloaded(reward: str, address: str) -> Path:
    address, _, digest = address.partition("#sha256=")
    # the whole address, because different files have the same name
    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    file = Path(torch.hub.get_dir()) / "checkpoints" / key / address.rpartition("/")[2]
    if is_weightless() and not file.is_file():
        raise RewardError(f"{reward}: {address} has not been downloaded")
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(file), digest, progress=False)
        except RuntimeError:  # torch's error for another digest
            raise RewardError(
                f"{reward}: the file at {address} must have the SHA-256 digest {digest}, got another one; "
                "download it again, or name a file that you trust as the source"
            ) from None
        except OSError as error:
            raise RewardError(
                f"{reward}: {address} cannot be downloaded ({first_sentence(error)}); check the network, or "
                f"download it on a machine with a network and name the file as the source"
            ) from None
    return file


def read_checkpoint(reward: str, file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU. No code in the file is run.

    The checkpoint of a training run has them under "state_dict". The prefix "module." of distributed training
    is removed.

    Raises:
        RewardError: the file is broken or holds something else.
    """

    def named(content: Any) -> dict[str, Tensor]:
        tensors = content.get("state_dict", content) if isinstance(content, Mapping) else None
        if not isinstance(tensors, Mapping) or not any(isinstance(one, Tensor) for one in tensors.values()):
            raise RewardError(
                f"{reward}: {file} must hold tensors by name, got {type(content).__name__}; download it again"
            )
        return {
            str(name).removeprefix("module."): value
            for name, value in tensors.items()
            if isinstance(value, Tensor)
        }

    try:
        read: dict[str, Tensor] = read_pickle(file, named)
    except FAILURES as error:
        raise RewardError(
            f"{reward}: {file} cannot be read as torch.save weights ({first_sentence(error)}); download "
            "it again"
        ) from None
    return read


class _Inert:
    """Stand-in for every class and function that a pickled module names."""

    def __init__(self, *args: Any) -> None:
        pass


def read_module(reward: str, file: Path) -> dict[str, Tensor]:
    """Return the tensors by name of a whole module saved by torch.save, on the CPU. No code is run.

    The classes and functions that the file names are replaced by an empty class, so they need not be
    installed. Other files are read as by `read_checkpoint`.

    Raises:
        RewardError: the file is broken or holds something else.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        with torch.serialization.safe_globals([(_Inert, name) for name in names]):
            tensors: dict[str, Tensor] = read_pickle(file, lambda content: dict(_tensors_of(content)))
    except FAILURES:
        tensors = {}
    return tensors or read_checkpoint(reward, file)


def _tensors_of(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    own = {**getattr(module, "_parameters", {}), **getattr(module, "_buffers", {})}
    yield from ((prefix + name, tensor) for name, tensor in own.items() if isinstance(tensor, Tensor))
    for name, child in getattr(module, "_modules", {}).items():
        yield from _tensors_of(child, f"{prefix}{name}.")


def shape_of(reward: str, file: Path, tensors: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    """Return the shape of one of the tensors.

    Raises:
        RewardError: the tensor is missing or does not have `dims` dimensions.
    """
    shape = tuple(tensors[name].shape) if name in tensors else None
    if shape is None or len(shape) != dims:
        raise RewardError(
            f"{reward}: {file} must hold {name} with {dims} dimensions, got {shape}; the file belongs to "
            "another model, so name another one as the source"
        )
    return shape


def heads_of(reward: str, file: Path, what: str, width: int, head_width: int) -> int:
    """Return the number of attention heads of a transformer, which cannot be read from its tensors.

    Args:
        what: part of the model, for the error.
        width: width of the transformer.
        head_width: width of a head.

    Raises:
        RewardError: the width is not a multiple of the head width.
    """
    if width % head_width:
        raise RewardError(
            f"{reward}: the width of {what} in {file} must be a multiple of {head_width}, got {width}; the "
            "file belongs to another model, so name another one as the source"
        )
    return width // head_width


def count_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of layers; the names of their tensors begin with prefix + "0.", prefix + "1.", ..."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    return len(numbers)
