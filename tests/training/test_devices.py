"""Two processes do what one does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.strategies import FSDPStrategy
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from sotr.config import SOTRConfig
from sotr.data.batches import Batch
from sotr.data.sampling import EpochSampler
from sotr.errors import SOTRError
from sotr.learning import Assignment
from sotr.model.segmenter import Segmenter
from sotr.network import SOTR
from sotr.training import Recipe, train
from sotr.training.devices import Devices
from sotr.training.module import SOTRModule, shared_normalisers
from sotr.training.settings import check_same_sharing, surroundings
from sotr.training.work import TrainingInterrupted
from tests.support.commands import PROCESSES
from tests.training.conftest import CONFIG, draw_nothing

# One plain step of gradient descent: what the weights change by is the gradient. Running BatchNorm statistics are those
# of each process's own images, so they are left alone.
RECIPE = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "lr": 0.1,
    "warmup_iterations": 0,
    "batch_norm": "frozen",
    "batch_size": 4,
    "iterations": 1,
    "precision": "32-true",
    "ema_decay": 0.0,
}


def _rank(rank: int, port: int, settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    draw_nothing(pytest.MonkeyPatch())  # of this process, which ends with the run
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    train(**settings, devices=2)


class ShardedOnCPU(FSDPStrategy):
    """Lightning refuses its own class on CPUs, PyTorch can do it: slowly, but with the same collective calls."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)

    def barrier(self, name: str | None = None) -> None:
        dist.barrier()  # gloo takes no device ids


def _sharing_rank(rank: int, port: int, settings: dict[str, Any]) -> None:
    of_devices = Devices.trainer_arguments

    def sharing(self: Devices) -> dict[str, Any]:
        return of_devices(self) | {"strategy": ShardedOnCPU(state_dict_type="full")}

    Devices.trainer_arguments = sharing  # type: ignore[method-assign]
    _rank(rank, port, settings)


def _stopping_rank(rank: int, port: int, settings: dict[str, Any]) -> None:
    on_start = SOTRModule.on_train_batch_start

    def stop_in_third(self: SOTRModule, batch: Batch, batch_idx: int) -> None:
        on_start(self, batch, batch_idx)
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    SOTRModule.on_train_batch_start = stop_in_third  # type: ignore[method-assign]
    with pytest.raises(TrainingInterrupted, match="after step 3 of 4"):
        _sharing_rank(rank, port, settings)


def train_in_two_processes(settings: dict[str, Any], target: Callable[..., None] = _rank) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [PROCESSES.Process(target=target, args=(rank, port, settings)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0]


def settings_of(folder: Path, data: Path, **changes: Any) -> dict[str, Any]:
    (folder / "model.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **changes}))
    return {
        "data": str(data),
        "model": str(folder / "model.yaml"),
        "recipe": str(folder / "recipe.yaml"),
        "device": "cpu",
        "workers": 0,
        "quiet": True,
    }


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("empty_rank", [False, True])
def test_two_batches_of_two_give_the_gradients_of_one_of_four(
    coco_folder: Path, tmp_path: Path, empty_rank: bool
) -> None:
    data = tmp_path / "data"
    shutil.copytree(coco_folder, data)
    content = json.loads((data / "train.json").read_text())
    seed = 0
    if empty_rank:  # the images of the first process have no objects
        order = [index for _, index in EpochSampler(8, seed, batch_size=4)]
        empty = {content["images"][index]["id"] for index in order[:2]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in empty]
        (data / "train.json").write_text(json.dumps(content))
    # A crop, so that the order is that of the sampler alone.
    augmentation = {"scale": [0.9, 1.1], "crop": 64}
    settings = settings_of(tmp_path, data, augmentation=augmentation)
    settings |= {"train_json": str(data / "train.json"), "seed": seed}
    train(**settings, out=str(tmp_path / "one"))
    train_in_two_processes(settings | {"out": str(tmp_path / "two")})

    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    torch.manual_seed(seed)
    start = {
        f"network.{name}": value
        for name, value in SOTR(SOTRConfig.from_dict({**CONFIG, "num_classes": 3})).state_dict().items()
    }
    moved = 0
    for name, value in one.items():
        if value.is_floating_point():
            torch.testing.assert_close(two[name] - start[name], value - start[name], rtol=2e-3, atol=2e-6, msg=name)
            moved += int(not torch.equal(value, start[name]))
    assert moved > 20


def test_two_processes_validate_like_one(coco_folder: Path, tmp_path: Path) -> None:
    """With a network that takes the whole image for an object of some class, and images where that is true."""
    data = tmp_path / "data"
    shutil.copytree(coco_folder, data)
    for split in ("train", "val"):
        content = json.loads((data / f"{split}.json").read_text())
        classes = (3, 17, 90)
        content["annotations"] = []
        for number, image in enumerate(content["images"]):
            w, h = image["width"], image["height"]
            polygon = [0, 0, w, 0, w, h, 0, h]
            annotation = {"id": number + 1, "image_id": image["id"], "category_id": classes[number % 3], "iscrowd": 0}
            content["annotations"].append({**annotation, "segmentation": [polygon]})
        content["images"] = content["images"][:3] if split == "val" else content["images"]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        (data / f"{split}.json").write_text(json.dumps(content))

    torch.manual_seed(1)
    network = SOTR(SOTRConfig.from_dict({**CONFIG, "num_classes": 3}))
    with torch.no_grad():
        network.kernel_head.bias.fill_(1.0)
        network.class_head.weight.normal_(std=0.3)
        network.class_head.bias.zero_()
    Segmenter(network, ("disc", "box", "bar"), (3, 17, 90)).save(tmp_path / "model")
    settings = settings_of(tmp_path, data, lr=1e-30) | {"model": str(tmp_path / "model")}
    one = train(**settings, out=str(tmp_path / "one"))
    train_in_two_processes(settings | {"out": str(tmp_path / "two")})
    found = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert found == one.metrics
    assert found["detections"] > 3
    assert found["AP"] > 0.05
    assert (tmp_path / "two" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_torchrun(coco_folder: Path, tmp_path: Path, told: bool) -> None:
    settings = settings_of(tmp_path, coco_folder)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sotr.cli"]
    words += [
        "train",
        str(coco_folder),
        "--model",
        settings["model"],
        "--recipe",
        settings["recipe"],
        "--device",
        "cpu",
    ]
    words += ["--workers", "0", "--out", str(tmp_path / "run"), *(["--devices", "2"] if told else [])]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    if told:
        assert ended.returncode == 0, ended.stderr
        assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
        assert ended.stderr.count("the model is in") == 1
    else:
        assert ended.returncode != 0
        assert "torchrun started 2 processes (WORLD_SIZE), but devices x nodes is 1; give --devices" in ended.stderr
        assert not (tmp_path / "run").exists()


def test_one_process_counts_for_itself() -> None:
    empty = torch.zeros(0, dtype=torch.long)
    assignment = Assignment(torch.zeros(1, 4, dtype=torch.long), empty, empty, (0,), 0)
    assert shared_normalisers(assignment, torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({"RANK": "5", "LOCAL_RANK": "1"}, 5),  # torchrun
        ({"NODE_RANK": "1", "LOCAL_RANK": "2"}, 6),  # Lightning's own launcher
        ({"NODE_RANK": "1"}, 4),  # it sets the other variable only for the processes that it starts
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "0"}, 1),  # within a batch script
        ({"SLURM_PROCID": "3"}, 3),
        ({}, 0),
    ],
)
def test_the_rank_is_the_launchers(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], rank: int) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    devices = Devices(torch.device("cpu"), per_node=4, nodes=2)
    assert devices.rank == rank
    assert devices.main is (rank == 0)
    assert devices.first_of_node is (rank % 4 == 0)
    assert Devices(torch.device("cpu")).rank == 0  # a single device is nobody's part


@pytest.mark.parametrize(("name", "launcher"), [("WORLD_SIZE", "torchrun"), ("SLURM_STEP_NUM_TASKS", "srun")])
def test_processes_that_know_nothing_of_one_another_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, launcher: str
) -> None:
    for variable in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(variable, raising=False)
    Devices(torch.device("cpu")).check_launcher()
    monkeypatch.setenv(name, "2")
    Devices(torch.device("cpu"), per_node=2).check_launcher()
    with pytest.raises(SOTRError, match=rf"{launcher} started 2 processes .* devices x nodes is 1; give --devices"):
        Devices(torch.device("cpu")).check_launcher()


def test_settings_that_several_devices_cannot_follow() -> None:
    recipe = Recipe(epochs=1, batch_size=8, batch_norm="sync")
    with pytest.raises(SOTRError, match=r"batch_norm 'sync' needs CUDA"):
        Devices(torch.device("cpu"), per_node=2).check(recipe)
    with pytest.raises(SOTRError, match=r"cannot be shared out evenly to 3 devices"):
        Devices(torch.device("cpu"), per_node=3).check(recipe)
    Devices(torch.device("cpu")).check(recipe)
    with pytest.raises(SOTRError, match=r"16-mixed needs a GPU"):
        Devices(torch.device("cpu")).check(Recipe(epochs=1, precision="16-mixed"))


def test_weights_shared_out_to_two_processes_train_validate_and_are_saved_whole(
    coco_folder: Path, tmp_path: Path
) -> None:
    """Stopped and continued, with a norm of gradients and an optimizer's state of which each process has a part."""
    changes = {"iterations": 4, "momentum": 0.9, "clip_norm": 0.5}
    settings = settings_of(tmp_path, coco_folder, **changes)
    train_in_two_processes(settings | {"out": str(tmp_path / "shared")}, _stopping_rank)
    assert not (tmp_path / "shared" / "model").exists()
    again = {name: settings[name] for name in ("device", "workers", "quiet")}
    train_in_two_processes(again | {"out": str(tmp_path / "shared"), "resume": True}, _sharing_rank)
    train_in_two_processes(settings | {"out": str(tmp_path / "copied")})
    shared, copied = weights(tmp_path / "shared"), weights(tmp_path / "copied")
    assert shared.keys() == copied.keys()
    for name, value in copied.items():
        torch.testing.assert_close(
            shared[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    found, expected = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("shared", "copied"))
    assert found.keys() == expected.keys()
    assert (tmp_path / "shared" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("before", ["ddp", "fsdp"])
def test_an_optimiser_is_resumed_as_it_was_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    cuda = torch.device("cuda")
    run = surroundings(Devices(cuda, per_node=2, strategy=before), "bf16-mixed")
    check_same_sharing(tmp_path, run, Devices(cuda, per_node=8, strategy=before))
    other = Devices(cuda, strategy="ddp" if before == "fsdp" else "fsdp")
    with pytest.raises(SOTRError, match=f"strategy was {before}"):
        check_same_sharing(tmp_path, run, other)
    check_same_sharing(tmp_path, {}, Devices(torch.device("cpu")))  # begun by a version that does not note it


@pytest.mark.gpu
def test_weights_that_are_shared_out_train_validate_and_are_saved_whole(coco_folder: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, coco_folder, iterations=2) | {"device": "cuda"}
    sharded = train(**settings, strategy="fsdp", out=str(tmp_path / "fsdp"))
    plain = train(**settings, out=str(tmp_path / "plain"))
    for name, value in weights(plain.run).items():
        torch.testing.assert_close(weights(sharded.run)[name], value, rtol=1e-3, atol=1e-5, msg=name)
