"""Files of experiments: what to compare, and the numbers that the paper reports.

An experiment is a TOML file with one table of results, or several:

    title = "Aesthetic image generation with FLUX"
    source = "NoiseTilt (arXiv 2606.18066), Table 14"
    notes = ["The paper does not say which rho it used."]

    [[comparison]]
    model = "black-forest-labs/FLUX.1-dev"
    prompt_lists = ["animals"]
    reward = "aesthetic"
    held_out = ["pickscore"]

    [comparison.columns]
    reward = "Aesthetic Score"

    [comparison.scale]
    pickscore = 0.01

    [[comparison.method]]
    label = "NTRK"
    method = "ntrk:rho=0.3"
    paper = { nfe = 25, reward = 7.4510, pickscore = 0.2200 }
"""

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..checks import NoisetiltError, did_you_mean, shown
from ..prompt_lists import PROMPT_LISTS, prompt_lines, prompts_of
from ..rewards import RewardSpec, parse_rewards
from ..runs.comparison_folder import Comparison
from ..runs.diversity import parse_diversity
from ..runs.entry import Entry, parse_entries
from ..runs.settings import Settings, default_dtype

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[1] / "assets" / "experiments"
"""Folder of the bundled experiments."""


class ExperimentError(NoisetiltError, ValueError):
    """An experiment's file cannot be used. The message names the file and the key."""


@dataclass(frozen=True)
class ExperimentMethod:
    """Row of a table.

    Attributes:
        label: name of the method in the table.
        text: the sampler with its arguments and best of n, as `parse_entries` reads it.
        paper: numbers of the paper: "nfe", "reward" and held-out rewards by name.
    """

    label: str
    text: str
    paper: Mapping[str, float]

    @property
    def entry(self) -> Entry:
        """The sampler with its arguments, and best of n. Raises ValueError if the text is wrong."""
        (entry,) = parse_entries(self.text, (1,))
        return entry


@dataclass(frozen=True)
class ExperimentComparison:
    """Table of an experiment: methods with the same model, prompts and rewards.

    Attributes:
        name: name of its folder.
        title: title of the table.
        methods: the rows.
        settings: settings of all runs; the method is that of the first row.
        columns: titles of the columns by the name of the score; "reward" is the steering reward.
        scale: factors of our scores in the table, by name, where the paper has another unit.
    """

    name: str
    title: str
    methods: tuple[ExperimentMethod, ...]
    settings: Settings
    columns: Mapping[str, str]
    scale: Mapping[str, float]

    @property
    def comparison(self) -> Comparison:
        """Methods and rows, for `runs.comparison.compare`."""
        return Comparison(tuple(row.text for row in self.methods))

    @property
    def score_names(self) -> list[str]:
        """Names of the scores: "reward", and the others in the order of the settings."""
        measures = (one.name for one in self.settings.diversity)
        return ["reward", *self.settings.score_names, *measures]

    def title_of(self, score: str) -> str:
        """Return the title of a column."""
        if score == "reward" and score not in self.columns:
            return " + ".join(reward.name for reward in self.settings.rewards)
        return self.columns.get(score, score)


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Attributes:
        name: name of the experiment: that of its file without the ending.
        title: one line.
        source: paper, with the numbers of its tables.
        notes: sentences about settings that differ from the paper or are not known.
        comparisons: its tables.
    """

    name: str
    title: str
    source: str
    notes: tuple[str, ...]
    comparisons: tuple[ExperimentComparison, ...]

    def only(self, names: Iterable[str]) -> "Experiment":
        """Return the experiment with those rows whose label or sampler is named; with all if none is.

        Raises:
            ExperimentError: no row has that label or sampler.
        """
        wanted = list(names)
        if not wanted:
            return self
        for name in wanted:
            known = dict.fromkeys(
                text
                for comparison in self.comparisons
                for row in comparison.methods
                for text in (row.label, row.entry.method.name)
            )
            if name not in known:
                raise ExperimentError(
                    f"{self.name} has no method {name!r}{did_you_mean(name, known)}; it has: "
                    f"{', '.join(known)}"
                )
        kept = [
            replace(
                comparison,
                methods=tuple(
                    row
                    for row in comparison.methods
                    if row.label in wanted or row.entry.method.name in wanted
                ),
            )
            for comparison in self.comparisons
        ]
        return replace(self, comparisons=tuple(one for one in kept if one.methods))


def bundled_experiments() -> list[str]:
    """Return the names of the bundled experiments."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def read_experiment(
    source: str,
    *,
    device: str = "cpu",
    model: str | None = None,
    prompts: int | None = None,
    sources: Mapping[str, str] | None = None,
    **others: Any,
) -> Experiment:
    """Read an experiment.

    Args:
        source: name of a bundled experiment, or path of a TOML file.
        device: device of the runs; it decides the default dtype.
        model: model in place of the file's, for example a folder with its weights.
        prompts: number of prompts of each comparison: the first ones of its list; None is all.
        sources: folders, files or hub ids of the rewards' weights by reward.
        others: settings by name, such as `dtype`, in place of the file's; None is the file's.

    Raises:
        ExperimentError: there is no such experiment, or its file is wrong.
    """
    file = FOLDER / f"{source}.toml" if source in bundled_experiments() else Path(source)
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = bundled_experiments()
        raise ExperimentError(
            f"{source!r} is not an experiment{did_you_mean(source, known)}; give the path of a TOML file, or "
            f"one of {', '.join(known)}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{file} is not a TOML file: {error}") from None
    given = {name: value for name, value in {"model": model, **others}.items() if value is not None}
    return _Reader(file, device, given, prompts, sources or {}).experiment(values)


_OTHERS = {"prompts", "method", "rewards", "held_out", "diversity", "particles", "rounds", "lora"}
_SETTINGS: Mapping[str, tuple[type, ...]] = {
    name: (*get_args(hint), int) if float in get_args(hint) else get_args(hint) or (hint,)
    for name, hint in get_type_hints(Settings).items()
    if name not in _OTHERS
}
"""Settings that a comparison may have under their own name, with their types."""

_STRINGS = (str,)
_KINDS = {str: "a string", list: "a list", dict: "a table", int: "an integer", float: "a number"}
_DTYPES = ("bfloat16", "float16", "float32")


class _Reader:
    """Reader of one file; every error names the file and the key."""

    def __init__(
        self,
        file: Path,
        device: str,
        given: Mapping[str, Any],
        most_prompts: int | None,
        sources: Mapping[str, str],
    ) -> None:
        self._file, self._device, self._given = file, device, given
        self._most_prompts, self._sources = most_prompts, sources

    def experiment(self, values: dict[str, Any]) -> Experiment:
        self._check_keys("", values, {"title", "source", "notes", "comparison"})
        tables = self._value("", values, "comparison", (list,))
        comparisons = [self._comparison(number, table) for number, table in enumerate(tables, start=1)]
        names = [one.name for one in comparisons]
        if not names or len(set(names)) < len(names):
            raise self._error("", f"needs comparisons with different names, got {', '.join(names) or 'none'}")
        return Experiment(
            self._file.stem,
            self._value("", values, "title", _STRINGS),
            self._value("", values, "source", _STRINGS, ""),
            tuple(self._strings("", values, "notes")),
            tuple(comparisons),
        )

    def _comparison(self, number: int, values: dict[str, Any]) -> ExperimentComparison:
        where = f"comparison {number}"
        own = {"name", "title", "prompts", "prompt_lists", "seeds", "reward", "held_out", "diversity"}
        self._check_keys(where, values, own | {"columns", "scale", "method", "lora"} | _SETTINGS.keys())
        settings = {
            name: self._value(where, values, name, kinds)
            for name, kinds in _SETTINGS.items()
            if name in values
        }
        settings["lora"] = tuple(self._strings(where, values, "lora"))
        settings.update(self._given)
        held_out = dict.fromkeys(self._strings(where, values, "held_out"))
        diversity = ",".join(self._strings(where, values, "diversity"))
        rows = [
            self._method(f"{where}, method {index}", row)
            for index, row in enumerate(self._value(where, values, "method", (list,)), start=1)
        ]
        if not rows:
            raise self._error(where, "needs at least one method")
        settings.setdefault("dtype", default_dtype(self._device))
        prompts = self._prompts(where, values)
        reward, seeds = (
            self._value(where, values, "reward", _STRINGS),
            self._value(where, values, "seeds", (int,), 1),
        )
        if "model" not in settings:
            raise self._error(where, "has no 'model'")
        for key, wrong, wanted in (
            ("seeds", seeds < 1, "at least 1"),
            ("seed", settings.get("seed", 0) < 0, "not negative"),
            ("dtype", settings["dtype"] not in _DTYPES, f"one of {', '.join(_DTYPES)}"),
        ):
            if wrong:
                raise self._error(where, f"must have a {key} that is {wanted}")
        try:
            made = Settings(
                method=rows[0].entry.method,
                prompts=prompts,
                rewards=parse_rewards(reward, self._sources),
                held_out=tuple(RewardSpec.parse(name, sources=self._sources) for name in held_out),
                particles=seeds,
                **settings,
            )
            made = replace(made, diversity=parse_diversity(diversity, made.model, self._sources))
            for reward in made.rewards:
                reward.check_steers()
        except (TypeError, NoisetiltError, ValueError) as error:
            raise self._error(where, f"cannot be used: {error}") from None
        result = ExperimentComparison(
            name=self._value(where, values, "name", _STRINGS, "results"),
            title=self._value(where, values, "title", _STRINGS, ""),
            methods=tuple(rows),
            settings=made,
            columns=self._table(where, values, "columns", _STRINGS),
            scale=self._table(where, values, "scale", (int, float)),
        )
        if not re.fullmatch(r"\w[\w.-]*", result.name):
            raise self._error(where, f"must have a name for a folder as 'name', got {result.name!r}")
        if any(factor <= 0 for factor in result.scale.values()):
            raise self._error(where, "must have factors above 0 in 'scale'")
        if len({row.entry for row in rows}) < len(rows):
            raise self._error(where, "must have different methods")
        scores = result.score_names
        for key, named in (
            ("columns", result.columns),
            ("scale", result.scale),
            *((f"method {row.label!r}, paper", row.paper) for row in rows),
        ):
            for name in named:
                if name not in (*scores, *(["nfe"] if "paper" in key else [])):
                    raise self._error(
                        f"{where}, {key}", f"names {name!r}, which is none of {', '.join(scores)}"
                    )
        return result

    def _method(self, where: str, values: dict[str, Any]) -> ExperimentMethod:
        self._check_keys(where, values, {"label", "method", "paper"})
        text = self._value(where, values, "method", _STRINGS)
        row = ExperimentMethod(
            self._value(where, values, "label", _STRINGS, text),
            text,
            self._table(where, values, "paper", (int, float)),
        )
        try:
            row.entry.method.check()
        except (NoisetiltError, ValueError) as error:
            raise self._error(where, f"has a wrong method: {error}") from None
        return row

    def _prompts(self, where: str, values: dict[str, Any]) -> tuple[str, ...]:
        """Return the prompts: those of the file, then those of bundled lists and of files beside it."""
        prompts = self._strings(where, values, "prompts")
        for name in self._strings(where, values, "prompt_lists"):
            beside = self._file.parent / name
            if name in PROMPT_LISTS:
                prompts += prompts_of(name)
            elif beside.is_file():
                try:
                    text = beside.read_text(encoding="utf-8-sig")
                except UnicodeDecodeError:
                    raise self._error(where, f"has a prompt list {name!r} that is not UTF-8 text") from None
                prompts += [prompt for _, prompt in prompt_lines(text)]
            else:
                raise self._error(
                    where,
                    f"has a prompt list {name!r}, which is neither a file nor one of "
                    f"{', '.join(PROMPT_LISTS)}",
                )
        if not prompts:
            raise self._error(where, "has no prompts")
        return tuple(prompts[: self._most_prompts])

    def _check_keys(self, where: str, values: Any, valid: Iterable[str]) -> None:
        if not isinstance(values, dict):
            raise self._error(where, f"must be a table, got {shown(values)}")
        for name in values:
            if name not in valid:
                raise self._error(where, f"has an unknown key {name!r}{did_you_mean(name, valid)}")

    _REQUIRED = object()

    def _value(
        self,
        where: str,
        values: Mapping[str, Any],
        name: str,
        kinds: tuple[type, ...],
        default: Any = _REQUIRED,
    ) -> Any:
        if name not in values:
            if default is self._REQUIRED:
                raise self._error(where, f"has no {name!r}")
            return default
        if type(values[name]) not in kinds:
            wanted = " or ".join(text for kind, text in _KINDS.items() if kind in kinds)
            raise self._error(where, f"must have {wanted} as {name!r}, got {shown(values[name])}")
        return values[name]

    def _table(
        self, where: str, values: Mapping[str, Any], name: str, kinds: tuple[type, ...]
    ) -> dict[str, Any]:
        """Return a table whose values have one of the types; numbers must be finite."""
        found = self._value(where, values, name, (dict,), {})
        for key, value in found.items():
            if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
                wanted = "a string" if kinds == _STRINGS else "a number"
                raise self._error(where, f"must have {wanted} as {name}.{key}, got {shown(value)}")
        return dict(found)

    def _strings(self, where: str, values: Mapping[str, Any], name: str) -> list[str]:
        found = self._value(where, values, name, (list,), [])
        if not all(isinstance(one, str) for one in found):
            raise self._error(where, f"must have strings as {name!r}, got {shown(found)}")
        return list(found)

    def _error(self, where: str, what: str) -> ExperimentError:
        return ExperimentError(f"{self._file}{f', {where},' if where else ''} {what}")
