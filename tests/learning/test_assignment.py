import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sotr.config import SOTRConfig
from sotr.learning import Targets, assign

CONFIG = replace(
    SOTRConfig.preset("sotr-nano", num_classes=3),
    grids=(9, 7, 5, 3, 1),
    scale_ranges=((1, 24), (12, 48), (24, 96), (48, 192), (96, 2048)),
)


def brute_force(target, config, padded_size):
    """{cell: object} by visiting every cell of every level for every object, largest object first."""
    height, width = padded_size
    owners, start = {}, 0
    boxes, centers = target.boxes_I4.double(), target.centers_I2.double()
    scale = [math.sqrt((box[2] - box[0]) * (box[3] - box[1])) for box in boxes]
    smallest_last = sorted(range(len(target)), key=lambda i: (-scale[i], -i))
    for grid, (low, high) in zip(config.grids, config.scale_ranges, strict=True):
        for i in smallest_last:
            if not low <= scale[i] <= high:
                continue
            x, y = (float(value) for value in centers[i])
            half_w = float(boxes[i, 2] - boxes[i, 0]) * config.center_fraction / 2
            half_h = float(boxes[i, 3] - boxes[i, 1]) * config.center_fraction / 2
            cell_w, cell_h = width / grid, height / grid
            for row in range(grid):
                for column in range(grid):
                    touched = (
                        column * cell_w <= x + half_w
                        and x - half_w < (column + 1) * cell_w
                        and row * cell_h <= y + half_h
                        and y - half_h < (row + 1) * cell_h
                    )
                    near = abs(row - int(y // cell_h)) <= 1 and abs(column - int(x // cell_w)) <= 1
                    if touched and near:
                        owners[start + row * grid + column] = i
        start += grid * grid
    return owners


@st.composite
def pictures(draw):
    """Targets with exact binary fractions, so that both sides cut cells at the same place."""
    height, width = 32 * draw(st.integers(1, 8)), 32 * draw(st.integers(1, 8))
    boxes, centers = [], []
    for _ in range(draw(st.integers(0, 12))):
        x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
        boxes.append([x0, y0, x1, y1])
        # An odd number of thirty-seconds: neither it nor the corners of its region lie on the edge of a cell.
        centers.append(
            [low + (high - low) * draw(st.integers(0, 7)) / 8 + 1 / 32 for low, high in ((x0, x1), (y0, y1))]
        )
    labels = draw(st.lists(st.integers(0, 2), min_size=len(boxes), max_size=len(boxes)))
    target = Targets(
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(centers, dtype=torch.float32).reshape(-1, 2),
        torch.zeros(len(boxes), height // 4, width // 4, dtype=torch.uint8),
    )
    return target, (height, width)


@settings(max_examples=150, deadline=None)
@given(pictures())
def test_equals_brute_force(picture):
    target, size = picture
    # A fraction whose half is a power of two keeps every corner exact, and a sixteenth off any cell's edge.
    config = replace(CONFIG, center_fraction=0.25)
    assignment = assign([target], config, size)
    found = dict(zip(assignment.cells_P.tolist(), assignment.objects_P.tolist(), strict=True))
    assert found == brute_force(target, config, size)
    assert assignment.counts == (assignment.positives,) == (len(found),)
    labels = torch.full((config.num_cells,), 3)
    for cell, owner in found.items():
        labels[cell] = target.labels_I[owner]
    assert torch.equal(assignment.labels_BK[0], labels)


def test_each_object_goes_to_every_level_of_its_size(targets_of, masks_of):
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 10:40, 20:50] = True  # 30 px: levels 1 (12..48) and 2 (24..96)
    assignment = assign([targets_of(mask, torch.tensor([1]), 4)], CONFIG, (64, 64))
    starts = [0, 81, 81 + 49, 81 + 49 + 25]
    assert ((assignment.cells_P >= starts[1]) & (assignment.cells_P < starts[3])).all()
    assert (assignment.cells_P < starts[2]).any()
    assert (assignment.cells_P >= starts[2]).any()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_smaller_object_wins_a_cell_whatever_the_order(targets_of, order):
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[order[0], 22:42, 22:42] = True  # 20 px
    masks[order[1], 24:40, 24:40] = True  # 16 px, at the same center
    assignment = assign([targets_of(masks, torch.tensor([0, 1]), 4)], CONFIG, (64, 64))
    assert set(assignment.objects_P.tolist()) == {order[1]}


def test_never_more_than_three_by_three_cells_a_level(targets_of):
    masks = torch.ones(1, 64, 64, dtype=torch.bool)
    config = replace(CONFIG, center_fraction=1.0, scale_ranges=((1, 2048),) * 5, grids=(9, 3, 2, 1, 1))
    assignment = assign([targets_of(masks, torch.tensor([0]), 4)], config, (64, 64))
    assert assignment.counts == (9 + 9 + 4 + 1 + 1,)


def test_batch_keeps_pictures_apart(targets_of, masks_of):
    targets = [targets_of(masks_of(count, 64, 96, seed=count), torch.arange(count) % 3, 4) for count in (3, 0, 5)]
    together = assign(targets, CONFIG, (64, 96))
    alone = [assign([target], CONFIG, (64, 96)) for target in targets]
    assert together.counts == tuple(single.counts[0] for single in alone)
    assert torch.equal(together.labels_BK, torch.cat([single.labels_BK for single in alone]))
    assert torch.equal(together.cells_P, torch.cat([single.cells_P for single in alone]))
    assert torch.equal(together.objects_P, torch.cat([single.objects_P for single in alone]))
