"""`noisetilt prompts`: the bundled lists of prompts."""

import click

from .options import FACTS


@click.command()
@click.argument("name", required=False, type=click.Choice(FACTS["prompt_lists"]), metavar="[NAME]")
def prompts(name: str | None) -> None:
    """List the bundled lists of prompts for --prompt-file, or print list NAME.

    Each line has the name, the number of prompts, a description, the licence, and the file that the list is
    a copy of.
    """
    from noisetilt_kernels.cli.lists import prompt_list_lines
    from noisetilt_kernels.prompt_lists import prompts_of

    click.echo("\n".join(prompt_list_lines() if name is None else prompts_of(name)))
