"""Options that several commands share."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., None]
Decorator = Callable[[Command], Command]

FACTS: dict[str, Any] = json.loads(Path(__file__).with_name("facts.json").read_text(encoding="utf-8"))
"""Facts of noisetilt_kernels that the options show; see `noisetilt_kernels.cli.facts`, which writes them."""


def combine(*options: Decorator) -> Decorator:
    """Combine several options into one decorator; the help lists them in this order."""
    return lambda command: functools.reduce(lambda inner, option: option(inner), reversed(options), command)


dtype_option = click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Dtype of the model's weights.  [default: float32 on the CPU, else bfloat16]",
)

quantize_option = click.option(
    "--quantize",
    type=click.Choice(["int8", "fp8", "nf4"]),
    help="Store the weights of the model's transformer or U-Net in 8 bits (int8, fp8) or 4 bits (nf4, "
    "which needs bitsandbytes). They compute in --dtype.  [default: not quantised]",
)

reward_decoder_option = click.option(
    "--reward-decoder",
    metavar="FOLDER|ID",
    help="Tiny autoencoder, such as madebyollin/taef1, that decodes the images judged during sampling. "
    "It takes less memory than the VAE, which decodes the finished images.",
)

source_option = click.option(
    "--reward-source",
    "sources",
    multiple=True,
    metavar="NAME=FOLDER|ID",
    help="Folder, file or hub id of a reward's weights, instead of the default source; may be repeated.",
)

model_options = combine(
    click.option(
        "--model",
        metavar="NAME|FOLDER|ID",
        help=f"A bundled model ({', '.join(FACTS['bundled_models'])}), a folder in diffusers format, or a "
        "hub id; `noisetilt models` lists them. Required without --resume.",
    ),
    click.option(
        "--denoiser",
        metavar="FOLDER|FILE|ID",
        help="Fine-tuned weights for the model's transformer or U-Net; FOLDER:NAME for a file in a folder.",
    ),
    click.option(
        "--lora",
        multiple=True,
        metavar="FOLDER|FILE|ID[=WEIGHT]",
        help="LoRA weights for the model, with a weight other than 1 after =; FOLDER:NAME for a file in a "
        "folder; may be repeated.",
    ),
    click.option(
        "--variant",
        metavar="NAME",
        help="Variant of the model's weights, such as fp16 for files named *.fp16.safetensors.",
    ),
    quantize_option,
    reward_decoder_option,
    click.option(
        "--height",
        type=click.IntRange(1),
        help="Height of the images in pixels, with --width.  [default: set by the model]",
    ),
    click.option(
        "--width",
        type=click.IntRange(1),
        help="Width of the images in pixels, with --height.  [default: set by the model]",
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
        "--guidance-scale-2",
        type=float,
        help="Strength of guidance for the second transformer of Wan2.2 A14B.  [default: --guidance-scale]",
    ),
    click.option(
        "--true-cfg-scale",
        type=float,
        help="Scale of classifier-free guidance for FLUX.1 and Qwen-Image, above 1; it doubles the passes "
        "through the model.",
    ),
    click.option(
        "--negative-prompt",
        metavar="TEXT",
        help="Prompt that classifier-free guidance steers away from. FLUX.1 needs --true-cfg-scale for it.",
    ),
    dtype_option,
)


class _PromptFile(click.Path):
    """An existing file, or the name of a bundled list of prompts."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in FACTS["prompt_lists"] and not Path(value).exists():
            return Path(value)
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message} `noisetilt prompts` lists the bundled lists.", param, ctx)


prompt_options = combine(
    click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="A prompt; may be repeated."),
    click.option(
        "--prompt-file",
        type=_PromptFile(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE|NAME",
        help="Text file (UTF-8) with one prompt per line; empty lines and lines that begin with # are "
        "skipped. Or the name of a bundled list; `noisetilt prompts` lists them.",
    ),
)

reward_options = combine(
    click.option(
        "--reward",
        metavar="NAME[=WEIGHT],...",
        help="Reward to steer by, or a weighted sum of rewards such as aesthetic=1.0,brightness=-0.5. "
        "`noisetilt rewards` lists the names; MODULE:NAME or FILE.py:NAME is a custom reward. Required "
        "without --resume.",
    ),
    click.option(
        "--held-out",
        default="",
        metavar="NAME,...",
        help="Rewards that only judge the finished images and do not steer.",
    ),
    click.option(
        "--diversity",
        default="",
        metavar="NAME[:FEATURES],...",
        help=f"Measures of diversity of the finished images ({', '.join(FACTS['diversity'])}), and the "
        f"features that they compare ({', '.join(FACTS['features'])}), such as vendi:clip. "
        "[default features: digits for bundled models, else clip]",
    ),
    source_option,
)

non_finite_option = click.option(
    "--non-finite",
    type=click.Choice(FACTS["non_finite"]),
    default="raise",
    show_default=True,
    help="Action when a reward or gradient is NaN or infinite: stop (raise), or take that step without "
    "guidance (plain_noise).",
)

seed_options = combine(
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Seed of all random numbers; the same seed gives the same noise.",
    ),
    non_finite_option,
)

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Only check the options and print the plan, with NFE and memory."
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
    click.option(
        "--resume",
        is_flag=True,
        help="Continue the run in the folder. Options that are not given are those of the run.",
    ),
    dry_run_option,
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
        default=FACTS["frames_at_once"],
        show_default=True,
        help="Frames of a video in a forward pass of an image reward. Fewer frames need less memory.",
    ),
    click.option(
        "--offload", is_flag=True, help="Keep the text encoders off the GPU while they are not in use."
    ),
)


def method_options(kind: str, default: str) -> Decorator:
    """Add --method and a shorthand such as --rho for each parameter of the samplers of one kind.

    Types, choices, defaults and helps come from the samplers' signatures and docstrings, see `FACTS`.

    Args:
        kind: "flow" or "one-step".
        default: name of the default sampler.
    """
    facts = FACTS["samplers"][kind]
    types: dict[str, Any] = {"int": int, "float": float, "str": str}
    return combine(
        click.option(
            "--method",
            "method_text",
            default=default,
            show_default=True,
            metavar="NAME[:OPTION=VALUE,...]",
            help=facts["help"],
        ),
        *(
            click.option(
                option["flag"],
                name,
                type=click.Choice(option["choices"]) if option["choices"] else types[option["type"]],
                help=option["help"],
            )
            for name, option in facts["options"].items()
        ),
    )


def single_run_options(kind: str, default: str) -> Decorator:
    """Add the options of a command that makes one run: model, prompts, rewards, method, run, compute.

    Arguments: see `method_options`.
    """
    return combine(
        model_options,
        prompt_options,
        reward_options,
        method_options(kind, default),
        run_options,
        compute_options,
    )
