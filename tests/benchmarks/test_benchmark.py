"""What the sub-benchmarks report, in sizes that take no time; how long anything takes is not asserted."""

import json
from dataclasses import replace

import pytest
import torch
from benchmarks.__main__ import main
from benchmarks.command import BENCHMARKS, benchmark
from benchmarks.measure import describe_machine
from torchvision.models.detection import maskrcnn_resnet50_fpn

from benchmarks import attention, decoding, inference, on_card, pictures, sides, training
from benchmarks import report as reports
from sotr.config import SOTRConfig
from sotr.errors import SOTRError
from sotr.info import count_components
from sotr.network.transformer import LAYERS

CPU, FLOAT = torch.device("cpu"), torch.float32


def check(rows, cases, sides, parts):
    """Every case, side and part has its row of sound numbers."""
    assert {(row["case"], row["side"], row["part"]) for row in rows} == {
        (case, side, part) for case in cases for side in sides for part in parts
    }
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in rows)


def broken(conditions):
    raise RuntimeError("no such kernel\nat some place")


def test_inference(monkeypatch):
    chosen = {
        "sotr-nano": sides.Ours("sotr-nano", 64),
        "sotr-nano, plain PyTorch": sides.Ours("sotr-nano", 64, "pytorch"),
        "Mask R-CNN": sides.mask_rcnn(maskrcnn_resnet50_fpn, min_size=64, max_size=96),
    }
    monkeypatch.setattr(inference, "SIDES", chosen | {"broken": broken})
    monkeypatch.setattr(inference, "memory_of", lambda *_: 12.4)
    monkeypatch.setattr(inference, "MATRIX", 64)
    rows, findings = inference.measure([*chosen, "broken"], (48, 64), CPU, FLOAT, 1, str)
    assert findings[0] == "broken does not run under these conditions: no such kernel."
    check(rows, ["48 x 64"], chosen, ["pre-processing", "network", "decoding", "total"])
    assert [row["peak_mib"] for row in rows if row["part"] == "total"] == [12, 12, 12]
    assert sum("images per second as Mask R-CNN" in finding for finding in findings) == 2
    assert sum("Decoding is" in finding for finding in findings) == 3
    assert sum("network takes" in finding for finding in findings) == 3
    rows, _ = inference.measure(["sotr-nano, plain PyTorch"], (48, 64), CPU, FLOAT, 1, str, batch=2)
    check(
        rows, ["48 x 64, 2 together"], ["sotr-nano, plain PyTorch"], ["pre-processing", "network", "decoding", "total"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["MaskFormer", "Mask2Former"])
def test_peers_from_transformers(monkeypatch, kind):
    pytest.importorskip("transformers")
    small = replace(SOTRConfig(), image_size=64, max_image_size=96)
    monkeypatch.setattr(inference, "SIDES", {kind: sides.former(kind, small)})
    monkeypatch.setattr(inference, "memory_of", lambda *_: 1.0)
    monkeypatch.setattr(inference, "MATRIX", 64)
    rows, _ = inference.measure([kind], (48, 64), CPU, FLOAT, 1, str)
    check(rows, ["48 x 64"], [kind], ["pre-processing", "network", "decoding", "total"])


def test_train(monkeypatch):
    monkeypatch.setattr(training, "STEPS", {"sotr-nano": "sotr-nano"})
    rows, findings = training.measure(["sotr-nano"], (1, 5), 2, 64, CPU, FLOAT, 1, str, memory=False)
    check(
        rows,
        ["1 object, 2 x 64 x 64", "5 objects, 2 x 64 x 64"],
        ["sotr-nano"],
        ["data", "forward", "loss", "backward", "optimiser", "total"],
    )
    assert findings == []


def test_attention():
    rows = attention.sizes([(4, 4), (8, 8), (3, 5)], CPU, FLOAT, 1, str)
    check(rows, ["4 x 4", "8 x 8", "3 x 5"], attention.SIDES, ["forward", "step"])
    assert {row["case"]: (row["cells"], row["side_cells"]) for row in rows} == {
        "4 x 4": (16, 4),
        "8 x 8": (64, 8),
        "3 x 5": (15, None),
    }
    assert len(attention.growth(rows)) == 4
    more, findings = attention.table_3({"grids": [(4, 4), (3, 5)]}, CPU, FLOAT, 1, str)
    check(more, ["grids"], attention.SIDES, ["forward", "step"])
    # Saved bytes of a layer add up over maps.
    saved = {(row["case"], row["side"]): row["saved_mib"] for row in rows + more}
    for side in attention.SIDES:
        assert saved["grids", side] == pytest.approx(saved["4 x 4", side] + saved["3 x 5", side], rel=0.01)
    assert len(findings) == 2
    levels, ratios = attention.together([(1, 4, 4), (1, 3, 5)], (1, 2), CPU, FLOAT, 1, str)
    cases, sides = ["all levels, batch 1", "all levels, batch 2"], ["level by level", "levels packed"]
    check(levels, cases, sides, ["forward", "step"])
    assert len(ratios) == 4


def test_operations_of_a_side_are_those_of_its_padded_batch():
    conditions = sides.conditions_of((48, 64), CPU, FLOAT, 3)
    side = sides.Ours("sotr-nano", 60)  # 60 x 80, padded to 64 x 96
    assert side.macs(conditions) == 3 * count_components(side.config, 64, 96)["total"].macs


def test_every_side_has_a_use():
    assert set(sides.LONG) <= set(sides.SIDES)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolutions"),
        ("nvjet_sm90_tst_128x80_64x8_1x2_h_bz_bias_TNT", "matrix products"),
        ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<c10::BFloat16>", "norms and sums"),
        ("Memcpy DtoH (Device -> Pageable)", "copies"),
        ("at::native::mbtopk::computeDigitCumSum(short*, unsigned int*, unsigned int)", "choosing"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<float>", "element by element"),
    ],
)
def test_kernels_are_told_apart_by_their_names(kernel, kind):
    assert on_card.kind_of(kernel) == kind


def test_traffic_counts_operands_and_results_of_products_alone():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert on_card.traffic(lambda: (a @ b).relu() + 1, {}) == 4 * (3 * 5 + 5 * 7 + 3 * 7)


def test_saved_bytes_are_those_that_the_backward_pass_reads():
    weight = torch.nn.Linear(4, 6, bias=False)
    x, y = torch.randn(10, 4, requires_grad=True), torch.randn(10, requires_grad=True)
    assert attention.saved_bytes(lambda: weight(x), weight) == 10 * 4 * 4
    assert attention.saved_bytes(lambda: y.exp(), weight) == 10 * 4
    assert attention.saved_bytes(lambda: y * y, weight) == 10 * 4  # one storage, though saved twice


def test_plain_attention_saves_weights_that_grow_with_the_square_of_the_cells():
    def saved(side, cells):
        return attention.Side(side, [(cells, cells)], CPU, FLOAT).saved_bytes()

    plain = saved("original, plain", 24) - saved("original, fused", 24)
    assert plain > 0.9 * 4 * 8 * 24**4  # a weight of float32 per head and pair of cells
    assert saved("hybrid twin", 24) < saved("original, plain", 24)
    assert set(LAYERS) == {side.split(",")[0].replace(" ", "_") for side in attention.SIDES}


def test_slope_is_the_exponent():
    assert attention.slope([2, 4, 8], [3 * 2**2.5, 3 * 4**2.5, 3 * 8**2.5]) == pytest.approx(2.5)


def test_a_photograph_is_larger_than_other_scenes(monkeypatch):
    sizes = []
    monkeypatch.setattr(decoding, "decode", lambda *arguments, **options: sizes.append(arguments[1:3]))
    for scene in ("blobs", "photograph"):
        decoding.work_of(scene, 5, (200, 272), CPU, FLOAT)()
    assert sizes == [([(800, 1088)], [(480, 640)]), ([(800, 1088)], [(3000, 4000)])]


@pytest.mark.parametrize("scene", decoding.SCENES)
def test_decode(scene):
    rows, _ = decoding.measure((24, 40), (5, 120), CPU, FLOAT, 1, str, memory=False)
    check(rows, decoding.SCENES, ["5 candidates", "120 candidates"], ["total"])
    dense = decoding.predictions_of(scene, 120, (24, 40), CPU, FLOAT)
    assert (dense.class_logits_BKM.sigmoid() > 0.5).sum() == 120


def test_data_and_evaluate():
    rows, _ = pictures.measure_data((1, 5), 48, 64, 2, 1, str)
    check(rows, ["1 object an image, 2 images", "5 objects an image, 2 images"], ["paper", "scratch"], ["total"])
    assert all(row["pictures_per_second"] == pytest.approx(2 / row["median"]) for row in rows)
    rows, findings = pictures.measure_evaluate((4,), 48, 64, 3, 1, str)
    check(rows, ["4 objects an image, 3 images"], ["sotr", "pycocotools"], ["total"])
    assert rows[0]["AP"] == pytest.approx(rows[1]["AP"], abs=1e-9)
    assert 0.1 < rows[0]["AP"] < 0.99
    assert len(findings) == 1


@pytest.fixture
def tiny(monkeypatch):
    """`decode` at a size that takes no time."""

    def run(device, dtype, quick, on_run):
        return decoding.measure((24, 40), (5,), device, dtype, 1, on_run, memory=False)

    monkeypatch.setitem(BENCHMARKS, "decode", (run, "Decoding of little."))


def test_files_and_comparison(tiny, tmp_path, capsys):
    report = benchmark("decode", out=str(tmp_path), quick=True, quiet=True)
    kind = report.machine.kind
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{kind}-decode.md",
        f"{kind}-decode.png",
        f"{kind}.json",
    ]
    stored = json.loads((tmp_path / f"{kind}.json").read_text())
    assert stored["decode"]["rows"] == report.rows
    assert torch.__version__.startswith(stored["decode"]["machine"]["versions"]["torch"])
    page = (tmp_path / f"{kind}-decode.md").read_text()
    assert page in capsys.readouterr().out
    assert "`python -m benchmarks decode --quick`" in page
    assert [page.count(f"\n| {scene} |") for scene in decoding.SCENES] == [1] * len(decoding.SCENES)
    assert (tmp_path / f"{kind}-decode.png").read_bytes().startswith(b"\x89PNG")

    before = (tmp_path / f"{kind}.json").read_bytes()
    benchmark("decode", out=str(tmp_path), compare_only=True, quick=True, quiet=True)
    assert "| ratio |" in capsys.readouterr().out
    assert (tmp_path / f"{kind}.json").read_bytes() == before

    rows = [row | {key: 2 * row[key] for key in ("median", "low", "high")} for row in report.rows]
    doubled = replace(report, rows=rows)
    assert [row["ratio"] for row in reports.compare(doubled, tmp_path)] == [2.0] * len(decoding.SCENES)
    reports.save(replace(doubled, precision="bfloat16"), tmp_path)
    assert set(json.loads((tmp_path / f"{kind}.json").read_text())) == {"decode", "decode-bfloat16"}


def test_curves_are_drawn(tmp_path, tiny):
    rows = attention.sizes([(4, 4), (8, 8)], CPU, FLOAT, 1, str)
    report = replace(benchmark("decode", out=str(tmp_path), quiet=True), name="attention", rows=rows)
    assert reports.save(report, tmp_path)[2].read_bytes().startswith(b"\x89PNG")


def test_json_is_one_object(tiny, tmp_path, capsys):
    assert main(["decode", "--out", str(tmp_path), "--quiet", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == len(decoding.SCENES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["speed"], "speed"),
        (["decode", "--threads", "0"], "threads is 0"),
        (["decode", "--compare-only"], "run python -m benchmarks decode first"),
        (["decode", "--device", "tpu"], "tpu"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_damaged_results_are_named(tiny, tmp_path):
    report = benchmark("decode", out=str(tmp_path), quiet=True)
    path = tmp_path / f"{report.machine.kind}.json"
    path.write_text("[")
    with pytest.raises(SOTRError, match="delete it"):
        reports.compare(report, tmp_path)


def test_a_kind_of_machine_says_what_sets_its_speed(monkeypatch):
    for amx in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda amx=amx: {"amx_tile": amx})
        kind = describe_machine(CPU).kind
        assert ("-amx-" in kind) == amx
        assert "-r-" not in kind


@pytest.mark.gpu
def test_what_is_said_of_a_card(monkeypatch):
    cuda, half = torch.device("cuda"), torch.bfloat16
    ways = {f"sotr-nano {way}": sides.Ours("sotr-nano", 64, way) for way in ("auto", "pytorch", "compiled")}
    monkeypatch.setattr(inference, "SIDES", ways)
    rows, findings = inference.measure(list(ways), (48, 64), cuda, half, 2, str, batch=2)
    check(rows, ["48 x 64, 2 together"], ways, ["pre-processing", "network", "decoding", "total"])
    assert sum("times the larger" in finding for finding in findings) == 3
    assert all(row["peak_mib"] > 0 for row in rows if row["part"] == "total")
    assert len(training.throughput("sotr-nano", 2, 64, cuda, half, 1)) == 2
