"""What is to be segmented: images, lists of them, videos and cameras."""

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sotr.data.choice import WHOLE, Choice
from sotr.data.images import MICROSCOPE_SUFFIXES, image_stack, list_images
from sotr.data.sources import is_one_image, is_url, several_images
from sotr.errors import SOTRError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"})
"""File name endings, in lower case, of videos."""

LIST_SUFFIX = ".txt"
"""Ending of a file that lists images, one path a line."""


@dataclass(frozen=True)
class Picked:
    """One image to segment."""

    path: Path
    choice: Choice = WHOLE
    """Which image of the file it is, and which values become black and white."""
    number: int | None = None
    """Which plane of a stack it is, from 1, where all are segmented."""

    def named(self, name: str) -> str:
        """A name for people, with the number of the plane."""
        return name if self.number is None else f"{name}#{self.number}"

    @property
    def own_path(self) -> Path:
        """A path that no other image has."""
        return self.path if self.number is None else self.path.with_stem(f"{self.path.stem}-p{self.number:04d}")


def pick(paths: Sequence[Path], choice: Choice) -> tuple[list[Picked], dict[str, int]]:
    """The images of files of which channels or planes are chosen: of those that are stacks one for each plane, or for
    each projection, that is meant.

    Returns:
        The images; and, for TIFF files with more than one image, what they hold, and how many files hold that.
    """
    picked: list[Picked] = []
    kinds: Counter[str] = Counter()
    for path in paths:
        stack = image_stack(path) if choice.channel is not None or choice.plane is not None else None
        own = [choice] if stack is None else list(stack.split(choice))
        picked += [Picked(path, each, number if len(own) > 1 else None) for number, each in enumerate(own, 1)]
        if stack is not None and stack.planes * stack.channels > 1:
            kinds[str(stack)] += 1
    return picked, dict(kinds)


@dataclass(frozen=True)
class Inputs:
    """Inputs by kind, in order."""

    pictures: tuple[str | Path, ...]
    """Files, folders, glob patterns, and text files that list images."""
    videos: tuple[Path | int, ...]
    """Video files, and the numbers of cameras."""

    @classmethod
    def of(cls, inputs: str | Path | Sequence[str | Path]) -> "Inputs":
        """Sort inputs by kind.

        Raises:
            SOTRError: there are none, or a video does not exist.
        """
        items: list[str | Path] = [inputs] if isinstance(inputs, (str, Path)) else []
        if not items:
            items = list(several_images([inputs] if is_one_image(inputs) else inputs))
        for item in items:
            if not isinstance(item, (str, Path, int)):
                raise SOTRError(
                    f"sotr.predict takes files and writes a folder; for {type(item).__name__} and other images in "
                    "memory: sotr.load('nuclei').predict(image)"
                )
            if is_url(item):
                raise SOTRError(f"{item} is a URL; download it first: curl --remote-name {shlex.quote(str(item))}")
        if not items:
            raise SOTRError("no images given; name files, folders or glob patterns")
        videos = tuple(_video(item) for item in items if _is_video(item))
        for video in videos:
            if isinstance(video, Path) and not video.is_file():
                raise SOTRError(f"{video}: no such file")
        return cls(tuple(item for item in items if not _is_video(item)), videos)

    def paths(self) -> list[Path]:
        """Every image once, in order.

        Raises:
            SOTRError: an input does not exist or holds no images; files that a list names are not looked for.
        """
        found: dict[str, Path] = {}
        for name in self.names():
            found.setdefault(os.path.abspath(name), Path(name))
        return list(found.values())

    def names(self) -> Iterator[str]:
        """The paths of all images as they come; lists are read line by line.

        Raises:
            SOTRError: as `paths`.
        """
        for item in self.pictures:
            if is_list(item):
                yield from _lines(Path(item))
            else:
                yield from map(str, list_images([item], MICROSCOPE_SUFFIXES))


def is_list(item: str | Path) -> bool:
    """Whether an input is a text file that lists images."""
    return Path(item).suffix.lower() == LIST_SUFFIX and Path(item).is_file()


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as begun:
            marked = begun.read(2) in (b"\xff\xfe", b"\xfe\xff")  # PowerShell's > writes UTF-16
        encoding, errors = ("utf-16", "strict") if marked else ("utf-8-sig", "surrogateescape")
        with path.open(encoding=encoding, errors=errors) as file:
            empty = True
            for line in file:
                name = line.rstrip("\r\n")
                if name != name.strip() and not os.path.exists(name):
                    name = name.strip()
                if name:
                    empty = False
                    yield name
    except UnicodeDecodeError:
        raise SOTRError(f"{path}: is no text in UTF-16, as its first bytes say; save it as UTF-8") from None
    except OSError as error:
        raise SOTRError(f"{path}: cannot be read: {error.strerror or error}") from error
    if empty:
        raise SOTRError(f"{path}: the list is empty; write one path a line")


def _is_video(item: str | Path) -> bool:
    path = Path(item)
    return path.suffix.lower() in VIDEO_SUFFIXES or (str(item).isdecimal() and not path.exists())


def _video(item: str | Path) -> Path | int:
    return int(str(item)) if str(item).isdecimal() else Path(item)
