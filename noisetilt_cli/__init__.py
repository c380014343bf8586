"""The `noisetilt` command: options and help of every subcommand.

Modules of this package do not import torch, so that help and mistakes in the options take no time.
`noisetilt_kernels`, which does the work, is imported when a subcommand is called.
"""

import os
import signal
import sys
from typing import Any

import click

from . import bench, compare, demo, doctor, experiment, models, optimize, prompts, rewards, sample, view


class _Commands(click.Group):
    """Group of the subcommands. Ctrl-C while torch is imported ends it like Ctrl-C at any other time."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\nstopped: run the same command again", err=True)
            sys.exit(128 + signal.SIGINT)  # as in shells


@click.group(cls=_Commands)
@click.version_option(package_name="noisetilt-kernels", prog_name="noisetilt")
def main() -> None:
    """Whitening kernels for reward-guided diffusion sampling."""
    # huggingface_hub warns at every failed attempt to reach the hub
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # transformers warns about faulty configurations that our own messages explain
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


main.add_command(doctor.doctor)
main.add_command(bench.bench)
main.add_command(demo.demo)
main.add_command(sample.sample)
main.add_command(optimize.optimize)
main.add_command(compare.compare)
main.add_command(experiment.experiment)
main.add_command(view.view)
main.add_command(rewards.rewards)
main.add_command(models.models)
main.add_command(prompts.prompts)
