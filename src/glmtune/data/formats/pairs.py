"""Rows with a better answer and a worse one: each side is a row of another format."""

from collections.abc import Mapping
from typing import Any

from glmtune.data.formats.values import bad, kind
from glmtune.data.rows import Row

ANSWERS = ("chosen", "rejected", "rejected_response")
ANSWER_OF = {
    "instruction": "output",
    "prompt": "response",
    "query": "response",
    "question": "answer",
    "content": "summary",
}
"""Column of the question -> the column in which its format expects the answer."""


def sides(row: Row, required: tuple[str, ...]) -> tuple[Row, Row]:
    """Split a row in two that other formats read: with the better answer, and with the worse.

    Args:
        row: with our names of columns.
        required: by its format; each of them is an answer.

    Raises:
        RowError: an answer is missing, or is no answer.
    """
    for name in required:
        if row.get(name) is None:
            reason = "this answer of the pair is missing or null. Add it, or take the row out."
            raise bad(row, name, reason)
    rest = {name: value for name, value in row.items() if name not in ANSWERS}
    if "rejected_response" in required:
        return Row(rest, row.file, row.line), _with_answer(row, rest, row["rejected_response"])
    better, worse = (_side(row, rest, name) for name in ("chosen", "rejected"))
    return better, worse


def _side(row: Row, rest: Mapping[str, Any], name: str) -> Row:
    """Put the answer of a column into the row: a text, a message, or several."""
    answer = row[name]
    if isinstance(answer, str):
        return _with_answer(row, rest, answer)
    fields = dict(rest)
    if isinstance(answer, dict):
        field = "conversations" if "conversations" in fields else "messages"
        asked = fields.get(field) or []
        if not isinstance(asked, list):
            raise bad(row, field, f"got {kind(asked)}, expected a list of messages.")
        return Row({**fields, field: [*asked, answer]}, row.file, row.line)
    if not isinstance(answer, list | tuple) or not all(isinstance(m, dict) for m in answer):
        raise bad(row, name, f"got {kind(answer)}, expected an answer or messages.")
    prompt = fields.pop("prompt", None)
    if isinstance(prompt, str):  # it is also in the messages, unless they are answers alone
        is_answer = bool(answer) and answer[0].get("role") == "assistant"
        prompt = [{"role": "user", "content": prompt}] if is_answer else None
    elif prompt is not None and not isinstance(prompt, list):
        raise bad(row, "prompt", f"got {kind(prompt)}, expected a text or messages.")
    field = "conversations" if answer and "from" in answer[0] else "messages"
    return Row({**fields, field: [*(prompt or []), *answer]}, row.file, row.line)


def _with_answer(row: Row, rest: Mapping[str, Any], answer: Any) -> Row:
    """Use a text as the answer of a row, whatever its other columns are."""
    if isinstance(rest.get("messages"), list | tuple):
        turns = [turn for turn in rest["messages"] if isinstance(turn, dict)]
        if turns and turns[-1].get("role") == "assistant":
            turns.pop()
        last = {"role": "assistant", "content": answer}
        return Row({**rest, "messages": [*turns, last]}, row.file, row.line)
    for question, field in ANSWER_OF.items():
        if question in rest:
            return Row({**rest, field: answer}, row.file, row.line)
    raise bad(
        row,
        "chosen",
        "the row has no question for it: expected instruction, prompt, query or question, or "
        "messages in chosen and rejected.",
    )
