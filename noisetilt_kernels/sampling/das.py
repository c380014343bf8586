"""DAS, sequential Monte Carlo of guided copies with a temperature that falls (DAS algorithm 1, for flows)."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from ..checks import check_number
from .batch import Batch
from .flow import (
    ALL_STEPS,
    DEFAULT_SCHEDULE,
    DEFAULT_START,
    DEFAULT_STEPS,
)
from .gradients import drift_of
from .guided import GuidedSteps, check_guided_start
from .options import SamplerOptions
from .population import (
    DEFAULT_COPIES,
    DEFAULT_RESAMPLING,
    DEFAULT_THRESHOLD,
    Population,
    PopulationAlgorithm,
    PopulationState,
    PopulationStateT,
    log_ratio,
)
from .protocols import FlowModel, Reward
from .registry import register_sampler
from .resampling import Resampling
from .result import Result
from .schedules import Schedule
from .starts import Start, forwards_of_start
from .steps import Step, advance
from .stepwise import stepwise
from .typicality import TotalNoise


@dataclass(kw_only=True)
class GuidedCopies(PopulationAlgorithm[PopulationStateT]):
    """Algorithm of a sampler whose weighted copies move along the gradient of the reward."""

    @property
    @abstractmethod
    def precisions(self) -> list[float]:
        """Factor of the reward in the log of the twist at every step."""

    @property
    @abstractmethod
    def longest(self) -> float:
        """Largest norm of a drift."""

    def guided_step(self, batch: Batch, state: PopulationStateT, step: Step) -> None:
        """Weigh and resample the copies, and move them along the gradient."""
        population, total = state.population, state.total
        assert total is not None
        precision, next_precision = self.precisions[self.plan.index(step) :][:2]
        guidance = self.guidance(batch, state, step)
        rewards = guidance.rewards
        population.weigh([precision * r for r in rewards], rewards, guidance.fallbacks, self.answer)
        drift = drift_of(guidance, next_precision, self.longest)
        x, velocity, drift, total.sum = population.resample(
            batch, self.threshold, self.resampling, state.x, guidance.output, drift, total.sum
        )
        noise = batch.draw(self.copies)
        shift = step.sigma**2 * drift
        state.x = advance(x, velocity, step, noise) + shift
        total.add(step.sigma * noise + shift, step.sigma)
        population.correct(log_ratio(step.sigma, drift, noise))
        population.record(batch, step, rewards, guidance.norms)

    def last_log_twists(self, rewards: Sequence[float]) -> list[float]:
        """Return the last precision times the rewards."""
        return [self.precisions[-1] * reward for reward in rewards]


@dataclass(kw_only=True)
class DAS(GuidedCopies[PopulationState]):
    """Steps of `das`. An unguided step is one of `base`, with the last twist, so that no weight changes."""

    name, state_type = "das", PopulationState

    tempering: float
    longest = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("das", "tempering", self.tempering, 0, 1)
        if math.isfinite(self.chain.alpha):
            check_guided_start("das", self.guide)

    @property
    def precisions(self) -> list[float]:
        """lambda_i / alpha of every step."""
        return [share / self.alpha for share in tempered(len(self.plan), self.tempering)]

    def begin(self, batch: Batch) -> PopulationState:
        """Return the first latents of all copies, with equal weights."""
        point = self.first(batch, self.copies)
        population = Population.equal(batch, self.copies, self.chain.alpha)
        return PopulationState(point.x, point.known, TotalNoise.like(point.x), population)


@register_sampler(
    kind="flow",
    needs_gradient=True,
    algorithm=DAS,
    nfe=lambda arguments: arguments["copies"] * (arguments["steps"] + forwards_of_start(arguments)),
    entries=lambda arguments: arguments["copies"],
)
def das(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    alpha: float,
    copies: int = DEFAULT_COPIES,
    tempering: float = 0.87,
    threshold: float = DEFAULT_THRESHOLD,
    resampling: Resampling = DEFAULT_RESAMPLING,
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    start: str | Start = DEFAULT_START,
    guide: GuidedSteps = ALL_STEPS,
    options: SamplerOptions | None = None,
) -> Result:
    """Guide K copies of a particle by the gradient, weigh and resample them; the heaviest one is the answer.

    The weighted copies follow the law of `base` times exp(r(x_0) / alpha) as K grows. Each copy moves by
    x' = mu + sigma eps + sigma^2 lambda_{i+1} grad r(x0_hat) / alpha, and its weight has the twist
    exp(lambda_i r(x0_hat) / alpha); see `population`. The shares lambda_i rise from 0 to 1.

    With K = 1 and alpha -> infinity the latents are those of `base`. NFE per particle: K * steps. With
    `SamplerOptions(non_finite="plain_noise")` a copy with a non-finite reward gets weight 0, and a copy
    without a usable gradient moves by plain noise.

    Args:
        model: flow to sample from.
        reward: differentiable function of the images, to be increased.
        prompts: one prompt for each particle; a string is one particle.
        alpha: temperature of the rewards, above 0; a smaller one steers more strongly. The authors use 0.005
            for the aesthetic score, 0.01 for CLIPScore and 0.0001 for PickScore without its factor 100.
        copies: number K of copies of a particle, at least 1. A micro-batch holds as many particles as fit
            with all their copies, at least one; copies are divided into micro-batches too.
        tempering: share of the steps in which lambda rises to 1, in [0, 1]; 0 is lambda = 1 throughout.
            lambda_i = 2^(i / (tempering steps)) - 1. The authors' (1 + gamma)^i - 1 has gamma = 0.008 for 100
            steps and 0.1 for 8 steps, and reaches 1 at 0.87 of the steps in both cases.
        threshold: effective sample size of the copies, as a share of K in [0, 1], below which they are
            resampled; 0 is never.
        resampling: unbiased resampling, "systematic" or "ssp".
        steps: number of steps, at least 1.
        schedule: diffusion coefficient g(t). Pass a name of `Schedule` or a `Schedule`; scale 0 is the ODE.
        start: start point x_1, "noise" or "pcnl", or a `Start`: `PCNL` or `FromImage`. Every copy has its own
            chain, whose forwards are counted in addition. The weights do not count its rewards twice.
        guide: steps that are guided; all by default. Pass a `GuidedSteps`, with from_t = 1 for the start
            "pcnl". Copies are weighed at guided steps only, and follow the same law.
        options: seed, micro-batches, callbacks; None means `SamplerOptions()`.

    Returns:
        Result with `weights`, `ess` and `log_z` of the copies.

    Raises:
        ValueError, TypeError: an argument is out of its range (raised before any work), or the model or the
            reward returns a wrong shape or has no gradient.
        NonFiniteError: a reward, gradient or latent is not finite.
    """
    return stepwise(
        das,
        model,
        reward,
        prompts,
        options=options,
        alpha=alpha,
        copies=copies,
        tempering=tempering,
        threshold=threshold,
        resampling=resampling,
        steps=steps,
        schedule=schedule,
        start=start,
        guide=guide,
    ).result()


def tempered(steps: int, tempering: float) -> list[float]:
    """Return lambda_i of each step i: rising from 0 to 1 within a share of the steps, or 1 throughout."""
    if tempering == 0:
        return [1.0] * steps
    # min first: a short rise would overflow
    return [2.0 ** min(i / (tempering * steps), 1.0) - 1 for i in range(steps - 1)] + [1.0]
