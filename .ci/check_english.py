"""Check the words of docstrings, option helps, comments and pages, and print each fault with its place.

A docstring or an option's help begins with a noun or a verb, so that it can be understood alone. Phrases that
have a plainer form are refused too.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
REFUSED_BEGINNINGS = ("Of", "As", "That", "Whether", "What", "Such", "By", "Where")
REFUSED_PHRASES = {
    "anew": "again",
    "otherwise than": "unlike, not as",
    "and says so": "name who reports it, and how",
    "one's own": "custom",
    "in the box": "bundled",
    "tells more": "name what it prints",
}
_BEGINNING = re.compile(rf"\W*({'|'.join(REFUSED_BEGINNINGS)})\b")
_SECTION = re.compile(r"^ *(?:Args|Arguments|Attributes):\n((?:(?: {4,}.*)?\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^( *)[\w*][\w*, ]*: (.*)$", re.MULTILINE)


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring, also of attributes and constants."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for index, statement in enumerate(body):
            documented = index == 0 or isinstance(body[index - 1], (ast.Assign, ast.AnnAssign))
            if (
                documented
                and isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield statement.lineno, statement.value.value


def entries(docstring: str) -> Iterator[tuple[int, str]]:
    """Line within the docstring and text of each argument and attribute that it describes."""
    for section in _SECTION.finditer(f"{docstring}\n"):
        found = list(_ENTRY.finditer(docstring, section.start(1), min(section.end(1), len(docstring))))
        outermost = min((len(entry[1]) for entry in found), default=0)
        for entry in found:
            if len(entry[1]) == outermost:
                yield docstring.count("\n", 0, entry.start()), entry[2]


def helps(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every `help="..."` of a call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
            yield node.value.lineno, str(node.value.value)


def faults_of_python(text: str) -> Iterator[tuple[int, str]]:
    """Lines with a docstring or a help that begins with a refused word."""
    tree = ast.parse(text)
    for line, docstring in docstrings(tree):
        if _BEGINNING.match(docstring):
            yield line, f"docstring begins with {docstring.split()[0]!r}"
        for offset, entry in entries(docstring):
            if _BEGINNING.match(entry):
                yield line + offset, f"description of an argument begins with {entry.split()[0]!r}"
    for line, text in helps(tree):
        if _BEGINNING.match(text):
            yield line, f"help begins with {text.split()[0]!r}"


def faults_of_text(text: str) -> Iterator[tuple[int, str]]:
    """Lines with a refused phrase."""
    for phrase, better in REFUSED_PHRASES.items():
        for match in re.finditer(rf"\b{phrase}\b".replace(" ", r"\s+(?:(?:#|//)\s*)?"), text):
            yield text.count("\n", 0, match.start()) + 1, f"{phrase!r}; better: {better}"


def main() -> int:
    """Check the files named on the command line, or all files in git, and return the number of faults."""
    listed = (
        sys.argv[1:]
        or subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    )
    count = 0
    for name in listed:
        path = ROOT / name
        suffixes = (".py", ".md", ".cpp", ".h", ".cu", ".cuh", ".txt", ".toml", ".def", ".sh")
        if path.suffix not in suffixes or path.resolve() == Path(__file__) or path.is_symlink():
            continue
        text = path.read_text(encoding="utf-8")
        faults = [*faults_of_text(text), *(faults_of_python(text) if path.suffix == ".py" else ())]
        for line, fault in sorted(faults):
            print(f"{name}:{line}: {fault}")
        count += len(faults)
    return count


if __name__ == "__main__":
    sys.exit(f"{count} faults" if (count := main()) else None)
