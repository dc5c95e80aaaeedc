"""A tokenizer without transformers has the ids of the complete one, or is not opened."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from glmtune.errors import TemplateError
from glmtune.model.chatglm.piece_tokenizer import open_pieces
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.template.chatglm import ChatGLMTemplate
from glmtune.template.select import chatglm_template

USER, NEXT = 486, 489  # the id of <|user|>, and the first that no token has
SETTINGS: dict[str, dict[str, Any] | None] = {
    "no file": None,
    "nothing": {},
    "as first published": {
        "name_or_path": "THUDM/chatglm3-6b",
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    },
    "named tokens": {"eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"},
    "our special tokens": {
        "additional_special_tokens": ["<|user|>", "<|observation|>"],
        "added_tokens_decoder": {str(USER): {"content": "<|user|>", "special": True}},
    },
}
REFUSED: dict[str, dict[str, Any]] = {
    "another class": {"tokenizer_class": "LlamaTokenizer"},
    "another token that pads": {"pad_token": "</s>"},
    "a token of its own": {"additional_special_tokens": ["<|think|>"]},
    "an added token": {"added_tokens_decoder": {str(NEXT): {"content": "<|think|>"}}},
    "an added token with spaces": {
        "added_tokens_decoder": {str(NEXT): {"content": "<|think|>", "lstrip": True}}
    },
    "another id": {"added_tokens_decoder": {str(USER): {"content": "<|system|>"}}},
    "a token with spaces": {"eos_token": {"content": "</s>", "lstrip": True}},
    "an unknown key": {"bos_token": "<s>"},
}


@pytest.fixture
def folder(tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path) -> Path:
    shutil.copy(Path(tiny_tokenizer.name_or_path) / "tokenizer.model", tmp_path)
    return tmp_path


def write(folder: Path, settings: dict[str, Any] | None) -> None:
    if settings is not None:
        content = json.dumps({"tokenizer_class": "ChatGLMTokenizer", **settings})
        (folder / "tokenizer_config.json").write_text(content)


@pytest.mark.parametrize("case", SETTINGS)
def test_ids_and_template_are_those_of_the_complete_tokenizer(case: str, folder: Path) -> None:
    write(folder, SETTINGS[case])
    complete = ChatGLMTokenizer.from_pretrained(folder)

    pieces = open_pieces(folder)

    assert pieces is not None
    assert len(pieces) == len(complete)
    assert pieces.name_or_path == complete.name_or_path
    special = complete.all_special_tokens
    assert pieces.special_ids == {t: complete.convert_tokens_to_ids(t) for t in special}
    for layout in ("official", "tutorial", "chatglm2", "plain"):
        template = ChatGLMTemplate(cast("ChatGLMTokenizer", pieces), layout)
        assert template.fingerprint == ChatGLMTemplate(complete, layout).fingerprint


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_change_ids_are_left_to_the_complete_tokenizer(
    case: str, folder: Path
) -> None:
    write(folder, REFUSED[case])

    assert open_pieces(folder) is None


def test_a_map_of_special_tokens_is_read_where_transformers_reads_it(folder: Path) -> None:
    path = folder / "special_tokens_map.json"
    path.write_text(json.dumps({"eos_token": "</s>", "additional_special_tokens": ["sop"]}))
    assert open_pieces(folder) is not None

    for settings in ({"eos_token": "<unk>"}, {"additional_special_tokens": [{"content": "sop"}]}):
        path.write_text(json.dumps(settings))
        assert open_pieces(folder) is None

    write(folder, {"added_tokens_decoder": {}})
    assert open_pieces(folder) is not None


@pytest.mark.parametrize("name", ["tokenizer.json", "added_tokens.json"])
def test_other_files_with_tokens_are_left_to_the_complete_tokenizer(
    name: str, folder: Path
) -> None:
    (folder / name).write_text("{}")

    assert open_pieces(folder) is None


@pytest.mark.parametrize("content", [None, b"", b"version https://git-lfs", b"pieces"])
def test_what_is_no_sentencepiece_model_is_not_opened(
    content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.model").write_bytes(content)

    assert open_pieces(tmp_path) is None


def test_chatglm2_is_recognized_by_its_name(folder: Path) -> None:
    write(folder, {"name_or_path": "THUDM/chatglm2-6b"})

    with pytest.raises(TemplateError, match=r"chatglm2-6b, which has no roles"):
        chatglm_template(cast("ChatGLMTokenizer", open_pieces(folder)))
