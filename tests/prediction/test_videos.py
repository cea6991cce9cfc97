"""Videos: objects keep their numbers from frame to frame, and what is written can be read."""

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from sotr.cli import run
from sotr.errors import SOTRError
from sotr.prediction import predict
from sotr.prediction.video_files import Frame, Video, film, open_video
from sotr.results.instances import Instances
from tests.prediction.blobs import Blobs, files_of_at_most

pytest.importorskip("trackers", reason="needs trackers: pip install 'sotr[video]'")

FRAMES = 24
SIZE = (120, 160)


def scene(number: int) -> NDArray[np.uint8]:
    """A red and a green disc that cross the image towards each other, and a blue one that comes in the middle."""
    image = np.full((*SIZE, 3), 12, np.uint8)
    cv2.circle(image, (20 + 5 * number, 30), 12, (220, 30, 30), -1)
    cv2.circle(image, (140 - 5 * number, 60), 14, (30, 220, 30), -1)
    if number >= 10:
        cv2.circle(image, (80, 100), 9, (30, 30, 220), -1)
    return image


def render(path: Path, codec: str, frames: int = FRAMES) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 12, SIZE[::-1])
    assert writer.isOpened()
    for number in range(frames):
        writer.write(scene(number)[..., ::-1])
    writer.release()
    return path


def test_objects_are_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    summary = predict([render(tmp_path / "clip.mp4", "mp4v")], Blobs(), out, score=0.3, batch_size=5)
    assert (summary.pictures, summary.objects, summary.failures) == (FRAMES, 2 * FRAMES + 14, [])
    assert sorted(path.name for path in out.iterdir()) == ["clip.counts.csv", "clip.frames.jsonl", "clip.overlay.mp4"]
    printed = capsys.readouterr()
    assert f"{FRAMES} frames in " in printed.out
    assert "62 objects on 3 tracks" in printed.out
    assert printed.err == ""

    lines = [json.loads(line) for line in (out / "clip.frames.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(FRAMES))
    assert [line["seconds"] for line in lines] == pytest.approx([number / 12 for number in range(FRAMES)], abs=0.002)
    tracks: dict[str, set[int]] = {}
    for number, line in enumerate(lines):
        assert (line["height"], line["width"]) == SIZE
        assert {entry["class_name"] for entry in line["objects"]} == {"red", "green", "blue"}.difference(
            {"blue"} if number < 10 else ()
        )
        for entry in line["objects"]:
            first = number == (10 if entry["class_name"] == "blue" else 0)
            assert (entry["track"] is None) == first
            if not first:
                tracks.setdefault(entry["class_name"], set()).add(entry["track"])
            center = coco_mask.decode(entry["segmentation"]).nonzero()
            if entry["class_name"] == "red":
                assert center[1].mean() == pytest.approx(20 + 5 * number, abs=1)
    # One number each, though red and green pass each other.
    assert sorted(len(numbers) for numbers in tracks.values()) == [1, 1, 1]
    assert set.union(*tracks.values()) == {0, 1, 2}

    with (out / "clip.counts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["blue"] for row in rows] == ["0"] * 10 + ["1"] * 14
    assert {(row["red"], row["green"]) for row in rows} == {("1", "1")}
    assert [row["tracks"] for row in rows] == ["0"] + ["2"] * 10 + ["3"] * 13

    # The video is as long, in H.264, which browsers play, and shows the objects painted.
    with open_video(out / "clip.overlay.mp4") as video:
        frames = list(video.frames)
        assert video.rate == pytest.approx(12)
    assert len(frames) == FRAMES
    scale = frames[0].image.shape[0] // SIZE[0]
    assert frames[0].image.shape == (scale * SIZE[0], scale * SIZE[1], 3)
    assert frames[-1].seconds == pytest.approx((FRAMES - 1) / 12, abs=0.01)
    assert b"avc1" in (out / "clip.overlay.mp4").read_bytes()


def test_switches_and_pictures_beside_videos(tmp_path: Path) -> None:
    clip = render(tmp_path / "clip.avi", "MJPG")
    Image.fromarray(scene(12)).save(tmp_path / "still.png")
    out = tmp_path / "out"
    summary = predict([clip, tmp_path / "still.png"], Blobs(), out, overlays=False, quiet=True)
    assert summary.pictures == FRAMES + 1
    assert sorted(path.name for path in out.iterdir()) == [
        ".sotr-written.jsonl", "clip.counts.csv", "clip.frames.jsonl", "predictions.json", "results.json"
    ]  # fmt: skip


def test_results_beside_the_video_leave_it_alone(tmp_path: Path) -> None:
    clips = [render(tmp_path / name, "mp4v", frames=2) for name in ("clip.mp4", "clip.overlay.mp4")]
    before = [clip.read_bytes() for clip in clips]
    assert predict(clips, Blobs(), tmp_path, quiet=True).failures == []
    assert [clip.read_bytes() for clip in clips] == before
    assert (tmp_path / "clip-2.overlay.mp4").exists()
    assert (tmp_path / "clip.overlay.overlay.mp4").exists()


def test_what_cannot_be_read_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = render(tmp_path / "whole.mp4", "mp4v").read_bytes()
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    names = ["text.mp4", "empty.mp4", "cut.mp4"]
    summary = predict([tmp_path / name for name in names], Blobs(), out, quiet=True)
    assert [Path(path).name for path, _ in summary.failures] == names
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[0] == "3 videos could not be read:"
    assert len(printed.err.splitlines()) == 4
    assert "text.mp4: is not a video that can be read; " in printed.err
    assert not out.exists()
    with pytest.raises(SOTRError, match=r"absent\.mp4: no such file"):
        predict([tmp_path / "absent.mp4"], Blobs(), out)
    assert run(["predict", "7", "--out", str(out), "--engine", "pytorch"]) == 1
    assert "camera-7: there is no such camera" in capfd.readouterr().err


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    clip, out = render(tmp_path / "clip.mp4", "mp4v"), tmp_path / "out"
    with (
        files_of_at_most(2000),
        pytest.raises(SOTRError, match=r"cannot write to .*; choose another folder with --out"),
    ):
        predict([clip], Blobs(), out, quiet=True)
    assert list(out.iterdir()) == []


def test_a_camera_ends_with_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Blobs):
        """Ctrl-C is pressed while the seventh frame is in the network."""

        calls = 0

        def predict(self, pictures: Sequence[NDArray[np.uint8]], **settings: Any) -> list[Instances]:
            self.calls += len(pictures)
            if self.calls > 6:
                raise KeyboardInterrupt
            return super().predict(pictures, **settings)

    @contextmanager
    def camera(index: int) -> Iterator[Video]:
        assert index == 0
        yield Video((Frame(number, number / 10, scene(number)) for number in itertools.count()), 10.0, None)

    # There is no camera here; what it shows is drawn.
    monkeypatch.setattr("sotr.prediction.videos.open_camera", camera)
    summary = predict(["0"], Interrupted(), tmp_path, quiet=True)
    assert (summary.pictures, summary.failures) == (6, [])
    assert len((tmp_path / "camera-0.frames.jsonl").read_text().splitlines()) == 6
    with open_video(tmp_path / "camera-0.overlay.mp4") as video:
        assert len(list(video.frames)) == 6
    clip = render(tmp_path / "clip.mp4", "mp4v", frames=9)
    with pytest.raises(KeyboardInterrupt):
        predict([clip], Interrupted(), tmp_path / "out", quiet=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_frames_in_tiles(tmp_path: Path) -> None:
    clip = render(tmp_path / "clip.avi", "MJPG", frames=3)
    for tile in (None, 64):
        out = tmp_path / str(tile)
        assert predict([clip], Blobs(), out, tile=tile, overlays=False, quiet=True).objects == 6
    lines = [(tmp_path / name / "clip.frames.jsonl").read_text().splitlines() for name in ("None", "64")]
    masks = [[[entry["segmentation"] for entry in json.loads(line)["objects"]] for line in text] for text in lines]
    assert masks[0] == masks[1]


def test_masks_of_a_video_are_refused(tmp_path: Path) -> None:
    clip = render(tmp_path / "clip.avi", "MJPG", frames=1)
    for settings in ({"masks": True}, {"csv": True}):
        with pytest.raises(SOTRError, match=r"are of images; .*frames\.jsonl"):
            predict([clip], Blobs(), tmp_path / "out", **settings)


def test_odd_sides_and_uneven_times(tmp_path: Path) -> None:
    with (tmp_path / "a.mp4").open("wb") as file, film(file, 25.0) as add:
        for seconds in (0.0, 0.1, 0.1, 0.9):  # the third is too early for its number
            add(scene(0)[:-1, 1:], seconds)
    with open_video(tmp_path / "a.mp4") as video:
        frames = list(video.frames)
    assert [frame.seconds for frame in frames] == pytest.approx([0.0, 0.1, 0.1, 0.9], abs=0.001)
    assert frames[3].image.shape == (*SIZE, 3)
    assert np.abs(frames[3].image[:-1, :-1].astype(int) - scene(0)[:-1, 1:]).mean() < 6
