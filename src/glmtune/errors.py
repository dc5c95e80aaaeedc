"""Errors that a user can act on.

Each message says what was found, what was expected and what to do, with file and line where there
is one. The command line prints them without a traceback.
"""


class GlmtuneError(Exception):
    """Base class of the errors that the user can fix; any other exception is a bug.

    A message may quote a file or a library, so what no terminal and no file accepts is escaped.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(arg) if isinstance(arg, str) else arg for arg in args))

    def _render_traceback_(self) -> list[str]:
        """Show the message alone in a notebook, as the command line does; IPython asks for this."""
        from glmtune.messages import translate

        return [f"{type(self).__name__}: {translate(str(self))}"]


class RecipeError(GlmtuneError):
    """A recipe, or a `key=value` on the command line, cannot be used."""


class DataError(GlmtuneError):
    """A data file, or a row of it, cannot be used."""


class TemplateError(GlmtuneError):
    """A conversation cannot be rendered for this model, or two templates disagree."""


class NotUnicodeError(TemplateError):
    """A text has half of a surrogate pair, which is not a character."""


class CheckpointError(GlmtuneError):
    """A model folder, an adapter folder or a training checkpoint cannot be used."""


class TrainingError(GlmtuneError):
    """A run was stopped: a loss is not finite, or an adapter does not learn."""


class OutputError(GlmtuneError):
    """An output folder cannot be written, or it contains files that must not be lost."""


def printable(text: str) -> str:
    r"""Escape halves of surrogate pairs, which JSON can contain and UTF-8 cannot.

    >>> printable("\ud800")
    '\\ud800'
    """
    return text.encode(errors="backslashreplace").decode()


def some(names: list[str]) -> str:
    """Join the first three names, and count the rest.

    >>> some(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{rest}"


def json_kind(value: object) -> str:
    """Name the type of a JSON or YAML value, as in "got an object".

    >>> json_kind(3), json_kind({}), json_kind(None)
    ('a number', 'an object', 'null')
    """
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
