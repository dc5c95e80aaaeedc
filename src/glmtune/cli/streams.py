r"""Make the standard streams safe to print on, whatever the shell or the console gave.

    closed at the start, as by `>&-`   the null device, so that no file takes their number
    an encoding such as GBK or ASCII   what it lacks is printed as an escape, \U0001f600
    standard input that is no text     read as lone surrogates, which commands then refuse

Files are not affected: they are written as UTF-8.
"""

import codecs
import io
import os
import sys

_NAMES = ("stdin", "stdout", "stderr")  # in the order of their numbers


def prepare_streams() -> None:
    """Open the streams that are closed, and let the others print any text."""
    for number, name in enumerate(_NAMES):
        stream = getattr(sys, name)
        if stream is None:  # Python found its number closed
            setattr(sys, name, _open_null_device(number))
        elif isinstance(stream, io.TextIOWrapper):
            errors = "backslashreplace" if number else "surrogateescape"
            stream.reconfigure(errors=errors)
            if number and codecs.lookup(stream.encoding).name == "ascii":
                setattr(sys, name, _AsciiWriter(stream))


def _open_null_device(number: int) -> io.TextIOWrapper:
    """Open the null device under a number, for this process and those that it starts."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    if descriptor != number:
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.set_inheritable(number, True)
    raw = io.FileIO(number, "w" if number else "r", closefd=False)
    buffered = io.BufferedWriter(raw) if number else io.BufferedReader(raw)
    return io.TextIOWrapper(buffered, encoding="utf-8", errors="backslashreplace")


class _AsciiWriter(io.TextIOWrapper):
    """Write ASCII by another name, since typer takes "ascii" for a mistake and writes UTF-8."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        is_line_buffered = stream.line_buffering
        super().__init__(stream.detach(), encoding="latin-1", line_buffering=is_line_buffered)

    def write(self, text: str) -> int:
        return super().write(text.encode("ascii", "backslashreplace").decode("ascii"))


def flush_streams() -> OSError | None:
    """Flush what was printed before Python does so at its end, where an error is a traceback.

    A stream that cannot be written is replaced by the null device.

    Returns:
        The error, if the output could not be written; None if its reader only has left.
    """
    problem: OSError | None = None
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError) as error:  # a ValueError: it was closed meanwhile
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                problem = error
    return problem
