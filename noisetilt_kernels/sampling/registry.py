"""Registry of the samplers, with the facts that commands need about each."""

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

from .algorithm import Algorithm
from .guided import GuidedSteps
from .operators import OPERATORS
from .result import Result
from .schedules import SCHEDULES, VP_SCHEDULES, Schedule
from .starts import PCNL, STARTS, start_of

REQUIRED = inspect.Parameter.empty
"""Default of a parameter that must be given."""

# Names of these parameters; those of another one are in its annotation, a `Literal`.
_CHOICES = {"operator": OPERATORS, "schedule": (*SCHEDULES, *VP_SCHEDULES), "start": STARTS}


class Details(NamedTuple):
    """Parameters of every sampler that describe the value of another one, such as `scale` the `schedule`."""

    make: Callable[..., Any]
    """Function that makes the described value from these arguments, and from its name before them."""
    described_by: Callable[..., Any]
    """Function with these arguments in its signature and docstring."""
    arguments: Mapping[str, str]
    """Argument of the functions for the name of each parameter."""
    needed: tuple[str, ...] | None = None
    """Names that have these details; None is all of them."""
    named: bool = True
    """False for a value that has these details and no name. Each of them is left out at its default."""

    def apply_to(self, value: str | None) -> bool:
        """Return True if a parameter with this value, or None if it is not given, has these details."""
        return not self.named or (value is not None and (self.needed is None or value in self.needed))


DETAILS: Mapping[str, Details] = {
    "schedule": Details(Schedule, Schedule, {"scale": "scale"}),
    "start": Details(
        start_of, PCNL, {f"start_{name}": name for name in inspect.signature(PCNL).parameters}, ("pcnl",)
    ),
    "guide": Details(
        GuidedSteps,
        GuidedSteps,
        {"guide_every": "every", "guide_from": "from_t", "guide_until": "until_t"},
        named=False,
    ),
}
"""Details of a parameter by its name."""


class Parameter(NamedTuple):
    """Parameter of a sampler, read from its signature and docstring."""

    type: type
    """Type of a value on the command line: int, float or str."""
    default: Any
    """Default value, or REQUIRED."""
    help: str
    """First sentence of the description in the docstring."""
    choices: tuple[str, ...] | None = None
    """Valid values of a parameter that takes a name."""


@dataclass(frozen=True, eq=False)
class Sampler:
    """Description of a sampler. `arguments` below are the values of all its parameters.

    Args:
        name: name of the sampler.
        function: the sampler, called as function(model, reward, prompts, options=..., **arguments).
        algorithm: class of the steps, called with the arguments by keyword. It raises ValueError or TypeError
            for an argument out of its range.
        kind: "flow" for a `FlowModel`, "one-step" for a `OneStepModel`.
        needs_gradient: the sampler uses the gradient of the reward.
        nfe: function that maps the arguments to the number of function evaluations of a particle.
        entries: function that maps the arguments to the number of batch entries of a particle at once.
        alone: particles run one after another, because a forward depends on the reward of the one before.
    """

    name: str
    function: Callable[..., Result]
    algorithm: Callable[..., Algorithm[Any]]
    kind: Literal["flow", "one-step"]
    needs_gradient: bool
    nfe: Callable[[Mapping[str, Any]], int]
    entries: Callable[[Mapping[str, Any]], int]
    alone: bool

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Parameters by name. Its `DETAILS` follow a parameter, such as `scale` after `schedule`."""
        found: dict[str, Parameter] = {}
        for name in self.keywords:
            details = self.details.get(name)
            if details is None or details.named:
                found[name] = _parameter_of(self.function, name)
            if details is not None:
                for detail, argument in details.arguments.items():
                    found[detail] = _parameter_of(details.described_by, argument)
        return found

    @cached_property
    def details(self) -> Mapping[str, Details]:
        """`DETAILS` of the parameters that the sampler has."""
        return {name: DETAILS[name] for name in self.keywords if name in DETAILS}

    @property
    def keywords(self) -> list[str]:
        """Names of the arguments of the function, without model, reward, prompts and options."""
        parameters = inspect.signature(self.function).parameters.values()
        return [
            one.name
            for one in parameters
            if one.kind is inspect.Parameter.KEYWORD_ONLY and one.name != "options"
        ]

    @property
    def defaults(self) -> dict[str, Any]:
        """Default values of the arguments of the function that have one."""
        parameters = inspect.signature(self.function).parameters
        return {
            name: parameters[name].default
            for name in self.keywords
            if parameters[name].default is not REQUIRED
        }

    def known(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return arguments of the function, or raise TypeError for a name that it does not have."""
        unknown = sorted(set(arguments) - set(self.keywords))
        if unknown:
            raise TypeError(
                f"{self.name}: unknown {', '.join(unknown)}; its arguments are {', '.join(self.keywords)}"
            )
        return arguments

    def completed(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments of the function, given or by default.

        Raises:
            TypeError: an argument is unknown or missing.
        """
        given = {**self.defaults, **self.known(arguments)}
        missing = [name for name in self.keywords if name not in given]
        if missing:
            raise TypeError(f"{self.name}: missing {', '.join(missing)}")
        return given


SAMPLERS: dict[str, Sampler] = {}
"""Description of every sampler by name."""

_Function = TypeVar("_Function", bound=Callable[..., Result])


def register_sampler(
    *,
    kind: Literal["flow", "one-step"],
    needs_gradient: bool,
    algorithm: Callable[..., Algorithm[Any]],
    nfe: Callable[[Mapping[str, Any]], int],
    entries: Callable[[Mapping[str, Any]], int] = lambda arguments: 1,
    alone: bool = False,
) -> Callable[[_Function], _Function]:
    """Return a decorator that adds a sampler to SAMPLERS under the name of its function.

    For the arguments see `Sampler`.

    Raises:
        ValueError: the name is taken.
    """

    def register(function: _Function) -> _Function:
        name = function.__name__
        if name in SAMPLERS:
            raise ValueError(f"register_sampler: the name {name!r} is taken; rename the function")
        SAMPLERS[name] = Sampler(name, function, algorithm, kind, needs_gradient, nfe, entries, alone)
        return function

    return register


def _parameter_of(function: Callable[..., Any], name: str) -> Parameter:
    """Read a parameter from the signature and the docstring of a function.

    Raises:
        TypeError: the annotation is no `Literal` of names and has none of int, float and str.
    """
    hint = typing.get_type_hints(function).get(name)
    names = typing.get_args(hint) if typing.get_origin(hint) is Literal else None
    union = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()
    kind = str if names else next((kind for kind in (hint, *union) if kind in (int, float, str)), None)
    if kind is None:
        raise TypeError(
            f"{function.__name__}: {name} must be annotated with int, float, str or a union with one, "
            f"got {hint!r}"
        )
    default = inspect.signature(function).parameters[name].default
    return Parameter(kind, default, _helps_of(function).get(name, ""), names or _CHOICES.get(name))


def _helps_of(function: Callable[..., Any]) -> dict[str, str]:
    """Return the first sentence about each argument in the Args section of a docstring."""
    section = re.search(r"^Args:\n((?: .*\n|\n)+)", f"{inspect.getdoc(function)}\n", re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1], re.MULTILINE) if section else []
    texts = {name: " ".join(text.split()).split(". ")[0].rstrip(".") for name, text in entries}
    return {name: f"{text[0].upper()}{text[1:]}." for name, text in texts.items()}
