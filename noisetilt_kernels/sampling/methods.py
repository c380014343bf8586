"""Methods: a sampler by name with its arguments, as commands and run folders write it."""

from collections import UserDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..checks import check_choice, did_you_mean
from .flow import ALL_STEPS, plan_flow
from .guided import GuidedSteps
from .operators import operator_by_name
from .options import SamplerOptions
from .protocols import FlowModel, OneStepModel, Reward
from .registry import REQUIRED, SAMPLERS, Sampler
from .result import Result
from .schedules import Schedule
from .steps import Step
from .stepwise import SamplingRun, stepwise


@dataclass(frozen=True)
class Method:
    """A sampler and its arguments. A missing argument has the sampler's default.

    Args:
        name: name of a sampler in SAMPLERS.
        arguments: keyword arguments of the sampler; `schedule` and `scale` describe a `Schedule`, `start` and
            `start_iterations` etc. a `Start`, `guide_every` etc. the `GuidedSteps`.

    Raises:
        ValueError: an unknown name, an argument that the sampler does not have, or a missing one without a
            default.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_choice("Method", "method", self.name, SAMPLERS)
        parameters = self.sampler.parameters
        for name in self.arguments:
            if name not in parameters:
                raise ValueError(
                    f"{self.name} has no argument {name!r}{did_you_mean(name, parameters)}; "
                    f"it has: {', '.join(parameters)}"
                )
        for owner, details in self.sampler.details.items():
            for name in self.arguments:
                if name in details.arguments and not details.apply_to(self.arguments.get(owner)):
                    wanted = "NAME" if details.needed is None else " or ".join(details.needed)
                    raise ValueError(
                        f"{self.name}: {name}={self.arguments[name]} needs a {owner}; add {owner}={wanted}"
                    )
        for name, parameter in parameters.items():
            if parameter.default is REQUIRED and name not in self.arguments:
                raise ValueError(
                    f"{self.name} needs {name}, which has no default because it depends on the reward"
                )

    def resolved(self, defaults: Mapping[str, Any] = MappingProxyType({})) -> "Method":
        """Return the method with a value for every argument: given, by `defaults`, or by the sampler.

        An argument that follows another one by default, such as `chain_alpha` of `psi`, is left out.
        The arguments of a start that the method does not have are left out, and those of the guided steps at
        their defaults.

        Args:
            defaults: values by name that take precedence over the sampler's defaults. Names that the sampler
                does not have are not used.

        Raises:
            ValueError: the schedule is unknown.
        """
        arguments = {
            **self._all_arguments,
            **{
                name: value
                for name, value in defaults.items()
                if name in self.sampler.parameters and name not in self.arguments
            },
        }
        if "schedule" in arguments and arguments["scale"] is None:
            arguments["scale"] = Schedule(arguments["schedule"]).scale
        arguments = {name: value for name, value in arguments.items() if value is not None}
        for owner, details in self.sampler.details.items():
            for name in details.arguments.keys() & arguments.keys():
                default = self.sampler.parameters[name].default
                if not details.apply_to(arguments.get(owner)) or (
                    not details.named and arguments[name] == default
                ):
                    del arguments[name]
        return Method(self.name, arguments)

    def sample(
        self,
        model: FlowModel | OneStepModel,
        reward: Reward,
        prompts: str | Sequence[str],
        options: SamplerOptions | None = None,
    ) -> Result:
        """Run the sampler. Arguments, result and errors: see the sampler, for example `ntrk`."""
        arguments = self._with_details(self.arguments)
        return self.sampler.function(model, reward, prompts, options=options, **arguments)

    def stepwise(
        self,
        model: FlowModel | OneStepModel,
        reward: Reward,
        prompts: str | Sequence[str],
        options: SamplerOptions | None = None,
    ) -> SamplingRun:
        """Begin a run that the caller advances step by step. Arguments and errors: see `stepwise`."""
        arguments = self._with_details(self.arguments)
        return stepwise(self.name, model, reward, prompts, options=options, **arguments)

    def check(self) -> None:
        """Raise ValueError for an argument out of its range."""
        try:
            self.sampler.algorithm(**self._with_details(self._all_arguments))
        except TypeError as error:
            raise ValueError(str(error)) from None

    def plan(self, model: FlowModel) -> list[Step]:
        """Return the steps of a sampler of flows, without those of its start.

        Raises:
            ValueError: the times of the model are not valid, or no step would be guided.
        """
        arguments = self._with_details(self._all_arguments)
        return plan_flow(self.name, model, arguments["steps"], arguments["schedule"], guide=self.guide)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if the operator does not take latents of this shape."""
        if "operator" in self.sampler.parameters:
            operator_by_name(self.name, self.argument("operator"), shape)

    @property
    def sampler(self) -> Sampler:
        """Description of the sampler."""
        return SAMPLERS[self.name]

    @property
    def one_step(self) -> bool:
        """True for a sampler of one-step models, False for a sampler of flows."""
        return self.sampler.kind == "one-step"

    @property
    def needs_gradient(self) -> bool:
        """True if the sampler or its start uses the gradient of the reward."""
        return self.sampler.needs_gradient or self.arguments.get("start") == "pcnl"

    @property
    def guide(self) -> GuidedSteps:
        """Guided steps; all steps for a sampler without this choice."""
        guide: GuidedSteps = self._with_details(self.arguments).get("guide", ALL_STEPS)
        return guide

    @property
    def nfe(self) -> int:
        """Number of function evaluations for each particle."""
        return self.sampler.nfe(self._all_arguments)

    @property
    def nfe_arguments(self) -> frozenset[str]:
        """Names of the numbers that the NFE depends on, such as `steps` and `copies`."""
        reads = _Reads(self._all_arguments)
        self.sampler.nfe(reads)
        return frozenset(name for name in reads.names if not isinstance(reads.data[name], str))

    def particles_at_once(self, micro_batch: int) -> int:
        """Return the number of particles in a micro-batch of `micro_batch` entries, at least 1."""
        return 1 if self.sampler.alone else max(1, micro_batch // self.entries)

    @property
    def entries(self) -> int:
        """Number of batch entries that a particle needs at once."""
        return self.sampler.entries(self._all_arguments)

    def argument(self, name: str) -> Any:
        """Return the value of an argument, given or by default."""
        return self.arguments[name] if name in self.arguments else self.sampler.parameters[name].default

    @property
    def _all_arguments(self) -> dict[str, Any]:
        return {name: self.argument(name) for name in self.sampler.parameters}

    def _with_details(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments with details replaced by the values that they describe."""
        merged = dict(arguments)
        for owner, details in self.sampler.details.items():
            given = {of: merged.pop(name) for name, of in details.arguments.items() if name in merged}
            if owner in merged:
                merged[owner] = details.make(merged[owner], **given)
            elif given:  # the value has no name
                merged[owner] = details.make(**given)
        return merged

    def __str__(self) -> str:
        """Return the text that `parse_method` reads."""
        return self.text_without(())

    def text_without(self, left_out: Collection[str]) -> str:
        """Return the method as text without some of its arguments."""
        arguments = ",".join(
            f"{name}={value}" for name, value in self.arguments.items() if name not in left_out
        )
        return f"{self.name}:{arguments}" if arguments else self.name


class _Reads(UserDict[str, Any]):
    """Arguments that note the names which are read."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)


def parse_method(text: str) -> Method:
    """Parse a method such as "ntrk" or "ntrk:rho=0.1,operator=w".

    Raises:
        ValueError: the text has another form, an argument is given twice, or `Method` refuses the arguments.
    """
    return Method(*split_method(text))


def split_method(text: str) -> tuple[str, dict[str, Any]]:
    """Split a method such as "ntrk:rho=0.1" into name and arguments, without checking them.

    Raises:
        ValueError: the text has another form, or an argument is given twice.
    """
    name, _, listed = text.partition(":")
    arguments: dict[str, Any] = {}
    for part in filter(None, listed.split(",")):
        argument, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ValueError(f"method {text!r}: {part!r} must be written argument=value")
        if argument in arguments:
            raise ValueError(f"method {text!r}: {argument} must be given once")
        arguments[argument] = _value(value)
    return name.strip(), arguments


def _value(text: str) -> int | float | str:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            pass
    return text
