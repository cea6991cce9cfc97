"""The `pre-annotate` command: predictions as a first draft for people who label pictures in Label Studio.

CVAT, FiftyOne, Roboflow and the like import the COCO data set that `sotr predict` writes as it is.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
from numpy.typing import NDArray

from sotr.errors import SOTRError
from sotr.files import atomic_write
from sotr.results.instances import Instances

IMAGE, LABEL = "image", "label"
"""Names that a Label Studio project gives to its picture and to its labels; regions refer to them."""

TOLERANCE = 0.7
"""Pixels by which a polygon may leave a mask's outline, so that it has few corners to drag."""


def pre_annotate(
    predictions: str | Path, out: str | Path = "label-studio.json", url: str = "", score: float = 0.0
) -> Path:
    """Turn the predictions of `sotr predict` into Label Studio's tasks with polygons to correct.

    Written are OUT, to be imported into a project, and beside it an .xml of the same name, the project's labelling
    configuration. Holes in objects are filled, and parts of an object become regions of their own.

    Args:
        predictions: predictions.json, as `sotr predict` writes it.
        out: file to write.
        url: what to put before each picture's name to make its address, such as https://example.org/pictures/ or,
            for Label Studio's local storage, /data/local-files/?d=pictures/
        score: leave out objects below this score, 0..1.

    Returns:
        The file.

    Raises:
        SOTRError: the predictions cannot be read, or the file cannot be written.
    """
    out = Path(out)
    if not 0 <= score <= 1:
        raise SOTRError(f"score is {score}; it must lie in 0..1")
    if out.suffix != ".json":
        raise SOTRError(f"{out}: give a name that ends in .json")
    beside = out.with_suffix(".xml")
    class_names, model, pictures = _read(Path(predictions))
    tasks = [
        to_label_studio(instances.filter(score), url + quote(file_name), model) for file_name, instances in pictures
    ]
    labels = "".join(f"\n    <Label value={quoteattr(name)}/>" for name in class_names)
    configuration = (
        f'<View>\n  <Image name="{IMAGE}" value="${IMAGE}"/>\n'
        f'  <PolygonLabels name="{LABEL}" toName="{IMAGE}">{labels}\n  </PolygonLabels>\n</View>\n'
    )
    try:
        if beside.is_file() and not beside.read_bytes().startswith(b"<View>"):
            raise SOTRError(f"{beside} is no labelling configuration, and would be replaced; choose another with --out")
        with atomic_write(out, "w") as tasks_file, atomic_write(beside, "w") as configuration_file:
            json.dump(tasks, tasks_file, ensure_ascii=False)
            configuration_file.write(configuration)
    except OSError as error:
        raise SOTRError(f"cannot write {out}: {error.strerror or error}; choose another with --out") from error
    return out


def to_label_studio(instances: Instances, image: str, model: str) -> dict[str, Any]:
    """One task of Label Studio: a picture's address and its objects as a prediction.

    Args:
        image: address of the picture.
        model: what to call the prediction's origin.
    """
    height, width = instances.image_size
    percent = np.array([100 / width, 100 / height])
    regions = [
        {
            "id": f"{i}-{part}",
            "type": "polygonlabels",
            "from_name": LABEL,
            "to_name": IMAGE,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": round(float(instances.scores_I[i]), 4),
            "value": {
                "points": np.round(polygon * percent, 4).tolist(),
                "closed": True,
                "polygonlabels": [instances.class_names[instances.labels_I[i]]],
            },
        }
        for i in range(len(instances))
        for part, polygon in enumerate(_polygons(instances, i))
    ]
    mean = float(instances.scores_I.mean()) if len(instances) else 0.0
    return {
        "data": {IMAGE: image},
        "predictions": [{"model_version": model, "score": round(mean, 4), "result": regions}],
    }


def _polygons(instances: Instances, i: int) -> Iterator[NDArray[np.float64]]:
    """The outline of each part of object i, corners x 2 in pixels."""
    mask_hw, x, y = instances.mask_crop(i)
    # On a finer grid an outline runs along the edges of pixels rather than through their centres.
    fine = np.repeat(np.repeat(mask_hw.view(np.uint8), 2, 0), 2, 1)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        corners = cv2.approxPolyDP(contour, 2 * TOLERANCE, closed=True)[:, 0]
        if len(corners) < 3:  # a part one or two pixels wide
            left, top, w, h = cv2.boundingRect(contour)
            corners = np.array([[left, top], [left + w, top], [left + w, top + h], [left, top + h]]) - 0.5
        yield (corners + 0.5) / 2 + (x, y)


def _read(path: Path) -> tuple[Sequence[str], str, list[tuple[str, Instances]]]:
    """Class names, the model's name, and each picture's name with its objects."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        sizes = {image["id"]: (image["file_name"], image["height"], image["width"]) for image in content["images"]}
        annotations: dict[int, list[dict[str, Any]]] = {number: [] for number in sizes}
        for annotation in content["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        model = str(content.get("info", {}).get("model", "sotr"))
        pictures = [
            (
                file_name,
                Instances.from_rles(
                    [annotation.get("score", 1.0) for annotation in annotations[number]],
                    [list(names).index(annotation["category_id"]) for annotation in annotations[number]],
                    [annotation["segmentation"] for annotation in annotations[number]],
                    tuple(names.values()),
                    tuple(names),
                    (height, width),
                ),
            )
            for number, (file_name, height, width) in sizes.items()
        ]
    except FileNotFoundError:
        raise SOTRError(f"{path}: no such file; sotr predict writes it") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SOTRError(f"{path} is not the predictions.json of sotr predict ({reason})") from error
    except SOTRError as error:
        raise SOTRError(f"{path}: {error}") from error
    return tuple(names.values()), model, pictures
