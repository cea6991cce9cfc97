"""COCO run-length encodings as arrays of runs: made and checked in bulk, and rasterised only where a crop needs them.

faster-coco-eval decodes whole images, one plane per object: hundreds of megabytes for an image of several hundred
objects, most of them zeros. Training needs a small patch per object, so it cuts the runs instead. It encodes pixel by
pixel, too; NumPy finds the few places where a mask begins or ends several times as fast.

A COCO mask is a list of run lengths over the pixels in column-major order, background first. The compressed form
writes each length (from the third on as a difference to the one two before) as a little-endian base-32 number, one
printable character per digit: 48 plus five bits of value plus 32 if more digits follow.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import mask_api_new_cpp
from numpy.typing import NDArray

Ints = NDArray[np.int64]

RUNS_AT_ONCE = 100_000
"""Runs that are encoded at the same time, more only of a single mask: what leaves the cache takes longer."""


@dataclass(frozen=True)
class Runs:
    """Foreground runs of I masks; the pixels of an image are numbered down its columns.

    `starts` and `ends` (half-open) hold all objects' runs one after another; object i owns `offsets[i]:offsets[i + 1]`.
    """

    starts: Ints
    ends: Ints
    offsets: Ints
    heights_I: Ints
    """Height of each mask's image."""

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


def mask_runs(masks_IWH: NDArray[np.bool_]) -> Runs:
    """Runs of dense masks that lie in memory column by column.

    Args:
        masks_IWH: I masks, I x width x height, of at least one pixel.
    """
    flat_IP = masks_IWH.reshape(len(masks_IWH), -1)
    count, pixels = flat_IP.shape
    # A bit per pixel, Y bytes or Q words of 64 a mask; each has at least one bit to spare, which ends its last run.
    words = pixels // 64 + 1
    bytes_IY = np.zeros((count, 8 * words), np.uint8)
    bytes_IY[:, : -(-pixels // 8)] = np.packbits(flat_IP, 1, bitorder="little")
    # A run starts or ends where a pixel differs from the one before; before the first there is background.
    inside_IQ = bytes_IY.view("<u8")
    edges_IQ = inside_IQ << np.uint64(1)
    edges_IQ[:, 1:] |= inside_IQ[:, :-1] >> np.uint64(63)
    edges_IQ ^= inside_IQ
    # Most bytes hold no edge: it is quicker to find those that do, then what is in them.
    edges = edges_IQ.reshape(-1).view(np.uint8)
    filled = np.flatnonzero(edges != 0)
    within = np.flatnonzero(np.unpackbits(edges[filled], bitorder="little").view(bool))
    places = (filled[within >> 3] * 8 + (within & 7)).astype(np.int64, copy=False)
    firsts = np.arange(count + 1) * (64 * words)
    offsets = np.searchsorted(places, firsts)
    places -= np.repeat(firsts[:-1], np.diff(offsets))
    return Runs(places[::2], places[1::2], offsets // 2, np.full(count, masks_IWH.shape[2], np.int64))


def moved(runs: Runs, lefts_I: Ints, tops_I: Ints, height: int) -> Runs:
    """The same masks in images of that height, each so far from its left and top.

    No run may go on from one column to the next, unless columns stay as high as they are.
    """
    sizes = np.diff(runs.offsets)
    other = bool((runs.heights_I != height).any())
    if not (other or lefts_I.any() or tops_I.any()):
        return runs
    shift = np.repeat(lefts_I * height + tops_I, sizes)
    if other:
        old = np.repeat(runs.heights_I, sizes)
        shift += runs.starts // old * (height - old)
    return Runs(runs.starts + shift, runs.ends + shift, runs.offsets, np.full(len(runs), height, np.int64))


def joined(pieces: Sequence[Runs]) -> Runs:
    """The masks of all pieces, one piece after the other."""
    if len(pieces) == 1:
        return pieces[0]
    sizes = np.concatenate([np.diff(piece.offsets) for piece in pieces])
    return Runs(
        np.concatenate([piece.starts for piece in pieces]),
        np.concatenate([piece.ends for piece in pieces]),
        np.concatenate(([0], np.cumsum(sizes))),
        np.concatenate([piece.heights_I for piece in pieces]),
    )


def runs_to_counts(runs: Runs, pixels: int) -> tuple[Ints, Ints]:
    """Run lengths, background first, of masks of so many pixels each.

    Returns:
        The run lengths of all masks, joined, and the offsets (I + 1) of each mask's own.
    """
    counts = np.empty(2 * len(runs.starts), np.int64)
    counts[:1] = runs.starts[:1]
    np.subtract(runs.starts[1:], runs.ends[:-1], out=counts[2::2])
    np.subtract(runs.ends, runs.starts, out=counts[1::2])
    first, after = runs.offsets[:-1], runs.offsets[1:]
    filled = first < after
    counts[2 * first[filled]] = runs.starts[first[filled]]
    rest_I = np.full(len(runs), pixels, np.int64)
    rest_I[filled] -= runs.ends[after[filled] - 1]
    # The last run of a mask is background, unless its last pixel is inside.
    ends_outside = rest_I > 0
    counts = np.insert(counts, 2 * after[ends_outside], rest_I[ends_outside])
    return counts, 2 * runs.offsets + np.concatenate(([0], np.cumsum(ends_outside)))


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
    """Foreground runs of compressed RLE strings that are known to be sound, of one image of that height."""
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
    alike = (runs.heights_I == runs.heights_I[0]).all()  # to divide by one number is several times as fast
    heights = runs.heights_I[0] if alike else np.repeat(runs.heights_I, np.diff(runs.offsets))
    left = runs.starts // heights
    top = runs.starts - left * heights
    bottom = top + (runs.ends - runs.starts)
    last = runs.offsets[1:][filled] - 1
    out[filled, 0] = left[first]
    # A run that goes on in the next column has pixels in the first row and the last.
    out[filled, 1] = np.minimum.reduceat(np.where(bottom > heights, 0, top), first)
    out[filled, 2] = (runs.ends[last] - 1) // runs.heights_I[filled] + 1
    out[filled, 3] = np.minimum(np.maximum.reduceat(bottom, first), runs.heights_I[filled])
    return out


def centers(runs: Runs) -> NDArray[np.float64]:
    """(x, y) of each mask's center of mass, I x 2 in pixels, the first of which has its middle at one half; zeros for a
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
    """Sum of the columns of all pixels before a place, in images of these heights."""
    full, rest = np.divmod(places, heights)
    return heights * full * (full - 1) // 2 + rest * full


def patches(runs: Runs, parts_I4: Ints, budget: int = 2**24) -> Iterator[NDArray[np.uint8]]:
    """Rasterise a part of each mask.

    Args:
        runs: the masks.
        parts_I4: the rectangle wanted of each mask, xyxy in pixels, half-open, inside the image.
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


def crop_of(rle: Mapping[str, Any], x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    """The part of a compressed mask inside a box that holds all of it, (y1 - y0) x (x1 - x0)."""
    height = rle["size"][0]
    # Only the box's columns are rasterized (runs go down the columns): for a nucleus in a big image that is
    # some fifty times quicker than decoding the whole image.
    run_ends = np.cumsum(mask_api_new_cpp.toUncompressedRLE([rle])[0]["counts"], dtype=np.int64)
    starts, stops = run_ends[0:-1:2] - x0 * height, run_ends[1::2] - x0 * height
    real = stops > starts  # encoders may write runs of length zero, even outside the box
    steps = np.zeros((x1 - x0) * height + 1, np.int8)
    steps[starts[real]] += 1
    steps[stops[real]] -= 1
    columns_WH = np.cumsum(steps[:-1], dtype=np.int8).reshape(x1 - x0, height)
    return np.ascontiguousarray(columns_WH[:, y0:y1].T).view(bool)
