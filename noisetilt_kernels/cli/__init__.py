"""The `noisetilt` command: a module per subcommand.

Modules that need diffusers or matplotlib are imported when a subcommand is called.
"""

import os

import click

from . import bench, compare, demo, doctor, optimize, rewards, sample


@click.group()
def main() -> None:
    """Whitening kernels for reward-guided diffusion sampling."""
    # transformers warns at import about optional packages that are not used here, such as torchvision
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # huggingface_hub warns at every failed attempt to reach the hub
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")


main.add_command(doctor.doctor)
main.add_command(bench.bench)
main.add_command(demo.demo)
main.add_command(sample.sample)
main.add_command(optimize.optimize)
main.add_command(compare.compare)
main.add_command(rewards.rewards)
