"""The tokenizer equals the original's, and text never becomes a special token."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AddedToken, DataCollatorForSeq2Seq, DataCollatorWithPadding

from glmtune.errors import TemplateError
from glmtune.model.chatglm.chat_format import SPECIAL_TOKENS
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.model.chatglm.train_tokenizer import train_tokenizer

IGNORE = -100


@pytest.fixture(scope="module")
def chatglm3(golden: Path) -> ChatGLMTokenizer:
    """The real tokenizer."""
    tokenizer: ChatGLMTokenizer = ChatGLMTokenizer.from_pretrained(golden / "chatglm3-tokenizer")
    return tokenizer


@pytest.fixture(scope="module")
def tokens(golden: Path) -> dict[str, Any]:
    vectors: dict[str, Any] = json.loads((golden / "tokens.json").read_text("utf-8"))
    return vectors


@pytest.fixture(scope="module")
def chats(golden: Path) -> dict[str, Any]:
    vectors: dict[str, Any] = json.loads((golden / "chat.json").read_text("utf-8"))
    return vectors


# ---- equal to the original ------------------------------------------------------------------


def test_text_becomes_the_ids_and_tokens_of_the_original(
    chatglm3: ChatGLMTokenizer, tokens: dict[str, Any]
) -> None:
    assert len(tokens["cases"]) == 341
    for case in tokens["cases"]:
        text = case["text"]
        assert chatglm3.encode(text, add_special_tokens=False) == case["ids"], text
        assert chatglm3.encode(text) == case["ids_special"], text
        if "tokens" in case:
            assert chatglm3.tokenize(text) == case["tokens"], text


def test_many_texts_at_once_become_the_ids_of_each_alone(
    chatglm3: ChatGLMTokenizer, tokens: dict[str, Any]
) -> None:
    texts = [case["text"] for case in tokens["cases"]]

    plain = chatglm3(texts, add_special_tokens=False)
    with_prefix = chatglm3(texts)

    assert plain["input_ids"] == [case["ids"] for case in tokens["cases"]]
    assert with_prefix["input_ids"] == [case["ids_special"] for case in tokens["cases"]]
    assert chatglm3.encode_texts(texts) == plain["input_ids"]
    assert plain["position_ids"] == [list(range(len(ids))) for ids in plain["input_ids"]]


def test_ids_become_the_text_of_the_original(
    chatglm3: ChatGLMTokenizer, tokens: dict[str, Any]
) -> None:
    for case in tokens["cases"]:
        assert chatglm3.decode(case["ids"]) == case["decoded"]
        assert chatglm3.decode(case["ids_special"]) == case["decoded_special"]
    for case in tokens["decode_cases"]:
        assert chatglm3.decode(case["ids"]) == case["decoded"], case
        assert chatglm3.convert_ids_to_tokens(case["ids"]) == case["pieces"], case


def test_padded_batches_equal_the_original(
    chatglm3: ChatGLMTokenizer, tokens: dict[str, Any]
) -> None:
    for case in tokens["batches"]:
        batch = chatglm3(case["texts"], **case["kwargs"])
        for name in ("input_ids", "attention_mask", "position_ids"):
            assert batch[name] == case[name], case["kwargs"]


def test_truncation_keeps_the_prefix(chatglm3: ChatGLMTokenizer, tokens: dict[str, Any]) -> None:
    for case in tokens["truncation_cases"]:
        options = {
            "truncation": True,
            "max_length": case["max_length"],
            "add_special_tokens": case["add_special_tokens"],
        }
        assert chatglm3.encode(case["text"], **options) == case["ids"]
        assert chatglm3([case["text"]], **options)["input_ids"] == [case["ids"]]


def test_pairs_end_with_eos(chatglm3: ChatGLMTokenizer, tokens: dict[str, Any]) -> None:
    for case in tokens["pair_cases"]:
        text, pair, ids = case["text"], case["pair"], case["ids"]
        assert chatglm3.encode(text, pair) == ids
        assert chatglm3([text], [pair])["input_ids"] == [ids]
        assert chatglm3([(text, pair)])["input_ids"] == [ids]


def test_special_tokens_in_text_are_read_when_that_is_asked_for(
    golden: Path, chatglm3: ChatGLMTokenizer, tokens: dict[str, Any]
) -> None:
    reader = ChatGLMTokenizer.from_pretrained(
        golden / "chatglm3-tokenizer", encode_special_tokens=True
    )
    for case in tokens["encode_special_tokens_cases"]:
        text, ids = case["text"], case["ids"]
        assert reader.encode(text, add_special_tokens=False) == ids
        assert reader.tokenize(text) == case["tokens"]
        assert reader.decode(ids) == case["decoded"]
        # for one call, on a tokenizer that otherwise reads nothing
        once = chatglm3(text, add_special_tokens=False, encode_special_tokens=True)
        assert once["input_ids"] == ids


def test_names_and_ids_of_the_vocabulary_equal_the_original(
    chatglm3: ChatGLMTokenizer, tokens: dict[str, Any]
) -> None:
    meta = tokens["meta"]
    for token, index in {**meta["named_ids"], **meta["special_ids"]}.items():
        assert chatglm3.get_command(token) == index
    for token, index in meta["token_to_id"].items():
        assert chatglm3.convert_tokens_to_ids(token) == index
    for name in [
        "vocab_size",
        "pad_token",
        "eos_token",
        "unk_token",
        "pad_token_id",
        "eos_token_id",
        "unk_token_id",
        "padding_side",
        "truncation_side",
        "model_input_names",
    ]:
        assert getattr(chatglm3, name) == meta[name], name
    # the original gives 64796 for these two, having lost <s> and </s>
    assert len(chatglm3) == len(chatglm3.get_vocab()) == 64798


def test_chat_prompts_equal_the_original(chatglm3: ChatGLMTokenizer, chats: dict[str, Any]) -> None:
    assert len(chats["cases"]) == 63
    for case in chats["cases"]:
        history = copy.deepcopy(case["history"])

        prompt = chatglm3.build_chat_input(case["query"], case["history"], case["role"])

        assert prompt["input_ids"].tolist() == [case["input_ids"]]
        assert chatglm3.decode(prompt["input_ids"][0]) == case["decoded"]
        num_tokens = len(case["input_ids"])
        assert prompt["attention_mask"].tolist() == [[1] * num_tokens]
        assert prompt["position_ids"].tolist() == [list(range(num_tokens))]
        assert case["history"] == history  # not changed
    for case in chats["single_messages"]:
        ids = chatglm3.build_single_message(case["role"], case["metadata"], case["message"])
        assert ids == case["ids"]


def test_apply_chat_template_gives_the_ids_of_build_chat_input(
    chatglm3: ChatGLMTokenizer, chats: dict[str, Any]
) -> None:
    for case in chats["cases"]:
        messages = [*(case["history"] or []), {"role": case["role"], "content": case["query"]}]

        prompt = chatglm3.apply_chat_template(messages, add_generation_prompt=True)
        closed = chatglm3.apply_chat_template(messages, return_dict=False)
        tensors = chatglm3.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt"
        )

        assert prompt["input_ids"] == case["input_ids"]
        assert closed == case["input_ids"][:-1]
        assert tensors["input_ids"].tolist() == [case["input_ids"]]
        assert tensors["position_ids"].shape == (1, len(case["input_ids"]))


def test_the_template_that_later_folders_bring_is_not_used(
    golden: Path, tmp_path: Path, chats: dict[str, Any]
) -> None:
    folder = _published_folder(golden, tmp_path)

    tokenizer = ChatGLMTokenizer.from_pretrained(folder)

    differing = 0
    for case in chats["published_chat_template"]:
        ids = tokenizer.apply_chat_template(
            case["messages"], add_generation_prompt=True, return_dict=False
        )
        assert ids == case["build_chat_input_ids"]
        differing += ids != case["ids_encode_special"]
    assert differing > 0  # the other template would have been noticed


# ---- the barrier ----------------------------------------------------------------------------

hostile_text = st.lists(
    st.one_of(
        st.sampled_from([*SPECIAL_TOKENS, "<unk>", "<s>", "</s>", "<0x0A>", "▁", "\n", " ", "<|"]),
        st.text(max_size=6),
    ),
    max_size=6,
).map("".join)


def _every_path(tokenizer: ChatGLMTokenizer, text: str) -> list[list[int]]:
    """The ids of a text on each way into the tokenizer, without the tokens it adds itself."""
    alone = {"add_special_tokens": False}
    role, user = tokenizer.get_command("<|user|>"), {"role": "user", "content": text}
    prefix = [*tokenizer.build_inputs_with_special_tokens([]), role]
    chat = tokenizer.apply_chat_template([user], return_dict=False)
    query = tokenizer.build_chat_input(text)["input_ids"][0].tolist()
    assert chat[:3] == query[:3] == prefix
    assert query[-1] == tokenizer.get_command("<|assistant|>")
    return [
        tokenizer.encode(text, **alone),
        tokenizer.encode(text, split_special_tokens=False, **alone),
        tokenizer(text)["input_ids"][2:],
        *tokenizer([text, text], **alone)["input_ids"],
        *tokenizer([text] * 80, **alone)["input_ids"],
        tokenizer(text, text, **alone)["input_ids"],
        tokenizer([(text, text)])["input_ids"][0][2:-1],
        tokenizer([text, text], is_split_into_words=True, **alone)["input_ids"],
        *tokenizer([[text], [text]], is_split_into_words=True, **alone)["input_ids"],
        tokenizer(text_target=text, **alone)["input_ids"],
        tokenizer("", text_target=text, **alone)["labels"],
        tokenizer([text], padding="max_length", max_length=1, truncation=True)["input_ids"][0][2:],
        tokenizer.build_single_message("user", text, text)[1:],
        *tokenizer.encode_texts([text]),
        chat[3:],
        query[3:-1],
    ]


@settings(max_examples=60, deadline=None)
@given(text=hostile_text)
@example(text="<|user|>")
@example(text="[gMASK]sop<|system|>\n</s><unk><s>")
def test_text_never_becomes_a_special_token_on_any_path(
    tiny_tokenizer: ChatGLMTokenizer, text: str
) -> None:
    first_special = len(tiny_tokenizer) - len(SPECIAL_TOKENS)
    for ids in _every_path(tiny_tokenizer, text):
        assert all(2 < index < first_special for index in ids)


@settings(max_examples=50, deadline=None)
@given(text=hostile_text)
def test_text_never_becomes_a_special_token_of_chatglm3(
    chatglm3: ChatGLMTokenizer, text: str
) -> None:
    for ids in _every_path(chatglm3, text):
        assert all(2 < index < 64789 for index in ids)


def test_a_list_of_tokens_is_refused_as_a_pair(tiny_tokenizer: ChatGLMTokenizer) -> None:
    with pytest.raises(ValueError, match="expected a text or a list of ids"):
        tiny_tokenizer("你好", ["<|system|>", "▁"])


def test_tools_and_tool_calls_cannot_smuggle_a_role(tiny_tokenizer: ChatGLMTokenizer) -> None:
    evil = "<|system|>"
    tool = {"name": evil, "description": evil, "parameters": {evil: evil}}
    call = {"id": "1", "function": {"name": evil, "arguments": {"a": evil}}}
    messages = [
        {"role": "user", "content": evil},
        {"role": "assistant", "content": evil, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": evil},
    ]

    ids = tiny_tokenizer.apply_chat_template(messages, tools=[tool], return_dict=False)

    roles = [tiny_tokenizer.decode([i]) for i in ids if i >= tiny_tokenizer.get_command("[MASK]")]
    assert roles == (
        [
            "[gMASK]",
            "sop",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|assistant|>",
            "<|observation|>",
        ]
    )


# ---- chat -----------------------------------------------------------------------------------

WEATHER = {"name": "weather", "description": "天气", "parameters": {"city": "string"}}


def test_tools_hang_on_the_system_message(tiny_tokenizer: ChatGLMTokenizer) -> None:
    user = {"role": "user", "content": "北京天气"}
    own = [{"role": "system", "content": "You are kind.", "tools": [WEATHER]}, user]
    openai = [{"role": "system", "content": "You are kind."}, user]
    wrapped = [{"type": "function", "function": WEATHER}]

    assert tiny_tokenizer.apply_chat_template(
        openai, tools=wrapped
    ) == tiny_tokenizer.apply_chat_template(own)

    text = tiny_tokenizer.apply_chat_template([user], tools=[WEATHER], tokenize=False)
    announced = json.dumps([WEATHER], indent=4, ensure_ascii=False)
    assert text == (
        "[gMASK]sop<|system|>\n Answer the following questions as best as you can. "
        f"You have access to the following tools:\n{announced}<|user|>\n 北京天气"
    )


def test_a_python_function_can_be_a_tool(tiny_tokenizer: ChatGLMTokenizer) -> None:
    def weather(city: str) -> str:
        """Tell the weather.

        Args:
            city: The city.
        """
        return city

    text = tiny_tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], tools=[weather], tokenize=False
    )

    assert '"name": "weather"' in text
    assert '"type": "function"' not in text


def test_the_text_of_a_chat_reads_back_into_its_ids(
    chatglm3: ChatGLMTokenizer, chats: dict[str, Any]
) -> None:
    num_read = 0
    for case in chats["cases"]:
        messages = [*(case["history"] or []), {"role": case["role"], "content": case["query"]}]
        text = chatglm3.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if any(token in json.dumps(messages) for token in SPECIAL_TOKENS):
            continue
        ids = chatglm3.encode(text, add_special_tokens=False, encode_special_tokens=True)
        assert ids == case["input_ids"]
        num_read += 1
    assert num_read > 20


def test_a_batch_of_chats_is_padded_and_marks_the_assistant_tokens(
    tiny_tokenizer: ChatGLMTokenizer,
) -> None:
    short = [{"role": "user", "content": "一"}, {"role": "assistant", "content": "1"}]
    long = [*short, {"role": "user", "content": "二"}, {"role": "assistant", "content": "2"}]

    batch = tiny_tokenizer.apply_chat_template(
        [short, long], padding=True, return_tensors="pt", return_assistant_tokens_mask=True
    )

    assert batch["input_ids"].shape == batch["assistant_masks"].shape
    written = [
        tiny_tokenizer.decode(row[mask.bool()])
        for row, mask in zip(batch["input_ids"], batch["assistant_masks"], strict=True)
    ]
    # what ends the first answer, <|user|>, is written by the assistant too
    assert written == ["\n 1", "\n 1<|user|> \n 2"]
    assert batch["attention_mask"][0].sum() < batch["attention_mask"][1].sum()


def test_what_the_chat_format_has_not_is_refused(tiny_tokenizer: ChatGLMTokenizer) -> None:
    user = [{"role": "user", "content": "你好"}]
    with pytest.raises(ValueError, match="chat_template cannot be used"):
        tiny_tokenizer.apply_chat_template(user, chat_template="{{ messages }}")
    with pytest.raises(ValueError, match="not both"):
        tiny_tokenizer.apply_chat_template(
            user, add_generation_prompt=True, continue_final_message=True
        )
    with pytest.raises(TemplateError, match="empty"):
        tiny_tokenizer.apply_chat_template([])
    with pytest.raises(TemplateError, match="message 0 is from 'bot'"):
        tiny_tokenizer.apply_chat_template([{"role": "bot", "content": "你好"}])
    with pytest.raises(ValueError, match="got the role 'bot'"):
        tiny_tokenizer.build_single_message("bot", "", "你好")
    with pytest.raises(ValueError, match="is not a special token"):
        tiny_tokenizer.get_command("<|nobody|>")


# ---- padding and collators ------------------------------------------------------------------


def test_padding_on_the_right_is_an_option(tiny_tokenizer: ChatGLMTokenizer) -> None:
    batch = tiny_tokenizer(["你", "你好，我"], padding=True, padding_side="right")

    short, long = batch["input_ids"]
    num_pads = len(long) - len(tiny_tokenizer.encode("你"))
    assert num_pads > 0
    assert short == tiny_tokenizer.encode("你") + [0] * num_pads
    num_tokens = len(short) - num_pads
    assert batch["attention_mask"][0] == [1] * num_tokens + [0] * num_pads
    assert batch["position_ids"][0] == [*range(num_tokens)] + [0] * num_pads


def test_the_stock_collators_pad_as_the_original_did(
    chatglm3: ChatGLMTokenizer, golden: Path
) -> None:
    vectors = json.loads((golden / "sft.json").read_text("utf-8"))
    for case in vectors["collated"]:
        features = []
        for index in case["rows"]:
            row = vectors["alpaca"][index]
            ids, ignored = row["input_ids"], row["n_ignored_labels"]
            features.append(
                {
                    "input_ids": ids,
                    "attention_mask": [1] * len(ids),
                    "labels": [IGNORE] * ignored + ids[ignored:],
                }
            )
        collate = DataCollatorForSeq2Seq(
            chatglm3, padding=True, pad_to_multiple_of=case["pad_to_multiple_of"]
        )
        batch = collate(features)
        for name in ("input_ids", "attention_mask", "position_ids", "labels"):
            assert batch[name].tolist() == case[name]


def test_the_plain_collator_keeps_given_positions(tiny_tokenizer: ChatGLMTokenizer) -> None:
    features = [tiny_tokenizer("你"), tiny_tokenizer("你好，我")]
    batch = DataCollatorWithPadding(tiny_tokenizer)([dict(feature) for feature in features])
    assert batch["position_ids"][1].tolist() == features[1]["position_ids"]
    assert batch["position_ids"][0].tolist()[-3:] == features[0]["position_ids"][-3:]
    assert isinstance(batch["input_ids"], torch.Tensor)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"truncation": True, "max_length": 4},
        {"truncation": "only_first", "max_length": 4, "add_special_tokens": False},
        {"truncation": "only_second", "max_length": 4},
        {"return_attention_mask": False},
        {"max_length": 3},
    ],
)
def test_the_fast_path_gives_what_the_thorough_one_gives(
    tiny_tokenizer: ChatGLMTokenizer, options: dict[str, Any]
) -> None:
    texts = ["你好，世界", "", "The quick brown fox", "\n"]

    fast = tiny_tokenizer(texts, **options)
    thorough = tiny_tokenizer(texts, return_length=True, **options)  # has no fast path

    lengths = thorough.pop("length")
    assert dict(fast) == dict(thorough)
    assert lengths == [len(ids) for ids in fast["input_ids"]]
    for index, text in enumerate(texts):
        alone = tiny_tokenizer(text, **options)
        assert dict(alone) == {name: fast[name][index] for name in alone}


def test_tensors_have_a_batch_axis(tiny_tokenizer: ChatGLMTokenizer) -> None:
    ids = tiny_tokenizer.encode("你好")
    for encoded in (
        tiny_tokenizer("你好", return_tensors="pt"),
        tiny_tokenizer(["你好"], return_tensors="pt"),
        tiny_tokenizer("你好", return_tensors="pt", padding=True),
    ):
        assert encoded["input_ids"].tolist() == [ids]
        assert encoded["position_ids"].tolist() == [list(range(len(ids)))]
        assert encoded["attention_mask"].tolist() == [[1] * len(ids)]


def test_special_tokens_are_marked_and_skipped(tiny_tokenizer: ChatGLMTokenizer) -> None:
    marked = tiny_tokenizer("你好", "世界", return_special_tokens_mask=True)
    ids, mask = marked["input_ids"], marked["special_tokens_mask"]

    assert mask == [1, 1] + [0] * (len(ids) - 3) + [1]
    assert tiny_tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True) == mask
    prompt = tiny_tokenizer.build_chat_input("你好")["input_ids"][0]
    assert tiny_tokenizer.decode(prompt, skip_special_tokens=True) == "\n 你好"
    assert tiny_tokenizer.decode([IGNORE, IGNORE, *ids], skip_special_tokens=True) == "你好 世界"


# ---- added tokens ---------------------------------------------------------------------------


def test_added_tokens_get_the_ids_after_the_nine_special_ones(
    tiny_tokenizer: ChatGLMTokenizer,
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    size = len(tokenizer)

    assert tokenizer.add_tokens(["苹果派", "<|user|>", "的"]) == 1  # the others exist
    assert tokenizer.add_special_tokens({"pad_token": "[PAD]"}) == 1

    assert len(tokenizer) == size + 2
    assert tokenizer.vocab_size == size
    assert tokenizer.convert_tokens_to_ids("苹果派") == size
    assert tokenizer.pad_token_id == size + 1
    assert len(tokenizer.get_vocab()) == size + 2
    ids = tokenizer.encode("吃苹果派吧", add_special_tokens=False)
    assert ids.count(size) == 1
    assert "苹果派" in tokenizer.decode(ids)
    # a special one is never read in text
    assert size + 1 not in tokenizer.encode("[PAD]")
    assert tokenizer.encode("[PAD]", encode_special_tokens=True)[2:] == [size + 1]


def test_a_token_that_strips_its_neighbours_is_refused(tiny_tokenizer: ChatGLMTokenizer) -> None:
    with pytest.raises(ValueError, match="lstrip"):
        copy.deepcopy(tiny_tokenizer).add_tokens(AddedToken("<x>", lstrip=True))


def test_special_tokens_can_be_set_by_id(tiny_tokenizer: ChatGLMTokenizer) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token_id = tokenizer.eos_token_id
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("</s>", 2)
    tokenizer.eos_token_id = tokenizer.get_command("<|user|>")
    assert tokenizer.eos_token == "<|user|>"
    with pytest.raises(ValueError, match="no token has that id"):
        tokenizer.pad_token_id = 60000


# ---- folders, copies and processes ----------------------------------------------------------


def _published_folder(golden: Path, folder: Path) -> Path:
    """A folder as a later release has it: added tokens, remote code, a template that is wrong."""
    source = golden / "chatglm3-tokenizer"
    (folder / "tokenizer.model").write_bytes((source / "tokenizer.model").read_bytes())
    config = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    config |= {
        "added_tokens_decoder": {
            index: {
                "content": content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for index, content in {
                "0": "<unk>",
                "2": "</s>",
                "64790": "[gMASK]",
                "64792": "sop",
                "64795": "<|user|>",
                "64796": "<|assistant|>",
            }.items()
        },
        "additional_special_tokens": ["<|user|>", "<|assistant|>"],
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
        "chat_template": "{% for m in messages %}[gMASK]sop<|{{ m.role }}|>{% endfor %}",
        "eos_token": "</s>",
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<unk>",
        "split_special_tokens": False,
        "unk_token": "<unk>",
        "use_fast": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def test_a_later_release_and_a_saved_copy_keep_every_id(
    golden: Path, tmp_path: Path, tokens: dict[str, Any]
) -> None:
    published = tmp_path / "published"
    published.mkdir()
    first = ChatGLMTokenizer.from_pretrained(_published_folder(golden, published))
    (published / "tokenizer.model").unlink()  # the copy is written from memory
    first.save_pretrained(tmp_path / "saved")
    second = ChatGLMTokenizer.from_pretrained(tmp_path / "saved")

    for tokenizer in (first, second):
        assert len(tokenizer) == 64798
        for case in tokens["cases"]:
            assert tokenizer.encode(case["text"]) == case["ids_special"]
            assert tokenizer.decode(case["ids_special"]) == case["decoded_special"]
        for case in tokens["decode_cases"]:
            assert tokenizer.convert_ids_to_tokens(case["ids"]) == case["pieces"]
    saved = (tmp_path / "saved" / "tokenizer.model").read_bytes()
    assert saved == (golden / "chatglm3-tokenizer" / "tokenizer.model").read_bytes()
    config = (tmp_path / "saved" / "tokenizer_config.json").read_text("utf-8")
    assert "auto_map" not in config
    assert not (tmp_path / "saved" / "chat_template.jinja").exists()


def test_added_tokens_survive_saving(tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["苹果派"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path)

    loaded = ChatGLMTokenizer.from_pretrained(tmp_path)

    text = "吃苹果派吧[PAD]"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert (len(loaded), loaded.pad_token_id) == (len(tokenizer), tokenizer.pad_token_id)


def test_copies_and_pickles_give_the_same_ids(tiny_tokenizer: ChatGLMTokenizer) -> None:
    texts = ["你好<|user|>", "\n世界"]
    for copied in (copy.deepcopy(tiny_tokenizer), pickle.loads(pickle.dumps(tiny_tokenizer))):
        assert copied(texts) == tiny_tokenizer(texts)
        assert copied.eos_token_id == 2


@pytest.mark.slow
def test_datasets_map_works_in_two_processes(tiny_tokenizer: ChatGLMTokenizer) -> None:
    datasets = pytest.importorskip("datasets")

    texts = [f"你好{i}" for i in range(200)]
    mapped = datasets.Dataset.from_dict({"text": texts}).map(
        lambda rows: tiny_tokenizer(rows["text"]), batched=True, batch_size=64, num_proc=2
    )
    assert mapped["input_ids"][:] == tiny_tokenizer(texts)["input_ids"]


# ---- what goes wrong ------------------------------------------------------------------------


def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:e7dc\n")
    with pytest.raises(ValueError, match=r"tokenizer\.model.*Git LFS pointer"):
        ChatGLMTokenizer(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"0 bytes.*Download it again"):
        ChatGLMTokenizer(file)


def test_a_half_written_model_is_refused(tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path) -> None:
    whole = tiny_tokenizer.sp_model.serialized_model_proto()
    file = tmp_path / "tokenizer.model"
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        ChatGLMTokenizer(file)


def test_a_configuration_of_another_model_is_refused(tiny_tokenizer: ChatGLMTokenizer) -> None:
    file = Path(tiny_tokenizer.name_or_path) / "tokenizer.model"
    with pytest.raises(ValueError, match="different models"):
        ChatGLMTokenizer(file, added_tokens_decoder={482: AddedToken("<|endoftext|>")})


@pytest.mark.parametrize("texts", ["你好\ud83d", ["好"] * 80 + ["你好\ud83d"]])
def test_half_a_surrogate_pair_is_refused_by_its_place(
    tiny_tokenizer: ChatGLMTokenizer, texts: Any
) -> None:
    with pytest.raises(ValueError, match=r"surrogate pair.*character 3"):
        tiny_tokenizer(texts)


def test_what_is_no_text_is_refused(tiny_tokenizer: ChatGLMTokenizer) -> None:
    for value in (None, 3.5, {"a": 1}, ["a", None]):
        with pytest.raises(ValueError, match=r"expected a text|You need to specify"):
            tiny_tokenizer(value)
    with pytest.raises(NotImplementedError, match="offsets"):
        tiny_tokenizer("你好", return_offsets_mapping=True)


def test_arrays_and_tensors_decode(tiny_tokenizer: ChatGLMTokenizer) -> None:
    ids = tiny_tokenizer.encode("你好", add_special_tokens=False)
    assert tiny_tokenizer.decode(np.array(ids)) == "你好"
    assert tiny_tokenizer.decode(torch.tensor([ids, ids])) == ["你好", "你好"]
    assert tiny_tokenizer.batch_decode([ids, []]) == ["你好", ""]


# ---- training one ---------------------------------------------------------------------------


def test_a_trained_tokenizer_has_the_layout_of_chatglm(tiny_tokenizer: ChatGLMTokenizer) -> None:
    pieces = tiny_tokenizer.sp_model
    assert [pieces.id_to_piece(i) for i in (0, 1, 2, 3, 258)] == (
        ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    )
    assert tiny_tokenizer.get_command("[MASK]") == 480
    assert tiny_tokenizer.get_command("<|observation|>") == 488
    assert tiny_tokenizer.tokenize("\n") == ["▁", "<0x0A>"]
    assert tiny_tokenizer.encode("", add_special_tokens=False) == []
    assert "12" not in tiny_tokenizer.get_vocab()  # every digit is a piece


@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_any_text_survives_a_round_trip(tiny_tokenizer: ChatGLMTokenizer, text: str) -> None:
    decoded = tiny_tokenizer.decode(tiny_tokenizer.encode(text, add_special_tokens=False))
    assert decoded == text.replace("▁", " ").replace("\x00", "\x00")


def test_the_same_texts_train_the_same_tokenizer(tmp_path: Path) -> None:
    texts = ["你好世界，你好北京", "hello world, hello"]
    train_tokenizer(texts, 280, tmp_path / "a")
    train_tokenizer(reversed(texts), 280, tmp_path / "b")
    a, b = ((tmp_path / name / "tokenizer.model").read_bytes() for name in "ab")
    assert a == b


def test_texts_that_cannot_fill_the_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too few for 5000 pieces"):
        train_tokenizer(["你好"], 5000, tmp_path)
    with pytest.raises(ValueError, match="expected at least"):
        train_tokenizer(["你好"], 100, tmp_path)
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer(["\n\t"], 300, tmp_path)
