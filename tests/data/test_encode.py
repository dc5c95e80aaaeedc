"""Examples are what the template makes of the rows; bad rows, memory and held-out rows."""

from __future__ import annotations

import dataclasses
import json
import math
import tracemalloc
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.encoding import ALPACA, LONG, TALK, CountingTemplate, expected, write

from glmtune.data import dataset, json_rows
from glmtune.data.dataset import Dataset, Entry
from glmtune.data.encode import EncodeOptions, encode_data, split_data
from glmtune.data.formats import convert
from glmtune.data.rows import RowError
from glmtune.data.store import EncodedData
from glmtune.errors import DataError
from glmtune.recipe.sections import DataSection
from glmtune.template.base import IGNORE, Example
from glmtune.template.chatglm import ChatGLMTemplate

if TYPE_CHECKING:
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer


def test_examples_are_what_the_template_makes_of_the_rows(
    tmp_path: Path, template: CountingTemplate
) -> None:
    data = encode_data(write(tmp_path / "rows.json", [TALK, *[TALK] * 3]), template, LONG)

    [example] = expected([TALK], template, "chatglm3")
    assert list(data) == [example] * 4
    assert data[-1] == data[3]
    assert data.lengths.tolist() == [len(example.input_ids)] * 4
    assert data.lengths.dtype == np.int64
    num_learned = sum(label != IGNORE for label in example.labels)
    assert data.num_learned_tokens == data.report.num_learned_tokens == 4 * num_learned
    stretches = [key for key, _ in groupby(example.labels, key=lambda label: label != IGNORE)]
    assert stretches == [False, True, False, True, False]  # or the labels would prove little
    with pytest.raises(IndexError):
        data[4]


def test_examples_know_the_line_they_come_from(tmp_path: Path, template: CountingTemplate) -> None:
    first = write(tmp_path / "a.json", ALPACA)
    second = tmp_path / "b.jsonl"
    second.write_text(json.dumps(TALK) + "\n\n" + json.dumps(TALK) + "\n", encoding="utf-8")

    data = encode_data([first, second], template, LONG)

    assert [data.origin(index) for index in range(len(data))] == [
        f"{first}:2", f"{first}:7", f"{first}:12", f"{second}:1", f"{second}:3"
    ]  # fmt: skip
    assert data.report.formats == {str(first): "alpaca", str(second): "chatglm3"}
    assert str(data.report).startswith("5 rows (alpaca, chatglm3) gave 5 examples of ")


@settings(max_examples=25, deadline=None)
@given(
    talks=st.lists(
        st.lists(st.tuples(st.sampled_from(["", "好", "一二三 abc"]), st.booleans()), min_size=1),
        min_size=1,
        max_size=12,
    ),
    batch_rows=st.integers(1, 5),
)
def test_any_learned_stretches_read_back_equal_wherever_a_batch_ends(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: ChatGLMTokenizer,
    talks: list[list[tuple[str, bool]]],
    batch_rows: int,
) -> None:
    rows = []
    for turns in talks:
        conversation: list[dict[str, Any]] = []
        for text, loss in turns:
            conversation.append({"role": "user", "content": text})
            conversation.append({"role": "assistant", "content": text, "loss": loss})
        rows.append({"conversations": conversation})
    template = ChatGLMTemplate(tiny_tokenizer)
    examples = expected(rows, template, "chatglm3")
    learned = [e for e in examples if any(label != IGNORE for label in e.labels)]
    folder = tmp_path_factory.mktemp("encode")
    path = write(folder / "rows.json", rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "BATCH_ROWS", batch_rows)
        if not learned:
            with pytest.raises(DataError, match=f"{len(rows)} have nothing that is learned"):
                encode_data(path, template, LONG, cache_dir=folder)
            return
        data = encode_data(path, template, LONG, cache_dir=folder)

    assert list(data) == learned
    assert data.report.num_without_labels == len(examples) - len(learned)
    assert data.report.num_tokens == sum(len(example.input_ids) for example in learned)
    labels = [sum(label != IGNORE for label in example.labels) for example in learned]
    assert data.learned_lengths.tolist() == labels


def test_a_file_in_the_official_format_gives_the_ids_and_labels_of_the_official_code(
    tmp_path: Path, golden: Path, chatglm3: ChatGLMTokenizer
) -> None:
    cases = json.loads((golden / "sft.json").read_text(encoding="utf-8"))["multi_turn"]
    path = write(tmp_path / "rows.json", [case["item"] for case in cases])
    options = EncodeOptions(max_length=100_000, format="chatglm3")

    data = encode_data(path, ChatGLMTemplate(chatglm3), options)

    assert list(data) == [Example(case["input_ids"], case["labels"]) for case in cases]


def test_official_rows_of_fixed_length_are_the_same_but_for_their_padding(
    tmp_path: Path, golden: Path, chatglm3: ChatGLMTokenizer
) -> None:
    vectors = json.loads((golden / "sft.json").read_text(encoding="utf-8"))["multi_turn"]
    cases = [(case["item"], cut) for case in vectors for cut in case.get("fixed_length", ())]
    num_cut = 0
    for item, cut in cases:
        length = cut["max_seq_length"]
        unpadded = cut["input_ids"][: len(cut["input_ids"])]
        while unpadded and unpadded[-1] == 0:
            unpadded.pop()
        if set(cut["labels"]) == {IGNORE}:
            continue  # nothing would be learned, so we leave it out
        path = write(tmp_path / "rows.json", [item])
        options = EncodeOptions(max_length=length, overlong="tutorial", format="chatglm3")
        data = encode_data(path, ChatGLMTemplate(chatglm3), options)
        assert data[0] == Example(unpadded, cut["labels"][: len(unpadded)])
        num_cut += data.report.num_cut
    assert num_cut > 0


def test_alpaca_rows_in_the_tutorial_layout_are_cut_as_by_the_tutorial(
    tmp_path: Path, golden: Path, chatglm3: ChatGLMTokenizer
) -> None:
    vectors = json.loads((golden / "sft.json").read_text(encoding="utf-8"))
    path = write(tmp_path / "rows.json", [case["row"] for case in vectors["alpaca"]])
    options = EncodeOptions(max_length=256, overlong="tutorial")
    template = ChatGLMTemplate(chatglm3, "tutorial")

    data = encode_data(path, template, options)

    assert list(data) == [
        Example(
            case["input_ids"],
            [IGNORE] * case["n_ignored_labels"] + case["input_ids"][case["n_ignored_labels"] :],
        )
        for case in vectors["alpaca"]
    ]
    assert data.report.num_cut == sum(case["truncated"] for case in vectors["alpaca"]) == 8

    for case in vectors["odd_rows"]:
        path = write(tmp_path / "odd.json", [case["row"]])
        options = EncodeOptions(max_length=case["max_length"], overlong="tutorial")
        if not case["row"]["output"] or set(case["labels"]) == {IGNORE}:
            with pytest.raises(DataError):
                encode_data(path, template, options)
        else:
            example = encode_data(path, template, options)[0]
            assert example == Example(case["input_ids"], case["labels"])


def test_real_conversations_with_tools_are_encoded(
    tmp_path: Path, shared: Path, chatglm3: ChatGLMTokenizer
) -> None:
    data = encode_data(shared / "data" / "toolcall_zh.json", ChatGLMTemplate(chatglm3), LONG)

    assert len(data) == 300
    assert data.report.num_learned_tokens < data.report.num_tokens


BAD = [ALPACA[0], {"instruction": "q"}, 3, {"instruction": "q", "output": 4}, ALPACA[1]]


def test_a_bad_row_stops_the_work_by_default(tmp_path: Path, template: CountingTemplate) -> None:
    path = write(tmp_path / "rows.json", BAD)

    with pytest.raises(RowError, match=rf"{path}:7: field 'output': the field is missing"):
        encode_data(path, template, LONG)


def test_bad_rows_are_skipped_into_a_quarantine_file_also_from_the_cache(
    tmp_path: Path, template: CountingTemplate
) -> None:
    path = write(tmp_path / "rows.json", BAD)
    options = EncodeOptions(max_length=10_000, bad_rows="skip")
    for name in ("first.jsonl", "again.jsonl"):
        listed = tmp_path / "out" / name
        data = encode_data(path, template, options, quarantine=listed)

        assert len(data) == 2
        assert data.report.num_rows == 5
        assert data.report.num_bad_rows == 3
        assert data.report.quarantine == str(listed)
        assert f"3 rows left out as bad, listed in {listed}" in str(data.report)
        lines = [json.loads(line) for line in listed.read_text("utf-8").splitlines()]
        assert sorted((line["line"], line["field"]) for line in lines) == [
            (7, "output"), (10, ""), (11, "output")
        ]  # fmt: skip
        assert all(line["file"] == str(path) and line["reason"] for line in lines)
        assert '"instruction": "q"' in lines[-1]["excerpt"]
    assert template.num_encoded == 2  # the second time from the cache


def test_without_a_bad_row_there_is_no_quarantine_file(
    tmp_path: Path, template: CountingTemplate
) -> None:
    options = EncodeOptions(max_length=10_000, bad_rows="skip")
    path = write(tmp_path / "rows.json", ALPACA)

    data = encode_data(path, template, options, quarantine=tmp_path / "bad.jsonl")

    assert data.report.quarantine is None
    assert not (tmp_path / "bad.jsonl").exists()


def test_a_row_that_the_template_cannot_render_is_a_bad_row(
    tmp_path: Path, tiny_tokenizer: ChatGLMTokenizer
) -> None:
    plain = ChatGLMTemplate(tiny_tokenizer, "plain")  # one prompt and one answer, no more
    rows = [ALPACA[0], {**ALPACA[1], "history": [["一", "1"]]}, ALPACA[2]]
    path = write(tmp_path / "rows.json", rows)

    with pytest.raises(RowError, match=rf"{path}:7: the plain layout"):
        encode_data(path, plain, LONG)
    data = encode_data(path, plain, EncodeOptions(max_length=10_000, bad_rows="skip"))
    assert list(data) == expected([ALPACA[0], ALPACA[2]], plain, "alpaca")
    assert (data.report.num_rows, data.report.num_bad_rows) == (3, 1)


def test_the_error_for_having_no_row_left_gives_the_reason(
    tmp_path: Path, template: CountingTemplate, cache: Path
) -> None:
    skip = EncodeOptions(max_length=5, bad_rows="skip")
    rows = [*BAD[:3], {"conversations": []}]
    with pytest.raises(DataError) as caught:
        encode_data(write(tmp_path / "rows.json", rows), template, skip)

    message = str(caught.value)
    assert "of 4 rows none is left to learn from" in message
    assert f"3 cannot be used, the first is {tmp_path / 'rows.json'}:" in message
    assert "1 are longer than data.max_length=5: raise it, up to " in message
    with pytest.raises(DataError, match=r"file of their own\.$"):  # one full stop
        encode_data(write(tmp_path / "null.json", [{**ALPACA[0], "output": None}]), template, skip)
    with pytest.raises(DataError, match="there are no rows in it"):
        encode_data(write(tmp_path / "none.json", []), template, skip)
    assert list(cache.iterdir()) == []  # neither is kept


def test_unknown_columns_stop_the_work_even_if_bad_rows_are_skipped(
    tmp_path: Path, template: CountingTemplate
) -> None:
    path = write(tmp_path / "rows.json", [{"q": "a", "a": "b"}])
    with pytest.raises(DataError, match="the columns are 'q', 'a': no known format"):
        encode_data(path, template, EncodeOptions(max_length=9, bad_rows="skip"))

    options = EncodeOptions(max_length=99, columns={"question": "q", "answer": "a"})
    assert len(encode_data(path, template, options)) == 1
    with pytest.raises(DataError, match="maps 'bot' to 'robot'"):
        encode_data(path, template, EncodeOptions(max_length=9, roles={"bot": "robot"}))


def test_progress_is_reported(
    tmp_path: Path, template: CountingTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "BATCH_ROWS", 2)
    counts: list[int] = []

    encode_data(write(tmp_path / "rows.json", ALPACA), template, LONG, progress=counts.append)

    assert counts == [2, 3]


def peak_memory(path: Path, template: ChatGLMTemplate) -> int:
    """The most memory that encoding and reading a file takes at once."""
    tracemalloc.start()
    data: EncodedData = encode_data(path, template, LONG)
    assert sum(len(example.input_ids) for example in data) == data.report.num_tokens
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_rows(
    tmp_path: Path, tiny_tokenizer: ChatGLMTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    monkeypatch.setattr(dataset, "BATCH_ROWS", 100)
    monkeypatch.setattr(json_rows, "BLOCK_BYTES", 1 << 14)
    row = {"instruction": "北京的历史", "output": "春天来了，花儿开了。" * 10}
    peak_memory(write(tmp_path / "first.json", [row] * 500), template)  # what is loaded once
    few = peak_memory(write(tmp_path / "few.json", [row] * 500), template)
    many = peak_memory(write(tmp_path / "many.json", [row] * 5000), template)

    assert many < 1.5 * few


@given(count=st.integers(2, 300), share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_a_split_takes_every_example_once(count: int, share: float, seed: int) -> None:
    train, held_out = split_data(range(count), share, seed)

    assert sorted([*train, *held_out]) == list(range(count))
    assert len(held_out) == math.ceil(share * count)  # as `datasets` splits
    again = split_data(range(count), share, seed)
    assert np.array_equal(train, again[0])
    assert np.array_equal(held_out, again[1])


def test_a_split_by_number_and_other_seeds() -> None:
    train, held_out = split_data(range(1000), 100, 1)

    assert (len(train), len(held_out)) == (900, 100)
    assert list(held_out) != list(split_data(range(1000), 100, 2)[1])
    assert len(split_data(range(10), 0.001, 0)[1]) == 1


def test_with_masked_history_only_the_last_answer_is_learned(
    tmp_path: Path, template: CountingTemplate
) -> None:
    path = write(tmp_path / "rows.json", [TALK])
    whole = encode_data(path, template, LONG)
    masked = encode_data(path, template, dataclasses.replace(LONG, mask_history=True))

    [example], [last] = whole, masked
    assert last.input_ids == example.input_ids
    learned = [index for index, label in enumerate(last.labels) if label != IGNORE]
    assert learned == list(range(learned[0], learned[-1] + 1))  # one answer
    assert 0 < len(learned) < sum(label != IGNORE for label in example.labels)
    assert last.labels[learned[0] :] == example.labels[learned[0] :]
    assert masked.key != whole.key
    # Checkpoints of earlier versions have keys without this option.
    assert whole.earlier_key == encode_data(path, template, LONG).earlier_key != masked.earlier_key


def test_lint_reads_rows_with_masked_history_as_training_does(tmp_path: Path) -> None:
    turns = [*TALK["conversations"][:4], {"role": "assistant", "content": "完", "loss": False}]
    path = write(tmp_path / "rows.json", [{"conversations": turns}])

    section = DataSection.model_validate({"train": str(path), "mask_history": True})

    [masked] = Dataset.of(section).read(convert)
    assert isinstance(masked, Entry)
    # A remark and what follows it are one answer.
    assert [message.is_learned for message in masked.value] == [False, False, False, None, False]
