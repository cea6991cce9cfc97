"""The `pre-annotate` command: predictions as a first draft for people who label images in Label Studio.

CVAT, FiftyOne, Roboflow and the like import the COCO data set that `sotr predict` writes as it is.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from sotr.errors import SOTRError
from sotr.files import atomic_write
from sotr.masks.polygons import EXACT
from sotr.results.instances import Instances
from sotr.results.label_studio import Control, prediction

IMAGE, LABEL = "image", "label"
"""Names that a Label Studio project gives to its image and to its labels; regions refer to them."""


def pre_annotate(
    predictions: str | Path,
    out: str | Path = "label-studio.json",
    url: str = "",
    score: float = 0.0,
    tolerance: float = EXACT,
) -> Path:
    """Turn the predictions of `sotr predict` into Label Studio's tasks with polygons to correct.

    Written are OUT, to be imported into a project, and beside it an .xml of the same name, the project's labelling
    configuration. Parts of an object become regions of their own; a cut leads to a hole. Drawn again, the polygons are
    the masks, unless a larger tolerance trades that for fewer corners.

    Args:
        predictions: predictions.json, as `sotr predict` writes it.
        out: file to write.
        url: what to put before each image's name to make its address, such as https://example.org/images/ or,
            for Label Studio's local storage, /data/local-files/?d=images/
        score: leave out objects below this score, 0..1.
        tolerance: pixels by which a polygon may leave its mask's outline, so that it has fewer corners to drag. Up to
            0.35 the mask stays what it is.

    Returns:
        The file.

    Raises:
        SOTRError: the predictions cannot be read, or the file cannot be written.
    """
    out = Path(out)
    if not 0 <= score <= 1:
        raise SOTRError(f"score is {score}; it must lie in 0..1")
    if not 0 <= tolerance < math.inf:
        raise SOTRError(f"tolerance is {tolerance}; it must be 0 or more pixels")
    if out.suffix != ".json":
        raise SOTRError(f"{out}: give a name that ends in .json")
    beside = out.with_suffix(".xml")
    class_names, model, pictures = _read(Path(predictions))
    tasks = [
        to_label_studio(instances.filter(score), url + quote(file_name), model, tolerance)
        for file_name, instances in pictures
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


def to_label_studio(instances: Instances, image: str, model: str, tolerance: float = EXACT) -> dict[str, Any]:
    """One task of Label Studio: an image's address and its objects as a prediction.

    Args:
        image: address of the image.
        model: what to call the prediction's origin.
        tolerance: as of `sotr.masks.polygons.polygons`.
    """
    control = Control("polygonlabels", LABEL, IMAGE, IMAGE, {name: name for name in instances.class_names})
    return {"data": {IMAGE: image}, "predictions": [prediction(instances, control, model, tolerance)]}


def _read(path: Path) -> tuple[Sequence[str], str, list[tuple[str, Instances]]]:
    """Class names, the model's name, and each image's name with its objects."""
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
