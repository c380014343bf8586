"""From the options of a command to the settings of a run.

With --resume, options that are not given are those of the run in the folder.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from ..checks import did_you_mean
from ..prompt_lists import PROMPT_LISTS, prompt_lines
from ..rewards import RewardSpec, parse_rewards
from ..rewards.spec import check_sources
from ..runs import workers
from ..runs.comparison_folder import Comparison
from ..runs.diversity import parse_diversity
from ..runs.entry import parse_entries
from ..runs.errors import RunFolderError
from ..runs.folder import read_run
from ..runs.settings import ComputeOptions, Settings, default_device, default_dtype
from ..sampling.methods import Method, split_method
from ..sampling.registry import REQUIRED, SAMPLERS
from .errors import is_given, of_option

_COMMANDS = {"flow": "noisetilt sample", "one-step": "noisetilt optimize"}


class Before(NamedTuple):
    """The run that --resume continues."""

    settings: Settings
    compute: Mapping[str, Any]
    """Compute options in JSON form."""


def run_before(out: Path, resume: bool) -> Before | None:
    """Return the run in a folder that is to be resumed; None without --resume, or if there is no run.

    Raises:
        RunFolderError: the folder has a run.json that no run has written.
    """
    if not resume or not (out / "run.json").exists():
        return None
    settings, compute = read_run(out / "run.json")
    try:
        return Before(Settings.from_json(settings), compute)
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{out / 'run.json'} does not describe a run ({error})") from None


def flag(name: str) -> str:
    """Return the option of a parameter: "micro_batch" -> "--micro-batch"."""
    return f"--{name.replace('_', '-')}"


def method_of(kind: str, text: str, shorthands: Mapping[str, Any], before: Before | None) -> Method:
    """Return the method of --method and of the shorthands given beside it.

    Args:
        kind: kind of the sampler, see `Sampler`.
        text: value of --method.
        shorthands: values of the other options of the samplers; None is not given.
        before: run to be resumed. Its arguments are used unless --method is given.

    Raises:
        click.UsageError: the sampler is of another kind, does not have a shorthand's parameter, gets a
            parameter twice, or lacks one without a default.
        ValueError: see `split_method` and `Method`.
    """
    given = {name: value for name, value in shorthands.items() if value is not None}
    with of_option("--method"):
        name, arguments = split_method(text)
    if before is not None and not is_given("method_text"):
        name, arguments = before.settings.method.name, dict(before.settings.method.arguments)
        arguments = {other: value for other, value in arguments.items() if other not in given}
    sampler = SAMPLERS.get(name)
    if sampler is None or sampler.kind != kind:
        names = [other for other, one in SAMPLERS.items() if one.kind == kind]
        raise click.UsageError(
            f"--method must be one of {', '.join(names)}, got {name!r}{_method_hint(name, names)}"
        )
    for option, value in given.items():
        if option not in sampler.parameters:
            options = ", ".join(map(flag, sampler.parameters))
            raise click.UsageError(f"{flag(option)} is not an option of {name}; it has {options}")
        if option in arguments:
            raise click.UsageError(
                f"{option} is given twice: {flag(option)} {value} and --method {text}; leave one out"
            )
    arguments = {**arguments, **given}
    if "scale" in given and "schedule" not in arguments:
        arguments["schedule"] = sampler.parameters["schedule"].default
    for option, parameter in sampler.parameters.items():
        if parameter.default is REQUIRED and option not in arguments:
            raise click.UsageError(
                f"{name} needs {flag(option)}, which has no default because it depends on the reward"
            )
    with of_option("--method"):
        return Method(name, arguments)


def comparison_of(texts: Iterable[str], best_of: Iterable[int]) -> Comparison:
    """Return the comparison of several --method options and --best-of, each method checked.

    Raises:
        click.ClickException: a method is unknown, or an argument of it is out of its range.
    """
    comparison = Comparison(tuple(texts), tuple(best_of))
    for text in comparison.methods:
        with of_option(f"--method {text}"):
            name, _ = split_method(text)
            if name not in SAMPLERS:
                raise ValueError(
                    f"unknown method {name!r}{_method_hint(name, SAMPLERS)}; valid: {', '.join(SAMPLERS)}"
                )
            for entry in parse_entries(text, comparison.best_of):
                entry.method.check()
    return comparison


def _method_hint(name: str, valid: Iterable[str]) -> str:
    """Return what to write in place of an unknown method, or "" if nothing is similar."""
    if name in SAMPLERS:
        return f"; {name} is for `{_COMMANDS[SAMPLERS[name].kind]}`"
    if did_you_mean(name, ["best_of_n", "best-of-n"]):
        return "; for the best of N images give --particles N, or --best-of N with `noisetilt compare`"
    return did_you_mean(name, valid)


def settings_of(
    method: Method,
    before: Before | None = None,
    *,
    device: str,
    model: str | None,
    dtype: str | None,
    prompts: tuple[str, ...],
    prompt_file: Path | None,
    reward: str | None,
    held_out: str,
    diversity: str,
    sources: tuple[str, ...],
    **others: Any,
) -> Settings:
    """Return the settings of a run from the options of its command.

    Args:
        method: the sampler and its arguments.
        before: run to be resumed. It supplies everything that is not given.
        device: device of the run.
        model, dtype, prompts, prompt_file, reward, held_out, diversity, sources, others: values of the
            options.

    Raises:
        click.ClickException: an option is not written as its help says, or has a wrong value.
    """
    source_of = dict(map(parse_source, sources))
    with of_option("--reward-source"):
        check_sources(source_of)
    prompt_origins = _all_prompts(prompts, prompt_file)
    given: dict[str, Any] = {
        name: value for name, value in others.items() if before is None or is_given(name)
    }
    if model is not None:
        given["model"] = model
    if prompt_origins:
        given["prompts"] = tuple(prompt for prompt, _ in prompt_origins)
    if reward is not None:
        with of_option("--reward"):
            given["rewards"] = parse_rewards(reward, source_of)
            for one in given["rewards"]:
                one.check_steers()
    if before is None or is_given("held_out"):
        with of_option("--held-out"):
            names = dict.fromkeys(filter(None, map(str.strip, held_out.split(","))))
            given["held_out"] = tuple(RewardSpec.parse(name, sources=source_of) for name in names)
    if dtype is not None or before is None:
        given["dtype"] = dtype or default_dtype(device)
    if before is None:
        for name, option in (("model", "--model"), ("rewards", "--reward"), ("prompts", "--prompt")):
            if name not in given:
                more = ", or a --prompt-file that is not empty" if name == "prompts" else ""
                raise click.UsageError(f"Missing option '{option}': give {option}{more}")
        settings = Settings(method=method, **given)
    else:
        settings = replace(before.settings, method=method, **given)
        with of_option("--reward-source"):
            settings = replace(
                settings,
                rewards=tuple(one.with_sources(source_of) for one in settings.rewards),
                held_out=tuple(one.with_sources(source_of) for one in settings.held_out),
                diversity=tuple(one.with_sources(source_of) for one in settings.diversity),
            )
    if before is None or is_given("diversity"):
        with of_option("--diversity"):
            settings = replace(settings, diversity=parse_diversity(diversity, settings.model, source_of))
    for one in (*settings.rewards, *settings.held_out):
        for prompt, origin in prompt_origins:
            with of_option(origin):
                one.check_prompts([prompt])
    return settings


def compute_options_of(
    before: Before | None = None, *, device: str | None, micro_batch: int, offload: bool, frames_at_once: int
) -> ComputeOptions:
    """Return the compute options from the options of a command.

    Args:
        before: run to be resumed. It supplies everything that is not given, except for the number of a GPU.
        device, micro_batch, offload, frames_at_once: values of the options.

    Raises:
        click.UsageError: torch does not know the name of the device.
        ValueError: the GPU of this process is not known, see `device_of_process`.
    """
    try:
        torch.device(device or "cpu")
    except RuntimeError as error:
        raise click.UsageError(
            f"--device {device} cannot be used here: {str(error).splitlines()[0]}"
        ) from None
    values: dict[str, Any] = {
        "micro_batch": micro_batch,
        "offload": offload,
        "frames_at_once": frames_at_once,
    }
    if before is not None:
        for name in before.compute.keys() & values.keys():
            if not is_given(name):
                values[name] = before.compute[name]
        if device is None and before.compute.get("device") == "cpu":
            device = "cpu"
    return ComputeOptions(
        device=workers.device_of_process(device or default_device()), progress=True, **values
    )


def parse_source(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not equals or not name or not source:
        raise click.UsageError(f"--reward-source must be written NAME=FOLDER or NAME=ID, got {text!r}")
    return name, source


def _all_prompts(prompts: tuple[str, ...], prompt_file: Path | None) -> list[tuple[str, str]]:
    """Return each prompt with its origin: those of the command line, then the lines of the file.

    Empty lines and lines that begin with # are left out.

    Raises:
        click.UsageError: the file is not UTF-8 text.
    """
    collected = [(prompt, "--prompt") for prompt in prompts]
    if prompt_file is None:
        return collected
    bundled = PROMPT_LISTS.get(str(prompt_file))
    data = (bundled.file if bundled and not prompt_file.exists() else prompt_file).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise click.UsageError(
            f"--prompt-file {prompt_file}, line {number} must be UTF-8 text; save the file as UTF-8"
        ) from None
    origin = f"--prompt-file {prompt_file}, line "
    return collected + [(prompt, f"{origin}{number}") for number, prompt in prompt_lines(text)]
