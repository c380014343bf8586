"""Files of run folders."""

from pathlib import Path


def equal_files(folder: Path) -> dict[str, bytes]:
    """Return the files that are equal in two runs with the same settings."""
    differ = {"run.json", "records.jsonl", "plan.json", "index.html"}  # they contain times
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name not in differ
    }
