"""`noisetilt doctor`: the installed parts, and the backend of each device."""

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def doctor(as_json: bool) -> None:
    """Show what is installed and which backend serves each device.

    The last line is the verdict. It names the backend of each device that is present, or says how to get the
    compiled kernels.
    """
    from noisetilt_kernels.cli.doctor import examine, render

    report = examine()
    click.echo(json.dumps(report, indent=2) if as_json else render(report))
