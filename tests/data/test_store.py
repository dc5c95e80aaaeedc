"""What identifies encoded data, for a checkpoint to recognize it."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.data.pairs import encode_pairs
from glmtune.data.store import EncodedData
from glmtune.data.texts import TextOptions, encode_texts
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.template.chatglm import ChatGLMTemplate

OPTIONS = EncodeOptions(max_length=100)
ROWS = [{"instruction": "一", "output": "1"}, {"instruction": "二", "output": "2" * 9}]
PAIRS = [{"instruction": "一", "chosen": "1", "rejected": "2"}]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # so that a path, which is part of a key, is the same everywhere


@pytest.fixture
def template(tiny_tokenizer: ChatGLMTokenizer) -> ChatGLMTemplate:
    return ChatGLMTemplate(tiny_tokenizer)


def write(name: str, rows: Sequence[object]) -> str:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(name).write_text(text, encoding="utf-8")
    return name


def test_the_fingerprint_does_not_depend_on_the_code_or_on_batches(
    template: ChatGLMTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write("rows.jsonl", ROWS)
    data = encode_data(rows, template, OPTIONS)

    monkeypatch.setattr("glmtune.data.dataset.BATCH_ROWS", 1)
    monkeypatch.setattr("glmtune.data.encode.CODE", ())
    again = encode_data(rows, template, OPTIONS)

    assert again.key != data.key
    assert again.fingerprint == data.fingerprint


def test_the_fingerprint_is_of_ids_labels_and_origins(template: ChatGLMTemplate) -> None:
    labels = {"conversations": [{"role": "user", "content": "一"}]}
    answer = {"role": "assistant", "content": "1"}
    learned, other = [
        {"conversations": [*labels["conversations"], {**answer, "loss": flag}, {**answer}]}
        for flag in (True, False)
    ]
    files = [
        write("rows.jsonl", ROWS),
        write("others.jsonl", ROWS),  # another name
        write("fewer.jsonl", ROWS[:1]),
        write("changed.jsonl", [ROWS[0], {**ROWS[1], "output": "3" * 9}]),
        write("learned.jsonl", [learned]),
    ]

    fingerprints = [encode_data(file, template, OPTIONS).fingerprint for file in files]
    write("learned.jsonl", [other])
    fingerprints.append(encode_data("learned.jsonl", template, OPTIONS).fingerprint)

    assert len(set(fingerprints)) == len(files) + 1


def test_data_that_are_concatenated_have_a_fingerprint_of_their_own(
    template: ChatGLMTemplate,
) -> None:
    first = encode_data(write("a.jsonl", ROWS), template, OPTIONS)
    second = encode_data(write("b.jsonl", ROWS[:1]), template, OPTIONS)
    both = encode_data(["a.jsonl", "b.jsonl"], template, OPTIONS)

    joined = first.followed_by(second)

    assert joined.fingerprint == both.fingerprint
    assert len({first.fingerprint, second.fingerprint, joined.fingerprint}) == 3
    assert second.followed_by(first).fingerprint != joined.fingerprint


def test_pairs_have_the_fingerprint_of_both_sides(template: ChatGLMTemplate) -> None:
    pairs = encode_pairs(write("pairs.jsonl", PAIRS), template, OPTIONS)
    write("pairs.jsonl", [{**PAIRS[0], "rejected": "3"}])
    others = encode_pairs("pairs.jsonl", template, OPTIONS)

    assert pairs[0] == others[0]
    assert pairs.fingerprint != others.fingerprint


class CountsCharacters:
    """Stands in for a tokenizer whose vocabulary never changes."""

    eos_token_id = 2

    def get_vocab(self) -> dict[str, int]:
        return {"1": 1, "</s>": 2}

    def __call__(self, texts: list[str], **options: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] * len(text) for text in texts]}


def test_earlier_keys_are_those_of_earlier_checkpoints(template: ChatGLMTemplate) -> None:
    """The keys were printed by the code of commit 532a758, for these files and options."""
    template.__dict__["fingerprint"] = "f" * 64
    Path("rows.jsonl").write_text('{"instruction": "1", "output": "2"}\n', encoding="utf-8")
    pairs = '{"instruction": "1", "chosen": "2", "rejected": "3"}\n'
    Path("pairs.jsonl").write_text(pairs, encoding="utf-8")
    Path("texts.jsonl").write_text('{"text": "1"}\n', encoding="utf-8")

    rows = encode_data("rows.jsonl", template, OPTIONS)
    data: list[EncodedData] = [
        rows,
        encode_pairs("pairs.jsonl", template, OPTIONS),
        encode_texts("texts.jsonl", CountsCharacters(), TextOptions(max_length=40)),
        rows.followed_by(encode_data("rows.jsonl#1", template, OPTIONS)),
    ]

    assert [each.earlier_key for each in data] == [
        "e2b18325d9064075bd182852349574c5ce7362bd837700aebd19c7833a98f22a",
        "a581f3e9d69cd7e268d24a45e8089c6711a348fe92d43c77813a335860903b37",
        "5cb67f2253f45ceb25bf9001399bc3d5c1a2212773336e035b67b0933eb3d87a",
        "10d307c3e73a3d04ffdc2252fa640859235e822cd5b97700c66951cb2586c506",
    ]
