"""The progress bar of work on many files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(title: str, total: int | None, console: Console) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs, on terminals only; it vanishes afterwards.

    Args:
        total: number of items; None if it is not known.

    Yields:
        What moves the bar on by a number of items.
    """
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    disable = console.quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
