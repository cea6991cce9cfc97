"""Choosing among objects, and putting objects of one image together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sotr.errors import SOTRError, nearest

if TYPE_CHECKING:
    from sotr.results.instances import Instances


def labels_of(class_names: Sequence[str], wanted: str | Sequence[str]) -> list[int]:
    """The positions of classes by name.

    Raises:
        SOTRError: there is no class of a name.
    """
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in class_names:
            known = ", ".join(class_names) if len(class_names) <= 20 else f"{len(class_names)} others"
            raise SOTRError(f"there is no class {name!r}{nearest(str(name), class_names)}; the classes are {known}")
    return [i for i, name in enumerate(class_names) if name in names]


def kept(
    instances: "Instances",
    score: float | None,
    class_name: str | Sequence[str] | None,
    area: tuple[float | None, float | None] | None,
) -> NDArray[np.bool_]:
    """Which objects `Instances.filter` keeps."""
    kept_I = np.ones(len(instances), bool)
    if score is not None:
        kept_I &= instances.scores_I >= score
    if class_name is not None:
        kept_I &= np.isin(instances.labels_I, labels_of(instances.class_names, class_name))
    if area is not None:
        low, high = area
        kept_I &= (instances.areas_I >= (0 if low is None else low)) & (
            instances.areas_I <= (np.inf if high is None else high)
        )
    return kept_I


def joined(parts: Sequence["Instances"]) -> tuple[Any, ...]:
    """The arguments of `Instances.from_encoded` for the objects of all parts; see `Instances.concatenate`."""
    sizes = {part.image_size for part in parts}
    if not parts:
        raise SOTRError("there is nothing to concatenate; give at least one Instances")
    if len(sizes) > 1:
        raise SOTRError(f"objects of images of different sizes, {sorted(sizes)}, cannot be concatenated")
    ids: dict[str, int] = {}
    for part in parts:
        for name, number in zip(part.class_names, part.category_ids, strict=True):
            if name not in ids:
                ids[name] = max(ids.values()) + 1 if number in ids.values() else number
    names = list(ids)
    labels = [names.index(part.class_names[label]) for part in parts for label in part.labels_I]
    scores = np.concatenate([part.scores_I for part in parts])
    boxes_I4 = np.concatenate([part.boxes_I4 for part in parts])
    return scores, labels, [rle for part in parts for rle in part.rles], boxes_I4, names, list(ids.values()), *sizes
