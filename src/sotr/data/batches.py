"""Samples, batches and loaders. Order and augmentation are functions of (seed, epoch, sample), so a position in an
epoch is all that an exact resume needs."""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from multiprocessing.connection import wait
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sotr.config import INPUT_DIVISOR, SOTRConfig
from sotr.data.choice import Choice
from sotr.data.coco import CocoDataset
from sotr.data.copy_paste import Scene, paste
from sotr.data.images import load_image
from sotr.data.sampling import EpochSampler, repeat_factors, shape_groups
from sotr.data.scaling import IntensityRange
from sotr.data.traits import Domain, Traits
from sotr.data.transforms import Augmentation, Objects, augment, pad_batch, preprocess
from sotr.errors import SOTRError
from sotr.learning import Assignment, Targets, assign


class DataError(SOTRError):
    """A `SOTRError` that comes out of a loader's worker process as the one line that went in.

    PyTorch raises a worker's error anew in the main process, with the worker's whole traceback as its message; the last
    line of that is the original message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().splitlines()[-1].removeprefix(f"{__name__}.{type(self).__name__}: "))


@dataclass(frozen=True)
class Sample:
    """One training image."""

    image_3hw: Tensor
    targets: Targets
    """In input pixels; masks at the stride of the dataset, not padded."""
    image_id: int
    file_name: str
    size: tuple[int, int]
    original_size: tuple[int, int]


@dataclass(frozen=True)
class EvalSample:
    """One image for evaluation."""

    image_3hw: Tensor
    image_id: int
    file_name: str
    original_size: tuple[int, int]


@dataclass  # not frozen: where weights are shared out, Lightning sets the fields of a copy
class EvalBatch:
    """B preprocessed images."""

    images_B3HW: Tensor
    """float32, normalized, padded with zeros at the bottom and the right to multiples of 32."""
    image_ids: list[int]
    file_names: list[str]
    """As in the annotation file, relative to the folder of the images."""
    image_sizes: list[tuple[int, int]]
    """(h, w) of each image in the input, without padding."""
    original_sizes: list[tuple[int, int]]
    """(h, w) of each file."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The batch with its tensors on `device`."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The batch with its tensors in page-locked memory, from which copies to a GPU overlap with its work."""
        return _map_tensors(self, Tensor.pin_memory)


@dataclass  # not frozen: where weights are shared out, Lightning sets the fields of a copy
class Batch(EvalBatch):
    """B training images with what they teach."""

    targets: list[Targets]
    assignment: Assignment


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply `function` to the tensors in a value made of dataclasses and lists."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, EvalBatch | Targets | Assignment):
        return replace(value, **{f.name: _map_tensors(getattr(value, f.name), function) for f in fields(value)})
    if isinstance(value, list):
        return [_map_tensors(item, function) for item in value]
    return value


def load_picture(coco: CocoDataset, index: int, percentiles: Sequence[float] = ()) -> NDArray[np.uint8]:
    """Image `index` as H x W x 3 uint8, with these percentiles of its values as black and white, if there are any.

    Raises:
        SOTRError: if it cannot be read, or has another size than the annotation file says.
    """
    path = coco.path(index)
    image = load_image(path, choice=Choice(intensity=IntensityRange.of(percentiles)))
    height, width = map(int, coco.sizes_N2[index])
    if image.shape[:2] != (height, width):
        raise SOTRError(
            f"{path}: is {image.shape[1]} x {image.shape[0]} pixels (upright), but {coco.json_path} says "
            f"{width} x {height}; correct the width and height there, and the masks"
        )
    return image


def domain_of(coco: CocoDataset, config: SOTRConfig, most: int = 500) -> Domain | None:
    """How images of a data set look to the network, by at most so many, evenly spread; None if none can be read."""
    found = []
    for index in np.unique(np.linspace(0, len(coco) - 1, min(most, len(coco))).astype(int)).tolist():
        try:
            found.append(Traits.of(load_picture(coco, index, config.intensity_percentiles)))
        except SOTRError:  # training has told of it
            continue
    return Domain.of(found, coco.median_size) if found else None


class TrainDataset(Dataset[Sample]):
    """Augmented training images; item (epoch, index), or (epoch, index, copy) of an image that occurs again in the
    epoch, is a function of these and the seed alone.

    Crowds and objects without pixels are left out.
    """

    def __init__(
        self, coco: CocoDataset, config: SOTRConfig, augmentation: Augmentation, mask_stride: int = 4, seed: int = 0
    ) -> None:
        if len(coco.class_names) != config.num_classes:
            raise SOTRError(
                f"{coco.json_path} has {len(coco.class_names)} categories, but the network num_classes "
                f"{config.num_classes}; make them equal"
            )
        self.coco, self.config, self.augmentation = coco, config, augmentation
        self.mask_stride, self.seed = mask_stride, seed
        self.in_hand: Tensor | None = None
        """Of each worker its process id and the image it has begun last, in shared memory."""

    def __len__(self) -> int:
        return len(self.coco)

    def __getitem__(self, position: tuple[int, ...]) -> Sample:
        index = position[1]
        generator = np.random.default_rng((self.seed, *position))
        scene = self._scene(index)
        original_size = scene.image_HW3.shape[0], scene.image_HW3.shape[1]
        if self.augmentation.copy_paste and generator.random() < self.augmentation.copy_paste:
            source = self._scene(int(generator.integers(len(self.coco))))
            scene = paste(scene, source, self.augmentation.copy_paste_most, generator)
        augmented = augment(
            scene.image_HW3,
            scene.objects,
            self.augmentation,
            self.config.image_size,
            self.config.max_image_size,
            mask_stride=self.mask_stride,
            generator=generator,
        )
        return Sample(
            image_3hw=augmented.image_3hw,
            targets=augmented.targets,
            image_id=int(self.coco.image_ids[index]),
            file_name=self.coco.file_names[index],
            size=augmented.size,
            original_size=original_size,
        )

    def _scene(self, index: int) -> Scene:
        worker = get_worker_info()
        if worker is not None and self.in_hand is not None:
            self.in_hand[worker.id] = torch.tensor([os.getpid(), index])
        image = _or_worker_error(self.coco, index, self.config)
        own = np.arange(self.coco.offsets[index], self.coco.offsets[index + 1])
        own = own[~self.coco.iscrowd[own]]
        return Scene(image, Objects(self.coco.labels[own], self.coco.boxes[own], self.coco.strings(own)))


class EvalDataset(Dataset[EvalSample]):
    """Preprocessed images in the order of the annotation file."""

    def __init__(self, coco: CocoDataset, config: SOTRConfig) -> None:
        self.coco, self.config = coco, config

    def __len__(self) -> int:
        return len(self.coco)

    def __getitem__(self, index: int) -> EvalSample:
        image = _or_worker_error(self.coco, index, self.config)
        return EvalSample(
            image_3hw=preprocess(image, self.config.image_size, self.config.max_image_size),
            image_id=int(self.coco.image_ids[index]),
            file_name=self.coco.file_names[index],
            original_size=(image.shape[0], image.shape[1]),
        )


def _or_worker_error(coco: CocoDataset, index: int, config: SOTRConfig) -> NDArray[np.uint8]:
    try:
        return load_picture(coco, index, config.intensity_percentiles)
    except SOTRError as error:
        if get_worker_info() is None:
            raise
        raise DataError(str(error)) from None


def collate(samples: Sequence[Sample], config: SOTRConfig, mask_stride: int = 4) -> Batch:
    """Pad samples to one size, masks included, and assign their objects to cells."""
    images = pad_batch([sample.image_3hw for sample in samples], INPUT_DIVISOR)
    height, width = images.shape[2:]
    targets = []
    for sample in samples:
        masks = sample.targets.masks_Ihw
        missing = (0, width // mask_stride - masks.shape[2], 0, height // mask_stride - masks.shape[1])
        targets.append(replace(sample.targets, masks_Ihw=F.pad(masks, missing)))
    return Batch(
        images_B3HW=images,
        image_ids=[sample.image_id for sample in samples],
        file_names=[sample.file_name for sample in samples],
        image_sizes=[sample.size for sample in samples],
        original_sizes=[sample.original_size for sample in samples],
        targets=targets,
        assignment=assign(targets, config, (height, width)),
    )


def collate_eval(samples: Sequence[EvalSample]) -> EvalBatch:
    """Pad samples to one size."""
    return EvalBatch(
        images_B3HW=pad_batch([sample.image_3hw for sample in samples], INPUT_DIVISOR),
        image_ids=[sample.image_id for sample in samples],
        file_names=[sample.file_name for sample in samples],
        image_sizes=[(sample.image_3hw.shape[1], sample.image_3hw.shape[2]) for sample in samples],
        original_sizes=[sample.original_size for sample in samples],
    )


def _leave_signals_to_main(_: int) -> None:
    """Of a worker: Ctrl-C and a SIGTERM to the whole group are the main process's business, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not tell who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told_by, args=(os.getppid(),), daemon=True).start()


def _end_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def train_loader(
    coco: CocoDataset,
    config: SOTRConfig,
    augmentation: Augmentation,
    *,
    batch_size: int,
    mask_stride: int = 4,
    seed: int = 0,
    shuffle: bool = True,
    workers: int = 0,
    pin_memory: bool = False,
    rank: int = 0,
    ranks: int = 1,
    repeat_below: float = 0.0,
) -> DataLoader[Batch]:
    """Batches of `Batch` for training; its `sampler` is the `EpochSampler`.

    The last batch of an epoch is left out if it would be smaller than the others, unless it is the only one.

    Args:
        batch_size: images per step, of all processes together.
        rank, ranks: this process among those that share each batch out between them.
        repeat_below: share of the images below which a class is rare, and its images repeated; see
            `sampling.repeat_factors`.
        workers: processes that prepare batches; 0 prepares them in the calling process.
    """
    dataset = TrainDataset(coco, config, augmentation, mask_stride, seed)
    if workers:
        dataset.in_hand = torch.zeros(workers, 2, dtype=torch.int64).share_memory_()
    # Crops are of one shape anyway; whole images of unlike shapes would fill their batch with padding.
    groups_N = None if augmentation.crop else shape_groups(coco, augmentation)
    repeats_N = repeat_factors(coco, repeat_below) if repeat_below else None
    sampler = EpochSampler(len(dataset), seed, shuffle, 0, groups_N, batch_size, rank, ranks, repeats_N)
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # DataLoader is typed by its dataset; ours has collate make the batches
        batch_size=batch_size // ranks,
        sampler=sampler,
        collate_fn=partial(collate, config=config, mask_stride=mask_stride),
        num_workers=workers,
        pin_memory=pin_memory,
        drop_last=ranks > 1 or len(sampler) >= batch_size,
        worker_init_fn=_leave_signals_to_main,
        persistent_workers=workers > 0,
    )


WORKER_DIED = (RuntimeError, ConnectionError, EOFError)
"""What a loader may raise when a process of it dies: the latter two while its tensors are being taken over."""


def died(error: Exception) -> str | None:
    """What is said of a process of a loader that died, in brief; None for other errors."""
    message = str(error) or type(error).__name__
    if isinstance(error, RuntimeError) and "DataLoader worker" not in message:
        return None
    return message.split(". ")[0].strip(". ")


def lost_worker(loader: DataLoader[Batch], error: Exception) -> SOTRError | None:
    """What to say of a worker of `train_loader` that died, with the image it had in hand; None for other errors."""
    dataset: TrainDataset = loader.dataset  # type: ignore[assignment]
    for _ in range(loader.num_workers):
        try:
            return _lost_worker(dataset, error)
        except RuntimeError as late:
            # PyTorch raises its own error when the system tells of a process's end, in whatever is being done.
            error = late
    return _lost_worker(dataset, error)


def _lost_worker(dataset: TrainDataset, error: Exception) -> SOTRError | None:
    message, reason = str(error), died(error)
    if dataset.in_hand is None or reason is None:
        return None
    pictures = {process: picture for process, picture in dataset.in_hand.tolist() if process}
    named = [int(number) for number in re.findall(r"\d+", message) if int(number) in pictures]
    if not named:  # its connection broke before it had ended
        children = [child for child in multiprocessing.active_children() if child.pid in pictures]
        if len(children) == len(pictures):
            ended = wait([child.sentinel for child in children], timeout=5)
            for child in children:
                if child.sentinel in ended:  # what it had open is closed a moment before it counts as dead
                    child.join(timeout=5)
    alive = {child.pid for child in multiprocessing.active_children()}
    names = [str(dataset.coco.path(pictures[process])) for process in named or pictures.keys() - alive]
    return SOTRError(
        f"a process that loads images died ({reason}); it last opened "
        f"{' or '.join(names) or 'a picture that is not known'}; look at that file and at the machine's free memory, "
        "use fewer --workers, then continue with --resume"
    )


def eval_loader(
    coco: CocoDataset,
    config: SOTRConfig,
    *,
    batch_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    pictures: Sequence[int] | None = None,
) -> DataLoader[EvalBatch]:
    """Batches of `EvalBatch`, every image once, in the order of the annotation file.

    Args:
        pictures: positions in the data set of the images to take; default all.
    """
    return DataLoader(
        EvalDataset(coco, config),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=range(len(coco)) if pictures is None else pictures,
        collate_fn=collate_eval,
        worker_init_fn=_leave_signals_to_main,
        num_workers=workers,
        pin_memory=pin_memory,
    )
