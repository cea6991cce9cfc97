"""Images beside one another, each under its title."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont


def panel_sheet(panels: Sequence[tuple[str, NDArray[np.uint8]]], columns: int | None = None) -> NDArray[np.uint8]:
    """One RGB image with all panels, row by row.

    Args:
        panels: a title and an RGB uint8 image each; smaller images keep their size.
        columns: panels per row; None puts all into one.
    """
    columns = len(panels) if columns is None else min(columns, len(panels))
    height = max(picture.shape[0] for _, picture in panels)
    width = max(picture.shape[1] for _, picture in panels)
    gap, bar = max(4, height // 100), max(20, height // 20)
    font = ImageFont.load_default(size=int(bar * 0.62))
    # One row of images of unlike widths needs no columns.
    widths = [picture.shape[1] for _, picture in panels] if columns == len(panels) else [width] * columns
    rows = math.ceil(len(panels) / columns)
    sheet = Image.new("RGB", (sum(widths) + gap * (columns - 1), rows * (height + bar) + gap * (rows - 1)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (title, picture) in enumerate(panels):
        row, column = divmod(number, columns)
        left, top = sum(widths[:column]) + gap * column, row * (height + bar + gap)
        sheet.paste(Image.fromarray(picture), (left, top + bar))
        pen.text((left + 4, top + bar / 2), title, fill="black", font=font, anchor="lm")
    return np.asarray(sheet)
