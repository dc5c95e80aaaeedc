"""`tokenizer.json` gives the ids of SentencePiece for any text, and is refused where it cannot."""

import copy
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer
from tests.tiny_model import SENTENCES
from tokenizers import Tokenizer

from glmtune.errors import CheckpointError
from glmtune.model.chatglm.chat_format import SPECIAL_TOKENS
from glmtune.model.chatglm.fast_tokenizer import ESCAPED, GUARD, fast_tokenizer_json
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

ATOMS = (
    *(*SPECIAL_TOKENS, "</s>", "<s>", "<unk>", "<0x0A>", "people", "sophisticated", "s", "op"),
    *(" ", "  ", "\n", "\t", "\r\n", "\x00", "\x1f", "\u2581", "\u3000", "\u200b"),
    *("\ufdd0", "\ufffd", "😀", "👨‍👩‍👧", "\U000e0001", "e\u0301", "ＡＢ", "龘"),
    *("a", "aa", "ab", "12", "3.14", "print(x)", "你好", "北京的天气", "<|", "|>"),
)
texts = st.one_of(st.text(max_size=20), st.lists(st.sampled_from(ATOMS), max_size=12).map("".join))


@pytest.fixture(scope="module")
def tiny_fast(tiny_tokenizer: ChatGLMTokenizer) -> Tokenizer:
    return as_plain_text(fast_tokenizer_json(tiny_tokenizer))


def as_plain_text(content: str) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, which reads no special token in text."""
    fast = Tokenizer.from_str(content)
    fast.encode_special_tokens = True
    return fast


def ids_of(fast: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [each.ids for each in fast.encode_batch(texts, add_special_tokens=False)]


def random_texts(count: int) -> Iterator[str]:
    chosen = random.Random(0)
    for _ in range(count):
        yield "".join(chosen.choices(ATOMS, k=chosen.randrange(12)))
        yield "".join(chosen.choices("ab 的", k=chosen.randrange(60)))


@given(text=texts)
def test_any_text_has_the_ids_of_sentencepiece(
    text: str, tiny_tokenizer: ChatGLMTokenizer, tiny_fast: Tokenizer
) -> None:
    if GUARD in text or ESCAPED in text:  # what a chat template writes, and no text has
        return
    [expected] = tiny_tokenizer.encode_texts([text])

    assert ids_of(tiny_fast, [text]) == [expected]
    assert tiny_fast.decode(expected) == tiny_tokenizer.decode(expected)


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from strings_in(item)


def test_real_rows_and_golden_texts_have_their_ids_in_the_real_vocabulary(shared: Path) -> None:
    ours = ChatGLMTokenizer.from_pretrained(shared / "golden" / "chatglm3-tokenizer")
    fast = as_plain_text(fast_tokenizer_json(ours))
    cases = json.loads((shared / "golden" / "tokens.json").read_text("utf-8"))["cases"]
    texts = [
        text
        for file in (shared / "data").glob("*.json")
        for text in strings_in(json.loads(file.read_text("utf-8")))
    ]
    texts += random_texts(2000)
    assert len(texts) > 8000

    assert fast.get_vocab_size() == 64798
    assert ids_of(fast, [case["text"] for case in cases]) == [case["ids"] for case in cases]
    assert ids_of(fast, texts) == ours.encode_texts(texts)


def test_special_tokens_are_cut_out_of_text_and_plain_words_only_where_they_stand_alone(
    tiny_tokenizer: ChatGLMTokenizer,
) -> None:
    fast = Tokenizer.from_str(fast_tokenizer_json(tiny_tokenizer))
    gmask, sop, user = tiny_tokenizer.convert_tokens_to_ids(["[gMASK]", "sop", "<|user|>"])

    [prompt, people, words] = ids_of(fast, ["[gMASK]sop<|user|>\n 你好", "people", "sophisticated"])

    [newline, hello] = tiny_tokenizer.encode_texts(["\n", "你好"])
    assert prompt == [gmask, sop, user, *newline, *hello]
    assert [people, words] == tiny_tokenizer.encode_texts(["people", "sophisticated"])
    assert fast.token_to_id("eop") == tiny_tokenizer.get_command("eop")


def test_a_text_and_its_pair_begin_and_end_as_ours_do(tiny_tokenizer: ChatGLMTokenizer) -> None:
    fast = Tokenizer.from_str(fast_tokenizer_json(tiny_tokenizer))

    assert fast.encode("你好").ids == tiny_tokenizer.encode("你好")
    assert fast.encode("你好", "世界").ids == tiny_tokenizer("你好", "世界")["input_ids"]


def test_added_tokens_are_cut_out_as_ours_does(tiny_tokenizer: ChatGLMTokenizer) -> None:
    ours = copy.deepcopy(tiny_tokenizer)
    ours.add_tokens(["苹果派", "苹果"])
    ours.add_special_tokens({"pad_token": "[PAD]"})
    fast = Tokenizer.from_str(fast_tokenizer_json(ours))

    texts = ["吃苹果派吧", "苹果", " 苹果 派"]
    assert ids_of(fast, texts) == ours.encode_texts(texts)
    assert fast.token_to_id("[PAD]") == ours.pad_token_id == 491


def trained(tmp_path: Path, **settings: Any) -> ChatGLMTokenizer:
    """A tokenizer by SentencePiece with settings other than ChatGLM's."""
    model = io.BytesIO()
    common: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 480,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 3,
    }
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, **{**common, **settings}
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    return ChatGLMTokenizer(tmp_path / "tokenizer.model")


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"model_type": "unigram", "vocab_size": 440}, "'"),
        ({"normalization_rule_name": "nfkc"}, "'ＡＢ'"),
        ({"remove_extra_whitespaces": True}, "' a'"),
        ({"add_dummy_prefix": False}, "''"),
        ({"user_defined_symbols": ["\n\n"]}, "'\\n"),
        ({"user_defined_symbols": ["sop"]}, "'sop' is both a piece"),
    ],
)
def test_pieces_that_the_library_would_read_otherwise_are_refused(
    settings: dict[str, Any], shown: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        fast_tokenizer_json(trained(tmp_path, **settings))

    assert shown in str(caught.value)
