"""`sotr data check`: what a careful colleague would say of a data set before training on it."""

import json as jsonlib
import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from sotr.config import PRESETS, SOTRConfig
from sotr.curation.checks import fit_findings, look_over
from sotr.curation.page import write_page
from sotr.curation.repair import write_repaired
from sotr.curation.summary import DataReport, show_report, summarize
from sotr.data.layouts import locate_data
from sotr.model.files import read_architecture
from sotr.model.segmenter import choose_device, load


def check_data(
    data: str,
    model: str = "sotr-r50",
    train_json: str | None = None,
    val_json: str | None = None,
    images: str | None = None,
    fix: str | None = None,
    report: str | None = None,
    json: bool = False,
    device: str = "auto",
    workers: int | None = None,
    quiet: bool = False,
) -> DataReport:
    """Look a COCO data set over: what is wrong with it, what is in it, and which settings suit it.

    All annotations are checked and all images decoded. Of what is found, harmful things stop a training at once, with
    exit code 1 here; harmless ones only make it warn.

    Args:
        data: Folder of the data set, in any of the layouts that `sotr train` takes.
        model: Preset, model or run folder, or YAML file of SOTRConfig's settings, whose scale ranges and grids the
            objects are held against.
        train_json: Annotation file to train on, if `data` has another layout.
        val_json: Annotation file to validate on, if `data` has another layout.
        images: Folder of the images, if `data` has another layout.
        fix: New folder for a repaired copy; what is changed is listed.
        report: File for one HTML page of plots, findings and sample images.
        json: Print one JSON object instead of tables.
        device: Whose memory the advice is for: auto, cpu, cuda, cuda:1 or mps.
        workers: Processes that decode images; default one per CPU core, up to 16.
        quiet: Print nothing but errors (and JSON, if asked for).

    Returns:
        All that was found out; its `failures` are the harmful findings.

    Raises:
        SOTRError: there is no data set in `data`, no such model, or an output cannot be written.
    """
    located = locate_data(data, train_json=train_json, val_json=val_json, images=images)
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
    look = partial(look_over, console=console, workers=workers)
    checked, findings = look(located)

    if model in PRESETS:
        config = SOTRConfig.preset(model)
    else:
        config = read_architecture(Path(model)) if Path(model).is_file() else load(model).config
    advised_device = choose_device(device)
    for split, part in checked.items():
        if split == "train" or "train" not in checked:
            findings += fit_findings(split, part, config)
    result = DataReport(findings, *summarize(checked, config, advised_device))
    if json:
        sys.stdout.write(jsonlib.dumps(result.to_json()) + "\n")
    elif not quiet:
        show_report(result, data, model, Console(highlight=False, markup=False))
    if report is not None:
        write_page(Path(report), data, model, result, checked)
        console.print(f"the report is in {report}", soft_wrap=True)
    if fix is not None:
        for line in write_repaired(Path(fix), located, lambda splits: look(splits)[1]):
            console.print(line, soft_wrap=True)
        console.print(f"the repaired copy is in {fix}", soft_wrap=True)
    return result
