import multiprocessing
import os
import signal
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from sotr.errors import SOTRError
from sotr.files import LOCK, atomic_folder, atomic_write, claimed


def test_block_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path, "w") as file:
        file.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_replaces_and_makes_the_folder(tmp_path):
    path = tmp_path / "new" / "result.bin"
    for content in (b"one", b"two"):
        with atomic_write(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["result.bin"]


def test_result_has_ordinary_permissions(tmp_path):
    with atomic_write(tmp_path / "atomic", "w") as file:
        file.write("x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "data") as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    (tmp_path / "data").mkdir()  # empty: it may be filled
    with atomic_folder(tmp_path / "data") as folder:
        (folder / "whole").touch()
    assert os.listdir(tmp_path) == ["data"]
    assert os.listdir(tmp_path / "data") == ["whole"]
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "data").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(SOTRError, match="is there already"), atomic_folder(tmp_path / "data"):
        pass


def _hold(folder: Path, held: Event) -> None:
    with claimed(folder):
        (folder / "something").touch()
        held.set()
        signal.pause()


def test_one_process_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    folder, held = tmp_path / "runs" / "a", context.Event()
    process = context.Process(target=_hold, args=(folder, held))
    process.start()
    try:
        assert held.wait(60)
        with pytest.raises(SOTRError, match=r"another process works in .*a; wait for it"), claimed(folder):
            pass
        assert (folder / "something").is_file()
    finally:
        process.kill()
        process.join()
    with claimed(folder):
        pass
    assert os.listdir(folder) == ["something"]


def test_a_folder_that_stays_empty_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).is_file()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refusal = pytest.raises(SOTRError, match=r"run cannot be written: .*; name another folder")
    with refusal, claimed(tmp_path / "file" / "run"):
        pass
