"""Readers of other formats, one module each: `recognises(folder)` tells whether a folder is of it, and `read(folder)`
yields its pictures with their objects as COCO has them.

supervision reads two of them, too, but holds a dense mask of every object of every picture in memory, draws polygons
anew as pixels, and does not say in which line a file is wrong; so these readers are our own, and short.
"""
