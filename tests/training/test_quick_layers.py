"""The quick layers compute what the plain ones do, and leave nothing behind."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sotr.config import SOTRConfig
from sotr.network import SOTR
from sotr.training.quick_layers import QuickLayers

CONFIG = SOTRConfig(
    num_classes=3,
    backbone="mobilenetv2_035",
    width=32,
    depth=1,
    heads=4,
    mlp_ratio=1.0,
    grids=(12, 8, 6, 4, 2),
    mask_stage_channels=32,
    mask_channels=32,
)


def _network(backbone: str = CONFIG.backbone) -> SOTR:
    torch.manual_seed(0)
    network = SOTR(replace(CONFIG, backbone=backbone)).to(torch.float64, memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, _BatchNorm):  # statistics, scale and shift of a trained network
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.Conv2d):  # some start at zero and would hide what is before them
            nn.init.kaiming_normal_(module.weight)
    return network


def _frozen(network: SOTR) -> SOTR:
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval().requires_grad_(False)
    return network


def _outputs_and_gradients(network: SOTR, quick: QuickLayers | None) -> dict[str, Tensor]:
    network.zero_grad()
    images_B3HW = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if quick is None:
        outputs = network(images_B3HW)
    else:
        with quick.active():
            outputs = network(images_B3HW)
    sum(
        (output * torch.linspace(-1, 1, output[0].numel(), dtype=torch.float64).view_as(output[0])).sum()
        for output in outputs
    ).backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    return gradients | dict(zip(outputs._fields, (output.detach() for output in outputs), strict=True))


@pytest.mark.parametrize("backbone", ["mobilenetv2_035", "test_resnet"])
@pytest.mark.parametrize("frozen", [True, False])
def test_outputs_and_gradients_are_the_plain_ones(backbone: str, frozen: bool) -> None:
    network = _frozen(_network(backbone)) if frozen else _network(backbone)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    plain = _outputs_and_gradients(network, None)
    network.load_state_dict(state)
    quick = _outputs_and_gradients(network, QuickLayers(network, frozen))
    assert plain.keys() == quick.keys()
    for name, value in plain.items():
        torch.testing.assert_close(quick[name], value, rtol=1e-6, atol=1e-9 * (1 + float(value.abs().max())), msg=name)


def test_frozen_norms_are_left_to_the_convolutions() -> None:
    network = _frozen(_network())
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    with QuickLayers(network, frozen_norms=True).active():
        assert norms
        assert all("forward" in vars(norm) for norm in norms)
    with QuickLayers(network, frozen_norms=False).active():
        assert not any("forward" in vars(norm) for norm in norms)


def test_new_weights_are_seen() -> None:
    network = _frozen(_network())
    quick = QuickLayers(network, frozen_norms=True)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.mul_(1.1)
    plain, now = _outputs_and_gradients(network, None), _outputs_and_gradients(network, quick)
    torch.testing.assert_close(now["class_logits_BKM"], plain["class_logits_BKM"], rtol=1e-9, atol=1e-9)


def test_nothing_is_left_in_place() -> None:
    network = _frozen(_network())
    before = {name: set(vars(module)) for name, module in network.named_modules()}
    quick = QuickLayers(network, frozen_norms=True)
    with pytest.raises(RuntimeError), quick.active():
        raise RuntimeError
    assert {name: set(vars(module)) for name, module in network.named_modules()} == before


class _ReadTwice(nn.Module):
    """A norm that reads a convolution whose output is used elsewhere, too: its scale must not enter the latter."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        nn.init.constant_(self.norm.weight, 3.0)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.convolution(x)
        return [x, self.norm(x)]


def test_a_backbone_that_would_compute_something_else_keeps_its_norms() -> None:
    network = _frozen(_network())
    network.backbone = _ReadTwice().eval().double()  # type: ignore[assignment]
    with QuickLayers(network, frozen_norms=True).active():
        assert "forward" not in vars(network.backbone.norm)
