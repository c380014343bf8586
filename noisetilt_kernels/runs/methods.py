"""The samplers by name, with the options that each takes: what the commands and the run folder speak of."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..checks import check_choice
from ..sampling import FlowModel, OneStepModel, Result, Reward, Run, Schedule, base, dps, ntrk, svdd, wgnc
from ..sampling.operators import operator_by_name

_SAMPLERS: dict[str, Callable[..., Result]] = {
    "base": base,
    "ntrk": ntrk,
    "dps": dps,
    "svdd": svdd,
    "wgnc": wgnc,
}

FLOW_METHODS = ("base", "ntrk", "dps", "svdd")
"""For flows; "wgnc" is for one-step models."""


def _options(name: str) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(_SAMPLERS[name]).parameters
    return {
        option: parameter
        for option, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and option != "run"
    }


class _Checked(Exception):
    """The sampler has come as far as its first forward."""


class _NoModel:
    """Lets a sampler check its arguments and start."""

    shape, device = (4, 16, 16), torch.device("cpu")

    def sigmas(self, n: int) -> torch.Tensor:
        return torch.linspace(1, 0, n + 1, dtype=torch.float64)

    def velocity(self, *_: Any) -> torch.Tensor:
        raise _Checked

    generate = decode = velocity


@dataclass(frozen=True)
class Method:
    """A sampler and its options; what is not given is the sampler's own default.

    Args:
        name: "base", "ntrk", "dps", "svdd" or "wgnc".
        options: keyword arguments of the sampler; `schedule` and `scale` stand for a `Schedule`.

    Raises:
        ValueError: an unknown name, an option that the sampler does not have, or one that it needs and lacks.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_choice("Method", "method", self.name, _SAMPLERS)
        valid = _options(self.name)
        names = {**valid, "scale": None} if "schedule" in valid else valid
        for option in self.options:
            if option not in names:
                raise ValueError(f"{self.name} has no option {option!r}; it has: {', '.join(names)}")
        if "scale" in self.options and "schedule" not in self.options:
            raise ValueError(f"{self.name}: scale={self.options['scale']} needs the schedule that it scales")
        for option, parameter in valid.items():
            if parameter.default is inspect.Parameter.empty and option not in self.options:
                raise ValueError(
                    f"{self.name} needs {option}, which has no default since it depends on the reward"
                )

    def sample(
        self, model: FlowModel | OneStepModel, reward: Reward, prompts: str | Sequence[str], run: Run
    ) -> Result:
        """Runs the sampler."""
        options = dict(self.options)
        if "schedule" in options:
            options["schedule"] = Schedule(options["schedule"], options.pop("scale", None))
        return _SAMPLERS[self.name](model, reward, prompts, run=run, **options)

    def check(self) -> None:
        """Raises ValueError for an option out of its range: the sampler's own checks, which come before any work."""
        try:
            self.sample(_NoModel(), lambda images, prompts: images, "", Run())
        except _Checked:
            pass
        except TypeError as error:
            raise ValueError(str(error)) from None

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError if the method's operator does not take latents of this shape."""
        if "operator" in _options(self.name):
            operator_by_name(self.name, self.option("operator"), shape)

    @property
    def gradient(self) -> bool:
        """Whether the reward's gradient steers."""
        return self.name not in ("base", "svdd")

    @property
    def nfe(self) -> int:
        """Forwards of the model for each particle."""
        if self.name == "wgnc":
            return self.option("iterations") + 1
        if self.name == "svdd":
            return 1 + self.option("candidates") * (self.option("steps") - 1)
        return self.option("steps")

    def at_once(self, micro_batch: int) -> int:
        """Particles that are together in a micro-batch of so many entries."""
        return max(1, micro_batch // self.option("candidates")) if self.name == "svdd" else micro_batch

    def option(self, name: str) -> Any:
        """The value of an option, given or by default."""
        return self.options[name] if name in self.options else _options(self.name)[name].default

    def __str__(self) -> str:
        """As `parse_method` reads it."""
        options = ",".join(f"{option}={value}" for option, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name


def parse_method(text: str) -> Method:
    """A method written as "ntrk" or "ntrk:rho=0.1,operator=w".

    Raises:
        ValueError: it is not written so, an option is given twice, or as of `Method`.
    """
    name, _, listed = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, listed.split(",")):
        option, equals, value = part.partition("=")
        if not equals or not value:
            raise ValueError(f"method {text!r}: {part!r} must be written option=value")
        if option.strip() in options:
            raise ValueError(f"method {text!r}: {option.strip()} must be given once")
        options[option.strip()] = _value(value.strip())
    return Method(name.strip(), options)


def _value(text: str) -> int | float | str:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            pass
    return text
