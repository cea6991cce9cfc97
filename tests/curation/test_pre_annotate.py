"""Predictions as pre-annotations: the polygons are the masks, and Label Studio takes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as reference

from sotr.cli import run
from sotr.curation.pre_annotate import pre_annotate, to_label_studio
from sotr.errors import SOTRError
from sotr.prediction.output import result_files
from sotr.results.instances import Instances
from tests.scenes import random_masks

NAMES, IDS = ("cat & dog", 'a "bird"'), (17, 3)


@pytest.fixture(scope="module")
def instances() -> Instances:
    masks = random_masks(12, 90, 140, seed=1).numpy()
    masks[0] = False
    masks[0, 4, 5] = masks[0, 60:62, 100:130] = True  # one pixel, and a part apart from it
    return Instances.from_masks(np.linspace(0.9, 0.2, 12), [0, 1] * 6, masks, NAMES, IDS)


@pytest.fixture
def predictions(instances: Instances, tmp_path: Path) -> Path:
    """predictions.json with two images, the second without objects."""
    with result_files(tmp_path, {"model": "pets"}, NAMES, IDS, False) as files:
        files.add("a folder/100 %.png", instances)
        files.add("empty.png", Instances.empty(NAMES, IDS, (20, 30)))
    return tmp_path / "predictions.json"


def drawn(region: dict[str, Any]) -> np.ndarray:
    """The pixels that COCO's tools give a region's polygon."""
    height, width = region["original_height"], region["original_width"]
    points = np.array(region["value"]["points"]) * (width, height) / 100
    return reference.decode(reference.frPyObjects([points.ravel().tolist()], height, width))[..., 0].astype(bool)


def test_polygons_are_the_masks(instances: Instances) -> None:
    task = to_label_studio(instances, "a.png", "pets")
    (prediction,) = task["predictions"]
    regions = prediction["result"]
    assert task["data"] == {"image": "a.png"}
    assert prediction["model_version"] == "pets"
    assert len({region["id"] for region in regions}) == len(regions)
    for i, mask in enumerate(instances.masks_IHW):
        own = [region for region in regions if region["id"].startswith(f"{i}-")]
        assert {region["value"]["polygonlabels"][0] for region in own} == {NAMES[instances.labels_I[i]]}
        assert {region["score"] for region in own} == {round(float(instances.scores_I[i]), 4)}
        assert all(len(region["value"]["points"]) >= 3 for region in own)
        assert all(0 <= value <= 100 for region in own for point in region["value"]["points"] for value in point)
        covered = np.any([drawn(region) for region in own], 0)
        np.testing.assert_array_equal(covered, mask)
    parts = [region for region in regions if region["id"].startswith("0-")]
    assert sorted(int(drawn(part).sum()) for part in parts) == [1, 60]


def test_corners_may_be_fewer_and_areas_stay(instances: Instances) -> None:
    corners = []
    for tolerance in (0.0, 0.35, 1.0):
        regions = to_label_studio(instances, "a.png", "pets", tolerance)["predictions"][0]["result"]
        corners.append(sum(len(region["value"]["points"]) for region in regions))
        area = sum(drawn(region).sum() for region in regions)
        assert area == pytest.approx(instances.areas_I.sum(), rel=0.03 if tolerance == 1 else 0)
    assert corners[0] > corners[1] > corners[2]


def test_label_studio_takes_them(predictions: Path, tmp_path: Path) -> None:
    assert run(["pre-annotate", str(predictions), "--out", str(tmp_path / "tasks.json"), "--url", "/d/?d="]) == 0
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == ["/d/?d=a%20folder/100%20%25.png", "/d/?d=empty.png"]
    assert [len(task["predictions"][0]["result"]) for task in tasks] == [13, 0]
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface(
        (tmp_path / "tasks.xml").read_text()
    )
    for task in tasks:
        assert interface.validate_task({"data": task["data"]})
        for prediction in task["predictions"]:
            assert interface.validate_prediction(prediction)
    spoilt = json.loads(json.dumps(tasks[0]["predictions"][0]))
    spoilt["result"][0]["value"]["polygonlabels"] = ["stranger"]
    assert not interface.validate_prediction(spoilt)


def test_low_scores_are_left_out(predictions: Path, instances: Instances, tmp_path: Path) -> None:
    pre_annotate(predictions, tmp_path / "tasks.json", score=0.6)
    regions = json.loads((tmp_path / "tasks.json").read_text())[0]["predictions"][0]["result"]
    assert {int(region["id"].split("-")[0]) for region in regions} == set(np.flatnonzero(instances.scores_I >= 0.6))


def test_bad_input_is_one_line(predictions: Path, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("no JSON")
    (tmp_path / "other.json").write_text('{"images": []}')
    damaged = json.loads(predictions.read_text())
    damaged["annotations"][0]["segmentation"]["counts"] = "!"
    (tmp_path / "damaged.json").write_text(json.dumps(damaged))
    (tmp_path / "nuclei.xml").write_text("<?xml version='1.0'?><net/>")  # a model, say
    out = tmp_path / "tasks.json"
    for arguments, message in (
        ((tmp_path / "absent.json", out), "absent.json: no such file; sotr predict writes it"),
        ((tmp_path / "text.json", out), "text.json is not the predictions.json of sotr predict"),
        ((tmp_path / "other.json", out), "other.json is not the predictions.json of sotr predict"),
        ((tmp_path / "damaged.json", out), "damaged.json: a mask"),
        ((predictions, tmp_path / "tasks.txt"), "give a name that ends in .json"),
        ((predictions, tmp_path / "text.json" / "tasks.json"), "cannot write"),
        ((predictions, out, "", 2.0), "score is 2.0"),
        ((predictions, out, "", 0.0, -1.0), "tolerance is -1.0"),
        ((predictions, tmp_path / "nuclei.json"), "nuclei.xml is no labelling configuration"),
    ):
        with pytest.raises(SOTRError, match=message) as caught:
            pre_annotate(*arguments)
        assert "\n" not in str(caught.value)
    assert not out.exists()
