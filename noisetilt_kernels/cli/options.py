"""Options that several commands share."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from ..rewards import parse_weights
from ..rewards.frames import FRAMES_AT_ONCE
from ..runs import workers
from ..runs.settings import Machine, Settings, usual_device, usual_dtype
from ..sampling import NON_FINITE, OPERATORS, SCHEDULES
from ..sampling.methods import Method

Command = Callable[..., None]


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in help in the order given."""
    return lambda command: functools.reduce(lambda inner, option: option(inner), reversed(options), command)


model_options = _together(
    click.option(
        "--model",
        required=True,
        metavar="NAME|FOLDER|ID",
        help="A model in the box (digits, digits-turbo), a folder as diffusers saves it, or a hub id.",
    ),
    click.option("--num-frames", type=click.IntRange(1), help="Of videos.  [default: the model's own]"),
    click.option(
        "--denoiser",
        metavar="FOLDER|FILE|ID",
        help="Fine-tuned weights for its transformer or U-Net; a file within as FOLDER:NAME.",
    ),
    click.option("--lora", metavar="FOLDER|ID", help="LoRA weights for it; a file within as FOLDER:NAME."),
    click.option(
        "--height", type=click.IntRange(1), help="Of the images, in pixels.  [default: the model's own]"
    ),
    click.option(
        "--width", type=click.IntRange(1), help="Of the images, in pixels.  [default: the model's own]"
    ),
    click.option(
        "--guidance-scale",
        type=float,
        help="Strength of the model's own guidance.  [default: the model's own]",
    ),
    click.option("--negative-prompt", metavar="TEXT", help="What classifier-free guidance leads away from."),
    click.option(
        "--dtype",
        type=click.Choice(["bfloat16", "float16", "float32"]),
        help="Of the model's weights.  [default: bfloat16 on a GPU, else float32]",
    ),
)

prompt_options = _together(
    click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="A prompt; may be repeated."),
    click.option(
        "--prompt-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A text file with a prompt on every line.",
    ),
)

reward_options = _together(
    click.option(
        "--reward",
        required=True,
        metavar="NAME[=WEIGHT],...",
        help="What steers, a weighted sum: aesthetic=1.0,brightness=-0.5. `noisetilt rewards` lists them; MODULE:NAME "
        "is a function of your own.",
    ),
    click.option(
        "--held-out", default="", metavar="NAME,...", help="Rewards that only judge the finished images."
    ),
    click.option(
        "--reward-source",
        "sources",
        multiple=True,
        metavar="NAME=FOLDER|ID",
        help="Where a reward's weights are, if not in the usual place; may be repeated.",
    ),
)

flow_options = _together(
    click.option("--rho", type=float, help="Strength of ntrk, from 0 to 1.  [default: 0.3]"),
    click.option(
        "--operator", type=click.Choice(OPERATORS), help="What makes noise of the gradient.  [default: w]"
    ),
    click.option("--strength", type=float, help="Of dps, which needs it: the factor of the gradient."),
    click.option("--candidates", type=click.IntRange(1), help="Of svdd: draws at each step.  [default: 4]"),
    click.option("--steps", type=click.IntRange(1), help="Of the sampler.  [default: 25]"),
    click.option(
        "--schedule", type=click.Choice(SCHEDULES), help="Diffusion coefficient.  [default: linear]"
    ),
    click.option("--scale", type=float, help="Factor of the schedule.  [default: the schedule's own]"),
)

seed_options = _together(
    click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True, help="Fixes everything random."
    ),
    click.option(
        "--non-finite",
        type=click.Choice(NON_FINITE),
        default="raise",
        show_default=True,
        help="What to do about a reward or gradient that is not finite.",
    ),
)

run_options = _together(
    click.option(
        "--particles", type=click.IntRange(1), default=1, show_default=True, help="Images of each prompt."
    ),
    seed_options,
    click.option("--out", type=click.Path(path_type=Path), required=True, help="The run's folder."),
    click.option("--resume", is_flag=True, help="Go on with the run in the folder."),
    click.option("--dry-run", is_flag=True, help="Print the plan, with NFE and memory, and do nothing."),
)

machine_options = _together(
    click.option("--device", help="Such as cpu or cuda:1.  [default: cuda if there is one, else cpu]"),
    click.option(
        "--micro-batch",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Images at once, for speed and memory; in another batch numbers may round otherwise.",
    ),
    click.option(
        "--frames-at-once",
        type=click.IntRange(1),
        default=FRAMES_AT_ONCE,
        show_default=True,
        help="Frames of a video that a reward of images is given at once; changes speed and memory, and no video.",
    ),
    click.option(
        "--offload", is_flag=True, help="Keep the text encoders off the GPU while they are not in use."
    ),
)


def settings_of(
    method: Method,
    *,
    device: str,
    dtype: str | None,
    prompts: tuple[str, ...],
    prompt_file: Path | None,
    reward: str,
    held_out: str,
    sources: tuple[str, ...],
    **others: Any,
) -> Settings:
    """The settings of a run from the options of its command.

    Raises:
        click.UsageError, ValueError: an option that makes no sense.
    """
    return Settings(
        method=method,
        prompts=_prompts(prompts, prompt_file),
        rewards=parse_weights(reward),
        held_out=tuple(dict.fromkeys(filter(None, map(str.strip, held_out.split(","))))),
        sources=dict(_pair("--reward-source", text) for text in sources),
        dtype=dtype or usual_dtype(device),
        **others,
    )


def machine_of(device: str | None, micro_batch: int, offload: bool, frames_at_once: int) -> Machine:
    """The machine from the options of a command.

    Raises:
        click.UsageError: the device's name is none of torch's.
    """
    try:
        torch.device(device or "cpu")
    except RuntimeError as error:
        raise click.UsageError(
            f"--device {device} cannot be used here: {str(error).splitlines()[0]}"
        ) from None
    return Machine(
        device=workers.own_device(device or usual_device()),
        micro_batch=micro_batch,
        offload=offload,
        frames_at_once=frames_at_once,
        progress=True,
    )


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise click.UsageError(f"{option} must be written NAME=VALUE, got {text!r}")
    return name, value


def _prompts(prompts: tuple[str, ...], prompt_file: Path | None) -> tuple[str, ...]:
    """The prompts of the command line, then those of the file; empty lines are left out."""
    every = list(prompts)
    if prompt_file is not None:
        try:
            text = prompt_file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise click.UsageError(f"--prompt-file {prompt_file} must be UTF-8 text: {error}") from None
        every += [line.strip() for line in text.split("\n") if line.strip()]
    if not every:
        raise click.UsageError("there is no prompt; give --prompt or a --prompt-file that is not empty")
    return tuple(every)
