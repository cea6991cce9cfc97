"""Images decoded in processes of their own, which are ended when a file takes too long.

Decoders are C code that no thread can interrupt, and some small files keep them busy for minutes. The processes are
started as commands rather than by `multiprocessing`, which would run the caller's main script again in each of them.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from sotr.data.choice import WHOLE, Choice
from sotr.data.decoding_worker import IMAGE, JOB, NO_MEMORY, RESULT, TOO_LARGE
from sotr.data.images import MAX_PIXELS, PictureTooLargeError, load_image
from sotr.errors import SOTRError

_CODE = "import sys; sys.path[:] = sys.argv[1:]; from sotr.data.decoding_worker import main; main()"
_LONGEST = 1e6


class DecodingTimeoutError(SOTRError):
    """A file took longer than it may."""


class DecodingMemoryError(SOTRError):
    """The memory did not suffice for an image."""


class Job:
    """One image to decode, which can be given up from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.given_up = False
        """Whether its process was ended, or never began."""

    def give_up(self) -> None:
        """End the process that decodes it; does nothing to one that is done."""
        with self._lock:
            self.given_up = True
            if self._process is not None:
                self._process.kill()

    def begin(self, process: subprocess.Popen[bytes]) -> bool:
        """Let `process` have it, unless it was given up."""
        with self._lock:
            self._process = process
            return not self.given_up

    def end(self) -> bool:
        """From now on, giving up does not harm the process; says whether it was too late for that."""
        with self._lock:
            self._process = None
            return self.given_up


class DecodingPool:
    """Decodes images in a few processes; a process that is ended is replaced. Safe in several threads.

    Args:
        processes: images that are decoded at the same time, at most.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.ended = 0
        """Processes that had to be ended in the middle of a file, or ended by themselves."""
        # Last in, first out: few images need few processes.
        self._places: queue.LifoQueue[int] = queue.LifoQueue()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._busy: dict[int, tuple[Job, float]] = {}
        self._closed = False
        for place in range(processes):
            self._places.put(place)

    def start(self) -> None:
        """Start the processes now rather than when they are needed."""
        for place in range(self.processes):
            self._process(place)

    @property
    def busy(self) -> int:
        """Processes that decode."""
        return len(self._busy)

    @property
    def longest(self) -> float:
        """Seconds for which the file that is decoded longest has been decoded."""
        begun = [since for _, since in tuple(self._busy.values())]
        return time.monotonic() - min(begun) if begun else 0.0

    def load(
        self,
        source: str | Path | bytes,
        *,
        max_pixels: int = MAX_PIXELS,
        choice: Choice = WHOLE,
        seconds: float = _LONGEST,
        processor_seconds: float = 0.0,
        job: Job | None = None,
    ) -> NDArray[np.uint8]:
        """The same as `load_image`, in another process.

        Args:
            source: a file or its bytes.
            max_pixels: the largest width times height that is accepted.
            choice: which image of the file is meant, and how it becomes 8 bits.
            seconds: how long it may take, waiting for a process included.
            processor_seconds: how much processor time it may take, where the system can tell; 0: any.
            job: lets another thread give it up.

        Raises:
            PictureTooLargeError: it has more than `max_pixels` pixels.
            DecodingTimeoutError: it took too long, or was given up.
            DecodingMemoryError: the memory did not suffice.
            SOTRError: it cannot be read.
        """
        name = "<bytes>" if isinstance(source, bytes) else str(source)
        if not sys.executable or getattr(sys, "frozen", False):  # there is no command that would start Python
            return load_image(source, max_pixels=max_pixels, choice=choice)
        job, deadline = job or Job(), time.monotonic() + min(seconds, _LONGEST)
        try:
            place = self._places.get(timeout=max(0.0, min(seconds, _LONGEST)))
        except queue.Empty:
            raise _too_slow(name, seconds) from None
        try:
            self._busy[place] = (job, time.monotonic())
            remaining = max(0.01, deadline - time.monotonic())
            timer = threading.Timer(remaining, job.give_up)
            timer.daemon = True
            timer.start()
            try:
                kind, answer = self._ask(place, job, source, choice, (max_pixels, remaining + 5.0, processor_seconds))
            finally:
                timer.cancel()
                del self._busy[place]
        except _EndedError as ended:
            raise _reason(name, ended.code, job.given_up, seconds, processor_seconds) from None
        finally:
            self._places.put(place)
        if kind == IMAGE:
            assert isinstance(answer, np.ndarray)
            return answer
        if kind == NO_MEMORY:
            raise _no_memory(name)
        message = str(answer)
        if not isinstance(source, bytes):  # the process knows the file by its whole path
            message = message.replace(os.path.abspath(source), name, 1)
        raise PictureTooLargeError(message) if kind == TOO_LARGE else SOTRError(message)

    def close(self) -> None:
        """End the processes, at once."""
        self._closed = True  # a process that is started at this moment ends with its pipe
        for job, _ in tuple(self._busy.values()):
            job.give_up()
        for process in tuple(self._running.values()):
            _end(process)

    def __enter__(self) -> "DecodingPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _process(self, place: int) -> subprocess.Popen[bytes]:
        process = self._running.get(place)
        if self._closed:
            raise DecodingTimeoutError("the image was given up before it was decoded")
        if process is None or process.poll() is not None:
            process = self._running[place] = subprocess.Popen(
                [sys.executable, "-c", _CODE, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # decoders' own lines about damaged files
                start_new_session=True,  # Ctrl+C is the parent's to handle
            )
        return process

    def _ask(
        self, place: int, job: Job, source: str | Path | bytes, choice: Choice, limits: tuple[int, float, float]
    ) -> tuple[int, NDArray[np.uint8] | str]:
        """The kind of answer, and the image or a message.

        Raises:
            _EndedError: the process has ended, with what code.
        """
        process = self._process(place)
        assert process.stdin is not None
        content = source if isinstance(source, bytes) else os.fsencode(os.path.abspath(source))
        if not job.begin(process):  # given up while it waited: the process is as it was
            raise DecodingTimeoutError("the image was given up before it was decoded")
        whole = False
        try:
            text = choice.to_json().encode()
            process.stdin.write(JOB.pack(not isinstance(source, bytes), len(content), len(text), *limits))
            process.stdin.write(text)
            process.stdin.write(content)
            process.stdin.flush()
            kind, size, width = RESULT.unpack(_read(process, bytearray(RESULT.size)))
            answer: NDArray[np.uint8] | str
            if kind == IMAGE:
                answer = np.empty((size, width, 3), np.uint8)
                _read(process, answer.data)
            else:
                answer = bytes(_read(process, bytearray(size))).decode("utf-8", "surrogateescape")
            whole = True
            return kind, answer
        except (OSError, EOFError):
            self.ended += 1
            _end(process)
            raise _EndedError(process.returncode) from None
        finally:
            if job.end() or not whole:
                _end(process)


class _EndedError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _read(process: subprocess.Popen[bytes], buffer: bytearray | memoryview) -> bytearray | memoryview:
    """Fill the buffer with what the process writes.

    Raises:
        EOFError: it has ended.
    """
    assert process.stdout is not None
    view = memoryview(buffer)
    flat = view.cast("B") if view.nbytes else view[:0]
    at = 0
    while at < flat.nbytes:
        count = process.stdout.readinto(flat[at:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        at += count
    return buffer


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        try:
            if stream is not None:
                stream.close()
        except OSError:  # what it was to read is lost
            pass


def _reason(name: str, code: int, given_up: bool, seconds: float, processor_seconds: float) -> SOTRError:
    """Why a process that has ended with this code has no image."""
    if given_up or code == -getattr(signal, "SIGALRM", 0):
        return _too_slow(name, seconds)
    if code == -getattr(signal, "SIGPROF", 0):
        return _too_slow(name, processor_seconds, " of processor time")
    if code == -9:  # the system ends what takes too much memory so
        return _no_memory(name)
    return SOTRError(f"{name}: is damaged; its decoder broke off; save it again as PNG, JPEG or TIFF")


def _too_slow(name: str, seconds: float, kind: str = "") -> DecodingTimeoutError:
    return DecodingTimeoutError(
        f"{name}: takes longer than {seconds:.3g} s{kind} to decode; save it again as PNG, JPEG or TIFF"
    )


def _no_memory(name: str) -> DecodingMemoryError:
    return DecodingMemoryError(f"{name}: there is too little memory to decode it; try again later, or shrink it")
