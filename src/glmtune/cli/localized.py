"""Commands whose help and refusals are in the language of the reader.

typer marks its own words, such as "Options" and "[default: 8]", for gettext, which reads them from
`locale/`, compiled from messages_zh.po. Our texts, and what typer does not mark, go through
`translate`.
"""

import gettext
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

import glmtune
from glmtune import messages

LOCALE = Path(glmtune.__file__).parent / "locale"


def prepare_language(arguments: list[str]) -> None:
    """Choose the language that a command line asks for, before typer reads its own words.

    Args:
        arguments: of the command line, without its name.
    """
    if (name := language_option(arguments)) in messages.LANGUAGES:
        messages.choose(str(name))
    named = os.environ.get(messages.VARIABLE, "")
    if named and named.lower()[:2] not in messages.LANGUAGES:
        print(
            f"warning: {messages.VARIABLE} is {named!r}, expected zh or en; messages are in "
            "English",
            file=sys.stderr,
        )
        messages.choose("en")  # so that it is said once, and not by every process of a run
    if messages.is_chinese() and not _can_print_chinese():
        messages.choose("en")  # rather than a screen of escapes
    if messages.is_chinese():
        os.environ["LANGUAGE"] = "zh"  # where gettext looks first
        gettext.bindtextdomain("messages", str(LOCALE))


def _can_print_chinese() -> bool:
    try:
        "中文".encode(sys.stderr.encoding)
    except UnicodeEncodeError:
        return False
    return True


def language_option(arguments: list[str]) -> str | None:
    """Return the value of `--lang`, wherever it stands before `--`; None without one."""
    for index, word in enumerate(arguments):
        if word == "--":
            return None
        if word == "--lang":
            return arguments[index + 1] if index + 1 < len(arguments) else None
        if word.startswith("--lang="):
            return word.partition("=")[2]
    return None


if TYPE_CHECKING:
    _Command = TyperCommand
else:
    _Command = object  # the two classes below each bring their own


class _InLanguage(_Command):
    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().make_context(*args, **kwargs)
        except Exception as error:
            raise_in_language(error)
            raise

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)
        if messages.is_chinese():
            for each in params:
                if getattr(each, "help", None):
                    each.help = _breakable(messages.translate(each.help))
        return params

    def get_usage(self, ctx: Any) -> str:
        usage = super().get_usage(ctx)
        return usage.replace("Usage: ", "用法：", 1) if messages.is_chinese() else usage

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.help = translated_help(self.help)
        super().format_help(ctx, formatter)


class LocalCommand(_InLanguage, TyperCommand):
    """A command of the program."""


class LocalGroup(_InLanguage, TyperGroup):
    """A group of commands of the program."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with the first line of each command's."""
        for command in self.commands.values():
            command.help = _breakable(translated_help(command.help) or "")
            command.short_help = None
        super().format_help(ctx, formatter)

    def resolve_command(self, *args: Any, **kwargs: Any) -> Any:
        """Find a command by its name."""
        try:
            return super().resolve_command(*args, **kwargs)
        except Exception as error:
            raise_in_language(error)
            raise


_MARKS = re.compile("(?<=[，。；：、）])(?=[^，。；：、）\\s])")


def _breakable(text: str) -> str:
    """Add a space after full-width marks, since the columns of a help break at spaces only."""
    return _MARKS.sub(" ", text) if messages.is_chinese() else text


def translated_help(text: str | None) -> str | None:
    """Translate the help of a command, a paragraph at a time."""
    if not text or not messages.is_chinese():
        return text
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return "\n\n".join(messages.translate(each) for each in paragraphs)


class _Refusal(typer.BadParameter):
    """A refusal of a command line, in words that are translated already."""

    def format_message(self) -> str:
        return self.message


def raise_in_language(error: Exception) -> None:
    """Raise a refusal of typer in the language of the reader; return if that is English.

    Args:
        error: any; one that is no refusal is left alone.
    """
    words = getattr(error, "format_message", None)
    is_help = type(error).__name__ == "NoArgsIsHelpError"  # as typer asks
    if words is None or is_help or isinstance(error, _Refusal) or not messages.is_chinese():
        return
    raise _Refusal(messages.translate(words()), ctx=getattr(error, "ctx", None)) from error
