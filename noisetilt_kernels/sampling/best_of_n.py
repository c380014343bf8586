"""Best of n: independent particles of any sampler, the best one chosen for each prompt (DESIGN section 7)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..checks import check_integer, prompt_list
from .options import SamplerOptions
from .protocols import Reward
from .result import Result, best_index
from .starts import FromImage


def best_of_n(
    sampler: Callable[..., Result],
    model: Any,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    n: int,
    **arguments: Any,
) -> Result:
    """Sample n independent particles for each prompt and choose the best.

    NTRK† is `best_of_n(ntrk, ..., n=20)`.

    Args:
        sampler: `ntrk` or another sampler, or a custom function with the same first arguments.
        model: model of the sampler.
        reward: function that judges the images.
        prompts: prompts; a string is one prompt.
        n: number of particles for each prompt, at least 1. The particles of the first prompt come first.
        arguments: keyword arguments of the sampler. `latents` of its options and of a `FromImage` have one
            row for each prompt, or one for all.

    Returns:
        Result of the sampler for all particles. Its `chosen` has the index of the best one of each prompt.

    Raises:
        ValueError, TypeError: n is less than 1, or the sampler raises the error.
    """
    if not callable(sampler):
        raise TypeError(f"best_of_n: sampler must be a function such as ntrk, got {sampler!r}")
    check_integer("best_of_n", "n", n, 1)
    repeated = [prompt for prompt in prompt_list("best_of_n", prompts) for _ in range(n)]
    options, start = arguments.get("options"), arguments.get("start")
    if isinstance(options, SamplerOptions) and options.latents is not None:
        arguments["options"] = replace(options, latents=_repeated(options.latents, n))
    if isinstance(start, FromImage):
        arguments["start"] = replace(start, latents=_repeated(start.latents, n))
    result = sampler(model, reward, repeated, **arguments)
    rewards = result.rewards.tolist()
    chosen = tuple(start + best_index(rewards[start : start + n]) for start in range(0, len(repeated), n))
    return replace(result, method=f"best of {n} {result.method}", chosen=chosen)


def _repeated(rows: Tensor, n: int) -> Tensor:
    """Return the row of each prompt (P, *shape) for its n particles; one row serves all."""
    return rows if len(rows) == 1 else rows.repeat_interleave(n, dim=0)
