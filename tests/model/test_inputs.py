"""What `predict` and `predict_many` take."""

import gc
import io
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sotr
from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.decoding import DecodeOptions
from sotr.errors import SOTRError
from sotr.model.segmenter import Segmenter

RGB = np.kron(np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8), np.ones((8, 8, 1), np.uint8))


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    # Without waves: the masks of random weights that start as discs of P2 are smaller than a pixel of this small image.
    config = replace(SOTRConfig.preset("sotr-nano", num_classes=2), image_size=64, max_image_size=96, position_waves=0)
    network = build_network(config)
    options = DecodeOptions(
        cell_threshold=0.0, score_threshold=0.001, operating_score=0.0, max_candidates=40, max_objects=6
    )
    return Segmenter(network, ["cat", "dog"], [1, 2], options, engine="pytorch")


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    return file.getvalue()


def test_every_kind_of_input_gives_the_same(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    expected = segmenter.predict(RGB).rles
    assert expected
    alpha = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
    tensor = torch.from_numpy(RGB)
    named = str(tmp_path / "a.png")
    inputs = [
        named,
        Path(named),
        png(),
        io.BytesIO(png()),
        Image.fromarray(RGB),
        alpha,
        tensor,
        tensor.permute(2, 0, 1),
    ]
    for one in inputs:
        assert segmenter.predict(one).rles == expected, type(one)
    inputs[3] = io.BytesIO(png())  # the other one has been read
    for several in (segmenter.predict(inputs), segmenter.predict(one for one in [RGB])):
        assert [found.rles for found in several] == [expected] * len(several)
    assert segmenter.predict(io.BytesIO(png()), tile=64).rles == segmenter.predict(RGB, tile=64).rles
    assert segmenter.predict([]) == segmenter.predict(iter([])) == []


def test_many_images_stream(segmenter: Segmenter) -> None:
    """An image is made when its batch is due, and gone before the batch after the next one."""
    made: list[weakref.ref] = []

    def images() -> Iterator[np.ndarray]:
        for _ in range(6):
            image = RGB.copy()
            made.append(weakref.ref(image))
            yield image
            del image

    results = segmenter.predict_many(images(), batch_size=2)
    assert made == []
    for number, found in enumerate(results):
        assert len(made) == 2 * (number // 2) + 2
        gc.collect()
        assert sum(each() is not None for each in made) <= 2
        assert found.rles == segmenter.predict([RGB, RGB], batch_size=2)[0].rles
    assert len(made) == 6


def test_settings_are_checked_before_there_is_an_image(segmenter: Segmenter) -> None:
    for settings, message in (({"batch_size": 0}, "batch_size is 0"), ({"score": 2.0}, "score"), ({"tile": 1}, "tile")):
        with pytest.raises(SOTRError, match=message):
            segmenter.predict_many([], **settings)
    with pytest.raises(SOTRError, match="for one image there is predict"):
        segmenter.predict_many(RGB)  # type: ignore[arg-type]
    with pytest.raises(SOTRError, match="dict is no image"):
        segmenter.predict({"image": RGB})  # type: ignore[call-overload]
    with pytest.raises(SOTRError, match="float64 has no fixed range"):
        list(segmenter.predict_many([RGB, RGB / 255]))


def test_results_know_their_image_while_it_is_there(segmenter: Segmenter, tmp_path: Path) -> None:
    image = RGB.copy()
    found = segmenter.predict(image)
    assert np.array_equal(found.draw(), found.draw(RGB))
    del image
    gc.collect()
    assert not np.array_equal(found.draw(), found.draw(RGB))
    Image.fromarray(RGB).save(tmp_path / "a.png")
    assert np.array_equal(segmenter.predict(tmp_path / "a.png").draw(), found.draw(RGB))


def test_misuse_is_one_line() -> None:
    with pytest.raises(SOTRError, match=r"for a trained model call sotr\.load\('nuclei'\)"):
        Segmenter("nuclei")  # type: ignore[arg-type]
    with pytest.raises(SOTRError, match=r"a model has a name or path.*not int"):
        sotr.load(123)  # type: ignore[arg-type]
    for images in (RGB, [RGB]):
        with pytest.raises(SOTRError, match=r"takes files and writes.*sotr\.load\('nuclei'\)\.predict\(image\)"):
            sotr.predict(images)  # type: ignore[arg-type]
