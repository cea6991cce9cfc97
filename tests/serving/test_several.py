"""Images as base64, several in one request, and answers as label images and GeoJSON."""

import base64
import io
import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from sotr.results.geojson import feature_collection
from sotr.results.instances import Instances
from sotr.serving.answers import Predictions
from tests.serving.conftest import Server, problem


def text_of(body: bytes) -> str:
    return base64.b64encode(body).decode()


def test_base64_gives_what_the_file_gives(server: Server, sample: bytes) -> None:
    plain = server.post(sample, "predict?score=0.5").json()
    for text in (text_of(sample), "data:image/png;base64," + text_of(sample), base64.encodebytes(sample).decode()):
        assert server.http.post("predict?score=0.5", json={"image": text}).json() == plain
    upright = server.http.post("upright", json={"image": text_of(sample)})
    assert upright.content == server.post(sample, "upright").content


def test_several_images_are_answered_in_order_and_errors_stand_in_their_places(server: Server, sample: bytes) -> None:
    plain = server.post(sample, "predict?score=0.5&masks=polygons").json()
    del plain["model"]
    files = [("a.png", sample), ("b.png", b"no image"), ("c.png", b""), ("d.png", sample)]
    by_form = server.http.post("predict?score=0.5&masks=polygons", files=[("image", file) for file in files])
    listed = [{"name": name, "image": text_of(body)} for name, body in files]
    by_json = server.http.post("predict?score=0.5&masks=polygons", json={"images": listed})
    for response in (by_form, by_json):
        assert response.status_code == 200
        answer = response.json()
        Predictions.model_validate(answer)
        assert answer["model"] == "nuclei"
        assert [result.pop("name") for result in answer["results"]] == ["a.png", "b.png", "c.png", "d.png"]
        first, second, third, fourth = answer["results"]
        assert first == fourth == plain
        assert second["error"]["code"] == "unreadable_picture"
        assert third["error"]["code"] in ("empty_body", "bad_base64")
    unnamed = server.http.post("predict", json={"images": [text_of(sample), "%"]}).json()["results"]
    assert [result["name"] for result in unnamed] == ["0", "1"]
    assert unnamed[1]["error"]["code"] == "bad_base64"


def test_label_images_and_geojson_are_those_of_the_model(server: Server, sample: bytes, expected: Instances) -> None:
    found = expected[expected.scores_I > 0.5]
    png = server.post(sample, "predict?format=labels&score=0.5")
    assert png.headers["content-type"] == "image/png"
    labels_HW = np.asarray(Image.open(io.BytesIO(png.content)))
    assert labels_HW.dtype == np.uint16
    assert (labels_HW != found.label_image()).mean() < 0.002
    tiff = server.http.post("predict?format=labels&score=0.5", content=sample, headers={"Accept": "image/tiff"})
    assert tiff.headers["content-type"] == "image/tiff"
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(tiff.content)), labels_HW)

    geojson = server.post(sample, "predict?format=geojson&score=0.5")
    assert geojson.headers["content-type"] == "application/geo+json"
    features, wanted = geojson.json()["features"], feature_collection(found)["features"]
    assert len(features) == len(wanted) > 20
    for feature, own in zip(features, wanted, strict=True):
        scores = [each["properties"]["measurements"]["score"] for each in (feature, own)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


SMALL = text_of(b"no image")


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (b"", 400, "bad_json", "expecting value"),
        (b"[]", 400, "bad_json", "it is no object"),
        (b'{"image": "' + b"A" * 99, 400, "bad_json", "unterminated string"),
        (b'{"image": "\xff"}', 400, "bad_json", "utf-8"),
        (b'{"image":' * 900 + b"1" + b"}" * 900, 400, "bad_base64", "no text"),
        (b"[" * 100_000, 400, "bad_json", "too many values"),
        (b'{"images": [' + b"[]," * 1_000_000 + b"[]]}", 400, "bad_json", "too many values"),
        (b'{"image": ' + b"1" * 10_000 + b"}", 400, "bad_json", "exceeds the limit"),
        (b'{"image": "' + b"A" * 44_000_000 + b'"}', 413, "body_too_large", "limit of 32 MB"),
        ({}, 400, "no_picture", "one of the keys"),
        ({"image": 5}, 400, "bad_base64", "no text"),
        ({"image": None}, 400, "bad_base64", "absent"),
        ({"image": ""}, 400, "bad_base64", "empty"),
        ({"image": "/etc/passwd"}, 400, "bad_base64", "neither paths nor addresses are opened"),
        ({"image": "http://127.0.0.1:1/a.png"}, 400, "bad_base64", "neither paths nor addresses are opened"),
        ({"image": SMALL, "score": 0.5}, 422, "invalid_setting", "a key 'score'"),
        ({"image": SMALL, "images": [SMALL]}, 400, "no_picture", "one of the keys"),
        ({"images": []}, 400, "no_picture", "at least one"),
        ({"images": {"a": SMALL}}, 400, "no_picture", "must be a list"),
        ({"images": [{"image": SMALL, "masks": "png"}]}, 400, "bad_json", "image 0"),
        ({"images": [SMALL, {"image": SMALL, "name": 5}]}, 400, "bad_json", "image 1"),
        ({"images": [SMALL] * 1000}, 422, "too_many_images", "1000 images in the request; send at most 16"),
    ],
)
def test_bad_json_is_said_in_one_line(server: Server, body: object, status: int, code: str, words: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = server.post(content, kind="application/json")
    assert problem(response)[:2] == (status, code)
    assert words in problem(response)[2]
    assert server.alive()


def test_what_takes_one_image_refuses_several(server: Server, sample: bytes) -> None:
    files = [("image", ("a.png", sample))] * 2
    for format_ in ("overlay", "labels", "geojson"):
        refused = server.http.post(f"predict?format={format_}", files=files)
        assert problem(refused)[:2] == (422, "invalid_setting")
    assert problem(server.http.post("upright", files=files))[:2] == (400, "bad_form")
    for count in (17, 400):
        too_many = server.http.post("predict", files=[("image", ("a.png", b"x"))] * count)
        assert problem(too_many)[:2] == (422, "too_many_images")


def test_halves_of_characters_in_names_do_no_harm(server: Server) -> None:
    listed = {"images": [{"name": "\ud800.png", "image": SMALL}]}
    answer = server.post(json.dumps(listed).encode(), kind="application/json")
    assert (answer.status_code, answer.json()["results"][0]["name"]) == (200, "?.png")
    for key in ("\ud800", "x"):
        refused = server.post(json.dumps({key: SMALL}).encode(), kind="application/json")
        assert problem(refused)[:2] == (422, "invalid_setting")
