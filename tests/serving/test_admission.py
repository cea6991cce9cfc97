"""Who is let in, and what the others are told."""

from contextlib import ExitStack

import pytest

from sotr.serving.admission import Admission
from sotr.serving.monitor import Metrics
from sotr.serving.problems import RequestError
from sotr.serving.settings import Limits


def let_in(admission: Admission, tries: int) -> tuple[int, list[RequestError]]:
    """How many of so many requests at the same time are let in, and the refusals."""
    admitted, refused = 0, []
    with ExitStack() as requests:
        for _ in range(tries):
            try:
                requests.enter_context(admission.request())
                admitted += 1
            except RequestError as error:
                refused.append(error)
    return admitted, refused


def test_no_more_than_the_limit_and_all_leave_again() -> None:
    metrics = Metrics()
    admission = Admission(Limits(max_requests=3), metrics)
    for _ in range(2):
        admitted, refused = let_in(admission, 5)
        assert admitted == 3
        assert [(error.status, error.code, error.headers) for error in refused] == [
            (503, "busy", {"Retry-After": "1"})
        ] * 2
    with pytest.raises(ValueError, match="a bug"), admission.request():
        raise ValueError("a bug")
    assert let_in(admission, 3) == (3, [])
    assert metrics.registry.get_sample_value("sotr_requests_shed_total") == 4
    assert metrics.registry.get_sample_value("sotr_pictures_in_flight") == 0


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, 32), (5, 7), (25, 2), (300, 1)])
def test_a_slow_machine_lets_in_what_it_can_answer_in_half_the_time(seconds: float, expected: int) -> None:
    admission = Admission(Limits(max_requests=32, timeout=60), Metrics())
    for _ in range(30):
        admission.note_batch(4, 4 * seconds)
    admitted, refused = let_in(admission, 40)
    assert admitted == expected
    wait = min(60, expected * seconds)
    assert int((refused[0].headers or {})["Retry-After"]) == pytest.approx(wait, abs=1)


def test_one_address_has_three_quarters_of_the_places_at_most() -> None:
    admission = Admission(Limits(max_requests=8), Metrics())
    with ExitStack() as requests:
        for _ in range(6):
            requests.enter_context(admission.request("a"))
        with pytest.raises(RequestError, match="busy with 6 requests of this address") as refused:
            admission.refuse_if_full("a")
        assert (refused.value.status, refused.value.code) == (503, "busy")
        assert not admission.full
        for _ in range(2):
            requests.enter_context(admission.request("b"))
        assert admission.full
    for client in ("a", "b"):
        admission.refuse_if_full(client)
    alone = Admission(Limits(max_requests=1), Metrics())
    with alone.request("a"):
        assert alone.full
    for _ in range(30):
        admission.note_batch(1, 5)  # of which seven are in time
    with ExitStack() as requests:
        for _ in range(5):
            requests.enter_context(admission.request("a"))
        with pytest.raises(RequestError):
            admission.refuse_if_full("a")
