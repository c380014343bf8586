"""Facts of the package that the options of `noisetilt_cli` show, for its file facts.json.

`noisetilt_cli` does not import this package, so that its help takes no time. `python docs/generate.py` writes
the file, and `--check` compares it.
"""

from collections.abc import Sequence
from typing import Any

from ..model_sources import BUNDLED
from ..prompt_lists import PROMPT_LISTS
from ..rewards.frames import FRAMES_AT_ONCE
from ..runs.diversity import CHOICES, MEASURES
from ..sampling import NON_FINITE
from ..sampling.registry import REQUIRED, SAMPLERS, Parameter, Sampler
from .parsing import flag


def facts() -> dict[str, Any]:
    """Return the content of facts.json.

    Returns:
        bundled_models: names of the bundled models.
        prompt_lists: names of the bundled lists of prompts.
        diversity: names of the measures of diversity.
        features: names of the features that the measures can compare.
        non_finite: valid values of --non-finite.
        frames_at_once: default of --frames-at-once.
        samplers: for each kind of sampler, the help of --method, and flag, type, choices and help of each
            parameter's option by name.
    """
    return {
        "bundled_models": list(BUNDLED),
        "prompt_lists": list(PROMPT_LISTS),
        "diversity": list(MEASURES),
        "features": list(CHOICES),
        "non_finite": list(NON_FINITE),
        "frames_at_once": FRAMES_AT_ONCE,
        "samplers": {kind: _samplers(kind) for kind in ("flow", "one-step")},
    }


def _samplers(kind: str) -> dict[str, Any]:
    samplers = [sampler for sampler in SAMPLERS.values() if sampler.kind == kind]
    names = dict.fromkeys(name for sampler in samplers for name in sampler.parameters)
    return {"help": _method_help(samplers), "options": {name: _option(name, samplers) for name in names}}


def _option(name: str, samplers: Sequence[Sampler]) -> dict[str, Any]:
    takers = {sampler.name: sampler.parameters[name] for sampler in samplers if name in sampler.parameters}
    first = next(iter(takers.values()))
    notes = [f"{', '.join(takers)} only"] if len(takers) < len(samplers) else []
    defaults = {taker: _default_note(name, parameter) for taker, parameter in takers.items()}
    if len(set(defaults.values())) == 1:
        notes.append(_default_note(name, first))
    else:
        notes += [f"{taker}: {note}" for taker, note in defaults.items()]
    notes += [f"{model}: {one.defaults[name]}" for model, one in BUNDLED.items() if name in one.defaults]
    helps: dict[str, list[str]] = {}
    for taker, parameter in takers.items():
        helps.setdefault(parameter.help, []).append(taker)
    text, *others = filter(None, helps)
    help_text = " ".join([text, *(f"{', '.join(helps[other])}: {other}" for other in others)])
    return {
        "flag": flag(name),
        "type": first.type.__name__,
        "choices": list(first.choices) if first.choices else None,
        "help": f"{help_text}  [{'; '.join(notes)}]",
    }


_FOLLOWED = {"scale": "set by the schedule", "chain_alpha": "that of --alpha", "chain_clip": "that of --clip"}
"""Default of a parameter that follows another one."""


def _default_note(name: str, parameter: Parameter) -> str:
    if parameter.default is REQUIRED:
        return "required"
    if parameter.default is None:
        return f"default: {_FOLLOWED[name]}"
    return f"default: {parameter.default}"


def _method_help(samplers: Sequence[Sampler]) -> str:
    names = [sampler.name for sampler in samplers]
    if len(names) == 1:
        return f"Sampler ({names[0]}) with its options. The options below are shorthands."
    example = "ntrk:rho=0.1,operator=w" if "ntrk" in names else "wgnc:iterations=50,lr=0.02"
    return (
        f"Sampler ({', '.join(names[:-1])} or {names[-1]}) with its options, such as {example}. The options "
        "below are shorthands."
    )
