"""Tables 1 to 7 of the paper as data: which settings each row changes, and what the paper reports for it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sotr.config import SOTRConfig

BASELINE = "baseline"
"""The row without changes, which every table has."""


@dataclass(frozen=True)
class Scale:
    """How large the networks of the tables are, and how they are trained."""

    name: str
    baseline: SOTRConfig
    """The architecture that rows change."""
    weaker_backbone: str
    """The other backbone of Table 1."""
    half_depth: int
    """The smaller depth of Table 3."""
    real_time: Mapping[str, Any]
    """Settings of the real-time network of Table 6."""
    recipe: str
    """A bundled recipe of `sotr.training`, or the name of a YAML file beside this module."""
    recipe_with_weights: str
    """The recipe where the backbone starts from weights."""

    def changes(self) -> dict[str, dict[str, Any]]:
        """Row -> the settings of `SOTRConfig` that it changes."""
        return {
            BASELINE: {},
            "weaker-backbone": {"backbone": self.weaker_backbone},
            "original": {"transformer": "original"},
            "pure-twin": {"transformer": "pure_twin"},
            "original-half-depth": {"transformer": "original", "depth": self.half_depth},
            "half-depth": {"depth": self.half_depth},
            "masks-from-fpn": {"mask_transformer_levels": ()},
            "masks-from-p4-p5": {"mask_transformer_levels": (4, 5)},
            "static-kernels": {"dynamic_kernels": False},
            "no-transformer": {"transformer": "none", "mask_transformer_levels": ()},
            "real-time": dict(self.real_time),
            "deformable": {"deformable_stages": (3, 4, 5)},
        }

    def config(self, row: str) -> SOTRConfig:
        """The architecture of a row."""
        return replace(self.baseline, **self.changes()[row])


SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "full",
            SOTRConfig.preset("sotr-r101"),
            weaker_backbone="resnet50",
            half_depth=6,
            real_time={"backbone": "resnet50", "depth": 2, "image_size": 736, "max_image_size": 1226},
            recipe="paper",
            recipe_with_weights="paper-imagenet",
        ),
        Scale(
            "tiny",
            SOTRConfig(
                backbone="test_resnet",
                width=64,
                depth=2,
                heads=4,
                mlp_ratio=2.0,
                grids=(12, 10, 8, 4, 2),
                scale_ranges=((1, 16), (12, 24), (20, 36), (30, 64), (56, 2048)),
                mask_stage_channels=32,
                mask_channels=64,
                image_size=96,
                max_image_size=160,
            ),
            weaker_backbone="lcnet_035",
            half_depth=1,
            real_time={"backbone": "lcnet_035", "depth": 1, "image_size": 64, "max_image_size": 107},
            recipe="tiny.yaml",
            recipe_with_weights="tiny.yaml",
        ),
    )
}
"""The paper's networks and schedule, for a cluster; and small ones of the same plan, for a CPU."""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    """Its key in `Scale.changes`; rows of the same name are the same experiment."""
    label: str
    """What the paper calls it."""
    paper: Mapping[str, float]
    """The paper's numbers, by the names of its columns; AP in percent."""


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    number: int
    title: str
    rows: tuple[Row, ...]


def _ap(AP: float, AP_S: float, AP_M: float, AP_L: float) -> dict[str, float]:
    return {"AP": AP, "AP_S": AP_S, "AP_M": AP_M, "AP_L": AP_L}


_PAPER_BASELINE = _ap(40.2, 10.3, 59.0, 73.0)

TABLES = {
    table.number: table
    for table in (
        Table(
            1,
            "backbone",
            (
                Row("weaker-backbone", "Res-50-FPN", _ap(37.5, 9.5, 55.7, 70.8)),
                Row(BASELINE, "Res-101-FPN", _PAPER_BASELINE),
            ),
        ),
        Table(
            2,
            "transformer layer",
            (
                Row("original", "original", _ap(37.1, 9.0, 56.1, 71.0)),
                Row("pure-twin", "pure twin", _ap(39.7, 9.9, 59.1, 73.6)),
                Row(BASELINE, "hybrid twin", _PAPER_BASELINE),
            ),
        ),
        Table(
            3,
            "transformer depth (6 and 12 in the paper)",
            (
                Row("original-half-depth", "original, half depth", {"AP": 36.2, "ms": 147, "memory": 6907}),
                Row("original", "original, full depth", {"AP": 37.1, "ms": 199, "memory": 10696}),
                Row("half-depth", "hybrid twin, half depth", {"AP": 37.6, "ms": 113, "memory": 3778}),
                Row(BASELINE, "hybrid twin, full depth", {"AP": 40.2, "ms": 161, "memory": 5492}),
            ),
        ),
        Table(
            4,
            "levels of the mask branch that come from the transformer",
            (
                Row("masks-from-fpn", "none", _ap(38.8, 9.7, 58.0, 72.0)),
                Row(BASELINE, "P5", _PAPER_BASELINE),
                Row("masks-from-p4-p5", "P4 and P5", _ap(39.9, 10.1, 59.1, 73.7)),
            ),
        ),
        Table(
            5,
            "dynamic or static kernels",
            (
                Row("static-kernels", "twin, static", _ap(38.6, 9.5, 57.7, 72.0)),
                # Digit for digit the row of SOLOv2 in Table 7.
                Row("no-transformer", "no twin, dynamic", _ap(39.7, 17.3, 42.9, 57.4)),
                Row(BASELINE, "twin, dynamic", _PAPER_BASELINE),
            ),
        ),
        Table(
            6,
            "real-time setting",
            (
                Row("real-time", "SOTR-RT", {"AP": 30.7, "ms": round(1000 / 25.2, 1)}),
                Row(BASELINE, "SOTR", _PAPER_BASELINE),
            ),
        ),
        Table(
            7,
            "deformable convolutions",
            (
                Row("deformable", "Res-DCN-101-FPN", {**_ap(42.1, 11.5, 60.8, 74.4), "AP50": 63.3, "AP75": 45.5}),
                Row(BASELINE, "Res-101-FPN", {**_PAPER_BASELINE, "AP50": 61.2, "AP75": 43.4}),
            ),
        ),
    )
}
"""Number -> table. Areas of objects in the paper's AP_S, AP_M and AP_L are doubtful: see docs/results.md."""
