"""Count the objects in each picture of a folder and write one line per picture.

python examples/count_objects.py PICTURES counts.csv
"""

import csv
import sys

import sotr
from sotr.data import list_images

folder, table = sys.argv[1:]
model = sotr.load("nuclei")
with open(table, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["picture", "objects", "median area px", "covered %"])
    for path in list_images([folder]):
        objects = model.predict(path, score=0.3)
        covered = 100 * objects.masks_IHW.any(0).mean()
        areas = sorted(objects.areas_I)
        writer.writerow([path.name, len(objects), areas[len(areas) // 2] if areas else "", f"{covered:.1f}"])
