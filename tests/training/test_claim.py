import multiprocessing
import os
import signal
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from sotr.errors import SOTRError
from sotr.training.claim import LOCK, claimed


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
