"""Readers of data sets in other formats, one module each, with a `NAME`, a `recognizes(folder)` and a `read(folder)`
that returns a `Source`: the images with their objects as COCO has them.

supervision reads two of these formats, too, but holds a dense mask of every object of every image in memory, draws
polygons anew as pixels, and does not say in which line a file is wrong.
"""
