"""The one result type: the objects found in (or labeled on) one image.

Masks are kept as COCO run-length encodings, a few hundred bytes each, so that thousands of results fit in memory; the
dense view is made on demand. Nothing here needs PyTorch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import ArrayLike, NDArray

from sotr.errors import SOTRError, nearest
from sotr.masks.checked import plain_rle
from sotr.masks.run_lengths import crop_of, encode_counts, mask_runs, runs_to_counts
from sotr.results.rows import ROW_COLUMNS, coco_of, json_of, rows_of
from sotr.results.selection import joined, kept
from sotr.results.source import SourceImage

if TYPE_CHECKING:
    import supervision
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Instances:
    """Objects of one image, best score first. Made by `from_rles` or `from_masks`.

    Attributes:
        scores_I: float32 in 0..1, descending.
        labels_I: int64, position of the object's class in `class_names`.
        boxes_I4: float32 xyxy in pixels, half-open, tight around the mask (all zero for an empty mask).
        rles: COCO compressed RLE of each mask, {"size": [H, W], "counts": str}; ready for `json.dumps`.
        class_names: every class of the model or data set, found here or not.
        category_ids: the original id of each class, aligned with `class_names`.
        image_size: (H, W) of the image in pixels.
        source: a reference to the image that does not keep it in memory, see `with_image`; None if it is not known.
    """

    ROW_COLUMNS: ClassVar[tuple[str, ...]] = ROW_COLUMNS

    scores_I: NDArray[np.float32]
    labels_I: NDArray[np.int64]
    boxes_I4: NDArray[np.float32]
    rles: tuple[dict[str, Any], ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_size: tuple[int, int]
    source: SourceImage | None = field(default=None, repr=False)

    @classmethod
    def from_rles(
        cls,
        scores: ArrayLike,
        labels: ArrayLike,
        rles: Sequence[Mapping[str, Any]],
        class_names: Sequence[str],
        category_ids: Sequence[int],
        image_size: tuple[int, int],
    ) -> "Instances":
        """Objects from COCO RLEs; boxes are computed from the masks and the objects sorted by score (ties keep order).

        Args:
            scores: I numbers in 0..1.
            labels: I class positions.
            rles: I RLE dicts; `counts` may be compressed (str or bytes) or a list of run lengths.
            class_names: M names.
            category_ids: M original ids.
            image_size: (H, W) in pixels; every RLE must have it.

        Raises:
            SOTRError: lengths differ, a label has no class, or an RLE does not decode to `image_size`.
        """
        size = (int(image_size[0]), int(image_size[1]))
        plain_rles = [plain_rle(rle, size) for rle in rles]
        return cls.from_encoded(scores, labels, plain_rles, _boxes(plain_rles), class_names, category_ids, size)

    @classmethod
    def from_encoded(
        cls,
        scores: ArrayLike,
        labels: ArrayLike,
        rles: Sequence[dict[str, Any]],
        boxes_I4: NDArray[np.floating | np.integer],
        class_names: Sequence[str],
        category_ids: Sequence[int],
        image_size: tuple[int, int],
    ) -> "Instances":
        """The same as `from_rles` for RLEs that `encode_masks` made of masks of `image_size`, and their boxes (xyxy).

        Both are taken as they are, for checking them takes longer than making them.
        """
        scores_I = np.asarray(scores, np.float32).reshape(-1)
        labels_I = np.asarray(labels, np.int64).reshape(-1)
        size = (int(image_size[0]), int(image_size[1]))
        names, ids = tuple(str(name) for name in class_names), tuple(int(number) for number in category_ids)
        if not len(scores_I) == len(labels_I) == len(rles):
            raise SOTRError(
                f"instances need as many scores as labels and masks: got {len(scores_I)}, {len(labels_I)}, {len(rles)}"
            )
        if len(names) != len(ids):
            raise SOTRError(f"{len(names)} class names do not match {len(ids)} category ids; give one id per class")
        if len(labels_I) and not (labels_I.min() >= 0 and labels_I.max() < len(names)):
            raise SOTRError(f"labels run from {labels_I.min()} to {labels_I.max()}, but there are {len(names)} classes")
        if not np.isfinite(scores_I).all():
            raise SOTRError("a score is not a finite number")

        order = np.argsort(-scores_I, kind="stable")
        sorted_rles = [rles[i] for i in order]
        sorted_boxes = np.asarray(boxes_I4[order], np.float32)
        return cls(scores_I[order], labels_I[order], sorted_boxes, tuple(sorted_rles), names, ids, size)

    @classmethod
    def from_masks(
        cls,
        scores: ArrayLike,
        labels: ArrayLike,
        masks_IHW: NDArray[np.bool_],
        class_names: Sequence[str],
        category_ids: Sequence[int],
    ) -> "Instances":
        """Objects from dense masks; see `from_rles`.

        Args:
            masks_IHW: bool or uint8 (nonzero is inside); with no object its shape is still (0, H, W).
        """
        if masks_IHW.ndim != 3:
            raise SOTRError(f"masks must have shape (objects, height, width), got {masks_IHW.shape}")
        height, width = masks_IHW.shape[1:]
        rles = encode_masks(masks_IHW)
        return cls.from_encoded(scores, labels, rles, _boxes(rles), class_names, category_ids, (height, width))

    @classmethod
    def from_labels(
        cls,
        labels_HW: NDArray[Any],
        labels: ArrayLike | None = None,
        class_names: Sequence[str] = ("object",),
        category_ids: Sequence[int] = (1,),
        scores: ArrayLike | None = None,
    ) -> "Instances":
        """Objects from a label image: the pixels of one number are one object, 0 is none.

        Args:
            labels_HW: whole numbers, H x W.
            labels, scores: of the I objects, by rising number; by default the first class, and 1.
            class_names: M names.
            category_ids: M original ids.

        Raises:
            SOTRError: the array is no label image, or lengths differ.
        """
        from sotr.results.labels import rles_of_labels

        rles, found = rles_of_labels(np.asarray(labels_HW))
        labels = np.zeros(len(found)) if labels is None else labels
        scores = np.ones(len(found)) if scores is None else scores
        size = (labels_HW.shape[0], labels_HW.shape[1])
        return cls.from_encoded(scores, labels, rles, _boxes(rles), class_names, category_ids, size)

    @classmethod
    def from_coco(cls, coco: Mapping[str, Any] | str | Path, image: int | str) -> "Instances":
        """The objects of one image of a COCO data set, such as the predictions.json of `sotr predict`.

        Args:
            coco: the data set, or its file.
            image: the image's id, or its file name.

        Raises:
            SOTRError: there is no such image, or the data set is damaged.
        """
        from sotr.results.from_coco import objects_of

        return cls.from_rles(*objects_of(coco, image))

    @classmethod
    def empty(cls, class_names: Sequence[str], category_ids: Sequence[int], image_size: tuple[int, int]) -> "Instances":
        """No object in an image of `image_size` (H, W)."""
        return cls.from_rles([], [], [], class_names, category_ids, image_size)

    @classmethod
    def concatenate(cls, parts: "Iterable[Instances]") -> "Instances":
        """The objects of all parts, which are of one image, best score first.

        Classes are united by name. A class has the id that the first part with it gives it; if that id belongs to
        another class by then, it has the next free one.

        Raises:
            SOTRError: there is no part, or two are of images of different sizes.
        """
        given = list(parts)
        return replace(cls.from_encoded(*joined(given)), source=given[0].source)

    def __len__(self) -> int:
        return len(self.scores_I)

    def __iter__(self) -> Iterator["Instances"]:
        """One-object `Instances`, in order."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[np.bool_] | NDArray[np.integer]) -> "Instances":
        """The chosen objects, by position, slice, boolean mask of I, or positions; always `Instances`."""
        if isinstance(index, (int, slice, np.integer)):
            chosen = np.atleast_1d(np.arange(len(self))[index])
        else:
            wanted = np.asarray(index)
            # np.asarray([]) is float, which numpy refuses as an index.
            chosen = np.arange(len(self))[wanted if wanted.size else wanted.astype(np.int64)]
        return replace(
            self,
            scores_I=self.scores_I[chosen],
            labels_I=self.labels_I[chosen],
            boxes_I4=self.boxes_I4[chosen],
            rles=tuple(self.rles[i] for i in chosen),
        )

    def __add__(self, other: "Instances") -> "Instances":
        """Both, see `concatenate`."""
        return Instances.concatenate([self, other]) if isinstance(other, Instances) else NotImplemented

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name == "obb":  # Detections.from_ultralytics asks for it, and takes what it does not know for empty
                raise SOTRError("these are objects of SOTR, not results of Ultralytics; use objects.to_supervision()")
            raise AttributeError(f"Instances has no attribute {name!r}{nearest(name, dir(type(self)))}")

    def __repr__(self) -> str:
        height, width = self.image_size
        counts = ", ".join(f"{name}: {count}" for name, count in self.counts().items())
        return f"Instances({len(self)} objects in {height} x {width} px; {counts or 'none'})"

    def _repr_html_(self) -> str:
        """The overlay and a table, in a notebook."""
        from sotr.results.notebook import html_of

        return html_of(self)

    @cached_property
    def areas_I(self) -> NDArray[np.int64]:
        """Mask areas in pixels."""
        return np.asarray(coco_mask.area(list(self.rles)), np.int64).reshape(-1)

    @cached_property
    def masks_IHW(self) -> NDArray[np.bool_]:
        """Dense masks, made at the first use and kept; I x H x W bytes."""
        if not len(self):
            return np.zeros((0, *self.image_size), bool)
        masks_HWI = coco_mask.decode(list(self.rles))
        return np.ascontiguousarray(masks_HWI.transpose(2, 0, 1)).view(bool)

    def mask_crop(self, i: int) -> tuple[NDArray[np.bool_], int, int]:
        """Mask of object i inside its box, without the dense view of all: (mask_hw, x, y) with its top-left pixel."""
        x0, y0, x1, y1 = (int(value) for value in self.boxes_I4[i])
        return crop_of(self.rles[i], x0, y0, x1, y1), x0, y0

    def filter(
        self,
        score: float | None = None,
        *,
        class_name: str | Sequence[str] | None = None,
        area: tuple[float | None, float | None] | None = None,
    ) -> "Instances":
        """The objects that meet all conditions that are given.

        Args:
            score: the least score.
            class_name: the name of the class, or several names.
            area: the least and the largest area in pixels; None sets no limit.

        Raises:
            SOTRError: there is no such class.
        """
        return self[kept(self, score, class_name, area)]

    def counts(self) -> dict[str, int]:
        """Objects per class that occurs, most frequent first."""
        labels, counts = np.unique(self.labels_I, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {self.class_names[labels[i]]: int(counts[i]) for i in order}

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO result dicts: image_id, category_id (the original one), bbox (xywh), segmentation (RLE), score."""
        return coco_of(self, image_id)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain Python values: image size, classes, and one dict per object (box is xyxy)."""
        return json_of(self)

    def to_rows(self) -> list[dict[str, str | int | float]]:
        """One flat dict per object for a table or CSV, with the keys `ROW_COLUMNS`: object (position), class,
        category_id, score, area, the box (half-open) and the center of mass, in pixels."""
        return rows_of(self)

    def label_image(self) -> "NDArray[np.uint16] | NDArray[np.uint32]":
        """Numbers of pixels, H x W: object i is i + 1, the background 0; the best is on top. uint16, or uint32 for
        more than 65,535 objects."""
        from sotr.results.labels import label_image

        return label_image(self)

    def without_overlap(self) -> "Instances":
        """The objects without the pixels of better ones; those of which nothing is left are left out."""
        from sotr.results.labels import rle_without

        left = {i: rle for i in range(len(self)) if (rle := rle_without(self, i)) is not None}
        rles = list(left.values())
        return replace(self[list(left)], rles=tuple(rles), boxes_I4=_boxes(rles))

    def measure(
        self, image: NDArray[Any] | None = None, pixel_size_um: tuple[float, float] | None = None
    ) -> list[dict[str, str | int | float | None]]:
        """One flat dict per object: what `to_rows` gives, its shape, and the intensities inside it.

        Args:
            image: values, H x W or H x W x channels, of any type; None measures shapes only.
            pixel_size_um: width and height of a pixel; None leaves the columns in micrometers empty.

        Returns:
            Dicts with the keys `ROW_COLUMNS`, `sotr.results.measure.SHAPE_COLUMNS` and, for each channel, `c1_mean`,
            `c1_min`, `c1_max`, `c1_sum`.

        Raises:
            SOTRError: the image has another size than the masks.
        """
        from sotr.results.measure import measure

        return measure(self, image, pixel_size_um)

    def to_supervision(self) -> "supervision.Detections":
        """`supervision.Detections` with masks, scores, class positions and `data["class_name"]`."""
        import supervision

        return supervision.Detections(
            xyxy=self.boxes_I4.copy(),
            mask=self.masks_IHW,
            confidence=self.scores_I.copy(),
            class_id=self.labels_I.copy(),
            data={"class_name": np.array([self.class_names[label] for label in self.labels_I], dtype=np.str_)},
        )

    def with_image(self, image: Any) -> "Instances":
        """The same objects, which know their image: `draw()` and notebooks show them on it.

        Of a file the path is kept. Of an array or PIL image it is a weak reference, which ends when nothing else
        holds the image.
        """
        return replace(self, source=SourceImage(image))

    def draw(
        self, image: "NDArray[np.uint8] | Image.Image | str | Path | None" = None, scale: int | None = None
    ) -> NDArray[np.uint8]:
        """The image with each object filled, outlined and, where there is room, labeled.

        Colors tell objects apart when the model has one class, and classes otherwise.

        Args:
            image: the image of `image_size`: HW3 uint8 RGB, PIL, or a file; None takes the one that the objects came
                from, or a plain background if that is gone.
            scale: enlargement of the result, a whole number >= 1; None enlarges small images (shortest edge below
                600 px) so that outlines stay thin beside the objects.

        Returns:
            RGB uint8 image of shape (scale * H, scale * W, 3).

        Raises:
            SOTRError: the image cannot be read or has another size than the masks.
        """
        from sotr.results.drawing import draw_overlay
        from sotr.results.notebook import draw_on_source

        return draw_on_source(self, scale) if image is None else draw_overlay(self, image, scale)


def encode_masks(masks_IHW: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """COCO compressed RLEs ({"size": [H, W], "counts": str}) of dense masks, bool or uint8 (nonzero is inside)."""
    if not len(masks_IHW):
        return []
    inside_IHW = masks_IHW if masks_IHW.dtype == bool else masks_IHW != 0
    # No copy is made of masks that lie in memory column by column.
    runs = mask_runs(np.ascontiguousarray(inside_IHW.transpose(0, 2, 1)))
    height, width = masks_IHW.shape[1:]
    texts = encode_counts(*runs_to_counts(runs, height * width))
    return [{"size": [height, width], "counts": text} for text in texts]


def _boxes(rles: Sequence[dict[str, Any]]) -> NDArray[np.float32]:
    """Tight boxes, I x 4, xyxy."""
    boxes_I4 = np.asarray(coco_mask.toBbox(list(rles)), np.float32).reshape(-1, 4)  # an empty list gives (0, 4)
    boxes_I4[:, 2:] += boxes_I4[:, :2]
    return boxes_I4
