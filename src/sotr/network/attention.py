"""Twin attention and the position embedding (section 3.1, Figure 3 (1) and (2))."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AttentionKernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Query, key and value of S sequences, (S, heads, L, C / heads) each -> the same shape."""


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention as its formula reads, softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017)."""
    weights = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-2, -1)).softmax(-1)
    return torch.matmul(weights, value)


class FullAttention(nn.Module):
    """Multi-head self-attention among all cells of a map, O((H W)^2) multiply-adds."""

    def __init__(self, width: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.to_out = nn.Linear(width, width)

    def forward(self, x_BNNC: Tensor, kernel: AttentionKernel = F.scaled_dot_product_attention) -> Tensor:
        """(B, rows, columns, C) -> the same shape.

        Args:
            x_BNNC: a map of any number of rows and columns.
            kernel: what computes the attention; any function equal to `plain_attention`.
        """
        return self.to_out(self.mix(self.to_qkv(x_BNNC), kernel))

    def mix(self, qkv_BNN3C: Tensor, kernel: AttentionKernel) -> Tensor:
        """What each cell gathers, (B, rows, columns, C), from every cell's query, key and value."""
        return self.attend(qkv_BNN3C.flatten(1, 2), kernel).view(*qkv_BNN3C.shape[:3], -1)

    def attend(self, qkv_SL3C: Tensor, kernel: AttentionKernel) -> Tensor:
        """Attention within each of S sequences of L cells -> (S, L, C)."""
        qkv = qkv_SL3C.unflatten(2, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (S, heads, L, C / heads)
        return kernel(query, key, value).transpose(1, 2).flatten(2)


class RowAttention(FullAttention):
    """Multi-head self-attention among the cells of each row; rows do not see one another."""

    def mix(self, qkv_BNN3C: Tensor, kernel: AttentionKernel) -> Tensor:
        """What each cell gathers, (B, rows, columns, C), from every cell's query, key and value."""
        return self.attend(qkv_BNN3C.flatten(0, 1), kernel).view(*qkv_BNN3C.shape[:3], -1)


class ColumnAttention(RowAttention):
    """Multi-head self-attention among the cells of each column; columns do not see one another."""

    def mix(self, qkv_BNN3C: Tensor, kernel: AttentionKernel) -> Tensor:
        """What each cell gathers, (B, rows, columns, C), from every cell's query, key and value."""
        return super().mix(qkv_BNN3C.transpose(1, 2), kernel).transpose(1, 2)


class TwinAttention(nn.Module):
    """Column attention, then row attention: together every cell sees every other.

    Costs O(H W (H + W)) multiply-adds over an H x W map, where full attention costs O((H W)^2). Each of the two has
    its own projections. Maps need not be square.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.column = ColumnAttention(width, heads)
        self.row = RowAttention(width, heads)

    def forward(self, x_BNNC: Tensor) -> Tensor:
        """(B, rows, columns, C) -> the same shape."""
        return self.row(self.column(x_BNNC))


class PositionEmbedding(nn.Module):
    """Learned embeddings of the column (1 x N x C) and of the row (N x 1 x C), added to every cell.

    One pair of tables serves all levels: for a map of another size they are resampled linearly, so that a cell at a
    given place in the image gets the same embedding on each level.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.column_NC = nn.Parameter(torch.empty(size, width))
        self.row_NC = nn.Parameter(torch.empty(size, width))
        nn.init.trunc_normal_(self.column_NC, std=0.02)
        nn.init.trunc_normal_(self.row_NC, std=0.02)

    def forward(self, x_BNNC: Tensor) -> Tensor:
        """(B, rows, columns, C) -> the same shape."""
        _, rows, columns, _ = x_BNNC.shape
        return x_BNNC + _resample(self.row_NC, rows)[:, None] + _resample(self.column_NC, columns)


def _resample(table_NC: Tensor, size: int) -> Tensor:
    if table_NC.shape[0] == size:
        return table_NC
    return F.interpolate(table_NC.T[None], size=size, mode="linear", align_corners=False)[0].T
