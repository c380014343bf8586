"""Custom rewards: the user's code, named MODULE:NAME or FILE.py:NAME."""

import functools
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.utils import checkpoint

from ..checks import NoisetiltError
from ..hub import first_sentence
from ..sampling import Reward
from ..sampling.protocols import check_reward
from .checks import RewardError, is_out_of_memory
from .frames import takes_videos

_IDENTIFIER = r"[^\W\d]\w*"
_FORM = re.compile(rf"(?:{_IDENTIFIER}(?:\.{_IDENTIFIER})*|.+\.py):{_IDENTIFIER}")


def is_custom(name: str) -> bool:
    """Return True if a name has the form MODULE:NAME or FILE.py:NAME; nothing is imported."""
    return _FORM.fullmatch(name) is not None


def check_custom(name: str) -> None:
    """Raise RewardError if a custom reward is in a file that does not exist; nothing is imported."""
    file = name.rpartition(":")[0]
    if file.endswith(".py") and not Path(file).is_file():
        raise RewardError(f"load_reward: there is no file {file} for the reward {name!r}; correct the path")


def load_custom(name: str) -> Reward:
    """Return the custom reward of this name: a callable reward(images, prompts) -> (B,).

    An exception of the reward becomes a RewardError that names the reward, the file and the line.

    Modules are searched among the installed ones first, then in the current directory. The reward gets images
    on the device of the run. It gets videos (B, 3, F, H, W) if its attribute `takes_videos` is true, else
    images.

    Raises:
        RewardError: the module cannot be imported, does not define the name, or defines something that cannot
            be called with images and prompts.
    """
    source, _, attribute = name.rpartition(":")
    module = _from_file(name, Path(source)) if source.endswith(".py") else _from_module(name, source)
    if not hasattr(module, attribute):
        raise RewardError(
            f"load_reward: {source} has no {attribute!r}, which the reward {name!r} needs; define it there, "
            "or correct the name"
        )
    reward: Any = getattr(module, attribute)
    if isinstance(reward, type):
        raise RewardError(
            f"load_reward: {name!r} must be a function or an object, got a class; create an object in "
            f"{source} and name that object"
        )
    try:
        check_reward("load_reward", reward, repr(name))
    except TypeError as error:
        raise RewardError(str(error)) from None

    @functools.wraps(reward, updated=())
    def explained(images: Tensor, prompts: Sequence[str]) -> Tensor:
        with _errors_explained(f"reward {name!r} fails", getattr(module, "__file__", None)):
            values: Tensor = reward(images, prompts)
        return values

    setattr(explained, "takes_videos", takes_videos(reward))  # noqa: B010, unknown to mypy
    return explained


def _from_module(name: str, module: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # stays: the reward may import more when it is called
    importlib.invalidate_caches()
    with _errors_explained(f"load_reward: the code of the reward {name!r} fails when it is imported"):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            raise RewardError(
                f"load_reward: there is neither a module {error.name!r} nor a bundled reward for {name!r}; "
                "run in the folder of the module, or write FILE.py:NAME"
            ) from None


def _from_file(name: str, file: Path) -> ModuleType:
    key = str(file.resolve())
    if key in sys.modules:
        return sys.modules[key]
    check_custom(name)
    spec = spec_from_file_location(key, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[key] = module  # dataclasses look up their module there
    try:
        with _errors_explained(
            f"load_reward: the code of the reward {name!r} fails when it is imported", key
        ):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]
        raise
    return module


@contextmanager
def _errors_explained(what: str, file: str | None = None) -> Iterator[None]:
    """Turn an exception of the user's code, sys.exit included, into a RewardError with its file and line.

    Errors of this package, of memory, and Ctrl-C pass. So does the exception by which torch.utils.checkpoint
    stops its second computation early.

    Args:
        what: beginning of the message.
        file: file of the user's module, if it is known.
    """
    try:
        yield
    except NoisetiltError:
        raise
    except SystemExit as error:
        raise RewardError(
            f"{what} with sys.exit({error.code!r}){_place(error, file)}; raise an exception instead"
        ) from error
    except Exception as error:
        if is_out_of_memory(error) or type(error).__module__ == checkpoint.__name__:
            raise
        reason = f"{type(error).__name__}: {first_sentence(error)}"
        raise RewardError(f"{what}{_place(error, file)}: {reason}; correct it there") from error


def _place(error: BaseException, file: str | None) -> str:
    """Return " in FILE, line N" for the last line of the user's folder that led to the error."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f" in {error.filename}, line {error.lineno}"
    outside = (str(Path(__file__).parents[1]), os.path.dirname(importlib.__file__), "<frozen")
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(outside)
    ]
    if not frames:
        return f" in {file}" if file is not None else ""
    folder = os.path.dirname(file or frames[0].filename)
    frame = [frame for frame in frames if os.path.dirname(frame.filename) == folder or frame is frames[0]][-1]
    return f" in {frame.filename}, line {frame.lineno}"
