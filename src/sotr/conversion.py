"""The authors' released checkpoints as model folders of this package."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sotr.data.coco_classes import COCO_IDS, COCO_NAMES
from sotr.decoding import DecodeOptions
from sotr.errors import SOTRError
from sotr.model import Segmenter
from sotr.network import SOTR
from sotr.network.released import released_to_ours

CARD = """\
# {name}

The network of the checkpoint `{name}` that the authors of *SOTR: Segmenting Objects with Transformers* (ICCV 2021)
released, for the 80 classes of MS COCO: {backbone}, {depth} layers. Converted by `sotr convert-released`; outputs and
decoding follow the authors' code, which departs from the paper's text (`variant: released`).
"""


def convert_released(checkpoint: str, out: str | None = None, width_duplication: bool = True) -> Segmenter:
    """Turn a released checkpoint (SOTR_R50, SOTR_R101 or SOTR_R101_DCN) into a model folder.

    Nothing in the file is executed: it is read as plain tensors, or refused.

    Args:
        checkpoint: The .pth file, or a .safetensors file with the same tensors.
        out: Folder to write, for --model of the other commands; default: one with the file's name without its ending.
        width_duplication: Feed each map beside its own copy, as the authors' code does; without it the transformer does
            half the work and its outputs differ by some percent.

    Raises:
        SOTRError: the file cannot be read safely, or its tensors are not those of a released checkpoint.
    """
    path = Path(checkpoint)
    config, state = released_to_ours(read_tensors(path), width_duplication)
    if config.num_classes != len(COCO_NAMES):
        raise SOTRError(f"{path} knows {config.num_classes} classes; released checkpoints know the 80 of COCO")
    network = SOTR(config)
    network.load_state_dict(state)
    backbone = config.backbone + (" with deformable stages" if config.deformable_stages else "")
    card = CARD.format(name=path.stem, backbone=backbone, depth=config.depth)
    segmenter = Segmenter(network, COCO_NAMES, COCO_IDS, DecodeOptions.released(), path.stem, card=card)
    segmenter.save(out if out is not None else path.stem)
    return segmenter


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: a .safetensors file, or PyTorch's own format read with `weights_only`.

    Raises:
        SOTRError: the file is absent or damaged, or holds more than tensors and plain values.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except FileNotFoundError:
        raise SOTRError(f"{path} is missing") from None
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SOTRError(
            f"{path} cannot be read as plain tensors, and nothing else is read, for a pickle can run any code "
            f"({reason[:200]}); save its state dict anew with torch.save or safetensors where you trust it"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise SOTRError(f"{path} does not hold a state dict, names with tensors, at its top or under 'model'")
    return content
