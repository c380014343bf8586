"""Names on the Hugging Face hub."""

import re

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
"""Of a model, "owner/name"."""
