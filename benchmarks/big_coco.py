"""Time and memory of a data set of COCO's size: made up, opened twice, and walked through by loader workers.

    python benchmarks/big_coco.py --folder big-coco

Images are symbolic links to one file and are not decoded: what is measured is the annotations. A worker touches of
each image what training does: its name, labels, boxes and masks' run lengths.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from sotr.data.coco import CocoDataset, load_coco
from sotr.masks import run_lengths as rle


def make(folder: Path, pictures: int, objects: int) -> Path:
    """Write a JSON of `pictures` 640 x 480 images with `objects` polygons among them, in random order."""
    path, unfinished = folder / "train.json", folder / "unfinished.json"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (640, 480)).save(folder / "one.jpg")
    rng = np.random.default_rng(0)
    owners = rng.integers(0, pictures, objects)
    with unfinished.open("w") as file:
        file.write('{"images": [')
        for i in range(pictures):
            name = f"{i:012}.jpg"
            if not (folder / "images" / name).is_symlink():
                (folder / "images" / name).symlink_to("../one.jpg")
            entry = {"id": i, "file_name": name, "height": 480, "width": 640, "license": 1}
            file.write(("," if i else "") + json.dumps(entry))
        file.write('], "annotations": [')
        for first in range(0, objects, 10_000):
            count = min(10_000, objects - first)
            corners = rng.integers(8, 44, count)
            radii = np.exp(rng.uniform(np.log(6), np.log(150), count))
            centers = rng.uniform((0, 0), (640, 480), (count, 2))
            for i in range(count):
                angles = np.sort(rng.uniform(0, 2 * np.pi, corners[i]))
                reach = radii[i] * rng.uniform(0.6, 1, corners[i])
                points = centers[i] + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
                points = np.clip(points, 0, (640, 480))
                low, high = points.min(0), points.max(0)
                entry = {
                    "segmentation": [np.round(points, 2).ravel().tolist()],
                    "area": round(float(radii[i] ** 2), 2),
                    "iscrowd": 0,
                    "image_id": int(owners[first + i]),
                    "bbox": [round(float(v), 2) for v in (*low, *(high - low))],
                    "category_id": int(rng.integers(1, 81)),
                    "id": first + i + 1,
                }
                file.write(("," if first + i else "") + json.dumps(entry))
        categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    return unfinished.replace(path)


class Walk(Dataset[int]):
    """Touches the annotations of each image, and gives the number of its mask pixels."""

    def __init__(self, data: CocoDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> int:
        record = self.data.record(index)
        strings = [segmentation["counts"].encode() for segmentation in record.segmentations]
        return int(rle.areas(rle.runs_of(strings, record.height)).sum()) + len(record.path.name)


def memory(pid: int) -> dict[str, float]:
    """MB of a process: resident, and of these its own alone."""
    sizes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        sizes[name] = int(value.split()[0])
    own = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return {"resident": round(sizes["Rss"] / 1024), "own": round(own / 1024)}


def peak() -> int:
    """Largest resident memory of this process so far, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) // 1024


def opened(path: Path) -> tuple[CocoDataset, dict[str, float]]:
    """The data set, and how long it took: by the clock, and in CPU time, which other work does not lengthen."""
    clock, work = time.perf_counter(), time.process_time()
    data = load_coco(path, path.parent / "images")
    seconds, cpu = time.perf_counter() - clock, time.process_time() - work
    return data, {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the data set is made; its cache, too")
    parser.add_argument("--pictures", type=int, default=118_287)
    parser.add_argument("--objects", type=int, default=860_001)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    os.environ["SOTR_CACHE"] = str(options.folder / "cache")
    path = options.folder / "train.json"
    if not path.is_file():
        make(options.folder, options.pictures, options.objects)
    report: dict[str, Any] = {"json_MB": round(path.stat().st_size / 2**20)}
    before = memory(os.getpid())
    if not (options.folder / "cache").exists():
        # In a process of its own, so that the memory below is that of a second opening.
        pid = os.fork()
        if not pid:
            _, took = opened(path)
            print(json.dumps({"first_opening": took, "peak_MB": peak(), **memory(os.getpid())}), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
    data, report["opening"] = opened(path)
    report |= {"before_opening_MB": before, "after_opening_MB": memory(os.getpid()), "peak_MB": peak()}
    report |= {"pictures": len(data), "objects": len(data.labels)}
    kept = next((options.folder / "cache" / "annotations").iterdir())
    report["index_MB"] = round(kept.stat().st_size / 2**20)
    print(json.dumps(report), flush=True)
    loader = DataLoader(Walk(data), batch_size=64, num_workers=options.workers, persistent_workers=True, shuffle=True)
    for epoch in range(options.epochs):
        started = time.perf_counter()
        iterator = iter(loader)
        for _ in iterator:
            pass
        workers = [memory(worker.pid) for worker in iterator._workers]  # type: ignore[attr-defined]
        seconds = round(time.perf_counter() - started, 1)
        line = {"epoch": epoch + 1, "seconds": seconds, "main_MB": memory(os.getpid()), "workers_MB": workers}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
