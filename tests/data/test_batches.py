"""Batches: functions of (seed, epoch, sample), resumable anywhere, with errors that name the file."""

import json
import os
import shutil
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sotr.config import SOTRConfig
from sotr.data import Augmentation, CocoDataset, batches, find_data, load_coco
from sotr.data.batches import (
    WORKER_DIED,
    Batch,
    EvalDataset,
    TrainDataset,
    collate,
    eval_loader,
    lost_worker,
    train_loader,
)
from sotr.errors import SOTRError
from sotr.learning import assign
from tests.support.killed import KILLED

CONFIG = SOTRConfig(
    num_classes=3, image_size=96, max_image_size=160, scale_ranges=((1, 24), (12, 48), (24, 96), (48, 192), (96, 384))
)
LIVELY = Augmentation((0.6, 1.6), 96, True, True, True, 1.0, 0.2, 0.2)


@pytest.fixture(scope="module")
def train(coco_folder: Path) -> CocoDataset:
    return load_coco(coco_folder / "train.json", coco_folder / "images")


def equal(first: object, second: object) -> bool:
    """Whether two batches hold the same values."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))  # type: ignore[arg-type]
    if hasattr(first, "__dataclass_fields__"):
        return all(equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))  # type: ignore[arg-type]
    return first == second


def test_a_sample_is_a_function_of_seed_epoch_and_index(train: CocoDataset) -> None:
    dataset = TrainDataset(train, CONFIG, LIVELY, seed=5)
    torch.manual_seed(1)
    first = dataset[(3, 2)]
    dataset[(0, 1)]
    torch.manual_seed(2)
    assert equal(first, dataset[(3, 2)])
    assert equal(first, TrainDataset(train, CONFIG, LIVELY, seed=5)[(3, 2)])
    assert not equal(first, dataset[(4, 2)])
    assert not equal(first, TrainDataset(train, CONFIG, LIVELY, seed=6)[(3, 2)])


def test_a_still_sample_has_the_masks_of_the_record_without_crowds(train: CocoDataset) -> None:
    config = SOTRConfig(num_classes=3, image_size=1, max_image_size=1)
    dataset = TrainDataset(train, config, Augmentation(horizontal_flip=False), mask_stride=1)
    for index in range(len(train)):
        record = train.record(index)
        # At its own size, so that nothing is resized.
        sides = sorted((record.height, record.width))
        dataset.config = SOTRConfig(num_classes=3, image_size=sides[0], max_image_size=sides[1])
        sample = dataset[(0, index)]
        trained = ~record.iscrowd_I
        assert sample.targets.labels_I.tolist() == record.labels_I[trained].tolist()
        np.testing.assert_array_equal(sample.targets.masks_Ihw.numpy() == 255, train.masks(record)[trained])
        np.testing.assert_array_equal(sample.targets.boxes_I4.numpy(), record.boxes_I4[trained])
        assert sample.image_id == record.image_id
        assert sample.original_size == (record.height, record.width)
    assert train.record(1).iscrowd_I.any()


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_collate_pads_pictures_and_masks_and_assigns(train: CocoDataset, stride: int) -> None:
    dataset = TrainDataset(train, CONFIG, Augmentation(), mask_stride=stride)
    samples = [dataset[(0, index)] for index in range(4)]
    batch = collate(samples, CONFIG, stride)
    assert len(batch) == 4
    _, _, height, width = batch.images_B3HW.shape
    assert height % 32 == width % 32 == 0
    assert height == -(-max(s.size[0] for s in samples) // 32) * 32
    for i, sample in enumerate(samples):
        h, w = batch.image_sizes[i]
        assert sample.image_3hw.shape == (3, h, w)
        assert torch.equal(batch.images_B3HW[i, :, :h, :w], sample.image_3hw)
        assert batch.images_B3HW[i, :, h:].abs().sum() == batch.images_B3HW[i, :, :, w:].abs().sum() == 0
        masks = batch.targets[i].masks_Ihw
        assert masks.shape == (len(sample.targets), height // stride, width // stride)
        assert masks.sum() == sample.targets.masks_Ihw.sum()
    assert equal(batch.assignment, assign(batch.targets, CONFIG, (height, width)))
    assert batch.assignment.counts[0] == 0  # the image without objects
    assert min(batch.assignment.counts[1:]) > 0


def test_a_batch_of_empty_pictures(train: CocoDataset) -> None:
    sample = TrainDataset(train, CONFIG, LIVELY)[(0, 0)]
    batch = collate([sample, sample], CONFIG)
    assert batch.assignment.counts == (0, 0)
    assert (batch.assignment.labels_BK == CONFIG.num_classes).all()


def test_cropped_batches_have_one_shape(train: CocoDataset) -> None:
    loader = train_loader(train, CONFIG, LIVELY, batch_size=3)
    assert {tuple(batch.images_B3HW.shape) for batch in loader} == {(3, 3, 96, 96)}


def test_to_moves_every_tensor(train: CocoDataset) -> None:
    batch = next(iter(train_loader(train, CONFIG, LIVELY, batch_size=4)))
    moved = batch.to("meta", non_blocking=True)
    assert isinstance(moved, Batch)
    tensors = [moved.images_B3HW, moved.assignment.labels_BK, moved.assignment.cells_P, moved.assignment.objects_P]
    for target in moved.targets:
        tensors += [target.labels_I, target.boxes_I4, target.centers_I2, target.masks_Ihw]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.images_B3HW.device.type == "cpu"
    assert moved.file_names == batch.file_names


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
def test_pin_memory(train: CocoDataset) -> None:
    batch = next(iter(train_loader(train, CONFIG, LIVELY, batch_size=4, pin_memory=True)))
    assert batch.images_B3HW.is_pinned()
    assert batch.targets[0].masks_Ihw.is_pinned()
    assert batch.assignment.labels_BK.is_pinned()


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_the_middle_of_an_epoch_is_exact(train: CocoDataset, workers: int) -> None:
    straight = train_loader(train, CONFIG, LIVELY, batch_size=2, seed=9)
    straight.sampler.set_epoch(1)  # type: ignore[attr-defined]
    batches = list(straight)
    assert len(batches) == len(straight) == 4
    resumed = train_loader(train, CONFIG, LIVELY, batch_size=2, seed=9, workers=workers)
    resumed.sampler.set_position(1, 4)  # type: ignore[attr-defined]
    rest = list(resumed)
    assert len(rest) == 2
    assert equal(rest, batches[2:])


def test_incomplete_batches_are_left_out_but_not_the_only_one(train: CocoDataset) -> None:
    assert [len(b) for b in train_loader(train, CONFIG, LIVELY, batch_size=3)] == [3, 3]
    assert [len(b) for b in train_loader(train, CONFIG, LIVELY, batch_size=20)] == [8]


def test_eval_loader_gives_each_picture_once_in_order(coco_folder: Path) -> None:
    val = load_coco(coco_folder / "val.json", coco_folder / "images")
    batches = list(eval_loader(val, CONFIG, batch_size=3))
    assert [len(batch) for batch in batches] == [3, 1]
    assert [i for batch in batches for i in batch.image_ids] == list(val.image_ids)
    assert [name for batch in batches for name in batch.file_names] == list(val.file_names)
    assert [size for batch in batches for size in batch.original_sizes] == [tuple(s) for s in val.sizes_N2.tolist()]
    dataset = EvalDataset(val, CONFIG)
    for i, size in enumerate(batches[0].image_sizes):
        assert min(size) == 96
        assert torch.equal(batches[0].images_B3HW[i, :, : size[0], : size[1]], dataset[i].image_3hw)
    assert equal(list(eval_loader(val, CONFIG, batch_size=3, workers=1)), batches)


def spoiled(coco_folder: Path, folder: Path, file: str, content: bytes | Image.Image) -> CocoDataset:
    """The training set with one image replaced."""
    shutil.copytree(coco_folder, folder / "data")
    data = load_coco(folder / "data" / "train.json", folder / "data" / "images")
    if isinstance(content, bytes):
        (data.images_dir / file).write_bytes(content)
    else:
        content.save(data.images_dir / file)
    return data


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_surfaces_as_one_line_with_its_name(coco_folder: Path, tmp_path: Path, workers: int) -> None:
    data = spoiled(coco_folder, tmp_path, "train_5.png", b"\x89PNG, but not really")
    path = data.images_dir / "train_5.png"
    for loader in (
        train_loader(data, CONFIG, LIVELY, batch_size=2, workers=workers),
        eval_loader(data, CONFIG, workers=workers),
    ):
        with pytest.raises(SOTRError) as caught:
            list(loader)
        assert str(caught.value).startswith(f"{path}: is not an image")
        assert "\n" not in str(caught.value)


def test_a_picture_of_another_size_than_recorded_is_named_with_both_sizes(coco_folder: Path, tmp_path: Path) -> None:
    data = spoiled(coco_folder, tmp_path, "train_0.png", Image.new("RGB", (33, 44)))
    height, width = data.sizes_N2[0]
    with pytest.raises(SOTRError, match=rf"train_0\.png: is 33 x 44 .*train.json says {width} x {height}"):
        TrainDataset(data, CONFIG, LIVELY)[(0, 0)]
    with pytest.raises(SOTRError, match=r"train_0.png: is 33 x 44"):
        EvalDataset(data, CONFIG)[0]


def test_exif_rotated_pictures_have_the_upright_size(coco_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(coco_folder, tmp_path / "data")
    content = json.loads((tmp_path / "data" / "train.json").read_text())
    entry = content["images"][0]
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    lying = Image.new("RGB", (entry["height"], entry["width"]))
    lying.save(tmp_path / "data" / "images" / entry["file_name"], exif=exif)
    data = load_coco(tmp_path / "data" / "train.json", tmp_path / "data" / "images")
    assert EvalDataset(data, CONFIG)[0].original_size == (entry["height"], entry["width"])


@KILLED
# PyTorch's error may well come while the garbage collector reports to Hypothesis, which cannot pass it on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_process_that_died_is_named_by_its_picture_however_it_shows(
    train: CocoDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = batches.load_picture

    def load(coco: CocoDataset, index: int, *rest: Any) -> Any:
        if coco.file_names[index] == "train_5.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(coco, index, *rest)

    monkeypatch.setattr(batches, "load_picture", load)  # the workers inherit it
    loader = train_loader(train, CONFIG, LIVELY, batch_size=2, workers=2, shuffle=False)
    with pytest.raises(WORKER_DIED) as caught:
        list(loader)
    # The second is what is raised instead if the process dies while its last batch is being taken over.
    for error in (caught.value, ConnectionResetError(104, "Connection reset by peer"), EOFError()):
        lost = lost_worker(loader, error)
        assert lost is not None
        assert str(train.images_dir / "train_5.png") in str(lost)
    assert lost_worker(loader, RuntimeError("something else")) is None

    # PyTorch raises its own error in whatever is being done when the system tells of the end.
    [process] = [
        process for process, picture in loader.dataset.in_hand.tolist() if train.file_names[picture] == "train_5.png"
    ]
    news = iter([RuntimeError(f"DataLoader worker (pid {process}) is killed by signal: Killed. ")])

    def interrupted() -> list[Any]:
        for error in news:
            raise error
        return []

    monkeypatch.setattr(batches.multiprocessing, "active_children", interrupted)
    late = lost_worker(loader, EOFError())
    assert late is not None
    assert "killed by signal" in str(late)
    assert str(train.images_dir / "train_5.png") in str(late)


def test_the_number_of_classes_must_match(train: CocoDataset) -> None:
    with pytest.raises(SOTRError, match=r"train.json has 3 categories, but the network num_classes 80"):
        TrainDataset(train, SOTRConfig(), LIVELY)


@pytest.mark.shared
def test_nuclei_batches(shared_dir: Path) -> None:
    data = find_data(shared_dir / "data" / "nuclei", only="train").train
    assert data is not None
    config = SOTRConfig.preset("sotr-nano", num_classes=1)
    augmentation = Augmentation((0.7, 1.5), 256, True, True, True, 1.0)
    loader = train_loader(data, config, augmentation, batch_size=8, workers=2)
    for number, batch in enumerate(loader):
        assert batch.images_B3HW.shape == (8, 3, 256, 256)
        assert sum(batch.assignment.counts) > 8
        assert len(batch.targets[0]) == 0 or batch.targets[0].masks_Ihw.amax((1, 2)).min() > 0
        if number == 5:
            break
