"""Small pictures that a page holds itself."""

import base64
import functools
import io
from pathlib import Path

from PIL import Image

_SIDE = 192
"""Largest height in pixels, and largest width of an image. Film strips of videos are wider."""

_MOST_BYTES = 16 * 1024
"""Largest size of a PNG file that is taken as it is: 64 x 64 pixels of any content."""

_STRIP_WIDTH = 640
_QUALITY = 82


def thumbnail(file: Path, strip: bool = False) -> str | None:
    """Return an image file as a small picture in a data URI, or None if the file cannot be read.

    A PNG file that is small already, in pixels and bytes, is taken as it is.

    Args:
        file: the image.
        strip: True for the film strip of a video.
    """
    try:
        status = file.stat()
        return _thumbnail(file, _STRIP_WIDTH if strip else _SIDE, status.st_mtime_ns, status.st_size)
    except Exception:  # damaged files cause errors of many classes
        return None


@functools.lru_cache(maxsize=4096)  # about 30 MB; the pages of a comparison and of its runs share pictures
def _thumbnail(file: Path, width: int, time: int, size: int) -> str:
    """Return the data URI. The time of the file is a key of the cache only."""
    with Image.open(file, formats=["PNG"]) as image:
        if image.width <= width and image.height <= _SIDE and size <= _MOST_BYTES:
            image.verify()
            return data_uri(file.read_bytes(), "png")
        image.thumbnail((width, _SIDE))
        data = io.BytesIO()
        image.convert("RGB").save(data, format="jpeg", quality=_QUALITY)
    return data_uri(data.getvalue(), "jpeg")


def data_uri(data: bytes, kind: str) -> str:
    """Return an image file of a kind such as "png" as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
