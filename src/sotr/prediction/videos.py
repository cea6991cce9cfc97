"""Videos and cameras: their frames are segmented and the objects followed from one to the next."""

import csv
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from sotr.errors import SOTRError
from sotr.files import atomic_write
from sotr.prediction.output import output_names, printable, relative_names
from sotr.prediction.pipeline import Segmentation, Waits, write_behind
from sotr.prediction.report import counted, print_failures, progress
from sotr.prediction.video_files import Frame, film, open_camera, open_video, read_ahead
from sotr.results.drawing import draw_overlay
from sotr.results.instances import Instances

VIDEO_SUFFIX, FRAMES_SUFFIX, COUNTS_SUFFIX = ".overlay.mp4", ".frames.jsonl", ".counts.csv"

LOST_SECONDS = 1.0
"""An object that is not seen for longer than this gets a new number when it comes back."""


def check_packages() -> None:
    """Refuse to begin without the packages for videos.

    Raises:
        SOTRError: names the one that is missing.
    """
    for package in ("trackers", "av"):
        if find_spec(package) is None:
            raise SOTRError(f"videos need the package {package}; install it with: pip install 'sotr[video]'")


def predict_videos(
    segmentation: Segmentation, videos: Sequence[Path | int], out: Path, overlays: bool, quiet: bool
) -> tuple[int, int, list[tuple[str, str]]]:
    """Segment videos one after the other; see `sotr.predict` for what is written.

    Returns:
        Frames and objects in all, and (video, reason) of each that could not be read.

    Raises:
        OSError: the results cannot be written.
    """
    paths = [Path(f"camera-{video}") if isinstance(video, int) else video for video in videos]
    _, file_names = relative_names(paths)
    names = output_names(paths, file_names, out, VIDEO_SUFFIX)
    frames, objects, failures = 0, 0, []
    for video, path, name in zip(videos, paths, names, strict=True):
        try:
            counts = _predict_video(segmentation, video, out, name, overlays, quiet)
        except SOTRError as error:
            failures.append((printable(str(path)), printable(str(error))))
        else:
            frames, objects = frames + counts[0], objects + counts[1]
    print_failures(failures, "video")
    return frames, objects, failures


def _predict_video(
    segmentation: Segmentation, source: Path | int, out: Path, name: str, overlays: bool, quiet: bool
) -> tuple[int, int]:
    started, waits = time.perf_counter(), Waits()
    frames = objects = 0
    with ExitStack() as stack:
        video = stack.enter_context(open_camera(source) if isinstance(source, int) else open_video(source))
        ahead = stack.enter_context(closing(read_ahead(video.frames)))
        # A file without a single readable frame is found out before anything is written.
        first = next(ahead, None)
        if first is None:
            raise SOTRError("holds no images")
        target = stack.enter_context(atomic_write(out / f"{name}{VIDEO_SUFFIX}")) if overlays else None
        lines = stack.enter_context(atomic_write(out / f"{name}{FRAMES_SUFFIX}", "w"))
        table = csv.writer(stack.enter_context(atomic_write(out / f"{name}{COUNTS_SUFFIX}", "w")), lineterminator="\n")
        table.writerow(["frame", "seconds", "objects", "tracks", *segmentation.model.class_names])
        add_picture = stack.enter_context(film(target, video.rate)) if target is not None else None
        writer = stack.enter_context(write_behind(waits))
        advance = stack.enter_context(progress(video.length, not quiet))
        tracks = _Tracks(segmentation.score, video.rate)
        batch = [first]
        try:
            while batch:
                with waits.timing("network"):
                    found = segmentation.of_images([frame.image for frame in batch])
                for frame, instances in zip(batch, found, strict=True):
                    tracks_I = tracks.follow(instances)
                    writer.do(partial(_write, frame, instances, tracks_I, tracks.number, lines, table, add_picture))
                    frames, objects = frames + 1, objects + len(instances)
                advance(len(batch))
                with waits.timing("reading"):
                    batch = list(islice(ahead, segmentation.batch_size))
        except (KeyboardInterrupt, SystemExit):
            # So ends a camera, with Ctrl-C or SIGTERM; what is half done of a file is dropped.
            if not isinstance(source, int):
                raise
    seconds = max(time.perf_counter() - started, 1e-9)
    Console(quiet=quiet, highlight=False, soft_wrap=True).print(
        f"{counted(frames, 'frame')} in {seconds:.1f} s, {frames / seconds:.1f} per second, "
        f"{counted(objects, 'object')} on {counted(tracks.number, 'track')}; in {escape(str(out))}: {escape(name)}"
        f"{', '.join([VIDEO_SUFFIX] * overlays + [FRAMES_SUFFIX, COUNTS_SUFFIX])}\ntime: {waits}"
    )
    return frames, objects


class _Tracks:
    """Gives objects that go on from the frames before the number that they had there."""

    def __init__(self, score: float, rate: float) -> None:
        from trackers import ByteTrackTracker

        # Every object is above the threshold: what is below it was never returned.
        self._tracker = ByteTrackTracker(
            lost_track_buffer=round(30 * LOST_SECONDS),  # counted at 30 frames per second, whatever the rate
            frame_rate=rate,
            track_activation_threshold=score,
            high_conf_det_threshold=score,
        )
        self.number = 0
        """Tracks so far."""

    def follow(self, instances: Instances) -> list[int]:
        """The track of each object, from 0; -1 for one that was not seen before."""
        import supervision

        detections = supervision.Detections(
            xyxy=instances.boxes_I4, confidence=instances.scores_I, class_id=instances.labels_I
        )
        detections.data["position"] = np.arange(len(instances))
        tracked = self._tracker.update(detections)
        tracks_I = np.full(len(instances), -1)
        if len(tracked):
            tracks_I[tracked.data["position"]] = tracked.tracker_id
        self.number = max(self.number, int(tracks_I.max(initial=-1)) + 1)
        return tracks_I.tolist()


def _write(
    frame: Frame,
    instances: Instances,
    tracks_I: Sequence[int],
    tracks: int,
    lines: IO[str],
    table: Any,
    add_picture: Callable[[NDArray[np.uint8], float], None] | None,
) -> None:
    """Write all that is asked for of one frame."""
    content = instances.to_json()
    for entry, track in zip(content["objects"], tracks_I, strict=True):
        entry["track"] = None if track < 0 else track
    line = {"frame": frame.number, "seconds": round(frame.seconds, 3)} | content
    del line["classes"]
    lines.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
    counts = np.bincount(instances.labels_I, minlength=len(instances.class_names)).tolist()
    table.writerow([frame.number, round(frame.seconds, 3), len(instances), tracks, *counts])
    if add_picture is not None:
        add_picture(draw_overlay(instances, frame.image, tracks=tracks_I), frame.seconds)
