"""The errors a user can act on.

Each message says what was got, what was expected and what to do, and names the file and
line where there is one. The command line prints them without a traceback.
"""


class GlmtuneError(Exception):
    """The base of everything that is the user's to mend, not ours."""


class RecipeError(GlmtuneError):
    """A recipe, or a `key=value` on the command line, cannot be used."""


class DataError(GlmtuneError):
    """A data file, or a row of it, cannot be used."""


class TemplateError(GlmtuneError):
    """A conversation cannot be rendered for this model, or two templates disagree."""


class CheckpointError(GlmtuneError):
    """A model folder, an adapter folder or a training checkpoint cannot be used."""


class TrainingError(GlmtuneError):
    """A run had to stop: a loss that is not finite, an adapter that does not learn."""


class OutputError(GlmtuneError):
    """An output folder cannot be written, or holds something that must not be lost."""


def some(names: list[str]) -> str:
    """Name the first few."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{rest}"
