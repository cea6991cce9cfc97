"""One large image through a model, tile by tile."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from sotr.results.instances import Instances
from sotr.tiling.grid import Grid
from sotr.tiling.merge import merge_tiles
from sotr.tiling.pictures import TilePicture

Tiles = list[NDArray[np.uint8]]


def segment_tiles(
    predict: Callable[[Tiles], Sequence[Instances]],
    picture: TilePicture,
    tile: int,
    overlap: float,
    *,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    batch_size: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Instances:
    """Segment an image of any size in tiles, and merge what was found in them.

    Besides the image, if it is in memory at all (see `open_picture`), this holds two batches of tiles, one of which
    is read while the other is in the network, and the compressed masks.

    Args:
        predict: gives the objects of each of a list of HW3 uint8 RGB images.
        picture: from `open_picture`.
        tile: side of a tile in pixels. A tile is an image of its own: the model enlarges or shrinks it to its own size
            of images, so choose it such that objects look as large in it as in the images of the training data.
        overlap: part of its side, above 0 and at most 0.5, that a tile shares with the next one, or somewhat more.
            Objects that fit into it are taken whole from one tile; larger ones are put together.
        class_names: of the M classes of the model.
        category_ids: of the M classes of the model.
        batch_size: tiles that are predicted together.
        progress: called after each batch with the part of the image that this batch was; the parts add up to 1.

    Raises:
        SOTRError: the image cannot be read, or a setting is out of range.
    """
    grid = Grid(picture.height, picture.width, tile, overlap)
    return merge_tiles(grid, _found(predict, picture, grid, batch_size, progress), class_names, category_ids)


def _found(
    predict: Callable[[Tiles], Sequence[Instances]],
    picture: TilePicture,
    grid: Grid,
    batch_size: int,
    progress: Callable[[float], None] | None,
) -> Iterator[tuple[int, Instances]]:
    boxes = grid.boxes_T4.tolist()
    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(_read, picture, boxes[:batch_size])
        for start in range(0, len(boxes), batch_size):
            tiles = pending.result()
            pending = reader.submit(_read, picture, boxes[start + batch_size : start + 2 * batch_size])
            yield from enumerate(predict(tiles), start)
            if progress is not None:
                progress(len(tiles) / len(boxes))


def _read(picture: TilePicture, boxes: Sequence[Sequence[int]]) -> Tiles:
    return [picture.read(*box) for box in boxes]
