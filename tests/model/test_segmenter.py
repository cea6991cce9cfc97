"""Model folders: written, read back, refused; and prediction with them."""

import copy
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

import sotr
from sotr.acceleration.accelerate import plain_steps
from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.data.traits import Domain, Traits
from sotr.decoding import DecodeOptions
from sotr.errors import SOTRError
from sotr.model import segmenter as model_module
from sotr.model.predictor import ENGINE_AFTER
from sotr.model.segmenter import Segmenter, bundled_models, choose_device, load
from sotr.results.instances import Instances
from sotr.serving.sample import draw_sample

# A random network scores everything low; these thresholds let some of it through.
LENIENT = DecodeOptions(
    cell_threshold=0.0, score_threshold=0.001, operating_score=0.0, max_candidates=60, max_objects=20
)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    network = build_network(
        replace(
            SOTRConfig.preset("sotr-nano", num_classes=3),
            backbone="test_resnet",
            depth=1,
            image_size=128,
            max_image_size=192,
        )
    )
    return Segmenter(
        network, ["cat", "dog", "bird"], [3, 17, 90], LENIENT, "random", card="# A card\n", engine="pytorch"
    )


@pytest.fixture(scope="module")
def saved(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, not to be changed by tests."""
    folder = tmp_path_factory.mktemp("models") / "pets"
    segmenter.save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A model folder to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "pets"))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    return np.array(small.resize((120, 90)))


def same(first: Instances, second: Instances) -> bool:
    return (
        np.array_equal(first.scores_I, second.scores_I)
        and np.array_equal(first.labels_I, second.labels_I)
        and first.rles == second.rles
    )


def test_predicts_at_the_size_of_the_picture(segmenter: Segmenter, picture: np.ndarray) -> None:
    found = segmenter.predict(picture)
    assert 0 < len(found) <= 20
    assert found.image_size == (90, 120)
    assert found.class_names == ("cat", "dog", "bird")
    assert found.category_ids == (3, 17, 90)
    assert (np.diff(found.scores_I) <= 0).all()
    assert found.scores_I.min() > 0.001


def test_every_kind_of_picture_gives_the_same(segmenter: Segmenter, picture: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    expected = segmenter.predict(picture)
    data = BytesIO(path.read_bytes())
    for source in (path, str(path), Image.fromarray(picture), data.getvalue(), picture[:, ::-1][:, ::-1]):
        assert same(segmenter.predict(source), expected)


def test_a_list_gives_a_list_and_batches_change_nothing_for_equal_sizes(
    segmenter: Segmenter, picture: np.ndarray
) -> None:
    pictures = [picture, picture[::-1].copy(), picture[:, ::-1].copy()]
    one_by_one = segmenter.predict(pictures)
    assert isinstance(one_by_one, list)
    assert [same(a, segmenter.predict(b)) for a, b in zip(one_by_one, pictures, strict=True)] == [True] * 3
    together = segmenter.predict(pictures, batch_size=2)
    for alone, batched in zip(one_by_one, together, strict=True):
        assert len(alone) == len(batched)
        assert np.allclose(alone.scores_I, batched.scores_I, atol=1e-5)
    assert segmenter.predict([]) == []


def test_prepare_and_segment_are_the_halves_of_predict(segmenter: Segmenter, picture: np.ndarray) -> None:
    prepared = segmenter.prepare(picture)
    assert prepared.input_3hw.shape == (3, 128, 171)
    assert prepared.original_size == (90, 120)
    (found,) = segmenter.segment([prepared], score=0.0, max_objects=5)
    assert same(found, segmenter.predict(picture, score=0.0, max_objects=5))
    with pytest.raises(SOTRError, match="over the limit"):
        segmenter.prepare(picture, max_pixels=90 * 120 - 1)


def test_score_and_max_objects(segmenter: Segmenter, picture: np.ndarray) -> None:
    found = segmenter.predict(picture)
    middle = float(np.median(found.scores_I))
    assert same(segmenter.predict(picture, score=middle), found[found.scores_I > middle])
    assert same(segmenter.predict(picture, max_objects=3), found[:3])
    # A lower score than the model's own lets more through; more objects than candidates can come out.
    more = segmenter.predict(picture, score=0.0, max_objects=200)
    assert len(more) > len(found)
    assert segmenter.decode_options == LENIENT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": 3.0}, "score is 3.0"),
        ({"max_objects": 0}, "max_objects is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_limits_out_of_range(segmenter: Segmenter, arguments: dict, message: str) -> None:
    with pytest.raises(SOTRError, match=message):
        segmenter.predict([], **arguments)


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 7), np.uint8), np.zeros(5, np.uint8), "absent.png"]
)
def test_what_is_no_picture(segmenter: Segmenter, picture: object) -> None:
    with pytest.raises(SOTRError):
        segmenter.predict(picture)  # type: ignore[call-overload]


def test_predicting_keeps_no_graph_and_no_training_mode(segmenter: Segmenter, picture: np.ndarray) -> None:
    before = {name: value.clone() for name, value in segmenter.network.state_dict().items()}
    segmenter.predict(picture)
    assert not segmenter.network.training
    assert all(torch.equal(before[name], value) for name, value in segmenter.network.state_dict().items())


# Folders.


def test_saved_and_loaded_is_the_same(segmenter: Segmenter, saved: Path, picture: np.ndarray) -> None:
    loaded = Segmenter.load_folder(saved)
    assert same(loaded.predict(picture), segmenter.predict(picture))
    assert loaded.config == segmenter.config
    assert loaded.class_names == segmenter.class_names
    assert loaded.category_ids == segmenter.category_ids
    assert loaded.decode_options == LENIENT
    assert loaded.card == "# A card\n"
    assert loaded.name == "pets"
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_the_size_of_training_images_is_kept_where_it_is_known(segmenter: Segmenter, folder: Path) -> None:
    assert Segmenter.load_folder(folder).training_size is None  # a folder of before
    known = copy.deepcopy(segmenter)
    known.domain = Domain.of([Traits(0.1, 0.2, 0.0, 0.0, 0.9)], (512, 640))
    known.save(folder)
    assert Segmenter.load_folder(folder).training_size == (512, 640)
    text = (folder / "traits.json").read_text()
    damaged = [json.dumps(json.loads(text) | {"median_size": size}) for size in ([0, 5], [5], "5x5", "ab")]
    for content in ("[", "[]", "{}", *damaged):
        (folder / "traits.json").write_text(content)
        with pytest.raises(SOTRError, match=r"traits\.json.* remove it, or copy"):
            Segmenter.load_folder(folder)
    (folder / "traits.json").write_text(json.dumps(json.loads(text) | {"median_size": None}))
    assert Segmenter.load_folder(folder).training_size is None


def test_a_digest_tells_weights_apart(saved: Path) -> None:
    one, other = Segmenter.load_folder(saved), Segmenter.load_folder(saved)
    assert one.digest() == other.digest()
    with torch.no_grad():
        next(other.network.parameters()).view(-1)[0] += 1e-3
    assert one.digest() != other.digest()


def test_config_is_readable(saved: Path) -> None:
    text = (saved / "config.json").read_text()
    assert json.loads(text)["format"] == 1
    assert set(json.loads(text)) == {"format", "architecture", "class_names", "category_ids", "decoding"}
    grids = SOTRConfig.preset("sotr-nano").grids
    assert f'"grids": [{", ".join(map(str, grids))}]' in text  # on one line
    assert '"category_ids": [3, 17, 90]' in text


def test_half_precision(segmenter: Segmenter, saved: Path, tmp_path: Path, picture: np.ndarray) -> None:
    segmenter.save(tmp_path / "half", half=True, card="# Small\n")
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    kinds = {name: tensor.dtype for name, tensor in tensors.items()}
    assert all(kind == torch.float32 for name, kind in kinds.items() if name.endswith(("running_mean", "running_var")))
    assert {kind for name, kind in kinds.items() if name.endswith("num_batches_tracked")} == {torch.int64}
    assert {kinds[name] for name, _ in segmenter.network.named_parameters()} == {torch.float16}
    whole, half = ((path / "model.safetensors").stat().st_size for path in (saved, tmp_path / "half"))
    assert half < 0.52 * whole

    loaded = load(tmp_path / "half")
    assert {tensor.dtype for tensor in loaded.network.parameters()} == {torch.float32}
    assert loaded.card == "# Small\n"
    for name, tensor in segmenter.network.state_dict().items():
        assert torch.allclose(loaded.network.state_dict()[name].double(), tensor.double(), rtol=1e-3, atol=1e-7)
    assert len(loaded.predict(picture)) > 0


def test_weights_beyond_half_precision_are_kept(tmp_path: Path) -> None:
    network = build_network(SOTRConfig.preset("sotr-nano", num_classes=1))
    name, parameter = next(iter(network.named_parameters()))
    with torch.no_grad():
        parameter.flatten()[0] = 1e6
    Segmenter(network, ["x"], [1]).save(tmp_path, half=True)
    assert load_file(tmp_path / "model.safetensors")[name].dtype == torch.float32
    loaded = dict(load(tmp_path).network.named_parameters())[name]
    assert loaded.flatten()[0] == 1e6


def test_the_hub_interface_writes_the_same_folder(segmenter: Segmenter, tmp_path: Path, picture: np.ndarray) -> None:
    segmenter.save_pretrained(tmp_path / "hub")
    again = Segmenter.from_pretrained(tmp_path / "hub")
    assert same(again.predict(picture), segmenter.predict(picture))
    Segmenter(segmenter.network, ["a", "b", "c"], [1, 2, 3]).save_pretrained(tmp_path / "no card")
    cards = [ModelCard.load(tmp_path / folder / "README.md") for folder in ("hub", "no card")]
    assert [card.data.library_name for card in cards] == ["sotr", "sotr"]
    assert [card.data.pipeline_tag for card in cards] == ["image-segmentation"] * 2
    assert cards[0].text.strip() == "# A card"
    assert "a, b, c" in cards[1].text
    assert "sotr.load(" in cards[1].text
    again.save_pretrained(tmp_path / "hub 2")
    assert (tmp_path / "hub 2" / "README.md").read_text() == (tmp_path / "hub" / "README.md").read_text()


def test_publishing_sends_the_folder(
    segmenter: Segmenter, tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what goes over the network is replaced: what would be uploaded is what `load` gets back."""
    hub = tmp_path / "hub"

    def upload(api: HfApi, *, repo_id: str, folder_path: Path, **options: object) -> str:
        shutil.copytree(folder_path, hub / repo_id)
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(HfApi, "create_repo", lambda api, repo_id, **options: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(model_module, "snapshot_download", lambda repo_id, **options: str(hub / repo_id))
    assert segmenter.push_to_hub("someone/pets") == "https://hub/someone/pets"
    published = hub / "someone" / "pets"
    assert sorted(path.name for path in published.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    monkeypatch.chdir(tmp_path)
    for loaded in (load("someone/pets"), Segmenter.from_pretrained("someone/pets")):
        assert loaded.name == "someone/pets"
        assert same(loaded.predict(picture), segmenter.predict(picture))


def test_a_failed_save_leaves_the_old_folder(
    segmenter: Segmenter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = Segmenter(segmenter.network, ["a", "b", "c"], [1, 2, 3], name="other")

    def full_disk(*_: object, **__: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sotr.model.files.save", full_disk)  # the weights, the largest of the files
    with pytest.raises(SOTRError, match=r"cannot write the model folder.*No space left"):
        other.save(folder, card="new")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_load_finds_folders_and_runs(saved: Path, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run7"
    shutil.copytree(saved, run / "model")
    assert sotr.load(run).name == "run7"
    assert sotr.load(str(folder)).name == "pets"
    assert sotr.load(run / "model").class_names == ("cat", "dog", "bird")


def test_bundled_models_come_first(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(saved, tmp_path / "package" / "pets")
    (tmp_path / "here" / "pets").mkdir(parents=True)  # say, a data set of the same name
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(model_module, "BUNDLED_MODELS", tmp_path / "package")
    assert bundled_models() == ("pets",)
    assert load("pets").name == "pets"
    with pytest.raises(SOTRError, match="holds no model"):
        load("./pets")
    with pytest.raises(SOTRError, match=r"there is no model 'pest'.*bundled models \(pets\)"):
        load("pest")


def test_every_bundled_model_loads_and_has_a_card() -> None:
    for name in bundled_models():
        bundled = load(name)
        assert bundled.name == name
        assert bundled.card
        assert all(tensor.isfinite().all() for tensor in bundled.network.parameters())


def test_a_hub_id_without_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(hub_id: str, **options: object) -> str:
        raise ConnectionError(f"no route to {hub_id}\nand more")

    # The only thing replaced is the network.
    monkeypatch.setattr(model_module, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SOTRError, match=r"someone/cells is no folder here, nor .* no route to someone/cells") as caught:
        load("someone/cells")
    assert "\n" not in str(caught.value)
    with pytest.raises(SOTRError, match="there is no model"):
        load("a/b/c")


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_damaged_config(folder: Path) -> None:
    config = folder / "config.json"
    whole = config.read_text()
    for spoilt, message in (
        (whole[: len(whole) // 2], r"config\.json cannot be read"),
        ("[]", 'no "format" number'),
        (whole.replace('"format": 1', '"format": 2'), "has format 2, this version reads up to 1; install a newer"),
        (whole.replace('"dog"', "7"), "class_names must be a list of texts"),
        (whole.replace("17", "3"), "same category id"),
        (whole.replace('"width": 96', '"width": 97'), r"config\.json: .*width 97 is not divisible"),
        (whole.replace('"width": 96', '"breadth": 96'), r"config\.json: unknown setting breadth"),
        (whole.replace('"points_nms": false', '"points_nms": 1'), "points_nms is 1; it must look like False"),
        (whole.replace('"points_nms"', '"lines_nms"'), "unknown decoding setting lines_nms"),
        (whole.replace('"class_names"', '"names"'), "should have exactly the keys .* look at class_names, names"),
    ):
        assert spoilt != whole
        config.write_text(spoilt)
        with pytest.raises(SOTRError, match=message) as caught:
            Segmenter.load_folder(folder)
        assert "\n" not in str(caught.value)


def test_classes_must_match_the_network(folder: Path) -> None:
    edit(folder, class_names=["cat", "dog"])
    message = r"config\.json: the network has 3 classes, but there are 2 class names and 3 category ids"
    with pytest.raises(SOTRError, match=message):
        Segmenter.load_folder(folder)


def test_damaged_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for spoilt in (content[:100], content[: len(content) // 2], b"", b"\xff" * 64):
        weights.write_bytes(spoilt)
        with pytest.raises(SOTRError, match=r"model\.safetensors is not a sound safetensors file") as caught:
            Segmenter.load_folder(folder)
        assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(SOTRError, match=r"model\.safetensors is missing"):
        Segmenter.load_folder(folder)


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    names = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim)
    changed = dict(tensors)
    for name in names[:7]:
        del changed[name]
    changed["stranger.weight"] = torch.zeros(2)
    changed[names[7]] = torch.zeros(1, 2, 3, 4, 5)
    changed[names[8]] = changed[names[8]].to(torch.int64)
    save_file(changed, weights)
    with pytest.raises(SOTRError) as caught:
        Segmenter.load_folder(folder)
    message = str(caught.value)
    assert f"7 missing: {', '.join(names[:5])}, ..." in message
    assert names[5] not in message
    assert "1 unexpected: stranger.weight" in message
    assert f"1 of another shape: {names[7]} (1, 2, 3, 4, 5) instead of {tuple(tensors[names[7]].shape)}" in message
    assert f"1 of another type: {names[8]}" in message
    assert "\n" not in message


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    """They would find nothing in any image, and say so without an error."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tensors["class_head.bias"][0] = torch.nan
    save_file(tensors, weights)
    with pytest.raises(SOTRError, match=r"is damaged: 1 with values that are not finite: class_head\.bias; copy"):
        Segmenter.load_folder(folder)


def test_places_that_hold_no_model(saved: Path, tmp_path: Path) -> None:
    for place, message in (
        (tmp_path, "holds no model"),
        (saved / "model.safetensors", "is a file; give the folder"),
        ("no such model", "there is no model 'no such model'"),
        ("sotr-nano", "is an architecture without weights; train it first: sotr train DATA --model sotr-nano"),
    ):
        with pytest.raises(SOTRError, match=message):
            load(place)
    with pytest.raises(SOTRError, match=r"config\.json is missing"):
        Segmenter.load_folder(tmp_path)


def test_devices(segmenter: Segmenter) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == (
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )
    for name in ("toaster", "meta"):
        with pytest.raises(SOTRError, match=f"there is no device '{name}'"):
            choose_device(name)
    with pytest.raises(SOTRError, match="device cuda:99 is not there"):
        choose_device("cuda:99")


def test_names_and_ids_of_a_segmenter_are_checked(segmenter: Segmenter) -> None:
    with pytest.raises(SOTRError, match="2 class names"):
        Segmenter(segmenter.network, ["a", "b"], [1, 2])
    with pytest.raises(SOTRError, match="same category id"):
        Segmenter(segmenter.network, ["a", "b", "c"], [1, 2, 2])


def test_public_names() -> None:
    assert all(getattr(sotr, name) is not None for name in sotr.__all__ if name not in ("train", "evaluate"))
    assert set(sotr.__all__) <= set(dir(sotr))
    assert sotr.__version__.count(".") >= 1
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = sotr.nonsense


def test_prediction_follows_changes_of_the_network(saved, picture):
    """Prediction uses a quicker copy: it must not outlive the weights it was made of."""
    segmenter = load(saved)
    before = segmenter.predict(picture)
    segmenter.accelerate()
    assert segmenter.predict(picture).rles == before.rles
    copied = copy.deepcopy(segmenter)
    with torch.no_grad():
        segmenter.network.class_head.bias -= 20.0
    assert len(before) > 0
    assert len(segmenter.predict(picture)) == 0
    assert copied.predict(picture).rles == before.rles
    segmenter.network.load_state_dict(copied.network.state_dict())
    assert segmenter.predict(picture).rles == before.rles


def test_prediction_sees_layers_that_are_replaced(saved, picture):
    segmenter = load(saved)
    segmenter.accelerate()
    assert len(segmenter.predict(picture)) > 0
    head = copy.deepcopy(segmenter.network.class_head)
    with torch.no_grad():
        head.bias -= 20.0
    segmenter.network.class_head = head
    assert len(segmenter.predict(picture)) == 0


def test_an_engine_is_made_when_it_pays_and_never_if_not_wanted(saved, picture, monkeypatch):
    made = []
    monkeypatch.setattr(
        "sotr.model.segmenter.accelerate", lambda network, *_: made.append(network) or plain_steps(network, *_[1:])
    )
    segmenter = load(saved)
    segmenter.predict([picture] * (ENGINE_AFTER - 1))
    assert made == []
    segmenter.predict([picture] * 3)
    assert len(made) == 1
    with torch.no_grad():
        segmenter.network.class_head.bias += 0.1
    segmenter.predict(picture)
    assert len(made) == 2
    plain = load(saved, engine="pytorch")
    plain.accelerate()
    plain.predict([picture] * (ENGINE_AFTER + 1))
    assert len(made) == 2


def test_weights_of_half_precision_are_refused_in_a_line(saved, picture):
    segmenter = load(saved)
    segmenter.network.half()
    with pytest.raises(SOTRError, match="weights are torch\\.float16; keep float32, and choose precision='bfloat16'"):
        segmenter.predict(picture)


def covered(instances: Instances) -> np.ndarray:
    return np.any([coco_mask.decode(dict(rle)) for rle in instances.rles], 0)


def alike(first: Instances, second: Instances) -> bool:
    """Whether about as many objects cover about the same."""
    one, other = covered(first), covered(second)
    return abs(len(first) - len(second)) <= 0.05 * len(second) and (one & other).sum() > 0.97 * (one | other).sum()


def test_bfloat16_predicts_about_the_same():
    exact, quick = load("nuclei"), load("nuclei", precision="bfloat16")
    sample = draw_sample()
    found, expected = quick.predict(sample, score=0.3), exact.predict(sample, score=0.3)
    assert len(expected) > 10
    assert alike(found, expected)
    assert not np.array_equal(found.scores_I, expected.scores_I)
    assert quick.forward(torch.zeros(1, 3, 64, 64)).class_logits_BKM.dtype == torch.bfloat16
    assert quick.network.class_head.weight.dtype == torch.float32
    assert quick.digest() != exact.digest()


def test_precisions_that_there_are_not(saved, tmp_path):
    with pytest.raises(SOTRError, match="no precision 'float8'; choose one of float32, bfloat16"):
        load(saved, precision="float8")
    with pytest.raises(SOTRError, match="has the precision that it was exported with"):
        sotr.load(tmp_path / "model.onnx", precision="bfloat16")
    with pytest.raises(SOTRError, match="no engine 'fast'; choose one of auto, pytorch"):
        load(saved, engine="fast")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_predicts_the_same_again_and_again(precision):
    sample = draw_sample()
    expected = load("nuclei").predict(sample, score=0.3)
    segmenter = load("nuclei", "cuda", precision)
    for pictures in ([sample], [sample] * 2):
        for _ in range(6):  # as it is, recorded, replayed
            assert all(
                alike(found, expected) for found in segmenter.predict(pictures, score=0.3, batch_size=len(pictures))
            )
    with torch.no_grad():
        segmenter.network.class_head.bias -= 20.0
    assert len(segmenter.predict(sample)) == 0


@pytest.mark.parametrize("surroundings", ["autocast", "float64", "meta", "inference_mode"])
def test_prediction_does_not_depend_on_what_surrounds_it(saved, picture, surroundings):
    expected = load(saved).predict(picture)
    before = torch.get_default_dtype()
    around = {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "float64": nullcontext,
        "meta": lambda: torch.device("meta"),
        "inference_mode": torch.inference_mode,
    }[surroundings]
    try:
        torch.set_default_dtype(torch.float64 if surroundings == "float64" else before)
        with around():
            segmenter = load(saved)
            assert same(segmenter.predict(picture), expected)
            segmenter.accelerate()
            found = segmenter.predict(picture)
    finally:
        torch.set_default_dtype(before)
    assert found.rles == expected.rles
    np.testing.assert_allclose(found.scores_I, expected.scores_I, atol=1e-4)


def test_first_use_from_several_threads_leaves_other_modules_alone(saved, picture):
    """Models that are loaded, accelerated and used at once, beside a network that has nothing to do with them."""
    expected = load(saved).predict(picture)
    shared = load(saved)
    unrelated = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())
    stop = threading.Event()

    def others() -> int:
        calls = 0
        while not stop.is_set():
            unrelated(torch.zeros(1, 3))
            calls += 1
        return calls

    def use(number: int) -> Instances:
        segmenter = shared if number % 2 else load(saved)
        if number == 3:
            segmenter.accelerate()
        return segmenter.predict(picture)

    with ThreadPoolExecutor(5) as pool:
        beside = pool.submit(others)
        try:
            found = list(pool.map(use, range(8)))
        finally:
            stop.set()
        assert beside.result() > 0
    for each in found:
        assert each.rles == expected.rles
        np.testing.assert_allclose(each.scores_I, expected.scores_I, atol=1e-4)
