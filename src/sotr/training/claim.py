"""A run folder belongs to one process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sotr.errors import SOTRError

LOCK = ".lock"
"""File in a run folder that the process which works there holds; the system lets go of it when that dies."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """In the block the folder is there, and this process's alone. If it was not there and stays empty, it goes again.

    Raises:
        SOTRError: another process works in it, or it cannot be made or written.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise SOTRError(f"another process works in {folder}; wait for it, or name another folder with --out") from None
    except OSError as error:
        raise SOTRError(f"{folder} cannot be written: {error}; name another folder with --out") from None
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()  # only if it is empty
