"""The load benchmark against a real server; how long anything takes is not asserted."""

from contextlib import suppress

import pytest
from benchmarks.__main__ import main
from benchmarks.load import Stage


def test_load_tells_accepted_from_refused_requests(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.load.WARM_UP", 0.5)
    with suppress(SystemExit):  # memory may grow in the first seconds
        assert main(["load", "--seconds", "1", "--clients", "1,2", "--engine", "pytorch"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| clients", "| 1", "| 2"]
    for row in rows[1:]:
        assert int(row[1]) >= 1
        assert 0 < float(row[3]) <= float(row[4])
        assert row[5:9] == ["0", "-", "-", "0"]


def test_growth_is_from_the_first_fifth_to_the_last() -> None:
    stage = Stage(1, memory=[100, 100, 300, 300, 300, 300, 300, 300, 104, 106])
    assert stage.ends == (100, 105)
    assert stage.growth == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("words", "message"), [(["--clients", "0"], "clients is '0'"), (["--seconds", "0"], "seconds is 0.0")]
)
def test_bad_arguments_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", *words]) == 2
    assert message in capsys.readouterr().err
