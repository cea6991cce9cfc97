"""Files of one image's objects for other programs: label images, ImageJ's regions, GeoJSON, cut-out objects, tables."""

import csv
import json
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sotr.data.images import MAX_PIXELS, image_stack, load_values
from sotr.errors import SOTRError
from sotr.files import atomic_write
from sotr.prediction.inputs import Picked
from sotr.prediction.output import write_png
from sotr.results.geojson import feature_collection
from sotr.results.instances import Instances
from sotr.results.measure import INTENSITY_COLUMNS, SHAPE_COLUMNS
from sotr.results.outlines import rings_of

_RECT, _TRACED = 1, 8
_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0


def check_roifile() -> None:
    """Refuse to begin without the package that writes ImageJ's regions.

    Raises:
        SOTRError: it is missing.
    """
    if find_spec("roifile") is None:
        raise SOTRError("--rois needs the package roifile; install it with: pip install 'sotr[microscopy]'")


@lru_cache(maxsize=8)
def pixel_size_um(path: Path) -> tuple[float, float] | None:
    """Width and height of a pixel of a TIFF file in micrometers, where it tells them."""
    stack = image_stack(path)
    return None if stack is None else stack.pixel_size_um


def write_labels(path: Path, instances: Instances, pixel_size: tuple[float, float] | None) -> None:
    """Write the label image as a TIFF that ImageJ reads, with the size of a pixel in micrometers if it is known."""
    import tifffile

    labels_HW = instances.label_image()
    options: dict[str, Any] = {"compression": "zlib", "photometric": "minisblack"}
    if pixel_size is not None:
        options["resolution"] = (1 / pixel_size[0], 1 / pixel_size[1])
    if labels_HW.dtype == np.uint16:  # ImageJ's own notes know no larger whole numbers
        unit = {} if pixel_size is None else {"unit": "um"}
        # The display's range, or else the objects would look black.
        limits = (0.0, float(max(1, len(instances))))
        options |= {"imagej": True, "metadata": {"axes": "YX", "min": limits[0], "max": limits[1], **unit}}
    elif pixel_size is not None:
        options |= {"resolution": (1e4 / pixel_size[0], 1e4 / pixel_size[1]), "resolutionunit": "CENTIMETER"}
    with atomic_write(path) as file:
        tifffile.imwrite(file, labels_HW, **options)


def write_rois(path: Path, instances: Instances) -> None:
    """Write the outlines as a zip file of ImageJ's ROI Manager, named by the numbers of the label image."""
    import roifile

    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, label in enumerate(instances.labels_I):
            name = f"{i + 1:05d}-{instances.class_names[label]}".replace("/", "-")
            rings = [ring for part in rings_of(instances, i) for ring in part]
            if not rings:
                continue
            if len(rings) == 1:
                roi = roifile.ImagejRoi.frompoints(rings[0].astype(np.int32), name=name)
                roi.roitype = roifile.ROI_TYPE(_TRACED)
            else:
                roi = _composite(rings, name)
            archive.writestr(f"{name}.roi", roi.tobytes())


def _composite(rings: Sequence[NDArray[np.float64]], name: str) -> Any:
    """A region of several outlines, or with holes."""
    import roifile

    roi = roifile.ImagejRoi()
    roi.roitype, roi.name = roifile.ROI_TYPE(_RECT), name
    corners = np.concatenate(rings)
    (roi.left, roi.top), (roi.right, roi.bottom) = (
        corners.min(0).astype(int).tolist(),
        corners.max(0).astype(int).tolist(),
    )
    path: list[float] = []
    for ring in rings:
        for number, (x, y) in enumerate(ring.tolist()):
            path += [_LINE if number else _MOVE, x, y]
        path.append(_CLOSE)
    roi.multi_coordinates = np.array(path, np.float32)
    roi.shape_roi_size = len(path)
    return roi


def write_geojson(path: Path, instances: Instances) -> None:
    """Write the outlines as GeoJSON with the properties that QuPath knows, in pixels."""
    with atomic_write(path, "w") as file:
        json.dump(feature_collection(instances), file, ensure_ascii=False)


def write_crops(folder: Path, instances: Instances, image_HW3: NDArray[np.uint8]) -> list[Path]:
    """Write each object, cut out of the image and transparent around it, to 000.png, 001.png, ... in order."""
    paths = []
    for i in range(len(instances)):
        mask_hw, x, y = instances.mask_crop(i)
        if not mask_hw.any():
            continue
        height, width = mask_hw.shape
        alpha_hw1 = mask_hw[..., None] * np.uint8(255)
        paths.append(folder / f"{i:03d}.png")
        write_png(paths[-1], np.concatenate([image_HW3[y : y + height, x : x + width], alpha_hw1], 2))
    return paths


class Table:
    """A CSV of the objects of all images, whose rows wait in a file of their own until it is known how many channels
    the image with most of them has; made by `table_file`."""

    def __init__(self, rows: IO[str]) -> None:
        self._rows, self._channels = rows, 0
        self.unmeasured = 0
        """Images whose values could not be read, or are too many to be read at once."""
        self._writer = csv.writer(rows, lineterminator="\n")

    def add(self, file_name: str, instances: Instances, picked: Picked) -> None:
        """Measure the objects of an image, in its own values where it is not too large to be read at once."""
        values = None
        if len(instances):
            stack = image_stack(picked.path)
            most = MAX_PIXELS // (1 if stack is None else stack.channels)
            try:
                values = load_values(picked.path, max_pixels=most, choice=picked.choice)
                self._channels = max(self._channels, values.shape[2])
            except SOTRError:
                self.unmeasured += 1
        rows = instances.measure(values, pixel_size_um(picked.path))
        self._writer.writerows([file_name, *row.values()] for row in rows)

    def write(self, file: IO[str]) -> None:
        """Write the whole table."""
        channels = [f"c{number}_{name}" for number in range(1, self._channels + 1) for name in INTENSITY_COLUMNS]
        head = ["picture", *Instances.ROW_COLUMNS, *SHAPE_COLUMNS, *channels]
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        self._rows.seek(0)
        writer.writerows([*row, *[""] * (len(head) - len(row))] for row in csv.reader(self._rows))


@contextmanager
def table_file(path: Path) -> Iterator[Table]:
    """A table that replaces the file when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile("w+", dir=path.parent, encoding="utf-8", newline="") as rows:
        table = Table(rows)
        yield table
        with atomic_write(path, "w") as file:
            table.write(file)
