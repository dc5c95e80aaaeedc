"""A conversation continues, streams complete answers, and uses the layout of training."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from glmtune.conversation import TOOLS_PROMPT, Conversation, Message
from glmtune.errors import CheckpointError, TemplateError
from glmtune.tool_calls import parse_tool_call
from glmtune.use.chat import ChatSession, reply_text, system_messages
from glmtune.use.generate import Sampling
from glmtune.use.open import open_session

# What `taught_model_dir` has learned by heart.
QUESTION, ANSWER = "你叫什么名字？", "我是小助手。😀 鑫！"
AGAIN, AGAIN_ANSWER = "再说一次", "小助手。"
WEATHER, REMARK, RESULT, WEATHER_ANSWER = (
    "北京天气怎么样？",
    "我查一下。",
    '{"celsius": 3}',
    "北京现在 3 度。",
)
GREEDY = Sampling(temperature=0, max_new_tokens=60)


@pytest.fixture(scope="module")
def taught(taught_model_dir: Path) -> ChatSession:
    return open_session(str(taught_model_dir), sampling=GREEDY)


@pytest.fixture
def session(taught: ChatSession) -> ChatSession:
    """A conversation that has not begun."""
    return ChatSession(taught.model, taught.template, sampling=GREEDY)


def test_a_learned_answer_comes_back_and_ends_by_itself(session: ChatSession) -> None:
    reply = session.reply(QUESTION)

    assert reply.text == ANSWER
    assert reply.ended_by == "stop"
    assert session.messages == (Message("user", QUESTION), Message("assistant", ANSWER))


def test_the_pieces_of_a_stream_are_the_whole_answer(session: ChatSession) -> None:
    pieces = list(session.stream(QUESTION))

    assert "".join(pieces) == ANSWER
    assert len(pieces) > 3
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    # 😀 and 鑫 are several tokens each, which would each show as a replacement character
    assert {"😀", "鑫"} <= set("".join(pieces))
    assert reply_ids(session, "😀") > 3


def reply_ids(session: ChatSession, text: str) -> int:
    """How many tokens a text has."""
    alone = session.template.prompt_ids(Conversation((Message("user", text),)))
    return len(alone) - len(session.template.prompt_ids(Conversation((Message("user", ""),))))


def test_bytes_that_never_become_a_character_are_shown_all_the_same(
    taught: ChatSession,
) -> None:
    # 😀 and 鑫 end after 4 and 3 tokens; cut at each length, some cut falls inside of one
    cut_inside = 0
    for length in range(1, 30):
        sampling = replace(GREEDY, max_new_tokens=length)
        session = ChatSession(taught.model, taught.template, sampling=sampling)

        streamed = "".join(session.stream(QUESTION))

        assert session.last_reply is not None
        assert streamed == session.last_reply.text
        cut_inside += streamed.endswith("\N{REPLACEMENT CHARACTER}")
    assert cut_inside >= 2


def test_the_next_question_sees_the_earlier_turns(session: ChatSession) -> None:
    session.reply(QUESTION)
    assert session.reply(AGAIN).text == AGAIN_ANSWER

    session.reset()
    assert session.reply(AGAIN).text != AGAIN_ANSWER


def test_keys_and_values_kept_between_turns_change_nothing(
    taught: ChatSession, fed: list[int]
) -> None:
    kept = ChatSession(taught.model, taught.template, sampling=GREEDY)
    whole = []
    for question in (QUESTION, AGAIN, WEATHER):
        prompt_ids = kept.template.prompt_ids(
            Conversation((*kept.messages, Message("user", question)))
        )
        fresh = ChatSession(taught.model, taught.template, sampling=GREEDY)
        fresh.messages = kept.messages

        assert kept.reply(question) == fresh.reply(question)
        whole.append(len(prompt_ids))

    assert fed[1::2] == whole
    assert fed[0] == whole[0]  # nothing was known before
    assert fed[2] < whole[1] // 2  # only the new turn was run
    assert fed[4] < whole[2] // 2


@pytest.fixture
def fed(taught: ChatSession) -> Iterator[list[int]]:
    """The length of every prompt that is run through the model."""
    lengths: list[int] = []

    def note(_module: object, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["input_ids"].size(1) > 1:
            lengths.append(kwargs["input_ids"].size(1))

    handle = taught.model.register_forward_pre_hook(note, with_kwargs=True)
    yield lengths
    handle.remove()


def test_the_tokens_are_those_of_transformers_generate(
    taught: ChatSession, session: ChatSession
) -> None:
    sampling = Sampling(temperature=0, max_new_tokens=40, repetition_penalty=1.3)
    session = ChatSession(taught.model, taught.template, sampling=sampling)
    prompt = taught.template.prompt_ids(Conversation((Message("user", "今天天气？"),)))
    sequence = taught.model.generate(
        torch.tensor([prompt]),
        max_new_tokens=40,
        do_sample=False,
        repetition_penalty=1.3,
        eos_token_id=list(taught.template.stop_ids),
    )[0].tolist()

    reply = session.reply("今天天气？")

    assert reply.messages == tuple(taught.template.parse(sequence[len(prompt) :]))


def test_a_tool_is_called_and_its_result_answered(session: ChatSession) -> None:
    called = session.reply(WEATHER)

    remark, call = called.messages
    assert remark == Message("assistant", REMARK)
    assert (call.metadata, parse_tool_call(call.content)) == ("weather", {"city": "北京"})
    assert called.text == f"{REMARK}\nweather\n{call.content}"
    assert session.reply(RESULT, role="observation").text == WEATHER_ANSWER


def test_a_tool_call_is_streamed_as_it_is_written(session: ChatSession) -> None:
    streamed = "".join(session.stream(WEATHER))

    assert session.last_reply is not None
    assert streamed == session.last_reply.text


def test_an_answer_that_is_cut_keeps_its_last_token_and_is_marked_as_cut(
    taught: ChatSession,
) -> None:
    session = ChatSession(taught.model, taught.template, sampling=replace(GREEDY, max_new_tokens=4))

    reply = session.reply(QUESTION)

    assert reply.ended_by == "length"
    assert reply.num_tokens == 4
    assert ANSWER.startswith(reply.text)
    assert reply.text


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(session: ChatSession) -> None:
    stream = session.stream(QUESTION)
    first = next(stream)
    stream.close()

    assert session.last_reply is not None
    assert session.last_reply.ended_by == "interrupt"
    assert session.messages == (Message("user", QUESTION), Message("assistant", first))
    assert session.reply(AGAIN).text  # and the session continues


def test_undo_takes_back_a_question_with_its_answer(session: ChatSession) -> None:
    session.reply(QUESTION)
    before = session.messages
    session.reply(WEATHER)
    session.reply(RESULT, role="observation")

    assert session.undo()
    assert session.messages == before
    assert session.undo()
    assert session.messages == ()
    assert not session.undo()


def test_the_same_seed_draws_the_same_answers(taught: ChatSession) -> None:
    def say(seed: int) -> list[str]:
        sampling = Sampling(seed=seed, temperature=2.0, top_p=1.0, max_new_tokens=20)
        session = ChatSession(taught.model, taught.template, sampling=sampling)
        return [session.reply("春天").text, session.reply("北京").text]

    assert say(1) == say(1)
    assert say(1) != say(2)


def test_a_message_that_is_not_allowed_here_changes_nothing(session: ChatSession) -> None:
    session.reply(QUESTION)
    before = session.messages

    with pytest.raises(TemplateError, match="system message after"):
        session.reply("be brief", role="system")
    session.reset()
    with pytest.raises(TemplateError, match="observation after nothing"):
        session.reply("3 度", role="observation")

    assert session.messages == ()
    assert before != ()


def test_scores_that_are_not_finite_are_an_error_and_no_answer(taught_model_dir: Path) -> None:
    session = open_session(str(taught_model_dir), sampling=GREEDY)
    with torch.no_grad():
        session.model.transformer.encoder.final_layernorm.weight.fill_(float("nan"))

    with pytest.raises(CheckpointError, match=r"token 1 of the answer are not finite"):
        session.reply(QUESTION)

    assert session.messages == ()


def test_the_oldest_turns_are_dropped_when_the_context_is_full(taught: ChatSession) -> None:
    session = ChatSession(
        taught.model,
        taught.template,
        system=system_messages("简短回答。"),
        sampling=replace(GREEDY, max_new_tokens=20),
    )
    context = session.context_length
    assert context == 512
    num_left_out = 0
    for index in range(20):
        reply = session.reply(f"第{index}个问题：" + "北京的历史" * 8)
        prompt = session.template.prompt_ids(Conversation(session.messages))
        assert len(prompt) <= context + 1  # with the token that would begin the next answer
        num_left_out += reply.num_left_out

    assert num_left_out > 0
    assert session.messages[0] == Message("system", "简短回答。")
    assert session.messages[1].role == "user"
    assert len(session.messages) + num_left_out == 1 + 2 * 20


def test_a_message_longer_than_the_context_is_refused(session: ChatSession) -> None:
    with pytest.raises(TemplateError, match="leaves no room for an answer in the 512"):
        session.reply("北京" * 1000)

    assert session.messages == ()


def test_the_plain_layout_completes_each_prompt_on_its_own(tiny_model_dir: Path) -> None:
    session = open_session(
        str(tiny_model_dir), layout="plain", sampling=replace(GREEDY, max_new_tokens=5)
    )

    assert session.reply("北京是").messages == session.reply("北京是").messages


def test_tools_are_announced_in_the_system_message() -> None:
    tools = [{"name": "weather"}]

    assert system_messages(None, tools) == (Message("system", TOOLS_PROMPT, tools=tools),)
    assert system_messages("简短。", tools) == (Message("system", "简短。", tools=tools),)
    assert system_messages(None) == ()


def test_a_reply_as_text_grows_with_its_tokens(taught: ChatSession) -> None:
    """No piece that was shown is taken back when the line turns out to be a tool's name."""
    session = ChatSession(taught.model, taught.template, sampling=GREEDY)
    session.reply(WEATHER)
    ids = taught.template.encode(Conversation(session.messages)).input_ids
    start = len(taught.template.prompt_ids(Conversation(session.messages[:1])))

    replies = [
        reply_text(taught.template.parse(ids[start:end])) for end in range(start + 1, len(ids))
    ]

    for shorter, longer in pairwise(replies):
        assert longer.startswith(shorter.rstrip("\N{REPLACEMENT CHARACTER}"))
