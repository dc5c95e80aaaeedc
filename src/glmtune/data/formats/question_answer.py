"""Rows of a question and an answer, and lists of questions and answers in turn.

    alpaca          {"instruction": ..., "input": ..., "output": ..., "history": [[q, a]]}
    dolly           {"instruction": ..., "context": ..., "response": ...}
    others          two columns, such as {"prompt": ..., "response": ...}
    conversation    {"conversation": [{"human": q, "assistant": a}]}, Firefly's; XTuner's with
                    input and output
    ultrachat       {"data": [q, a, q, a]}

A further text, the column `input` or `context`, is appended to the question after a newline.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from glmtune.conversation import Message
from glmtune.data.formats.messages import announced, items, read_turns, tools_of
from glmtune.data.formats.roles import Roles
from glmtune.data.formats.values import (
    EMPTY,
    bad,
    checked_text,
    empty_answer,
    kind,
    maybe_json,
    text,
)
from glmtune.data.rows import Row

Reader = Callable[[Row, Roles], Sequence[Message]]


def reader_of(question: str, answer: str, further: str = "input") -> Reader:
    """Make the reader of two columns.

    Args:
        question: its column. The text is used as it is, unless there is a further one.
        answer: its column.
        further: the column of a further text.
    """

    def read(row: Row, roles: Roles) -> Sequence[Message]:
        asked = text(row, question)
        if further != question and (extra := text(row, further, optional=True)):
            asked = "\n".join([asked, extra]).strip()
        return question_and_answer(row, asked, answer)

    return read


def instruction_reader(further: str, answer: str) -> Reader:
    """Make the reader of `instruction`, a further text and an answer; the question is stripped."""

    def read(row: Row, roles: Roles) -> Sequence[Message]:
        instruction, extra = text(row, "instruction"), text(row, further, optional=True)
        return question_and_answer(row, "\n".join([instruction, extra]).strip(), answer)

    return read


def question_and_answer(row: Row, question: str, answer_field: str) -> Sequence[Message]:
    """Read the answer of a question, and the turns before it.

    Args:
        row: its columns `system`, `history` and `tools` are read, too.
        question: the text.
        answer_field: the column of the answer.
    """
    answer = text(row, answer_field)
    if not answer.strip():
        reason = "the answer is empty. Write one, or take the row out."
        raise bad(row, answer_field, reason, "empty-answer")
    turns: list[tuple[str, str]] = []
    if row.get("history") not in EMPTY:
        turns = list(_history(row))
    return _conversation(row, [*turns, (question, answer)])


def _conversation(row: Row, turns: Sequence[tuple[str, str]]) -> Sequence[Message]:
    """Put `system` and `tools` of a row before its questions and answers."""
    messages: list[Message] = []
    if system := text(row, "system", optional=True):
        messages.append(Message("system", system))
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer)]
    if row.get("tools") not in EMPTY and (tools := tools_of(row, "tools")):
        plain = [{"role": message.role, "content": message.content} for message in messages]
        return announced(row, plain, tools)
    return messages


def _history(row: Row) -> Iterator[tuple[str, str]]:
    """Yield earlier turns: a list of [question, answer], or the JSON text of one."""
    turns = maybe_json(row, "history", row["history"])
    turns = [] if turns in EMPTY else turns
    if not isinstance(turns, list):
        raise bad(row, "history", f"got {kind(turns)}, expected [[question, answer]].")
    for index, pair in enumerate(turns):
        where = f"history[{index}]"
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise bad(row, where, "expected a list of two texts, [question, answer].")
        question, answer = (checked_text(row, where, each) for each in pair)
        if not answer.strip():
            raise empty_answer(row, where)
        yield question, answer


# --- Prompts and completions of TRL -------------------------------------------------------

_read_texts = reader_of("prompt", "completion")


def read_prompt_completion(row: Row, roles: Roles) -> Sequence[Message]:
    """Read `prompt` and `completion`, as texts or as lists of messages."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return _read_texts(row, roles)
    parts = [
        items(row, field)
        if isinstance(row.get(field), list)
        else [(field, _turn(row, field, role))]
        for field, role in (("prompt", "user"), ("completion", "assistant"))
    ]
    return read_turns(row, chain.from_iterable(parts), roles, tools_of(row, "tools"))


def _turn(row: Row, field: str, role: str) -> dict[str, Any]:
    return {"role": role, "content": text(row, field)}


# --- Lists of questions and answers -------------------------------------------------------

TURN_KEYS = (("human", "assistant"), ("input", "output"))


def looks_like_turns(row: Row) -> bool:
    """Whether `conversation` has questions and answers, and not messages."""
    turns = row.get("conversation")
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and any(first.keys() >= set(keys) for keys in TURN_KEYS)


def read_conversation(row: Row, roles: Roles) -> Sequence[Message]:
    """Read questions and answers; the first of them may have a `system` text."""
    turns: list[tuple[str, str]] = []
    system: str | None = None
    for where, item in items(row, "conversation"):
        styles = [keys for keys in TURN_KEYS if not item.keys().isdisjoint(keys)]
        if len(styles) != 1:
            reason = "expected human and assistant, or input and output, and not a mixture."
            raise bad(row, where, reason)
        question, answer = styles[0]
        turns.append(
            (
                checked_text(row, f"{where}.{question}", item.get(question)),
                checked_text(row, f"{where}.{answer}", item.get(answer)),
            )
        )
        if not turns[-1][1].strip():
            raise empty_answer(row, f"{where}.{answer}")
        if item.get("system") in EMPTY:
            continue
        if len(turns) > 1 or row.get("system"):
            reason = "a system text belongs to the first turn, and once. Move it there."
            raise bad(row, f"{where}.system", reason)
        system = checked_text(row, f"{where}.system", item["system"])
    if system is not None:
        row = Row({**row, "system": system}, row.file, row.line)
    return _conversation(row, turns)


def looks_like_texts(row: Row) -> bool:
    """Whether `data` is a list of texts."""
    return isinstance(row.get("data"), list)


def read_ultrachat(row: Row, roles: Roles) -> Sequence[Message]:
    """Read a list of texts, by the user and the assistant in turn."""
    texts = maybe_json(row, "data", row.get("data"), must_parse=True)
    if not isinstance(texts, list):
        raise bad(row, "data", f"got {kind(texts)}, expected a list of texts.")
    turns = [checked_text(row, f"data[{index}]", each) for index, each in enumerate(texts)]
    pairs = list(zip(turns[::2], turns[1::2], strict=False))
    for index, (_, answer) in enumerate(pairs):
        if not answer.strip():
            raise empty_answer(row, f"data[{2 * index + 1}]")
    messages = _conversation(row, pairs)
    # The last text of an odd number is a question, as in the rows of `glmtune predict`.
    return [*messages, Message("user", turns[-1])] if len(turns) % 2 else messages
