"""The checks by id, and what one of them finds.

error     the model learns something wrong, or the row cannot be used: training stops
warning   most likely a mistake
info      for information
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
        id: stable, for recipes and programs.
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
            "Repair it; data.bad_rows: skip leaves such rows out, unless the file breaks off.",
            is_dropped=True,
        ),
        Check(
            "role-order",
            "a turn from the wrong role; no chat has this order",
            "Put the turns in order, or map the role with data.roles.",
        ),
        Check(
            "empty-answer",
            "the model learns to answer nothing",
            "Write the answer, or take the row out.",
            is_dropped=True,
        ),
        Check(
            "same-answers",
            "the better answer and the worse one are the same, so nothing is preferred",
            "Take the row out.",
            is_dropped=True,
        ),
        Check(
            "empty-question",
            "a question without text; was a column left out?",
            "Check data.columns, or take the row out.",
        ),
        Check(
            "no-label",
            "no token is learned, so the row teaches nothing",
            "Check its loss flags, or raise data.max_length.",
            is_dropped=True,
        ),
        Check(
            "nothing-left",
            "no row is left to learn from, so training stops",
            "Mend the rows that the other checks name, or raise data.max_length.",
        ),
        Check(
            "unused-key",
            "nothing reads this key, so what it says has no effect",
            "Take it out of the rows, or say with data.columns which field it is.",
        ),
        Check(
            "no-stop",
            "a learned answer does not end with a stop token, so the model learns not to stop",
            "Set data.overlong: drop or truncate_prompt, or raise data.max_length.",
            needs_model=True,
        ),
        Check(
            "cut-answer",
            "the length limit cuts off the end of an answer",
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
            "characters were damaged by a wrong decoding, and the model learns them",
            "Convert the data from its source again, as UTF-8.",
        ),
        Check(
            "role-marker",
            "the text contains control tokens of a chat format",
            "Take them out; the template adds them.",
        ),
        Check(
            "placeholder",
            "a placeholder was not filled in, and the model learns it literally",
            "Fill it in everywhere.",
        ),
        Check(
            "refusal",
            "boilerplate of another assistant; a few such rows teach the model to refuse",
            "Rewrite the answer, or take the row out.",
        ),
        Check(
            "language-mix",
            "the answer is in another language than the question, which does not ask for it",
            "Take the row out if the model should answer in the language of the question.",
        ),
        Check(
            "labels",
            "the labels of rows for KTO are of one kind, out of balance, or contradict each other",
            "Add rows of the other kind, or weigh them with preference.desirable_weight and "
            "undesirable_weight; of two that contradict each other keep one.",
        ),
        Check(
            "duplicate",
            "the row occurs twice, so it counts twice",
            "Keep one of them.",
            is_dropped=True,
        ),
        Check(
            "near-duplicate",
            "question and answer are nearly those of another row",
            "Keep one of them, unless the small difference is the point.",
        ),
        Check(
            "contradiction",
            "one prompt has different answers; the model learns a mixture of them",
            "Keep the right answer, or add to the prompt what decides between them.",
        ),
        Check(
            "leak",
            "a held-out row is also learned, so the evaluation looks better than the model is",
            "Take it out of one of the two sets.",
        ),
    )
}


def check_off(section: LintSection) -> None:
    """Refuse to switch off a check that does not exist, or one that is always on.

    Raises:
        RecipeError: names the check.
    """
    for name in section.off:
        if name not in CHECKS:
            raise RecipeError(f"lint.off: no check is called {name!r}; known: {', '.join(CHECKS)}.")
        if name == "unreadable":
            raise RecipeError(
                "lint.off: unreadable cannot be switched off: training cannot use such rows."
            )


@dataclass(frozen=True, slots=True)
class Fault:
    """What a check found in one row.

    Attributes:
        severity: how bad it is here.
        message: what is wrong, in one sentence.
        excerpt: the text at fault.
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
        row: its number through all files of data.train, or of data.eval, counted from 1; bad
            rows count too, as in `glmtune inspect --row`.
        is_held_out: whether it is one of data.eval.
        message: what is wrong, in one sentence.
        excerpt: the text at fault.
        other: the other row as `file:line`, where there are two; else "".
        is_usable: False if training cannot use the row at all.
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
