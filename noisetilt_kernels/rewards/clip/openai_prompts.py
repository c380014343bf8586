"""Cleaning of prompts in OpenAI's CLIP, which open_clip and HPS v2 share. Needs ftfy."""

import html

import ftfy


def clean_prompt(prompt: str) -> str:
    """Return the prompt with repaired Unicode, straight quotes, resolved HTML entities, in lower case."""
    return html.unescape(html.unescape(ftfy.fix_text(prompt))).strip().lower()
