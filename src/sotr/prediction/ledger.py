"""What `predict` wrote to a folder, so that the next run into it can remove what is no result of its own."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from sotr.files import atomic_write

LEDGER_FILE = ".sotr-written.jsonl"
"""A line of JSON for each file: its path below the folder, its bytes and when it was last written, in nanoseconds."""


@dataclass
class Ledger:
    """The files of this run and of an earlier one; made by `ledger`."""

    out: Path
    _inputs: frozenset[Path]
    _earlier: dict[str, tuple[int, int]]
    _file: IO[str]
    _own: dict[str, tuple[int, int]] = field(default_factory=dict)
    removed: int = 0
    """Files of the earlier run that are gone now."""
    changed: list[str] = field(default_factory=list)
    """Files of the earlier run that someone else has changed since: they stay."""

    def note(self, paths: Iterable[Path]) -> None:
        """Remember files that this run has written."""
        for path in paths:
            name, state = path.relative_to(self.out).as_posix(), path.stat()
            self._own[name] = state.st_size, state.st_mtime_ns
            self._file.write(_line(name, self._own[name]))
        self._file.flush()

    def close(self) -> None:
        """Remove what the earlier run wrote, this one did not, and nobody changed."""
        for name, state in self._earlier.items():
            path = self.out / name
            if name in self._own or not path.is_file() or path.is_symlink() or path.resolve() in self._inputs:
                continue
            found = path.stat()
            if (found.st_size, found.st_mtime_ns) != state:
                self.changed.append(name)
                continue
            path.unlink()
            self.removed += 1
            for folder in path.parents:
                if folder == self.out:
                    break
                with suppress(OSError):  # it is not empty
                    folder.rmdir()
        with atomic_write(self.out / LEDGER_FILE, "w") as file:
            file.writelines(_line(name, state) for name, state in self._own.items())


@contextmanager
def ledger(out: Path, inputs: Iterable[Path]) -> Iterator[Ledger]:
    """The list of files of a folder, which is brought up to date when the block ends well; if it does not, what either
    run wrote stays listed.

    Args:
        out: the folder.
        inputs: images of this run, which stay in any case.
    """
    out.mkdir(parents=True, exist_ok=True)
    earlier = dict(_read(out))
    try:
        with (out / LEDGER_FILE).open("a", encoding="utf-8") as file:
            kept = Ledger(out, frozenset(path.resolve() for path in inputs), earlier, file)
            yield kept
    except BaseException:
        if not (out / LEDGER_FILE).stat().st_size:
            (out / LEDGER_FILE).unlink()
        raise
    kept.close()


def _line(name: str, state: tuple[int, int]) -> str:
    return json.dumps([name, *state]) + "\n"


def _read(out: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """The files that an earlier run noted, below the folder; a line that was cut off is passed over."""
    try:
        lines = (out / LEDGER_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        with suppress(ValueError, TypeError):
            name, size, written = json.loads(line)
            if not os.path.isabs(name) and ".." not in Path(name).parts:
                yield str(name), (int(size), int(written))
