"""`noisetilt rewards`: the list of rewards."""

import click


@click.command()
def rewards() -> None:
    """List the rewards for --reward and --held-out.

    Each line has the name, a description with the usual range, and the default source of the weights.
    """
    from ..rewards.registry import ENTRIES

    for name, entry in ENTRIES.items():
        click.echo(f"{name:<14}{entry.description}" + (f"; {entry.source}" if entry.source else ""))
    click.echo(f"{'MODULE:NAME':<14}custom reward, a function (images, prompts) -> (B,); also FILE.py:NAME")
