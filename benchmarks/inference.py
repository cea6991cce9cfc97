"""Images to objects: our presets against peers of the same backbone, all with random weights."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.measure import Parts, Spread, Stopwatch, alternate, device_peak, peak_memory
from benchmarks.on_card import copies, costs, traffic
from benchmarks.report import Row, timed
from benchmarks.sides import LONG, SIDES, Conditions, Ours, Size, Work, conditions_of
from sotr.acceleration.plain import predict_plainly
from sotr.building import build_network

WHAT = (
    "Objects of one batch of images after another, weights random; each turn begins with a batch that does not "
    "count. Cases: the images' size and, from two on, their number. Pre-processing: to the network's input. Network: "
    "for Mask R-CNN with its proposals and their suppression. Decoding: to masks at the image's size; ours includes "
    "Matrix NMS and compression to RLE, the peers' does not. Thresholds let 100 objects through on every side that "
    "decodes. Memory: what a process of its own needs at most for building and one batch, beyond its imports; on CUDA "
    "what PyTorch had allocated at most."
)

CASES: tuple[tuple[Size, int], ...] = (((480, 640), 1),)
"""Sizes of images, and how many go through the network together."""

CUDA_CASES: tuple[tuple[Size, int], ...] = (((480, 730), 1), ((480, 806), 1), ((480, 806), 8))
"""Which the networks take as 736 x 1120 (sotr-rt-r50) and 800 x 1344 (the others)."""

MATRIX = 4096
"""Rows and columns of the matrices whose product shows what the machine can do."""

PEAK = "matrix products"
"""The side that multiplies them."""


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


FLOPS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}
"""Operations of what PyTorch's counter does not know: fused attention on CPUs."""


def inference(
    device: torch.device, dtype: torch.dtype, quick: bool, on_run: Callable[[str], object]
) -> tuple[list[Row], list[str]]:
    """Rows and findings of the sub-benchmark."""
    on_cuda = device.type == "cuda"
    chosen = [name for name in SIDES if not (quick and name in LONG)]
    if find_spec("transformers") is None:
        chosen = [name for name in chosen if "Former" not in name]
    rows: list[Row] = []
    findings: list[str] = []
    for size, batch in CUDA_CASES if on_cuda else CASES:
        few = 10 if on_cuda else 3
        own, found = measure(chosen, size, device, dtype, few if quick else 7 * few // 3, on_run, batch)
        rows += own
        findings += [f"{own[0]['case']}: {finding}" for finding in found] if on_cuda else found
    return rows, findings


def measure(
    names: list[str],
    size: Size,
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    on_run: Callable[[str], object],
    batch: int = 1,
) -> tuple[list[Row], list[str]]:
    """The named sides on a batch of images of a size, and what each needs of memory."""
    conditions = conditions_of(size, device, dtype, batch)
    works, findings, macs, memory = {}, [], {}, {}
    for name in names:
        on_run(f"building {name}")
        try:
            with device_peak(device) as peak:
                work = SIDES[name](conditions)
                work()
            side = SIDES[name]
            # A compiled graph hides its operations, so those of our networks are counted by their formula.
            macs[name] = side.macs(conditions) if isinstance(side, Ours) else macs_of(work)
        except RuntimeError as error:
            if name.startswith("sotr"):
                raise
            findings.append(f"{name} does not run under these conditions: {str(error).splitlines()[0]}.")
        else:
            works[name] = work
            memory[name] = peak.mib
    names = list(works)
    times = alternate(works | {PEAK: _matrix_products(conditions)}, runs, on_run, settle=True)
    for name in names:
        if device.type != "cuda":
            on_run(f"memory of {name}")
            memory[name] = memory_of(name, size, device, dtype)
    case = f"{size[0]} x {size[1]}" + ("" if batch == 1 else f", {batch} together")
    rows = [
        timed(case, name, part, times[name][part], peak_mib=round(memory[name]) if part == "total" else None)
        for name in names
        for part in times[name]
    ]
    findings += _findings(times, names, macs)
    if device.type == "cuda":
        findings += _on_card(times, works, macs, conditions)
    return rows, findings


def _findings(times: dict[str, dict[str, Spread]], names: list[str], macs: dict[str, float]) -> list[str]:
    totals = {name: times[name]["total"].median for name in names}
    findings = [
        f"{name} does {totals[peer] / totals[name]:.2f} times as many images per second as {peer}."
        for peer in names
        if not peer.startswith("sotr")
        for name in names
        if name.startswith("sotr")
    ]
    findings += [
        f"Decoding is {times[name]['decoding'].median / totals[name]:.1%} of {name}'s total." for name in names
    ]
    peak = MATRIX**3 / times[PEAK]["total"].median
    findings.append(f"Products of {MATRIX} x {MATRIX} matrices do {peak / 1e9:.0f} GMAC/s.")
    findings += [
        f"{name}'s network takes {macs[name] / 1e9:.0f} GMAC and does {macs[name] / seconds / 1e9:.0f} GMAC/s, "
        f"{macs[name] / seconds / peak:.0%} of that."
        for name in names
        for seconds in [times[name]["network"].median]
    ]
    return findings


def _on_card(
    times: dict[str, dict[str, Spread]], works: dict[str, Work], macs: dict[str, float], conditions: Conditions
) -> list[str]:
    """Images per second, the floor that arithmetic and memory set, and what takes the most time."""
    rate = copies(conditions.device)
    peak = MATRIX**3 / times[PEAK]["total"].median
    findings = []
    for name, work in works.items():
        side = SIDES[name]
        if not isinstance(side, Ours):
            continue
        total, network = times[name]["total"].median, times[name]["network"].median
        arithmetic, moving = macs[name] / peak, _moved(side, conditions) / rate
        findings += [
            f"{name} does {len(conditions.pictures) / total:.0f} images per second.",
            f"{name}'s network takes {network * 1e3:.2f} ms; its operations take {arithmetic * 1e3:.2f} ms at the rate "
            f"of those products, reading and writing their operands once {moving * 1e3:.2f} ms at {rate / 1e12:.2f} "
            f"TB/s: {network / max(arithmetic, moving):.1f} times the larger.",
            f"{name} keeps the card busy with {', '.join(costs(work)[:4])}.",
        ]
    return findings


@torch.no_grad()
def _moved(side: Ours, conditions: Conditions) -> float:
    """Bytes of the operands of a batch through the prepared network."""
    network = build_network(side.config).eval().to(conditions.device)
    images_B3HW = torch.zeros(len(conditions.pictures), 3, *side.input_size(conditions), device=conditions.device)
    return traffic(lambda: predict_plainly(network, images_B3HW, conditions.dtype), FLOPS)


def macs_of(work: Work) -> float:
    """Multiply-accumulates of convolutions, matrix products and attention inside modules, which decoding is not."""
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
        work()
    counts = counter.get_flop_counts()
    return sum(sum(of.values()) for module, of in counts.items() if module != "Global" and "." not in module) / 2


def _matrix_products(conditions: Conditions) -> Work:
    """A side: one product of large square matrices, by the quickest way there is."""
    a, b = torch.randn(2, MATRIX, MATRIX, device=conditions.device, dtype=conditions.dtype)

    @torch.inference_mode()
    def work() -> Parts:
        watch = Stopwatch(conditions.device)
        torch.mm(a, b)
        watch.lap("product")
        return watch.parts

    return work


def memory_of(name: str, size: Size, device: torch.device, dtype: torch.dtype) -> float:
    """MiB that a process of its own needs at most for a side."""
    return peak_memory(_once, name, size, device, dtype)


def _once(name: str, size: Size, device: torch.device, dtype: torch.dtype) -> None:
    SIDES[name](conditions_of(size, device, dtype))()
