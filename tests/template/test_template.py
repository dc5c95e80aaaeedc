"""What is learned is what will be asked for: training ids begin with the prompt of chat."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from glmtune.conversation import TOOLS_PROMPT, Conversation, Message, render_tool_call
from glmtune.errors import TemplateError
from glmtune.model.chatglm.tokenization_chatglm import SPECIAL_TOKENS, ChatGLMTokenizer
from glmtune.recipe.choices import Layout
from glmtune.template.base import IGNORE, Example, is_learned
from glmtune.template.chat_template import ChatTemplate
from glmtune.template.chatglm import ChatGLMTemplate
from glmtune.template.select import template_for


def talk(*turns: tuple[str, str] | Message) -> Conversation:
    """A conversation of `(role, content)` and whole messages."""
    return Conversation(
        tuple(turn if isinstance(turn, Message) else Message(*turn) for turn in turns)  # type: ignore[arg-type]
    )


def learned(example: Example) -> list[int]:
    return [label for label in example.labels if label != IGNORE]


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


# ---- the promise ----------------------------------------------------------------------------

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


def _check_promise(template: ChatGLMTemplate, conversation: Conversation, is_answer: Any) -> None:
    """Training ids begin with every prompt; what is learned are the answers and their ends."""
    messages = conversation.messages
    example = template.encode(conversation)
    ids = example.input_ids
    assert len(ids) == len(example.labels)
    expected = [IGNORE] * len(ids)
    for index, message in enumerate(messages):
        prompt = template.prompt_ids(Conversation(messages[:index]))
        behind = template.prompt_ids(Conversation(messages[: index + 1]))
        if message.role == "assistant":
            assert ids[: len(prompt)] == prompt
        if is_answer(index):
            # a turn is its role, what is written, and the token behind it
            expected[len(prompt) : len(behind)] = ids[len(prompt) : len(behind)]
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


# ---- too long -------------------------------------------------------------------------------


def test_the_oldest_exchanges_are_dropped_first(tiny_tokenizer: ChatGLMTokenizer) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    system, tail = ("system", "规则"), ("user", "还有一个问题")
    first = [("user", "一" * 20), ("assistant", "甲")]
    second = [("user", "二"), ("assistant", "乙"), ("observation", "o"), ("assistant", "丙")]
    third = [("user", "三"), ("assistant", "丁")]
    whole = talk(system, *first, *second, *third, tail)

    def length(*turns: Any) -> int:
        return len(template.encode(talk(*turns)).input_ids)

    for kept in (
        [system, *first, *second, *third, tail],
        [system, *first, *second, *third],
        [system, *second, *third],
        [system, *third],
    ):
        budget = length(*kept)
        assert template.shorten_prompt(whole, budget) == template.encode(talk(*kept))


def test_then_the_longest_text_of_the_last_exchange_is_cut(
    tiny_tokenizer: ChatGLMTokenizer,
) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    system, answer = ("system", "规则"), ("assistant", "丁是答案。")
    call = Message("assistant", render_tool_call({"q": "x"}), metadata="search")
    whole = talk(
        system, ("user", "问" * 5), ("assistant", "旧"), ("user", "问" * 9), call,
        ("observation", "看" * 300), answer,
    )  # fmt: skip
    budget = 120

    short = template.shorten_prompt(whole, budget)

    assert short is not None
    assert budget - 3 <= len(short.input_ids) <= budget  # 看 is three bytes
    text = tiny_tokenizer.decode(short.input_ids)
    kept = text.count("看")
    assert 0 < kept < 300
    assert short == template.encode(
        talk(system, ("user", "问" * 9), call, ("observation", "看" * kept), answer)
    )
    assert text.endswith("丁是答案。")
    assert learned(short)[-1] == 2


def test_every_text_is_cut_when_one_is_not_enough(tiny_tokenizer: ChatGLMTokenizer) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    call = Message("assistant", "x", metadata="t")
    whole = talk(("user", "问" * 50), call, ("observation", "看" * 40), ("assistant", "答"))
    least = template.encode(talk(("user", "问"), call, ("observation", "看"), ("assistant", "答")))

    assert template.shorten_prompt(whole, len(least.input_ids)) == least
    assert template.shorten_prompt(whole, len(least.input_ids) - 1) is None


def test_an_answer_that_does_not_fit_is_not_cut(tiny_tokenizer: ChatGLMTokenizer) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    assert template.shorten_prompt(talk(("user", "问"), ("assistant", "答" * 99)), 50) is None
    # nothing to learn, so nothing to keep whole
    assert template.shorten_prompt(talk(("user", "问" * 99)), 50) is None


@settings(max_examples=40, deadline=None)
@given(conversation=dialogues(), budget=st.integers(5, 120))
def test_shortened_conversations_fit_and_keep_the_last_answer(
    tiny_tokenizer: ChatGLMTokenizer, conversation: Conversation, budget: int
) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    short = template.shorten_prompt(conversation, budget)
    if short is None:
        return
    assert len(short.input_ids) <= budget
    whole = learned(template.encode(conversation))
    left = learned(short)
    # the ends of two answers may differ when turns behind the last one went
    assert left
    assert left[:-1] == whole[len(whole) - len(left) :][:-1]
    assert short.labels[-1] in (IGNORE, 2)


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


def test_chatglm2_is_asked_in_its_own_rounds(chatglm3: ChatGLMTokenizer) -> None:
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


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"_name_or_path": "THUDM/chatglm2-6b"}),
        ("tokenizer_config.json", {"name_or_path": "THUDM/codegeex2-6b"}),
    ],
)
def test_chatglm2_is_told_by_its_name_and_not_asked_in_roles(
    tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path, file: str, content: dict[str, str]
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    (tmp_path / file).write_text(json.dumps(content), encoding="utf-8")
    tokenizer = ChatGLMTokenizer.from_pretrained(tmp_path)

    with pytest.raises(TemplateError, match=r"2-6b, which knows no roles.*layout: chatglm2"):
        template_for(tokenizer)
    assert template_for(tokenizer, "chatglm2").description["layout"] == "chatglm2"
    assert template_for(tokenizer, "plain").description["layout"] == "plain"


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


# ---- other families -------------------------------------------------------------------------

CHATML = (
    "{% if tools %}<|im_start|>system\ntools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls %}"
    "<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
    "Today Date: {{ strftime_now('%d %b %Y') }}<|eot_id|>"
    "{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CONTROL = (
    "<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
)  # fmt: skip


def fast_tokenizer(chat_template: str | None, eos_token: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with control tokens, as Llama's and Qwen's are."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["user assistant system hello hello"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|begin|>",
        eos_token=eos_token,
        chat_template=chat_template,
    )


@pytest.fixture(scope="module", params=["chatml", "llama3"])
def other(request: pytest.FixtureRequest) -> ChatTemplate:
    """The templates of two families."""
    if request.param == "chatml":
        return ChatTemplate(fast_tokenizer(CHATML, "<|im_end|>"))
    return ChatTemplate(fast_tokenizer(LLAMA3, "<|end|>"))


def _text(template: ChatTemplate, ids: Sequence[int]) -> str:
    return str(template._tokenizer.decode(list(ids)))


def test_other_families_learn_every_answer_and_its_end(other: ChatTemplate) -> None:
    end = other.stop_ids[0]
    first, second = [("user", "一"), ("assistant", "甲")], [("user", "二"), ("assistant", "乙")]
    example = other.encode(talk(("system", "s"), *first, *second))
    pieces = _text(other, learned(example)).split(_text(other, [end]))
    assert [piece.strip() for piece in pieces] == ["甲", "乙", ""]
    assert learned(example).count(end) == 2


other_users = st.builds(Message, st.just("user"), texts)
other_answers = st.builds(Message, st.just("assistant"), texts, is_learned=flags)


@settings(max_examples=50, deadline=None)
@given(
    exchanges=st.lists(st.tuples(other_users, other_answers), min_size=1, max_size=3),
    control=st.sampled_from(CONTROL),
)
def test_the_promise_holds_for_other_families(
    other: ChatTemplate, exchanges: list[tuple[Message, Message]], control: str
) -> None:
    messages = [turn for exchange in exchanges for turn in exchange]
    messages[0] = Message("user", f"{control}{messages[0].content}{control}")
    example = other.encode(Conversation(tuple(messages)))
    ids = example.input_ids
    expected: list[int] = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = other.prompt_ids(Conversation(tuple(messages[:index])))
        assert ids[: len(prompt)] == prompt
        stop = next(i for i in range(len(prompt), len(ids)) if ids[i] in other.stop_ids)
        if is_learned(message):
            expected += ids[len(prompt) : stop + 1]
    assert learned(example) == expected
    # nobody but the template writes control tokens
    plain = other.encode(
        talk(*((m.role, "x" if m.content.strip() else "") for m in messages))
    ).input_ids
    control_ids = set(other._tokenizer.all_special_ids)
    assert [i for i in ids if i in control_ids] == [i for i in plain if i in control_ids]


def test_replies_of_other_families_are_read(other: ChatTemplate) -> None:
    user, answer = Message("user", "hello"), Message("assistant", "你好")
    ids = other.encode(Conversation((user, answer))).input_ids
    reply = ids[len(other.prompt_ids(Conversation((user,)))) :]
    assert other.parse(reply) == [answer]


def test_tools_and_calls_reach_the_template_of_another_family() -> None:
    template = ChatTemplate(fast_tokenizer(CHATML, "<|im_end|>"))
    conversation = talk(
        Message("system", TOOLS_PROMPT, tools=[{"name": "weather"}]),
        ("user", "北京"),
        ("assistant", "我查"),
        Message("assistant", render_tool_call({"city": "北京"}), metadata="weather"),
        ("observation", "3"),
        ("assistant", "3 度"),
    )

    example = template.encode(conversation)

    text = _text(template, example.input_ids)
    assert 'tools: [{"type": "function", "function": {"name": "weather"}}]' in text
    assert TOOLS_PROMPT not in text  # ChatGLM's own words
    call = '我查<tool_call>{"name": "weather", "arguments": {"city": "北京"}}</tool_call>'
    assert call in text
    assert "<|im_start|>tool\n3<|im_end|>" in text
    assert _text(template, learned(example)) == f"{call}<|im_end|>3 度<|im_end|>"


def test_a_call_that_json_cannot_carry_is_refused() -> None:
    template = ChatTemplate(fast_tokenizer(CHATML, "<|im_end|>"))
    code = Message("assistant", "```python\nprint(1)\n```", metadata="interpreter")
    with pytest.raises(TemplateError, match="turn 1 calls 'interpreter' in a way"):
        template.encode(talk(("user", "?"), code))


def test_the_date_in_a_prompt_is_fixed() -> None:
    template = ChatTemplate(fast_tokenizer(LLAMA3, "<|eot_id|>"))
    assert "Today Date: 26 Jul 2024" in _text(template, template.prompt_ids(talk(("user", "?"))))


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    forgetful = CHATML.replace(
        "{{ message.content }}",
        "{{ message.content if loop.last or message.role != 'assistant'"
        " else message.content.split('</think>')[-1] }}",
    )
    template = ChatTemplate(fast_tokenizer(forgetful, "<|im_end|>"))
    one_answer = talk(("user", "?"), ("assistant", "<think>hm</think>ja"))
    assert "hm" in _text(template, learned(template.encode(one_answer)))

    with pytest.raises(TemplateError, match=r"turn 1.*rewrites earlier turns") as refusal:
        template.encode(talk(*one_answer, ("user", "!"), ("assistant", "o")))
    assert "hm" in str(refusal.value)


def test_a_template_whose_prompt_is_no_beginning_is_refused() -> None:
    unlike = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>model\n{% endif %}")
    with pytest.raises(TemplateError, match="not the beginning"):
        ChatTemplate(fast_tokenizer(unlike, "<|im_end|>"))


def test_a_template_without_an_end_of_turn_is_refused() -> None:
    endless = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(TemplateError, match="never learn to stop"):
        ChatTemplate(fast_tokenizer(endless, "<|im_end|>"))


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        template_for(fast_tokenizer(None, "<|im_end|>"))


def test_what_a_chat_template_does_not_take_is_refused() -> None:
    picky = (
        CHATML
        + "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    template = ChatTemplate(fast_tokenizer(picky, "<|im_end|>"))
    with pytest.raises(TemplateError, match="does not take the conversation: no system"):
        template.encode(talk(("system", "s"), ("user", "?"), ("assistant", "!")))
    with pytest.raises(TemplateError, match="turn 0 is an answer"):
        template.encode(talk(("assistant", "!")))


def test_the_template_is_found_by_the_tokenizer(tiny_tokenizer: ChatGLMTokenizer) -> None:
    assert template_for(tiny_tokenizer, "tutorial").description == {
        "family": "chatglm3",
        "layout": "tutorial",
    }
    llama = fast_tokenizer(LLAMA3, "<|end|>")
    assert isinstance(template_for(llama), ChatTemplate)
    with pytest.raises(TemplateError, match="has its own chat template"):
        template_for(llama, "tutorial")


def test_fingerprints_of_other_families_follow_their_templates() -> None:
    first = ChatTemplate(fast_tokenizer(CHATML, "<|im_end|>"))
    same = ChatTemplate(fast_tokenizer(CHATML, "<|im_end|>"))
    changed = ChatTemplate(fast_tokenizer(CHATML.replace("tools: ", "t: "), "<|im_end|>"))
    assert first.fingerprint == same.fingerprint != changed.fingerprint
    assert first.stop_ids == same.stop_ids
