"""Algorithm of a sampler: how a micro-batch begins, moves and ends."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from .batch import Batch

State = TypeVar("State")


class Algorithm(ABC, Generic[State]):
    """A sampler with its arguments, advanced step by step by a `SamplingRun`.

    Everything that a micro-batch keeps between two steps is in its state. So a run can stop after any step
    and continue elsewhere, and arguments can change between steps.

    A subclass is a dataclass. Its fields are the arguments of the sampler, checked by `__post_init__`.

    Attributes:
        name: name of the sampler.
        state_type: dataclass of the state. Its fields are tensors, numbers, strings, and lists, dataclasses
            and named tuples of them.
        fixed: names of the arguments that cannot change between steps.
    """

    name: ClassVar[str]
    state_type: ClassVar[type]
    fixed: ClassVar[tuple[str, ...]]

    @abstractmethod
    def prepare(self, model: Any) -> None:
        """Keep the model and plan the steps. Called once, before everything else.

        Raises:
            ValueError: the model does not fit.
        """

    @property
    @abstractmethod
    def records(self) -> int:
        """Number of steps of a micro-batch, with those of its start. Each makes one record of each
        particle."""

    @property
    def identity(self) -> dict[str, Any]:
        """Facts in which an algorithm and a state must agree, as plain values."""
        values = {name: getattr(self, name, None) for name in self.fixed}
        simple = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        return {"arguments": simple, "records": self.records}

    @abstractmethod
    def begin(self, batch: Batch) -> State:
        """Return the state of a micro-batch before its first step."""

    @abstractmethod
    def step(self, batch: Batch, state: State, index: int) -> None:
        """Make a step and record it. The last one finishes the batch.

        Args:
            batch: micro-batch.
            state: state, which is changed.
            index: number of the step, from 0 to `records` - 1.
        """
