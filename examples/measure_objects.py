"""Measure every object of one picture with OpenCV, write a table, and draw those that are nearly round.

python examples/measure_objects.py cells.png measured.csv round.png
"""

import csv
import sys

import cv2
import numpy as np
from PIL import Image

import sotr

picture, table, drawing = sys.argv[1:]
objects = sotr.load("nuclei").predict(picture, score=0.3)

roundness = []
with open(table, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["object", "score", "area px", "perimeter px", "roundness"])
    for i, row in enumerate(objects.to_rows()):
        mask, _, _ = objects.mask_crop(i)  # the mask inside its box, without the whole picture around it
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        perimeter = sum(cv2.arcLength(outline, closed=True) for outline in outlines)
        roundness.append(4 * np.pi * row["area"] / max(perimeter, 1.0) ** 2)  # 1 for a disc
        writer.writerow([i, row["score"], row["area"], f"{perimeter:.1f}", f"{roundness[i]:.2f}"])

chosen = objects[np.array(roundness) > 0.8]
Image.fromarray(chosen.draw(picture)).save(drawing)
