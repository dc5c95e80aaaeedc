"""Conversations for the tests of templates, written out and drawn at random."""

from __future__ import annotations

from hypothesis import strategies as st

from glmtune.conversation import Conversation, Message
from glmtune.model.chatglm.chat_format import SPECIAL_TOKENS
from glmtune.template.base import IGNORE, Example
from glmtune.tool_calls import render_tool_call


def talk(*turns: tuple[str, str] | Message) -> Conversation:
    """A conversation of `(role, content)` and complete messages."""
    return Conversation(
        tuple(turn if isinstance(turn, Message) else Message(*turn) for turn in turns)  # type: ignore[arg-type]
    )


def learned(example: Example) -> list[int]:
    return [label for label in example.labels if label != IGNORE]


texts = st.lists(
    st.one_of(
        st.sampled_from([*SPECIAL_TOKENS, "</s>", "<unk>", "\n", " ", "😀", "你好", "```"]),
        st.text(max_size=5),
    ),
    max_size=4,
).map("".join)
flags = st.sampled_from([None, None, True, False])
calls = st.builds(
    Message,
    st.just("assistant"),
    st.dictionaries(st.sampled_from(["a", "b"]), texts, max_size=2).map(render_tool_call),
    metadata=st.sampled_from(["weather", "天气 2", "<|user|>"]),
    is_learned=flags,
)
answers = st.builds(Message, st.just("assistant"), texts, is_learned=flags)
observations = st.builds(Message, st.just("observation"), texts, is_learned=flags)
users = st.builds(Message, st.just("user"), texts, is_learned=flags)
exchanges = st.one_of(
    st.tuples(users, answers),
    st.tuples(users, calls, observations, answers),
    st.tuples(users, answers, calls, observations, calls, observations, answers),
)
systems = st.builds(
    Message,
    st.just("system"),
    texts,
    tools=st.one_of(st.none(), st.lists(st.dictionaries(texts, texts, max_size=2), max_size=2)),
)


@st.composite
def dialogues(draw: st.DrawFn) -> Conversation:
    turns = draw(st.lists(systems, max_size=1))
    for exchange in draw(st.lists(exchanges, min_size=1, max_size=3)):
        turns += exchange
    return Conversation(tuple(turns))
