from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from sotr.config import SOTRConfig
from sotr.network import SOTR
from sotr.training import Recipe
from sotr.training.callbacks import AveragedWeights
from sotr.training.module import SOTRModule, parameter_groups
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


def test_a_frozen_backbone_stays_in_evaluation_mode() -> None:
    recipe = Recipe(epochs=1, backbone_lr_factor=0.0)
    module = SOTRModule(SOTRConfig.from_dict(CONFIG), recipe, 1, seed=0)
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
