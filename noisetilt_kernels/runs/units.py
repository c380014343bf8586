"""Durations and sizes as text."""


def format_seconds(seconds: float) -> str:
    """Return a duration with a readable unit, such as "1.5 min"."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


def format_bytes(count: float) -> str:
    """Return a number of bytes with a readable unit, such as "1.5 MB"."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
