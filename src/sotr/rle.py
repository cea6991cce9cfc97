"""COCO run-length encodings as arrays of runs: made and checked in bulk, and rasterised only where a crop needs them.

faster-coco-eval decodes whole pictures, one plane per object: hundreds of megabytes for a picture of several hundred
objects, most of them zeros. Training needs a small patch per object, so it cuts the runs instead. It encodes pixel by
pixel, too; NumPy finds the few places where a mask begins or ends several times as fast.

A COCO mask is a list of run lengths over the pixels in column-major order, background first. The compressed form
writes each length (from the third on as a difference to the one two before) as a little-endian base-32 number, one
printable character per digit: 48 plus five bits of value plus 32 if more digits follow.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

RUNS_AT_ONCE = 100_000
"""Runs that are encoded at the same time, more only of a single mask: what leaves the cache takes longer."""


@dataclass(frozen=True)
class Runs:
    """Foreground runs of I masks; the pixels of a picture are numbered down its columns.

    `starts` and `ends` (half-open) hold all objects' runs one after another; object i owns `offsets[i]:offsets[i + 1]`.
    """

    starts: Ints
    ends: Ints
    offsets: Ints
    heights_I: Ints
    """Height of each mask's picture."""

    def __len__(self) -> int:
        return len(self.offsets) - 1


def decode_counts(text: NDArray[np.uint8], lengths: Ints) -> tuple[Ints, Ints]:
    """Run lengths of compressed RLE strings.

    Args:
        text: the characters of all strings, joined.
        lengths: characters per string.

    Returns:
        The run lengths of all strings, joined, and the offsets (len(lengths) + 1) of each string's own. A string that
        is no RLE gets the single length -1.
    """
    ends_of_text = np.cumsum(lengths)
    digits = text.astype(np.int64) - 48
    more = (digits & 32) != 0
    owner = np.repeat(np.arange(len(lengths)), lengths)
    bad = np.zeros(len(lengths), bool)
    bad[owner[(digits < 0) | (digits > 63)]] = True
    # The last digit of a string must not announce another one.
    filled = lengths > 0
    bad[filled] |= more[ends_of_text[filled] - 1]
    if bad.any():
        keep = ~bad[owner]
        counts, offsets = decode_counts(text[keep], np.where(bad, 0, lengths))
        sizes = np.diff(offsets)
        sizes[bad] = 1
        joined = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        out = np.full(joined[-1], -1, np.int64)
        out[np.repeat(~bad, sizes)] = counts
        return out, joined
    last = np.flatnonzero(~more)
    if not len(last):
        return np.zeros(0, np.int64), np.zeros(len(lengths) + 1, np.int64)
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((digits & 31) << np.minimum(5 * place, 55), first)
    negative = (digits[last] & 16) != 0
    values[negative] -= np.int64(1) << np.minimum(5 * (last - first + 1), 60)[negative]
    offsets = np.concatenate(([0], np.cumsum(np.bincount(owner[last], minlength=len(lengths))))).astype(np.int64)
    index = np.arange(len(values)) - np.repeat(offsets[:-1], np.diff(offsets))
    # Differences to the length two before: running sums over the odd places and over the even ones from the second.
    for chosen in (index % 2 == 1, (index % 2 == 0) & (index > 0)):
        total = np.cumsum(values[chosen])
        per_string = np.bincount(owner[last][chosen], minlength=len(lengths))
        before = np.concatenate(([0], total))[np.concatenate(([0], np.cumsum(per_string)[:-1]))]
        values[chosen] = total - np.repeat(before, per_string)
    return values, offsets


def mask_counts(masks_IWH: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Run lengths of dense masks that lie in memory column by column.

    Args:
        masks_IWH: I masks, I x width x height, of at least one pixel.

    Returns:
        The run lengths of all masks, joined, and the offsets (I + 1) of each mask's own.
    """
    flat_IP = masks_IWH.reshape(len(masks_IWH), -1)
    count, pixels = flat_IP.shape
    # A bit per pixel, Y bytes or Q words of 64 a mask; each has at least one bit to spare, which ends its last run.
    words = pixels // 64 + 1
    bytes_IY = np.zeros((count, 8 * words), np.uint8)
    bytes_IY[:, : -(-pixels // 8)] = np.packbits(flat_IP, 1, bitorder="little")
    # A run starts where a pixel differs from the one before; before the first there is background.
    inside_IQ = bytes_IY.view("<u8")
    starts_IQ = inside_IQ << np.uint64(1)
    starts_IQ[:, 1:] |= inside_IQ[:, :-1] >> np.uint64(63)
    starts_IQ ^= inside_IQ
    starts_IQ[:, -1] |= np.uint64(1) << np.uint64(pixels % 64)
    # Most bytes hold no start: it is quicker to find those that do, then what is in them.
    starts = starts_IQ.reshape(-1).view(np.uint8)
    filled = np.flatnonzero(starts != 0)
    within = np.flatnonzero(np.unpackbits(starts[filled], bitorder="little").view(bool))
    places = (filled[within >> 3] * 8 + (within & 7)).astype(np.int64, copy=False)
    firsts = np.arange(count + 1) * (64 * words)
    offsets = np.searchsorted(places, firsts)
    lengths = np.diff(places, prepend=0)
    lengths[offsets[:-1]] = places[offsets[:-1]] - firsts[:-1]
    return lengths, offsets


def joined_counts(counts: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    """What `mask_counts` gave of some masks after others, as if it had been given all at once."""
    sizes = np.concatenate([np.diff(offsets) for _, offsets in counts])
    return np.concatenate([lengths for lengths, _ in counts]), np.concatenate(([0], np.cumsum(sizes)))


def boxes_of_counts(counts: Ints, offsets: Ints, rows_IH: NDArray[np.bool_], width: int) -> Ints:
    """Tight boxes of masks whose run lengths `mask_counts` gave.

    Args:
        counts: the run lengths.
        offsets: of each mask's own.
        rows_IH: whether a row holds pixels; runs tell of columns alone without looking at each.
        width: of the masks.

    Returns:
        I x 4, xyxy in pixels, half-open; zeros for a mask without pixels.
    """
    height, first, last = rows_IH.shape[1], offsets[:-1], offsets[1:] - 1
    left = counts[first] // height
    after = np.where((last - first) % 2 == 0, counts[last], 0)  # a mask's last run may be background
    right = width - after // height
    top, bottom = rows_IH.argmax(1), height - rows_IH[:, ::-1].argmax(1)
    return np.where(np.any(rows_IH, 1, keepdims=True), np.stack([left, top, right, bottom], 1), 0)


def encode_counts(counts: Ints, offsets: Ints) -> list[str]:
    """Compressed RLE strings of run lengths, those of string i at `offsets[i]:offsets[i + 1]`."""
    texts: list[str] = []
    while len(texts) < len(offsets) - 1:
        first = len(texts)
        fitting = int(np.searchsorted(offsets, offsets[first] + RUNS_AT_ONCE, side="right")) - 1
        last = max(first + 1, fitting)
        own = offsets[first : last + 1]
        texts += _encode_counts(counts[own[0] : own[-1]], own - own[0])
    return texts


def _encode_counts(counts: Ints, offsets: Ints) -> list[str]:
    small = counts.max(initial=0) < 2**31
    rest: NDArray[np.signedinteger] = counts.astype(np.int32 if small else np.int64)
    rest[2:] -= rest[:-2].copy()
    starts_S3 = offsets[:-1, None] + np.arange(3)
    starts = starts_S3[starts_S3 < offsets[1:, None]]
    rest[starts] = counts[starts]

    digits_of = np.ones(len(rest), np.uint8)
    chosen: slice | Ints = slice(None)
    written = []
    while len(rest):
        digit = rest.astype(np.uint8) & 31
        # What is left must be the sign of the digit's uppermost bit, or another digit says so.
        more = (rest < -16) | (rest > 15)
        written.append((chosen, digit + 48 + (more.view(np.uint8) << 5)))
        digits_of[chosen] += more
        open_ = np.flatnonzero(more)
        rest, chosen = rest[open_] >> 5, open_ if isinstance(chosen, slice) else chosen[open_]
    ends = np.cumsum(digits_of, dtype=np.int64)
    firsts = ends - digits_of
    text = np.empty(ends[-1] if len(ends) else 0, np.uint8)
    for place, (those, digit) in enumerate(written):
        text[firsts[those] + place if place else firsts] = digit
    joined = text.tobytes().decode("ascii")
    borders = np.concatenate(([0], ends))[offsets].tolist()
    return [joined[start:end] for start, end in itertools.pairwise(borders)]


def counts_to_runs(counts: Ints, offsets: Ints, heights_I: Ints) -> Runs:
    """Foreground runs of the masks whose run lengths `decode_counts` gave."""
    ends = np.cumsum(counts)
    before = np.concatenate(([0], ends))[offsets[:-1]]
    sizes = np.diff(offsets)
    ends = ends - np.repeat(before, sizes)
    index = np.arange(len(counts)) - np.repeat(offsets[:-1], sizes)
    foreground = (index % 2 == 1) & (counts > 0)
    owner = np.repeat(np.arange(len(sizes)), sizes)[foreground]
    per_object = np.bincount(owner, minlength=len(sizes))
    return Runs(
        starts=ends[foreground] - counts[foreground],
        ends=ends[foreground],
        offsets=np.concatenate(([0], np.cumsum(per_object))).astype(np.int64),
        heights_I=heights_I,
    )


def runs_of(strings: Sequence[bytes], height: int) -> Runs:
    """Foreground runs of compressed RLE strings that are known to be sound, of one picture of that height."""
    text = np.frombuffer(b"".join(strings), np.uint8)
    lengths = np.fromiter(map(len, strings), np.int64, len(strings))
    return counts_to_runs(*decode_counts(text, lengths), np.full(len(strings), height, np.int64))


def areas(runs: Runs) -> Ints:
    """Pixels of each mask."""
    total = np.concatenate(([0], np.cumsum(runs.ends - runs.starts)))
    return total[runs.offsets[1:]] - total[runs.offsets[:-1]]


def boxes(runs: Runs) -> Ints:
    """Tight boxes I x 4, xyxy in pixels, half-open; zeros for a mask without pixels."""
    out = np.zeros((len(runs), 4), np.int64)
    filled = np.diff(runs.offsets) > 0
    if not filled.any():
        return out
    first = runs.offsets[:-1][filled]
    heights = np.repeat(runs.heights_I, np.diff(runs.offsets))
    left, top = np.divmod(runs.starts, heights)
    right, bottom = np.divmod(runs.ends - 1, heights)
    wraps = left != right
    top, bottom = np.where(wraps, 0, top), np.where(wraps, heights - 1, bottom)
    out[filled, 0] = left[first]
    out[filled, 1] = np.minimum.reduceat(top, first)
    out[filled, 2] = right[runs.offsets[1:][filled] - 1] + 1
    out[filled, 3] = np.maximum.reduceat(bottom, first) + 1
    return out


def centers(runs: Runs) -> NDArray[np.float64]:
    """(x, y) of each mask's centre of mass, I x 2 in pixels, the first of which has its middle at one half; zeros for a
    mask without pixels."""
    heights = np.repeat(runs.heights_I, np.diff(runs.offsets))
    columns = _sum_of_columns(runs.ends, heights) - _sum_of_columns(runs.starts, heights)
    # The places of a run add up to an arithmetic series; what is not columns times height in them is rows.
    places = (runs.ends * (runs.ends - 1) - runs.starts * (runs.starts - 1)) // 2
    sums = np.stack([columns, places - columns * heights], 1)
    total = np.concatenate((np.zeros((1, 2), np.int64), np.cumsum(sums, 0)))
    pixels = areas(runs)
    means = (total[runs.offsets[1:]] - total[runs.offsets[:-1]]) / np.maximum(pixels, 1)[:, None]
    return np.where(pixels[:, None] > 0, means + 0.5, 0.0)


def _sum_of_columns(places: Ints, heights: Ints) -> Ints:
    """Sum of the columns of all pixels before a place, in pictures of these heights."""
    full, rest = np.divmod(places, heights)
    return heights * full * (full - 1) // 2 + rest * full


def patches(runs: Runs, parts_I4: Ints, budget: int = 2**24) -> Iterator[NDArray[np.uint8]]:
    """Rasterise a part of each mask.

    Args:
        runs: the masks.
        parts_I4: the rectangle wanted of each mask, xyxy in pixels, half-open, inside the picture.
        budget: bytes that may be held at a time; only a single mask's columns may exceed it.

    Yields:
        For each mask its rectangle as rows x columns, uint8 0 or 1.
    """
    strips = (parts_I4[:, 2] - parts_I4[:, 0]) * runs.heights_I
    first = 0
    while first < len(runs):
        fitting = int(np.searchsorted(np.cumsum(strips[first:]), budget // 2, side="right"))
        last = first + max(1, fitting)
        yield from _patches(runs, parts_I4, first, last)
        first = last


def _patches(runs: Runs, parts_I4: Ints, first: int, last: int) -> list[NDArray[np.uint8]]:
    """Patches of the masks `first` up to `last`, all at once."""
    own = slice(int(runs.offsets[first]), int(runs.offsets[last]))
    parts, heights = parts_I4[first:last], runs.heights_I[first:last]
    columns = parts[:, 2] - parts[:, 0]
    strips = np.concatenate(([0], np.cumsum(columns * heights)))
    owner = np.repeat(np.arange(last - first), np.diff(runs.offsets[first : last + 1]))
    low, high = (parts[:, 0] * heights)[owner], (parts[:, 2] * heights)[owner]
    starts, ends = np.clip(runs.starts[own], low, high), np.clip(runs.ends[own], low, high)
    inside = starts < ends
    shift = (strips[:-1][owner] - low)[inside]
    # Each run adds one step up and one step down; the running sum is the mask. Starts are distinct, and so are ends.
    steps = np.zeros(strips[-1] + 1, np.int8)
    steps[starts[inside] + shift] += 1
    steps[ends[inside] + shift] -= 1
    flat = np.cumsum(steps[:-1], dtype=np.int8).view(np.uint8)
    return [
        flat[strips[i] : strips[i + 1]].reshape(columns[i], heights[i])[:, parts[i, 1] : parts[i, 3]].T
        for i in range(last - first)
    ]
