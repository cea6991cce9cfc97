"""Shares of many images: none lost, none done twice, whatever happens to the processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sotr.errors import SOTRError
from sotr.files import claimed
from sotr.prediction import predict
from sotr.prediction.shards import Shard, choose_shard, device_of_rank
from tests.prediction.blobs import Blobs, files_of_at_most


def save_picture(path: Path, seed: int) -> Path:
    pixels = np.zeros((12, 16, 3), np.uint8)
    pixels[2:9, 3 : 4 + seed % 9, seed % 3] = 120 + seed
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(11):
        save_picture(folder / f"{seed:02d}.png", seed)
    return folder


def lines_below(out: Path) -> list[dict]:
    """The lines of all complete files."""
    assert not list((out / "shards").glob("*/*.partial"))
    files = sorted((out / "shards").glob("*/*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_shares_make_up_the_whole(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, listed = tmp_path / "out", tmp_path / "list.txt"
    (folder / "text.png").write_text("this is no image")
    pictures = [*sorted(folder.iterdir()), folder / "absent.png"]
    listed.write_text("".join(f"{path}\n" for path in pictures))
    summaries = [
        predict([listed], Blobs(), out, score=0.0, shard=shard, shards=3, chunk_size=2, batch_size=2)
        for shard in (2, 0, 1)
    ]
    assert sum(summary.pictures for summary in summaries) == 11
    assert sorted(Path(name).name for summary in summaries for name, _ in summary.failures) == [
        "absent.png",
        "text.png",
    ]
    assert sorted(contents(out)) == [
        *(f"shards/00000-of-00003/00000{chunk}.jsonl" for chunk in range(3)),
        *(f"shards/00001-of-00003/00000{chunk}.jsonl" for chunk in range(2)),
        *(f"shards/00002-of-00003/00000{chunk}.jsonl" for chunk in range(2)),
        "shards/run.json",
    ]
    lines = {line["file_name"]: line for line in lines_below(out)}
    assert list(lines) == [str(pictures[i]) for i in (*range(0, 13, 3), *range(1, 13, 3), *range(2, 13, 3))]
    assert lines[str(folder / "absent.png")] == {"file_name": str(folder / "absent.png"), "error": "no such file"}
    for seed in range(11):
        found = Blobs().predict([np.array(Image.open(folder / f"{seed:02d}.png"))])[0]
        line = lines[str(folder / f"{seed:02d}.png")]
        assert (line["height"], line["width"]) == (12, 16)
        assert line["objects"] == found.to_json()["objects"]
    printed = capsys.readouterr()
    assert "shard 1 of 3: 4 of 4 images in " in printed.out
    assert "per second" in printed.out
    assert "time: the network " in printed.out
    assert json.loads((out / "shards" / "run.json").read_text())["categories"][1] == {"id": 17, "name": "green"}

    before = contents(out)
    again = predict([listed], Blobs(), out, score=0.0, shard=1, shards=3, chunk_size=2)
    assert (again.pictures, again.failures) == (0, [])
    assert "0 of 0 images (4 before)" in capsys.readouterr().out
    assert contents(out) == before


@pytest.mark.parametrize("cut", [0, 1, 40, 400, 1000, -1])
def test_a_torn_file_is_mended(folder: Path, tmp_path: Path, cut: int) -> None:
    out = tmp_path / "out"
    predict([folder], Blobs(), out, score=0.0, shards=1, chunk_size=8, quiet=True)
    whole = contents(out)
    last = out / "shards" / "00000-of-00001" / "000000.jsonl"
    kept = last.read_bytes()[:cut]
    last.rename(f"{last}.partial").write_bytes(kept)
    again = predict([folder], Blobs(), out, score=0.0, shards=1, chunk_size=8, quiet=True)
    assert again.pictures == 8 - kept.count(b"\n")
    assert contents(out) == whole


def test_a_killed_process_loses_and_repeats_nothing(folder: Path, tmp_path: Path) -> None:
    out, root = tmp_path / "out", Path(__file__).parents[2]
    code = (
        "import sys, time; from sotr.prediction import predict; from tests.prediction.blobs import Blobs\n"
        "class Slow(Blobs):\n"
        "    def predict(self, images, **settings):\n"
        "        time.sleep(0.2 * len(images)); return super().predict(images, **settings)\n"
        "predict([sys.argv[1]], Slow(), sys.argv[2], score=0.0, shards=1, chunk_size=4, quiet=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(out)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"},
    )
    places = out / "shards" / "00000-of-00001"
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        if (places / "000001.jsonl.partial").exists() and (places / "000001.jsonl.partial").stat().st_size > 100:
            break
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = sum(file.read_bytes().count(b"\n") for file in places.iterdir())
    assert 4 < done < 11
    summary = predict([folder], Blobs(), out, score=0.0, shards=1, chunk_size=4, quiet=True)
    assert summary.pictures == 11 - done
    assert [line["file_name"] for line in lines_below(out)] == [str(path) for path in sorted(folder.iterdir())]


def test_a_full_disk_loses_nothing_that_was_done(folder: Path, tmp_path: Path) -> None:
    with files_of_at_most(1500), pytest.raises(SOTRError, match=r"cannot write to .*choose another folder"):
        predict([folder], Blobs(), tmp_path / "out", score=0.0, shards=1, quiet=True)
    again = predict([folder], Blobs(), tmp_path / "out", score=0.0, shards=1, quiet=True)
    assert 0 < again.pictures < 11
    assert [line["file_name"] for line in lines_below(tmp_path / "out")] == [
        str(path) for path in sorted(folder.iterdir())
    ]


def test_a_full_disk_leaves_no_half_written_file(folder: Path, tmp_path: Path) -> None:
    with files_of_at_most(1500), pytest.raises(SOTRError, match=r"cannot write to .*choose another folder"):
        predict([folder], Blobs(), tmp_path / "out", score=0.0, overlays=False, quiet=True)
    assert contents(tmp_path / "out") == {}


def test_results_of_something_else_are_not_mixed_in(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict([folder], Blobs(), out, shards=1, quiet=True)
    before = contents(out)
    for settings, what in (({"score": 0.9}, "score"), ({"shard": 0, "shards": 2}, "shards"), ({"tile": 64}, "tile")):
        with pytest.raises(SOTRError, match=rf"holds a run with other {what}; repeat its command, or choose another"):
            predict([folder], Blobs(), out, quiet=True, **({"shards": 1} | settings))
    retrained = Blobs()
    retrained.digest = lambda: "01"  # type: ignore[method-assign]
    with pytest.raises(SOTRError, match="holds a run with other model"):
        predict([folder], retrained, out, shards=1, quiet=True)
    save_picture(folder / "11.png", 11)
    with pytest.raises(SOTRError, match="holds a run with other images"):
        predict([folder], Blobs(), out, shards=1, quiet=True)
    assert contents(out) == before


TORCHRUN, SLURM = {"RANK": "3", "WORLD_SIZE": "4"}, {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    ("index", "count", "environment", "expected"),
    [
        (None, None, {}, None),
        (None, None, {"RANK": "0", "WORLD_SIZE": "1"}, None),
        (None, 1, {}, (0, 1)),
        (2, 5, {}, (2, 5)),
        (2, 5, TORCHRUN, (2, 5)),
        (None, None, TORCHRUN, (3, 4)),
        (None, 4, TORCHRUN, (3, 4)),
        (None, None, SLURM, (1, 2)),
        (None, None, SLURM | TORCHRUN, (3, 4)),
    ],
)
def test_the_share_of_a_process(
    index: int | None, count: int | None, environment: dict[str, str], expected: tuple[int, int] | None
) -> None:
    assert choose_shard(index, count, 9, environment) == (None if expected is None else Shard(*expected, 9))


@pytest.mark.parametrize(
    ("index", "count", "environment", "message"),
    [
        (1, None, {}, "shard is 1, but of how many"),
        (None, 3, {}, "which of the 3 shards is this"),
        (None, 3, TORCHRUN, "which of the 3 shards is this"),
        (3, 3, {}, "there is no shard 3 of 3"),
        (-1, 3, {}, "there is no shard -1 of 3"),
        (0, 0, {}, "there is no shard 0 of 0"),
        (None, None, {"RANK": "x", "WORLD_SIZE": "2"}, "RANK and WORLD_SIZE must be whole numbers"),
    ],
)
def test_shares_that_cannot_be(index: int | None, count: int | None, environment: dict[str, str], message: str) -> None:
    with pytest.raises(SOTRError, match=message):
        choose_shard(index, count, 9, environment)


def test_what_shards_do_not_write_is_refused(folder: Path, tmp_path: Path) -> None:
    for settings in ({"masks": True}, {"csv": True}, {"chunk_size": 0}):
        with pytest.raises(SOTRError, match=r"leave out (videos|masks|csv)|chunk_size is 0"):
            predict([folder], Blobs(), tmp_path / "out", shards=1, **settings)
    assert not (tmp_path / "out").exists()


def test_a_list_is_taken_without_shards_too(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder / '03.png'}\r\n\n{folder / '01.png'}\n{folder / '03.png'}\n")
    assert predict([listed], Blobs(), tmp_path / "out", score=0.0, quiet=True).pictures == 2
    data = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [image["file_name"] for image in data["images"]] == ["03.png", "01.png"]
    listed.write_text("\n")
    with pytest.raises(SOTRError, match=r"list\.txt: the list is empty; write one path a line"):
        predict([listed], Blobs(), tmp_path / "out", quiet=True)


def test_failures_of_an_earlier_process_are_told_again(folder: Path, tmp_path: Path) -> None:
    (folder / "03.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    first = predict([folder], Blobs(), out, score=0.0, shards=1, chunk_size=8, quiet=True)
    assert [Path(name).name for name, _ in first.failures] == ["03.png"]
    last = out / "shards" / "00000-of-00001" / "000000.jsonl"
    last.rename(f"{last}.partial")
    assert predict([folder], Blobs(), out, score=0.0, shards=1, chunk_size=8, quiet=True).failures == first.failures
    assert predict([folder], Blobs(), out, score=0.0, shards=1, chunk_size=8, quiet=True).failures == first.failures


def test_a_shard_is_one_process_at_a_time(folder: Path, tmp_path: Path) -> None:
    with claimed(tmp_path / "out" / "shards" / "00000-of-00001"):
        with pytest.raises(SOTRError, match=r"another process works in .*00000-of-00001"):
            predict([folder], Blobs(), tmp_path / "out", shards=1, quiet=True)
        predict([folder], Blobs(), tmp_path / "out2", shards=1, quiet=True)


def test_exported_models_take_the_gpu_of_their_rank_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    assert device_of_rank("auto", "a.onnx") == "auto"
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert device_of_rank("auto", "a.onnx") == "auto:3"
    assert device_of_rank("cpu", "a.onnx") == "cpu"
    monkeypatch.setitem(sys.modules, "torch", None)
    assert device_of_rank("auto", Path("b/A.XML")) == "auto:3"
