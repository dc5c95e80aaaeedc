"""What is learned is what will be asked for: training ids begin with the prompt of chat."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.template.conversations import answers, calls, dialogues, learned, talk

from glmtune.conversation import TOOLS_PROMPT, Conversation, Message
from glmtune.errors import TemplateError
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.recipe.choices import LAYOUTS, Layout
from glmtune.template.base import IGNORE, is_learned
from glmtune.template.chatglm import ChatGLMTemplate
from glmtune.tool_calls import render_tool_call


@pytest.fixture(scope="module")
def chatglm3(golden: Path) -> ChatGLMTokenizer:
    """The real tokenizer."""
    tokenizer: ChatGLMTokenizer = ChatGLMTokenizer.from_pretrained(golden / "chatglm3-tokenizer")
    return tokenizer


@pytest.fixture(scope="module")
def vectors(golden: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((golden / "sft.json").read_text("utf-8"))
    return loaded


# ---- equal to the original preprocessors ----------------------------------------------------


def _from_official(item: dict[str, Any]) -> Conversation:
    """Read the data format of the official fine-tuning demo (spec 9.2)."""
    messages = []
    if "tools" in item:
        messages.append(Message("system", TOOLS_PROMPT, tools=item["tools"]))
    for turn in item["conversations"]:
        flag = turn.get("loss", True)
        if turn["role"] == "tool":
            call = render_tool_call(turn["parameters"])
            result = turn.get("observation")
            if not isinstance(result, str):
                result = json.dumps(result, ensure_ascii=False)
            messages.append(Message("assistant", call, metadata=turn["name"], is_learned=flag))
            messages.append(Message("observation", result, is_learned=False))
        else:
            messages.append(Message(turn["role"], turn["content"], is_learned=flag))
    return Conversation(tuple(messages))


def test_official_multi_turn_rows_equal_the_original(
    chatglm3: ChatGLMTokenizer, vectors: dict[str, Any]
) -> None:
    template = ChatGLMTemplate(chatglm3)
    cases = vectors["multi_turn"]
    assert len(cases) == 30

    examples = template.encode_batch([_from_official(case["item"]) for case in cases])

    num_cut = 0
    for case, example in zip(cases, examples, strict=True):
        assert example.input_ids == case["input_ids"]
        assert example.labels == case["labels"]
        before = [0, *case["loss_mask"][:-1]]
        assert [int(label != IGNORE) for label in example.labels] == before
        for cut in case.get("fixed_length", []):
            length = cut["max_seq_length"]
            pads = max(0, length - len(example.input_ids))
            assert example.input_ids[:length] + [0] * pads == cut["input_ids"]
            assert example.labels[:length] + [IGNORE] * pads == cut["labels"]
            num_cut += 1
    assert num_cut > 10


def test_official_multi_turn_rows_without_tools_equal_the_original(
    chatglm3: ChatGLMTokenizer, vectors: dict[str, Any]
) -> None:
    template = ChatGLMTemplate(chatglm3)
    num_answers = 0
    for case in vectors["multi_turn_plain"]:
        most_in, most_out = case["max_input_length"], case["max_output_length"]
        turns = [(turn["role"], turn["content"]) for turn in case["conversations"]]
        conversation = talk(*turns)
        example = template.encode(conversation)
        most = most_in + most_out + 1
        assert example.input_ids[:most] == case["input_ids"]
        assert example.labels[:most] == case["labels"]

        prompts, answers = [], []
        for index, message in enumerate(conversation):
            prompt = template.prompt_ids(Conversation(conversation.messages[:index]))
            if message.role != "assistant":
                continue
            if len(prompt) - 1 >= most_in:
                break
            whole = template.encode(Conversation(conversation.messages[: index + 1]))
            prompts.append(prompt)
            answers.append(whole.input_ids[len(prompt) :][:most_out])
        assert prompts == case["eval_input_ids"]
        assert answers == case["eval_output_ids"]
        num_answers += len(answers)
    assert num_answers > 20


def _from_alpaca(row: dict[str, str]) -> Conversation:
    query = "\n".join([row["instruction"], row["input"]]).strip()
    return talk(("user", query), ("assistant", row["output"]))


def test_tutorial_rows_equal_the_original_bit_for_bit(
    chatglm3: ChatGLMTokenizer, vectors: dict[str, Any]
) -> None:
    template = ChatGLMTemplate(chatglm3, "tutorial")
    cases = vectors["alpaca"]
    assert len(cases) == 130

    examples = template.encode_batch([_from_alpaca(case["row"]) for case in cases])

    longest = vectors["meta"]["max_length"]
    for case, example in zip(cases, examples, strict=True):
        ids, ignored = case["input_ids"], case["n_ignored_labels"]
        assert len(example.input_ids) == case["full_len"]
        assert example.input_ids[:longest] == ids
        assert example.labels[:longest] == [IGNORE] * ignored + ids[ignored:]
    assert sum(case["truncated"] for case in cases) == 8


def test_odd_tutorial_rows_equal_the_original(
    chatglm3: ChatGLMTokenizer, vectors: dict[str, Any]
) -> None:
    template = ChatGLMTemplate(chatglm3, "tutorial")
    for case in vectors["odd_rows"]:
        conversation = _from_alpaca(case["row"])
        example, longest = template.encode(conversation), case["max_length"]
        assert example.input_ids[:longest] == case["input_ids"]
        assert example.labels[:longest] == case["labels"]
        prompt = template.prompt_ids(Conversation(conversation.messages[:1]))
        assert len(prompt) == case["prompt_len"]


def test_plain_rows_equal_the_original(chatglm3: ChatGLMTokenizer, vectors: dict[str, Any]) -> None:
    template = ChatGLMTemplate(chatglm3, "plain")
    assert template.stop_ids == (2,)
    num_whole = 0
    for case in vectors["input_output"]:
        most_in, most_out = case["max_source_length"], case["max_target_length"]
        example = template.encode(talk(("user", case["prompt"]), ("assistant", case["response"])))
        prompt = template.prompt_ids(talk(("user", case["prompt"])))
        answer = example.input_ids[len(prompt) : -1]

        cut = [*prompt[:most_in], *answer[:most_out], 2]
        assert cut == case["input_ids"][: len(cut)]
        labels = [IGNORE] * len(prompt[:most_in]) + [*answer[:most_out], 2]
        assert labels == case["labels"][: len(cut)]
        if len(prompt) <= most_in and len(answer) <= most_out:
            assert example.input_ids == cut
            assert example.labels == labels
            num_whole += 1
    assert num_whole > 5


def test_prompts_equal_build_chat_input(chatglm3: ChatGLMTokenizer, golden: Path) -> None:
    cases = json.loads((golden / "chat.json").read_text("utf-8"))["cases"]
    for layout in ("official", "tutorial"):
        template = ChatGLMTemplate(chatglm3, layout)
        for case in cases:
            turns = [*(case["history"] or []), {"role": case["role"], "content": case["query"]}]
            messages = [
                Message(turn["role"], turn["content"], turn.get("metadata", ""), turn.get("tools"))
                for turn in turns
            ]
            assert template.prompt_ids(Conversation(tuple(messages))) == case["input_ids"]


# ---- the prompt of every answer -------------------------------------------------------------


def _check_promise(template: ChatGLMTemplate, conversation: Conversation, is_answer: Any) -> None:
    """Training ids begin with every prompt; what is learned are the answers and their ends."""
    messages = conversation.messages
    example = template.encode(conversation)
    ids = example.input_ids
    assert len(ids) == len(example.labels)
    expected = [IGNORE] * len(ids)
    for index, message in enumerate(messages):
        prompt = template.prompt_ids(Conversation(messages[:index]))
        after = template.prompt_ids(Conversation(messages[: index + 1]))
        if message.role == "assistant":
            assert ids[: len(prompt)] == prompt
        if is_answer(index):
            # a turn is its role, what is written, and the token after it
            expected[len(prompt) : len(after)] = ids[len(prompt) : len(after)]
    assert example.labels == expected


@settings(max_examples=80, deadline=None)
@given(conversation=dialogues())
def test_training_ids_begin_with_the_prompt_of_every_answer(
    tiny_tokenizer: ChatGLMTokenizer, conversation: Conversation
) -> None:
    messages = conversation.messages
    _check_promise(ChatGLMTemplate(tiny_tokenizer), conversation, lambda i: is_learned(messages[i]))


@settings(max_examples=40, deadline=None)
@given(conversation=dialogues())
def test_the_promise_holds_for_the_tutorial_layout(
    tiny_tokenizer: ChatGLMTokenizer, conversation: Conversation
) -> None:
    template = ChatGLMTemplate(tiny_tokenizer, "tutorial")
    messages = conversation.messages
    example = template.encode(conversation)
    for index, message in enumerate(messages):
        if message.role == "assistant":
            prompt = template.prompt_ids(Conversation(messages[:index]))
            assert example.input_ids[: len(prompt)] == prompt
    answer = example.input_ids[len(prompt) :]
    learns = messages[-1].is_learned is not False
    assert learned(example) == (answer if learns else [])
    assert answer[-1] == 2


@settings(max_examples=40, deadline=None)
@given(conversation=dialogues())
def test_the_promise_holds_for_chatglm3_itself(
    chatglm3: ChatGLMTokenizer, conversation: Conversation
) -> None:
    messages = conversation.messages
    _check_promise(ChatGLMTemplate(chatglm3), conversation, lambda i: is_learned(messages[i]))


@settings(max_examples=40, deadline=None)
@given(conversations=st.lists(dialogues(), min_size=1, max_size=4))
def test_a_batch_gives_what_each_conversation_gives_alone(
    tiny_tokenizer: ChatGLMTokenizer, conversations: list[Conversation]
) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    alone = [template.encode(conversation) for conversation in conversations]
    assert template.encode_batch(conversations) == alone


def test_what_is_learned_written_out(tiny_tokenizer: ChatGLMTokenizer) -> None:
    example = ChatGLMTemplate(tiny_tokenizer).encode(
        talk(
            ("system", "规则"),
            Message("user", "一", is_learned=True),  # a user is never learned
            Message("assistant", "甲", is_learned=False),
            ("user", "二"),
            Message("assistant", "call", metadata="t"),
            ("observation", "看"),
            ("assistant", "乙"),
        )
    )
    pieces = [
        "_" if label == IGNORE else tiny_tokenizer.convert_ids_to_tokens(label) or "</s>"
        for label in example.labels
    ]
    written = "".join(pieces).strip("_").replace("_" * pieces.count("_"), "_")
    first, second = (part for part in written.split("_") if part)
    assert first.endswith("<|observation|>")  # ends the tool call
    assert first.startswith("▁t<0x0A>")
    assert second.startswith("▁<0x0A>")
    assert second.endswith("</s>")
    assert tiny_tokenizer.decode(learned(example)) == "t\n call<|observation|> \n 乙"


# ---- replies --------------------------------------------------------------------------------


def test_a_reply_is_read_as_the_messages_it_holds(tiny_tokenizer: ChatGLMTokenizer) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    turns = (
        Message("assistant", "我查一下。\n请稍等"),
        Message("assistant", render_tool_call({"city": "北京"}), metadata="weather"),
    )
    user = Message("user", "天气")
    ids = template.encode(Conversation((user, *turns))).input_ids
    reply = ids[len(template.prompt_ids(Conversation((user,)))) :]
    assert reply[-1] == 2

    assert template.parse(reply) == list(turns)
    assert template.parse(reply[:-1]) == list(turns)  # the stop id is off already
    observation = tiny_tokenizer.get_command("<|observation|>")
    padded = [*reply[:-1], observation, 0, 0]  # as a batch leaves it
    assert template.parse(padded) == list(turns)


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.one_of(answers, calls), min_size=1, max_size=3))
def test_what_was_learned_reads_back_as_it_was(
    tiny_tokenizer: ChatGLMTokenizer, turns: list[Message]
) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    user = Message("user", "?")
    ids = template.encode(Conversation((user, *turns))).input_ids
    reply = ids[len(template.prompt_ids(Conversation((user,)))) :]

    expected = [
        Message("assistant", turn.content.replace("▁", " "), metadata=turn.metadata)
        if turn.metadata
        else Message("assistant", turn.content.replace("▁", " ").strip())
        for turn in turns
    ]
    assert template.parse(reply) == expected


def test_a_role_that_the_model_spells_out_is_text(tiny_tokenizer: ChatGLMTokenizer) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    ids = tiny_tokenizer.encode("\n<|assistant|>evil\n", add_special_tokens=False)
    assert template.parse(ids) == [Message("assistant", "<|assistant|>evil")]


@pytest.mark.parametrize("layout", ["official", "tutorial", "chatglm2", "plain"])
def test_replies_are_read_in_every_layout(tiny_tokenizer: ChatGLMTokenizer, layout: Layout) -> None:
    template = ChatGLMTemplate(tiny_tokenizer, layout)
    user, answer = Message("user", "你好"), Message("assistant", "好的。\n再见")
    ids = template.encode(Conversation((user, answer))).input_ids
    reply = ids[len(template.prompt_ids(Conversation((user,)))) :]
    assert template.parse(reply) == [answer]
    assert template.parse([]) == [Message("assistant", "")]


def test_replies_equal_process_response(chatglm3: ChatGLMTokenizer, golden: Path) -> None:
    template = ChatGLMTemplate(chatglm3)
    cases = json.loads((golden / "chat.json").read_text("utf-8"))["process_response"]
    num_read = 0
    for case in cases:
        ids = chatglm3.encode(case["output"], add_special_tokens=False, encode_special_tokens=True)
        if chatglm3.decode(ids) != case["output"]:
            continue  # no ids decode to that text
        read = [(m.metadata, m.content.strip()) for m in template.parse(ids)]
        assert read == [(m["metadata"].strip(), m["content"].strip()) for m in case["new_messages"]]
        num_read += 1
    assert num_read > 10


def test_stop_ids_are_what_may_follow_an_answer(tiny_tokenizer: ChatGLMTokenizer) -> None:
    assert ChatGLMTemplate(tiny_tokenizer).stop_ids == (
        2,
        tiny_tokenizer.get_command("<|user|>"),
        tiny_tokenizer.get_command("<|observation|>"),
    )


# ---- fingerprints ---------------------------------------------------------------------------


def test_fingerprints_differ_where_ids_do(tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path) -> None:
    from glmtune.model.chatglm.train_tokenizer import train_tokenizer

    other = train_tokenizer(["另一个分词器，另一些词。"] * 3 + ["你好你好"], 275, tmp_path)
    prints = [
        ChatGLMTemplate(tokenizer, layout).fingerprint
        for tokenizer in (tiny_tokenizer, other)
        for layout in ("official", "tutorial", "chatglm2", "plain")
    ]
    assert len(set(prints)) == 8
    assert ChatGLMTemplate(tiny_tokenizer).fingerprint == prints[0]


def test_the_fingerprint_of_chatglm3_is_the_same_everywhere(chatglm3: ChatGLMTokenizer) -> None:
    """Adapters store it, so a change here is a change that users notice."""
    assert ChatGLMTemplate(chatglm3).fingerprint[:16] == "1fb47597ee6041da"


def test_another_process_finds_the_same_fingerprint(tiny_tokenizer: ChatGLMTokenizer) -> None:
    program = (
        "import sys; from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer;"
        "from glmtune.template.select import template_for;"
        "print(template_for(ChatGLMTokenizer.from_pretrained(sys.argv[1])).fingerprint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tiny_tokenizer.name_or_path],
        capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.stdout.strip() == ChatGLMTemplate(tiny_tokenizer).fingerprint


# ---- ChatGLM2 -------------------------------------------------------------------------------


# As ChatGLM2's own tokenizer gives them; li-plus/chatglm.cpp keeps the same ids in its tests.
FIRST_ROUND = [64790, 64792, 790, 30951, 517, 30910, 30939, 30996, 13, 13, 54761, 31211, 39701]
FIRST_ROUND += [13, 13, 55437, 31211]
SECOND_ROUND = [
    *FIRST_ROUND,
    *(39701, 243, 162, 148, 142, 31404, 33030, 34797, 42481, 22011, 10461, 30944, 30943, 30941),
    *(30978, 30949, 31123, 48895, 35214, 54622, 31123, 32616, 39905, 31901, 31639, 31155, 13, 13),
    *(30995, 30951, 517, 30910, 30943, 30996, 13, 13, 54761, 31211, 32820, 54266, 31876, 35153),
    *(13, 13, 55437, 31211),
]
ROUNDS = (
    ("user", "你好"),
    ("assistant", "你好👋！我是人工智能助手 ChatGLM2-6B，很高兴见到你，欢迎问我任何问题。"),
    ("user", "晚上睡不着应该怎么办"),
)


def test_chatglm2_is_prompted_in_its_own_rounds(chatglm3: ChatGLMTokenizer) -> None:
    template = ChatGLMTemplate(chatglm3, "chatglm2")  # whose pieces are the same

    assert template.prompt_ids(talk(*ROUNDS[:1])) == FIRST_ROUND
    assert template.prompt_ids(talk(*ROUNDS)) == SECOND_ROUND


def test_chatglm2_learns_the_last_answer_and_its_end(chatglm3: ChatGLMTokenizer) -> None:
    template = ChatGLMTemplate(chatglm3, "chatglm2")

    example = template.encode(talk(*ROUNDS, ("assistant", "你好")))

    answer = [36474, 54591, 2]  # a string of its own: ▁你 好
    assert example.input_ids == SECOND_ROUND + answer
    assert example.labels == [IGNORE] * len(SECOND_ROUND) + answer
    assert template.stop_ids == (2,)
    assert template.parse(answer) == [Message("assistant", "你好")]


def test_chatglm2_has_no_roles(tiny_tokenizer: ChatGLMTokenizer) -> None:
    template = ChatGLMTemplate(tiny_tokenizer, "chatglm2")
    with pytest.raises(TemplateError, match="neither system messages nor tools; got system user"):
        template.prompt_ids(talk(("system", "s"), ("user", "q")))
    with pytest.raises(TemplateError, match="needs an answer there, got user"):
        template.encode(talk(("user", "q")))
    with pytest.raises(TemplateError, match="got a tool call"):
        template.encode(talk(("user", "q"), Message("assistant", "f()", metadata="f")))


def test_a_long_dialogue_of_chatglm2_loses_its_oldest_round(
    tiny_tokenizer: ChatGLMTokenizer,
) -> None:
    template = ChatGLMTemplate(tiny_tokenizer, "chatglm2")
    rounds = [*ROUNDS, ("assistant", "你好")]
    last = template.encode(talk(*rounds[2:]))

    assert template.shorten_prompt(talk(*rounds), len(last.input_ids)) == last


# ---- what cannot be rendered ----------------------------------------------------------------


def test_conversations_that_cannot_be_rendered_are_refused(
    tiny_tokenizer: ChatGLMTokenizer,
) -> None:
    official = ChatGLMTemplate(tiny_tokenizer)
    with pytest.raises(TemplateError, match="turn 0 is from 'bot'"):
        official.encode(talk(("bot", "x")))
    with pytest.raises(TemplateError, match="no messages"):
        official.encode(talk())
    with pytest.raises(TemplateError, match="surrogate"):
        official.encode(talk(("user", "x\ud800"), ("assistant", "y")))
    with pytest.raises(TemplateError, match="expected text, got NoneType"):
        official.encode(talk(("user", None), ("assistant", "y")))  # type: ignore[arg-type]
    with pytest.raises(TemplateError, match="needs an answer there"):
        ChatGLMTemplate(tiny_tokenizer, "tutorial").encode(talk(("user", "x")))
    with pytest.raises(TemplateError, match="one prompt from the user and one answer"):
        ChatGLMTemplate(tiny_tokenizer, "plain").encode(talk(("system", "x"), ("assistant", "y")))
    with pytest.raises(TemplateError, match="expected one of official, tutorial, chatglm2, plain"):
        ChatGLMTemplate(tiny_tokenizer, "offical")  # type: ignore[arg-type]


def test_calls_and_names_of_any_kind_come_back_from_the_ids_that_are_learned(
    chatglm3: ChatGLMTokenizer,
) -> None:
    template = ChatGLMTemplate(chatglm3)
    rng = random.Random(18)
    checked = 0

    for _ in range(500):
        alphabets = [(0x21, 0x7F), (0x3001, 0x9000), (0xFF01, 0xFFE0), (0x1F600, 0x1F640)]
        name = "".join(chr(rng.randrange(*rng.choice(alphabets))) for _ in range(5))
        call = Message("assistant", render_tool_call({name: [name]}), metadata=name)
        turns = (Message("user", "q"), call, Message("observation", "o"))
        learned = [i for i in template.encode(Conversation(turns)).labels if i != IGNORE]
        assert template.parse(learned) == [call]
        checked += "**" in call.content

    assert checked > 100


def test_any_ids_are_read_as_a_reply(tiny_tokenizer: ChatGLMTokenizer) -> None:
    rng = random.Random(22)
    for layout in LAYOUTS:
        template = ChatGLMTemplate(tiny_tokenizer, layout)
        for _ in range(300):
            ids = [rng.randrange(-2, 600) for _ in range(rng.randrange(12))]  # 489 are known
            for message in template.parse(ids):
                message.content.encode()
