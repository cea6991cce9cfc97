"""Exported files give what PyTorch gives, and say clearly where they cannot."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import sotr
from sotr.building import build_network
from sotr.cli import run
from sotr.config import SOTRConfig
from sotr.data import MEAN, STD
from sotr.data.traits import Domain, Traits
from sotr.decode_options import DecodeOptions
from sotr.errors import SOTRError
from sotr.export import ExportedSegmenter, export
from sotr.export.description import METADATA_KEY, ExportDescription
from sotr.export.int8 import quantized
from sotr.export.write import write_openvino
from sotr.model.segmenter import Segmenter
from sotr.results.instances import Instances
from tests.scenes import discs

PICTURES = {
    "square": discs(160, 160, 5),
    "wide, shrunk": discs(200, 420, 8, seed=1),
    "tall, enlarged": discs(150, 70, 3, seed=2),
    "nothing": np.full((96, 120, 3), 18, np.uint8),
    "too many": discs(160, 224, 30, seed=3),
}


def assert_equal(found: Instances, expected: Instances) -> None:
    assert len(found) == len(expected)
    assert (found.image_size, found.class_names) == (expected.image_size, expected.class_names)
    assert found.category_ids == expected.category_ids
    assert found.labels_I.tolist() == expected.labels_I.tolist()
    assert np.allclose(found.scores_I, expected.scores_I, atol=1e-4)
    both = (found.masks_IHW & expected.masks_IHW).sum((1, 2))
    either = (found.masks_IHW | expected.masks_IHW).sum((1, 2))
    assert (both >= 0.999 * either).all()


@pytest.mark.parametrize("name", PICTURES)
def test_onnx_equals_pytorch(exported: ExportedSegmenter, nuclei: Segmenter, name: str) -> None:
    expected = nuclei.predict(PICTURES[name])
    assert_equal(exported.predict(PICTURES[name]), expected)
    if name == "nothing":
        assert len(expected) == 0
    elif name == "too many":
        assert len(expected) == 12
    else:
        assert 0 < len(expected) < 12


def test_a_batch_of_all_shapes_equals_pytorch(exported: ExportedSegmenter, nuclei: Segmenter) -> None:
    pictures = list(PICTURES.values())
    expected = nuclei.predict(pictures, batch_size=5)
    for found, wanted in zip(exported.predict(pictures, batch_size=5), expected, strict=True):
        assert_equal(found, wanted)
    assert exported.predict([]) == []


def relu() -> onnx.ModelProto:
    """A sound ONNX file that is no model of ours."""
    one = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    two = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "other", [one], [two])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def test_a_full_disk_while_openvino_writes_is_one_line(
    exported: ExportedSegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino")

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Exception from src/core/src/pass/serialize.cpp:1:\nNo space left on device")

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(SOTRError, match=r"OpenVINO cannot write .*x\.xml: Exception from .*serialize") as caught:
        write_openvino(tmp_path / "x.xml", relu().SerializeToString(), exported.description)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_openvino_equals_pytorch(onnx_path: Path, nuclei: Segmenter, tmp_path: Path) -> None:
    exported = sotr.load(onnx_path)
    assert isinstance(exported, ExportedSegmenter)
    write_openvino(tmp_path / "nuclei.xml", onnx_path.read_bytes(), exported.description)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nuclei.bin", "nuclei.xml"]
    model = sotr.load(tmp_path / "nuclei.xml")
    assert isinstance(model, ExportedSegmenter)
    assert model.description == exported.description
    # Each size of an image takes OpenVINO a second to get ready for.
    for name in ("wide, shrunk", "nothing", "too many"):
        assert_equal(model.predict(PICTURES[name]), nuclei.predict(PICTURES[name]))
    pictures = list(PICTURES.values())[:2]
    for found, wanted in zip(
        model.predict(pictures, batch_size=2), nuclei.predict(pictures, batch_size=2), strict=True
    ):
        assert_equal(found, wanted)
    with pytest.raises(SOTRError, match="OpenVINO models run on cpu here"):
        sotr.load(tmp_path / "nuclei.xml", "cuda")
    (tmp_path / "nuclei.bin").write_bytes(b"")
    with pytest.raises(SOTRError, match=r"nuclei\.xml is not a sound OpenVINO model"):
        sotr.load(tmp_path / "nuclei.xml")


def test_8_bit_convolutions(onnx_path: Path, nuclei: Segmenter, tmp_path: Path) -> None:
    """Smaller, close to the exact model, and itself."""
    for number in range(3):
        Image.fromarray(discs(160, 160, 6, seed=10 + number)).save(tmp_path / f"{number}.png")
    content = quantized(onnx_path.read_bytes(), sorted(tmp_path.glob("*.png")))
    assert len(content) < 0.4 * onnx_path.stat().st_size
    (tmp_path / "int8.onnx").write_bytes(content)
    model = sotr.load(tmp_path / "int8.onnx")
    assert isinstance(model, ExportedSegmenter)
    found, expected = model.predict(PICTURES["square"], score=0.5), nuclei.predict(PICTURES["square"], score=0.3)
    assert len(found) > 0
    overlaps = [(expected.masks_IHW & mask).sum((1, 2)).max() / mask.sum() for mask in found.masks_IHW]
    assert min(overlaps) > 0.7
    assert found.scores_I.tolist() != expected.scores_I[: len(found)].tolist()


def test_score_and_max_objects_narrow(exported: ExportedSegmenter, nuclei: Segmenter) -> None:
    found = nuclei.predict(PICTURES["square"])
    middle = float(np.median(found.scores_I))
    assert_equal(exported.predict(PICTURES["square"], score=middle), found[found.scores_I > middle])
    assert_equal(exported.predict(PICTURES["square"], max_objects=2), found[:2])
    with pytest.raises(SOTRError, match=r"score is 0\.01, but nuclei was exported for scores from 0\.25; export it"):
        exported.predict([], score=0.01)
    with pytest.raises(SOTRError, match="max_objects is 13, but nuclei was exported for 12; export it again with"):
        exported.predict([], max_objects=13)
    with pytest.raises(SOTRError, match="score is 2; it must lie in"):
        exported.predict([], score=2)


def test_a_digest_tells_files_apart(exported: ExportedSegmenter, onnx_path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    again.write_bytes(onnx_path.read_bytes())
    assert ExportedSegmenter.load_file(again).digest() == exported.digest()
    again.write_bytes(onnx_path.read_bytes().replace(b"nucleus", b"nuclEus"))
    assert ExportedSegmenter.load_file(again).digest() != exported.digest()


def test_the_file_says_all_that_is_needed(onnx_path: Path, nuclei: Segmenter) -> None:
    model = onnx.load(onnx_path)
    onnx.checker.check_model(model)
    (text,) = (entry.value for entry in model.metadata_props if entry.key == METADATA_KEY)
    options = asdict(nuclei.decode_options)
    assert json.loads(text) == {
        "format": 1,
        "name": "nuclei",
        "content": "objects",
        "class_names": ["nucleus"],
        "category_ids": [1],
        "image_size": 256,
        "max_image_size": 416,
        "mean": list(MEAN),
        "std": list(STD),
        "decoding": options,
        "intensity_percentiles": [],
        "domain": None,
    }
    session = onnxruntime.InferenceSession(onnx_path)
    (given,) = session.get_inputs()
    assert (given.name, given.type) == ("images", "tensor(float)")
    assert [isinstance(length, int) for length in given.shape] == [False, True, False, False]
    assert [output.name for output in session.get_outputs()] == ["scores", "labels", "mask_logits", "count"]
    # Nothing loops, and nothing tells of the machine that made it.
    assert not {"Loop", "Scan", "If", "SequenceMap"} & {node.op_type for node in model.graph.node}
    content = onnx_path.read_bytes()
    assert str(Path(sotr.__file__).parent).encode() not in content
    assert str(Path(torch.__file__).parent).encode() not in content
    assert len(content) < 1.05 * sum(4 * tensor.numel() for tensor in nuclei.network.state_dict().values())


@pytest.mark.slow  # the graph is a part of the other one
def test_raw_predictions_equal_pytorch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network(replace(SOTRConfig.preset("sotr-nano", num_classes=3), depth=1)).eval()
    segmenter = Segmenter(network, ["a", "b", "c"], [3, 1, 2], name="random")
    path = export(segmenter, out=tmp_path / "raw.onnx", raw=True, quiet=True)
    session = onnxruntime.InferenceSession(path)
    assert [output.name for output in session.get_outputs()] == ["class_logits", "kernels", "mask_features"]
    for size in ((1, 3, 64, 96), (3, 3, 128, 32)):
        images_B3HW = torch.randn(size)
        with torch.no_grad():
            expected = network(images_B3HW)
        for found, wanted in zip(session.run(None, {"images": images_B3HW.numpy()}), expected, strict=True):
            assert np.allclose(found, wanted.numpy(), atol=1e-4)
    with pytest.raises(SOTRError, match=r"raw\.onnx has no decoding inside, only raw predictions; export .* without"):
        sotr.load(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"backbone": "resnet18", "deformable_stages": (5,)}, DecodeOptions(cell_threshold=0.0)),
        ({"kernel_size": 3, "transformer": "original"}, DecodeOptions(cell_threshold=0.0, nms="linear")),
        ({"variant": "released", "transformer": "hybrid_twin"}, DecodeOptions.released()),
        ({"dynamic_kernels": False, "transformer": "none", "mask_transformer_levels": ()}, DecodeOptions()),
    ],
)
def test_every_kind_of_network_exports(changes: dict, options: DecodeOptions, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = replace(SOTRConfig.preset("sotr-nano", num_classes=3), depth=1, mlp_ratio=4.0, **changes)
    network = build_network(replace(config, image_size=96, max_image_size=160))
    with torch.no_grad():
        # Scores and masks as wide apart as a trained network's.
        network.class_head.weight *= 40
        network.class_head.bias += 3
        for parameter in network.kernel_head.parameters():
            parameter *= 60
    segmenter = Segmenter(network, ["a", "b", "c"], [1, 2, 3], replace(options, max_objects=9), "random")
    exported = sotr.load(export(segmenter, out=tmp_path / "random.onnx", quiet=True))
    # Images on which PyTorch gives the same objects when its input moves by 2e-6. On others a random network has two
    # candidates so close that either may suppress the other, and no two engines need agree.
    for picture in (discs(96, 150, 6), discs(80, 60, 4, seed=1)):
        expected = segmenter.predict(picture)
        assert len(expected) > 0
        assert_equal(exported.predict(picture), expected)


def test_evaluation_of_an_exported_file(exported: ExportedSegmenter, onnx_path: Path, coco_folder: Path) -> None:
    named = replace(exported.description, class_names=("disc",))
    model = ExportedSegmenter(exported._graph, named, "cpu", exported._files)
    report = sotr.evaluate(coco_folder, model, quiet=True)
    assert report["images"] == 4
    assert 0 <= report["AP"] <= 1


# What cannot be.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "tflite"], "format cannot be tflite"),
        (["--out", "nuclei.txt"], "nuclei.txt: a file in the format onnx has a name that ends in .onnx"),
        (["--format", "openvino", "--out", "nuclei.onnx"], "a name that ends in .xml"),
        (["--out", "folder.onnx"], "folder.onnx is a folder; give a file with --out"),
        (["--out", "file/nuclei.onnx"], "cannot write file/nuclei.onnx: "),
        (["--score", "7"], "score is 7.0; it must lie in 0..1"),
        (["--max-objects", "0"], "max_objects is 0"),
        (["no-such-model"], "there is no model 'no-such-model'"),
        (["other.onnx"], "other.onnx is a file; give the folder"),
        (["--int8", "no-such-folder"], "no-such-folder: no such file or folder"),
        (["--int8", ".", "--raw"], "int8 is for the format onnx with decoding inside"),
    ],
)
def test_bad_requests_are_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.onnx").mkdir()
    Path("file").touch()
    Path("other.onnx").touch()
    assert run(["export", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.onnx", "other.onnx"]


def test_what_cannot_be_exported(nuclei: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Segmenter(nuclei.network, ["a"], [1], replace(nuclei.decode_options, nms="mask"), "plain")
    with pytest.raises(SOTRError, match="plain mask NMS decides mask by mask, which no graph can"):
        export(plain, out=tmp_path / "x.onnx")
    config = replace(SOTRConfig.preset("sotr-nano", 1), backbone="resnet18", deformable_stages=(5,), depth=1)
    deformable = Segmenter(build_network(config), ["a"], [1], name="bent")
    with pytest.raises(SOTRError, match="bent has deformable convolutions, which OpenVINO cannot read; export to onnx"):
        export(deformable, format="openvino", out=tmp_path / "x.xml")
    monkeypatch.setattr("sotr.export.write.find_spec", lambda name: None)
    with pytest.raises(SOTRError, match=r"needs the package openvino; install it with: pip install 'sotr\[openvino\]'"):
        export(nuclei, format="openvino", out=tmp_path / "x.xml")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_exported_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = relu()
    onnx.save(other, tmp_path / "other.onnx")
    onnx.helper.set_model_props(other, {METADATA_KEY: '{"format": 99}'})
    onnx.save(other, tmp_path / "newer.onnx")
    onnx.helper.set_model_props(other, {METADATA_KEY: "{}"})
    onnx.save(other, tmp_path / "damaged.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.xml").write_text("<net>")
    (tmp_path / "folder.onnx").mkdir()
    for name, message in (
        ("other.onnx", "does not say that it is a SOTR model; write one with sotr export"),
        ("newer.onnx", "has format 99, this version reads up to 1; install a newer sotr"),
        ("damaged.onnx", "has a damaged description"),
        ("text.onnx", "is not a sound ONNX file"),
        ("empty.onnx", "is not a sound ONNX file"),
        ("text.xml", "is not a sound OpenVINO model"),
        ("folder.onnx", "is a folder; give the file that sotr export wrote"),
        ("absent.onnx", "no such file"),
    ):
        with pytest.raises(SOTRError, match=message) as caught:
            sotr.load(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(SOTRError, match="ONNX models do not run on 'toaster'; use auto, cpu, cuda or cuda:1"):
        sotr.load(tmp_path / "other.onnx", "toaster")
    for package, name, extra in (("onnxruntime", "other.onnx", "onnx"), ("openvino", "text.xml", "openvino")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(SOTRError, match=rf"install it with: pip install 'sotr\[{extra}\]'"):
            sotr.load(tmp_path / name)


def test_damaged_descriptions(exported: ExportedSegmenter) -> None:
    text = exported.description.to_json()
    assert ExportDescription.from_json(text) == exported.description
    known = replace(exported.description, domain=Domain.of([Traits(0.1, 0.2, 0.0, 0.0, 0.9)], (512, 640)))
    assert ExportDescription.from_json(known.to_json()) == known
    before = {name: value for name, value in json.loads(text).items() if name != "domain"}
    assert ExportDescription.from_json(json.dumps(before)) == exported.description
    for changes in (
        {"domain": {"images": 3}},
        {"category_ids": [1, 2]},
        {"category_ids": ["1"]},
        {"image_size": 0},
        {"std": [0.0, 1.0, 1.0]},
        {"mean": [0.5]},
        {"content": "pictures"},
        {"format": "1"},
        {"decoding": []},
        {"decoding": {"nms": 3}},
    ):
        with pytest.raises(SOTRError):
            ExportDescription.from_json(json.dumps(json.loads(text) | changes))


def test_prepared_pictures_are_the_same(exported: ExportedSegmenter, nuclei: Segmenter) -> None:
    for picture in PICTURES.values():
        ours, theirs = exported.prepare(picture), nuclei.prepare(picture)
        assert ours.original_size == theirs.original_size
        # A gray level is 0.018 here. Where PyTorch has AVX2 to use, the bytes are equal.
        exact = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        assert np.abs(ours.input_3hw - theirs.input_3hw.numpy()).max() < (1e-5 if exact else 0.018)
