"""`noisetilt models`: the list of models."""

import click


@click.command()
def models() -> None:
    """List the bundled models and the supported families for --model.

    Each line has the name, a description, and the command that takes it: sample and compare for models of
    several steps, optimize for one-step models.
    """
    from noisetilt_kernels.cli.lists import model_lines

    click.echo("\n".join(model_lines()))
