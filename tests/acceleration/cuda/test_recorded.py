import pytest
import torch

from sotr.acceleration.cuda.recorded import Recorded


def test_what_comes_again_is_recorded_and_the_oldest_forgotten(monkeypatch):
    made = []

    def record(self, x, settings):
        made.append(tuple(x.shape))
        return lambda x: self.function(x, *settings)

    monkeypatch.setattr(Recorded, "_record", record)
    recorded = Recorded(lambda x, factor: [factor * x], most=2, after=1)
    for length, factor in [(1, 2), (2, 2), (1, 2), (1, 3), (1, 2), (2, 2), (2, 2), (2, 2), (1, 2), (1, 3), (1, 2)]:
        assert recorded(torch.ones(length), factor)[0].tolist() == [factor] * length
    # Length 1 with factor 2, then length 2, which had been forgotten in between; and not again what is remembered.
    assert made == [(1,), (2,)]
    assert set(recorded._recordings) == {(torch.Size([1]), (2,))}


def test_what_cannot_be_recorded_is_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr(Recorded, "_record", lambda self, x, settings: tried.append(settings))
    recorded = Recorded(lambda x, factor: [factor * x], after=0)
    for factor in (2, 3, 2):
        assert recorded(torch.ones(1), factor)[0].tolist() == [factor]
    assert tried == [(2,)]


@pytest.mark.gpu
def test_results_are_those_of_the_function_and_the_callers():
    weight = torch.randn(64, 64, device="cuda")

    def function(x, power):
        return [(x @ weight).relu(), x.pow(power).sum(0)]

    recorded = Recorded(function)
    kept = []
    for _ in range(6):
        for shape in [(8, 64), (32, 64)]:
            x = torch.randn(shape, device="cuda")
            kept.append((recorded(x, 2), function(x, 2)))
    for found, expected in kept:  # nothing was written over by later calls
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
    assert len(recorded._recordings) == 2


@pytest.mark.gpu
def test_what_waits_for_the_device_goes_on_as_it_is():
    recorded = Recorded(lambda x: [x * float(x.sum())])
    stream = torch.cuda.current_stream()
    x = torch.rand(5, device="cuda")
    with pytest.warns(UserWarning, match="goes on without CUDA graphs"):
        found = [recorded(x)[0] for _ in range(6)]
    for each in found:
        torch.testing.assert_close(each, x * float(x.sum()))
    assert torch.cuda.current_stream() == stream
    other = Recorded(lambda x: [x + 1])  # a failure spoils nothing
    for _ in range(6):
        torch.testing.assert_close(other(x)[0], x + 1)
    assert len(other._recordings) == 1
