"""Making run-length encodings, against the library's; reading them is tested with what reads them."""

from unittest import mock

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from hypothesis import given
from hypothesis import strategies as st

from sotr.masks.run_lengths import areas, boxes, decode_counts, encode_counts, joined, mask_runs, moved, runs_to_counts

shapes = st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 70))


@given(shape=shapes, density=st.sampled_from([0.0, 0.003, 0.3, 0.97, 1.0]), seed=st.integers(0, 99))
def test_masks_are_encoded_as_by_the_library(shape, density, seed):
    masks_IWH = np.random.default_rng(seed).random(shape) < density
    expected = coco_mask.encode(np.asfortranarray(masks_IWH.view(np.uint8).transpose(2, 1, 0)))
    found = encode_counts(*runs_to_counts(mask_runs(masks_IWH), masks_IWH[0].size))
    assert [text.encode() for text in found] == [
        rle["counts"] if isinstance(rle["counts"], bytes) else rle["counts"].encode() for rle in expected
    ]


@given(shape=shapes, density=st.sampled_from([0.0, 0.003, 0.3, 1.0]), seed=st.integers(0, 99))
def test_boxes_are_those_of_the_library(shape, density, seed):
    masks_IWH = np.random.default_rng(seed).random(shape) < density
    expected = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(masks_IWH.view(np.uint8).transpose(2, 1, 0))))
    expected[:, 2:] += expected[:, :2]
    runs = mask_runs(masks_IWH)
    np.testing.assert_array_equal(boxes(runs), expected)
    np.testing.assert_array_equal(areas(runs), masks_IWH.sum((1, 2)))
    again = joined([mask_runs(masks_IWH[:1]), *([mask_runs(masks_IWH[1:])] if len(masks_IWH) > 1 else [])])
    for name in ("starts", "ends", "offsets", "heights_I"):
        np.testing.assert_array_equal(getattr(again, name), getattr(runs, name))


def test_boxes_of_pictures_of_several_heights():
    tall, low = np.zeros((2, 3, 9), bool), np.zeros((1, 5, 4), bool)
    tall[0, 1:, 2:5] = tall[1, 0, 8] = tall[1, 1, :2] = low[0, 3, 1:3] = True
    found = boxes(joined([mask_runs(tall), mask_runs(low)]))
    assert found.tolist() == [[1, 2, 3, 5], [0, 0, 2, 9], [3, 1, 4, 3]]


@given(
    size=st.tuples(st.integers(1, 9), st.integers(2, 9)),
    places=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4),
    whole_columns=st.booleans(),
    seed=st.integers(0, 99),
)
def test_masks_are_moved(size, places, whole_columns, seed):
    lefts, tops = np.array(places).T
    masks_IWH = np.random.default_rng(seed).random((len(places), *size)) < 0.6
    if whole_columns:
        tops, height = np.zeros_like(tops), size[1]
    else:  # the first row of each or its last is empty, so that no run goes on in the next column
        height = size[1] + 6
        masks_IWH[np.arange(len(places)), :, -(tops % 2)] = False
    expected_IWH = np.zeros((len(places), size[0] + 6, height), bool)
    for mask_WH, left, top, expected_WH in zip(masks_IWH, lefts, tops, expected_IWH, strict=True):
        expected_WH[left : left + size[0], top : top + size[1]] = mask_WH
    found, expected = moved(mask_runs(masks_IWH), lefts, tops, height), mask_runs(expected_IWH)
    for name in ("starts", "ends", "offsets", "heights_I"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@given(st.lists(st.lists(st.integers(0, 2**33), max_size=9), max_size=5), st.sampled_from([1, 10, 100_000]))
def test_counts_come_back_however_many_are_encoded_at_once(strings, at_once):
    counts = np.array([count for string in strings for count in string], np.int64)
    offsets = np.concatenate(([0], np.cumsum([len(string) for string in strings]))).astype(np.int64)
    with mock.patch("sotr.masks.run_lengths.RUNS_AT_ONCE", at_once):
        texts = encode_counts(counts, offsets)
    text = np.frombuffer("".join(texts).encode(), np.uint8)
    decoded, places = decode_counts(text, np.array([len(text) for text in texts], np.int64))
    np.testing.assert_array_equal(decoded, counts)
    np.testing.assert_array_equal(places, offsets)
