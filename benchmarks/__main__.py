"""`python -m benchmarks NAME`: measure, and write what was found to benchmarks/results."""

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentError

from benchmarks.command import benchmark
from sotr.cli import command_parser, one_line
from sotr.errors import SOTRError


def main(words: Sequence[str]) -> int:
    """Run one benchmark and return the exit code."""
    parser = command_parser(benchmark)
    parser.prog = "python -m benchmarks"
    try:
        values = parser.parse_args(list(words)).as_dict()
        values.pop("config", None)
        benchmark(**values)
    except (SOTRError, ArgumentError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
