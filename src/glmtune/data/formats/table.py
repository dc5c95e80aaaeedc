"""All formats, in one table: what each is found by, and every column that it reads."""

from glmtune.conversation import Message
from glmtune.data.formats.format import Format
from glmtune.data.formats.messages import read_chatglm3, read_openai, read_sharegpt
from glmtune.data.formats.question_answer import (
    instruction_reader,
    looks_like_texts,
    looks_like_turns,
    read_conversation,
    read_prompt_completion,
    read_ultrachat,
    reader_of,
)
from glmtune.data.formats.roles import CHATGLM3_ROLES, OPENAI_ROLES, SHAREGPT_ROLES
from glmtune.data.formats.values import text

_EVERY = ("system", "tools", "label", "kto_tag")
_SINGLE = ("history", *_EVERY)  # of rows with one question and one answer


def _two(question: str, answer: str, *, rank: int = 0, harmless: tuple[str, ...] = ()) -> Format:
    """Make a format of two columns; `input`, if there is one, is appended to the question."""
    optional = _SINGLE if question == "input" else ("input", *_SINGLE)
    return Format(
        f"{question}_{answer}",
        (question, answer),
        optional,
        reader_of(question, answer),
        answer,
        rank=rank,
        harmless=harmless,
    )


# Formats that were added later have a higher rank, so that rows which also fit an earlier one
# are read as before.
FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format(
            "alpaca",
            ("instruction", "output"),
            ("input", *_SINGLE),
            instruction_reader("input", "output"),
            answer="output",
            harmless=("text",),  # Stanford's file repeats the row there, as one text
        ),
        _two("prompt", "response"),
        _two("query", "response"),
        _two("question", "answer"),
        _two("content", "summary"),
        Format(
            "sharegpt",
            ("conversations",),
            _EVERY,
            read_sharegpt,
            messages=("conversations",),
            style="from",
            known_roles=SHAREGPT_ROLES,
        ),
        Format(
            "openai",
            ("messages",),
            ("functions", *_EVERY),
            read_openai,
            messages=("messages",),
            style="role",
            known_roles=OPENAI_ROLES,
        ),
        Format(
            "chatglm3",
            ("conversations",),
            _EVERY,
            read_chatglm3,
            messages=("conversations",),
            style="role",
            known_roles=CHATGLM3_ROLES,
        ),
        Format("chosen_rejected", ("chosen", "rejected"), (), None),
        Format("rejected_response", ("rejected_response",), (), None),
        Format(
            "dolly",
            ("instruction", "response"),
            ("context", *_SINGLE),
            instruction_reader("context", "response"),
            answer="response",
            rank=1,
        ),
        Format(
            "prompt_completion",
            ("prompt", "completion"),
            ("input", *_SINGLE),
            read_prompt_completion,
            answer="completion",
            messages=("prompt", "completion"),
            style="role",
            known_roles=OPENAI_ROLES,
            rank=1,
        ),
        _two("input", "output", rank=1),
        _two("input", "target", rank=2, harmless=("kind",)),
        Format(
            "conversation",
            ("conversation",),
            _EVERY,
            read_conversation,
            looks=looks_like_turns,
            rank=2,
        ),
        Format("ultrachat", ("data",), _EVERY, read_ultrachat, looks=looks_like_texts, rank=3),
    )
}
PAIR_FORMATS = tuple(format.name for format in FORMATS.values() if format.is_pair)
ANSWERS = {format.answer for format in FORMATS.values()}
TEXTS = Format("texts", ("text",), (), lambda row, roles: [Message("user", text(row, "text"))])


def known_formats() -> str:
    """List all formats and their columns, for an error."""
    return "; ".join(f"{f.name} ({', '.join(f.required)})" for f in FORMATS.values())
