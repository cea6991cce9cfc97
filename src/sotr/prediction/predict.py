"""The `predict` command: images, folders, globs and videos in; overlays, COCO JSON and tables out."""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape

from sotr.data.choice import ALL, MAX, Choice
from sotr.data.images import MAX_PIXELS
from sotr.data.sizes import good_tile
from sotr.errors import SOTRError
from sotr.loading import load
from sotr.model.predictor import ENGINE_AFTER, Predictor
from sotr.prediction.inputs import Inputs, pick
from sotr.prediction.ledger import Ledger, ledger
from sotr.prediction.object_files import (
    Table,
    check_roifile,
    pixel_size_um,
    table_file,
    write_crops,
    write_geojson,
    write_labels,
    write_rois,
)
from sotr.prediction.output import (
    CROPS_FOLDER,
    LABELS_FOLDER,
    MASKS_FOLDER,
    OVERLAY_SUFFIX,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    TABLE_FILE,
    ResultFiles,
    image_ids,
    is_earlier_result,
    output_names,
    printable,
    relative_names,
    result_files,
    write_labelme,
    write_masks,
    write_png,
)
from sotr.prediction.pipeline import FILE_SECONDS, Segmentation, Segmented, Waits, segment_files, write_behind
from sotr.prediction.report import Remarks, Report, counted, print_failures, progress, some
from sotr.prediction.shards import choose_shard, device_of_rank, predict_shard
from sotr.prediction.videos import check_packages, predict_videos
from sotr.tiling import MIN_TILE, OVERLAP

TOO_LARGE = {"masks": "masks", "labels": "label images", "crops": "crops"}
"""What is not written of very large images, and what messages call it."""

FOLDERS = ("masks", "labelme", "labels", "rois", "geojson", "crops")
"""What is written to folders of the same names."""


@dataclass(frozen=True)
class PredictionSummary:
    """What `predict` did."""

    pictures: int
    """Images, and frames of videos, that were segmented."""
    objects: int
    """Objects found in them."""
    failures: list[tuple[str, str]]
    """(file, reason) of each image or video that could not be read."""
    out: Path
    """Folder with the results."""


@dataclass(frozen=True)
class _Wanted:
    """What is to be written."""

    overlays: bool
    csv: bool
    masks: bool
    polygons: bool
    labelme: bool
    labels: bool
    rois: bool
    geojson: bool
    crops: bool

    def __str__(self) -> str:
        """The names of what is asked for, overlays aside."""
        return ", ".join(name for name, wanted in vars(self).items() if wanted and name != "overlays")


def predict(
    pictures: Sequence[str | Path],
    model: str | Path | Predictor = "nuclei",
    out: str | Path = "predictions",
    score: float | None = None,
    max_objects: int | None = None,
    batch_size: int = 1,
    device: str = "auto",
    overlays: bool = True,
    masks: bool = False,
    csv: bool = False,
    tile: int | Literal["auto"] | None = None,
    overlap: float = OVERLAP,
    shard: int | None = None,
    shards: int | None = None,
    chunk_size: int = 1000,
    quiet: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
    engine: Literal["auto", "pytorch"] = "auto",
    decode: str | None = None,
    polygons: bool = False,
    labelme: bool = False,
    ids_from: str | None = None,
    file_seconds: float = FILE_SECONDS,
    labels: bool = False,
    rois: bool = False,
    geojson: bool = False,
    crops: bool = False,
    no_overlap: bool = False,
    channel: int | str | None = None,
    plane: int | str | None = None,
    intensity_range: str | None = None,
    classes: str | Sequence[str] | None = None,
) -> PredictionSummary:
    """Segment images or videos and write the results to a folder.

    Written are OUT/predictions.json, a COCO data set (info, categories, images, annotations with their `score`) that
    labelling tools import; OUT/results.json, the same objects as the plain list of COCO results that evaluation
    tools read, with the same image ids; OUT/NAME.overlay.png for each image; and on request masks and a CSV. NAME is
    the image's name without its ending, or its whole path if two images share that. Categories have the ids of the
    model's training data. Masks refer to the upright image (EXIF rotation applied). Images are handled one batch
    at a time, so memory does not grow with their number. What an earlier run wrote to OUT is not segmented again; and
    what it wrote there and this one did not is removed, unless someone has changed it since.

    Of a video, objects are followed from frame to frame. Written are OUT/NAME.overlay.mp4, the video with its objects
    drawn on it; OUT/NAME.frames.jsonl, one line of JSON per frame, whose objects carry a `track`; and
    OUT/NAME.counts.csv, objects per class and frame. The number of a camera, such as 0, is a video that ends with
    Ctrl-C or SIGTERM.

    With `shards`, or started by torchrun or srun with more than one process, each process does its share of the
    images and writes the chunks of OUT/shards, JSON lines; one that was stopped goes on where it was.

    Args:
        pictures: files, folders (searched recursively), glob patterns, .txt files that list images (one path a line),
            videos, and numbers of cameras.
        model: a bundled model, a model or training run folder, a hub id, a file that `sotr export` wrote, or (in
            Python) a loaded model, which stays on its device.
        out: folder for the results; files of the same name are replaced.
        score: leave out objects below this score, 0..1; default: the score with the best F1 on the validation images
            of the model's training, or 0.3 where none was chosen.
        max_objects: at most so many objects per image, or per tile, best first; by default what the model was saved
            with.
        batch_size: images or tiles that go through the network together; more than 1 is quicker on a GPU if they have
            the same size, and changes results slightly if they do not.
        device: auto, cpu, cuda, cuda:1, mps.
        overlays: write each image or video with its objects drawn on it.
        masks: write each object's mask to OUT/masks/NAME/000.png and so on, best score first.
        csv: write one line per object to OUT/objects.csv: size, shape, and the file's own intensities inside it, in
            each channel. Units are in the names of the columns.
        tile: segment images of any size in overlapping tiles of so many pixels a side, and merge their objects. The
            model resizes a tile like any image: choose it such that objects look as large as in the training data.
            auto takes tiles in which objects are as large to the network as in its training images.
        overlap: part of a tile's side that it shares with the next one, above 0 and at most 0.5.
        shard: which share of the images is this process's, from 0; by default its rank.
        shards: how many shares there are; by default the number of processes.
        chunk_size: images per result file of a shard.
        quiet: print nothing but the images that failed.
        precision: float32, or bfloat16: quicker where the device computes it in hardware, with slightly other results.
        engine: auto takes the quickest way that proves equal to plain PyTorch, such as OpenVINO on CPUs if it is
            installed; pytorch takes plain PyTorch, which starts at once and needs less memory.
        decode: decoding settings to change, such as points_nms=true,nms=linear; the names are those of
            `sotr.decoding.DecodeOptions`. Exported files have their own.
        polygons: write the masks in OUT/predictions.json as polygons, for tools that read no run-length encodings;
            drawn again, they are the masks.
        labelme: write OUT/labelme/NAME.json for each image, its objects as labelme's polygons.
        ids_from: COCO annotation file whose image ids are used, by the names of the images, so that OUT/results.json
            can be scored against it.
        file_seconds: seconds that a file may take to be read; one that takes longer is skipped, and listed.
        labels: write OUT/labels/NAME.tif, whose pixels have the number of their object, from 1, in 16 bits, or 32 where
            that is too little; where objects overlap, the better one is on top.
        rois: write OUT/rois/NAME.zip, the outlines for ImageJ's ROI Manager.
        geojson: write OUT/geojson/NAME.geojson, the outlines for QuPath and geographic tools, in pixels.
        crops: write each object, cut out and transparent around it, to OUT/crops/NAME/000.png and so on.
        no_overlap: leave pixels of several objects to the one with the best score.
        channel: which channel of images with several shows the objects: its number, from 1, or its name.
        plane: which plane of a stack or a film: its number, from 1; all of them, each as an image of its own; or max,
            the brightest values along Z, for each time point.
        intensity_range: values that become black and white, such as 100,4000, or percentiles such as 1%,99.8%, instead
            of those that follow from the image or the model.
        classes: names of classes, such as car,person: leave out the objects of others, which max_objects counts.

    Returns:
        Counts, and the images that could not be read, which are skipped.

    Raises:
        SOTRError: an input does not exist or holds no images, a setting is out of range, the model cannot be used,
            or the results cannot be written.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise SOTRError(f"{out} is a file; give a folder for the results with --out")
    inputs = Inputs.of(pictures)
    share = choose_shard(shard, shards, chunk_size)
    wanted = _Wanted(overlays, csv, masks, polygons, labelme, labels, rois, geojson, crops)
    choice = Choice.of(channel, plane, intensity_range)
    if rois:
        check_roifile()
    asked = ", ".join(part for part in (str(wanted), "ids_from" if ids_from is not None else "") if part)
    if share is not None and plane in (ALL, MAX):
        raise SOTRError("shards are of images with one plane; give its number, or leave out --shards")
    if share is not None and (inputs.videos or asked):
        raise SOTRError(f"shards are of images, and write JSON lines only; leave out {asked or 'videos'}")
    if inputs.videos:
        check_packages()
        if not inputs.pictures and asked:
            raise SOTRError(f"{asked} are of images; what a video holds is in its .frames.jsonl")
    paths, left_out = _chosen(inputs, out) if share is None and inputs.pictures else ([], 0)
    ids: Sequence[int | None] = [None] * len(paths) if ids_from is None else image_ids(Path(ids_from), paths)
    if isinstance(model, (str, Path)):
        model = load(model, device if share is None else device_of_rank(device, model), precision, engine)
        if inputs.videos or tile is not None or len(paths) >= ENGINE_AFTER:
            model.accelerate()
    if decode is not None:
        model.change_decoding(decode)
    if tile == "auto":
        tile = max(MIN_TILE, good_tile(model.edges, model.training_size))
    score = model.options_for(None, None).score_threshold if score is None else score
    how = (choice, no_overlap, classes.split(",") if isinstance(classes, str) else classes)
    segmentation = Segmentation(model, score, max_objects, batch_size, tile, overlap, file_seconds, *how)
    segmentation.check()  # the limits, before anything is written
    try:
        if share is not None:
            return PredictionSummary(*predict_shard(segmentation, inputs, share, out, quiet), out)
        summary = PredictionSummary(0, 0, [], out)
        if left_out and not quiet:
            Console(highlight=False).print(
                f"{left_out} overlays and masks of an earlier run in {escape(str(out))} left out"
            )
        if paths:
            with ledger(out, paths) as written:
                summary = _predict_pictures(segmentation, paths, written, wanted, ids, quiet)
            _tell_removed(written, quiet)
        if inputs.videos:
            frames, objects, failures = predict_videos(segmentation, inputs.videos, out, overlays, quiet)
            summary = PredictionSummary(
                summary.pictures + frames, summary.objects + objects, [*summary.failures, *failures], out
            )
        return summary
    except OSError as error:
        raise SOTRError(
            f"cannot write to {out}: {error.strerror or error}; choose another folder with --out"
        ) from error


def _tell_removed(written: Ledger, quiet: bool) -> None:
    console = Console(quiet=quiet, highlight=False, soft_wrap=True, markup=False)
    if written.removed:
        console.print(f"{counted(written.removed, 'file')} of an earlier run in {written.out} removed")
    if written.changed:
        console.print(
            f"{counted(len(written.changed), 'file')} of an earlier run left, changed since: {some(written.changed)}"
        )


def _chosen(inputs: Inputs, out: Path) -> tuple[list[Path], int]:
    """The images to segment, and how many results of an earlier run are left out."""
    found = inputs.paths()
    named = {Path(item) for item in inputs.pictures}
    paths = [path for path in found if path in named or not is_earlier_result(path, out)]
    if not paths:
        raise SOTRError(f"only results of an earlier run were found, in {out}; name the images to segment")
    return paths, len(found) - len(paths)


def _predict_pictures(
    segmentation: Segmentation,
    paths: Sequence[Path],
    written: Ledger,
    wanted: _Wanted,
    ids: Sequence[int | None],
    quiet: bool,
) -> PredictionSummary:
    """Segment images into one set of result files."""
    started, out = time.perf_counter(), written.out
    console = Console(quiet=quiet, highlight=False, soft_wrap=True)
    model = segmentation.model
    picked, kinds = pick(paths, segmentation.choice)
    for kind, count in kinds.items():
        console.print(f"{counted(count, 'file')} of {escape(kind)}")
    if len(picked) != len(paths):
        if any(number is not None for number in ids):
            raise SOTRError("the planes of stacks have no ids in another file; leave out --ids-from")
        ids = [None] * len(picked)
    root, file_names = relative_names([each.path for each in picked])
    file_names = [each.named(name) for each, name in zip(picked, file_names, strict=True)]
    own_paths = [each.own_path for each in picked]
    names = output_names(own_paths, relative_names(own_paths)[1], out)
    report = Report(one_class=len(model.class_names) == 1)
    given = segmentation.choice.intensity is not None or model.intensity is not None
    remarks = Remarks(model.edges, model.training_size, model.domain, given, segmentation.tile is not None)
    failures: list[tuple[str, str]] = []
    undrawn = large = 0
    info = {
        "description": "objects found by SOTR",
        "model": model.name,
        "version": version("sotr"),
        "score": segmentation.score,
        "images_root": str(root),
    }
    waits = Waits()
    with ExitStack() as stack:
        advance = stack.enter_context(
            progress(len(picked), not quiet and (len(picked) > 1 or segmentation.tile is not None))
        )
        files = stack.enter_context(result_files(out, info, model.class_names, model.category_ids, wanted.polygons))
        table = stack.enter_context(table_file(out / TABLE_FILE)) if wanted.csv else None
        writer = stack.enter_context(write_behind(waits))
        segmented = segment_files(segmentation, picked, waits, advance, wanted.overlays or wanted.crops)
        for picture, file_name, name, image_id in zip(segmented, file_names, names, ids, strict=True):
            if picture.instances is None:
                failures.append((printable(picture.picked.named(str(picture.picked.path))), printable(picture.error)))
                continue
            undrawn += picture.image is None
            remarks.add(file_name, picture.instances.image_size, picture.traits)
            # A mask is an image of the same size, and there may be thousands.
            whole = math.prod(picture.instances.image_size) <= MAX_PIXELS
            large += not whole
            own = wanted if whole else replace(wanted, masks=False, labels=False)
            writer.do(partial(_write, files, table, report, picture, file_name, written, name, own, image_id))
    told = [PREDICTIONS_FILE, RESULTS_FILE] + [TABLE_FILE] * wanted.csv
    written.note(out / name for name in told)

    if report.pictures:
        console.print(report.table())
    extra = [counted(report.pictures - undrawn, "overlay")] * wanted.overlays
    extra += [f"{name} in {name}/" for name in FOLDERS if getattr(wanted, name)]
    console.print(
        f"{report.pictures} of {counted(len(picked), 'image')} in {time.perf_counter() - started:.1f} s; "
        f"in {escape(str(out))}: {', '.join(told + extra)}"
    )
    limit = f"of more than {MAX_PIXELS / 1e6:.0f} megapixels"
    if wanted.overlays and undrawn:
        console.print(f"no overlay of {counted(undrawn, 'image')} {limit}")
    if large and (lacking := [word for name, word in TOO_LARGE.items() if getattr(wanted, name)]):
        console.print(f"no {', '.join(lacking)} of {counted(large, 'image')} {limit}")
    if table is not None and table.unmeasured:
        console.print(f"no intensities of {counted(table.unmeasured, 'image')}, too large to be read at once")
    for line in remarks.lines():
        console.print(escape(line))
    print_failures(failures)
    return PredictionSummary(report.pictures, report.objects, failures, out)


def _write(
    files: ResultFiles,
    table: Table | None,
    report: Report,
    picture: Segmented,
    file_name: str,
    written: Ledger,
    name: str,
    wanted: _Wanted,
    image_id: int | None,
) -> None:
    """Write all that is asked for of one image."""
    instances, out, path = picture.instances, written.out, picture.picked.path
    assert instances is not None
    files.add(file_name, instances, image_id)
    done: list[Path] = []

    def place(folder: str, suffix: str) -> Path:
        done.append(out / folder / f"{name}{suffix}")
        return done[-1]

    if picture.image is not None and wanted.overlays:
        write_png(place("", OVERLAY_SUFFIX), instances.draw(picture.image))
    if picture.image is not None and wanted.crops:
        done += write_crops(out / CROPS_FOLDER / name, instances, picture.image)
    if wanted.masks:
        done += write_masks(out / MASKS_FOLDER / name, instances)
    if wanted.labelme:
        write_labelme(place("labelme", ".json"), instances, path)
    if wanted.labels:
        write_labels(place(LABELS_FOLDER, ".tif"), instances, pixel_size_um(path))
    if wanted.rois:
        write_rois(place("rois", ".zip"), instances)
    if wanted.geojson:
        write_geojson(place("geojson", ".geojson"), instances)
    if table is not None:
        table.add(file_name, instances, picture.picked)
    written.note(done)
    report.add(file_name, instances)
