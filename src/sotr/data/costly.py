"""Files that are small and take minutes to decode; they are refused by what they say of themselves."""

import re
from pathlib import Path

from sotr.errors import SOTRError

MAX_SCANS = 256
"""Scans of a JPEG file. Programs write at most some dozens; each makes the decoder go over the whole image."""

MAX_PLAIN_BYTES = 4_000_000
"""Bytes of a PBM, PGM or PPM file whose values are written as text, which Pillow reads in Python, number by number."""

MAX_PLAIN_COMMENTS = 100
"""Comments in such a file; the time that Pillow takes grows with their number squared."""

_JPEG, _PLAIN = b"\xff\xd8\xff", (b"P1", b"P2", b"P3")
_START_OF_SCAN, _END = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)


def refuse_costly(source: str | Path | bytes, name: str) -> None:
    """Refuse a file that would keep its decoder busy for minutes. Files that cannot be opened are left to the loader.

    Raises:
        SOTRError: it is a JPEG file of too many scans, or a large PNM file whose values are written as text.
    """
    try:
        content = source if isinstance(source, bytes) else _content(Path(source))
    except (OSError, ValueError):  # the latter of names that no file can have
        return
    if content.startswith(_JPEG) and scans_of(content, MAX_SCANS) > MAX_SCANS:
        raise SOTRError(
            f"{name}: has more than {MAX_SCANS} scans, which no camera or program writes; save it again as PNG or JPEG"
        )
    if content.startswith(_PLAIN) and (
        len(content) > MAX_PLAIN_BYTES or content.count(b"#", 0, MAX_PLAIN_BYTES) > MAX_PLAIN_COMMENTS
    ):
        raise SOTRError(
            f"{name}: is a PNM file with its values as text, of more than {MAX_PLAIN_BYTES / 1e6:g} MB or with more "
            f"than {MAX_PLAIN_COMMENTS} comments; save it again as PNG or as binary PNM"
        )


def scans_of(jpeg: bytes, most: int) -> int:
    """The scans of a JPEG file's first image; counting ends above `most`."""
    if jpeg.count(b"\xff\xda") <= most:  # at once, for nearly all files
        return jpeg.count(b"\xff\xda")
    scans, at = 0, 2
    while scans <= most and (found := _MARKER.search(jpeg, at)) is not None:
        at, marker = found.end(), found[1][0]
        if marker == _END:
            break
        scans += marker == _START_OF_SCAN
        at += max(2, int.from_bytes(jpeg[at : at + 2], "big"))  # what a segment holds is no marker
    return scans


def _content(path: Path) -> bytes:
    """The whole file if it is of a kind that is looked into, else nothing."""
    with path.open("rb") as file:
        begin = file.read(3)
        if begin.startswith(_PLAIN):
            return begin + file.read(MAX_PLAIN_BYTES)
        return begin + file.read() if begin == _JPEG else b""
