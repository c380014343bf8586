"""Custom rewards: the user's code, named MODULE:NAME or FILE.py:NAME."""

import importlib
import os
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from ..hub import first_sentence
from ..sampling import Reward
from .checks import RewardError

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

    Modules are searched among the installed ones first, then in the current directory. The reward gets images
    on the device of the run. It gets videos (B, 3, F, H, W) if its attribute `takes_videos` is true, else
    images.

    Raises:
        RewardError: the module cannot be imported, does not define the name, or defines something that is not
            callable.
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
    if not callable(reward):
        raise RewardError(
            f"load_reward: {name!r} must be callable as reward(images, prompts), got "
            f"{type(reward).__name__}; name a function"
        )
    loaded: Reward = reward
    return loaded


def _from_module(name: str, module: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # stays: the reward may import more when it is called
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _failed(name, error) from error
        raise RewardError(
            f"load_reward: there is neither a module {error.name!r} nor a bundled reward for {name!r}; run "
            "in the folder of the module, or write FILE.py:NAME"
        ) from None
    except Exception as error:
        raise _failed(name, error) from error


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
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise _failed(name, error) from error
    return module


def _failed(name: str, error: Exception) -> RewardError:
    reason = f"{type(error).__name__}: {first_sentence(error)}"
    return RewardError(
        f"load_reward: the code of the reward {name!r} fails when it is imported ({reason}); correct it there"
    )
