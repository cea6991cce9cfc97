"""Black and white as a setting of the model folder: every way into a model applies it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.data.batches import EvalDataset, domain_of
from sotr.data.choice import Choice
from sotr.data.coco import load_coco
from sotr.data.images import load_image
from sotr.data.scaling import PERCENTILES, IntensityRange
from sotr.decoding import DecodeOptions
from sotr.errors import SOTRError
from sotr.export.description import ExportDescription
from sotr.model.segmenter import Segmenter, load
from sotr.prediction import predict
from sotr.results.instances import Instances

CONFIG = replace(SOTRConfig.preset("sotr-nano", 1), image_size=64, max_image_size=96, intensity_percentiles=PERCENTILES)
LENIENT = DecodeOptions(
    cell_threshold=0.0, score_threshold=0.001, operating_score=0.0, max_candidates=40, max_objects=10
)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(build_network(CONFIG), ["cell"], [1], LENIENT, engine="pytorch")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Gray values up to 240."""
    return np.random.default_rng(0).integers(0, 241, (8, 9)).repeat(10, 0).repeat(10, 1).astype(np.uint16)


def same(first: Instances, second: Instances) -> bool:
    return first.rles == second.rles and np.array_equal(first.scores_I, second.scores_I)


def test_brightness_counts_for_nothing(model: Segmenter, image: np.ndarray, tmp_path: Path) -> None:
    plain = Segmenter(model.network, ["cell"], [1], LENIENT, engine="pytorch")
    plain.config = replace(CONFIG, intensity_percentiles=())
    assert not same(plain.predict(image), plain.predict((image * 200).astype(np.uint16)))
    expected = model.predict(image)
    assert len(expected) > 0
    assert same(model.predict((image * 200).astype(np.uint16)), expected)
    tifffile.imwrite(tmp_path / "a.tif", image * np.uint16(200), tile=(32, 32))
    assert same(model.predict(tmp_path / "a.tif"), expected)
    stretched = load_image(image, choice=Choice(intensity=model.intensity))
    assert same(model.predict(stretched, as_is=True), expected)
    assert same(model.predict(image, tile=64), model.predict(stretched, as_is=True, tile=64))
    # The command line does the same, in tiles too, and what the user says wins.
    for tile in (None, 64):
        predict([tmp_path / "a.tif"], model, tmp_path / "out", score=0.0, tile=tile, quiet=True)
        found = Instances.from_coco(tmp_path / "out" / "predictions.json", 1)
        assert found.rles == model.predict(image, score=0.0, tile=tile).rles
    predict([tmp_path / "a.tif"], model, tmp_path / "out", score=0.0, intensity_range="0,65535", quiet=True)
    given = Instances.from_coco(tmp_path / "out" / "predictions.json", 1)
    assert given.rles == model.predict(np.rint(image * 200 / 257).astype(np.uint8), score=0.0, as_is=True).rles


def test_training_and_validation_see_the_same_as_prediction(
    model: Segmenter, image: np.ndarray, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", image * np.uint16(200))
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
    annotation["segmentation"] = [[5, 5, 25, 5, 25, 25, 5, 25]]
    data = {
        "images": [{"id": 1, "file_name": "a.tif", "height": image.shape[0], "width": image.shape[1]}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    coco = load_coco(tmp_path / "a.json", tmp_path)
    seen = EvalDataset(coco, CONFIG)[0].image_3hw
    assert torch.equal(seen, model.prepare(image).input_3hw)
    assert not torch.equal(seen, EvalDataset(coco, replace(CONFIG, intensity_percentiles=()))[0].image_3hw)
    domain = domain_of(coco, CONFIG)
    assert domain is not None
    assert (domain.images, domain.low.peak) == (1, 1.0)


def test_folders_keep_it_and_older_ones_have_none(model: Segmenter, tmp_path: Path) -> None:
    domain = model.domain = load("nuclei").domain
    model.save(tmp_path / "m")
    back = load(tmp_path / "m")
    assert back.config == CONFIG
    assert back.intensity == IntensityRange(1.0, 99.8, percent=True)
    assert back.domain == domain
    described = json.loads((tmp_path / "m" / "config.json").read_text())
    del described["architecture"]["intensity_percentiles"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(described))
    (tmp_path / "m" / "traits.json").unlink()
    older = load(tmp_path / "m")
    assert (older.intensity, older.domain) == (None, None)
    (tmp_path / "m" / "traits.json").write_text("{}")
    with pytest.raises(SOTRError, match=r"traits\.json has damaged traits of the training images"):
        load(tmp_path / "m")


@pytest.mark.parametrize("ends", [(1.0,), (5.0, 5.0), (-1.0, 50.0), (0.0, 101.0), (1.0, 2.0, 3.0)])
def test_percentiles_that_are_none_are_refused(ends: tuple[float, ...]) -> None:
    with pytest.raises(SOTRError, match="intensity_percentiles is"):
        replace(CONFIG, intensity_percentiles=ends)


def test_exported_files_say_it_and_older_ones_say_nothing() -> None:
    domain = load("nuclei").domain
    assert domain is not None
    description = ExportDescription(
        "m", "objects", ("cell",), (1,), 64, 96, (0.5,) * 3, (0.2,) * 3, LENIENT, PERCENTILES, domain
    )
    assert ExportDescription.from_json(description.to_json()) == description
    older = json.loads(description.to_json())
    del older["intensity_percentiles"], older["domain"]
    back = ExportDescription.from_json(json.dumps(older))
    assert (back.intensity_percentiles, back.domain) == ((), None)
    with pytest.raises(SOTRError, match="values that contradict one another"):
        ExportDescription.from_json(json.dumps(older | {"intensity_percentiles": [3.0, 2.0]}))
