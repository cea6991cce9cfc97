"""Small plots as inline SVG: sharp at any size, and nothing to load."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

COLOURS = {"train": "#00798c", "val": "#edae49"}
"""Of the splits."""

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 560, 280, 52, 30, 28, 24
BANDS = ("#d1495b", "#00798c", "#7b5ea7", "#3d8b37", "#555555")


def bars(title: str, names: Sequence[str], values: Mapping[str, Sequence[int]]) -> str:
    """Horizontal bars, a group per name and a bar per split."""
    row, label = 20, 150
    height = TOP + row * len(names) + 10
    largest = max([1, *(value for split in values.values() for value in split)])
    thick = (row - 4) / max(1, len(values))
    parts = []
    for i, name in enumerate(names):
        top = TOP + i * row
        short = name if len(name) <= 20 else name[:19] + "…"
        parts.append(f'<text x="{label - 6}" y="{top + 12}" text-anchor="end">{escape(short)}</text>')
        for j, (split, counts) in enumerate(values.items()):
            # The square root lets rare classes be seen beside frequent ones; the numbers say what is what.
            length = (WIDTH - label - 60) * math.sqrt(counts[i] / largest)
            y = top + 1 + j * thick
            parts.append(_rect(label, y, length, thick - 1, COLOURS[split]))
            size = min(11, thick + 1)
            parts.append(
                f'<text x="{label + length + 4:.1f}" y="{y + thick - 1.5:.1f}" font-size="{size:.0f}" '
                f'fill="#555">{counts[i]:,}</text>'
            )
    return _svg(title + " (square-root scale)", height, parts)


def histogram(
    title: str,
    values: Mapping[str, NDArray[np.float64]],
    log: bool = False,
    bands: Sequence[tuple[str, float, float, int]] = (),
) -> str:
    """Shares of each split's values in up to 40 bins; `bands` are named ranges (name, low, high, count) above them."""
    everything = np.concatenate([np.zeros(0), *values.values()])
    everything = everything[everything > 0] if log else everything
    if not len(everything):
        return _svg(title, HEIGHT, [f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no values</text>'])
    low, high = float(everything.min()), float(everything.max())
    if log:
        low, high = 2 ** math.floor(math.log2(low)), 2 ** math.ceil(math.log2(high) + 1e-9)
        high = max(high, 2 * low)
        edges = np.geomspace(low, high, 33)
    else:
        low, high = min(0.0, low), max(high, 1.0)
        step = max(1, math.ceil((high - low + 1) / 40))
        edges = np.arange(low, high + 2 * step, step) - 0.5
        low, high = float(edges[0]), float(edges[-1])

    def x(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, share))

    strip = 15 * len(bands)
    floor = HEIGHT + strip - BOTTOM
    shares = {s: np.histogram(v, edges)[0] / max(1, len(v)) for s, v in values.items()}
    top = max(0.001, *(float(share.max()) for share in shares.values()))
    parts = []
    for i, (name, start, end, count) in enumerate(bands):
        left, right = x(max(low, start)), x(min(high, end))
        y = TOP + 15 * i
        if start > high or end < low:
            note = f'<text x="{LEFT + 4}" y="{y + 10}" font-size="11" fill="#777">{name}: none of this size</text>'
            parts.append(note)
            continue
        colour = BANDS[i % len(BANDS)]
        parts.append(_rect(left, y + 2, max(2.0, right - left), 10, colour, 0.3))
        parts.append(f'<text x="{left + 3:.1f}" y="{y + 11}" font-size="10">{name} {start:g}–{end:g}: {count:,}</text>')
    plot_top = TOP + strip + 4
    for j, (split, share) in enumerate(shares.items()):
        for k, value in enumerate(share):
            left, right = x(float(edges[k])), x(float(edges[k + 1]))
            width = (right - left - 1) / len(shares)
            tall = (floor - plot_top) * value / top
            if value:
                parts.append(_rect(left + j * width, floor - tall, max(0.8, width), tall, COLOURS[split]))
    parts += [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}" stroke="#999"/>',
        f'<text x="{LEFT - 6}" y="{plot_top + 8}" text-anchor="end" fill="#555">{top:.0%}</text>',
        f'<text x="{LEFT - 6}" y="{floor}" text-anchor="end" fill="#555">0</text>',
    ]
    for tick in _ticks(low, high, log):
        parts.append(f'<text x="{x(tick):.1f}" y="{floor + 16}" text-anchor="middle" fill="#555">{tick:,g}</text>')
    return _svg(title, HEIGHT + strip, parts)


def scatter(title: str, points: Mapping[str, NDArray[np.int64]]) -> str:
    """(x, y) of each split as circles whose area grows with how often a point occurs."""
    largest = max([1, *(int(part.max()) for part in points.values() if len(part))])
    step = 10 ** math.floor(math.log10(largest))
    top = math.ceil(largest * 1.05 / step) * step
    side_x, side_y = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - TOP
    floor = HEIGHT - BOTTOM
    parts = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}" stroke="#999"/>',
        f'<line x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{floor}" stroke="#999"/>',
    ]
    for tick in _ticks(0, top, False):
        share = tick / top
        parts.append(
            f'<text x="{LEFT + side_x * share:.1f}" y="{floor + 16}" text-anchor="middle" fill="#555">{tick:,g}</text>'
            f'<text x="{LEFT - 6}" y="{floor - side_y * share + 4:.1f}" text-anchor="end" fill="#555">{tick:,g}</text>'
        )
    for split, part in points.items():
        kinds, counts = np.unique(part, axis=0, return_counts=True)
        if len(kinds) > 1500:  # a page must stay small
            often = np.argsort(-counts, kind="stable")[:1500]
            kinds, counts = kinds[often], counts[often]
        for (width, height), count in zip(kinds.tolist(), counts.tolist(), strict=True):
            radius = 2.5 + 9 * math.sqrt(count / len(part))
            parts.append(
                f'<circle cx="{LEFT + side_x * width / top:.1f}" cy="{floor - side_y * height / top:.1f}" '
                f'r="{radius:.1f}" fill="{COLOURS[split]}" fill-opacity="0.5"/>'
            )
    return _svg(title, HEIGHT, parts)


def _ticks(low: float, high: float, log: bool) -> list[float]:
    if log:
        first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
        return [2.0**power for power in range(first, last + 1, max(1, (last - first) // 10))]
    step = 10 ** math.floor(math.log10(max(1e-9, high - low)))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if (high - low) / s <= 9 or s == 2 * step)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _rect(x: float, y: float, width: float, height: float, colour: str, opacity: float = 1) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}" '
        f'fill="{colour}" fill-opacity="{opacity:g}"/>'
    )


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" font-family="system-ui, sans-serif" font-size="11" role="img">'
        f'<text x="0" y="14" font-size="14" font-weight="600">{escape(title)}</text>{"".join(parts)}</svg>'
    )
