from typing import Any

import pytest

from sotr.decode_options import DecodeOptions
from sotr.errors import SOTRError


def test_settings_change_as_text() -> None:
    changed = DecodeOptions().with_changes("points_nms=true, nms=linear,nms_sigma=1.5,max_objects=7")
    assert (changed.points_nms, changed.nms, changed.nms_sigma, changed.max_objects) == (True, "linear", 1.5, 7)
    assert DecodeOptions(max_nms=9).with_changes("nms_sigma=2").max_nms == 9


@pytest.mark.parametrize(
    "changes",
    [
        {"nms_sigma": float("inf")},
        {"nms_sigma": float("nan")},
        {"nms_sigma": 1e300},
        {"nms_sigma": 0.0},
        {"max_objects": 1.0},
        {"max_candidates": True},
        {"min_area_strides": float("nan")},
        {"score_threshold": float("nan")},
        {"mask_threshold": float("nan")},
        {"nms_threshold": float("nan")},
    ],
)
def test_what_would_fail_while_decoding_is_refused(changes: dict[str, Any]) -> None:
    [name] = changes
    with pytest.raises(SOTRError, match=name):
        DecodeOptions(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("points_nms", "'points_nms' has no value; write NAME=VALUE"),
        ("pointnms=true", "unknown decoding setting pointnms"),
        ("points_nms=1", "points_nms is 1; it must look like False"),
        ("mask_threshold=1.5", "mask_threshold is 1.5; it must lie between 0 and 1"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(SOTRError, match=message):
        DecodeOptions().with_changes(text)
