"""Checks of arguments. The errors name the function, the argument, the value and the valid values."""

import difflib
import functools
import json
import math
import reprlib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LONGEST = 100  # characters of a value in a message
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = _LONGEST


class NoisetiltError(Exception):
    """Base class of all errors that this package defines. The message says what went wrong and what to do."""


def shown(value: Any) -> str:
    """Return a value as short text on one line, for a message. An array or a tensor is shown by its shape."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"{type(value).__name__} of shape {tuple(shape)}"
    text = " ".join(_short.repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def check_integer(function: str, name: str, value: Any, least: int) -> None:
    """Raise TypeError or ValueError unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{function}: {name} must be an integer, got {shown(value)}")
    if value < least:
        raise ValueError(f"{function}: {name} must be at least {least}, got {value}")


def check_number(function: str, name: str, value: Any, least: float, most: float = math.inf) -> None:
    """Raise TypeError or ValueError unless `value` is a finite number in [least, most]."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{function}: {name} must be a number, got {shown(value)}")
    if not (least <= value <= most and math.isfinite(value)):
        wanted = f"in [{least:g}, {most:g}]" if math.isfinite(most) else f"finite and at least {least:g}"
        raise ValueError(f"{function}: {name} must be {wanted}, got {value}")


def finite_number(text: str) -> float | None:
    """Return the finite number that a text writes, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def check_choice(function: str, name: str, value: Any, valid: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of the valid names."""
    valid = list(valid)
    if not isinstance(value, str) or value not in valid:
        raise ValueError(
            f"{function}: unknown {name} {shown(value)}{did_you_mean(value, valid)}; "
            f"valid: {', '.join(map(repr, valid))}"
        )


def did_you_mean(name: Any, valid: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" with the valid name that is most similar, or "" if none is similar."""
    similar = difflib.get_close_matches(str(name), list(valid), n=1)
    return f" (did you mean {similar[0]!r}?)" if similar else ""


def prompt_list(function: str, prompts: str | Sequence[str]) -> list[str]:
    """Return the prompts as a list, one for each particle. A single string is one particle."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(
            f"{function}: prompts must be a string or a sequence of strings, got {shown(prompts)}"
        )
    if not prompts:
        raise ValueError(f"{function}: prompts must not be empty; pass one prompt for each particle")
    return list(prompts)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user: the innermost one outside of this package, torch and Python's imports."""
    package = __name__.partition(".")[0]
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (
        "importlib",
        "_frozen_importlib",
        "noisetilt_cli",
        package,
        "torch",
    ):
        frame = frame.f_back
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno)


@functools.cache
def warn_once(message: str) -> None:
    """Give a RuntimeWarning, once in a process for each message."""
    warn(message, RuntimeWarning)


def json_fields(text: str | bytes, kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Return the named fields of a JSON object.

    Args:
        text: JSON text, as str or in UTF-8.
        kinds: types that each field may have. bool does not count as int.

    Raises:
        ValueError: the text is not JSON, is not an object, lacks a field, or a field has another type.
    """
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"it is {shown(values)}, not an object")
    for name, valid in kinds.items():
        if name not in values:
            raise ValueError(f"it has no {name!r}")
        if type(values[name]) not in valid:
            raise ValueError(f"its {name!r} is {shown(values[name])}")
    return {name: values[name] for name in kinds}
