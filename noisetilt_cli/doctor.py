"""`noisetilt doctor`: the installed parts, and the backend of each device."""

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option(
    "--latents",
    metavar="SHAPE",
    help="Show the chunks, tiles and mixing domains of W for latents of this shape, such as 16x166x166.",
)
def doctor(as_json: bool, latents: str | None) -> None:
    """Show what is installed and which backend serves each device.

    The last line is the verdict. It names the backend of each device that is present, or says how to get the
    compiled kernels.
    """
    from noisetilt_kernels.cli.doctor import examine, render
    from noisetilt_kernels.cli.errors import of_option

    with of_option("--latents"):
        report = examine(latents)
    click.echo(json.dumps(report, indent=2) if as_json else render(report))
