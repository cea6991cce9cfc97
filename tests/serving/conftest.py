"""A real server in a process of its own."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from filelock import FileLock

import sotr
from sotr.results.instances import Instances
from sotr.serving.answers import to_png
from sotr.serving.sample import draw_sample
from tests.conftest import run_folder
from tests.support.commands import Command


class Server:
    """`sotr serve` on a free port, which may open so many files; `url` ends with a slash.

    `script` is Python that runs before the command in its process.
    """

    def __init__(self, *arguments: str, files: int | None = None, script: str = "") -> None:
        self.process = Command(["serve", "--port", "0", *arguments], script, files)
        line = self.process.stdout.readline()
        assert "http://127.0.0.1:" in line, line + self.process.stderr.read()
        self.url = line.split()[3]
        self.port = int(self.url.rstrip("/").rpartition(":")[2])
        self.http = httpx.Client(base_url=self.url, timeout=120)

    def post(self, body: object, address: str = "predict", kind: str = "application/octet-stream") -> httpx.Response:
        return self.http.post(address, content=body, headers={"Content-Type": kind})  # type: ignore[arg-type]

    def metric(self, name: str) -> float:
        lines = self.http.get("metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split()[0].partition("{")[0] == name)

    def alive(self) -> bool:
        return self.process.poll() is None and self.http.get("healthz").json() == {"status": "ok"}


@contextmanager
def running(*arguments: str, files: int | None = None, script: str = "") -> Iterator[Server]:
    server = Server(*arguments, files=files, script=script)
    try:
        yield server
    finally:
        server.http.close()
        server.process.kill()
        server.process.communicate()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the bundled model and the default limits, but patient, for the machine may be busy; not to be stopped."""
    with ExitStack() as stack:
        with FileLock(run_folder(tmp_path_factory) / "server.lock"):  # the first makes the engine, others find it
            server = stack.enter_context(running("--timeout", "600"))
        yield server


@pytest.fixture(scope="session")
def nuclei() -> sotr.Segmenter:
    return sotr.load("nuclei", engine="pytorch")


@pytest.fixture(scope="session")
def sample() -> bytes:
    """The server's own sample image, 384 x 512."""
    return to_png(draw_sample())


@pytest.fixture(scope="session")
def expected(nuclei: sotr.Segmenter, sample: bytes) -> Instances:
    """What the model finds in the sample, down to its lowest score."""
    return nuclei.predict(sample, score=nuclei.decode_options.score_threshold)


def problem(response: httpx.Response) -> tuple[int, str, str]:
    """Status, code and message of an error, which is checked to be one line of JSON without a traceback."""
    assert response.headers["content-type"] == "application/json"
    content = response.json()
    assert list(content) == ["error"]
    assert sorted(content["error"]) == ["code", "message"]
    message = content["error"]["message"]
    assert message
    assert "\n" not in message
    assert "Traceback" not in message
    assert "<bytes>" not in message
    return response.status_code, content["error"]["code"], message
