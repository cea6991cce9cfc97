"""`sotr` commands in processes of their own, forked from one that has imported what they need: PyTorch once, not once
for each test. Commands that start Python themselves are tested in tests/test_cli.py and beside the exported models."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import TextIO

PROCESSES = multiprocessing.get_context("forkserver")
"""Starts processes from one that has imported what they need and has done nothing else. A fork of the tests' own
process cannot run autograd once that has started its threads, as it does after an export."""
PROCESSES.set_forkserver_preload(
    ["sotr.cli", "sotr.training.work", "sotr.serving.server", "tests.training.conftest", "tests.support.commands"]
)


class Command:
    """`sotr` with these words, in a session of its own, with pipes for what it says; used as `subprocess.Popen` is.

    Args:
        words: the command and its arguments.
        script: Python that runs before it in its process.
        files: how many files it may open; None for as many as this process.
    """

    def __init__(self, words: list[str], script: str = "", files: int | None = None) -> None:
        pipes = [PROCESSES.Pipe(duplex=False) for _ in range(2)]
        told = (words, [writer for _, writer in pipes], script, files, dict(os.environ), os.getcwd())
        self._process = PROCESSES.Process(target=_run, args=told)
        self._process.start()
        for _, writer in pipes:
            writer.close()
        self.stdout, self.stderr = (_opened(reader) for reader, _ in pipes)
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("sotr", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """What it has said to standard output and standard error since it was read last, when it has ended."""
        with ThreadPoolExecutor(2) as threads:
            output, errors = (threads.submit(_rest, stream) for stream in (self.stdout, self.stderr))
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            return output.result(), errors.result()


def _opened(reader: Connection) -> TextIO:
    with reader:
        return os.fdopen(os.dup(reader.fileno()), encoding="utf-8")


def _rest(stream: TextIO) -> str:
    if stream.closed:
        return ""
    with stream:
        return stream.read()


def _run(
    words: list[str],
    writers: list[Connection],
    script: str,
    files: int | None,
    environment: dict[str, str],
    folder: str,
) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # what it was before this process was started otherwise
    for number, writer in enumerate(writers, 1):
        os.dup2(writer.fileno(), number)
        writer.close()
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    exec(script, {})
    from sotr.cli import main

    main(words)
