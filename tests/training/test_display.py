import io
import os
import signal
import threading

from rich.console import Console

from sotr.training.display import ROWS_BESIDES, Display, Interrupts, quiet_lightning


def terminal(height: int = 30) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, height=height, color_system=None)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(display: Display, height: int = 30) -> list[list[str]]:
    console = terminal(height)
    console.print(display.rendered())
    return [line.split() for line in written(console).splitlines() if line.strip(" ─")]


def test_a_terminal_gets_a_table_with_a_row_per_epoch_and_one_for_what_goes_on() -> None:
    display = Display(terminal())
    with display:
        display.begin("epoch 1/3", 10)
        display.advance(4, {"epoch": "1/3", "loss": "0.9000", "rate": "0.001"})
        head, running, bar = shown(display)
        assert (head, running) == (["epoch", "loss", "rate"], ["1/3", "0.9000", "0.001"])
        assert "4/10" in bar
        display.advance(6)
        display.epoch({"epoch": "1/3", "loss": "0.8000", "AP": "0.123"}, "not for terminals")
        display.begin("epoch 2/3", 10)
        display.advance(1, {"epoch": "2/3", "loss": "0.7000", "rate": "0.002"})
        head, first, second, bar = shown(display)
        assert head == ["epoch", "loss", "rate", "AP"]
        assert first == ["1/3", "0.8000", "0.001", "0.123"]
        assert second == ["2/3", "0.7000", "0.002"]
        assert bar[:2] == ["epoch", "2/3"]
    last = written(display.console).rsplit("loss", 1)[1]
    assert "0.8000" in last  # what was done stays on the screen
    assert "0.7000" not in last
    assert "not for terminals" not in written(display.console)


def test_a_table_never_outgrows_its_terminal() -> None:
    display = Display(terminal(12))
    for epoch in range(40):
        display.epoch({"epoch": f"{epoch + 1}/40"}, "")
    lines = shown(display, 12)
    assert lines[-1] == ["40/40"]
    assert len(lines) == 1 + 12 - ROWS_BESIDES


class Signalling(io.RawIOBase):
    """Where a SIGTERM comes in the middle of what is written."""

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return len(content)  # type: ignore[arg-type]


def test_a_signal_that_comes_while_a_line_is_written_stops_the_run_as_any_other_does() -> None:
    console = Console(file=io.TextIOWrapper(io.BufferedWriter(Signalling()), write_through=True))
    with Interrupts(console) as interrupts:
        console.print("epoch 1/3")
    assert interrupts.number == signal.SIGTERM


def test_a_log_file_gets_one_line_per_epoch() -> None:
    console = Console(file=io.StringIO(), width=100)
    with Display(console) as display:
        display.begin("epoch 1/3", 10)
        display.advance(4, {"epoch": "1/3", "loss": "0.9000"})
        display.epoch({"epoch": "1/3"}, "epoch 1/3  loss 0.8000")
    assert written(console) == "epoch 1/3  loss 0.8000\n"


def test_a_writer_of_tensorboard_that_cannot_write_leaves_no_traceback(tmp_path, monkeypatch) -> None:
    """Its thread dies of the same full or vanished folder that ends the run with one line."""
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    class Full:
        def write(self, _: object) -> None:
            raise OSError(28, "No space left on device")

    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    with quiet_lightning():
        writer = EventFileWriter(str(tmp_path))
        writer._async_writer._worker._record_writer = Full()
        writer._async_writer._byte_queue.put(b"record")
        writer._async_writer._worker.join(10)
        other = threading.Thread(target=lambda: [][0])
        other.start()
        other.join()
    assert [each.exc_type for each in told] == [IndexError]
