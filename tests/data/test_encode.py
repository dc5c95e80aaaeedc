from __future__ import annotations

import json
import os
import resource
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtune.conversation import Conversation
from glmtune.data import dataset, json_rows
from glmtune.data.encode import EncodeOptions, encode_data, split_data
from glmtune.data.formats import FORMATS, convert
from glmtune.data.rows import Row, RowError
from glmtune.data.store import EncodedData
from glmtune.errors import DataError, OutputError
from glmtune.template.base import IGNORE, Example
from glmtune.template.chatglm import ChatGLMTemplate

if TYPE_CHECKING:
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

ALPACA = [
    {"instruction": "北京", "input": "天气", "output": "3 度。"},
    {"instruction": "什么是机器学习？", "input": "", "output": "学习规律的方法。"},
    {"instruction": "一", "input": "", "output": "1"},
]
TALK = {
    "conversations": [
        {"role": "user", "content": "一"},
        {"role": "assistant", "content": "1", "loss": False},
        {"role": "user", "content": "二"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "谢谢"},
        {"role": "assistant", "content": "好"},
        {"role": "user", "content": "再见"},
    ]
}


class CountingTemplate(ChatGLMTemplate):
    """Counts what it is asked to encode, so that a test sees whether a cache was used."""

    num_encoded = 0

    def encode_batch(self, conversations: Sequence[Conversation]) -> list[Example]:
        self.num_encoded += len(conversations)
        return super().encode_batch(conversations)


@pytest.fixture
def template(tiny_tokenizer: ChatGLMTokenizer) -> CountingTemplate:
    template = CountingTemplate(tiny_tokenizer)
    assert template.fingerprint  # it encodes its probes for that
    template.num_encoded = 0
    return template


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def expected(rows: Sequence[dict[str, Any]], template: ChatGLMTemplate, name: str) -> list[Example]:
    """What the template itself makes of rows of a format."""
    format = FORMATS[name]
    return [template.encode(convert(Row(row, "", 0), format)) for row in rows]


LONG = EncodeOptions(max_length=10_000)


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


# --- The reference ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chatglm3(golden: Path) -> ChatGLMTokenizer:
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

    tokenizer: ChatGLMTokenizer = ChatGLMTokenizer.from_pretrained(golden / "chatglm3-tokenizer")
    return tokenizer


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


# --- Long rows ----------------------------------------------------------------------------

OVERLONG = [ALPACA[2], {"instruction": "北京的历史" * 20, "output": "3 度。"}, ALPACA[2]]


def test_long_rows_are_dropped_and_counted(tmp_path: Path, template: CountingTemplate) -> None:
    path = write(tmp_path / "rows.json", OVERLONG)
    short, long, _ = expected(OVERLONG, template, "alpaca")

    data = encode_data(path, template, EncodeOptions(max_length=len(short.input_ids)))

    assert list(data) == [short, short]
    assert data.report.num_overlong == 1
    assert data.report.longest == len(long.input_ids) > len(short.input_ids)
    assert f"1 row left out: longer than {len(short.input_ids)} tokens" in str(data.report)


def test_the_prompt_of_a_long_row_is_shortened_and_its_answer_and_end_stay_whole(
    tmp_path: Path, template: CountingTemplate
) -> None:
    path = write(tmp_path / "rows.json", OVERLONG)
    short, long, _ = expected(OVERLONG, template, "alpaca")
    options = EncodeOptions(max_length=30, overlong="truncate_prompt")
    assert len(short.input_ids) <= 30 < len(long.input_ids)

    data = encode_data(path, template, options)

    learned = [label for label in long.labels if label != IGNORE]
    assert [label for label in data[1].labels if label != IGNORE] == learned
    assert len(data[1].input_ids) <= 30
    assert (data.report.num_shortened, data.report.num_overlong) == (1, 0)


def test_an_answer_that_does_not_fit_is_left_out_even_with_a_shortened_prompt(
    tmp_path: Path, template: CountingTemplate
) -> None:
    rows = [ALPACA[2], {"instruction": "一", "output": "北京的历史" * 20}]
    options = EncodeOptions(max_length=30, overlong="truncate_prompt")

    data = encode_data(write(tmp_path / "rows.json", rows), template, options)

    assert (len(data), data.report.num_overlong, data.report.num_shortened) == (1, 1, 0)


def test_the_tutorial_cuts_and_a_row_without_any_label_left_is_dropped(
    tmp_path: Path, template: CountingTemplate
) -> None:
    rows = [*OVERLONG, {"instruction": "一", "output": "北京的历史" * 20}]
    short, prompt_too_long, _, cut = expected(rows, template, "alpaca")
    assert set(prompt_too_long.labels[:30]) == {IGNORE}

    options = EncodeOptions(max_length=30, overlong="tutorial")
    data = encode_data(write(tmp_path / "rows.json", rows), template, options)

    assert list(data) == [short, short, Example(cut.input_ids[:30], cut.labels[:30])]
    assert (data.report.num_cut, data.report.num_without_labels) == (1, 1)


def test_a_row_of_one_megabyte_costs_no_more_than_its_row(
    tmp_path: Path, template: CountingTemplate
) -> None:
    rows = [ALPACA[0], {"instruction": "长", "output": "春天来了，" * 70_000}, ALPACA[1]]
    path = write(tmp_path / "rows.json", rows)
    assert path.stat().st_size > 1 << 20

    start = time.monotonic()
    data = encode_data(path, template, EncodeOptions(max_length=1000))

    assert len(data) == 2
    assert data.report.longest > 300_000
    assert time.monotonic() - start < 20


# --- Bad rows -----------------------------------------------------------------------------

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


def test_when_no_row_is_left_the_error_says_why(
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
    with pytest.raises(DataError, match=r"expected text\.$"):  # one full stop
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


# --- The cache ----------------------------------------------------------------------------


def test_a_second_start_encodes_nothing_and_gives_the_same(
    tmp_path: Path, template: CountingTemplate
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)

    first = encode_data(path, template, LONG)
    second = encode_data(path, template, LONG)

    assert template.num_encoded == 3
    assert list(second) == list(first) == expected(ALPACA, template, "alpaca")
    assert (second.report, second.key) == (first.report, first.key)
    assert second.origin(1) == first.origin(1)


def test_a_changed_file_is_read_again_even_if_its_size_and_time_stay(
    tmp_path: Path, template: CountingTemplate
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)
    first = encode_data(path, template, LONG)
    stat = path.stat()

    changed = [*ALPACA[:2], {**ALPACA[2], "output": "2"}]
    write(path, changed)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    second = encode_data(path, template, LONG)

    assert list(second) == expected(changed, template, "alpaca")
    assert list(first) == expected(ALPACA, template, "alpaca")  # still mapped, still right
    assert first.key != second.key


def test_other_options_another_template_or_another_cap_do_not_share_a_cache(
    tmp_path: Path, tiny_tokenizer: ChatGLMTokenizer, template: CountingTemplate
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)
    keys = {
        encode_data(path, template, LONG).key,
        encode_data(path, template, EncodeOptions(max_length=9_999)).key,
        encode_data(path, template, EncodeOptions(max_length=10_000, format="alpaca")).key,
        encode_data(f"{path}#2", template, LONG).key,
        encode_data([path, path], template, LONG).key,
        encode_data(path, ChatGLMTemplate(tiny_tokenizer, "tutorial"), LONG).key,
    }

    assert len(keys) == 6


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("examples.arrow", lambda data: data[: len(data) // 2]),
        ("examples.arrow", lambda data: data[:300] + bytes([data[300] ^ 1]) + data[301:]),
        ("examples.arrow", lambda data: b""),
        ("about.json", lambda data: data[:-9]),
        ("about.json", lambda data: b"{}"),
        ("bad_rows.jsonl", lambda data: data + b"x"),
    ],
)
def test_a_damaged_cache_is_made_again(
    tmp_path: Path,
    template: CountingTemplate,
    cache: Path,
    name: str,
    damage: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)
    key = encode_data(path, template, LONG).key
    (cache / key / name).write_bytes(damage((cache / key / name).read_bytes()))

    data = encode_data(path, template, LONG)

    assert list(data) == expected(ALPACA, template, "alpaca")
    assert "is damaged" in caplog.text
    template.num_encoded = 0
    assert list(encode_data(path, template, LONG)) == list(data)
    assert template.num_encoded == 0


def test_a_cache_with_a_missing_file_is_made_again(
    tmp_path: Path, template: CountingTemplate, cache: Path
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)
    key = encode_data(path, template, LONG).key
    (cache / key / "examples.arrow").unlink()

    assert list(encode_data(path, template, LONG)) == expected(ALPACA, template, "alpaca")


def test_an_interrupted_run_leaves_no_files(
    tmp_path: Path, template: CountingTemplate, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)
    monkeypatch.setattr(dataset, "BATCH_ROWS", 1)

    def interrupt(num_rows: int) -> None:
        if num_rows == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_data(path, template, LONG, progress=interrupt)
    assert list(cache.iterdir()) == []
    assert len(encode_data(path, template, LONG)) == 3


def test_many_starts_at_once_do_not_disturb_each_other(
    tmp_path: Path, tiny_tokenizer: ChatGLMTokenizer, cache: Path
) -> None:
    path = write(tmp_path / "rows.json", ALPACA * 50)
    template = ChatGLMTemplate(tiny_tokenizer)
    answer = expected(ALPACA, template, "alpaca") * 50

    def start(_: int) -> list[Example]:
        return list(encode_data(path, ChatGLMTemplate(tiny_tokenizer), LONG))

    with ThreadPoolExecutor(8) as pool:
        assert all(examples == answer for examples in pool.map(start, range(16)))
    assert len(list(cache.iterdir())) == 1


def test_a_file_that_changes_while_it_is_read_is_refused_and_not_kept(
    tmp_path: Path, template: CountingTemplate, cache: Path
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)

    def change(_: int) -> None:
        write(path, ALPACA[:2])

    with pytest.raises(DataError, match="changed while it was read"):
        encode_data(path, template, LONG, progress=change)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_says_how_to_choose_another(
    tmp_path: Path, template: CountingTemplate
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")

    with pytest.raises(OutputError, match=r"could not be written: .* set GLMTUNE_CACHE"):
        encode_data(path, template, LONG, cache_dir=tmp_path / "file")


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let the system refuse to write more into a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_leaves_no_files(
    tmp_path: Path, template: CountingTemplate, cache: Path
) -> None:
    path = write(tmp_path / "rows.json", ALPACA * 500)

    with largest_file(10_000), pytest.raises(OutputError, match="Make room, or set GLMTUNE_CACHE"):
        encode_data(path, template, LONG)

    assert list(cache.iterdir()) == []
    assert len(encode_data(path, template, LONG)) == 1500


def test_the_cache_follows_the_environment(
    tmp_path: Path, template: CountingTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)
    monkeypatch.delenv("GLMTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))

    key = encode_data(path, template, LONG).key

    assert (tmp_path / "xdg" / "glmtune" / "data" / key / "about.json").is_file()


def test_progress_is_told(
    tmp_path: Path, template: CountingTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "BATCH_ROWS", 2)
    told: list[int] = []

    encode_data(write(tmp_path / "rows.json", ALPACA), template, LONG, progress=told.append)

    assert told == [2, 3]


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


# --- Held-out rows ------------------------------------------------------------------------


@given(count=st.integers(2, 300), share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_a_split_takes_every_example_once(count: int, share: float, seed: int) -> None:
    train, held_out = split_data(range(count), share, seed)

    assert sorted([*train, *held_out]) == list(range(count))
    assert len(held_out) == max(1, round(share * count))
    again = split_data(range(count), share, seed)
    assert np.array_equal(train, again[0])
    assert np.array_equal(held_out, again[1])


def test_a_split_by_number_and_other_seeds() -> None:
    train, held_out = split_data(range(1000), 100, 1)

    assert (len(train), len(held_out)) == (900, 100)
    assert list(held_out) != list(split_data(range(1000), 100, 2)[1])
    assert len(split_data(range(10), 0.001, 0)[1]) == 1
