"""Objects as a label image, as GeoJSON, and as regions of Label Studio."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from sotr.errors import SOTRError
from sotr.masks.polygons import rings
from sotr.results.geojson import feature_collection
from sotr.results.instances import Instances
from sotr.results.label_studio import brush_rle, control_of, prediction

NAMES = ("cell", "Dead cell")


def instances_of(*masks: NDArray[np.bool_]) -> Instances:
    scores = np.linspace(0.9, 0.5, len(masks))
    return Instances.from_masks(scores, [i % 2 for i in range(len(masks))], np.stack(masks), NAMES, (3, 7))


def square(x: int, y: int, side: int, size: tuple[int, int] = (20, 30)) -> NDArray[np.bool_]:
    mask_HW = np.zeros(size, bool)
    mask_HW[y : y + side, x : x + side] = True
    return mask_HW


def painted(polygons: list[list[list[list[int]]]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centers lie inside, by the even-odd rule over all rings."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    inside = np.zeros(size, bool)
    for ring in (ring for polygon in polygons for ring in polygon):
        for (x0, y0), (_, y1) in pairwise(ring):
            if y0 != y1:
                inside ^= (x < x0) & (y >= min(y0, y1)) & (y < max(y0, y1))
    return inside


def area_of(ring: list[list[int]]) -> float:
    """Positive where the ring runs clockwise as it is seen, for y points down."""
    corners = np.array(ring, float)
    return float((corners[:-1, 0] * corners[1:, 1] - corners[1:, 0] * corners[:-1, 1]).sum() / 2)


def test_the_better_object_is_on_top_of_a_label_image() -> None:
    labels_HW = instances_of(square(2, 3, 5), square(4, 5, 5), square(20, 0, 3)).label_image()
    assert labels_HW.dtype == np.uint16
    assert labels_HW.shape == (20, 30)
    assert np.bincount(labels_HW.ravel()).tolist() == [600 - 25 - 16 - 9, 25, 16, 9]
    assert (labels_HW[5, 4], labels_HW[9, 8], labels_HW[0, 20], labels_HW[19, 29]) == (1, 2, 3, 0)
    assert not Instances.empty(NAMES, (3, 7), (4, 5)).label_image().any()


def test_geojson_has_holes_and_parts_and_gives_the_masks_back() -> None:
    ring = square(2, 3, 9) & ~square(4, 5, 3) & ~square(8, 8, 2)
    corners = square(0, 0, 2) | square(2, 2, 2) | square(20, 10, 4)
    instances = instances_of(ring, corners)
    collection = feature_collection(instances)
    assert collection["type"] == "FeatureCollection"
    first, second = collection["features"]
    assert first["properties"] == {
        "objectType": "detection", "name": "1", "classification": {"name": "cell"},
        "measurements": {"label": 1, "score": 0.9},
    }  # fmt: skip
    assert first["geometry"]["type"] == "Polygon"
    outline, *holes = first["geometry"]["coordinates"]
    assert sorted(map(area_of, holes)) == [4, 9]
    assert area_of(outline) == -81
    assert all(each[0] == each[-1] for each in first["geometry"]["coordinates"])
    # Parts that touch at a corner: a ring that touches itself would be invalid.
    assert second["geometry"]["type"] == "MultiPolygon"
    assert len(second["geometry"]["coordinates"]) == 3
    assert (painted([first["geometry"]["coordinates"]], (20, 30)) == ring).all()
    assert (painted(second["geometry"]["coordinates"], (20, 30)) == corners).all()


def test_rings_of_noise_give_the_mask_back_and_touch_themselves_nowhere() -> None:
    mask_hw = np.random.default_rng(0).random((40, 50)) < 0.6
    parts = [[[*ring.astype(int).tolist(), ring[0].astype(int).tolist()] for ring in part] for part in rings(mask_hw)]
    assert (painted(parts, mask_hw.shape) == mask_hw).all()
    for outline, *holes in parts:
        assert area_of(outline) < 0
        assert all(area_of(hole) > 0 for hole in holes)
        for ring in (outline, *holes):
            assert len({tuple(corner) for corner in ring}) == len(ring) - 1


def unpacked(rle: list[int]) -> NDArray[np.uint8]:
    """What Label Studio reads from its run lengths, by its own description of them."""
    bits, at = "".join(f"{byte:08b}" for byte in rle), 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        run = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if run else [read(word) for _ in range(length)]
    assert len(values) == count
    return np.array(values, np.uint8)


@pytest.mark.parametrize("size", [(20, 30), (300, 211)])
def test_brushed_masks_are_the_masks(size: tuple[int, int]) -> None:
    height, width = size
    masks = [square(0, 0, 20, size), square(width - 3, height - 3, 3, size), np.ones(size, bool)]
    masks.append(np.random.default_rng(0).random(size) < 0.5)
    instances = instances_of(*masks)
    for i, mask_HW in enumerate(masks):
        values = unpacked(brush_rle(instances, i)).reshape(height, width, 4)
        assert (values == mask_HW[..., None] * np.uint8(255)).all()


BRUSH = """<View><Header value="Cells"/><Image name="photo" value="$address"/>
  <BrushLabels name="tool" toName="photo"><Label value="CELL"/><Label value="dead cell" alias="dead"/>
  </BrushLabels></View>"""


def test_a_control_takes_the_classes_whose_names_it_has() -> None:
    control = control_of(BRUSH, NAMES)
    assert control[:4] == ("brushlabels", "tool", "photo", "address")
    assert control.labels == {"cell": "CELL"}
    polygons = BRUSH.replace("BrushLabels", "PolygonLabels").replace(' alias="dead"', "")
    assert control_of(polygons, NAMES) == (
        "polygonlabels", "tool", "photo", "address", {"cell": "CELL", "Dead cell": "dead cell"}
    )  # fmt: skip
    one = polygons.replace('<Label value="CELL"/>', "").replace("dead cell", "Kern")
    assert control_of(one, ("nucleus",)).labels == {"nucleus": "Kern"}


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        ("", "cannot be read"),
        ("<View>", "cannot be read"),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]><View>&a;</View>", "declarations are not read"),
        ("<View><Image name='i' value='$image'/></View>", "no <PolygonLabels> or <BrushLabels>"),
        (BRUSH.replace("photo", "x", 1), "no <PolygonLabels> or <BrushLabels>"),
        (BRUSH.replace("CELL", "house").replace("dead", "car"), "has the labels house, car, and the model finds cell"),
        ("\ud800", "cannot be read"),
    ],
)
def test_configurations_of_no_use_are_said(configuration: str, words: str) -> None:
    with pytest.raises(SOTRError, match=words):
        control_of(configuration, NAMES)


def test_predictions_leave_out_classes_without_a_label() -> None:
    instances = instances_of(square(2, 3, 5), square(4, 5, 5), square(20, 0, 3))
    found = prediction(instances, control_of(BRUSH, NAMES), "nuclei-1")
    assert (found["model_version"], found["score"]) == ("nuclei-1", 0.7)
    assert [region["id"] for region in found["result"]] == ["0-0", "2-0"]
    region = found["result"][1]
    assert region["value"].pop("rle") == brush_rle(instances, 2)
    assert region == {
        "id": "2-0", "type": "brushlabels", "from_name": "tool", "to_name": "photo", "original_width": 30,
        "original_height": 20, "image_rotation": 0, "score": 0.5, "value": {"format": "rle", "brushlabels": ["CELL"]},
    }  # fmt: skip
