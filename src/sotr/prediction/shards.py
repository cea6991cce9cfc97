"""Very many images: each process does its share, a chunk at a time, and goes on where it was stopped.

The images of shard i of n are every n-th, from the i-th. A chunk of them is one file, OUT/shards/i-of-n/000000.jsonl
and so on, one line of JSON per image. Its lines are first collected in a file that ends in `.partial`, which gets its
name when it is complete: a file with that name is whole, and a process that starts again finds what it has done.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.markup import escape

from sotr.data.choice import WHOLE
from sotr.errors import SOTRError
from sotr.files import atomic_write, claimed
from sotr.loading import EXPORTED_SUFFIXES
from sotr.prediction.inputs import Inputs, Picked
from sotr.prediction.output import categories, printable
from sotr.prediction.pipeline import Segmentation, Segmented, Waits, segment_files, write_behind
from sotr.prediction.report import counted, print_failures, progress

SHARDS_FOLDER, RUN_FILE, PARTIAL_SUFFIX = "shards", "run.json", ".partial"

RANKS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
"""Environment variables with a process's number and the number of processes: of torchrun, and of SLURM's srun. A batch
script's own commands run once, however many tasks the job has."""


@dataclass(frozen=True)
class Shard:
    """A share of the images."""

    index: int
    """From 0."""
    count: int
    chunk_size: int
    """Images per result file."""

    def __str__(self) -> str:
        return f"{self.index:05d}-of-{self.count:05d}"


def choose_shard(
    index: int | None, count: int | None, chunk_size: int, environment: Mapping[str, str] = os.environ
) -> Shard | None:
    """The share of this process, or None where images are not shared out.

    Args:
        index: which share; None takes the process's rank, or 0 where there is just one share.
        count: how many shares; None takes the number of processes that the environment tells.
        chunk_size: images per result file.
        environment: variables of this process.

    Raises:
        SOTRError: they do not fit together.
    """
    rank, processes = 0, 1
    for rank_name, count_name in RANKS:
        if rank_name in environment and count_name in environment:
            try:
                rank, processes = int(environment[rank_name]), int(environment[count_name])
            except ValueError:
                raise SOTRError(f"{rank_name} and {count_name} must be whole numbers; unset them") from None
            break
    if count is None:
        if index is not None:
            raise SOTRError(f"shard is {index}, but of how many? Give shards, too")
        if processes == 1:
            return None
        count = processes
    if index is None:
        if count not in (1, processes):
            raise SOTRError(f"which of the {count} shards is this? Give shard, from 0 to {count - 1}")
        index = 0 if count == 1 else rank
    if count < 1 or not 0 <= index < count:
        raise SOTRError(f"there is no shard {index} of {count}; shards are numbered from 0")
    if chunk_size < 1:
        raise SOTRError(f"chunk_size is {chunk_size}; it must be at least 1")
    return Shard(index, count, chunk_size)


def device_of_rank(device: str, model: str | Path) -> str:
    """With "auto", the GPU that is this process's among those of its machine."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))
    if device != "auto" or local is None:
        return device
    if Path(model).suffix.lower() in EXPORTED_SUFFIXES:  # which run without PyTorch
        return f"auto:{int(local)}"
    import torch

    return f"cuda:{int(local) % torch.cuda.device_count()}" if torch.cuda.is_available() else device


def predict_shard(
    segmentation: Segmentation, inputs: Inputs, shard: Shard, out: Path, quiet: bool
) -> tuple[int, int, list[tuple[str, str]]]:
    """Segment one share of the images; what an earlier process has done of it is not done again.

    Returns:
        Images and objects of this process, and (file, reason) of each image that could not be read.

    Raises:
        SOTRError: OUT holds the results of other images or settings.
        OSError: the results cannot be written.
    """
    console = Console(quiet=quiet, highlight=False, soft_wrap=True)
    # Images are listed twice rather than held.
    total = _open_run(segmentation, inputs, shard, out)
    own = len(range(shard.index, total, shard.count))
    folder = out / SHARDS_FOLDER / str(shard)
    started, waits, done = time.perf_counter(), Waits(), _Done()
    names = islice(inputs.names(), shard.index, None, shard.count)
    with claimed(folder), progress(own, not quiet) as advance, write_behind(waits) as writer:
        number = 0
        while chunk := list(islice(names, shard.chunk_size)):
            path = folder / f"{number:06d}.jsonl"
            number += 1
            complete = path.exists()
            earlier = len(chunk) if complete else _keep_whole_lines(path, chunk)
            done.earlier += earlier
            done.failures += _failures_in(path if complete else _partial(path))
            advance(earlier)
            if not complete:
                images = [Picked(Path(name), segmentation.choice) for name in chunk[earlier:]]
                with _partial(path).open("ab") as file:
                    for picture in segment_files(segmentation, images, waits, advance, False):
                        writer.do(partial(_append, file, picture, done))
                    writer.wait()
                    os.fsync(file.fileno())
                os.replace(_partial(path), path)
    seconds = max(time.perf_counter() - started, 1e-9)
    before = f" ({done.earlier:,} before)" if done.earlier else ""
    console.print(
        f"shard {shard.index} of {shard.count}: {done.pictures:,} of {counted(own - done.earlier, 'image')}{before} "
        f"in {seconds:.1f} s, {done.pictures / seconds:.1f} per second; {escape(str(folder))}"
    )
    if done.pictures:
        console.print(f"time: {waits}")
    print_failures(done.failures)
    return done.pictures, done.objects, done.failures


class _Done:
    """What this process did; counts only, but for images that could not be read."""

    def __init__(self) -> None:
        self.earlier = self.pictures = self.objects = 0
        self.failures: list[tuple[str, str]] = []


def _open_run(segmentation: Segmentation, inputs: Inputs, shard: Shard, out: Path) -> int:
    """Note what this run is about, or check that it is what OUT was made for; gives the number of images."""
    total, digest = 0, hashlib.sha256()
    for name in inputs.names():
        total += 1
        digest.update(name.encode("utf-8", "surrogateescape") + b"\n")
    run = {
        "pictures": total,
        "sha256_of_names": digest.hexdigest(),
        "shards": shard.count,
        "chunk_size": shard.chunk_size,
        "model": {"name": segmentation.model.name, "digest": segmentation.model.digest()},
        "score": segmentation.score,
        "max_objects": segmentation.max_objects,
        "tile": segmentation.tile,
        "overlap": segmentation.overlap if segmentation.tile else None,
        "channel_plane_or_range": None if segmentation.choice == WHOLE else segmentation.choice.to_json(),
        "no_overlap": segmentation.no_overlap or None,
        "classes": segmentation.classes and list(segmentation.classes),
        "categories": categories(segmentation.model.class_names, segmentation.model.category_ids),
    }
    path = out / SHARDS_FOLDER / RUN_FILE
    if not path.exists():
        with atomic_write(path, "w") as file:
            json.dump(run, file, indent=1)
        return total
    try:
        earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise SOTRError(f"{path} is damaged; choose another folder with --out") from None
    for key, value in run.items():
        if earlier.get(key) != json.loads(json.dumps(value)):
            what = "images" if key == "pictures" else key.replace("_", " ")
            raise SOTRError(f"{out} holds a run with other {what}; repeat its command, or choose another --out")
    return total


def _keep_whole_lines(path: Path, chunk: list[str]) -> int:
    """How many images of the chunk are in its partial file, which is cut where its last whole line ends."""
    whole = lines = 0
    try:
        with _partial(path).open("r+b") as file:
            for line, name in zip(file, chunk, strict=False):
                if not _is_line_of(line, name):
                    break
                whole += len(line)
                lines += 1
            file.truncate(whole)
    except FileNotFoundError:
        return 0
    return lines


def _failures_in(path: Path) -> list[tuple[str, str]]:
    """(file, reason) of each image that an earlier process could not read, by what it wrote."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        lines = [json.loads(line) for line in file if b'"error":' in line]
    return [(line["file_name"], line["error"]) for line in lines if "error" in line]


def _is_line_of(line: bytes, name: str) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["file_name"] == printable(str(Path(name)))
    except ValueError:  # a process was stopped while it wrote
        return False


def _append(file: IO[bytes], picture: Segmented, done: _Done) -> None:
    """Write one line, at once: what a process has done survives its end."""
    name = printable(str(picture.picked.path))
    line: dict[str, Any] = {"file_name": name}
    if picture.instances is None:
        line["error"] = printable(picture.error)
        done.failures.append((name, printable(picture.error)))
    else:
        line |= picture.instances.to_json()
        del line["classes"]  # these are in the run's file
        done.pictures += 1
        done.objects += len(picture.instances)
    file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n")
    file.flush()


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL_SUFFIX)
