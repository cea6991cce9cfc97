"""Which of PyTorch's operators are quick on a CPU, one picture of 800 x 1088 at a time, and so taken by
`prepare_for_inference`.

    python benchmarks/operators.py

First the 1 x 1 convolutions of a ResNet-50 with ReLU, as oneDNN's convolution and as its matrix product, without and
with a shortcut to add (the product then needs passes of their own for sum and ReLU); then 3 x 3 ones in float32,
direct and by Winograd's arithmetic; then attention over rows of cells, fused and plain, before and after the number of
threads is set to what it is. Medians of nine runs.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from sotr.network.attention import plain_attention
from sotr.network.onednn import OneDNNConv, OneDNNPointwiseConv
from sotr.network.winograd import WinogradConv, quickest_library

SHAPES = [
    (64, 256, 200, 272),
    (256, 64, 200, 272),
    (128, 512, 100, 136),
    (512, 128, 100, 136),
    (256, 1024, 50, 68),
    (1024, 256, 50, 68),
    (1024, 512, 50, 68),
    (512, 2048, 25, 34),
    (2048, 512, 25, 34),
]
"""Channels before and after, height and width."""

SHAPES_3X3 = [
    (64, 64, 200, 272),
    (128, 128, 100, 136),
    (256, 256, 50, 68),
    (512, 512, 25, 34),
    (256, 256, 200, 272),
    (256, 256, 100, 136),
    (256, 256, 40, 40),
    (256, 256, 24, 24),
    (256, 128, 200, 272),
]
"""The same, of 3x3 convolutions."""

ROWS = (12, 24, 40, 48, 64, 96)


def median_ms(work: Callable[[], object], runs: int = 9) -> float:
    """Milliseconds, after two runs to warm up."""
    times = []
    for run in range(runs + 2):
        start = time.perf_counter()
        work()
        if run > 1:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


@torch.inference_mode()
def main() -> None:
    """Print the tables."""
    print(f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}\n")
    print("| type | channels | map | convolution, ms | product, ms | adding convolution, ms | product and sum, ms |")
    print("|---|---|---|---:|---:|---:|---:|")
    for dtype in (torch.float32, torch.bfloat16):
        for before, after, height, width in SHAPES:
            layer = nn.Conv2d(before, after, 1)
            x = torch.randn(1, before, height, width, dtype=dtype).to(memory_format=torch.channels_last)
            add = torch.randn(1, after, height, width, dtype=dtype).to(memory_format=torch.channels_last)
            conv = OneDNNConv(layer, dtype, "relu", None, in_place=True)
            product = OneDNNPointwiseConv(layer, dtype, "relu", None)
            times = [
                median_ms(work)
                for work in (
                    lambda conv=conv, x=x: conv(x),
                    lambda product=product, x=x: product(x),
                    lambda conv=conv, x=x, add=add: conv(x, add),
                    lambda product=product, x=x, add=add: product(x, add),
                )
            ]
            cells = " | ".join(f"{ms:.2f}" for ms in times)
            print(f"| {str(dtype).removeprefix('torch.')} | {before} to {after} | {height} x {width} | {cells} |")
    print("\n| channels | map | direct, ms | Winograd, ms |\n|---|---|---:|---:|")
    for before, after, height, width in SHAPES_3X3:
        conv = WinogradConv(nn.Conv2d(before, after, 3, padding=1), "none", None, quickest_library())
        x = torch.randn(1, before, height, width).to(memory_format=torch.channels_last)
        direct = median_ms(lambda conv=conv, x=x: conv.direct(x))
        tiled = median_ms(lambda conv=conv, x=x: conv(x))
        print(f"| {before} to {after} | {height} x {width} | {direct:.2f} | {tiled:.2f} |")
    for set_or_not in ("as PyTorch starts", "after torch.set_num_threads"):
        if set_or_not != "as PyTorch starts":
            torch.set_num_threads(torch.get_num_threads())
        print(f"\n| {set_or_not}: rows of | fused, ms | plain, ms |\n|---|---:|---:|")
        attention_of_rows()


def attention_of_rows() -> None:
    """Print the lines of the table of attention."""
    for cells_in_row in ROWS:
        # As in the network, where all three are views of one product.
        query, key, value = torch.randn(cells_in_row, cells_in_row, 3, 8, 32).permute(2, 0, 3, 1, 4)
        fused = median_ms(lambda q=query, k=key, v=value: F.scaled_dot_product_attention(q, k, v))
        plain = median_ms(lambda q=query, k=key, v=value: plain_attention(q, k, v))
        print(f"| {cells_in_row} cells | {fused:.2f} | {plain:.2f} |")


if __name__ == "__main__":
    main()
