"""Every image of a data set opened once: can it be decoded, how large is it, which others look like it?"""

import hashlib
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from sotr.data.cache import load_arrays, save_arrays
from sotr.data.coco import CocoDataset
from sotr.data.images import load_image
from sotr.data.index import Texts
from sotr.errors import SOTRError
from sotr.progress import progress_bar

SIDE = 16
"""Pixels per side of a thumbnail."""

SIMILAR = 1.5
"""Thumbnails that differ by no more gray levels than this, on average, are of the same image."""

FLAT = 4
"""Thumbnails of less contrast than this, as a standard deviation of gray levels, are like nothing."""

ALONE_UP_TO = 32
"""So many images are opened before other processes would have been started."""

_MOST_PROCESSES = 16
_BITS, _BANDS, _REACH = 56, 4, 8


@dataclass(frozen=True)
class Pictures:
    """What the N files of a data set are, in its order."""

    sizes_N2: NDArray[np.int64]
    """Height and width as loaded, upright; zeros for a file that cannot be decoded."""
    digests_N: NDArray[np.uint64]
    """Of the file's bytes; 0 where there is none."""
    thumbnails_NP: NDArray[np.uint8]
    """`SIDE` x `SIDE` gray pixels, row by row."""
    errors: Sequence[str]
    """Why a file cannot be decoded; empty where it can."""


def open_pictures(data: CocoDataset, console: Console, processes: int | None = None) -> Pictures:
    """Decode all images of a data set in parallel, but for those that have not changed since the last time.

    Args:
        console: shows a progress bar.
        processes: default one per CPU core, up to 16.

    Raises:
        SOTRError: a process died while decoding, which a damaged file may bring about.
    """
    stamps = np.array([_stamp(data.path(i)) for i in range(len(data))], np.int64).reshape(-1, 2)
    where = f"{data.json_path.resolve()}\0{data.images_dir.resolve()}"
    key = f"1-{hashlib.blake2b(where.encode('utf-8', 'surrogatepass'), digest_size=20).hexdigest()}"
    sizes_N2, digests_N = np.zeros((len(data), 2), np.int64), np.zeros(len(data), np.uint64)
    thumbnails_NP = np.zeros((len(data), SIDE * SIDE), np.uint8)
    errors = [""] * len(data)
    todo = list(range(len(data)))
    if (kept := load_arrays("pictures", key)) is not None:
        arrays = kept[0]
        names, before = Texts(arrays["name_characters"], arrays["name_offsets"]), arrays["stamps"].tolist()
        reasons = Texts(arrays["error_characters"], arrays["error_offsets"])
        row_of = {name: row for row, name in enumerate(names)}
        todo = []
        for i, name in enumerate(data.file_names):
            row = row_of.get(name)
            # An error may be gone though the file is the same: of permissions, or of memory.
            if row is None or before[row] != stamps[i].tolist() or reasons[row]:
                todo.append(i)
                continue
            sizes_N2[i], digests_N[i], thumbnails_NP[i] = (
                arrays["sizes"][row],
                arrays["digests"][row],
                arrays["thumbnails"][row],
            )
    if todo:
        with progress_bar(f"opening the images of {data.json_path.name}", len(todo), console) as advance:
            for i, (size, digest, thumbnail, error) in zip(
                todo, _in_parallel([data.path(i) for i in todo], processes), strict=True
            ):
                sizes_N2[i], digests_N[i], thumbnails_NP[i], errors[i] = size, digest, thumbnail, error
                advance(1)
        names, reasons = Texts.of(data.file_names), Texts.of(errors)
        save_arrays(
            "pictures",
            key,
            {
                "stamps": stamps,
                "sizes": sizes_N2,
                "digests": digests_N,
                "thumbnails": thumbnails_NP,
                "name_characters": names.characters,
                "name_offsets": names.offsets,
                "error_characters": reasons.characters,
                "error_offsets": reasons.offsets,
            },
            {},
        )
    return Pictures(sizes_N2, digests_N, thumbnails_NP, errors)


_Opened = tuple[tuple[int, int], int, NDArray[np.uint8], str]


def _in_parallel(paths: list[Path], processes: int | None) -> Iterator[_Opened]:
    """Each path opened, in order."""
    if processes is None:
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
        processes = min(cores, _MOST_PROCESSES)
    if processes < 2 or len(paths) <= ALONE_UP_TO:
        yield from map(open_file, paths)
        return
    # As PyTorch's loaders do: where forking is the system's way, nothing needs to be imported again.
    context = get_context("fork") if os.name == "posix" and os.uname().sysname == "Linux" else get_context("spawn")
    done = 0
    pool = ProcessPoolExecutor(processes, context, initializer=_leave_interrupts_to_main)
    try:
        for opened in pool.map(open_file, paths, chunksize=8):
            yield opened
            done += 1
    except BrokenProcessPool:
        near = ", ".join(str(path) for path in paths[done : done + 8 * processes][:4])
        raise SOTRError(
            f"a process that opened images died, of a damaged file or of want of memory, near {near}; "
            "move these away to find out which"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def open_file(path: Path) -> _Opened:
    nothing = np.zeros(SIDE * SIDE, np.uint8)
    try:
        with path.open("rb") as file:
            digest = int.from_bytes(hashlib.file_digest(file, "blake2b").digest()[:8], "little")
        image_HW3 = load_image(path)
    except FileNotFoundError:
        return (0, 0), 0, nothing, f"{path}: no such file"
    except (SOTRError, OSError, MemoryError) as error:
        return (0, 0), 0, nothing, str(error) if isinstance(error, SOTRError) else f"{path}: {error}"
    grey = cv2.cvtColor(cv2.resize(image_HW3, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    return (image_HW3.shape[0], image_HW3.shape[1]), digest, np.asarray(grey, np.uint8).reshape(-1), ""


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change of a file; -1 if there is none."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def identical_pairs(digests_N: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(pairs, 2): each file that is a copy of an earlier one, with the first of its kind; (first, copy)."""
    _, first, group = np.unique(digests_N, return_index=True, return_inverse=True)
    earliest = first[group]
    copies = np.flatnonzero((earliest != np.arange(len(digests_N))) & (digests_N != 0))
    return np.stack([earliest[copies], copies], 1).astype(np.int64)


def similar_pairs(thumbnails_NP: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(pairs, 2), each ascending: images that look alike, such as one image saved in two ways or sizes.

    Candidates agree in one of four parts of a hash of the thumbnail's gradients, and are then compared pixel by pixel,
    relative to their contrast.
    """
    count = len(thumbnails_NP)
    if count < 2:
        return np.zeros((0, 2), np.int64)
    blocks = thumbnails_NP.reshape(count, SIDE // 2, 2, SIDE // 2, 2).astype(np.float32).mean((2, 4))
    bits = (blocks[:, :, 1:] > blocks[:, :, :-1]).reshape(count, _BITS)
    contrast = thumbnails_NP.astype(np.float32).std(1)
    found = []
    for band in np.split(bits, _BANDS, axis=1):
        value = band @ (1 << np.arange(band.shape[1]))
        order = np.argsort(value, kind="stable")
        for step in range(1, min(_REACH, count - 1) + 1):
            first, second = order[:-step], order[step:]
            same = value[first] == value[second]
            first, second = first[same], second[same]
            # A block at a time: of all candidates at once the thumbnails may be more than memory holds.
            for start in range(0, len(first), 2**16):
                a, b = first[start : start + 2**16], second[start : start + 2**16]
                difference = np.abs(thumbnails_NP[a].astype(np.int16) - thumbnails_NP[b]).mean(1)
                least = np.minimum(contrast[a], contrast[b])
                alike = (difference <= np.minimum(SIMILAR, 0.1 * least)) & (least >= FLAT)
                found.append(np.stack([np.minimum(a[alike], b[alike]), np.maximum(a[alike], b[alike])], 1))
    return np.unique(np.concatenate([np.zeros((0, 2), np.int64), *found]), axis=0)
