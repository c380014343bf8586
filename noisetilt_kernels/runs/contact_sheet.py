"""Many images on one sheet, with captions."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _CHOSEN = "white", "#1b1f24", "#b3261e"
_GAP = 6
_LONGEST_TITLE = 100


def contact_sheet(
    rows: Sequence[Sequence[Path]],
    row_titles: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    chosen: Sequence[Sequence[bool]] | None = None,
    side: int = 160,
) -> Image.Image:
    """A sheet of rows of images, each row under its title.

    Args:
        rows: files of the images, of any size, opened one at a time; shown at most
            `side` pixels wide and high, small ones enlarged by whole pixels.
        row_titles: one for each row.
        captions: one below each image.
        chosen: which images are framed.
        side: pixels.
    """
    font = ImageFont.load_default(13)
    title_height, caption_height = 22, 18 if captions else 0
    columns = max(len(row) for row in rows)
    row_height = title_height + side + caption_height + _GAP
    row_titles = [" ".join(title.split())[:_LONGEST_TITLE] for title in row_titles]
    title_width = max(int(font.getlength(title)) for title in row_titles)
    width = max(columns * (side + _GAP), title_width) + 2 * _GAP
    sheet = Image.new("RGB", (width, len(rows) * row_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for r, (row, title) in enumerate(zip(rows, row_titles, strict=True)):
        top = _GAP + r * row_height
        draw.text((_GAP, top), title, fill=_INK, font=font)
        top += title_height
        for c, file in enumerate(row):
            left = _GAP + c * (side + _GAP)
            with Image.open(file) as image:
                shown = _fit(image, side)
            x, y = left + (side - shown.width) // 2, top + (side - shown.height) // 2
            sheet.paste(shown, (x, y))
            framed = chosen is not None and chosen[r][c]
            if framed:
                draw.rectangle((x - 3, y - 3, x + shown.width + 2, y + shown.height + 2), outline=_CHOSEN, width=3)
            if captions:
                draw.text((left, top + side + 2), captions[r][c], fill=_CHOSEN if framed else _INK, font=font)
    return sheet


def _fit(image: Image.Image, side: int) -> Image.Image:
    larger = max(image.size)
    if larger <= side:
        factor = side // larger
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    scale = side / larger
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )
