import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from hypothesis import given, settings
from hypothesis import strategies as st

from sotr.config import SOTRConfig
from sotr.data import Augmentation, load_coco
from sotr.data.batches import TrainDataset
from sotr.data.copy_paste import Scene, paste
from sotr.data.transforms import Objects


def scene(rng: np.random.Generator, count: int, height: int, width: int, first_colour: int) -> Scene:
    """Rectangles, each of a color of its own, the later over the earlier, with the pixels that they show."""
    owner = np.full((height, width), -1)
    for index in range(count):
        y, x = rng.integers(0, height - 2), rng.integers(0, width - 2)
        owner[y : y + rng.integers(1, 7), x : x + rng.integers(1, 7)] = index
    image = np.zeros((height, width, 3), np.uint8)
    rles, boxes, labels = [], [], []
    for index in range(count):
        mask = owner == index
        if not mask.any():
            continue
        image[mask] = first_colour + index
        rows, columns = np.nonzero(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        rles.append(coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"])
        rles[-1] = rles[-1] if isinstance(rles[-1], bytes) else rles[-1].encode()
        labels.append(first_colour + index)
    return Scene(image, Objects(np.array(labels, np.int64), np.array(boxes, np.int64).reshape(-1, 4), rles))


def masks(scene: Scene) -> list[np.ndarray]:
    size = list(scene.image_HW3.shape[:2])
    return [coco_mask.decode({"size": size, "counts": rle}).astype(bool) for rle in scene.objects.rles]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 8), st.integers(0, 10**6))
def test_every_mask_is_exactly_where_its_objects_pixels_are(below, above, most, seed):
    rng = np.random.default_rng(seed)
    onto, source = scene(rng, below, 20, 24, 100), scene(rng, above, 16, 30, 200)
    before = onto.image_HW3.copy()
    result = paste(onto, source, most, np.random.default_rng(seed))
    assert (onto.image_HW3 == before).all()
    covered = np.zeros((20, 24), bool)
    for label, box, mask in zip(result.objects.labels_I, result.objects.boxes_I4, masks(result), strict=True):
        # Labels are colors here: a pasted object's color may occur twice only if it were pasted twice.
        assert (mask == (result.image_HW3[:, :, 0] == label)).all()
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        covered |= mask
    assert (result.image_HW3[~covered] == 0).all()
    pasted = (result.objects.labels_I >= 200).sum()
    assert pasted <= most
    if above == 0:
        assert result is onto


def test_pasting_is_a_function_of_seed_epoch_and_picture(coco_folder):
    data = load_coco(coco_folder / "train.json", coco_folder / "images")
    config = SOTRConfig(num_classes=3, image_size=96, max_image_size=160)
    pasting = TrainDataset(data, config, Augmentation(copy_paste=1.0), seed=3)
    plain = TrainDataset(data, config, Augmentation(), seed=3)
    more, differing = 0, 0
    for index in range(len(data)):
        one, again, other = pasting[(0, index)], pasting[(0, index)], plain[(0, index)]
        assert (one.image_3hw == again.image_3hw).all()
        assert (one.targets.masks_Ihw == again.targets.masks_Ihw).all()
        more += len(one.targets) > len(other.targets)
        differing += not (pasting[(1, index)].image_3hw == one.image_3hw).all()
    assert more > len(data) / 2
    assert differing == len(data)


def test_a_share_of_the_pictures_get_objects(coco_folder):
    data = load_coco(coco_folder / "train.json", coco_folder / "images")
    config = SOTRConfig(num_classes=3, image_size=96, max_image_size=160)
    settings_of = {"horizontal_flip": False}
    some = TrainDataset(data, config, Augmentation(copy_paste=0.5, **settings_of), seed=3)
    plain = TrainDataset(data, config, Augmentation(**settings_of), seed=3)
    same = [(some[(e, i)].image_3hw == plain[(e, i)].image_3hw).all() for e in range(4) for i in range(len(data))]
    assert np.mean(same) == pytest.approx(0.5, abs=0.25)
