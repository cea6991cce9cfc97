"""Pictures and labels: files in, batches out."""

from sotr.data.batches import (
    Batch,
    EvalBatch,
    EvalDataset,
    TrainDataset,
    collate,
    eval_loader,
    train_loader,
)
from sotr.data.coco import CocoDataset, Record, Splits, find_data, load_coco
from sotr.data.images import MAX_PIXELS, list_images, load_image
from sotr.data.sampling import EpochSampler
from sotr.data.transforms import MEAN, STD, Augmentation, augment, pad_batch, preprocess, resized_size

__all__ = [
    "MAX_PIXELS",
    "MEAN",
    "STD",
    "Augmentation",
    "Batch",
    "CocoDataset",
    "EpochSampler",
    "EvalBatch",
    "EvalDataset",
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
