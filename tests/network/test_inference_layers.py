import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sotr.network.attention import PositionEmbedding
from sotr.network.inference_layers import ChannelsLastGroupNorm, FixedPosition


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
def test_group_norm_over_its_input(dtype, tolerance):
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 24)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm = norm.to(dtype)
    x = (3 * torch.randn(2, 24, 9, 13) + 2).to(dtype).to(memory_format=torch.channels_last)
    expected = F.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps)
    found = ChannelsLastGroupNorm(norm)(x)
    assert found.data_ptr() == x.data_ptr()
    assert found.dtype == dtype
    assert (found - expected).norm() < tolerance * expected.norm()


@torch.inference_mode()
def test_fixed_position_is_the_embedding_and_keeps_few_sizes(monkeypatch):
    monkeypatch.setattr(FixedPosition, "SIZES", 2)
    torch.manual_seed(0)
    position = PositionEmbedding(6, 8)
    fixed = FixedPosition(position)
    for size in [(6, 6), (4, 9), (6, 6), (1, 3), (4, 9)]:
        x = torch.randn(2, *size, 8)
        torch.testing.assert_close(fixed(x), position(x), rtol=0, atol=1e-6)
        assert len(fixed._of_size) <= 2
