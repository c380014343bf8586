"""Number and noun in a prompt such as "a photo of 37 strawberries on a plate"."""

import re
from typing import NamedTuple

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
    "twenty",
)
"""Numbers as words."""

ENDS = (
    *("above", "across", "against", "and", "around", "arranged", "at", "before", "behind", "beside", "below"),
    *("by", "floating", "flying", "for", "from", "growing", "hanging", "in", "inside", "into", "is", "are"),
    *("lying", "near", "next", "of", "on", "onto", "or", "over", "placed", "sitting", "standing", "that"),
    *("to", "under", "which", "while", "with", "without"),
)
"""Words that end a noun, as in "37 strawberries on a plate"."""

# Not within another word or number ("3D", "tenth", "1,000"), and not joined to one by a hyphen
# ("twenty-seven").
_NUMBER = re.compile(rf"(?<![\w-])(?<!\d[.,])({'|'.join(WORDS)}|\d+)(?![\w-])(?![.,]\d)", re.IGNORECASE)
_NOUN = re.compile(rf"\s+((?:(?!(?:{'|'.join(ENDS)})\b)[\w'-]+\s*)+)", re.IGNORECASE)


class Quantity(NamedTuple):
    """Number of objects, and the noun that names them."""

    number: int
    noun: str


def quantity_of(prompt: str) -> Quantity:
    """Return the number that a prompt names, and the noun after it: "a photo of 37 strawberries on a plate".

    The number is a numeral or a word up to twenty. The noun ends before a punctuation mark or one of `ENDS`.

    Raises:
        ValueError: the prompt names no number or several, or no noun follows it.
    """
    found = list(_NUMBER.finditer(prompt))
    noun = _NOUN.match(prompt, found[0].end()) if len(found) == 1 else None
    if noun is None:
        named = ", ".join(match[1] for match in found)
        which = "no noun follows the number" if len(found) == 1 else f"its numbers are: {named or 'none'}"
        raise ValueError(
            "quantity_of: prompt must name exactly one number before a noun, such as '37 strawberries'; "
            f"{which}: {prompt!r}"
        )
    text = found[0][1].lower()
    return Quantity(WORDS.index(text) if text in WORDS else int(text), noun[1].strip())
