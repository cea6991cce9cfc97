"""File names as other computers and tools write them, and the files that they mean."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from sotr.data.images import images_below, is_file

LONGEST = 255
"""Bytes that file systems allow for one part of a path."""

_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of an uploaded image."""


def inside(name: str) -> str:
    """The name as a relative path that stays inside its folder: itself, if it is one.

    Of an address (https://..., s3://..., or Label Studio's /data/local-files/?d=...) the path is taken. Drives, leading
    slashes and steps upwards are left out.
    """
    plain = not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|[\\/]", name) and ".." not in re.split(r"[\\/]", name)
    return name if plain else "/".join(_parts(name))


def is_possible(name: str) -> bool:
    """Whether a file system can have such a name."""
    try:
        parts = [os.fsencode(part) for part in re.split(r"[\\/]", name)]
    except UnicodeEncodeError:
        return False
    return "\0" not in name and all(len(part) <= LONGEST for part in parts)


def find_names(names: Sequence[str], folder: Path) -> dict[int, str]:
    """For each image that is not in `folder` under its name: the name of the file that must be meant, where there is
    exactly one.

    Tried are forward slashes for backward ones, the last parts of a longer path, decoded percent signs, the name
    without Label Studio's prefix, and the file of that name in any folder below. A file is given once at most.

    Returns:
        The position of the image -> the file's name relative to `folder`.
    """
    missing = [i for i, name in enumerate(names) if not is_file(folder / name)]
    if not missing:
        return {}
    absent = set(missing)
    taken = {name for i, name in enumerate(names) if i not in absent}
    below: dict[str, list[str]] = {}
    for path in images_below(folder):
        below.setdefault(path.name, []).append(path.relative_to(folder).as_posix())
    found: dict[int, str] = {}
    doubtful: set[str] = set()
    for i in missing:
        choice = next((c for c in _choices(names[i]) if is_file(folder / c)), None)
        if choice is None:
            named = [c for own in _last_names(names[i]) for c in below.get(own, ())]
            choice = named[0] if len(named) == 1 else None
        if choice is None or choice in taken:
            continue
        if choice in found.values():
            doubtful.add(choice)
        found[i] = choice
    return {i: choice for i, choice in found.items() if choice not in doubtful}


def _parts(name: str) -> list[str]:
    """The parts of the path in a name or address, without drives, roots and steps upwards."""
    text = name.replace("\\", "/")
    if "://" in text or "/?d=" in text:
        try:
            address = urlsplit(text)
            text = (parse_qs(address.query).get("d") or [unquote(address.path)])[0].replace("\\", "/")
        except ValueError:
            pass
    parts: list[str] = []
    for part in re.sub(r"^[A-Za-z]:", "", text).split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return parts


def _choices(name: str) -> Iterator[str]:
    for parts in (_parts(name), _parts(unquote(name))):
        for first in range(len(parts)):
            yield "/".join(parts[first:])


def _last_names(name: str) -> list[str]:
    """What the file itself may be called."""
    last = (_parts(name) or [name])[-1]
    own = list(dict.fromkeys((last, unquote(last))))
    return own + [stripped for each in own if (stripped := _UPLOADED.sub("", each, count=1)) != each]
