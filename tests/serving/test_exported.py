"""Exported models behind the real server, which does without PyTorch then."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
from fastapi.testclient import TestClient

from sotr.export import ExportedSegmenter
from sotr.model.segmenter import Segmenter
from sotr.serving import Limits, create_app
from tests.export.test_without_pytorch import WITHOUT
from tests.serving.conftest import problem
from tests.serving.test_api import assert_same


def test_an_exported_file_is_served_without_pytorch(
    onnx_path: Path, exported: ExportedSegmenter, sample: bytes
) -> None:
    # Against the file itself, whose limits are those of the model it was first exported from in this session.
    expected = exported.predict(sample, score=exported.options_for(None, None).score_threshold)
    assert len(expected) > 5
    code = WITHOUT + "from sotr.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--timeout", "600", "--batch-size", "8"]
    command += ["--model", str(onnx_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("nuclei on cpu: http://127.0.0.1:"), line
            with httpx.Client(base_url=line.split()[3], timeout=120) as http:
                # The answer to one does not depend on the others that go through the network with it.
                with ThreadPoolExecutor(6) as clients:
                    answers = list(clients.map(lambda _: http.post("predict", files={"image": sample}), range(6)))
                for answer in answers:
                    assert_same(answer.json(), expected)
                metrics = http.get("metrics").text.splitlines()
                batches = next(float(line.split()[1]) for line in metrics if line.startswith("sotr_batch_size_count"))
                assert batches < 6
                model = http.get("model").json()
                assert (model["name"], model["device"], model["classes"]) == (
                    "nuclei", "cpu", [{"id": 1, "name": "nucleus"}],
                )  # fmt: skip
                assert http.post("predict?format=overlay", files={"image": sample}).content.startswith(b"\x89PNG")
                assert problem(http.post("predict", content=b""))[:2] == (400, "empty_body")
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_what_a_file_was_not_exported_for_is_refused(nuclei: Segmenter, exported: ExportedSegmenter) -> None:
    """Its decoding is inside it: lower scores and more objects cannot be had."""
    narrow = replace(exported.description, decode_options=nuclei.options_for(0.5, 4))
    app = create_app(
        ExportedSegmenter(exported._graph, narrow, "cpu", exported._files), Limits(), 1, b"", access_log=False
    )
    with TestClient(app) as http:
        for setting in ("score=0.4", "max_objects=5"):
            status, code, message = problem(http.post(f"predict?{setting}", content=b"x"))
            assert (status, code) == (422, "invalid_setting")
            assert message.endswith("export it again with --" + setting.replace("=", " ").replace("_", "-"))
        # Nothing asked for is what the file has.
        assert problem(http.post("predict", content=b"x"))[1] == "unreadable_picture"
