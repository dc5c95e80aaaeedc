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
            "Take it out of the rows; data.columns maps a column to a field that is read.",
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
            "mispaired",
            "answers stand with other questions than their own, so the model learns to answer past "
            "the question",
            "Join questions and answers again from their source, by a key rather than by line; a "
            "column that was sorted or lost a row by itself does this.",
        ),
        Check(
            "swapped",
            "questions and answers have changed places",
            "Swap the two columns in data.columns, or the two roles in data.roles.",
        ),
        Check(
            "one-answer",
            "nearly all questions have one and the same answer, which the model then gives to all",
            "Check the column of the answers; a join or a default value may have filled it.",
        ),
        Check(
            "ordered",
            "the answers stand in the order of their class; a slice such as rows.json#500, or a "
            "held-out part taken from the end, has only some of the classes",
            "Shuffle the rows of the file, or hold rows out by data.eval_fraction.",
        ),
        Check(
            "few-learned",
            "most answers are marked as not learned",
            "Check the loss flags (loss, weight, train) of the messages.",
        ),
        Check(
            "system-prompt",
            "some rows lack the system prompt that the others have, so the model learns to behave "
            "in the same way with and without it",
            "Add it to all rows, or take it out of all.",
        ),
        Check(
            "tool-call",
            "a call of a tool that no program could carry out",
            "Write the call by the definition of its tool, and put that into the tools of the row.",
        ),
        Check(
            "unfinished",
            "answers end in mid-sentence, so the model learns to break off",
            "Get the rows again from their source; a limit of characters or of tokens cut them.",
        ),
        Check(
            "echo",
            "answers repeat their prompt, so the model learns to repeat before it answers",
            "Take the prompt out of the answers; a pipeline that returns the full text leaves it.",
        ),
        Check(
            "repetition",
            "an answer says one phrase over and over, as a model does that got stuck",
            "Take the row out, or cut the answer after the first time.",
        ),
        Check(
            "continued",
            "an answer goes on with the user's next words, so the model learns to talk to itself",
            "Cut the answer before them, or split it into turns (messages).",
        ),
        Check(
            "numbers",
            "sums or numbered lists are wrong in many answers",
            "Compare digits with the source of the rows; a conversion may have altered them.",
        ),
        Check(
            "missing-value",
            "the nan of an empty cell is learned as a text",
            "Fill the cell or take the row out; keep_default_na=False of pandas.read_csv does.",
        ),
        Check(
            "markup",
            "remnants of HTML or of other markup, and escapes that were not undone",
            "Convert them to plain text or Markdown: html.unescape, and a parser for the tags.",
        ),
        Check(
            "advertising",
            "an answer advertises something with a link or a contact, unasked",
            "Take the sentence out, or the row.",
        ),
        Check(
            "invisible",
            "characters without a shape, which change the tokens and nobody sees",
            "Delete them: zero-width spaces, byte order marks, marks of direction, private ones.",
        ),
        Check(
            "script",
            "traditional characters in a simplified set",
            "Convert all rows to one script, for example with OpenCC.",
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
