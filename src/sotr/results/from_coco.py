"""The objects of one image of a COCO data set."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sotr.errors import SOTRError, first_line
from sotr.masks.checked import rle_of_segmentation

Parts = tuple[list[float], list[int], list[dict[str, Any]], Sequence[str], Sequence[int], tuple[int, int]]
"""What `Instances.from_rles` takes."""


def objects_of(coco: Mapping[str, Any] | str | Path, image: int | str) -> Parts:
    """See `Instances.from_coco`; crowds are left out.

    Raises:
        SOTRError: there is no such image, or the data set is damaged.
    """
    name = "the data set" if isinstance(coco, Mapping) else str(coco)
    try:
        data = coco if isinstance(coco, Mapping) else json.loads(Path(coco).read_text(encoding="utf-8"))
        key = "file_name" if isinstance(image, str) else "id"
        found = [entry for entry in data["images"] if entry[key] == image]
        if len(found) != 1:
            raise SOTRError(f"{name}: {len(found) or 'no'} images have the {key} {image!r}; name one that is there")
        size = (int(found[0]["height"]), int(found[0]["width"]))
        ids = [int(entry["id"]) for entry in data["categories"]]
        own = [each for each in data["annotations"] if each["image_id"] == found[0]["id"] and not each.get("iscrowd")]
        return (
            [float(each.get("score", 1.0)) for each in own],
            [ids.index(each["category_id"]) for each in own],
            [rle_of_segmentation(each["segmentation"], size) for each in own],
            [str(entry["name"]) for entry in data["categories"]],
            ids,
            size,
        )
    except OSError as error:
        raise SOTRError(f"{name} cannot be read: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise SOTRError(f"{name} is no sound COCO data set ({type(error).__name__}: {first_line(error)})") from error
