import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sotr.acceleration.cuda.packed_maps import ALIGNMENT, lay_out, packing_of

SIZES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=7)


def owners(layout, sizes):
    """Which map lies in each cell, 0 where none; fails where two do or one reaches beyond the packed map."""
    owner = torch.zeros(layout.size, dtype=torch.int64)
    for number, ((top, left), (rows, columns)) in enumerate(zip(layout.places, sizes, strict=True), 1):
        part = owner[top : top + rows, left : left + columns]
        assert part.shape == (rows, columns)
        assert (part == 0).all()
        part[:] = number
    return owner


@settings(deadline=None)
@given(SIZES)
def test_maps_lie_apart_in_a_packed_map_that_ends_with_them(sizes):
    layout = lay_out(tuple(sizes))
    owner = owners(layout, sizes)
    rows, columns = layout.size
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):  # neighbors of a 3x3 convolution
        here = owner[: rows - dy, max(0, -dx) : columns - max(0, dx)]
        there = owner[dy:, max(0, dx) : columns - max(0, -dx)]
        assert ((here == there) | (here == 0) | (there == 0)).all()
    assert owner[-1].any()


def test_a_packed_map_of_the_papers_levels_is_hardly_larger_than_they_are():
    for p5 in ((25, 42), (42, 25), (25, 34), (23, 35)):
        sizes = ((40, 40), (36, 36), (24, 24), (16, 16), (12, 12), p5)
        rows, columns = lay_out(sizes).size
        assert rows * columns < 1.2 * sum(height * width for height, width in sizes)


@settings(deadline=None, max_examples=30)
@given(SIZES, st.integers(1, 3))
def test_maps_come_back_and_masks_tell_them_apart(sizes, batch):
    maps = [torch.randn(batch, *size, 2) for size in sizes]
    packing = packing_of(maps)
    packed = packing.join(maps)
    for found, expected in zip(packing.split(packed), maps, strict=True):
        assert torch.equal(found, expected)
    owner = owners(packing.layout, sizes)
    assert torch.equal(packed[0].abs().sum(-1) > 0, owner > 0)
    assert torch.equal(packing.inside_RL1[..., 0], (owner > 0).float())
    for mask, lines in ((packing.rows_S1LL, owner), (packing.columns_S1RR, owner.T)):
        same = lines[:, :, None] == lines[:, None]
        expected = torch.zeros(same.shape).masked_fill(~same, -torch.inf).repeat(batch, 1, 1)
        assert torch.equal(mask[:, 0], expected)
        assert mask.stride(2) % ALIGNMENT == 0
