"""A reward of one's own by name: MODULE:NAME, or FILE.py:NAME."""

import importlib
import os
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from ..sampling import Reward
from .checks import RewardError, first_line

_IDENTIFIER = r"[^\W\d]\w*"
_FORM = re.compile(rf"(?:{_IDENTIFIER}(?:\.{_IDENTIFIER})*|.+\.py):{_IDENTIFIER}")


def is_own(name: str) -> bool:
    """Whether a name is written MODULE:NAME or FILE.py:NAME; nothing is looked for."""
    return _FORM.fullmatch(name) is not None


def load_own(name: str) -> Reward:
    """What a name of that form is the name of: a function reward(images, prompts) -> (B,), or an object called so.

    Modules are also looked for in the current directory, after what is installed. The reward is used as it is: on the
    device of the images that it is given, and of videos (B, 3, F, H, W) if its attribute `takes_videos` is true.

    Raises:
        RewardError: the module cannot be imported, has nothing of that name, or it cannot be called.
    """
    source, _, attribute = name.rpartition(":")
    module = _from_file(name, Path(source)) if source.endswith(".py") else _from_module(name, source)
    if not hasattr(module, attribute):
        raise RewardError(
            f"load_reward: {source} has no {attribute!r}, which the reward {name!r} needs; define it there, or "
            "correct the name"
        )
    reward: Any = getattr(module, attribute)
    if isinstance(reward, type):
        raise RewardError(
            f"load_reward: {name!r} must be a function or an object, got a class; make an object of it in {source} "
            "and name that"
        )
    if not callable(reward):
        raise RewardError(
            f"load_reward: {name!r} must be callable as reward(images, prompts), got {type(reward).__name__}; name a "
            "function"
        )
    loaded: Reward = reward
    return loaded


def _from_module(name: str, module: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # for good: functions may import when they are called
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _failed(name, error) from error
        raise RewardError(
            f"load_reward: there is no module {error.name!r}, nor a reward in the box, for {name!r}; run in the "
            "folder that has it, or write FILE.py:NAME"
        ) from None
    except Exception as error:
        raise _failed(name, error) from error


def _from_file(name: str, file: Path) -> ModuleType:
    key = str(file.resolve())
    if key in sys.modules:
        return sys.modules[key]
    if not file.is_file():
        raise RewardError(f"load_reward: there is no file {file} for the reward {name!r}; correct the path")
    spec = spec_from_file_location(key, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[key] = module  # dataclasses look there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise _failed(name, error) from error
    return module


def _failed(name: str, error: Exception) -> RewardError:
    reason = f"{type(error).__name__}: {first_line(error)}"
    return RewardError(
        f"load_reward: the code of the reward {name!r} fails when it is imported ({reason}); correct it there"
    )
