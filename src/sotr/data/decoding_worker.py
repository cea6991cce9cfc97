"""What a process of `sotr.data.decoding_pool` does: it decodes one image after the other, until its input ends."""

import os
import signal
import struct
import sys
from pathlib import Path
from typing import BinaryIO

from sotr.data.choice import Choice
from sotr.data.images import PictureTooLargeError, load_image
from sotr.errors import SOTRError

JOB = struct.Struct("<?QQQdd")
"""Before a job: whether it is a path, its bytes, those of the choice, the most pixels, seconds, and seconds of
processor time (0: any)."""

RESULT = struct.Struct("<BQQ")
"""Before a result: its kind; of an image height and width, else the bytes of a message."""

IMAGE, REFUSED, TOO_LARGE, NO_MEMORY = range(4)


def main() -> None:
    """Decode what standard input asks for."""
    jobs, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # A library that prints must not speak in the place of a result.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent says when it is over
        signal.signal(number, signal.SIG_IGN)
    while head := jobs.read(JOB.size):
        is_path, size, chosen, max_pixels, seconds, processor_seconds = JOB.unpack(head)
        choice, content = Choice.from_json(jobs.read(chosen).decode()), jobs.read(size)
        _limit(seconds, processor_seconds)
        try:
            _answer(results, Path(os.fsdecode(content)) if is_path else content, max_pixels, choice)
        finally:
            _limit(0, 0)


def _limit(seconds: float, processor_seconds: float) -> None:
    """Let the system end this process after so much time, even inside a decoder, and even if the parent is gone."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)
        signal.setitimer(signal.ITIMER_PROF, processor_seconds)


def _answer(results: BinaryIO, source: Path | bytes, max_pixels: int, choice: Choice) -> None:
    try:
        image = load_image(source, max_pixels=max_pixels, choice=choice)
    except (SOTRError, MemoryError) as error:
        # The loader says of a decoder's every failure that the file is damaged.
        no_memory = isinstance(error, MemoryError) or isinstance(error.__context__, MemoryError)
        kind = NO_MEMORY if no_memory else TOO_LARGE if isinstance(error, PictureTooLargeError) else REFUSED
        message = str(error).encode("utf-8", "surrogateescape")
        results.write(RESULT.pack(kind, len(message), 0) + message)
    else:
        results.write(RESULT.pack(IMAGE, *image.shape[:2]))
        results.write(image.data)
    results.flush()
