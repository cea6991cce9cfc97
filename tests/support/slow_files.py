"""Small files that keep a decoder busy."""

import io

from PIL import Image


def jpeg_of_scans(scans: int, side: int = 64) -> bytes:
    """A gray progressive JPEG file whose last scan is repeated."""
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "JPEG", progressive=True, quality=1)
    whole = buffer.getvalue()
    last = whole.rfind(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * scans + b"\xff\xd9"
