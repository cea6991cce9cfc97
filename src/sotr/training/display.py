"""The training's side towards the user: progress, and the wish to stop."""

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Stop(Exception):
    """Leaves the training loop because a signal asked for it: after `last.ckpt` has been written, or at once."""


class Interrupts:
    """Ctrl-C and SIGTERM as a wish that the training grants at the next safe moment; the second one is immediate."""

    def __init__(self, console: Console) -> None:
        self.number: int | None = None
        self._console = console
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: signals keep what they did
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # None: it was not Python that installed it
                signal.signal(number, handler)

    @property
    def terminated(self) -> bool:
        """Whether the wish was a SIGTERM, or another process's."""
        return self.number != signal.SIGINT

    def claim(self) -> None:
        """Handle the signals alone again: Lightning's trainer wraps SIGTERM's handler in one of its own, which leaves
        the loop between steps without saving anything."""
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A loader worker, which inherited this handler: the terminal's Ctrl-C is the main process's business.
            if number == signal.SIGTERM:
                os._exit(0)
            return
        if self.number is not None:
            raise Stop
        self.number = number
        self._console.print("stopping after this step; once more to stop without saving")


class Display:
    """Progress on the terminal: a bar per epoch, and one line per epoch that also fits a log file."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=console.quiet or not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Replace the bar by a new one."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(title, total=total, completed=done, note="")

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """So many steps further."""
        if self._task is not None:
            self._progress.advance(self._task, count)
            if note is not None:
                self._progress.update(self._task, note=note)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's remarks on devices, workers, tips and what it restores; its errors remain exceptions."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for remark in _REMARKS:
                warnings.filterwarnings("ignore", message=remark)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_REMARKS = (
    r".*does not have many workers",
    r".*available but not used",
    r".*ended before the epoch ended and your dataloader is not resumable",  # it is: RunKeeper moves the sampler
    r".*module\(s\) in eval mode at the start of training",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",
)
