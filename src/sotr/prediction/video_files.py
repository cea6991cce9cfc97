"""Videos and cameras in, videos out, frame by frame."""

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sotr.errors import SOTRError

DEFAULT_RATE = 30.0
"""Frames per second where a video or camera does not tell."""

_BT709 = 1
"""FFmpeg's number of that color space, of its primaries and of its transfer curve."""

_LIMITED, _FULL = 1, 2
"""FFmpeg's numbers for brightness in 16..235 and in 0..255."""

TICKS = 90_000
"""Units of time per second in the videos that are written."""


@dataclass(frozen=True)
class Frame:
    """One image of a video."""

    number: int
    seconds: float
    """Since the first one."""
    image: NDArray[np.uint8]
    """HW3 RGB, upright."""


@dataclass(frozen=True)
class Video:
    """An open video or camera."""

    frames: Iterator[Frame]
    rate: float
    """Frames per second."""
    length: int | None
    """Number of frames, where it tells."""


@contextmanager
def film(file: IO[bytes], rate: float) -> Iterator[Callable[[NDArray[np.uint8], float], None]]:
    """An H.264 video, which browsers play; yields a function that adds an image at its time in seconds."""
    import av

    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001), options={"crf": "20"})
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        # Players guess the meaning of colors that are not tagged, by the size of the video.
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED
        last = -1

        def add(image: NDArray[np.uint8], seconds: float) -> None:
            nonlocal last
            # The format halves the colors' resolution: sides must be even.
            height, width = image.shape[0] % 2, image.shape[1] % 2
            picture = av.VideoFrame.from_ndarray(np.pad(image, ((0, height), (0, width), (0, 0)), "edge")).reformat(
                format=stream.pix_fmt, src_color_range=_FULL, dst_colorspace=_BT709, dst_color_range=_LIMITED
            )
            if last < 0:
                stream.height, stream.width = picture.height, picture.width
            last = max(last + 1, round(seconds * TICKS))
            picture.pts, picture.time_base = last, stream.time_base
            container.mux(stream.encode(picture))

        yield add
        container.mux(stream.encode())


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """A video file.

    Raises:
        SOTRError: it is none, or damaged; also while its frames are read.
    """
    import av

    try:
        container = av.open(str(path))
    except (OSError, av.FFmpegError) as error:
        raise SOTRError(f"is not a video that can be read; {_reason(error)}") from None
    with container:
        if not container.streams.video:
            raise SOTRError("holds no images")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"

        def frames() -> Iterator[Frame]:
            first = None
            number = -1
            try:
                for number, frame in enumerate(container.decode(stream)):
                    at = number / rate if frame.time is None else frame.time
                    first = at if first is None else first
                    image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    yield Frame(number, at - first, np.ascontiguousarray(image))
            except av.FFmpegError as error:
                raise SOTRError(f"is damaged behind frame {number}; {_reason(error)}") from None

        rate = float(stream.average_rate or DEFAULT_RATE)
        yield Video(frames(), rate, stream.frames or None)


@contextmanager
def open_camera(index: int) -> Iterator[Video]:
    """A camera, until it is gone.

    Raises:
        SOTRError: there is none of this number.
    """
    import cv2

    # OpenCV would print what goes wrong besides; its version 5 keeps the level in another place.
    log: Any = cv2
    if not hasattr(log, "setLogLevel"):
        log = log.utils.logging
    before = log.getLogLevel()
    log.setLogLevel(0)
    try:
        camera = cv2.VideoCapture(index)
    finally:
        log.setLogLevel(before)
    if not camera.isOpened():
        raise SOTRError("there is no such camera; the first has number 0")

    def frames() -> Iterator[Frame]:
        started, number = time.monotonic(), 0
        while True:
            read, image = camera.read()
            if not read:
                return
            yield Frame(number, time.monotonic() - started, np.ascontiguousarray(image[..., ::-1]))
            number += 1

    try:
        yield Video(frames(), camera.get(cv2.CAP_PROP_FPS) or DEFAULT_RATE, None)
    finally:
        camera.release()


def read_ahead(frames: Iterator[Frame]) -> Generator[Frame, None, None]:
    """The same frames; the next one is read, in a thread of its own, before it is asked for."""
    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(next, frames, None)
        while (frame := pending.result()) is not None:
            pending = reader.submit(next, frames, None)
            yield frame


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
