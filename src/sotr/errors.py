"""The one error that users are meant to see, one line of others, and the nearest of some words."""

from collections.abc import Iterable
from difflib import get_close_matches


class SOTRError(Exception):
    """Bad input: a file, annotation, checkpoint or setting that cannot be used.

    The message is one line that names the thing and the remedy. The command line prints it without a traceback and
    exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says anything, or the error's type."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint to the known word that is spelled most alike, to put behind an unknown one; empty if none is near."""
    spelled = {name.lower(): name for name in known}
    longer = sorted((name for name in spelled if name.startswith(word.lower())), key=len)
    found = longer or get_close_matches(word.lower(), spelled, 1)
    return f", did you mean {spelled[found[0]]!r}?" if found else ""
