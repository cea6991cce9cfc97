import os

import pytest

from sotr.errors import SOTRError
from sotr.files import atomic_folder, atomic_write


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
