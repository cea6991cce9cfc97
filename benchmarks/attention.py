"""The layers of Figure 3 against one another: time of a training step and what is saved for the backward pass."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measure import Parts, Stopwatch, alternate
from benchmarks.report import Row, timed
from sotr.acceleration.cuda.packed_transformer import PackedTransformer
from sotr.config import SOTRConfig
from sotr.network.transformer import LAYERS, Transformer
from sotr.training.module import attention_for

WHAT = (
    "One transformer layer, width 256, 8 heads, batch 1. Forward: without gradients; step: forward and backward "
    "with all gradients. Saved: bytes of all tensors that autograd keeps for the backward pass, parameters aside, "
    "each storage once. Plain attention stores its weights, fused attention does not; on a CPU twin attention "
    "trains with the plain one, as `sotr train` does, for there it is the quicker at these lengths. Paper's grids "
    "are 40, 36, 24, 16 and 12 cells a side and a P5 of 25 x 34; doubled ones have twice the cells a side."
)

SIDES = ("original, fused", "original, plain", "pure twin", "hybrid twin")
SQUARES = (12, 16, 24, 32, 48, 64, 96)
RECTANGLES = ((25, 34), (12, 96), (50, 68))
GRIDS = ((40, 40), (36, 36), (24, 24), (16, 16), (12, 12), (25, 34))
PLAIN_LIMIT = 64
"""Cells per side above which the original layer is not run with plain attention, whose weights grow with N^4."""

Shape = tuple[int, int]


def attention(
    device: torch.device, dtype: torch.dtype, quick: bool, on_run: Callable[[str], object]
) -> tuple[list[Row], list[str]]:
    """Rows and findings of the sub-benchmark."""
    squares = [n for n in SQUARES if not quick or n <= 64]
    rows = sizes(
        [(n, n) for n in squares] + list(RECTANGLES[: 1 if quick else None]), device, dtype, 3 if quick else 7, on_run
    )
    doubled = [(2 * height, 2 * width) for height, width in GRIDS]
    stacks = {"paper's grids": GRIDS, "doubled grids": doubled}
    more, findings = table_3(stacks, device, dtype, 2 if quick else 5, on_run)
    levels, ratios = together([(1, *shape) for shape in GRIDS], (1, 8), device, dtype, 3 if quick else 7, on_run)
    return rows + more + levels, growth(rows) + findings + ratios


def sizes(
    shapes: Sequence[Shape], device: torch.device, dtype: torch.dtype, runs: int, on_run: Callable[[str], object]
) -> list[Row]:
    """A layer of each kind on a map of each shape."""
    rows: list[Row] = []
    for shape in shapes:
        names = [side for side in SIDES if side != "original, plain" or math.prod(shape) <= PLAIN_LIMIT**2]
        rows += _measure(f"{shape[0]} x {shape[1]}", [shape], names, device, dtype, runs, on_run)
    return rows


def table_3(
    stacks: dict[str, Sequence[Shape]],
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    on_run: Callable[[str], object],
) -> tuple[list[Row], list[str]]:
    """A layer over all grids of a network, and the hybrid twin layer's ratios to the original."""
    rows: list[Row] = []
    findings = []
    for case, shapes in stacks.items():
        largest = max(math.prod(shape) for shape in shapes)
        names = [side for side in SIDES if side != "original, plain" or largest <= 80**2]
        own = _measure(case, shapes, names, device, dtype, runs, on_run)
        rows += own
        by = {(row["side"], row["part"]): row for row in own}
        twin = by["hybrid twin", "step"]
        for side in names[:-2]:
            other = by[side, "step"]
            findings.append(
                f"{case}: a hybrid twin layer takes {_ratio(twin, other, 'median')} of the time and "
                f"{_ratio(twin, other, 'saved_mib')} of the saved memory of a layer {side}; so do twelve of them."
            )
    return rows, findings


def together(
    shapes: Sequence[tuple[int, int, int]],
    batches: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    on_run: Callable[[str], object],
) -> tuple[list[Row], list[str]]:
    """A transformer of one hybrid twin layer over all levels, one after the other and packed."""
    torch.manual_seed(0)
    config = replace(SOTRConfig(), depth=1)
    transformer = Transformer(config).to(device)
    packed = PackedTransformer(transformer)
    rows: list[Row] = []
    findings = []
    for batch in batches:
        maps = [torch.randn(batch, config.width, *shape[1:], device=device) for shape in shapes]
        sides = {
            "level by level": partial(_forward_and_step, partial(_sums, transformer, maps), device, dtype),
            "levels packed": partial(_forward_and_step, partial(_sums, packed, maps), device, dtype),
        }
        case = f"all levels, batch {batch}"
        on_run(case)
        times = alternate(sides, runs)
        rows += [timed(case, side, part, times[side][part]) for side in sides for part in ("forward", "step")]
        findings += [
            f"{case}: {part} of the levels packed takes "
            f"{times['levels packed'][part].median / times['level by level'][part].median:.2f} times as long."
            for part in ("forward", "step")
        ]
    return rows, findings


def _sums(transformer: nn.Module, maps: Sequence[Tensor]) -> Tensor:
    return torch.stack([x_BCNN.float().sum() for x_BCNN in transformer(maps)])


def _forward_and_step(work: Callable[[], Tensor], device: torch.device, dtype: torch.dtype) -> Parts:
    watch = Stopwatch(device)
    with attention_for(device), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        with torch.no_grad():
            work()
        watch.lap("forward")
        work().float().sum().backward()
    watch.lap("step")
    return watch.parts


def _ratio(row: Row, other: Row, column: str) -> str:
    return f"{float(row[column] or 0) / float(other[column] or 1):.2f}"


def _measure(
    case: str,
    shapes: Sequence[Shape],
    names: Iterable[str],
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    on_run: Callable[[str], object],
) -> list[Row]:
    sides = {name: Side(name, shapes, device, dtype) for name in names}
    times = alternate({name: side.run for name, side in sides.items()}, runs, lambda name: on_run(f"{case} {name}"))
    square = shapes[0][0] if len(shapes) == 1 and shapes[0][0] == shapes[0][1] else None
    cells = sum(math.prod(shape) for shape in shapes)
    rows = []
    for name, side in sides.items():
        saved = side.saved_bytes() / 2**20
        rows += [
            timed(case, name, part, times[name][part], saved_mib=saved, cells=cells, side_cells=square)
            for part in ("forward", "step")
        ]
    return rows


class Side:
    """A layer of one kind on maps of given shapes."""

    def __init__(self, name: str, shapes: Sequence[Shape], device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        config = SOTRConfig()
        kind = name.split(",")[0].replace(" ", "_")
        self.layer = LAYERS[kind](config.width, config.heads, config.mlp_ratio).to(device)
        self.attention: Callable[[], AbstractContextManager[Any]] = _plain if name.endswith("plain") else nullcontext
        if "twin" in name:
            self.attention = partial(attention_for, device)
        self.maps = [torch.randn(1, *shape, config.width, device=device) for shape in shapes]
        self.device, self.dtype = device, dtype

    def run(self) -> Parts:
        watch = Stopwatch(self.device)
        with torch.no_grad():
            self._forward()
        watch.lap("forward")
        self._forward().backward()
        watch.lap("step")
        return watch.parts

    def saved_bytes(self) -> int:
        """Of one forward pass."""
        return saved_bytes(self._forward, self.layer)

    def _forward(self) -> Tensor:
        with self.attention(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return torch.stack([self.layer(each).float().sum() for each in self.maps]).sum()


def _plain() -> AbstractContextManager[Any]:
    return sdpa_kernel(SDPBackend.MATH)


def saved_bytes(work: Callable[[], Any], module: nn.Module) -> int:
    """Bytes that autograd keeps during `work` for the backward pass, without the module's parameters; what shares
    memory counts once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # so that no later tensor gets the same address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(kept.values())


def growth(rows: Sequence[Row]) -> list[str]:
    """Exponents of N with which time and memory grow over the upper half of the square maps."""
    findings = []
    for side in dict.fromkeys(str(row["side"]) for row in rows):
        own = [row for row in rows if row["side"] == side and row["part"] == "step" and row["side_cells"]]
        upper = own[len(own) // 2 - 1 :] if len(own) > 3 else own
        if len(upper) < 2:
            continue
        exponents = [
            slope([float(row["side_cells"] or 1) for row in upper], [float(row[column] or 1) for row in upper])
            for column in ("median", "saved_mib")
        ]
        low, high = upper[0]["side_cells"], upper[-1]["side_cells"]
        findings.append(
            f"{side}: from N = {low} to {high} time grows with N^{exponents[0]:.2f}, memory with N^{exponents[1]:.2f}."
        )
    return findings


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent k of the least-squares fit of y = a x^k."""
    log_x, log_y = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_x, mean_y = sum(log_x) / len(x), sum(log_y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(log_x, log_y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in log_x)
