"""Files that keep a decoder busy for minutes are refused, or their process is ended; the others are as before."""

import io
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sotr.data.costly import MAX_SCANS, scans_of
from sotr.data.decoding_pool import DecodingMemoryError, DecodingPool, DecodingTimeoutError, Job
from sotr.data.images import PictureTooLargeError, load_image
from sotr.errors import SOTRError
from sotr.serving.problems import RequestError
from tests.support.slow_files import jpeg_of_scans


def plain_pgm(numbers: int, between: bytes = b" ") -> bytes:
    return b"P2\n%d 1\n255\n" % numbers + between.join([b"7"] * numbers)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodingPool]:
    with DecodingPool(1) as pool:
        yield pool


def png(path: Path, seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(image).save(path)
    return image


def test_scans_are_counted_in_the_first_image_alone() -> None:
    plain = scans_of(jpeg_of_scans(0), 1000)
    assert 1 < plain < 20
    assert scans_of(jpeg_of_scans(300), 1000) == plain + 300
    # What a segment holds is no marker, and what follows the end is another image.
    noise = b"\xff\xe5\x20\x02" + b"\xff\xda" * 4096
    jpeg = jpeg_of_scans(0)
    assert scans_of(jpeg[:2] + noise + jpeg[2:] + jpeg_of_scans(300), 100) == plain


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (jpeg_of_scans(MAX_SCANS), f"more than {MAX_SCANS} scans"),
        (plain_pgm(2_500_000), "values as text, of more than 4 MB"),
        (plain_pgm(200, b"\n#x\n"), "more than 100 comments"),
    ],
)
def test_costly_files_are_refused_before_they_are_decoded(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    path.write_bytes(content)
    for source in (content, path):
        started = time.perf_counter()
        with pytest.raises(SOTRError, match=words):
            load_image(source)
        assert time.perf_counter() - started < 2


def test_files_of_the_same_kinds_that_are_not_costly_are_read() -> None:
    assert load_image(jpeg_of_scans(100)).shape == (64, 64, 3)
    assert load_image(plain_pgm(1000, b"\n")).shape == (1, 1000, 3)


def test_images_and_refusals_are_those_of_load_image(
    pool: DecodingPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = png(tmp_path / "é.png")
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "é.png", "é.png", (tmp_path / "é.png").read_bytes()):
        np.testing.assert_array_equal(pool.load(source), image)
    for source in ("absent.png", tmp_path, b"", b"nonsense", (tmp_path / "é.png").read_bytes()[:900]):
        with pytest.raises(SOTRError) as direct:
            load_image(source)
        with pytest.raises(SOTRError) as pooled:
            pool.load(source)
        assert str(pooled.value) == str(direct.value)
    with pytest.raises(PictureTooLargeError, match="50 x 40"):
        pool.load("é.png", max_pixels=1999)
    assert pool.load("é.png").flags.writeable
    assert pool.ended == 0


SLOW = jpeg_of_scans(240, 6000)
"""Within the limit of scans, and seconds of work."""


def test_a_file_that_takes_too_long_is_given_up_and_its_process_replaced(tmp_path: Path) -> None:
    image = png(tmp_path / "x.png")
    with DecodingPool(1) as pool:
        for options, words in (
            ({"seconds": 0.8}, "longer than 0.8 s to"),
            ({"processor_seconds": 0.3}, "0.3 s of proc"),
        ):
            started = time.perf_counter()
            with pytest.raises(DecodingTimeoutError, match=words):
                pool.load(SLOW, **options)
            assert time.perf_counter() - started < 5
            np.testing.assert_array_equal(pool.load(tmp_path / "x.png", seconds=60), image)
        assert pool.ended == 2
        assert pool.busy == 0


def test_work_can_be_given_up_and_closing_leaves_no_process(tmp_path: Path) -> None:
    pool, job, errors = DecodingPool(1), Job(), []
    pool.start()

    def work() -> None:
        with pytest.raises(DecodingTimeoutError) as raised:
            pool.load(SLOW, job=job)
        errors.append(raised.value)

    for end in (job.give_up, pool.close):
        thread = threading.Thread(target=work)
        thread.start()
        while not pool.busy:
            time.sleep(0.01)
        time.sleep(0.3)
        assert pool.longest > 0.2
        end()
        thread.join(10)
        assert not thread.is_alive()
        job = Job()
    assert len(errors) == 2
    with pytest.raises(DecodingTimeoutError, match="given up"):
        pool.load(SLOW)


def refused(pool: DecodingPool, seconds: float) -> None:
    with pytest.raises(SOTRError):
        pool.load(SLOW, seconds=seconds)


def test_who_waits_for_a_process_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    png(tmp_path / "x.png")
    with DecodingPool(1) as pool:
        thread = threading.Thread(target=refused, args=(pool, 2.0))
        thread.start()
        while not pool.busy:
            time.sleep(0.01)
        with pytest.raises(DecodingTimeoutError, match=r"longer than 0\.2 s"):
            pool.load(tmp_path / "x.png", seconds=0.2)
        thread.join()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are not listed here")
def test_a_process_that_breaks_off_costs_one_file_alone(tmp_path: Path) -> None:
    image, others = png(tmp_path / "x.png"), _children()
    with DecodingPool(1) as pool:
        thread = threading.Thread(target=refused, args=(pool, 60.0))
        thread.start()
        while not pool.busy:
            time.sleep(0.01)
        time.sleep(0.8)
        (child,) = _children() - others
        os.kill(child, signal.SIGSEGV)
        thread.join(10)
        np.testing.assert_array_equal(pool.load(tmp_path / "x.png"), image)
        assert pool.ended == 1


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of other processes cannot be set here")
def test_too_little_memory_is_not_called_a_damaged_file(tmp_path: Path) -> None:
    Image.new("RGB", (10_000, 10_000)).save(tmp_path / "x.png")
    others = _children()
    with DecodingPool(1) as pool:
        pool.start()
        np.testing.assert_array_equal(pool.load(png_bytes()), 7)
        (child,) = _children() - others
        resource.prlimit(child, resource.RLIMIT_AS, (400_000_000, 400_000_000))
        with pytest.raises(DecodingMemoryError, match="too little memory"):
            pool.load(tmp_path / "x.png")
    assert RequestError.of_picture(DecodingMemoryError("x")).status == 503


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 5), (7, 7, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def _children() -> set[int]:
    me, found = os.getpid(), set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_text()
            except OSError:
                continue
            if int(fields[1]) == me and "decoding_worker" in command:
                found.add(int(entry.name))
    return found
