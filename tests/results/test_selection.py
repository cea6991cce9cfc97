"""Choosing among objects, and putting them together."""

import numpy as np
import pytest
import supervision

from sotr.errors import SOTRError
from sotr.results.instances import Instances


@pytest.fixture
def objects() -> Instances:
    """Four objects of 1, 4, 9 and 16 pixels; scores fall."""
    masks = np.zeros((4, 20, 30), bool)
    for i, mask in enumerate(masks):
        mask[: i + 1, 5 * i : 5 * i + i + 1] = True
    return Instances.from_masks([0.9, 0.7, 0.5, 0.3], [0, 1, 1, 2], masks, ["cat", "dog", "bird"], [3, 17, 90])


def areas(instances: Instances) -> list[int]:
    return instances.areas_I.tolist()


def test_index_by_slice_mask_and_positions(objects: Instances) -> None:
    assert areas(objects[1]) == [4]
    assert areas(objects[-1]) == [16]
    assert areas(objects[1:3]) == [4, 9]
    assert areas(objects[::-1]) == [16, 9, 4, 1]
    assert areas(objects[objects.areas_I > 4]) == [9, 16]
    assert areas(objects[[True, False, False, True]]) == [1, 16]
    assert areas(objects[np.array([3, 0])]) == [16, 1]
    assert areas(objects[[]]) == []
    assert [areas(one) for one in objects] == [[1], [4], [9], [16]]
    assert objects[[3, 0]].boxes_I4.tolist() == [[15, 0, 19, 4], [0, 0, 1, 1]]
    with pytest.raises(IndexError):
        objects[4]
    with pytest.raises(IndexError):
        objects[[True, False]]


def test_filter_by_score_class_and_area(objects: Instances) -> None:
    assert areas(objects.filter(0.5)) == [1, 4, 9]
    assert areas(objects.filter(class_name="dog")) == [4, 9]
    assert areas(objects.filter(class_name=["bird", "cat"])) == [1, 16]
    assert areas(objects.filter(class_name=[])) == []
    assert areas(objects.filter(area=(4, 9))) == [4, 9]
    assert areas(objects.filter(area=(None, 4))) == [1, 4]
    assert areas(objects.filter(area=(5, None))) == [9, 16]
    assert areas(objects.filter(score=0.6, class_name="dog", area=(2, 100))) == [4]
    assert areas(objects.filter()) == [1, 4, 9, 16]
    with pytest.raises(SOTRError, match=r"no class 'dgo', did you mean 'dog'\?; the classes are cat, dog, bird"):
        objects.filter(class_name="dgo")


def test_concatenate_sorts_by_score_and_unites_classes(objects: Instances) -> None:
    mask = np.zeros((2, 20, 30), bool)
    mask[:, 10:15, 10:15] = True
    # The id of the new class is taken here, and "dog" has another id there.
    others = Instances.from_masks([0.8, 0.6], [0, 1], mask, ["car", "dog"], [3, 4])
    both = objects + others
    assert both.class_names == ("cat", "dog", "bird", "car")
    assert both.category_ids == (3, 17, 90, 91)
    assert both.scores_I.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.3])
    assert [both.class_names[label] for label in both.labels_I] == ["cat", "car", "dog", "dog", "dog", "bird"]
    assert areas(both) == [1, 25, 4, 25, 9, 16]
    again = Instances.concatenate(one for one in objects)
    assert (again.rles, again.category_ids) == (objects.rles, objects.category_ids)
    empty = Instances.empty(["cat"], [3], (20, 30))
    assert areas(empty + objects) == areas(objects)
    assert len(empty + empty) == 0


def test_what_cannot_be_concatenated(objects: Instances) -> None:
    with pytest.raises(SOTRError, match="nothing to concatenate"):
        Instances.concatenate([])
    with pytest.raises(SOTRError, match=r"different sizes, \[\(20, 30\), \(20, 31\)\]"):
        objects + Instances.empty(["cat"], [3], (20, 31))
    with pytest.raises(TypeError):
        objects + 1  # type: ignore[operator]


def test_they_are_not_taken_for_results_of_ultralytics(objects: Instances) -> None:
    with pytest.raises(SOTRError, match=r"use objects\.to_supervision\(\)"):
        supervision.Detections.from_ultralytics(objects)
    assert len(objects.to_supervision()) == 4
    with pytest.raises(AttributeError, match="no attribute 'masks', did you mean 'masks_IHW'"):
        objects.masks  # noqa: B018
    assert not hasattr(objects, "boxes")
