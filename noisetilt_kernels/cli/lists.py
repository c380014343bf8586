"""Lines of `noisetilt rewards`, `noisetilt models` and `noisetilt prompts`."""

from ..model_sources import BUNDLED
from ..prompt_lists import PROMPT_LISTS
from ..rewards.registry import ENTRIES


def reward_lines() -> list[str]:
    """Return a line for each reward: name, description, default source of the weights."""
    lines = [
        f"{name:<14}{entry.description}" + (f"; {entry.source}" if entry.source else "")
        for name, entry in ENTRIES.items()
    ]
    return [
        *lines,
        f"{'MODULE:NAME':<14}custom reward, a function (images, prompts) -> (B,); also FILE.py:NAME",
    ]


def model_lines() -> list[str]:
    """Return a line for each bundled model and each family: name, description, commands.

    Raises:
        ImportError: diffusers is not installed.
    """
    from ..models import FAMILIES

    rows = [("bundled", "", "")]
    for name, model in BUNDLED.items():
        defaults = "".join(f"; default {key} {value}" for key, value in model.defaults.items())
        rows.append((name, f"{model.description}{defaults}", _commands(not model.one_step, model.one_step)))
    rows += [("", "", ""), ("families", "", "")]
    for pipeline, family in FAMILIES.items():
        kind = f"{family.facts.name}, {'videos' if family.videos else 'images'}"
        commands = _commands(family.flow is not None, family.one_step is not None)
        rows.append((pipeline, kind, commands))
    widths = [max(len(row[column]) for row in rows) + 2 for column in (0, 1)]
    lines = [f"{name:<{widths[0]}}{text:<{widths[1]}}{commands}".rstrip() for name, text, commands in rows]
    return [*lines, "", "A model of a family is a folder in diffusers' layout, or an id on the hub."]


def _commands(flow: bool, one_step: bool) -> str:
    return ", ".join([*(["sample", "compare"] if flow else []), *(["optimize"] if one_step else [])])


def prompt_list_lines() -> list[str]:
    """Return a line for each bundled list: name, number of prompts, description, licence, source."""
    return [
        f"{name:<23}{len(one.prompts):>5}  {one.description}; {one.license}; {one.source or 'this package'}"
        for name, one in PROMPT_LISTS.items()
    ]
