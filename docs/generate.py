"""Write the output of commands into the pages, between `<!-- generated: COMMAND -->` and `<!-- end -->`.

The facts of the package that the help of the commands shows are written to noisetilt_cli/facts.json first.

python docs/generate.py            # rewrite facts.json and the pages
python docs/generate.py --check    # name the files that differ, and fail
"""

import importlib
import json
import re
import sys
from pathlib import Path

import click

DOCS = Path(__file__).parent
ROOT = DOCS.parent
FACTS = ROOT / "noisetilt_cli" / "facts.json"
_REGION = re.compile(r"(<!-- generated: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def output_of(command: str) -> str:
    """Return the output of `noisetilt [SUBCOMMAND] --help` or `python -m bench.presets` as Markdown."""
    words = command.split()
    if words[0] == "noisetilt" and words[-1] == "--help":
        return f"```text\n{help_of(words[1:-1])}\n```"
    if words[:2] == ["python", "-m"] and words[2] == "bench.presets":
        return str(importlib.import_module(words[2]).table())
    raise ValueError(f"{command!r} cannot be generated; use noisetilt ... --help or python -m bench.presets")


def help_of(names: list[str]) -> str:
    """Return the help of the command, or of the named subcommand."""
    from noisetilt_cli import main

    context = click.Context(main, info_name="noisetilt", max_content_width=90, terminal_width=90)
    command: click.Command = main
    for name in names:
        command = main.commands[name]
        context = click.Context(
            command, info_name=name, parent=context, max_content_width=90, terminal_width=90
        )
    return command.get_help(context)


def generated(text: str) -> str:
    """Return the text of a page with its regions up to date."""
    return _REGION.sub(lambda match: f"{match[1]}\n{output_of(match[2])}\n\n{match[3]}", text)


def stale_files(write: bool) -> list[Path]:
    """Return facts.json and the pages with regions, if they are out of date; rewritten if `write`."""
    from noisetilt_kernels.cli.facts import facts

    stale = []
    wanted = f"{json.dumps(facts(), indent=1)}\n"
    if FACTS.read_text(encoding="utf-8") != wanted:
        stale.append(FACTS)
        if write:
            FACTS.write_text(wanted, encoding="utf-8")
    for page in sorted(DOCS.rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = generated(before)
        if after != before:
            stale.append(page)
            if write:
                page.write_text(after, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    check = "--check" in sys.argv[1:]
    found = stale_files(write=not check)
    print("\n".join(f"{'out of date' if check else 'written'}: {page.relative_to(ROOT)}" for page in found))
    sys.exit(check and bool(found))
