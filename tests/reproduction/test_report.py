"""What the tables say of made-up results."""

import pytest

from sotr.reproduction.report import RowResults, table_markdown
from sotr.reproduction.tables import TABLES


def results(baseline: list[float], other: list[float]) -> dict[str, RowResults]:
    """Of Table 1, whose other row lies 2.7 below the baseline in the paper; AP in 0..1."""

    def row(values: list[float]) -> RowResults:
        metrics = dict.fromkeys(("AP", "AP50", "AP75", "AP_S", "AP_M"), 0.5) | {"AP_L": None}
        return RowResults({seed: {**metrics, "AP": value} for seed, value in enumerate(values)}, None, {}, "model.yaml")

    return {"baseline": row(baseline), "weaker-backbone": row(other)}


@pytest.mark.parametrize(
    ("baseline", "other", "difference", "verdict"),
    [
        # Deviations of 1 each: the standard error of a difference of two means of two is 1.
        ([0.39, 0.39 + 0.01 * 2**0.5], [0.36, 0.36 + 0.01 * 2**0.5], "-3.0 ± 1.0", "as in the paper"),
        ([0.36, 0.36 + 0.01 * 2**0.5], [0.39, 0.39 + 0.01 * 2**0.5], "+3.0 ± 1.0", "the other way round"),
        ([0.38, 0.38 + 0.01 * 2**0.5], [0.365, 0.365 + 0.01 * 2**0.5], "-1.5 ± 1.0", "within noise"),
        ([0.4], [0.3], "-10.0", "one run says nothing of noise"),
        ([0.4], [], "-", "not measured yet"),
    ],
)
def test_ordering(baseline: list[float], other: list[float], difference: str, verdict: str) -> None:
    text = table_markdown(TABLES[1], results(baseline, other), len(baseline), "small")
    assert f"| Res-50-FPN | {difference} | -2.7 | {verdict} |" in text
    assert ("Unfinished: 1 of 2 runs" in text) == (not other)


def test_numbers_are_percent_with_their_spread() -> None:
    line = next(
        line for line in table_markdown(TABLES[1], results([0.3, 0.4], [0.1]), 2, "").splitlines() if "101" in line
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:9] == ["0, 1", "35.0 ± 7.1", "50.0 ± 0.0", "50.0 ± 0.0", "50.0 ± 0.0", "50.0 ± 0.0", "-"]
    assert cells[-4:] == ["40.2", "10.3", "59", "73"]
