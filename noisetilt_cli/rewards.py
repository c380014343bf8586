"""`noisetilt rewards`: the list of rewards."""

import click


@click.command()
def rewards() -> None:
    """List the rewards for --reward and --held-out.

    Each line has the name, a description with the usual range, and the default source of the weights.
    """
    from noisetilt_kernels.cli.lists import reward_lines

    click.echo("\n".join(reward_lines()))
