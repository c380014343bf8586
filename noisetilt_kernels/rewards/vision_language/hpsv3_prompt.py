"""Text that HPSv3 reads after an image.

The weights were trained with this text and fit no other one. `PROMPT_FILE` is an exact copy, spaces at line
ends included, of `INSTRUCTION` and `prompt_with_special_token` in `hpsv3/dataset/data_collator_qwen.py` of
github.com/MizzenAI/HPSv3. Copyright (c) 2024 HPSv3 Team, MIT licence.
"""

from pathlib import Path

PROMPT_FILE = Path(__file__).with_suffix(".txt")

MARK = "<|Reward|>"
"""Special token in the text at which the reward is read from the hidden states."""
