"""The one error that users are meant to see, and one line of others."""


class SOTRError(Exception):
    """Bad input: a file, annotation, checkpoint or setting that cannot be used.

    The message is one line that names the thing and the remedy. The command line prints it without a traceback and
    exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says anything, or the error's type."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
