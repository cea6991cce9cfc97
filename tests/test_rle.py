"""Making run-length encodings, against the library's; reading them is tested with what reads them."""

from unittest import mock

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from hypothesis import given
from hypothesis import strategies as st

from sotr.rle import boxes_of_counts, decode_counts, encode_counts, joined_counts, mask_counts

shapes = st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 70))


@given(shape=shapes, density=st.sampled_from([0.0, 0.003, 0.3, 0.97, 1.0]), seed=st.integers(0, 99))
def test_masks_are_encoded_as_by_the_library(shape, density, seed):
    masks_IWH = np.random.default_rng(seed).random(shape) < density
    expected = coco_mask.encode(np.asfortranarray(masks_IWH.view(np.uint8).transpose(2, 1, 0)))
    found = encode_counts(*mask_counts(masks_IWH))
    assert [text.encode() for text in found] == [
        rle["counts"] if isinstance(rle["counts"], bytes) else rle["counts"].encode() for rle in expected
    ]


@given(shape=shapes, density=st.sampled_from([0.0, 0.003, 0.3, 1.0]), seed=st.integers(0, 99))
def test_boxes_are_those_of_the_library(shape, density, seed):
    masks_IWH = np.random.default_rng(seed).random(shape) < density
    boxes = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(masks_IWH.view(np.uint8).transpose(2, 1, 0))))
    boxes[:, 2:] += boxes[:, :2]
    pieces = [mask_counts(masks_IWH[:1]), *([mask_counts(masks_IWH[1:])] if len(masks_IWH) > 1 else [])]
    counts, offsets = joined_counts(pieces)
    for found, expected in zip((counts, offsets), mask_counts(masks_IWH), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(boxes_of_counts(counts, offsets, masks_IWH.any(1), masks_IWH.shape[1]), boxes)


@given(st.lists(st.lists(st.integers(0, 2**33), max_size=9), max_size=5), st.sampled_from([1, 10, 100_000]))
def test_counts_come_back_however_many_are_encoded_at_once(strings, at_once):
    counts = np.array([count for string in strings for count in string], np.int64)
    offsets = np.concatenate(([0], np.cumsum([len(string) for string in strings]))).astype(np.int64)
    with mock.patch("sotr.rle.RUNS_AT_ONCE", at_once):
        texts = encode_counts(counts, offsets)
    text = np.frombuffer("".join(texts).encode(), np.uint8)
    decoded, places = decode_counts(text, np.array([len(text) for text in texts], np.int64))
    np.testing.assert_array_equal(decoded, counts)
    np.testing.assert_array_equal(places, offsets)
