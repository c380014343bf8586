"""Loading FLUX: a folder or a model of the Hugging Face hub to a FluxPipeline, or one sentence on what is wrong."""

import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers.utils.hub import cached_file

from ..rewards.digits import ASSETS

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_INDEX = "model_index.json"

IN_THE_BOX = {"digits": ASSETS / "digits", "digits-turbo": ASSETS / "digits-turbo"}
"""Models that come with the package: a flow that draws handwritten digits, and its one-step student."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")


class ModelError(ValueError):
    """A model cannot be loaded. The message is one sentence for whoever named the model, with the way out."""


def load_flux(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device | None = None,
    offload: bool = False,
    lora: str | Path | None = None,
) -> FluxPipeline:
    """Load a FluxPipeline.

    Args:
        source: "digits" or "digits-turbo", which come with the package; a folder, as `pipe.save_pretrained` or a
            download makes it, which is loaded without the network; or the id of a model of the hub, such as
            "black-forest-labs/FLUX.1-dev", which is downloaded once.
        dtype: of all models; FLUX was made for bfloat16.
        device: None is the GPU, if there is one, else the CPU.
        offload: keep models on the CPU while they are not at work, see `FluxFlow`.
        lora: a file, folder or hub id of LoRA weights, `place` or `place:file name`; it needs peft.

    Raises:
        ModelError: there is no such model, it is not FLUX, it is incomplete, it does not fit into the device's memory.
        ValueError: offload on a CPU.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if offload and device.type == "cpu":
        raise ValueError("load_flux: offload must be False where device is the CPU, as everything is there already")
    place = _flux(str(source))
    if place.local:
        _check_tokenizers(Path(place.name))
    with _one_sentence(str(source)):
        # pickled weights could run code, and FLUX's are not pickled
        pipe = FluxPipeline.from_pretrained(place.name, dtype=dtype, local_files_only=place.local, use_safetensors=True)
    if lora is not None:
        _add_lora(pipe, str(lora))
    try:
        if offload:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
    except torch.OutOfMemoryError:
        raise ModelError(
            f"load_flux: {str(source)!r} does not fit into the memory of {device}; offload=True needs less"
        ) from None
    return pipe


class Configurations(NamedTuple):
    """What a FluxPipeline says of itself."""

    models: dict[str, dict[str, Any]]
    """Of its transformer, VAE and text encoders, by name."""
    prompt_length: int
    """Tokens that T5's tokenizer takes."""


def configurations(source: str | Path) -> Configurations:
    """The configurations of a FluxPipeline, without its weights.

    Args:
        source: as of `load_flux`; of a model of the hub only a few small files are downloaded.

    Raises:
        ModelError: there is no such model, or it is not FLUX.
    """
    place = _flux(str(source))
    with _one_sentence(str(source)):
        tokenizer = cached_file(
            place.name, "tokenizer_config.json", subfolder="tokenizer_2", local_files_only=place.local
        )
        return Configurations(
            {
                name: FluxTransformer2DModel.load_config(place.name, subfolder=name, local_files_only=place.local)
                for name in ("transformer", "vae", "text_encoder", "text_encoder_2")
            },
            json.loads(Path(tokenizer).read_text(encoding="utf-8"))["model_max_length"],
        )


class _Place(NamedTuple):
    name: str
    """A path, or an id of the hub."""
    local: bool


def _find(source: str) -> _Place:
    path = IN_THE_BOX.get(source, Path(source).expanduser())
    if path.is_dir():
        if not (path / _INDEX).is_file():
            raise ModelError(
                f"load_flux: the folder {source!r} has no {_INDEX}, and holds no pipeline in diffusers' layout, as "
                "pipe.save_pretrained(folder) makes it"
            )
        return _Place(str(path), local=True)
    if path.exists():
        raise ModelError(f"load_flux: {source!r} is a file; the folder of a pipeline is needed, with its {_INDEX}")
    if not _HUB_ID.fullmatch(source):
        raise ModelError(
            f"load_flux: there is no folder {source!r}; give one, or an id such as 'black-forest-labs/FLUX.1-dev'"
        )
    return _Place(source, local=False)


def _flux(source: str) -> _Place:
    """Where a FluxPipeline is, after a look at what it says it is."""
    place = _find(source)
    with _one_sentence(source):
        kind = FluxPipeline.load_config(place.name, local_files_only=place.local).get("_class_name")
    if kind != FluxPipeline.__name__:
        raise ModelError(f"load_flux: {source!r} is a {kind}, and a FluxPipeline is needed")
    return place


def _check_tokenizers(folder: Path) -> None:
    # without its files transformers makes a tokenizer with an empty vocabulary, and says nothing
    for name in ("tokenizer", "tokenizer_2"):
        if not any((folder / name / file).is_file() for file in _VOCABULARIES):
            raise ModelError(f"load_flux: {str(folder)!r} has no vocabulary in {name}; download or save it anew")


def _add_lora(pipe: FluxPipeline, lora: str) -> None:
    if importlib.util.find_spec("peft") is None:
        raise ModelError("load_flux: lora needs peft: pip install peft")
    name, file = lora, None
    if ":" in lora and not Path(lora).expanduser().exists():
        name, file = lora.rsplit(":", 1)
    path = Path(name).expanduser()
    if not path.exists() and not _HUB_ID.fullmatch(name):
        raise ModelError(f"load_flux: there is no LoRA {name!r}; give a file, a folder or an id of the hub")
    with _one_sentence(lora):
        pipe.load_lora_weights(str(path) if path.exists() else name, weight_name=file)
    if not pipe.get_list_adapters():
        # diffusers only logs it
        raise ModelError(f"load_flux: {lora!r} holds no LoRA weights of FLUX; it may be of another model")


@contextmanager
def _one_sentence(source: str) -> Iterator[None]:
    """Turns whatever is raised in the block into a ModelError."""
    try:
        yield
    except Exception as error:
        raise ModelError(f"load_flux: {_explain(source, error)}") from None


def _explain(source: str, error: BaseException) -> str:
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None:
        chain.append(following)
        following = following.__cause__ or following.__context__

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in chain)

    if is_any(GatedRepoError):
        return f"{source!r} wants its licence accepted on its page of the hub, and `hf auth login` after it"
    if is_any(RepositoryNotFoundError):
        return (
            f"{source!r} is neither a folder here nor a model of the hub; if it is private there, `hf auth login` first"
        )
    if is_any(LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError):
        return f"{source!r} is not a folder here and the hub cannot be reached; check the network, or give a folder"
    first = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    return f"{source!r} cannot be loaded: {first}; if it is incomplete, download or save it anew"
