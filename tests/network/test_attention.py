import math

import pytest
import torch

from sotr.network.attention import ColumnAttention, PositionEmbedding, RowAttention, TwinAttention

WIDTH, HEADS = 24, 3


def plain_attention(x_NC, attention):
    """softmax(q k^T / sqrt(d)) v of one sequence, head by head, as in Vaswani et al. 2017."""
    query, key, value = (x_NC @ attention.to_qkv.weight.T + attention.to_qkv.bias).chunk(3, dim=-1)
    size = WIDTH // HEADS
    heads = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        weights = (query[:, part] @ key[:, part].T / math.sqrt(size)).softmax(-1)
        heads.append(weights @ value[:, part])
    return torch.cat(heads, -1) @ attention.to_out.weight.T + attention.to_out.bias


def plain_column_attention(x_BNNC, attention):
    out = torch.empty_like(x_BNNC)
    for picture in range(x_BNNC.shape[0]):
        for column in range(x_BNNC.shape[2]):
            out[picture, :, column] = plain_attention(x_BNNC[picture, :, column], attention)
    return out


def plain_row_attention(x_BNNC, attention):
    return plain_column_attention(x_BNNC.transpose(1, 2), attention).transpose(1, 2)


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (3, 7), (8, 1), (1, 4)])
def test_twin_attention_equals_the_plain_formula(rows, columns):
    torch.manual_seed(0)
    twin = TwinAttention(WIDTH, HEADS).double()
    x = torch.randn(2, rows, columns, WIDTH, dtype=torch.float64)
    expected = plain_row_attention(plain_column_attention(x, twin.column), twin.row)
    torch.testing.assert_close(twin(x), expected, rtol=1e-10, atol=1e-12)


def dependence(module, rows=4, columns=6):
    """(rows, columns, rows, columns) bool: whether output cell (i, j) depends on input cell (k, l)."""
    x = torch.randn(1, rows, columns, WIDTH, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(module, x)
    return jacobian.abs().amax((0, 3, 4, 7)) > 1e-12


def test_receptive_fields():
    torch.manual_seed(0)
    rows, columns = torch.arange(4), torch.arange(6)
    same_row = (rows[:, None, None, None] == rows[None, None, :, None]).expand(4, 6, 4, 6)
    same_column = (columns[None, :, None, None] == columns[None, None, None, :]).expand(4, 6, 4, 6)
    assert torch.equal(dependence(ColumnAttention(WIDTH, HEADS).double()), same_column)
    assert torch.equal(dependence(RowAttention(WIDTH, HEADS).double()), same_row)
    assert dependence(TwinAttention(WIDTH, HEADS).double()).all()


def test_position_embedding_adds_row_and_column_tables():
    embedding = PositionEmbedding(5, WIDTH)
    out = embedding(torch.zeros(2, 5, 5, WIDTH))
    assert out.shape == (2, 5, 5, WIDTH)
    torch.testing.assert_close(out[1, 3, 4], embedding.row_NC[3] + embedding.column_NC[4])


def test_position_embedding_is_resampled_by_place():
    embedding = PositionEmbedding(8, 1)
    with torch.no_grad():  # a ramp over the image: the place of each cell's center, in 0..1
        embedding.row_NC.zero_()
        embedding.column_NC.copy_((torch.arange(8)[:, None] + 0.5) / 8)
    out = embedding(torch.zeros(1, 3, 16, 1))[0, :, :, 0]
    assert out.shape == (3, 16)
    centres = (torch.arange(16) + 0.5) / 16
    torch.testing.assert_close(out[0, 1:-1], centres[1:-1])  # linear inside, constant beyond the outer centers
    assert torch.equal(out[0], out[2])
