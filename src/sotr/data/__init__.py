"""Images and labels: files in, batches out. Loading images (`images`) needs no PyTorch."""

from typing import TYPE_CHECKING

from sotr.lazy import lazy_names

if TYPE_CHECKING:
    from sotr.data.batches import (
        Batch,
        EvalBatch,
        EvalDataset,
        TrainDataset,
        collate,
        eval_loader,
        train_loader,
    )
    from sotr.data.choice import Choice
    from sotr.data.coco import CocoDataset, Record, Splits, find_data, load_coco
    from sotr.data.images import MAX_PIXELS, list_images, load_image
    from sotr.data.sampling import EpochSampler
    from sotr.data.scaling import IntensityRange
    from sotr.data.sizes import resized_size
    from sotr.data.transforms import MEAN, STD, Augmentation, augment, pad_batch, preprocess

__all__ = [
    "MAX_PIXELS",
    "MEAN",
    "STD",
    "Augmentation",
    "Batch",
    "Choice",
    "CocoDataset",
    "EpochSampler",
    "EvalBatch",
    "EvalDataset",
    "IntensityRange",
    "Record",
    "Splits",
    "TrainDataset",
    "augment",
    "collate",
    "eval_loader",
    "find_data",
    "list_images",
    "load_coco",
    "load_image",
    "pad_batch",
    "preprocess",
    "resized_size",
    "train_loader",
]

_HOMES = {
    "Augmentation": "sotr.data.transforms",
    "Batch": "sotr.data.batches",
    "Choice": "sotr.data.choice",
    "CocoDataset": "sotr.data.coco",
    "EpochSampler": "sotr.data.sampling",
    "EvalBatch": "sotr.data.batches",
    "EvalDataset": "sotr.data.batches",
    "IntensityRange": "sotr.data.scaling",
    "MAX_PIXELS": "sotr.data.images",
    "MEAN": "sotr.data.transforms",
    "Record": "sotr.data.coco",
    "STD": "sotr.data.transforms",
    "Splits": "sotr.data.coco",
    "TrainDataset": "sotr.data.batches",
    "augment": "sotr.data.transforms",
    "collate": "sotr.data.batches",
    "eval_loader": "sotr.data.batches",
    "find_data": "sotr.data.coco",
    "list_images": "sotr.data.images",
    "load_coco": "sotr.data.coco",
    "load_image": "sotr.data.images",
    "pad_batch": "sotr.data.transforms",
    "preprocess": "sotr.data.transforms",
    "resized_size": "sotr.data.sizes",
    "train_loader": "sotr.data.batches",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
