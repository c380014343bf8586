"""Text that VideoReward reads after a video, and the names of its three rewards.

The weights were trained with this text and fit no other one. `PROMPT_FILE` is an exact copy, spaces at line
ends included, of type "detailed_special" in `prompt_template.py` of github.com/KwaiVGI/VideoAlign. Copyright
(c) 2025 Kling Team, Kuaishou Technology, MIT licence.
"""

from pathlib import Path

from ...checks import check_choice

PROMPT_FILE = Path(__file__).with_suffix(".txt")
PROMPT_TYPE = "detailed_special"
"""Name of the text in the checkpoint's model_config.json."""

PARTS = {"visual": "VQ", "motion": "MQ", "text": "TA"}
"""Names of the three rewards, in the order of the text, and their names in the checkpoint."""

MARKS = tuple(f"<|{name}_reward|>" for name in PARTS.values())
"""Special tokens in the text at which the rewards are read from the hidden states."""


def check_part(part: str) -> None:
    """Raise ValueError unless `part` is the name of one of the three rewards."""
    check_choice("videoreward", "part", part, PARTS)
