"""The authors' released checkpoints as model folders of this package."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from sotr.decoding import DecodeOptions
from sotr.errors import SOTRError
from sotr.model.segmenter import Segmenter
from sotr.model.tensors import read_state_dict
from sotr.released.checkpoint import released_to_ours
from sotr.released.coco_classes import COCO_IDS, COCO_NAMES
from sotr.released.network import ReleasedSOTR

CARD = """\
# {name}

The network of the checkpoint `{name}` that the authors of *SOTR: Segmenting Objects with Transformers* (ICCV 2021)
released, for the 80 classes of MS COCO: {backbone}, {depth} layers. Converted by `sotr convert-released`; outputs and
decoding follow the authors' code, which departs from the paper's text (`variant: released`).

{claim}
"""

CLAIM = """\
For their checkpoint of this architecture the authors report a mask AP of {ap} % on COCO. That is their claim; it has
not been measured with this file."""

QUICKER = """ Their network duplicates its maps' width; this one has `width_duplication: {mode}` instead, which
takes half the work and changes its outputs a little."""

CLAIMED_AP = {"resnet50": 39.6, "resnet101": 40.2, "resnet101 with deformable stages": 42.0}
"""Mask AP on COCO, in percent, that the authors publish beside each checkpoint."""


def convert_released(
    checkpoint: str,
    out: str | None = None,
    width_duplication: Literal["exact", "wrapped", "none"] = "exact",
) -> Segmenter:
    """Turn a released checkpoint (SOTR_R50, SOTR_R101 or SOTR_R101_DCN) into a model folder.

    Nothing in the file is executed: it is read as plain tensors, or refused.

    Args:
        checkpoint: The .pth file, a .pkl of NumPy arrays as detectron2 writes it, or a .safetensors file.
        out: Folder to write, for --model of the other commands; default: one with the file's name without its ending.
        width_duplication: exact feeds each map beside its own copy, as the authors' code does; wrapped and none halve
            the transformer's work, for outputs that differ by about one and by some percent.

    Raises:
        SOTRError: the file cannot be read safely, or its tensors are not those of a released checkpoint.
    """
    path = Path(checkpoint)
    tensors = read_state_dict(path)
    try:
        config, state = released_to_ours(tensors)
    except SOTRError as error:
        raise SOTRError(f"{path}: {error}") from None
    config = replace(config, width_duplication=width_duplication)
    if config.num_classes != len(COCO_NAMES):
        raise SOTRError(f"{path} knows {config.num_classes} classes; released checkpoints know the 80 of COCO")
    network = ReleasedSOTR(config)
    network.load_state_dict(state)
    backbone = config.backbone + (" with deformable stages" if config.deformable_stages else "")
    claim = CLAIM.format(ap=CLAIMED_AP[backbone])
    if width_duplication != "exact":
        claim += QUICKER.format(mode=width_duplication)
    card = CARD.format(name=path.stem, backbone=backbone, depth=config.depth, claim=claim)
    segmenter = Segmenter(network, COCO_NAMES, COCO_IDS, DecodeOptions.released(), path.stem, card=card)
    segmenter.save(out if out is not None else path.stem)
    return segmenter
