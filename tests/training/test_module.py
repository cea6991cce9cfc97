from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from sotr.config import SOTRConfig
from sotr.data.batches import Batch
from sotr.errors import SOTRError
from sotr.learning import LossOptions, assign
from sotr.network import SOTR
from sotr.training import Recipe
from sotr.training.averaging import AveragedWeights
from sotr.training.module import SOTRModule, parameter_groups
from tests.scenes import make_targets, random_masks
from tests.training.conftest import CONFIG


@pytest.fixture(scope="module")
def network() -> SOTR:
    return SOTR(SOTRConfig.from_dict(CONFIG))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_parameter_groups(network: SOTR, optimizer: Any) -> None:
    recipe = Recipe(epochs=1, optimizer=optimizer, lr=0.5, weight_decay=0.25, backbone_lr_factor=0.1)
    setting = {}
    for group in parameter_groups(network, recipe):
        for parameter in group["params"]:
            assert id(parameter) not in setting
            setting[id(parameter)] = (group["lr"], group["weight_decay"])
    named = dict(network.named_parameters())
    assert len(setting) == len(named)

    for name, parameter in named.items():
        assert setting[id(parameter)][0] == pytest.approx(0.05 if name.startswith("backbone.") else 0.5), name
    decayed = {name: setting[id(parameter)][1] > 0 for name, parameter in named.items()}
    assert decayed["transformer.layers.0.mlp.0.weight"]
    assert decayed["fpn.pyramid.inner_blocks.0.0.weight"]
    assert decayed["transformer.layers.0.mlp.0.bias"] is (optimizer == "sgd")
    assert decayed["transformer.position.row_NC"] is (optimizer == "sgd")
    for prefix, module in network.named_modules():
        if isinstance(module, nn.GroupNorm | nn.BatchNorm2d | nn.LayerNorm):
            assert not any(decayed[f"{prefix}.{name}"] for name, _ in module.named_parameters()), prefix


def test_the_class_heads_weights_start_and_learn_at_a_multiple() -> None:
    config = SOTRConfig.from_dict(CONFIG)
    networks = []
    for scale in (1.0, 8.0):
        torch.manual_seed(0)
        recipe = Recipe(epochs=1, lr=0.5, weight_decay=0.25, class_head_scale=scale)
        networks.append(SOTRModule(config, recipe, 1, seed=0).network)
    common, scaled = networks
    torch.testing.assert_close(scaled.class_head.weight, common.class_head.weight * 8)
    torch.testing.assert_close(scaled.kernel_head.weight, common.kernel_head.weight)

    groups = parameter_groups(scaled, recipe)
    assert sum(len(group["params"]) for group in groups) == len(list(scaled.parameters()))
    own = [group for group in groups if group["lr"] == 4.0]
    assert [len(group["params"]) for group in own] == [1]
    assert own[0]["params"][0] is scaled.class_head.weight
    assert own[0]["lr"] * own[0]["weight_decay"] == 0.5 * 0.25  # what a step decays
    assert {group["lr"] for group in groups} == {0.5, 4.0}
    assert len(parameter_groups(common, Recipe(epochs=1))) == 4


def test_a_frozen_backbone_stays_in_evaluation_mode() -> None:
    recipe = Recipe(epochs=1, backbone_lr_factor=0.0)
    module = SOTRModule(SOTRConfig.from_dict(CONFIG), recipe, 1, seed=0)
    assert not any(part.training for part in module.network.backbone.modules())  # from the first step on
    module.train()
    assert module.network.fpn.training
    assert not any(part.training for part in module.network.backbone.modules())
    trained = {id(parameter) for group in parameter_groups(module.network, recipe) for parameter in group["params"]}
    assert not trained & {id(parameter) for parameter in module.network.backbone.parameters()}


class _Line(pl.LightningModule):
    """A regression whose weights differ after every step, with a buffer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).square().sum() + self.layer[0].weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class _Diary(pl.Callback):
    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.weights.append({name: value.clone() for name, value in pl_module.state_dict().items()})


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_the_average_follows_its_formula() -> None:
    torch.manual_seed(0)
    module, average, diary = _Line(), AveragedWeights(0.5), _Diary()
    start = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[average, diary],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(24, 3), batch_size=4))

    assert len(diary.weights) == 12
    expected = {name: value.double() for name, value in start.items()}
    for step, weights in enumerate(diary.weights, start=1):
        decay = min(0.5, (1 + step) / (10 + step))  # 2/11, 3/12 .. and 0.5 from step 8 on
        for name, value in weights.items():
            expected[name] = (
                decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.double()
            )
    # Lightning leaves the averaged weights in the module at the end.
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(module.layer[0].weight, diary.weights[-1]["layer.0.weight"])


def _batch(device: str = "cpu") -> Batch:
    config = SOTRConfig.from_dict({**CONFIG, "num_classes": 3})
    targets = [make_targets(random_masks(count, 64, 64, count), torch.arange(count) % 3, 4) for count in (3, 0)]
    torch.manual_seed(0)
    batch = Batch(
        images_B3HW=torch.randn(2, 3, 64, 64),
        image_ids=[1, 2],
        file_names=["1.png", "2.png"],
        image_sizes=[(64, 64)] * 2,
        original_sizes=[(64, 64)] * 2,
        targets=targets,
        assignment=assign(targets, config, (64, 64)),
    )
    return batch.to(device)


def _losses_and_gradients(compiled: bool, device: str = "cpu", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    config = SOTRConfig.from_dict({**CONFIG, "num_classes": 3})
    module = SOTRModule(config, Recipe(epochs=1), 1, seed=0, compile=compiled).to(device).train()
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        losses = module.losses(_batch(device))
    sum(losses.values()).backward()
    gradients = {name: value.grad.cpu() for name, value in module.network.named_parameters()}
    return {name: value.detach().cpu() for name, value in losses.items()} | gradients


@pytest.mark.slow
def test_compiled_steps_have_the_same_loss_and_gradients() -> None:
    plain, compiled = (_losses_and_gradients(compiled) for compiled in (False, True))
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=2e-3, atol=2e-4, msg=name)


def test_the_compiled_network_is_not_in_the_state_dict_twice() -> None:
    config = SOTRConfig.from_dict(CONFIG)
    names = [set(SOTRModule(config, Recipe(epochs=1), 1, 0, compile=c).state_dict()) for c in (False, True)]
    assert names[0] == names[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_near_float32(dtype: torch.dtype) -> None:
    exact, mixed = _losses_and_gradients(False), _losses_and_gradients(False, dtype=dtype)
    for name in ("loss_class", "loss_mask"):
        assert mixed[name].dtype == torch.float32
        assert float(mixed[name]) == pytest.approx(float(exact[name]), rel=0.03), name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_step_on_a_gpu_is_that_on_a_cpu(dtype: torch.dtype | None) -> None:
    cpu, gpu = _losses_and_gradients(False), _losses_and_gradients(False, "cuda", dtype)
    for name in ("loss_class", "loss_mask"):
        assert float(gpu[name]) == pytest.approx(float(cpu[name]), rel=1e-3 if dtype is None else 0.03), name


@pytest.mark.parametrize("last", [2, 4])
def test_frozen_stages_are_those_before_a_map(last: int) -> None:
    recipe = Recipe(epochs=1, batch_norm="frozen", frozen_stages=last)
    backbone = SOTRModule(SOTRConfig.from_dict(CONFIG), recipe, 1, seed=0).network.backbone
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    convolutions = {f"{name}.weight" for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d)}
    # C2 is made by the stem and layer1, C4 by layer2 and layer3, too.
    stages = ("body.conv1", *(f"body.layer{number}" for number in range(1, last)))
    assert frozen & convolutions == {name for name in convolutions if name.startswith(stages)}
    assert frozen & convolutions
    assert convolutions - frozen


def test_frozen_stages_need_frozen_norms() -> None:
    with pytest.raises(SOTRError, match="batch_norm"):
        Recipe(epochs=1, frozen_stages=2)


def test_frozen_batch_norms_neither_move_nor_learn() -> None:
    module = SOTRModule(SOTRConfig.from_dict(CONFIG), Recipe(epochs=1, batch_norm="frozen"), 1, seed=0)
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training or norm.weight.requires_grad or norm.bias.requires_grad for norm in norms)
    assert module.network.backbone.training


@pytest.mark.parametrize("quick", [True, False])
def test_gradients_are_clipped_with_either_optimizer(quick: bool, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, quick_layers=quick)
    module = SOTRModule(SOTRConfig.from_dict({**CONFIG, "num_classes": 3}), recipe, 1, seed=0)
    norms: list[float] = []

    class Look(pl.Callback):
        def on_before_zero_grad(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
            gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    trainer = pl.Trainer(
        max_steps=2,
        gradient_clip_val=0.01,
        accelerator="cpu",
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[Look()],
    )
    trainer.fit(module, torch.utils.data.DataLoader([_batch()] * 2, batch_size=None))
    assert bool(trainer.optimizers[0].defaults["fused"]) is quick
    # Gradients are of the step before when the next one sets them to zero.
    assert norms[1:]
    assert all(norm == pytest.approx(0.01, rel=1e-3) for norm in norms[1:])


def test_the_rate_keeps_pace_with_the_time() -> None:
    recipe = Recipe(epochs=1, warmup_iterations=0)
    module = SOTRModule(SOTRConfig.from_dict(CONFIG), recipe, 1000, seed=0)
    assert module.lr_factor(10) == recipe.lr_factor(10, 1000)
    module.time_fraction = 0.5  # half of the time for a hundredth of the steps
    assert module.lr_factor(10) == recipe.lr_factor(500, 1000) == pytest.approx(0.505)
    assert module.lr_factor(800) == recipe.lr_factor(800, 1000)


def test_the_truth_is_no_coarser_than_the_mask_features() -> None:
    config = SOTRConfig.from_dict({**CONFIG, "num_classes": 2, "mask_feature_stride": 1})
    with pytest.raises(SOTRError, match=r"loss\.mask_stride is 4, coarser than the model's mask_feature_stride 1"):
        SOTRModule(config, Recipe(epochs=1), 10, 0)
    SOTRModule(config, Recipe(epochs=1, loss=LossOptions(mask_stride=1)), 10, 0)
