"""Images of any size: cut into overlapping tiles, whose objects become those of the image."""

from sotr.tiling.grid import MIN_TILE, OVERLAP, Grid, check_tiles
from sotr.tiling.merge import merge_tiles
from sotr.tiling.pictures import TilePicture, open_picture
from sotr.tiling.segment import segment_tiles

__all__ = ["MIN_TILE", "OVERLAP", "Grid", "TilePicture", "check_tiles", "merge_tiles", "open_picture", "segment_tiles"]
