"""Options that choose the sampler: --method, and shorthands generated from the samplers' parameters."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import click

from ..sampling.methods import Method, split_method
from ..sampling.registry import REQUIRED, SAMPLERS, Parameter, Sampler
from .errors import explained
from .options import Command, Decorator, combine

_COMMANDS = {"flow": "noisetilt sample", "one-step": "noisetilt optimize"}


def method_options(kind: Literal["flow", "one-step"], default: str) -> Decorator:
    """Add --method and a shorthand such as --rho for each parameter of the samplers of one kind.

    Types, choices, defaults and helps come from the samplers' signatures and docstrings. The command gets a
    `Method` as its argument `method`.

    Args:
        kind: kind of the samplers, see `Sampler`.
        default: name of the default sampler.
    """
    samplers = [sampler for sampler in SAMPLERS.values() if sampler.kind == kind]
    names = list(dict.fromkeys(name for sampler in samplers for name in sampler.parameters))
    options: list[Decorator] = [
        click.option(
            "--method",
            "method_text",
            default=default,
            show_default=True,
            metavar="NAME[:OPTION=VALUE,...]",
            help=_method_help(samplers),
        ),
        *(_shorthand(name, samplers) for name in names),
    ]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_method(method_text: str, **values: Any) -> None:
            shorthands = {name: values.pop(name) for name in names}
            given = {name: value for name, value in shorthands.items() if value is not None}
            with explained():
                method = _method_of(kind, method_text, given)
            command(method=method, **values)

        return combine(*options)(with_method)

    return decorate


def _method_of(kind: str, text: str, shorthands: Mapping[str, Any]) -> Method:
    """Return the method of --method and of the shorthands given beside it.

    Raises:
        click.UsageError: the sampler is of another kind, does not have a shorthand's parameter, or gets a
            parameter twice.
        ValueError: see `split_method` and `Method`.
    """
    name, arguments = split_method(text)
    sampler = SAMPLERS.get(name)
    if sampler is None or sampler.kind != kind:
        names = ", ".join(other for other, one in SAMPLERS.items() if one.kind == kind)
        hint = f"; {name} is for `{_COMMANDS[sampler.kind]}`" if sampler else ""
        raise click.UsageError(f"--method must be one of {names}, got {name!r}{hint}")
    for option, value in shorthands.items():
        if option not in sampler.parameters:
            options = ", ".join(map(_flag, sampler.parameters))
            raise click.UsageError(f"{_flag(option)} is not an option of {name}; it has {options}")
        if option in arguments:
            raise click.UsageError(
                f"{option} is given twice: {_flag(option)} {value} and --method {text}; leave one out"
            )
    arguments = {**arguments, **shorthands}
    if "scale" in shorthands and "schedule" not in arguments:
        arguments["schedule"] = sampler.parameters["schedule"].default
    return Method(name, arguments)


def _shorthand(name: str, samplers: Sequence[Sampler]) -> Decorator:
    takers = {sampler.name: sampler.parameters[name] for sampler in samplers if name in sampler.parameters}
    first = next(iter(takers.values()))
    notes = [f"{', '.join(takers)} only"] if len(takers) < len(samplers) else []
    defaults = {taker: _default_note(parameter) for taker, parameter in takers.items()}
    if len(set(defaults.values())) == 1:
        notes.append(_default_note(first))
    else:
        notes += [f"{taker}: {note}" for taker, note in defaults.items()]
    help_text = next((parameter.help for parameter in takers.values() if parameter.help), "")
    return click.option(
        _flag(name),
        name,
        type=click.Choice(first.choices) if first.choices else first.type,
        help=f"{help_text}  [{'; '.join(notes)}]",
    )


def _default_note(parameter: Parameter) -> str:
    if parameter.default is REQUIRED:
        return "required"
    if parameter.default is None:
        return "default: set by the schedule"
    return f"default: {parameter.default}"


def _method_help(samplers: Sequence[Sampler]) -> str:
    names = [sampler.name for sampler in samplers]
    if len(names) == 1:
        return f"Sampler ({names[0]}) with its options. The options below are shorthands."
    return (
        f"Sampler ({', '.join(names[:-1])} or {names[-1]}) with its options, such as "
        "ntrk:rho=0.1,operator=w. The options below are shorthands."
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
