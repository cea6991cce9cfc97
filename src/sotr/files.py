"""Files and folders that are either whole or not there, and belong to one process at a time."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sotr.errors import SOTRError

LOCK = ".lock"
"""File that the process which works in a folder holds; the system lets go of it when that dies."""

YAML_BYTES = 2**20
"""Larger YAML files are refused."""

YAML_REFERENCES = 8
"""YAML files with more references are refused."""


def cache_folder() -> Path:
    """`SOTR_CACHE` in the environment, or sotr in the user's cache folder."""
    named = os.environ.get("SOTR_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sotr"


def read_settings(path: Path, known: Sequence[str]) -> dict[Any, Any]:
    """The settings in a YAML or JSON file, as they stand there.

    Args:
        known: what they may be called, for the message; nothing is held against it.

    Raises:
        SOTRError: the file cannot be read, or holds no settings; names it.
    """
    values = read_yaml(path)  # JSON is YAML, too
    if not isinstance(values, dict):
        raise SOTRError(f"{path} must hold 'key: value' lines; the keys are {', '.join(known)}")
    return values


def read_yaml(path: Path) -> Any:
    """The value in a YAML file of at most `YAML_BYTES`.

    Raises:
        SOTRError: it cannot be read; names it.
    """
    import yaml  # the command line starts quicker where nobody reads settings

    try:
        with path.open("rb") as file:
            content = file.read(YAML_BYTES + 1)
        if len(content) > YAML_BYTES:
            raise SOTRError(f"{path} has more than {YAML_BYTES // 2**20} MiB, which is too much for settings")
        # References to references make values that are larger than any memory.
        if sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, yaml.SafeLoader)) > YAML_REFERENCES:
            raise SOTRError(f"{path} has more than {YAML_REFERENCES} references (*name); write the values out")
        return yaml.safe_load(content)
    except OSError as error:
        raise SOTRError(f"{path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        # Besides its own errors, PyYAML raises what Python says of odd dates, numbers and keys.
        raise SOTRError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from None


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that replaces it when the block ends well, and vanishes when it does not.

    Args:
        path: the file to write; its folder is created if absent.
        mode: "wb" for bytes or "w" for UTF-8 text.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)  # opened again by its name, which the block may want to know
    try:
        # mkstemp makes private files; the result should have the permissions of any other new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and vanishes when it does not.

    Args:
        path: a new folder, or an empty one.

    Raises:
        SOTRError: `path` is there already, and not an empty folder.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise SOTRError(f"{path} is there already; name a new folder, or empty that one")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in UTF-8; in ASCII where a text cannot be written in UTF-8."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        path.write_bytes(text.encode("utf-8"))
    except UnicodeEncodeError:
        path.write_bytes(json.dumps(value).encode("ascii"))


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, which takes no room, or a copy where the file system cannot."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _sync_folder(folder: Path) -> None:
    """Bring a folder's new names to the disk, where the system can: a power cut must not undo a rename."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # some network file systems have no such thing
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """In the block the folder is there, and this process's alone. If it was not there and stays empty, it goes again.

    Raises:
        SOTRError: another process works in it, or it cannot be made or written.
    """
    from filelock import FileLock, Timeout  # only where something is claimed

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
        # While it is held: afterwards the file may be another process's.
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            folder.rmdir()  # only if it is empty
