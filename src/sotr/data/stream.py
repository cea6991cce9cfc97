"""A JSON file read piece by piece: COCO's training annotations take 450 MB, and five times that as Python objects."""

import json
from collections.abc import Generator, Iterator, Sequence
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TextIO

from sotr.errors import SOTRError

_BLOCK = 2**22
"""Characters that are read at a time."""

_SPACE = " \t\n\r"
_BEHIND = frozenset(f"{_SPACE},:]}}")
"""What may follow a value."""


def read_lists(path: Path, wanted: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """The entries of the lists that a JSON file's object holds under the `wanted` keys, in the file's order.

    Args:
        optional: those of the keys that may be absent.

    Yields:
        (key, entry); each list is announced by (key, None) before its first entry. An entry `null` is given as "null".

    Raises:
        SOTRError: the file is missing or no JSON, or is no object, or one of the keys has no list and is not optional.
    """
    try:
        with path.open("rb") as file:
            encoding = json.detect_encoding(file.read(4))
        with path.open(encoding="utf-8-sig" if encoding == "utf-8" else encoding) as file:
            found = yield from _object(_Text(file), frozenset(wanted))
    except (_Irregular, ValueError, RecursionError, OSError) as error:
        # The whole file at once makes the better message; it also reads other encodings than UTF-8.
        read_whole(path)
        raise SOTRError(f"{path}: cannot be read as JSON; {error or 'save it again as UTF-8'}") from None
    for key in wanted:
        if key not in found and key not in optional:
            raise SOTRError(f'{path}: has no list "{key}"; a COCO instance file has images, annotations and categories')


def read_whole(path: Path) -> Any:
    """A JSON file's value.

    Raises:
        SOTRError: the file is missing, no JSON, or no object.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SOTRError(f"{path}: no such file; check the path of the annotations") from None
    except JSONDecodeError as error:
        raise SOTRError(f"{path}: is no valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise SOTRError(f"{path}: is nested too deeply for a COCO file; export it again") from None
    except (ValueError, OSError) as error:
        raise SOTRError(f"{path}: cannot be read as JSON; {str(error)[:200]}") from None
    if not isinstance(data, dict):
        raise SOTRError(f"{path}: is {show(data)}; a COCO file is an object with images, annotations and categories")
    return data


def show(value: object) -> str:
    """A JSON value in at most 40 characters."""
    try:
        text = json.dumps(value, default=str)
    except RecursionError:
        text = "a value nested deeply"
    return text if len(text) <= 40 else text[:37] + "..."


class _Irregular(Exception):
    """Not what JSON has at this place."""


class _Text:
    """A file's text, of which only the part at hand is in memory."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at, self._ended = file, "", 0, False
        self._decode = json.JSONDecoder().raw_decode

    def _more(self) -> bool:
        # A value that fills the buffer doubles it, so that long ones are not tried too often.
        new = "" if self._ended else self._file.read(max(_BLOCK, len(self._text) - self._at))
        self._ended = not new
        self._text, self._at = self._text[self._at :] + new, 0
        return not self._ended

    def next(self) -> str:
        """The next character that is no space; it stays. Empty at the end."""
        while True:
            text, at = self._text, self._at
            while at < len(text) and text[at] in _SPACE:
                at += 1
            self._at = at
            if at < len(text):
                return text[at]
            if not self._more():
                return ""

    def take(self, expected: str) -> str:
        """The next character that is no space, which must be one of `expected`."""
        found = self.next()
        if not found or found not in expected:
            raise _Irregular(f"found {found!r} in place of {' or '.join(expected)}")
        self._at += 1
        return found

    def value(self) -> Any:
        """The next JSON value."""
        self.next()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except JSONDecodeError:
                if not self._more():
                    raise
                continue
            length, complete = end - self._at, self._text[end : end + 1] in _BEHIND
            # A number at the end of what is at hand may go on, as in "1" and "1." of 1.5.
            if complete or not self._more():
                self._at += length
                return value


def _object(text: _Text, wanted: frozenset[str]) -> Generator[tuple[str, Any], None, set[str]]:
    """The generator's return value is the set of `wanted` keys that were found with a list."""
    found: set[str] = set()
    text.take("{")
    closed = text.next() == "}" and text.take("}") == "}"
    while not closed:
        key = text.value()
        if not isinstance(key, str):
            raise _Irregular(f"found {show(key)} in place of a key")
        text.take(":")
        if key in wanted and text.next() == "[":
            found.add(key)
            yield key, None
            text.take("[")
            ended = text.next() == "]" and text.take("]") == "]"
            while not ended:
                entry = text.value()
                yield key, "null" if entry is None else entry
                ended = text.take(",]") == "]"
        else:
            text.value()
        closed = text.take(",}") == "}"
    if text.next():
        raise _Irregular("found more behind the end of the object")
    return found
