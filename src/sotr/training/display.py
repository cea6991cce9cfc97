"""What the user sees of a training, and how it is asked to stop."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

ROWS_BESIDES = 6
"""Rows of the terminal that the table of epochs leaves for its head, the bar and messages."""


class Stop(Exception):
    """Leaves the training loop because a signal asked for it: after `last.ckpt` has been written, or at once."""


class Interrupts:
    """Ctrl-C and SIGTERM stop the training at the next safe moment; a second one stops it at once."""

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
        with suppress(RuntimeError):  # the signal came while a line was written, and Python refuses another inside it
            self._console.print("stopping after this step; once more to stop without saving")


class Display:
    """Progress on the terminal: a live table with a row per epoch, over a bar for what goes on; elsewhere, as in a log
    file, one line per epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._shown = console.is_terminal and not console.quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._task: TaskID | None = None
        self._rows: list[Mapping[str, str]] = []
        self._running: Mapping[str, str] = {}
        self._live = Live(console=console, get_renderable=self.rendered, vertical_overflow="crop")

    def __enter__(self) -> "Display":
        if self._shown:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_task()
        self._running = {}
        if self._shown:
            self._live.stop()

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Replace the bar by a new one."""
        self._end_task()
        self._task = self._progress.add_task(title, total=total, completed=done)

    def _end_task(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def advance(self, count: int = 1, running: Mapping[str, str] | None = None) -> None:
        """So many steps further; `running` are the numbers of the epoch that is not over, by column."""
        if self._task is not None:
            self._progress.advance(self._task, count)
        if running is not None:
            self._running = running

    def epoch(self, row: Mapping[str, str], line: str) -> None:
        """An epoch is over: its numbers by column for the table, and in one line for where there is none."""
        self._rows.append({**self._running, **row})
        self._running = {}
        if not self._shown:
            self.console.print(line, highlight=False)

    def rendered(self) -> Group:
        """The table and the bar."""
        running = [self._running] if self._running else []
        # What is taller than the terminal cannot be redrawn.
        rows = [*self._rows, *running][-max(1, self.console.height - ROWS_BESIDES) :]
        columns = list(dict.fromkeys(name for row in [*rows[-1:], *rows] for name in row))
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*(row.get(name, "") for name in columns), style="dim" if row is self._running else None)
        return Group(*([table] if columns else []), self._progress)


def duration(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's remarks on devices, workers, tips and what it restores; its errors remain exceptions."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    hook, threading.excepthook = threading.excepthook, _without_writers(threading.excepthook)
    try:
        with warnings.catch_warnings():
            for remark in _REMARKS:
                warnings.filterwarnings("ignore", message=remark)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        threading.excepthook = hook


def _without_writers(
    hook: Callable[[threading.ExceptHookArgs], object],
) -> Callable[[threading.ExceptHookArgs], object]:
    """The hook, silent where a thread of TensorBoard cannot write: the run itself ends with one line about that."""

    def quiet(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard")):
            hook(args)

    return quiet


_REMARKS = (
    r".*does not have many workers",
    r".*available but not used",
    r".*ended before the epoch ended and your dataloader is not resumable",  # it is: RunKeeper moves the sampler
    r".*module\(s\) in eval mode at the start of training",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*You're using the WeightAveraging callback with a model that overrides",
)
