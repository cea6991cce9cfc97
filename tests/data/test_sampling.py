from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sotr.data import load_coco
from sotr.data.sampling import EpochSampler, repeat_factors


def test_sampler_shuffles_by_seed_and_epoch() -> None:
    sampler = EpochSampler(50, seed=1)
    first = list(sampler)
    assert first == list(sampler)
    assert sorted(first) == [(0, index) for index in range(50)]
    assert first != sorted(first)
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert [index for _, index in second] != [index for _, index in first]
    assert list(EpochSampler(50, seed=1, epoch=1)) == second
    assert [i for _, i in EpochSampler(50, seed=2)] != [i for _, i in first]
    assert list(EpochSampler(4, shuffle=False)) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_sampler_position() -> None:
    sampler = EpochSampler(10, seed=3)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_position(2, 4)
    assert list(sampler) == whole[4:]
    assert len(sampler) == 10
    sampler.set_epoch(2)  # what a training loop announces on resume must not undo the position
    assert list(sampler) == whole[4:]
    sampler.set_epoch(3)
    assert len(list(sampler)) == 10


def test_sampler_puts_pictures_of_one_shape_side_by_side() -> None:
    groups = np.array([0] * 9 + [1] * 6 + [2] * 4)
    sampler = EpochSampler(19, seed=5, groups_N=groups, batch_size=4)
    first, again = [i for _, i in sampler], [i for _, i in sampler]
    assert first == again
    assert sorted(first) == list(range(19))
    batches = [set(groups[first[start : start + 4]].tolist()) for start in range(0, 16, 4)]
    assert sum(len(batch) == 1 for batch in batches) >= 2  # 16 of 19 in batches; at most 3 per group in mixed ones
    sampler.set_epoch(1)
    assert [i for _, i in sampler] != first
    sampler.set_position(0, 8)
    assert [i for _, i in sampler] == first[8:]


def test_rare_shapes_are_not_always_the_ones_left_out() -> None:
    sampler = EpochSampler(11, seed=0, groups_N=np.array([0] * 8 + [7] * 3), batch_size=4)
    trained: set[int] = set()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        trained.update([i for _, i in sampler][:8])  # whole batches only
    assert trained == set(range(11))


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 60),
    ranks=st.integers(2, 4),
    each=st.integers(1, 3),
    epoch=st.integers(0, 5),
    grouped=st.booleans(),
)
def test_processes_share_each_batch_of_one_process(length, ranks, each, epoch, grouped):
    groups = np.arange(length) % 3 if grouped else None
    whole = ranks * each
    settings_of = {"seed": 4, "epoch": epoch, "groups_N": groups, "batch_size": whole}
    parts = [EpochSampler(length, rank=rank, ranks=ranks, **settings_of) for rank in range(ranks)]
    orders = [list(part) for part in parts]
    assert [len(part) for part in parts] == [len(order) for order in orders]
    together = [
        [item for order in orders for item in order[start : start + each]] for start in range(0, len(orders[0]), each)
    ]
    alone = list(EpochSampler(length, **settings_of))
    if length >= whole:
        batches = [alone[start : start + whole] for start in range(0, length // whole * whole, whole)]
        assert together == batches
    else:  # too few for one batch: repeated
        assert len(together) == 1
        assert {index for _, index in together[0]} == set(range(length))
    # From the middle of an epoch, as after a resume, the rest is the same.
    for part, order in zip(parts, orders, strict=True):
        part.set_position(epoch, whole)
        assert list(part) == order[each:]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1, 4), min_size=1, max_size=30), st.integers(0, 50))
def test_samples_repeat_as_often_as_asked_and_each_copy_is_its_own(factors, seed):
    repeats = np.array(factors)
    sampler = EpochSampler(len(factors), seed, repeats_N=repeats)
    for epoch in range(3):
        sampler.set_position(epoch, 0)
        order = list(sampler)
        assert len(order) == len(sampler) == round(sum(factors))
        assert len(set(order)) == len(order)  # a copy has a number, and so augmentation of its own
        scale = len(order) / repeats.sum()
        for index, count in Counter(item[1] for item in order).items():
            assert abs(count - repeats[index] * scale) < 1 + 1e-6
        assert list(sampler) == order


def test_rare_classes_repeat_their_pictures(coco_folder):
    data = load_coco(coco_folder / "train.json", coco_folder / "images")
    labels = [set(data.record(i).labels_I[~data.record(i).iscrowd_I].tolist()) for i in range(len(data))]
    share = {m: sum(m in own for own in labels) / len(data) for m in range(3)}
    threshold = 0.9
    for found, own in zip(repeat_factors(data, threshold), labels, strict=True):
        assert np.isclose(found, max([1.0, *((threshold / share[m]) ** 0.5 for m in own)]))
    assert set(repeat_factors(data, 0.01)) == {1.0}
