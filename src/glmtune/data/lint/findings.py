"""The checks by id, and what one of them finds.

error     the model learns something wrong, or training will stop
warning   most likely not meant
info      good to know
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from glmtune.errors import RecipeError
from glmtune.recipe.sections import LintSection

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that can be wrong.

    Attributes:
        id: stable, for recipes and machines.
        meaning: what it finds and why that matters.
        remedy: what to do.
        needs_model: whether it looks at tokens.
        is_dropped: whether a clean copy leaves such rows out.
    """

    id: str
    meaning: str
    remedy: str
    needs_model: bool = False
    is_dropped: bool = False


CHECKS: Mapping[str, Check] = {
    check.id: check
    for check in (
        Check(
            "unreadable",
            "the row cannot be used at all",
            "Mend it; data.bad_rows: skip leaves such rows out.",
            is_dropped=True,
        ),
        Check(
            "role-order",
            "a turn from the wrong speaker; chats never look like that",
            "Put the turns in order, or map the role with data.roles.",
        ),
        Check(
            "empty-answer",
            "an answer without words teaches silence",
            "Write the answer, or take the row out.",
            is_dropped=True,
        ),
        Check(
            "same-answers",
            "the better answer and the worse one say the same, so nothing is preferred",
            "Take the row out.",
            is_dropped=True,
        ),
        Check(
            "empty-question",
            "a question without words; was a column left out?",
            "Look at data.columns, or take the row out.",
        ),
        Check(
            "no-label",
            "no token is learned, so the row teaches nothing",
            "Look at its loss flags, or raise data.max_length.",
            is_dropped=True,
        ),
        Check(
            "no-stop",
            "a learned answer does not end in a stop token, so the model learns to run on",
            "Set data.overlong: drop or truncate_prompt, or raise data.max_length.",
            needs_model=True,
        ),
        Check(
            "cut-answer",
            "the length limit cuts words off an answer",
            "Raise data.max_length, or set data.overlong: drop or truncate_prompt.",
            needs_model=True,
        ),
        Check(
            "length",
            "the row is longer than data.max_length",
            "Raise data.max_length if these rows matter; see the table of lengths.",
            needs_model=True,
        ),
        Check(
            "encoding",
            "characters were broken by a wrong decoding; the model learns the garbage",
            "Convert the data from its source again, as UTF-8.",
        ),
        Check(
            "role-marker",
            "control tokens of a chat format stand in the text, as text",
            "Take them out; the template writes them itself.",
        ),
        Check(
            "placeholder",
            "something was left to fill in, and the model will say it literally",
            "Fill it in everywhere.",
        ),
        Check(
            "refusal",
            "boilerplate of another assistant; a few rows teach the model to refuse",
            "Rewrite the answer, or take the row out.",
        ),
        Check(
            "language-mix",
            "the answer is in another language than the question, which does not ask for it",
            "Take the row out if the model should answer in the language of the question.",
        ),
        Check(
            "duplicate",
            "the row is there twice, and so weighs twice",
            "Keep one of them.",
            is_dropped=True,
        ),
        Check(
            "near-duplicate",
            "question and answer are almost those of another row",
            "Keep one of them, unless the small difference is the point.",
        ),
        Check(
            "contradiction",
            "one prompt has different answers; the model learns their average",
            "Keep the right answer, or put into the prompt what decides between them.",
        ),
        Check(
            "leak",
            "a held-out row is also learned, so the evaluation looks better than the model is",
            "Take it out of one of the two sets.",
        ),
    )
}


def check_off(section: LintSection) -> None:
    """Refuse to switch off a check that does not exist, or one that must look.

    Raises:
        RecipeError: names the check.
    """
    for name in section.off:
        if name not in CHECKS:
            raise RecipeError(f"lint.off: no check is called {name!r}; known: {', '.join(CHECKS)}.")
        if name == "unreadable":
            raise RecipeError("lint.off: unreadable cannot be off: training stops at such rows.")


@dataclass(frozen=True, slots=True)
class Fault:
    """What a check says of one row.

    Attributes:
        severity: how bad it is here.
        message: what is wrong, in one sentence.
        excerpt: the words at fault.
    """

    severity: Severity
    message: str
    excerpt: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One row with one thing wrong.

    Attributes:
        check: the id.
        severity: how bad it is here.
        file, line: where the row starts.
        row: its number through all files of data.train, or of data.eval, counted from 1 and
            bad rows included, as in `glmtune inspect --row`.
        is_held_out: whether it is one of data.eval.
        message: what is wrong, in one sentence.
        excerpt: the words at fault.
        other: the other row as `file:line`, where there are two; else "".
        is_usable: False when training cannot take the row at all.
    """

    check: str
    severity: Severity
    file: str
    line: int
    row: int
    is_held_out: bool
    message: str
    excerpt: str
    other: str = ""
    is_usable: bool = True

    @property
    def place(self) -> str:
        """As `file:line`."""
        return f"{self.file}:{self.line}"
