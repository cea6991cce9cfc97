"""Compressed COCO RLE strings of dense masks, made where the masks are: a GPU sends the host text instead of pixels.

The results are those of `sotr.masks.run_lengths`, whose docstring describes the format. Nothing loops over masks,
runs or digits, and the host waits three times: for the number of runs, for that of characters, and for the results.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sotr.masks.compress import Compressed
from sotr.masks.resize import Size, to_picture

SEPARATOR = 64
"""Stands before the digits of each mask, which have six bits."""


UPSAMPLED_PIXELS = 64_000_000
"""Mask pixels that are upsampled at the same time; bounds memory whatever the number of objects."""


def compress_on_gpu(
    maps_Ihw: Tensor, level: float, padded_size: Size, image_size: Size, original_size: Size
) -> Compressed:
    """The same as `compress_on_host`, where the maps are."""
    parts = maps_Ihw.split(max(1, UPSAMPLED_PIXELS // (original_size[0] * original_size[1])))
    pieces = [compress(to_picture(part_Ihw, padded_size, image_size, original_size) > level) for part_Ihw in parts]
    texts = [text for piece in pieces for text in piece.texts]
    return Compressed(texts, np.concatenate([piece.boxes_I4 for piece in pieces]))


def compress(masks_IWH: Tensor) -> Compressed:
    """Compress dense masks that lie in memory column by column.

    The more pixels and runs, the more memory: it is for the caller to bound the pixels of a call.

    Args:
        masks_IWH: bool, I masks, I x width x height, of at least one pixel.
    """
    characters_C = _characters(masks_IWH.flatten(1))
    on_host = to_host(characters_C, masks_IWH.any(2), masks_IWH.any(1))
    text, columns_IW, rows_IH = (part.numpy() for part in on_host)
    # Digits become printable only here, where a small array costs less than it does to ask a GPU for it.
    _, *texts = (text + 48).tobytes().decode("ascii").split(chr(SEPARATOR + 48))
    left, right = _extent(columns_IW)
    top, bottom = _extent(rows_IH)
    boxes_I4 = np.where(columns_IW.any(1, keepdims=True), np.stack([left, top, right, bottom], 1), 0)
    return Compressed(texts, boxes_I4)


def to_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies of tensors of one device in the host's memory, for which the host waits once; those of a CPU themselves.

    A GPU writes into page-locked memory many times as fast as into any other.
    """
    if not tensors or not tensors[0].is_cuda:
        return tuple(tensor.cpu() for tensor in tensors)
    copies = tuple(
        torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True) for tensor in tensors
    )
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies


def _characters(flat_IP: Tensor) -> Tensor:
    """The digits of all masks of P pixels, joined, each mask's after a separator; uint8, 48 less than what is written.

    To start a kernel takes longer than most of them run, so results go straight to where they are needed.
    """
    count, pixels = flat_IP.shape
    stride = pixels + 1  # a mask's pixels and, before them, its own start
    starts = flat_IP.new_empty(count * stride + 1)
    # The first run of a mask begins with the mask, every other one where pixels change; the last start only ends a run.
    starts[::stride].fill_(True)
    changes_IP = starts[:-1].view(count, stride)[:, 1:]
    changes_IP[:, 0].copy_(flat_IP[:, 0])
    torch.ne(flat_IP[:, 1:], flat_IP[:, :-1], out=changes_IP[:, 1:])
    places = starts.nonzero()[:, 0]

    # R runs of at most D digits, whose number the number of pixels bounds: D digits hold 5 D bits with the sign.
    runs, digits = len(places) - 1, pixels.bit_length() // 5 + 1
    written = torch.ones(runs, digits + 1, dtype=torch.bool, device=flat_IP.device)
    first_R, more = written[:, 0], written[:, 2:]
    torch.eq(places[:-1] % stride, 0, out=first_R)
    values_R = torch.empty(runs, dtype=torch.int32 if pixels < 2**31 else torch.int64, device=flat_IP.device)
    torch.sub(places[1:], places[:-1], out=values_R)
    values_R.add_(first_R, alpha=-1)  # the mask's start is no pixel
    # From its fourth on, a mask's runs are differences to the one two before.
    owners = places // stride
    values_R[3:].sub_(values_R[1:-2] * (owners[3:-1] == owners[:-4]))

    rest_RD = values_R[:, None] >> torch.arange(0, 5 * digits, 5, dtype=values_R.dtype, device=flat_IP.device)
    # What is left must be the sign of the digit's uppermost bit, or another digit says so.
    torch.ne(rest_RD[:, :-1], rest_RD[:, :-1].clamp(-16, 15), out=more)
    table = torch.empty(runs, digits + 1, dtype=torch.uint8, device=flat_IP.device)
    table[:, 0].fill_(SEPARATOR)
    torch.bitwise_and(rest_RD, 31, out=table[:, 1:])
    table[:, 1:-1].add_(more, alpha=32)
    return table.flatten()[written.flatten()]


def _extent(filled_IL: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first of L lines with pixels and the one after the last, of each mask that has any."""
    return filled_IL.argmax(1), filled_IL.shape[1] - filled_IL[:, ::-1].argmax(1)
