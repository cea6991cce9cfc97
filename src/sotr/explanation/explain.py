"""`sotr explain`: mask features, class scores of the grids and attention, as images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from sotr.config import SOTRConfig
from sotr.data.choice import Choice
from sotr.data.images import load_image
from sotr.data.transforms import pad_batch, preprocess
from sotr.errors import SOTRError
from sotr.explanation.attention_maps import attention_inputs, attention_of_cell, transformer_layers
from sotr.files import atomic_write
from sotr.model.segmenter import Segmenter, load
from sotr.results.panels import panel_sheet

LEVELS = (2, 3, 4, 5, 6)

CHANNELS_SHOWN = 11
"""Mask-feature channels that are shown unasked; with the image they fill three rows of four."""

LAYERS_SHOWN = 5
"""Transformer layers whose attention is shown, evenly spread; with the image they fill two rows of three."""

PANEL = 420
"""Shortest edge of a panel in pixels."""

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Explanation:
    """What `explain` did."""

    files: list[Path]
    """The images that were written, and last the numbers."""
    level: int
    """Of the cell whose attention is shown, 2 to 6."""
    row: int
    column: int


def explain(
    picture: str | Path,
    model: str | Path | Segmenter = "nuclei",
    out: str | Path = "explanation",
    level: int | None = None,
    row: int | None = None,
    column: int | None = None,
    channels: Sequence[int] | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Explanation:
    """Draw what happens inside a model: mask features, class scores of the grids, attention of a cell.

    Written are OUT/NAME.mask-features.png, channels of the unified mask feature beside the image (Figure 4 of the
    paper); OUT/NAME.class-scores.png, the best class score of each cell of each level, over the image and under its
    grid; and OUT/NAME.attention.png, how much each cell of a level counts for one of its cells, layer by layer: for
    twin attention the column and the row attention composed, averaged over heads. OUT/NAME.numbers.npz has the same as
    numbers: `mask_features` (E, h, w); `class_scores.P2` to `class_scores.P6` (N, N, M); `cell`, the level, row and
    column; and of each layer `attention.L.total` (N, N) and, head by head, what it is made of: `attention.L.full`
    (heads, N, N), or `attention.L.row` (heads, N) and `attention.L.column` (heads, N, N; heads, N of a released model).

    Args:
        picture: file to look at.
        model: a bundled model, a model or training run folder, a hub id, or (in Python) a loaded model, which stays
            on its device.
        out: folder for the images; files of the same name are replaced.
        level: of the cell whose attention is drawn, 2 to 6; default: where the best cell is.
        row: of that cell in its level's grid, from 0 at the top; default: the best cell's.
        column: of that cell, from 0 at the left; default: the best cell's.
        channels: of the mask feature, from 0, such as '[3, 17]'; default: some that vary most and resemble one another
            least.
        device: auto, cpu, cuda, cuda:1, mps.
        quiet: print nothing.

    Raises:
        SOTRError: the image or the model cannot be used, or there is no such level, cell or channel.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise SOTRError(f"{out} is a file; give a folder with --out")
    segmenter = model if isinstance(model, Segmenter) else load(model, device)
    config = segmenter.config
    image = load_image(picture, choice=Choice(intensity=segmenter.intensity))
    _check(config, level, row, column, channels)

    input_3hw = preprocess(image, config.image_size, config.max_image_size)
    network = segmenter.network
    images_13HW = pad_batch([input_3hw]).to(segmenter.device)
    view = _View.of(image, input_3hw, images_13HW)
    with torch.no_grad():
        predictions = network(images_13HW)
    scores_NNM = _class_scores(predictions.class_logits_BKM[0], config.grids)
    grids_NN = [scores.max(2) for scores in scores_NNM]
    level, row, column = _choose_cell(grids_NN, level, row, column)
    features_Ehw = predictions.mask_features_BEhw[0].float().cpu()

    sheets = {
        "mask-features": _mask_features(view, features_Ehw[: config.mask_channels], channels),
        "class-scores": _class_score_maps(view, grids_NN),
    }
    numbers: dict[str, NDArray[Any]] = {"mask_features": features_Ehw.numpy(), "cell": np.array((level, row, column))}
    numbers |= {f"class_scores.P{of}": scores for of, scores in zip(LEVELS, scores_NNM, strict=True)}
    if layers := transformer_layers(network):
        inputs = attention_inputs(network, images_13HW, level - 2)
        found = [attention_of_cell(layer, x, row, column) for layer, x in zip(layers, inputs, strict=True)]
        for i, attention in enumerate(found):
            numbers |= {f"attention.{i + 1}.{name}": weights for name, weights in attention.arrays().items()}
        shown = sorted({round(i) for i in np.linspace(0, len(layers) - 1, min(LAYERS_SHOWN, len(layers)))})
        maps = {i + 1: _folded(found[i].total, config.grids[level - 2]) for i in shown}
        sheets["attention"] = _attention_maps(view, maps, level, row, column)
    else:
        Console(stderr=True, quiet=quiet).print("the model has no transformer, and so no attention to draw")
    files = []
    name = Path(picture).stem
    try:
        for kind, sheet in sheets.items():
            path = out / f"{name}.{kind}.png"
            with atomic_write(path) as file:
                Image.fromarray(sheet).save(file, format="png")
            files.append(path)
        files.append(out / f"{name}.numbers.npz")
        with atomic_write(files[-1]) as file:
            np.savez_compressed(file, **numbers)  # type: ignore[arg-type]  # allow_pickle is not among the names
    except OSError as error:
        raise SOTRError(f"cannot write to {out}: {error.strerror or error}") from error
    Console(quiet=quiet, highlight=False, markup=False, soft_wrap=True).print(
        f"cell: P{level}, row {row}, column {column}, class score {grids_NN[level - 2][row, column]:.3f}\n"
        + "\n".join(map(str, files))
    )
    return Explanation(files, level, row, column)


def _check(
    config: SOTRConfig, level: int | None, row: int | None, column: int | None, channels: Sequence[int] | None
) -> None:
    if level is not None and level not in LEVELS:
        raise SOTRError(f"level is {level}; there are {', '.join(map(str, LEVELS))}")
    if (row is None) != (column is None) or (row is not None and level is None):
        raise SOTRError("a cell is a level, a row and a column; give all three, or the level alone, or none")
    if level is not None and row is not None and column is not None:
        grid = config.grids[level - 2]
        if not (0 <= row < grid and 0 <= column < grid):
            raise SOTRError(f"P{level} has no cell ({row}, {column}); rows and columns are 0 to {grid - 1}")
    if channels is not None and (not channels or not all(0 <= channel < config.mask_channels for channel in channels)):
        raise SOTRError(f"channels are {list(channels)}; give some of 0 to {config.mask_channels - 1}")


def _class_scores(class_logits_KM: Tensor, grids: Sequence[int]) -> list[Floats]:
    """The class scores of the cells, an (N, N, M) array for each level."""
    levels = class_logits_KM.float().sigmoid().cpu().split([grid * grid for grid in grids])
    return [level.unflatten(0, (grid, grid)).numpy() for level, grid in zip(levels, grids, strict=True)]


def _choose_cell(
    grids_NN: Sequence[Floats], level: int | None, row: int | None, column: int | None
) -> tuple[int, int, int]:
    if level is None:
        level = max(LEVELS, key=lambda candidate: float(grids_NN[candidate - 2].max()))
    if row is None or column is None:
        best = int(grids_NN[level - 2].argmax())
        row, column = divmod(best, grids_NN[level - 2].shape[1])
    return level, row, column


def _folded(weights: Tensor, columns: int) -> Floats:
    """Released layers see a map beside its own copy: what is paid to the copy is paid to the map."""
    folded: Floats = torch.stack(weights.split(columns, 1)).sum(0).float().cpu().numpy()
    return folded


class _View(NamedTuple):
    """How the network's padded input becomes a panel: enlarged or shrunk, then cropped to the image."""

    picture_hw3: Pixels
    padded_size: tuple[int, int]
    """(height, width) of the padded input at the panel's scale."""

    @classmethod
    def of(cls, image: Pixels, input_3hw: Tensor, images_13HW: Tensor) -> "_View":
        height, width = input_3hw.shape[1:]
        scale = PANEL / min(height, width)
        size = (round(width * scale), round(height * scale))
        shrinks = size[0] < image.shape[1]
        picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        padded = (round(images_13HW.shape[2] * scale), round(images_13HW.shape[3] * scale))
        return cls(np.asarray(picture, np.uint8), padded)

    def stretch(self, map_hw: Floats, interpolation: int) -> Floats:
        """A map of the padded input, at the panel's size."""
        height, width = self.padded_size
        stretched = cv2.resize(map_hw, (width, height), interpolation=interpolation)
        return np.asarray(stretched[: self.picture_hw3.shape[0], : self.picture_hw3.shape[1]], np.float32)

    def heat(self, map_NN: Floats, opacity: float = 0.85) -> Pixels:
        """The image in gray with a map of values in 0..1 over it, cell by cell, and the cells' grid."""
        values = self.stretch(map_NN, cv2.INTER_NEAREST)[..., None]
        grey = cv2.cvtColor(self.picture_hw3, cv2.COLOR_RGB2GRAY).astype(np.float32)
        dark, bright = np.percentile(grey, (1, 99.5))
        grey = ((grey - dark) / max(bright - dark, 1)).clip(0, 1)[..., None] ** 0.7 * 255  # dark images are seen, too
        colors = _colors(values[..., 0], cv2.COLORMAP_INFERNO).astype(np.float32)
        # What is low stays image, so that one sees where one is.
        share = opacity * np.clip(values, 0, 1) ** 0.6
        canvas = np.asarray(grey * 0.7 * (1 - share) + colors * share, np.float32)
        rows, columns = map_NN.shape
        height, width = self.padded_size
        lines: NDArray[np.bool_] = np.zeros((canvas.shape[0], canvas.shape[1]), np.bool_)
        for i in range(1, rows):
            lines[min(round(i * height / rows), len(lines)) :][:1] = True
        for j in range(1, columns):
            lines[:, min(round(j * width / columns), lines.shape[1]) :][:, :1] = True
        canvas[lines] += 0.16 * (255 - canvas[lines])
        return np.asarray(canvas.clip(0, 255), np.uint8)

    def mark(self, panel: Pixels, shape: tuple[int, int], row: int, column: int) -> Pixels:
        """A frame around a cell of a grid of `shape`."""
        height, width = self.padded_size
        top_left = (round(column * width / shape[1]), round(row * height / shape[0]))
        bottom_right = (round((column + 1) * width / shape[1]), round((row + 1) * height / shape[0]))
        marked = panel.copy()
        cv2.rectangle(marked, top_left, bottom_right, (0, 0, 0), 5)
        cv2.rectangle(marked, top_left, bottom_right, (0, 255, 255), 2)
        return marked


def _colors(values_hw: Floats, colormap: int) -> Pixels:
    grey = np.asarray(np.rint(values_hw.clip(0, 1) * 255), np.uint8)
    return np.asarray(cv2.applyColorMap(grey, colormap)[..., ::-1], np.uint8)


def _mask_features(view: _View, features_Ehw: Tensor, channels: Sequence[int] | None) -> Pixels:
    panels = [("picture", view.picture_hw3)]
    for channel in channels if channels is not None else choose_channels(features_Ehw, CHANNELS_SHOWN):
        map_hw = features_Ehw[channel].numpy()
        low, high = np.percentile(map_hw, (1, 99.5))
        stretched = view.stretch((map_hw - low) / max(high - low, 1e-6), cv2.INTER_CUBIC)
        panels.append((f"channel {channel}", _colors(stretched, cv2.COLORMAP_VIRIDIS)))
    return panel_sheet(panels, columns=4)


def choose_channels(features_Ehw: Tensor, count: int) -> list[int]:
    """Channels that vary much over the image and resemble those chosen before them little."""
    flat = features_Ehw.flatten(1)
    deviation_E = flat.std(1)
    unit = (flat - flat.mean(1, keepdim=True)) / (deviation_E[:, None] * flat.shape[1] ** 0.5).clamp(min=1e-9)
    chosen = [int(deviation_E.argmax())]
    likeness_E = torch.zeros_like(deviation_E)
    while len(chosen) < min(count, len(flat)):
        likeness_E = torch.maximum(likeness_E, (unit @ unit[chosen[-1]]).abs())
        worth_E = deviation_E * (1 - likeness_E)
        worth_E[chosen] = -1
        chosen.append(int(worth_E.argmax()))
    return chosen


def _class_score_maps(view: _View, grids_NN: Sequence[Floats]) -> Pixels:
    panels = [("picture", view.picture_hw3)]
    for level, grid_NN in zip(LEVELS, grids_NN, strict=True):
        size = f"{grid_NN.shape[0]} x {grid_NN.shape[1]} cells"
        panels.append((f"P{level}, {size}, best score {grid_NN.max():.2f}", view.heat(grid_NN)))
    return panel_sheet(panels, columns=3)


def _attention_maps(view: _View, maps: dict[int, Floats], level: int, row: int, column: int) -> Pixels:
    shape = next(iter(maps.values())).shape
    cell = view.mark(view.picture_hw3, (shape[0], shape[1]), row, column)
    panels = [(f"the cell: P{level}, row {row}, column {column}", cell)]
    for layer, map_NN in maps.items():
        title = f"layer {layer}, most {100 * map_NN.max():.1f} %, {map_NN.max() * map_NN.size:.0f} x uniform"
        panels.append((title, view.mark(view.heat(map_NN / map_NN.max()), (shape[0], shape[1]), row, column)))
    return panel_sheet(panels, columns=3)
