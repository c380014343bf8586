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
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..checks import check_integer, check_number
from .flow import finish_flow, rewards_of
from .gradients import dot_of_each
from .loop import Batch, joined
from .protocols import FlowModel
from .resampling import Resampling, Rounding, rounding_by_name
from .result import best_index
from .steps import Step, mean
from .velocity import velocities_of

DEFAULT_COPIES = 4
DEFAULT_THRESHOLD = 0.5
DEFAULT_RESAMPLING: Resampling = "systematic"


def check_population(
    function: str, *, alpha: float, copies: int, threshold: float, resampling: Resampling
) -> None:
    """Raise ValueError or TypeError for an argument out of its range that samplers with copies share."""
    check_temperature(function, "alpha", alpha)
    check_integer(function, "copies", copies, 1)
    check_number(function, "threshold", threshold, 0, 1)
    rounding_by_name(function, resampling)


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


class Weights:
    """Weights of the K copies of one particle, in float64.

    Attributes:
        logs: log w of each copy; -inf for weight 0.
        log_twists: last log psi of each copy.
        log_z: sum of log mean(w) over the resamplings so far.
    """

    def __init__(self, copies: int) -> None:
        self.logs = [0.0] * copies
        self.log_z = 0.0
        self.log_twists = [0.0] * copies

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


class Population:
    """The copies of every particle of a micro-batch. Entry b K + k of a tensor (B K, ...) is copy k of b.

    Args:
        batch: micro-batch of B particles.
        copies: number K of copies of a particle.
        threshold: a particle is resampled when the effective sample size of its copies is below threshold K.
        resampling: "systematic" or "ssp".
        answer: copy that stands for its particle in records and in the result: the one of the largest
            "weight" or "reward".
        start_alpha: temperature of the law of x_1, see `Start`. The weights do not count its rewards twice.
    """

    def __init__(
        self,
        batch: Batch,
        copies: int,
        threshold: float,
        resampling: Resampling,
        answer: Literal["weight", "reward"] = "weight",
        start_alpha: float = math.inf,
    ) -> None:
        self._batch, self._copies, self._threshold, self._answer = batch, copies, threshold, answer
        self._rounding = rounding_by_name("Population", resampling)
        self._particles = batch.entries(len(batch) * copies)
        self._weights = [Weights(copies) for _ in range(len(batch))]
        self._start_alpha: float | None = start_alpha  # None after the first step
        self._shown: list[int] = []
        self._ess: list[float] = []
        self._reasons: list[str | None] = []

    def weigh(
        self, log_twists: Sequence[float], rewards: Sequence[float], reasons: Sequence[str | None]
    ) -> None:
        """Weigh every copy, see `Weights.weigh`.

        Args:
            log_twists: log psi_i of every copy, (B K,); not finite where the reward is not finite.
            rewards: reward of every copy, (B K,).
            reasons: reason why a copy is not guided or not weighed, or None; (B K,).
        """
        self._shown, self._ess, self._reasons = [], [], []
        for weights, copies in zip(self._weights, self._particles, strict=True):
            finite = [rewards[entry] if math.isfinite(rewards[entry]) else math.nan for entry in copies]
            if self._start_alpha is not None:
                counted = [reward / self._start_alpha for reward in finite]
                weights.log_twists = [0.0 if math.isnan(log) else log for log in counted]
            weights.weigh([log_twists[entry] for entry in copies])
            self._shown.append(copies[best_index(weights.logs if self._answer == "weight" else finite)])
            self._ess.append(weights.ess)
            self._reasons.append(joined([reasons[entry] for entry in copies]))
        self._start_alpha = None

    def resample(self, *tensors: Tensor) -> list[Tensor]:
        """Resample the particles whose effective sample size is too small, and return their tensors.

        Args:
            tensors: everything that belongs to a copy and is used later, each (B K, ...).
        """
        ancestors: list[int] = []
        for index, (weights, copies) in enumerate(zip(self._weights, self._particles, strict=True)):
            chosen = list(range(self._copies))
            if weights.ess < self._threshold * self._copies:
                chosen = weights.resample(self._rounding, self._batch.choices(index).random)
            ancestors += [copies[copy] for copy in chosen]
        at = torch.tensor(ancestors)
        return [tensor[at.to(tensor.device)] for tensor in tensors]

    def correct(self, log_ratios: Tensor) -> None:
        """Correct the weights of all copies (B K,) for the kernel by which they move, see `log_ratio`."""
        values = log_ratios.tolist()
        for weights, copies in zip(self._weights, self._particles, strict=True):
            weights.correct([values[entry] for entry in copies])

    def record(self, step: Step, rewards: Sequence[float], norms: Sequence[float] | None = None) -> None:
        """Record the step of every particle, with the values of the copy that stood for it when weighed."""
        self._batch.record(
            step.index,
            step.t,
            [rewards[entry] for entry in self._shown],
            None if norms is None else [norms[entry] for entry in self._shown],
            fallbacks=self._reasons,
            ess=self._ess,
        )

    def finish(
        self,
        model: FlowModel,
        x: Tensor,
        last: Step,
        log_twists_of: Callable[[Sequence[float]], Sequence[float]],
        noise_peaks: Callable[[Sequence[int]], Sequence[float] | None] = lambda entries: None,
    ) -> None:
        """Take the last step of all copies, weigh them by their final rewards, and finish the batch.

        Args:
            model: flow.
            x: latents of all copies, (B K, *shape), at time last.t.
            last: last step of the plan.
            log_twists_of: function of the final rewards (B K,) -> log of the last twist (B K,).
            noise_peaks: function of the entries that stand for the particles (B,) -> their peaks, see
                `TotalNoise`.
        """
        velocities = velocities_of(self._batch, model, x, last.t)
        rewards = rewards_of(self._batch, model.decode, mean(x, velocities, last))
        reasons = [None if math.isfinite(reward) else "non-finite reward" for reward in rewards]
        self.weigh(log_twists_of(rewards), rewards, reasons)
        if self._batch.options.non_finite == "raise":  # an error, after the other particles are finished
            for index, copies in enumerate(self._particles):
                self._shown[index] = next(
                    (entry for entry in copies if reasons[entry] is not None), self._shown[index]
                )
        self._batch.keep_weights(
            [weights.normalised for weights in self._weights],
            [weights.log_z + weights.log_mean for weights in self._weights],
        )
        finish_flow(
            self._batch,
            model,
            x[self._shown],
            last,
            velocities[self._shown],
            noise_peaks(self._shown),
            fallbacks=self._reasons,
            ess=self._ess,
        )
