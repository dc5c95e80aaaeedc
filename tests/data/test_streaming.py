"""Streamed examples: the same as encoded ones, in a windowed order that resumes exactly."""

from __future__ import annotations

import json
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from tests.data.encoding import CountingTemplate

from glmtune.data import streaming
from glmtune.data.batches import BatchPlan
from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.data.hubs import find_on_hub
from glmtune.data.rows import RowError
from glmtune.data.stream_plan import StreamPlan
from glmtune.data.streaming import StreamCursor, StreamedData
from glmtune.errors import DataError

OPTIONS = EncodeOptions(max_length=60)


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SEGMENT", 4)


def rows_of(name: str, number: int) -> list[dict[str, Any]]:
    return [{"instruction": f"{name}{n}", "output": "好" * (1 + n % 3)} for n in range(number)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def stream(template: CountingTemplate, *sources: str, **values: Any) -> StreamedData:
    options = values.pop("options", OPTIONS)
    return StreamedData(list(sources), template, options, seed=1, **values)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv"])
def test_a_stream_has_the_examples_of_encoded_data_and_begins_again(
    tmp_path: Path, template: CountingTemplate, kind: str
) -> None:
    rows, path = rows_of("问", 10), tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "csv":
        lines = [f"{row['instruction']},{row['output']}" for row in rows]
        path.write_text("\n".join(["instruction,output", *lines]), encoding="utf-8")
    else:
        write(path, rows)

    data, encoded = stream(template, str(path)), encode_data(path, template, OPTIONS)

    assert [data[index] for index in range(4)] == [encoded[index] for index in range(4)]
    for index in range(4, 25):
        assert data[index] == encoded[index % 10]
        assert data.origin(index) == encoded.origin(index % 10)
        assert data.lengths[index] == encoded.lengths[index % 10]
        assert data.learned_lengths[index] == encoded.learned_lengths[index % 10]
    assert data.head == [0, 1, 2, 3]
    assert data[0] == encoded[0]  # the head stays


def test_a_cursor_leads_to_the_same_examples_without_encoding_those_before(
    tmp_path: Path, template: CountingTemplate
) -> None:
    long = {"instruction": "长" * 99, "output": "好"}
    rows = [*rows_of("问", 7), long, *rows_of("答", 6)]
    path = write(tmp_path / "rows.jsonl", rows)
    whole = stream(template, path)
    expected = [whole[index] for index in range(22)]
    cursor = whole.cursor_before(19)
    assert (cursor.segment, cursor.passes, cursor.rows) == (4, (1,), (3,))
    [report] = [whole.report]

    again = stream(template, path)
    before = template.num_encoded
    again.seek(cursor)

    assert [again[index] for index in range(16, 22)] == expected[16:]
    assert template.num_encoded - before == 9  # two segments, and the row that is too long
    assert again.report == report
    assert report.num_overlong == 2  # one in each pass


def test_sources_with_weights_are_drawn_in_proportion_and_a_cursor_repeats_it(
    tmp_path: Path, template: CountingTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SEGMENT", 200)
    paths = [write(tmp_path / f"{name}.jsonl", rows_of(name, 30)) for name in "ab"]
    data = stream(template, *paths, weights=[3, 1])

    names = [Path(data.origin(index).partition(":")[0]).stem for index in range(600)]

    assert 0.68 < Counter(names)["a"] / 600 < 0.82  # of 3 in 4
    again = stream(template, *paths, weights=[3, 1])
    again.seek(data.cursor_before(450))
    assert [again.origin(n) for n in range(400, 600)] == [data.origin(n) for n in range(400, 600)]


def test_each_window_is_shuffled_by_the_seed_and_has_every_example_once() -> None:
    plan = StreamPlan.of(BatchPlan([0], 3, 100, seed=5), buffer=10, num_steps=20)

    places = [row for step in range(20) for row in plan.step_rows(step)]

    for window in range(6):
        inside = places[10 * window : 10 * window + 10]
        assert sorted(inside) == list(range(10 * window, 10 * window + 10))
        assert inside != sorted(inside)
    assert [plan.oldest(step) for step in (0, 3, 4, 7)] == [0, 0, 10, 20]
    assert all(min(plan.step_rows(step)) >= plan.oldest(step) for step in range(20))
    assert plan.steps_per_epoch == 20


def test_only_the_last_segments_are_kept(tmp_path: Path, template: CountingTemplate) -> None:
    data = stream(template, write(tmp_path / "rows.jsonl", rows_of("问", 40)))
    data.keep(8)

    assert data.lengths[39]
    assert data[32]
    with pytest.raises(KeyError):
        data[8]
    with pytest.raises(AssertionError, match="a stream has no end"):
        list(data.lengths)


def test_bad_rows_end_a_run_with_their_place_or_are_counted(
    tmp_path: Path, template: CountingTemplate, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, Any]] = [*rows_of("问", 6), {"instruction": 3, "output": "好"}]
    path = write(tmp_path / "rows.jsonl", rows)

    with pytest.raises(RowError, match=r"rows\.jsonl:7: field 'instruction'"):
        stream(template, path)[7]
    skipping = stream(template, path, options=EncodeOptions(60, bad_rows="skip"))
    assert skipping.origin(6).endswith("rows.jsonl:1")
    assert skipping.report.num_bad_rows == 1
    assert "left out: " in caplog.text


def test_a_stream_without_an_example_is_refused(tmp_path: Path, template: CountingTemplate) -> None:
    path = write(tmp_path / "rows.jsonl", [{"instruction": "长" * 99, "output": "好"}] * 3)

    with pytest.raises(DataError, match=r"none of 3 rows gives an example .* longer than 60"):
        stream(template, path)


def test_a_source_that_has_lost_rows_is_refused(tmp_path: Path, template: CountingTemplate) -> None:
    data = stream(template, write(tmp_path / "rows.jsonl", rows_of("问", 5)))

    with pytest.raises(DataError, match="has 5 rows, and a checkpoint was written after 9"):
        data.seek(StreamCursor(2, (9,), (0,)))
    with pytest.raises(DataError, match="has 1 streams, and the checkpoint was written with 2"):
        data.seek(StreamCursor(2, (1, 1), (0, 0)))


def test_the_identity_follows_the_first_rows_and_the_size(
    tmp_path: Path, template: CountingTemplate
) -> None:
    path, other = (write(tmp_path / f"{name}.jsonl", rows_of("问", 9)) for name in "ab")
    first = stream(template, path)

    assert stream(template, other).content_fingerprint == first.content_fingerprint
    assert stream(template, other).fingerprint != first.fingerprint
    write(tmp_path / "b.jsonl", rows_of("问", 10))
    assert stream(template, other).content_fingerprint != first.content_fingerprint


def test_a_data_set_of_a_hub_is_read_without_a_copy(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write(tmp_path / "train.jsonl", rows_of("问", 9))  # a folder is opened in the same way

    found = find_on_hub(str(tmp_path), None, None, streaming=True)

    assert found.files == ()
    assert [dict(row) for row in found.read(lambda bad: None)] == rows_of("问", 9)


@pytest.mark.slow
def test_memory_stays_flat_over_200_megabytes(
    tmp_path: Path, template: CountingTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SEGMENT", 1_000)
    filler = "x" * 10_000  # of a key that is not learned
    with (tmp_path / "rows.jsonl").open("w") as file:
        for row in rows_of("问", 20_000):
            file.write(json.dumps({**row, "source": filler}) + "\n")
    data = stream(template, str(tmp_path / "rows.jsonl"))
    data.keep(2_000)
    assert data.lengths[2_999]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert data.lengths[20_999]

    assert (tmp_path / "rows.jsonl").stat().st_size > 200_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 << 10  # KiB
