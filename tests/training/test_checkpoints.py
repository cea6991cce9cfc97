"""What a crash at any moment of saving leaves behind."""

import errno
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from sotr import files
from sotr.errors import SOTRError
from sotr.training.checkpoints import CheckpointFiles, load_checkpoint, newest_checkpoint, remove_leftovers


def contents(step: int) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((300,), float(step))}, "loops": {}, "global_step": step}


def save(run: Path, step: int) -> None:
    CheckpointFiles().save_checkpoint(contents(step), run / "checkpoints" / "last.ckpt")


def newest(run: Path) -> int:
    found = newest_checkpoint(run, lambda message: None)
    assert found is not None
    assert found[1]["state_dict"]["weight"].unique().tolist() == [float(found[1]["global_step"])]
    return int(found[1]["global_step"])


class _Cut:
    """Counts what goes to the disk, and strikes at one of these moments."""

    def __init__(self, moment: int, strike: Any) -> None:
        self.moment, self.strike, self.passed = moment, strike, 0

    def now(self) -> bool:
        self.passed += 1
        return self.passed == self.moment


class _File:
    """A file whose writes may be cut in the middle."""

    def __init__(self, file: Any, cut: _Cut) -> None:
        self._file, self._cut = file, cut

    def write(self, data: Any) -> int:
        if self._cut.now():
            self._file.write(bytes(data)[: len(data) // 2])
            self._file.flush()
            self._cut.strike()
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def cutting(cut: _Cut) -> Iterator[None]:
    """Strike before the n-th write, fsync or rename."""

    def guarded(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if cut.now():
                cut.strike()
            return function(*arguments, **options)

        return call

    plainly = torch.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "fsync", guarded(os.fsync))
        patch.setattr(files.os, "replace", guarded(os.replace))
        patch.setattr(torch, "save", lambda content, file: plainly(content, _File(file, cut)))
        yield


def _die() -> NoReturn:
    os._exit(9)


def _save_and_die(run: Path, moment: int) -> None:
    with cutting(_Cut(moment, _die)):
        save(run, 3)


def test_a_process_that_dies_at_any_moment_of_saving_leaves_a_checkpoint(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    outcomes = []
    for moment in range(1, 200):
        run = tmp_path / str(moment)
        save(run, 1)
        save(run, 2)
        process = fork.Process(target=_save_and_die, args=(run, moment))
        process.start()
        process.join()
        outcomes.append(newest(run))
        remove_leftovers(run)
        assert {path.name for path in (run / "checkpoints").iterdir()} <= {"last.ckpt", "previous.ckpt"}
        save(run, 4)
        assert newest(run) == 4
        if process.exitcode == 0:  # there were no more moments
            break
    assert len(outcomes) > 8
    assert outcomes == sorted(outcomes)  # the old one before the rename, the new one after it
    assert set(outcomes) == {2, 3}


def test_a_full_disk_leaves_the_checkpoint_and_says_so(tmp_path: Path) -> None:
    def full() -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(tmp_path, 1)
    for moment in range(1, 200):
        cut, message = _Cut(moment, full), ""
        try:
            with cutting(cut):
                save(tmp_path, 2)
        except SOTRError as error:
            message = str(error)
        if cut.passed < moment or not message:  # no more moments, or only the sync of the folder's names
            break
        assert "No space left on device" in message
        assert "the checkpoint before it is intact: make room, then continue with --resume" in message
        assert "\n" not in message
        assert newest(tmp_path) == 1
        assert not list((tmp_path / "checkpoints").glob(".*"))
    assert moment > 8
    assert newest(tmp_path) == 2


def test_a_damaged_checkpoint_is_passed_over_with_a_word(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    last = tmp_path / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    said: list[str] = []
    place = whole.index(torch.full((300,), 2.0).numpy().tobytes())
    for damaged in (
        whole[: len(whole) // 2],
        b"",
        whole[: place + 5] + bytes([whole[place + 5] ^ 1]) + whole[place + 6 :],  # one bit of a weight
    ):
        last.write_bytes(damaged)
        said.clear()
        found = newest_checkpoint(tmp_path, said.append)
        assert found is not None
        assert found[0].name == "previous.ckpt"
        assert found[1]["global_step"] == 1
        assert "last.ckpt is not a checkpoint that can be read" in said[0]
        assert "going on from previous.ckpt instead, after step 1" in said[0]
    assert "the checksum of" in said[0]
    (tmp_path / "checkpoints" / "previous.ckpt").unlink()
    with pytest.raises(SOTRError, match=r"last\.ckpt is not a checkpoint that can be read"):
        newest_checkpoint(tmp_path, said.append)
    last.unlink()
    assert newest_checkpoint(tmp_path, said.append) is None


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(SOTRError, match=r"other\.ckpt is not a checkpoint of a training"):
        load_checkpoint(tmp_path / "other.ckpt")
