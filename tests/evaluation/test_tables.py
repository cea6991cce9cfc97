import io

import pytest
from rich.console import Console

from sotr.evaluation.tables import class_table


@pytest.mark.parametrize("markup", [True, False])
def test_class_names_are_printed_as_they_are(markup: bool) -> None:
    values = {"objects": 1200, "AP": 0.25, "AP50": 0.5, "AP75": None}
    metrics = {**values, "max_dets": 100, "per_class": {"[red]rich[/red]": values, "細胞": values}}
    console = Console(file=io.StringIO(), width=120, markup=markup)
    console.print(class_table(metrics, "after [b]epoch[/b] 2"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert " [red]rich[/red] " in text
    assert "細胞" in text
    assert "after [b]epoch[/b] 2: mask AP, at most 100 per image" in text
    assert "1,200" in text
    assert " - " in text
