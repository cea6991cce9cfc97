"""Every address of the real server, with the bundled model."""

import io
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

import sotr
from sotr.results.instances import Instances
from sotr.serving.answers import Prediction
from sotr.serving.app import PAGE
from tests.serving.conftest import Server


def assert_same(answer: dict, instances: Instances) -> None:
    """The objects of a JSON answer with RLE are these."""
    objects = answer["objects"]
    assert (answer["height"], answer["width"]) == instances.image_size
    assert len(objects) == len(instances)
    assert np.allclose([found["score"] for found in objects], instances.scores_I, atol=1e-5)
    for found, rle in zip(objects, instances.rles, strict=True):
        assert coco_mask.iou([found["segmentation"]], [rle], [0])[0, 0] > 0.99


def test_predict_equals_the_model_in_python(server: Server, sample: bytes, expected: Instances) -> None:
    response = server.http.post("predict", files={"image": ("cells.png", sample, "image/png")})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    Prediction.model_validate(answer)
    assert answer["model"] == "nuclei"
    assert answer["classes"] == [{"id": 1, "name": "nucleus"}]
    instances = expected[expected.scores_I > 0.3]
    assert len(instances) > 20
    assert_same(answer, instances)
    for found, row in zip(answer["objects"], instances.to_rows(), strict=True):
        assert (found["class_name"], found["category_id"]) == ("nucleus", 1)
        assert found["area"] == pytest.approx(row["area"], rel=0.01)


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "IMAGE/whatever; x=1"])
def test_raw_bodies(server: Server, sample: bytes, expected: Instances, kind: str) -> None:
    answer = server.post(sample, "predict?score=0.5&max_objects=7", kind).json()
    assert_same(answer, expected[expected.scores_I > 0.5][:7])


def test_polygons_and_png_masks(server: Server, sample: bytes, expected: Instances) -> None:
    best = expected[:3]
    polygons = server.post(sample, "predict?max_objects=3&masks=polygons").json()
    Prediction.model_validate(polygons)
    for found, rle in zip(polygons["objects"], best.rles, strict=True):
        drawn = coco_mask.merge(coco_mask.frPyObjects(found["segmentation"], 384, 512))
        assert coco_mask.iou([drawn], [rle], [0])[0, 0] > 0.99
    pngs = server.post(sample, "predict?max_objects=3&masks=png").json()
    Prediction.model_validate(pngs)
    assert [set(found["segmentation"]) for found in pngs["objects"]] == [{"x", "y", "png"}] * 3


def test_overlay(server: Server, sample: bytes, expected: Instances) -> None:
    response = server.post(sample, "predict?format=overlay&score=0.5")
    assert response.headers["content-type"] == "image/png"
    overlay = np.asarray(Image.open(io.BytesIO(response.content)), np.int16)
    drawn = expected[expected.scores_I > 0.5].draw(Image.open(io.BytesIO(sample)))
    assert overlay.shape == drawn.shape
    assert (np.abs(overlay - drawn).max(2) > 8).mean() < 0.001


def test_many_at_once_get_their_own_answers(server: Server, nuclei: sotr.Segmenter, sample: bytes) -> None:
    """Images of two padded sizes, in one server's batches, each as if it were alone."""
    whole = np.asarray(Image.open(io.BytesIO(sample)))
    pictures = [whole, whole[:, ::-1], whole[::-1], whole[:256, :256], whole[100:356, 200:456]]
    files = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        files.append(buffer.getvalue())
    batches = server.metric("sotr_batch_size_count")
    with ThreadPoolExecutor(len(files)) as clients:
        answers = list(clients.map(lambda body: server.post(body, "predict?score=0.4").json(), files))
    assert server.metric("sotr_batch_size_count") <= batches + len(files)
    for answer, picture in zip(answers, pictures, strict=True):
        alone = nuclei.predict(picture.copy(), score=0.39)
        sure = alone[alone.scores_I > 0.41]
        # Scores differ in the sixth digit between batch sizes, which may matter at the very threshold.
        assert len(sure) <= len(answer["objects"]) <= len(alone)
        assert np.allclose([found["score"] for found in answer["objects"]][: len(sure)], sure.scores_I, atol=1e-4)


def test_tiles_find_small_objects_of_large_images_and_shrinking_is_said(
    server: Server, nuclei: sotr.Segmenter, sample: bytes
) -> None:
    mosaic = np.tile(np.asarray(Image.open(io.BytesIO(sample))), (6, 5, 1))  # 2304 x 2560
    buffer = io.BytesIO()
    Image.fromarray(mosaic).save(buffer, "PNG")
    whole = server.post(buffer.getvalue(), "predict?score=0.5").json()
    (note,) = whole["notes"]
    assert note.startswith("the image was shrunk by a factor of 4.5")
    assert note.endswith("with the setting tile=512")
    tiled = server.post(buffer.getvalue(), "predict?score=0.5&tile=1024&overlap=0.1").json()
    assert tiled["notes"] == []
    expected = nuclei.predict(mosaic, score=0.5, tile=1024, overlap=0.1)
    assert abs(len(tiled["objects"]) - len(expected)) <= 0.01 * len(expected)
    assert len(tiled["objects"]) > 2 * len(whole["objects"])
    assert server.post(sample).json()["notes"] == []
    response = server.post(buffer.getvalue(), "predict?score=0.5&format=overlay")
    assert response.headers["x-note"] == note


def test_json_is_compressed_for_who_asks(server: Server, sample: bytes) -> None:
    plain = server.http.post("predict", content=sample, headers={"Accept-Encoding": "identity"})
    packed = server.http.post("predict", content=sample, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"])
    assert packed.json() == plain.json()


def test_the_page_is_asked_for_again_and_sent_only_if_it_changed(server: Server) -> None:
    for path in ("", "page.js", "page.css"):
        first = server.http.get(path)
        assert first.headers["cache-control"] == "no-cache"
        again = server.http.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["cache-control"] == "no-cache"


def test_upright_shows_what_the_model_sees(server: Server) -> None:
    grey = (np.arange(12, dtype=np.uint16).reshape(3, 4) * 300).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "TIFF")
    response = server.post(buffer.getvalue(), "upright", "image/tiff")
    assert response.headers["content-type"] == "image/png"
    shown = np.asarray(Image.open(io.BytesIO(response.content)))
    assert shown.shape == (3, 4, 3)
    assert shown[2, 3].tolist() == [round(3300 / 4095 * 255)] * 3


def test_model_and_probes(server: Server, nuclei: sotr.Segmenter, sample: bytes) -> None:
    model = server.http.get("model").json()
    assert (model["name"], model["classes"]) == ("nuclei", [{"id": 1, "name": "nucleus"}])
    assert model["lowest_score"] == nuclei.decode_options.score_threshold
    assert model["limits"] == {
        "max_bytes": 32_000_000, "max_pixels": 25_000_000, "max_requests": 32, "timeout": 600.0
    }  # fmt: skip
    assert server.http.get("healthz").json() == {"status": "ok"}
    assert server.http.get("readyz").json() == {"status": "ready"}
    assert server.http.get("sample").content == sample


def test_metrics(server: Server, sample: bytes) -> None:
    before = {name: server.metric(name) for name in ("sotr_objects_total", "sotr_batch_size_sum")}
    found = len(server.post(sample, "predict?score=0.5").json()["objects"])
    server.post(b"nothing", "predict")
    assert server.metric("sotr_objects_total") - before["sotr_objects_total"] == found > 0
    assert server.metric("sotr_batch_size_sum") - before["sotr_batch_size_sum"] == 1
    text = server.http.get("metrics").text
    assert re.search(r'^sotr_requests_total\{path="/predict",status="422"\} [1-9]', text, re.MULTILINE)
    assert server.metric("sotr_pictures_in_flight") == 0
    assert server.metric("process_resident_memory_bytes") > 1e8
    server.http.get("made/up/by/a/client")
    assert "made" not in server.http.get("metrics").text


def test_the_interface_is_described(server: Server) -> None:
    paths = server.http.get("openapi.json").json()["paths"]
    assert {"/predict", "/upright", "/model", "/sample", "/healthz", "/readyz", "/metrics"} <= set(paths)
    operations = {path: each["operationId"] for path, methods in paths.items() for each in methods.values()}
    assert operations["/predict"] == "predict"
    assert operations["/model"] == "model"
    assert "Retry-After" in paths["/predict"]["post"]["responses"]["503"]["headers"]
    schema = paths["/model"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("ModelDescription")
    predict = paths["/predict"]["post"]
    assert "image" in predict["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert {parameter["name"] for parameter in predict["parameters"]} == {
        "score", "max_objects", "format", "masks", "tile", "overlap"
    }  # fmt: skip
    assert set(predict["responses"]) >= {"200", "400", "408", "413", "415", "405", "422", "503", "504"}


def test_no_page_needs_another_server(server: Server) -> None:
    docs = server.http.get("docs").text
    for address in re.findall(r'(?:src|href)="([^"]+)"', docs):
        assert "//" not in address
        assert server.http.get(address).status_code == 200
    for file in PAGE.iterdir():
        assert "://" not in file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert server.http.get(file.name).status_code == 200
    index = server.http.get("/")
    assert index.headers["content-type"].startswith("text/html")
    assert index.headers["x-content-type-options"] == "nosniff"
