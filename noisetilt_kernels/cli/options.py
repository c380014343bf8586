"""Options that several commands share."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from ..rewards import RewardSpec, parse_rewards
from ..rewards.frames import FRAMES_AT_ONCE
from ..rewards.spec import check_sources
from ..runs import workers
from ..runs.settings import ComputeOptions, Settings, default_device, default_dtype
from ..sampling import NON_FINITE
from ..sampling.methods import Method

Command = Callable[..., None]
Decorator = Callable[[Command], Command]


def combine(*options: Decorator) -> Decorator:
    """Combine several options into one decorator; the help lists them in this order."""
    return lambda command: functools.reduce(lambda inner, option: option(inner), reversed(options), command)


model_options = combine(
    click.option(
        "--model",
        required=True,
        metavar="NAME|FOLDER|ID",
        help="A bundled model (digits, digits-turbo), a folder in diffusers format, or a hub id.",
    ),
    click.option(
        "--denoiser",
        metavar="FOLDER|FILE|ID",
        help="Fine-tuned weights for the model's transformer or U-Net; FOLDER:NAME for a file in a folder.",
    ),
    click.option(
        "--lora",
        metavar="FOLDER|FILE|ID",
        help="LoRA weights for the model; FOLDER:NAME for a file in a folder.",
    ),
    click.option(
        "--height",
        type=click.IntRange(1),
        help="Height of the images in pixels.  [default: set by the model]",
    ),
    click.option(
        "--width", type=click.IntRange(1), help="Width of the images in pixels.  [default: set by the model]"
    ),
    click.option(
        "--num-frames",
        type=click.IntRange(1),
        help="Frames per video (video models only).  [default: set by the model]",
    ),
    click.option(
        "--guidance-scale",
        type=float,
        help="Strength of the model's prompt guidance.  [default: set by the model]",
    ),
    click.option(
        "--negative-prompt", metavar="TEXT", help="Prompt that classifier-free guidance steers away from."
    ),
    click.option(
        "--dtype",
        type=click.Choice(["bfloat16", "float16", "float32"]),
        help="Dtype of the model's weights.  [default: float32 on the CPU, else bfloat16]",
    ),
)

prompt_options = combine(
    click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="A prompt; may be repeated."),
    click.option(
        "--prompt-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Text file (UTF-8) with one prompt per line; empty lines are skipped.",
    ),
)

reward_options = combine(
    click.option(
        "--reward",
        required=True,
        metavar="NAME[=WEIGHT],...",
        help="Reward to steer by, or a weighted sum of rewards such as aesthetic=1.0,brightness=-0.5. "
        "`noisetilt rewards` lists the names; MODULE:NAME or FILE.py:NAME is a custom reward.",
    ),
    click.option(
        "--held-out",
        default="",
        metavar="NAME,...",
        help="Rewards that only judge the finished images and do not steer.",
    ),
    click.option(
        "--reward-source",
        "sources",
        multiple=True,
        metavar="NAME=FOLDER|ID",
        help="Folder, file or hub id of a reward's weights, instead of the default source; may be repeated.",
    ),
)

seed_options = combine(
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Seed of all random numbers; the same seed gives the same noise.",
    ),
    click.option(
        "--non-finite",
        type=click.Choice(NON_FINITE),
        default="raise",
        show_default=True,
        help="Action when a reward or gradient is NaN or infinite: stop (raise), or take that step without "
        "guidance (plain_noise).",
    ),
)

run_options = combine(
    click.option(
        "--particles",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Number of images for each prompt; the best one is marked.",
    ),
    seed_options,
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        required=True,
        help="Folder of the run; created if necessary.",
    ),
    click.option("--resume", is_flag=True, help="Continue the run in the folder."),
    click.option(
        "--dry-run", is_flag=True, help="Only check the options and print the plan, with NFE and memory."
    ),
)

compute_options = combine(
    click.option("--device", help="Device such as cpu or cuda:1.  [default: cuda if available, else cpu]"),
    click.option(
        "--micro-batch",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Images in a forward pass of the model. A larger number is faster and needs more memory. It "
        "changes rounding, which can change an image visibly.",
    ),
    click.option(
        "--frames-at-once",
        type=click.IntRange(1),
        default=FRAMES_AT_ONCE,
        show_default=True,
        help="Frames of a video in a forward pass of an image reward. Fewer frames need less memory.",
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
    """Return the settings of a run from the options of its command.

    Raises:
        click.UsageError: an option is not written as its help says.
        ValueError: a reward or a source of weights is not valid.
    """
    source_of = dict(map(_parse_source, sources))
    check_sources(source_of)
    held_out_names = dict.fromkeys(filter(None, map(str.strip, held_out.split(","))))
    return Settings(
        method=method,
        prompts=_all_prompts(prompts, prompt_file),
        rewards=parse_rewards(reward, source_of),
        held_out=tuple(RewardSpec.parse(name, sources=source_of) for name in held_out_names),
        dtype=dtype or default_dtype(device),
        **others,
    )


def compute_options_of(
    device: str | None, micro_batch: int, offload: bool, frames_at_once: int
) -> ComputeOptions:
    """Return the compute options from the options of a command.

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
    return ComputeOptions(
        device=workers.device_of_process(device or default_device()),
        micro_batch=micro_batch,
        offload=offload,
        frames_at_once=frames_at_once,
        progress=True,
    )


def _parse_source(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not equals or not name or not source:
        raise click.UsageError(f"--reward-source must be written NAME=FOLDER or NAME=ID, got {text!r}")
    return name, source


def _all_prompts(prompts: tuple[str, ...], prompt_file: Path | None) -> tuple[str, ...]:
    """Return the prompts of the command line, then the non-empty lines of the file."""
    collected = list(prompts)
    if prompt_file is not None:
        try:
            text = prompt_file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise click.UsageError(f"--prompt-file {prompt_file} must be UTF-8 text: {error}") from None
        collected += [line.strip() for line in text.split("\n") if line.strip()]
    if not collected:
        raise click.UsageError("there is no prompt; give --prompt, or a --prompt-file that is not empty")
    return tuple(collected)
