"""The one error that users are meant to see."""


class SOTRError(Exception):
    """Bad input: a file, annotation, checkpoint or setting that cannot be used.

    The message is one line that names the thing and the remedy. The command line prints it without a traceback and
    exits with code 2.
    """
