"""The chat format is known in one place, for the tokenizer, the model and the template."""

import pytest

from glmtune.conversation import Message
from glmtune.errors import TemplateError
from glmtune.model.chatglm.chat_format import ChatIds, chat_parts, chat_text, split_reply
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

IDS = ChatIds(
    start=[1, 2],
    end=[3],
    roles={"system": [10], "user": [11], "assistant": [12], "observation": [13]},
)
CALL = (
    Message("user", "q"),
    Message("assistant", "f()", metadata="tool"),
    Message("observation", "r"),
    Message("assistant", "a"),
)


def is_answer(message: Message) -> bool:
    return message.role == "assistant"


def test_a_turn_is_its_role_its_metadata_line_and_its_content() -> None:
    parts = chat_parts(CALL, IDS, IDS.end, is_answer)

    assert [part for part, _ in parts] == [
        [1, 2], [11], "\n", "q", [12], "tool\n", "f()", [13], "\n", "r", [12], "\n", "a", [3],
    ]  # fmt: skip


def test_the_model_writes_its_messages_and_the_token_after_each() -> None:
    parts = chat_parts(CALL, IDS, IDS.end, is_answer)

    written = [part for part, is_written in parts if is_written]
    assert written == ["tool\n", "f()", [13], "\n", "a", [3]]


def test_a_prompt_is_closed_by_the_role_of_the_assistant() -> None:
    assert chat_parts(CALL[:1], IDS, IDS.roles["assistant"], is_answer)[-1] == ([12], False)


def test_the_tools_of_a_system_message_are_part_of_its_content() -> None:
    [_, _, _, (content, _), _] = chat_parts(
        [Message("system", "s", tools=[{"name": "f"}])], IDS, [], is_answer
    )

    assert content == 's\n[\n    {\n        "name": "f"\n    }\n]'


def test_an_unknown_role_is_an_error_that_names_the_turn() -> None:
    with pytest.raises(TemplateError, match="turn 1 is from 'bot', expected one of system, user"):
        chat_parts([Message("user", "q"), Message("bot", "x")], IDS, [], is_answer)  # type: ignore[arg-type]


def test_the_ids_of_a_tokenizer_are_those_of_its_special_tokens(
    tiny_tokenizer: ChatGLMTokenizer,
) -> None:
    ids = ChatIds.of(tiny_tokenizer)

    assert ids.start == tiny_tokenizer.build_inputs_with_special_tokens([])
    assert ids.stop == [
        tiny_tokenizer.eos_token_id,
        tiny_tokenizer.get_command("<|user|>"),
        tiny_tokenizer.get_command("<|observation|>"),
    ]


def test_a_conversation_is_written_as_text_for_people() -> None:
    text = chat_text(CALL[:3], add_generation_prompt=True)

    assert text == ("[gMASK]sop<|user|>\n q<|assistant|>tool\n f()<|observation|>\n r<|assistant|>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\n你好", ("", "你好")), ("f\na\nb", ("f", "a\nb")), ("你好", ("", "你好")), ("", ("", ""))],
)
def test_a_reply_is_its_metadata_line_and_its_content(text: str, expected: tuple[str, str]) -> None:
    assert split_reply(text) == expected
