"""Predictions in other tools' words and with a user's own ids, and inputs as other programs list them."""

import json
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sotr.cli import run
from sotr.curation.convert import convert_data
from sotr.data.coco import find_data
from sotr.errors import SOTRError
from sotr.prediction import predict
from sotr.prediction.video_files import film, open_video
from sotr.results.instances import Instances
from tests.prediction.blobs import Blobs


def scene(path: Path, shift: int = 0) -> Path:
    """A red ring, a green box and a blue object of two parts."""
    image = np.full((96, 128, 3), 12, np.uint8)
    cv2.circle(image, (30 + shift, 40), 20, (220, 30, 30), 7)
    cv2.rectangle(image, (70, 10), (100, 50), (30, 220, 30), -1)
    cv2.ellipse(image, (90, 75), (25, 9), 20, 0, 360, (30, 30, 220), -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def truth(folder: Path, out: Path) -> dict[str, Any]:
    """The predictions with other ids, in another order."""
    content = json.loads((out / "predictions.json").read_text())
    ids = {image["id"]: 1000 - 7 * image["id"] for image in content["images"]}
    for image in content["images"]:
        image["id"] = ids[image["id"]]
    for annotation in content["annotations"]:
        annotation["image_id"] = ids[annotation["image_id"]]
    return content


def test_polygons_are_the_masks(tmp_path: Path) -> None:
    scene(tmp_path / "in/a.png")
    predict([tmp_path / "in"], Blobs(), tmp_path / "rle", quiet=True)
    predict([tmp_path / "in"], Blobs(), tmp_path / "out", polygons=True, quiet=True)
    rles, polygons = (COCO(str(tmp_path / name / "predictions.json")) for name in ("rle", "out"))
    assert len(polygons.anns) == 3
    for number, annotation in polygons.anns.items():
        assert isinstance(annotation["segmentation"], list)
        np.testing.assert_array_equal(polygons.annToMask(annotation), rles.annToMask(rles.anns[number]))
    data = find_data(tmp_path / "out", train_json="predictions.json", images=tmp_path / "in").train
    assert data is not None
    assert data.polygons.all()


def test_labelme_gets_the_masks_and_gives_them_back(tmp_path: Path) -> None:
    scene(tmp_path / "in/a.png")
    scene(tmp_path / "in/sub/b.png", 3)
    assert predict([tmp_path / "in"], Blobs(), tmp_path / "out", labelme=True, quiet=True).objects == 6
    content = json.loads((tmp_path / "out/labelme/a.json").read_text())
    assert (tmp_path / "out/labelme" / content["imagePath"]).samefile(tmp_path / "in/a.png")
    convert_data(str(tmp_path / "out/labelme"), str(tmp_path / "back"), val_share=0, quiet=True)
    data = find_data(tmp_path / "back").train
    assert data is not None
    results = json.loads((tmp_path / "out/results.json").read_text())
    for index in range(2):
        masks = data.masks(data.record(index))
        own = [r for r in results if r["image_id"] == index + 1]
        assert len(own) == len(masks) == 3
        for result in own:
            mask = reference.decode(result["segmentation"]).astype(bool)
            assert any(np.array_equal(mask, other) for other in masks)


def test_results_have_the_ids_of_a_users_file(tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "b.png", "sub/a.png")):
        scene(tmp_path / "in" / name, number)
    predict([tmp_path / "in"], Blobs(), tmp_path / "first", quiet=True)
    content = truth(tmp_path / "in", tmp_path / "first")
    (tmp_path / "truth.json").write_text(json.dumps(content))
    arguments = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--ids-from", str(tmp_path / "truth.json")]
    predict([tmp_path / "in"], Blobs(), tmp_path / "out", ids_from=str(tmp_path / "truth.json"), quiet=True)
    assert run(["predict", *arguments, "--shards", "2", "--shard", "0"]) == 2
    own = COCO(str(tmp_path / "truth.json"))
    scores = COCOeval(own, own.loadRes(str(tmp_path / "out/results.json")), "segm")
    scores.evaluate()
    scores.accumulate()
    scores.summarize()
    assert scores.stats[0] == pytest.approx(1)
    # A folder of which another one has images of the same names.
    predict([tmp_path / "in/sub"], Blobs(), tmp_path / "sub", ids_from=str(tmp_path / "truth.json"), quiet=True)
    (only,) = json.loads((tmp_path / "sub/predictions.json").read_text())["images"]
    names = {image["id"]: image["file_name"] for image in content["images"]}
    for image in json.loads((tmp_path / "out/predictions.json").read_text())["images"]:
        assert names[image["id"]] == image["file_name"]
    assert names[only["id"]] == "sub/a.png"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["c.png"], "a.png is not listed"),
        (["x/a.png", "y/a.png"], "a.png could be several images"),
    ],
)
def test_ids_that_are_not_clear_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    scene(tmp_path / "in/a.png")
    content = {"images": [{"id": i, "file_name": name} for i, name in enumerate(names)]}
    (tmp_path / "ids.json").write_text(json.dumps(content))
    with pytest.raises(SOTRError, match=message):
        predict([tmp_path / "in"], Blobs(), tmp_path / "out", ids_from=str(tmp_path / "ids.json"), quiet=True)
    assert not (tmp_path / "out").exists()


LISTS = {
    "a mark": b"\xef\xbb\xbfa.png\r\nb.png\r\n",
    "UTF-16": "a.png\r\nb.png\r\n".encode("utf-16"),
    "trailing blanks": b"a.png \n  \nb.png\t\n",
}


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS)
def test_lists_as_other_programs_write_them(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        scene(tmp_path / name)
    (tmp_path / "list.txt").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    summary = predict(["list.txt"], Blobs(), "out", quiet=True)
    assert (summary.pictures, summary.failures) == (2, [])


def test_colors_of_a_video_are_tagged_and_come_back(tmp_path: Path) -> None:
    colors = [(220, 30, 30), (30, 220, 30), (30, 30, 220), (255, 176, 0), (86, 180, 233), (240, 240, 240)]
    image = np.zeros((64, 32 * len(colors), 3), np.uint8)
    for number, color in enumerate(colors):
        image[:, 32 * number : 32 * number + 32] = color
    with (tmp_path / "a.mp4").open("wb") as file, film(file, 25.0) as add:
        add(image, 0.0)
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
    with open_video(tmp_path / "a.mp4") as video:
        found = next(iter(video.frames)).image
    for number, color in enumerate(colors):
        assert np.abs(found[32, 32 * number + 16].astype(int) - color).max() <= 4


@pytest.mark.parametrize("name", ["細胞核", "клетка", "핵", "θ-phase", "café"])
def test_class_names_of_other_scripts_are_written(name: str) -> None:
    mask = np.zeros((1, 200, 300), np.bool_)
    mask[0, 20:180, 20:280] = True
    blank = np.full((200, 300, 3), 90, np.uint8)

    def label(text: str) -> np.ndarray:
        return Instances.from_masks([1.0], [0], mask, [text], [1]).draw(blank, scale=1)

    drawn, other = label(name), label("\uffff" * len(name))  # the latter is boxes
    ink = np.abs(drawn.astype(int) - label(" " * 12)).sum()
    assert ink > 0
    if hasattr(cv2, "FontFace"):
        assert not np.array_equal(drawn, other)
        assert not np.array_equal(drawn, label(name[::-1] if name != name[::-1] else name * 2))


def test_names_that_a_console_lacks_do_not_break_the_output(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    scene(tmp_path / "data/images/細胞.png")
    predict([tmp_path / "data/images"], Blobs(), tmp_path / "data", quiet=True, overlays=False)
    content = json.loads((tmp_path / "data/predictions.json").read_text())
    content["categories"][0]["name"] = "細胞核"
    (tmp_path / "data/train.json").write_text(json.dumps(content))
    words = ["data", "check", str(tmp_path / "data"), "--model", "sotr-nano"]
    # Both ways in one process, which imports PyTorch once.
    code = (
        "import sys; from sotr.cli import main, run; words = sys.argv[1:]\n"
        "try: main(words)\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "print('then'); sys.exit(run([*words, '--json']))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr.decode()
    table, _, as_json = done.stdout.partition(b"then\n")
    assert rb"\u7d30" in table
    assert "細胞核" in json.loads(as_json.decode("cp1252"))["splits"]["train"]["classes"]
