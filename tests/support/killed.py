"""Processes of a loader that tests kill."""

import pytest

KILLED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""Marks such a test: PyTorch tells of the end of the process by an error in whatever the main process does just then. A
callback of the garbage collector, such as hypothesis has, ignores it; the next look at the process finds the same."""
