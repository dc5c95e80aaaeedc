"""The command `glmtune`, and the exit codes of errors.

0  success     1  an error of the user (a message on stderr, no traceback)
2  invalid command line      130  interrupted by Ctrl-C      143  by SIGTERM
141  the reader of the output has left, as in `glmtune info ... | head`
"""

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Annotated, Literal

import typer

import glmtune
from glmtune.cli.board.command import board
from glmtune.cli.chat import chat
from glmtune.cli.compare import compare
from glmtune.cli.convert_recipe import convert_recipe
from glmtune.cli.demo.command import demo
from glmtune.cli.doctor import doctor
from glmtune.cli.download import download
from glmtune.cli.evaluate import evaluate
from glmtune.cli.export import export
from glmtune.cli.info import info
from glmtune.cli.init import init
from glmtune.cli.inspect import inspect
from glmtune.cli.lint import lint
from glmtune.cli.localized import LocalCommand, prepare_language
from glmtune.cli.merge import merge
from glmtune.cli.options import OptionsAnywhere, is_first_rank
from glmtune.cli.plan import plan
from glmtune.cli.predict import predict
from glmtune.cli.pretrain import pretrain
from glmtune.cli.printing import echo
from glmtune.cli.push import push
from glmtune.cli.report import report
from glmtune.cli.serve import serve
from glmtune.cli.streams import flush_streams, prepare_streams
from glmtune.cli.tokenizer import tokenizer
from glmtune.cli.train import train
from glmtune.errors import GlmtuneError
from glmtune.messages import translate
from glmtune.train import process_memory

DESCRIPTION = "Fine-tune ChatGLM3-6B and similar models: train an adapter, inspect it, talk to it."

app = typer.Typer(
    name="glmtune",
    cls=OptionsAnywhere,
    help=DESCRIPTION,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# `--key value` after the recipe sets a key of the recipe, so typer must accept unknown options.
ANY_KEY = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(cls=LocalCommand, context_settings=ANY_KEY)(train)
app.command(cls=LocalCommand, context_settings=ANY_KEY)(pretrain)
app.command(cls=LocalCommand, context_settings=ANY_KEY)(plan)
app.command(cls=LocalCommand, context_settings=ANY_KEY)(init)
app.command(cls=LocalCommand)(chat)
app.command(cls=LocalCommand)(predict)
app.command(cls=LocalCommand)(evaluate)
app.command(cls=LocalCommand)(serve)
app.command(cls=LocalCommand)(board)
app.command(cls=LocalCommand)(merge)
app.command(cls=LocalCommand)(export)
app.command(cls=LocalCommand)(info)
app.command(cls=LocalCommand)(inspect)
app.command(cls=LocalCommand)(lint)
app.command(cls=LocalCommand)(report)
app.command(cls=LocalCommand)(compare)
app.command(cls=LocalCommand)(push)
app.command(cls=LocalCommand)(download)
app.command(cls=LocalCommand)(demo)
app.command(cls=LocalCommand)(doctor)
app.command("convert-recipe", cls=LocalCommand)(convert_recipe)
app.add_typer(tokenizer)


Language = Literal["zh", "en"]  # as in `glmtune.messages`


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"glmtune {glmtune.__version__}")
        raise typer.Exit


@app.callback(help=DESCRIPTION)
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only warnings and results.")
    ] = False,
    lang: Annotated[
        Language | None,
        typer.Option(
            "--lang",
            help="Language of messages; default: that of GLMTUNE_LANG, LC_ALL or LANG.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Configure logging and warnings for all commands."""
    logger = logging.getLogger("glmtune")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    if not is_first_rank():
        logger.setLevel(logging.ERROR)
    if not logger.handlers:
        logger.addHandler(_CurrentStderr())
    # It warns about a missing kernel of the hub even if nothing is quantized.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Users cannot fix what libraries deprecate in each other.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.formatwarning = _format_warning


class _CurrentStderr(logging.Handler):
    """Write to the current standard error, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        print(translate(prefix + self.format(record)), file=sys.stderr)


def _format_warning(message: Warning | str, *_: object, **__: object) -> str:
    return translate(f"warning: {message}\n")


READER_LEFT = 128 + 13  # as a shell reports a program that SIGPIPE, 13, has ended


class _Terminated(BaseException):
    """Raised by SIGTERM, so that temporary files are removed as after Ctrl-C."""


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends at once
    raise _Terminated


def run() -> None:
    """Run the command line and exit with its code."""
    prepare_streams()
    prepare_language(sys.argv[1:])
    if not sys.stderr.isatty():  # no progress bars in a log
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    process_memory.set_defaults()
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    code = _run_command()
    if (problem := flush_streams()) is not None:
        code = _print_error(f"the output could not be written: {problem.strerror}.")
    sys.exit(code)


def _run_command() -> int | str | None:
    """Run the command and return its exit code; errors are printed."""
    try:
        app()
    except SystemExit as end:  # as every command ends
        causes = tuple(_causes(end))
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes):  # typer prints nothing
            return _print_interrupted()
        if any(
            isinstance(cause, BrokenPipeError) for cause in causes
        ):  # typer and rich exit with 1
            return READER_LEFT
        return end.code
    except GlmtuneError as error:
        return _print_error(str(error))
    except BrokenPipeError:
        return READER_LEFT
    except OSError as error:
        where = error.filename or "the output"
        if error.errno in (errno.EFBIG, errno.EIO):
            return _print_error(f"{where}: could not be written: {error.strerror}.")
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _print_error(
            f"{where}: the disk is full. Files that were complete are unchanged. "
            "Free some space, then run the command again (train: with --resume)."
        )
    except KeyboardInterrupt:
        return _print_interrupted()
    except _Terminated:
        echo("terminated", err=True)
        return 128 + signal.SIGTERM
    return 0


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield what an exception was raised from, or while handling."""
    cause = error.__cause__ if error.__suppress_context__ else error.__context__
    if cause is not None:
        yield cause
        yield from _causes(cause)


def _print_error(text: str) -> int:
    echo(f"error: {text}", fg=typer.colors.RED, err=True)
    return 1


def _print_interrupted() -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends at once
    echo("interrupted", err=True)
    return 130
