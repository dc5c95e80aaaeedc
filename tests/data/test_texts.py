"""Files of text become windows; documents stay apart."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from glmtune.data.store import EncodedData
from glmtune.data.texts import TextOptions, encode_texts, read_texts, split_documents
from glmtune.errors import DataError
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.template.base import Example

LONG = "北京是中国的首都，有三千多年的历史。" * 4
SHORT = "春天来了。"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))


def write(path: Path, texts: list[Any]) -> Path:
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def encode(path: Path, tokenizer: ChatGLMTokenizer, **options: Any) -> EncodedData:
    return encode_texts(path, tokenizer, TextOptions(**{"max_length": 34, **options}))


def test_a_long_document_is_cut_into_windows_and_only_its_last_has_an_end(
    tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    data = encode(write(tmp_path / "a.jsonl", [LONG, SHORT]), tiny_tokenizer)

    windows = [example.input_ids for example in data]
    whole = tiny_tokenizer(LONG, add_special_tokens=False)["input_ids"]
    end = tiny_tokenizer.eos_token_id
    assert len(whole) > 64
    assert [len(window) for window in windows[:2]] == [32, 32]
    assert [id for window in windows[:-1] for id in window] == [*whole, end]
    assert [window.count(end) for window in windows] == [0] * (len(windows) - 2) + [1, 1]
    assert data[0] == Example(windows[0], windows[0])
    assert [data.origin(index)[-2:] for index in (0, len(data) - 1)] == [":1", ":2"]


def test_a_remnant_of_a_few_tokens_is_left_out(
    tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    ids = tiny_tokenizer(LONG, add_special_tokens=False)["input_ids"]
    data = encode(write(tmp_path / "a.jsonl", [LONG]), tiny_tokenizer, max_length=len(ids))

    assert data.lengths.tolist() == [len(ids) - 2]  # of the remnant 2 ids and the end are missing


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "parquet", "folder"])
def test_every_kind_of_file_gives_the_same_windows(
    kind: str, tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    rows = [{"text": LONG}, {"text": SHORT}]
    path = tmp_path / f"texts.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "folder":
        path.mkdir()
        write(path / "a.jsonl", [LONG])
        write(path / "b.jsonl", [SHORT])
    else:
        write(path, [LONG, SHORT])

    expected = encode(write(tmp_path / "expected.jsonl", [LONG, SHORT]), tiny_tokenizer)
    assert list(encode(path, tiny_tokenizer)) == list(expected)


def test_lines_of_a_text_file_join_up_to_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_text("床前明月光，\n疑是地上霜。\n\n举头望明月，\n", encoding="utf-8")

    assert list(read_texts([path])) == ["床前明月光，\n疑是地上霜。", "举头望明月，"]


def test_another_column_may_hold_the_text(tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"body": SHORT}), encoding="utf-8")

    assert len(encode(path, tiny_tokenizer, column="body")) == 1
    with pytest.raises(DataError, match=r"a\.jsonl:1.*no 'text'.*it has 'body'.*columns\.text"):
        encode(path, tiny_tokenizer)


def test_a_row_without_text_is_refused_or_listed(
    tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [SHORT, None, 7, ""])

    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        encode(path, tiny_tokenizer)
    report = encode(path, tiny_tokenizer, bad_rows="skip").report
    assert (report.num_rows, report.num_examples, report.num_bad_rows) == (4, 1, 2)
    assert report.num_without_labels == 1


def test_half_a_character_is_refused_by_its_line_or_listed(
    tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": SHORT}) + '\n{"text": "\\ud83d"}\n', encoding="utf-8")

    with pytest.raises(DataError, match=r"a\.jsonl:2.*half of a surrogate pair"):
        encode(path, tiny_tokenizer)
    assert encode(path, tiny_tokenizer, bad_rows="skip").report.num_bad_rows == 1


def test_a_window_too_short_to_be_of_use_is_refused(
    tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [SHORT])

    with pytest.raises(DataError, match=r"max_length=10 .* at least 18"):
        encode(path, tiny_tokenizer, max_length=10)


@pytest.mark.parametrize("wanted", [0.2, 4])  # a share, and a number
def test_no_document_is_half_learned_and_half_held_out(
    tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path, wanted: float
) -> None:
    texts = [f"第 {number} 章。{LONG}" for number in range(20)]
    data = encode(write(tmp_path / "a.jsonl", texts), tiny_tokenizer)

    rows, held_out = split_documents(data, wanted, seed=3)

    places = [{data.origin(index) for index in chosen.tolist()} for chosen in (rows, held_out)]
    assert len(data) > 40  # so that documents have several windows
    assert [len(place) for place in places] == [16, 4]
    assert not places[0] & places[1]
    assert sorted([*rows, *held_out]) == list(range(len(data)))


def test_the_second_start_finds_the_windows_and_another_tokenizer_does_not(
    tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    from glmtune.model.chatglm.train_tokenizer import train_tokenizer

    path = write(tmp_path / "a.jsonl", [LONG, SHORT])
    other = train_tokenizer([LONG, SHORT], 290, tmp_path / "other")

    key = encode(path, tiny_tokenizer).key
    assert encode(path, tiny_tokenizer).key == key
    assert encode(path, other).key != key
