"""Populations: K copies of each particle, weighted and resampled together (twisted sequential Monte Carlo).

The copies move by any kernel q(x'|x). A twist psi_i(x) > 0 says at step i how promising a copy is. Its weight
corrects for both, so that the weighted copies follow the law of `base` times the last twist:

    log w_i = log w_{i-1} + log p(x_i|x_{i-1}) - log q(x_i|x_{i-1}) + log psi_i - log psi_{i-1},
    log psi_{-1} = 0,

with the kernel p of `base`. A start whose law is tilted by exp(r / alpha') has log psi_{-1} = r / alpha'.
Resampling replaces copies of small weight by copies of large weight; then all weights are equal. Weights are
float64, on the CPU. A step needs one transfer of them from the device.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from ..checks import check_integer, check_number
from .batch import Batch, entries_of, joined
from .flow import FlowAlgorithm, FlowState, finish_flow, rewards_of
from .gradients import dot_of_each
from .resampling import Resampling, Rounding, rounding_by_name
from .result import best_index
from .steps import Step, mean

Answer = Literal["weight", "reward"]
"""Copy that stands for its particle: the one of the largest weight or reward."""

DEFAULT_COPIES = 4
DEFAULT_THRESHOLD = 0.5
DEFAULT_RESAMPLING: Resampling = "systematic"


def check_temperature(function: str, name: str, alpha: float) -> None:
    """Raise ValueError or TypeError unless the temperature of the rewards is a finite number above 0."""
    check_number(function, name, alpha, 0)
    if alpha == 0:
        raise ValueError(f"{function}: {name} must be above 0, got 0")


def log_ratio(sigma: float, drift: Tensor, noise: Tensor) -> Tensor:
    """Return log p(x'|x) - log q(x'|x) at x' = mu + sigma noise + sigma^2 drift, float64 (B K,).

    p = N(mu, sigma^2 I) is the step of `base`, and q = N(mu + sigma^2 drift, sigma^2 I). In the closed form
    -sigma <drift, noise> - sigma^2 |drift|^2 / 2 nothing cancels, as it would between two log-densities.
    """
    drift = drift.double()
    return -sigma * dot_of_each(drift, noise.double() + sigma / 2 * drift)


@dataclass
class Weights:
    """Weights of the K copies of one particle, in float64.

    Args:
        logs: log w of each copy; -inf for weight 0.
        log_twists: last log psi of each copy.
        log_z: sum of log mean(w) over the resamplings so far.
    """

    logs: list[float]
    log_twists: list[float]
    log_z: float = 0.0

    @staticmethod
    def equal(copies: int) -> "Weights":
        """Return equal weights of copies that no step has weighed."""
        return Weights([0.0] * copies, [0.0] * copies)

    def weigh(self, log_twists: Sequence[float]) -> None:
        """Multiply each weight by psi_i / psi_{i-1}.

        A copy whose twist is not finite has weight 0 until it is resampled. If that leaves no copy with a
        weight, the step is skipped.
        """
        valid = [
            math.isfinite(new) and log > -math.inf for new, log in zip(log_twists, self.logs, strict=True)
        ]
        if not any(valid):
            return
        changes = zip(valid, self.logs, log_twists, self.log_twists, strict=True)
        self.logs = [log + new - old if good else -math.inf for good, log, new, old in changes]
        self.log_twists = [new if good else 0.0 for good, new in zip(valid, log_twists, strict=True)]

    def correct(self, log_ratios: Sequence[float]) -> None:
        """Multiply each weight by p / q, see `log_ratio`."""
        self.logs = [log + ratio for log, ratio in zip(self.logs, log_ratios, strict=True)]

    @property
    def normalised(self) -> list[float]:
        """Weights with the sum 1. The sum is exact, so the order of the copies does not change them."""
        weights = self._relative
        total = math.fsum(weights)
        return [weight / total for weight in weights]

    @property
    def log_mean(self) -> float:
        """Logarithm of the mean weight."""
        return max(self.logs) + math.log(math.fsum(self._relative) / len(self.logs))

    @property
    def ess(self) -> float:
        """Effective sample size (sum w)^2 / sum w^2, from 1 to K."""
        weights = self._relative
        return math.fsum(weights) ** 2 / math.fsum(weight**2 for weight in weights)

    def resample(self, rounding: Rounding, uniform: Callable[[], float]) -> list[int]:
        """Make all weights equal, and return the copy that each new copy continues."""
        copies = len(self.logs)
        children = rounding([copies * weight for weight in self.normalised], uniform)
        ancestors = [copy for copy, count in enumerate(children) for _ in range(count)]
        self.log_z += self.log_mean
        self.logs = [0.0] * copies
        self.log_twists = [self.log_twists[copy] for copy in ancestors]
        return ancestors

    @property
    def _relative(self) -> list[float]:
        largest = max(self.logs)
        return [math.exp(log - largest) for log in self.logs]


@dataclass
class Population:
    """The copies of every particle of a micro-batch. Entry b K + k of a tensor (B K, ...) is copy k of b.

    Args:
        weights: weights of each particle's copies.
        start_alpha: temperature of the law of x_1, see `Start`; None after the first step. The weights do not
            count its rewards twice.
        shown: entry that stood for each particle when it was weighed last.
        ess: effective sample size then.
        reasons: reason then why copies were not guided or not weighed, or None.
    """

    weights: list[Weights]
    start_alpha: float | None = math.inf
    shown: list[int] = field(default_factory=list)
    ess: list[float] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)

    @staticmethod
    def equal(batch: Batch, copies: int, start_alpha: float = math.inf) -> "Population":
        """Return equally weighted copies of the particles of a micro-batch."""
        return Population([Weights.equal(copies) for _ in range(len(batch))], start_alpha)

    @property
    def entries(self) -> list[range]:
        """Entries of each particle."""
        return entries_of(len(self.weights), len(self.weights[0].logs))

    def weigh(
        self,
        log_twists: Sequence[float],
        rewards: Sequence[float],
        reasons: Sequence[str | None],
        answer: Answer = "weight",
    ) -> None:
        """Weigh every copy, see `Weights.weigh`.

        Args:
            log_twists: log psi_i of every copy, (B K,); not finite where the reward is not finite.
            rewards: reward of every copy, (B K,).
            reasons: reason why a copy is not guided or not weighed, or None; (B K,).
            answer: copy that stands for its particle in records and in the result: the one of the largest
                "weight" or "reward".
        """
        self.shown, self.ess, self.reasons = [], [], []
        for weights, copies in zip(self.weights, self.entries, strict=True):
            finite = [rewards[entry] if math.isfinite(rewards[entry]) else math.nan for entry in copies]
            if self.start_alpha is not None:
                counted = [reward / self.start_alpha for reward in finite]
                weights.log_twists = [0.0 if math.isnan(log) else log for log in counted]
            weights.weigh([log_twists[entry] for entry in copies])
            self.shown.append(copies[best_index(weights.logs if answer == "weight" else finite)])
            self.ess.append(weights.ess)
            self.reasons.append(joined([reasons[entry] for entry in copies]))
        self.start_alpha = None

    def resample(
        self, batch: Batch, threshold: float, resampling: Resampling, *tensors: Tensor
    ) -> list[Tensor]:
        """Resample the particles whose effective sample size is too small, and return their tensors.

        Args:
            batch: micro-batch, whose particles make the decisions.
            threshold: a particle is resampled when the effective sample size is below threshold K.
            resampling: "systematic" or "ssp".
            tensors: everything that belongs to a copy and is used later, each (B K, ...).
        """
        rounding = rounding_by_name("Population", resampling)
        ancestors: list[int] = []
        for index, (weights, copies) in enumerate(zip(self.weights, self.entries, strict=True)):
            chosen = list(range(len(copies)))
            if weights.ess < threshold * len(copies):
                chosen = weights.resample(rounding, batch.choices(index).random)
            ancestors += [copies[copy] for copy in chosen]
        if ancestors == list(range(len(ancestors))):  # every copy goes on
            return list(tensors)
        at = torch.tensor(ancestors)
        places = {device: at.to(device) for device in {tensor.device for tensor in tensors}}
        return [tensor[places[tensor.device]] for tensor in tensors]

    def correct(self, log_ratios: Tensor) -> None:
        """Correct the weights of all copies (B K,) for the kernel by which they move, see `log_ratio`."""
        values = log_ratios.tolist()
        for weights, copies in zip(self.weights, self.entries, strict=True):
            weights.correct([values[entry] for entry in copies])

    def record(
        self, batch: Batch, step: Step, rewards: Sequence[float], norms: Sequence[float] | None = None
    ) -> None:
        """Record the step of every particle, with the values of the copy that stood for it when weighed."""
        batch.record(
            step.index,
            step.t,
            [rewards[entry] for entry in self.shown],
            None if norms is None else [norms[entry] for entry in self.shown],
            fallbacks=self.reasons,
            ess=self.ess,
        )


@dataclass
class PopulationState(FlowState):
    """State of a sampler with copies.

    Args:
        population: weights of the copies, for all of which latents (B K, *shape) are kept.
    """

    population: Population = field(default_factory=lambda: Population([]))


PopulationStateT = TypeVar("PopulationStateT", bound=PopulationState)


@dataclass(kw_only=True)
class PopulationAlgorithm(FlowAlgorithm[PopulationStateT]):
    """Algorithm of a sampler with K weighted copies of each particle.

    Attributes:
        answer: copy that is the answer: the one of the largest "weight" or "reward".
    """

    fixed = (*FlowAlgorithm.fixed, "copies")
    answer: ClassVar[Answer] = "weight"

    alpha: float
    copies: int = DEFAULT_COPIES
    threshold: float = DEFAULT_THRESHOLD
    resampling: Resampling = DEFAULT_RESAMPLING

    def __post_init__(self) -> None:
        check_temperature(self.name, "alpha", self.alpha)
        check_integer(self.name, "copies", self.copies, 1)
        check_number(self.name, "threshold", self.threshold, 0, 1)
        rounding_by_name(self.name, self.resampling)
        super().__post_init__()

    @abstractmethod
    def last_log_twists(self, rewards: Sequence[float]) -> list[float]:
        """Return the log of the last twist of each copy, (B K,), from the final rewards (B K,)."""

    def finish(self, batch: Batch, state: PopulationStateT, last: Step) -> None:
        """Make the last step of all copies, weigh them by their final rewards, and finish the batch."""
        population, total = state.population, state.total
        velocities = self.velocity(batch, state, last)
        rewards = rewards_of(batch, self.model.decode, mean(state.x, velocities, last))
        reasons = [None if math.isfinite(reward) else "non-finite reward" for reward in rewards]
        population.weigh(self.last_log_twists(rewards), rewards, reasons, self.answer)
        if batch.options.non_finite == "raise":  # an error, after the other particles are finished
            for index, copies in enumerate(population.entries):
                population.shown[index] = next(
                    (entry for entry in copies if reasons[entry] is not None), population.shown[index]
                )
        batch.keep_weights(
            [weights.normalised for weights in population.weights],
            [weights.log_z + weights.log_mean for weights in population.weights],
        )
        finish_flow(
            batch,
            self.model,
            state.x[population.shown],
            last,
            velocities[population.shown],
            None if total is None else total.peaks(population.shown),
            fallbacks=population.reasons,
            ess=population.ess,
        )
