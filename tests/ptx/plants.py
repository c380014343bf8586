"""Faults that are planted into PTX."""

import re


def replaced(ptx: str, pattern: str, replacement: str, number: int | None = None) -> str:
    """Replace match `number` of a pattern, or all matches. Return the PTX unchanged if there is none."""
    found = list(re.finditer(pattern, ptx))
    for match in reversed(found if number is None else found[number : number + 1]):
        ptx = ptx[: match.start()] + match.expand(replacement) + ptx[match.end() :]
    return ptx
