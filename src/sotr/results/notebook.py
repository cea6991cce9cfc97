"""How objects show themselves in a notebook: the overlay and a table."""

import base64
import io
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sotr.errors import SOTRError
from sotr.results.drawing import draw_overlay

if TYPE_CHECKING:
    from sotr.results.instances import Instances

ROWS = 20
"""Objects that the table lists at most."""

LONGEST_EDGE = 900
"""Pixels of the longest edge of the overlay in a notebook; larger ones are shrunk."""

MOST_PIXELS = 30_000_000
"""Images of more pixels are not drawn unasked: that would take seconds and much memory."""

BACKGROUND = 40
"""Gray value behind masks whose image is gone."""


def html_of(instances: "Instances") -> str:
    """The overlay, at most `LONGEST_EDGE` pixels long, above a table of the first `ROWS` objects, as HTML."""
    height, width = instances.image_size
    counts = ", ".join(f"{escape(name)}: {count}" for name, count in instances.counts().items())
    noun = "object" if len(instances) == 1 else "objects"
    parts = [f"<p>{len(instances)} {noun} in {height} x {width} px{f'; {counts}' if counts else ''}</p>"]
    parts.append(_overlay(instances))
    if len(instances):
        parts.append(_table(instances))
    return f'<div class="sotr-instances">{"".join(parts)}</div>'


def _overlay(instances: "Instances") -> str:
    height, width = instances.image_size
    if height * width > MOST_PIXELS:
        return f"<p>{height * width / 1e6:.0f} megapixels are not drawn unasked; call draw(image)</p>"
    if not height * width:
        return ""
    overlay = Image.fromarray(instances.draw())
    overlay.thumbnail((LONGEST_EDGE, LONGEST_EDGE))
    file = io.BytesIO()
    overlay.save(file, "JPEG", quality=90)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="overlay" style="max-width:100%" src="data:image/jpeg;base64,{data}">'


def _table(instances: "Instances") -> str:
    rows = [
        f"<tr><td>{i}</td><td>{escape(instances.class_names[one.labels_I[0]])}</td>"
        f"<td>{one.scores_I[0]:.3f}</td><td>{one.areas_I[0]}</td></tr>"
        for i, one in enumerate(instances[:ROWS])
    ]
    more = len(instances) - ROWS
    rest = f"<p>and {more} more</p>" if more > 0 else ""
    head = "<tr><th></th><th>class</th><th>score</th><th>area (px)</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>{rest}"


def draw_on_source(instances: "Instances", scale: int | None) -> NDArray[np.uint8]:
    """The overlay on the image that the objects came from, or on a plain background where that is gone."""
    image = None if instances.source is None else instances.source.image()
    if image is not None:
        try:
            return draw_overlay(instances, image, scale)
        except SOTRError:
            # The file is gone or another one now, or the file has several images.
            pass
    return draw_overlay(instances, np.full((*instances.image_size, 3), BACKGROUND, np.uint8), scale)
