"""Contact sheets: many images on one sheet, with captions."""

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
    cell: tuple[int, int] = (160, 160),
) -> Image.Image:
    """Return a sheet with rows of images, each row below its title.

    Args:
        rows: image files of each row. They are opened one at a time and may have any size. Each image is
            scaled to fit its cell; small ones are enlarged by a whole factor.
        row_titles: title of each row.
        captions: caption below each image.
        chosen: True for images to frame.
        cell: width and height of a cell in pixels.
    """
    font = ImageFont.load_default(13)
    title_height, caption_height = 22, 18 if captions else 0
    columns = max(len(row) for row in rows)
    cell_width, cell_height = cell
    row_height = title_height + cell_height + caption_height + _GAP
    row_titles = [" ".join(title.split())[:_LONGEST_TITLE] for title in row_titles]
    title_width = max(int(font.getlength(title)) for title in row_titles)
    width = max(columns * (cell_width + _GAP), title_width) + 2 * _GAP
    sheet = Image.new("RGB", (width, len(rows) * row_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for r, (row, title) in enumerate(zip(rows, row_titles, strict=True)):
        top = _GAP + r * row_height
        draw.text((_GAP, top), title, fill=_INK, font=font)
        top += title_height
        for c, file in enumerate(row):
            left = _GAP + c * (cell_width + _GAP)
            with Image.open(file) as image:
                fitted = _fit(image, cell)
            x, y = left + (cell_width - fitted.width) // 2, top + (cell_height - fitted.height) // 2
            sheet.paste(fitted, (x, y))
            framed = chosen is not None and chosen[r][c]
            if framed:
                draw.rectangle(
                    (x - 3, y - 3, x + fitted.width + 2, y + fitted.height + 2), outline=_CHOSEN, width=3
                )
            if captions:
                draw.text(
                    (left, top + cell_height + 2), captions[r][c], fill=_CHOSEN if framed else _INK, font=font
                )
    return sheet


def _fit(image: Image.Image, cell: tuple[int, int]) -> Image.Image:
    scale = min(cell[0] / image.width, cell[1] / image.height)
    if scale >= 1:
        factor = int(scale)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )
