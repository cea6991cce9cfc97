"""The one writer of COCO data sets: SPLIT.json for each split, and images/."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from faster_coco_eval.core import mask as coco_mask

from sotr.files import write_json


class CocoWriter:
    """The annotation files of one data set; ids count from 1 in each split."""

    def __init__(self, description: str, class_names: Sequence[str]) -> None:
        self._start = {
            "info": {"description": description},
            "categories": [{"id": number, "name": name} for number, name in enumerate(class_names, 1)],
        }
        self.splits: dict[str, dict[str, Any]] = {}
        """Split -> content of its file."""

    def add_image(self, split: str, file_name: str, height: int, width: int) -> None:
        """Add an image to a split; the objects that are added next are its."""
        content = self.splits.setdefault(split, {**self._start, "images": [], "annotations": []})
        number = len(content["images"]) + 1
        content["images"].append({"id": number, "file_name": file_name, "height": height, "width": width})

    def add_object(
        self,
        split: str,
        category_id: int,
        rle: Mapping[str, Any],
        segmentation: Any = None,
        is_crowd: bool = False,
    ) -> None:
        """Add an object to the last image of a split.

        Args:
            split: that of the image.
            category_id: the position of its class, from 1.
            rle: its mask as compressed COCO RLE.
            segmentation: how the file has the mask, if not so.
            is_crowd: whether it is many objects.
        """
        content = self.splits[split]
        content["annotations"].append(
            {
                "id": len(content["annotations"]) + 1,
                "image_id": len(content["images"]),
                "category_id": category_id,
                "segmentation": rle if segmentation is None else segmentation,
                "area": int(coco_mask.area([rle])[0]),
                "bbox": [float(value) for value in coco_mask.toBbox([rle])[0]],
                "iscrowd": int(is_crowd),
            }
        )

    def counts(self) -> dict[str, tuple[int, int]]:
        """Images and objects of each split."""
        return {split: (len(data["images"]), len(data["annotations"])) for split, data in self.splits.items()}

    def write(self, folder: Path) -> None:
        """Write all files."""
        for split, content in self.splits.items():
            write_json(folder / f"{split}.json", content)
