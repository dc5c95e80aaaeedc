"""A folder of ours is read by stock transformers to our ids, and still by ourselves."""

import copy
import json
import logging
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError as JinjaError
from tests.template.conversations import dialogues, texts
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from glmtune.conversation import Conversation, Message, read_messages
from glmtune.model.chatglm.piece_tokenizer import open_pieces
from glmtune.model.chatglm.stock_files import write_stock_files
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.model.load import load_tokenizer
from glmtune.recipe.choices import LAYOUTS, Layout
from glmtune.template.chatglm import ChatGLMTemplate

TOOL = {"name": "weather", "description": '天气 "<|user|>"', "parameters": {"city": {"type": "s"}}}
SPELLED = ("<|user|>", "sop", "</s>", "[gMASK]", "\ufdd0", "<\ufdd0|user|>", "")
GUARDED = ("\ufdd0\ufde7", "\ufdd0\ufde9", "<\ufdd0\ufde9|user|>", "<\ufdd0\ufde7\ufde9|user|>")


def stock(folder: Path) -> Any:
    """What AutoTokenizer gives where glmtune is not imported."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def folders(
    tiny_tokenizer: ChatGLMTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> dict[Layout, Path]:
    """A folder for each layout."""
    made = {}
    for layout in LAYOUTS:
        made[layout] = tmp_path_factory.mktemp(layout)
        write_stock_files(made[layout], tiny_tokenizer, layout=layout)
    return made


@pytest.fixture(scope="module")
def stocks(folders: dict[Layout, Path]) -> dict[Layout, Any]:
    return {layout: stock(folder) for layout, folder in folders.items()}


def as_dicts(conversation: Conversation) -> list[dict[str, Any]]:
    return [
        {"role": m.role, "content": m.content, "metadata": m.metadata}
        | ({"tools": m.tools} if m.tools is not None else {})
        for m in conversation
    ]


@settings(max_examples=60)
@given(
    conversation=dialogues(),
    extra=st.sampled_from((*SPELLED, *GUARDED)),
    layout=st.sampled_from(["official", "tutorial"]),
)
def test_a_prompt_has_our_ids_whatever_a_message_says(
    conversation: Conversation,
    extra: str,
    layout: Layout,
    tiny_tokenizer: ChatGLMTokenizer,
    stocks: dict[Layout, Any],
) -> None:
    asked = Conversation((*conversation, Message("user", extra)))
    expected = ChatGLMTemplate(tiny_tokenizer, layout).prompt_ids(asked)

    ids = stocks[layout].apply_chat_template(
        as_dicts(asked), add_generation_prompt=True, return_dict=False
    )

    assert ids == expected
    told = stocks[layout].apply_chat_template(as_dicts(conversation), return_dict=False)
    assert told == tiny_tokenizer.apply_chat_template(as_dicts(conversation), return_dict=False)


@settings(max_examples=30)
@given(contents=st.lists(texts, min_size=1, max_size=5).filter(lambda c: len(c) % 2 == 1))
def test_the_layouts_without_roles_have_our_ids_too(
    contents: list[str], tiny_tokenizer: ChatGLMTokenizer, stocks: dict[Layout, Any]
) -> None:
    roles = ("user", "assistant") * len(contents)
    turns = tuple(map(Message, roles, contents))  # type: ignore[arg-type]
    for layout, asked in (("chatglm2", turns), ("plain", turns[:1])):
        expected = ChatGLMTemplate(tiny_tokenizer, cast("Layout", layout)).prompt_ids(
            Conversation(asked)
        )
        messages = as_dicts(Conversation(asked))
        render = stocks[cast("Layout", layout)].apply_chat_template
        assert render(messages, add_generation_prompt=True, return_dict=False) == expected, layout


def called(*arguments: dict[str, Any]) -> dict[str, Any]:
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": "weather", "arguments": each}}
        for i, each in enumerate(arguments)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


ASK = {"role": "user", "content": "天气？"}
OPENAI: dict[str, list[dict[str, Any]]] = {
    "tools announced in front": [ASK],
    "tools in the first system message": [{"role": "system", "content": "简短"}, ASK],
    "developer": [{"role": "developer", "content": "简短"}, ASK],
    "values as Python writes them": [
        ASK,
        called(
            {"a": "it's", "b": 'say "hi"\n\\', "c": None, "d": [True, {"你": 1.5}], "e": "\u200b"}
        ),
        {"role": "tool", "tool_call_id": "c0", "content": "3 度 <|user|>"},
    ],
    "no arguments": [ASK, called({}), {"role": "tool", "content": "3"}],
    "a remark in front of a call": [ASK, {**called({"a": 1}), "content": "我看看"}],
    "parallel calls answered in another order": [
        ASK,
        called({"a": 1}, {"a": 2}, {"a": 3}),
        {"role": "tool", "tool_call_id": "c2", "content": "three"},
        {"role": "tool", "content": "any"},
        ASK,
        {"role": "tool", "tool_call_id": "c1", "content": "late"},
    ],
    "results that are JSON": [
        {"role": "observation", "content": value}
        for value in ({"a": [1, "你"]}, [1, 2], 3, True, None)
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a<|"}, {"text": "user|>"}]}],
}


@pytest.mark.parametrize("case", OPENAI)
def test_messages_of_openai_have_the_ids_that_we_give_them(
    case: str, tiny_tokenizer: ChatGLMTokenizer, stocks: dict[Layout, Any]
) -> None:
    for tools in (None, [TOOL], [{"type": "function", "function": TOOL}]):
        messages = read_messages(OPENAI[case], tools)
        expected = ChatGLMTemplate(tiny_tokenizer).prompt_ids(Conversation(messages))

        ids = stocks["official"].apply_chat_template(
            OPENAI[case], tools=tools, add_generation_prompt=True, return_dict=False
        )

        assert ids == expected


@pytest.mark.parametrize(
    ("layout", "messages", "problem"),
    [
        ("official", [{"role": "bot", "content": "x"}], "from bot, expected one of system, user"),
        ("official", [{"role": "user", "content": {"a": 1}}], "message 0 has no text"),
        ("official", [{"role": "user"}], "message 0 has no text"),
        ("official", [called(cast("Any", '{"a": 1}'))], "a call with text as arguments"),
        ("chatglm2", [{"role": "system", "content": "x"}], "neither system messages nor tools"),
        ("plain", [ASK, ASK], "continues one text of the user"),
    ],
)
def test_a_message_that_the_format_lacks_is_refused_in_a_sentence(
    layout: Layout, messages: list[dict[str, Any]], problem: str, stocks: dict[Layout, Any]
) -> None:
    with pytest.raises(JinjaError, match=problem):
        stocks[layout].apply_chat_template(messages)


def test_ours_reads_tokenizer_model_in_the_same_folder(
    folders: dict[Layout, Path], tiny_tokenizer: ChatGLMTokenizer
) -> None:
    folder = folders["official"]

    ours = load_tokenizer(folder)
    pieces = open_pieces(folder)

    assert type(ours) is ChatGLMTokenizer
    assert ours.model_input_names == tiny_tokenizer.model_input_names
    text = "people <|user|>"
    assert ours(text) == tiny_tokenizer(text)
    assert pieces is not None
    for tokenizer in (ours, pieces):
        template = ChatGLMTemplate(cast("ChatGLMTokenizer", tokenizer))
        assert template.fingerprint == ChatGLMTemplate(tiny_tokenizer).fingerprint


def test_saving_what_was_read_gives_the_same_folder_again(
    folders: dict[Layout, Path], tmp_path: Path
) -> None:
    write_stock_files(tmp_path, load_tokenizer(folders["official"]))

    for path in folders["official"].iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_added_tokens_are_read_by_both(tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["苹果派"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "extra_special_tokens": ["[MASK]", "sop"]})
    write_stock_files(tmp_path, tokenizer)
    messages = [{"role": "user", "content": text} for text in ("苹果派 [PAD]", "people", "sop x")]

    ours, fast = load_tokenizer(tmp_path), stock(tmp_path)

    expected = tokenizer.apply_chat_template(messages, return_dict=False)
    assert ours.apply_chat_template(messages, return_dict=False) == expected
    assert fast.apply_chat_template(messages, return_dict=False) == expected
    assert ours.pad_token_id == fast.pad_token_id == tokenizer.pad_token_id
    assert (
        fast("people", add_special_tokens=False)["input_ids"]
        == tokenizer.encode_texts(["people"]).pop()
    )


@pytest.mark.parametrize(
    ("layout", "expected"),
    [("official", [2, 486, 488]), ("tutorial", [2, 486, 488]), ("plain", [2])],
)
def test_generation_stops_where_our_own_does(
    layout: Layout, expected: list[int], folders: dict[Layout, Path], tiny_tokenizer: Any
) -> None:
    content = json.loads((folders[layout] / "generation_config.json").read_text())

    assert content == {"eos_token_id": expected, "pad_token_id": 0}
    assert tuple(expected) == ChatGLMTemplate(tiny_tokenizer, layout).stop_ids


def test_a_generation_config_of_the_model_keeps_its_other_values(
    tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text('{"_from_model_config": true, "eos_token_id": 2, "top_p": 0.8}')

    write_stock_files(tmp_path, tiny_tokenizer)

    assert json.loads(path.read_text()) == {
        "eos_token_id": [2, 486, 488],
        "pad_token_id": 0,
        "top_p": 0.8,
    }


def test_pieces_that_stock_tools_would_misread_are_left_to_glmtune(
    tiny_tokenizer: ChatGLMTokenizer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from tests.model.chatglm.test_fast_tokenizer import trained

    tokenizer = trained(tmp_path, normalization_rule_name="nfkc")
    folder = tmp_path / "out"
    folder.mkdir()
    with caplog.at_level(logging.WARNING):
        write_stock_files(folder, tokenizer)

    assert "only glmtune reads this tokenizer rightly: tokenizer.model gives 'ＡＢ'" in caplog.text
    assert not (folder / "tokenizer.json").exists()
    assert load_tokenizer(folder).encode("你好") == tokenizer.encode("你好")


def test_a_tokenizer_of_another_family_is_saved_as_it_is(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)

    write_stock_files(tmp_path, tokenizer)

    assert AutoTokenizer.from_pretrained(tmp_path).encode("Hi") == tokenizer.encode("Hi")
    assert not (tmp_path / "generation_config.json").exists()


def test_a_folder_without_tokenizer_model_is_told_to_need_it(
    folders: dict[Layout, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders["official"], tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.model").unlink()

    with pytest.raises(Exception, match=r"ChatGLM needs tokenizer\.model in the folder"):
        load_tokenizer(tmp_path / "copy")
