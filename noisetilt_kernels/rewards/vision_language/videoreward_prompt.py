"""What VideoReward is asked about a video, and what its answers are called. Its weights only fit this text.

The text, `PROMPT_FILE`, is data of VideoReward's authors, kept to the letter, with the blanks at its line ends:
`prompt_template.py` in github.com/KwaiVGI/VideoAlign, of type "detailed_special". Copyright (c) 2025 Kling Team,
Kuaishou Technology, under the MIT licence.
"""

from pathlib import Path

from ...checks import check_choice

PROMPT_FILE = Path(__file__).with_suffix(".txt")
PROMPT_TYPE = "detailed_special"
"""Its name in the checkpoint's model_config.json."""

PARTS = {"visual": "VQ", "motion": "MQ", "text": "TA"}
"""The three rewards, in the order in which the text asks for them, and their names in the checkpoint."""

MARKS = tuple(f"<|{name}_reward|>" for name in PARTS.values())
"""The tokens in the text at which they are read."""


def check_part(part: str) -> None:
    """Raises ValueError unless `part` is the name of one of the three rewards."""
    check_choice("videoreward", "part", part, PARTS)
