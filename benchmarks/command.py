"""One command that measures, and says on what and how."""

import json as jsonlib
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import attention, decoding, inference, pictures, training
from benchmarks.measure import describe_machine
from benchmarks.report import Report, compare, results_file, save, table
from sotr.errors import SOTRError
from sotr.model.segmenter import choose_device

Which = Literal["inference", "train", "attention", "decode", "data", "evaluate"]

BENCHMARKS: dict[str, tuple[Callable[..., Any], str]] = {
    "inference": (inference.inference, inference.WHAT),
    "train": (training.train, training.WHAT),
    "attention": (attention.attention, attention.WHAT),
    "decode": (decoding.decode_benchmark, decoding.WHAT),
    "data": (pictures.data, pictures.DATA),
    "evaluate": (pictures.evaluate_benchmark, pictures.EVALUATE),
}


def benchmark(
    which: Which,
    out: str = "benchmarks/results",
    compare_only: bool = False,
    quick: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
    threads: int | None = None,
    device: str = "cpu",
    quiet: bool = False,
    json: bool = False,
) -> Report:
    """Measure this software's speed and memory, side by side with peers in the same run.

    Sides take turns after a round to warm up; medians and quartiles are reported. Nothing is downloaded: weights are
    random, images made up.

    Args:
        which: inference (against Mask R-CNN and, with transformers installed, MaskFormer and Mask2Former), train (a
            step with 1, 30 and 300 objects), attention (the layers of Figure 3 over map sizes; Table 3), decode (10 to
            1,000 candidates), data (training samples per second) or evaluate (against pycocotools).
        out: folder of results: one JSON file per kind of machine, and a page and a plot per benchmark.
        compare_only: show ratios to the results in that folder instead of replacing them.
        quick: fewer sides and runs: up to three minutes on two cores.
        precision: float32, or bfloat16 for convolutions and matrix products.
        threads: of PyTorch; by default as many as it chooses.
        device: cpu, cuda, cuda:1, mps, or auto for the best there is.
        quiet: no progress on standard error.
        json: print the report as one JSON object.

    Raises:
        SOTRError: an argument is out of range, or there is nothing to compare with.
    """
    if which not in BENCHMARKS:
        raise SOTRError(f"there is no benchmark {which!r}; choose one of {', '.join(get_args(Which))}")
    if threads is not None and threads < 1:
        raise SOTRError(f"threads is {threads}; it must be at least 1")
    chosen = choose_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    run, what = BENCHMARKS[which]
    machine = describe_machine(chosen)
    if compare_only and not results_file(out, machine).is_file():
        raise SOTRError(f"{results_file(out, machine)} is not there; run python -m benchmarks {which} first")
    console = Console(highlight=False, soft_wrap=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    shown_on = Console(stderr=True)
    # Drawing often would take its share of what is measured.
    with Progress(*columns, console=shown_on, disable=quiet, transient=True, refresh_per_second=1) as progress:
        task = progress.add_task(which)
        rows, findings = run(
            chosen, getattr(torch, precision), quick, lambda name: progress.update(task, description=f"{which}: {name}")
        )
    report = Report(which, what, machine, quick, precision, rows, findings)
    ratios = compare(report, out) if compare_only else []
    files = [] if compare_only else save(report, out)
    if json:
        console.print(jsonlib.dumps(report.to_dict() | {"ratios": ratios}), markup=False)
    else:
        shown = "\n".join(table(ratios)) if compare_only else report.to_markdown()
        console.print(shown, markup=False)
        console.print("\n".join(f"wrote {path}" for path in files), markup=False)
    return report
