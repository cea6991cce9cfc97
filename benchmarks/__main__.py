"""`python -m benchmarks NAME`: measure, and write what was found to benchmarks/results.

`python -m benchmarks accuracy DATA` trains, too, and `python -m benchmarks load` asks a server; both have options of
their own.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentError

from benchmarks.accuracy import accuracy
from benchmarks.command import benchmark
from benchmarks.load import load
from sotr.cli import command_parser, one_line
from sotr.errors import SOTRError

OWN = {"accuracy": accuracy, "load": load}
"""Benchmarks with options of their own."""


def parse(words: Sequence[str]) -> tuple[Callable[..., object], dict[str, Any]]:
    """The benchmark that the words name, and its arguments."""
    own = words[0] if words and words[0] in OWN else ""
    command: Callable[..., object] = OWN[own] if own else benchmark
    parser = command_parser(command)
    parser.prog = f"python -m benchmarks {own}".rstrip()
    return command, parser.parse_args(list(words[1:] if own else words)).as_dict()


def main(words: Sequence[str]) -> int:
    """Run one benchmark and return the exit code."""
    try:
        command, values = parse(words)
        values.pop("config", None)
        command(**values)
    except (SOTRError, ArgumentError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
