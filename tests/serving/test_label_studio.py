"""Label Studio's ML backend: requests as it sends them, and a server that gives images as it does."""

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from fastapi.testclient import TestClient

from sotr.cli import run
from sotr.errors import SOTRError
from sotr.model.segmenter import Segmenter
from sotr.results.instances import Instances
from sotr.serving import Limits, create_app
from sotr.serving.label_studio import LabelStudio
from sotr.serving.settings import Access
from tests.serving.conftest import problem

TOKEN = "c9d0a1f2e3b4"
KEY = "0123456789abcdef-and-more"

CONFIGURATION = """<View><Image name="image" value="$image" zoom="true"/>
<BrushLabels name="tag" toName="image"><Label value="nucleus" background="#FFA39E"/></BrushLabels></View>"""

OTHER_LABELS = CONFIGURATION.replace("nucleus", "a").replace("</Brush", "<Label value='b'/></Brush")


def setup_request(**changes: object) -> dict[str, object]:
    """As Label Studio sends it when a model is connected."""
    return {
        "project": "1.1700000000", "schema": CONFIGURATION, "hostname": "http://localhost:8080", "access_token": TOKEN,
        **changes,
    }  # fmt: skip


def predict_request(*images: object, **changes: object) -> dict[str, object]:
    """As Label Studio sends it for tasks."""
    tasks = [
        {
            "id": 7 + position, "data": {"image": image}, "meta": {}, "created_at": "2024-05-02T10:11:12.0Z",
            "is_labeled": False, "overlap": 1, "inner_id": position + 1, "annotations": [], "predictions": [],
            "project": 1,
        }
        for position, image in enumerate(images)
    ]  # fmt: skip
    return {
        "tasks": tasks, "model_version": None, "project": "1.1700000000", "label_config": CONFIGURATION,
        "params": {"login": None, "password": None, "context": None}, **changes,
    }  # fmt: skip


class Studio(BaseHTTPRequestHandler):
    """Gives the sample to whoever shows the token, and sends others' wishes elsewhere."""

    image = b""
    elsewhere = ""
    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Authorization"]))
        if self.path.startswith("/tasks/7/presign/"):
            self.send_response(303)
            self.send_header("Location", f"{self.elsewhere}/bucket/cells.png")
            self.end_headers()
            return
        known = self.path.startswith(("/data/", "/bucket/"))
        allowed = self.path.startswith("/bucket/") or self.headers["Authorization"] == f"Token {TOKEN}"
        self.send_response(200 if known and allowed else 401 if known else 404)
        self.end_headers()
        if known and allowed:
            self.wfile.write(self.image)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def addresses(sample: bytes) -> Iterator[tuple[str, str]]:
    """Of Label Studio, and of a store of images."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Studio) as one, ThreadingHTTPServer(("127.0.0.1", 0), Studio) as other:
        for each in (one, other):
            threading.Thread(target=each.serve_forever, daemon=True).start()
        Studio.image, Studio.elsewhere = sample, f"http://127.0.0.1:{other.server_port}"
        yield f"http://127.0.0.1:{one.server_port}", Studio.elsewhere
        for each in (one, other):
            each.shutdown()


@pytest.fixture
def backend(nuclei: Segmenter, addresses: tuple[str, str]) -> Iterator[TestClient]:
    app = create_app(nuclei, Limits(), 1, b"", access_log=False, access=Access(KEY), studio=LabelStudio(addresses))
    with TestClient(app, base_url="http://localhost", headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def test_a_model_is_connected_and_labels_tasks(
    backend: TestClient, addresses: tuple[str, str], expected: Instances, sample: bytes
) -> None:
    assert backend.get("/label-studio/health").json()["status"] == "UP"
    version = backend.post("/label-studio/setup", json=setup_request()).json()["model_version"]
    assert version.startswith("nuclei-")
    Studio.seen.clear()
    images = (
        "/data/upload/1/a cell.png", addresses[0] + "/data/local-files/?d=b.png", "s3://cells/c.png",
        addresses[1] + "/bucket/d.png", "data:image/png;base64," + base64.b64encode(sample).decode(),
    )  # fmt: skip
    answer = backend.post("/label-studio/predict", json=predict_request(images[2], *images)).json()
    assert answer["model_version"] == version
    count = int((expected.scores_I > 0.3).sum())
    assert [len(result["result"]) for result in answer["results"][:1] + answer["results"][1:3]] == [count] * 3
    assert [len(result["result"]) for result in answer["results"][4:]] == [count] * 2
    region = answer["results"][0]["result"][0]
    assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "tag", "image")
    assert (region["original_width"], region["original_height"]) == (512, 384)
    assert region["value"]["brushlabels"] == ["nucleus"]
    # The token goes to Label Studio alone, not to where that leads nor to others.
    assert {who for path, who in Studio.seen if path.startswith("/bucket/")} == {None}
    assert {who for path, who in Studio.seen if path.startswith("/data/")} == {f"Token {TOKEN}"}


def test_polygons_are_those_of_the_configuration(backend: TestClient) -> None:
    configuration = CONFIGURATION.replace("Brush", "Polygon")
    backend.post("/label-studio/setup", json=setup_request(schema=configuration))
    request = predict_request("/data/a.png", label_config=configuration)
    (result,) = backend.post("/label-studio/predict", json=request).json()["results"]
    points = [point for region in result["result"] for point in region["value"]["points"]]
    assert 0 <= min(map(min, points)) <= max(map(max, points)) <= 100
    assert {region["type"] for region in result["result"]} == {"polygonlabels"}


def test_a_task_whose_image_cannot_be_had_has_an_empty_result(
    backend: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    backend.post("/label-studio/setup", json=setup_request())
    images = [
        "http://169.254.169.254/latest",
        "/nothing",
        "file:///etc/passwd",
        "data:image/png;base64,%",
        5,
        "\x00",
        "/data/a",
    ]
    answer = backend.post("/label-studio/predict", json=predict_request(*images))
    assert answer.status_code == 200
    *failed, good = answer.json()["results"]
    assert good["result"]
    assert [result["result"] for result in failed] == [[]] * 6
    words = ["not fetched from", "answers 404", "not fetched from", "no base64", "no text 'image'", "not fetched from"]
    for result, part in zip(failed, words, strict=True):
        assert part in result["error"]
    assert caplog.text.count("Label Studio's task") == 6
    assert backend.post("/label-studio/predict", json=predict_request()).json()["results"] == []


def test_without_a_token_the_remedy_is_said(backend: TestClient) -> None:
    (result,) = backend.post("/label-studio/predict", json=predict_request("/data/a.png")).json()["results"]
    assert result["error"].endswith("answers 401; set LABEL_STUDIO_API_KEY")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("setup", setup_request(schema="<View/>"), 422, "no_labels"),
        ("setup", setup_request(schema=OTHER_LABELS), 422, "no_labels"),
        ("setup", {}, 400, "no_labels"),
        ("setup", [], 400, "bad_json"),
        ("predict", predict_request(label_config=None), 400, "no_labels"),
        ("predict", predict_request(tasks="x"), 400, "no_tasks"),
        ("predict", predict_request(tasks=[5]), 400, "no_tasks"),
        ("predict", predict_request(*["/data/a.png"] * 3000), 422, "too_many_images"),
        ("predict", predict_request("x" * 9_000_000), 413, "body_too_large"),
        ("train", {}, 404, "not_found"),
    ],
)  # fmt: skip
def test_bad_requests_are_said_in_one_line(
    backend: TestClient, path: str, body: object, status: int, code: str
) -> None:
    assert problem(backend.post(f"/label-studio/{path}", json=body))[:2] == (status, code)


def test_the_key_may_be_a_password(backend: TestClient) -> None:
    """Label Studio sends a name and a password."""
    assert backend.get("/label-studio/health", headers={"Authorization": ""}).status_code == 401
    for password, status in ((KEY, 200), (KEY + "x", 401), ("", 401)):
        basic = base64.b64encode(f"anyone:{password}".encode()).decode()
        assert backend.get("/label-studio/health", headers={"Authorization": f"Basic {basic}"}).status_code == status
    assert backend.get("/label-studio/health", headers={"Authorization": "Basic %%%"}).status_code == 401


def test_addresses_come_from_the_command_or_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert LabelStudio.of(None, {}).addresses == ("http://localhost:8080",)
    environment = {"LABEL_STUDIO_URL": "https://a.example/", "LABEL_STUDIO_API_KEY": "x"}
    assert LabelStudio.of(None, environment) == LabelStudio(("https://a.example",), "x")
    assert LabelStudio.of("http://b:1, https://c", environment).addresses == ("http://b:1", "https://c")
    with pytest.raises(SOTRError, match="label_studio_url has 'b"):
        LabelStudio.of("b.example", {})
    assert run(["serve", "--label-studio-url", "http://a"]) == 2
    assert "--label-studio only" in capsys.readouterr().err
