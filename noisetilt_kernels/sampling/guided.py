"""Choice of the steps that a sampler guides."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..checks import check_integer, check_number
from .steps import Step

_DIGITS = 6
"""Decimals of the times that are compared: models have times in float32."""


@dataclass(frozen=True)
class GuidedSteps:
    """Steps that are guided: every N-th one of those in a window of times. The default is all steps.

    A step is in the window if until_t < t <= from_t. Its time t is where it starts, as in the records: 1 is
    noise and 0 is data. So the windows 1 to 0.5 and 0.5 to 0 share no step. Times are rounded to six decimals
    first. The first step in the window is guided, then every N-th after it. The last step of a trajectory has
    no noise and is never guided.

    Every other step is one of `base`: plain noise, a forward without a graph, and no call of the reward. It
    takes less time. It counts as much in the NFE, which are forwards. Its record has no reward.

    Args:
        every: distance between guided steps, at least 1. 2 guides every other step.
        from_t: time from which steps are guided, in (0, 1]. 1 is noise.
        until_t: time until which steps are guided, in [0, 1), below the one from which they are. A step that
            starts there is not guided.

    Raises:
        ValueError, TypeError: an argument is out of its range.
    """

    every: int = 1
    from_t: float = 1.0
    until_t: float = 0.0

    def __post_init__(self) -> None:
        check_integer("GuidedSteps", "every", self.every, 1)
        check_number("GuidedSteps", "from_t", self.from_t, 0, 1)
        check_number("GuidedSteps", "until_t", self.until_t, 0, 1)
        if self.until_t >= self.from_t:
            raise ValueError(
                f"GuidedSteps: until_t must be below from_t, as times fall from 1 (noise) to 0 (data), "
                f"got from_t={self.from_t:g} and until_t={self.until_t:g}"
            )

    def mark(self, function: str, plan: Sequence[Step]) -> list[Step]:
        """Return the steps of a trajectory with `guided` set.

        Raises:
            ValueError: no step can be guided, although there are steps with noise.
        """
        window = [
            step.index
            for step in plan[:-1]
            if round(self.until_t, _DIGITS) < round(step.t, _DIGITS) <= round(self.from_t, _DIGITS)
        ]
        if len(plan) > 1 and not window:
            raise ValueError(
                f"{function}: guided steps must start at until_t < t <= from_t, got none of {len(plan)} for "
                f"from_t={self.from_t:g} and until_t={self.until_t:g}; widen the window or take more steps"
            )
        guided = set(window[:: self.every])
        return [replace(step, guided=step.index in guided) for step in plan]


def check_guided_start(function: str, guide: GuidedSteps) -> None:
    """Raise ValueError unless the first step, at t = 1, is guided.

    The law of latents from Markov chains is tilted by their rewards, which the weights of copies divide out.
    """
    if guide.from_t < 1:
        raise ValueError(
            f"{function}: guide must have from_t=1 if copies start at states of chains, because the weights "
            f"need the rewards there, got from_t={guide.from_t:g}"
        )
