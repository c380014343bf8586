"""Contact sheets: many images on one sheet, with captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _CHOSEN = "white", "#1b1f24", "#b3261e"
_GAP = 6
_LINE = 17
"""Height of a line of a column's title in pixels."""

_MOST_LINES = 3
_LONGEST_TITLE = 100


def contact_sheet(
    rows: Sequence[Sequence[Path]],
    row_titles: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    chosen: Sequence[Sequence[bool]] | None = None,
    cell: tuple[int, int] = (160, 160),
    column_titles: Sequence[str] = (),
    font: Any = None,
) -> Image.Image:
    """Return a sheet with rows of images, each row below its title.

    Args:
        rows: image files of each row. They are opened one at a time and may have any size. Each image is
            scaled to fit its cell; small ones are enlarged by a whole factor.
        row_titles: title of each row.
        captions: caption below each image.
        chosen: True for images to frame.
        cell: width and height of a cell in pixels.
        column_titles: title of each column, in lines as wide as the column.
        font: font of 13 pixels; None is Pillow's, which has Latin letters only.
    """
    if font is None:
        font = ImageFont.load_default(13)
    title_height, caption_height = 22, 18 if captions else 0
    columns = max(len(row) for row in rows)
    cell_width, cell_height = cell
    row_height = title_height + cell_height + caption_height + _GAP
    row_titles = [" ".join(title.split())[:_LONGEST_TITLE] for title in row_titles]
    headings = [_wrap(title, font, cell_width) for title in column_titles]
    heading_lines = max((heading.count("\n") + 1 for heading in headings), default=0)
    top_height = _GAP + (heading_lines * _LINE + 2 * _GAP if headings else 0)
    title_width = max(int(font.getlength(title)) for title in row_titles)
    width = max(columns * (cell_width + _GAP), title_width) + 2 * _GAP
    sheet = Image.new("RGB", (width, top_height + len(rows) * row_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for c, heading in enumerate(headings):
        draw.multiline_text((_GAP + c * (cell_width + _GAP), _GAP), heading, fill=_INK, font=font, spacing=2)
    for r, (row, title) in enumerate(zip(rows, row_titles, strict=True)):
        top = top_height + r * row_height
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


def _wrap(text: str, font: Any, width: int) -> str:
    """Break a text into at most `_MOST_LINES` lines of at most `width` pixels; "..." stands for the rest."""
    lines = [""]
    for word in text[: _MOST_LINES * width].split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    lines = [_cut(line, font, width) for line in lines if line]
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES - 1] = _cut(f"{lines[_MOST_LINES - 1]} {lines[_MOST_LINES]}", font, width)
    return "\n".join(lines[:_MOST_LINES])


def _cut(line: str, font: Any, width: int) -> str:
    """Cut a line to a width in pixels."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}...") > width:
        line = line[:-1]
    return f"{line.rstrip(' .')}..."


def _fit(image: Image.Image, cell: tuple[int, int]) -> Image.Image:
    scale = min(cell[0] / image.width, cell[1] / image.height)
    if scale >= 1:
        factor = int(scale)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )
