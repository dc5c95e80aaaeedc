import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtune.data import text_files
from glmtune.data.rows import BadRow, RowError
from glmtune.data.sources import read_rows
from glmtune.errors import DataError

ROWS = [
    {"instruction": "你好", "input": "", "output": "你好！"},
    {"instruction": 'two\nlines, and a "quote"', "input": "\t", "output": "是 "},
    {"instruction": "separators \u2028 \x85 inside", "input": "x", "output": "😀"},
]


def write(path: Path, rows: list[dict[str, str]], *, indent: int | None = None) -> Path:
    """Write rows in the way that the name asks for."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    kind = name.rpartition(".")[2]
    data: bytes
    if kind == "json":
        data = json.dumps(rows, ensure_ascii=False, indent=indent).encode()
    elif kind == "jsonl":
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    elif kind in ("csv", "tsv"):
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, ROWS[0], delimiter="," if kind == "csv" else "\t")
        table.writeheader()
        table.writerows(rows)
        data = text.getvalue().encode()
    else:
        sink = pa.BufferOutputStream()
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), sink)
        data = sink.getvalue().to_pybytes()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as packed:
            packed.write(data)
    else:
        path.write_bytes(data)
    return path


def bad_rows(path: Path) -> tuple[list[dict[str, object]], list[BadRow]]:
    """The rows that can be read, and those that cannot."""
    bad: list[BadRow] = []
    return [dict(row) for row in read_rows(path, on_bad=bad.append)], bad


KINDS = ["json", "jsonl", "csv", "tsv", "parquet"]


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str, packing: str) -> None:
    path = write(tmp_path / f"rows.{kind}{packing}", ROWS)

    assert list(read_rows(path)) == ROWS


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries({"instruction": TEXT, "input": TEXT, "output": TEXT}), min_size=1
    ),
    block_bytes=st.integers(1, 64),
)
def test_rows_read_back_equal_whatever_their_text_and_wherever_a_block_ends(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    rows: list[dict[str, str]],
    block_bytes: int,
) -> None:
    # Lone carriage returns end a record in CSV for every reader there is.
    if kind in ("csv", "tsv"):
        rows = [{key: text.replace("\r", "") for key, text in row.items()} for row in rows]
    path = write(tmp_path_factory.mktemp("rows") / f"rows.{kind}", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK_BYTES", block_bytes)

        assert list(read_rows(path)) == rows


def test_every_row_knows_its_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", ROWS, indent=2)
    lines = path.read_text(encoding="utf-8").split("\n")

    places = [(row.file, row.line) for row in read_rows(path)]

    assert places == [(str(path), 2), (str(path), 7), (str(path), 12)]
    assert [lines[line - 1] for _, line in places] == ["  {"] * 3


def test_a_csv_record_over_several_lines_is_named_by_its_first(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('q,a\n"one\ntwo",1\nthree,2\n', encoding="utf-8")

    assert [(row["q"], row.line) for row in read_rows(path)] == [("one\ntwo", 2), ("three", 4)]


def test_a_text_file_gives_a_row_for_every_line_that_is_not_blank(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes("\ufeff一\r\n\r\n  二\n".encode())

    assert [(dict(row), row.line) for row in read_rows(path)] == [
        ({"text": "一"}, 1),
        ({"text": "  二"}, 3),
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"data": [{"q": 1},\n {"q": 2}], "version": [3]}',
        '{"version": {"a": []},\n "data": [\n{"q": 1}, {"q": 2}]}',
        '{\n"q": 1}\n{\n"q": 2\n}',
        '{"q": 1}\n{"q": 2}',
        '{"q": 1}\r\n\r\n{"q": 2}\r\n',
        '\ufeff[{"q": 1}, {"q": 2}]',
        '\n\n [\n{"q": 1}\n,{"q": 2}\n]\n\n',
    ],
)
def test_a_json_file_is_read_as_what_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8", newline="")

    assert list(read_rows(path)) == [{"q": 1}, {"q": 2}]


def test_a_jsonl_file_that_is_an_array_is_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('[\n{"q": 1},\n{"q": 2}\n]', encoding="utf-8")

    assert list(read_rows(path)) == [{"q": 1}, {"q": 2}]


def test_a_number_is_not_cut_at_the_end_of_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[12345, {"q": -1.5e3}]', encoding="utf-8")
    for block_bytes in range(1, 24):
        monkeypatch.setattr(text_files, "BLOCK_BYTES", block_bytes)
        rows, bad = bad_rows(path)
        assert rows == [{"q": -1500.0}]
        assert [row.excerpt for row in bad] == ["12345"]


def test_a_folder_gives_the_rows_of_all_its_files_in_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "data" / "b").mkdir(parents=True)
    write(tmp_path / "data" / "c.jsonl", ROWS[:1])
    write(tmp_path / "data" / "b" / "a.csv.gz", ROWS[1:2])
    write(tmp_path / "data" / "a.parquet", ROWS[2:])
    (tmp_path / "data" / "README.md").write_text("no data", encoding="utf-8")
    (tmp_path / "data" / ".cache.json").write_text("hidden", encoding="utf-8")

    rows = list(read_rows(tmp_path / "data"))

    assert rows == [ROWS[2], ROWS[1], ROWS[0]]
    assert [Path(row.file).name for row in rows] == ["a.parquet", "a.csv.gz", "c.jsonl"]


def test_a_number_behind_the_path_takes_that_many_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", ROWS)

    assert list(read_rows(f"{path}#2")) == ROWS[:2]
    assert list(read_rows(f"{path}#500")) == ROWS


def test_saved_data_sets_are_read_with_their_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    nested = [
        {"messages": [{"role": "user", "content": "hi"}], "tools": [{"name": "f", "a": 1}]},
        {"messages": [{"role": "user", "content": "ho"}], "tools": [{"name": "g", "b": 2}]},
    ]
    data = datasets.Dataset.from_list(nested)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "two")

    # Arrow fills the fields that only other rows have with nulls; they must not come back.
    assert list(read_rows(tmp_path / "one")) == nested
    assert list(read_rows(tmp_path / "two")) == nested
    assert list(read_rows(tmp_path / "two", split="test")) == nested[1:]
    with pytest.raises(DataError, match="no split 'eval'; it has test, train"):
        read_rows(tmp_path / "two", split="eval")
    with pytest.raises(DataError, match="has no splits"):
        read_rows(tmp_path / "one", split="test")


def test_a_million_rows_are_never_held_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    row = json.dumps({"instruction": "问" * 200, "output": "答" * 200}, ensure_ascii=False)
    path.write_text("[" + ",\n".join([row] * 20_000) + "]", encoding="utf-8")
    assert path.stat().st_size > 20 << 20

    tracemalloc.start()
    count = sum(1 for _ in read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert count == 20_000
    assert peak < 16 << 20  # the file decoded and parsed would be more than 32 MiB


def test_a_row_of_one_megabyte_is_read(tmp_path: Path) -> None:
    rows = [{"instruction": "长", "input": "", "output": "很" * 350_000}]
    for kind in KINDS:
        assert list(read_rows(write(tmp_path / f"rows.{kind}", rows))) == rows


# --- What cannot be read ------------------------------------------------------------------


def test_a_missing_file_names_the_one_that_may_be_meant(tmp_path: Path) -> None:
    write(tmp_path / "alpaca.json", ROWS)

    with pytest.raises(DataError, match=r"alpca\.json: no such file\. Did you mean .*alpaca\.json"):
        read_rows(tmp_path / "alpca.json")
    with pytest.raises(DataError, match="no folder"):
        read_rows(tmp_path / "nowhere" / "rows.json")
    (tmp_path / "link.json").symlink_to("gone.json")
    with pytest.raises(DataError, match=r"a link to 'gone\.json', which does not exist"):
        read_rows(tmp_path / "link.json")
    with pytest.raises(DataError, match="the path of a data file is empty"):
        read_rows("")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.parquet.gz"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")

    with pytest.raises(DataError, match=f"{name}: the file is empty"):
        read_rows(tmp_path / name)


def test_a_blank_json_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b" \n\n")

    with pytest.raises(DataError, match="blank"):
        list(read_rows(tmp_path / "rows.json"))


def test_a_folder_without_data_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "rows.json").mkdir()
    (tmp_path / "rows.json" / "notes.md").write_text("x", encoding="utf-8")

    with pytest.raises(DataError, match=r"no data file; it holds notes\.md"):
        read_rows(tmp_path / "rows.json")


def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"PK")

    with pytest.raises(DataError, match=r"'.xlsx' is not known.*\.json.*\.parquet"):
        read_rows(tmp_path / "rows.xlsx")


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9, 0.999])
def test_a_half_written_array_gives_the_rows_before_the_break(tmp_path: Path, cut: float) -> None:
    path = write(tmp_path / "rows.json", ROWS * 50, indent=2)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * cut)])

    rows, bad = bad_rows(path)

    assert rows == (ROWS * 50)[: len(rows)]
    assert len(rows) >= int(150 * cut) - 2
    assert len(bad) == 1
    assert "breaks off here" in bad[0].reason
    assert "rows before" in bad[0].reason
    assert 0 <= whole[: int(len(whole) * cut)].count(b"\n") + 1 - bad[0].line < 6
    with pytest.raises(RowError, match="breaks off"):
        list(read_rows(path))


def test_an_array_broken_off_at_any_byte_never_gives_a_wrong_row(tmp_path: Path) -> None:
    rows = [{"a": 'é\\u00e9"\n', "b": [1.5, True, 2e-7, None]}, {"a": "", "b": [-12]}]
    whole = json.dumps(rows, ensure_ascii=False).encode()
    path = tmp_path / "rows.json"
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        got, bad = bad_rows(path)
        assert got == rows[: len(got)]
        assert len(bad) == 1, size
        assert "breaks off" in bad[0].reason, size


def test_a_broken_array_names_the_line_and_the_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n{"q": 1},\n{"q": oops},\n' + '{"q": 3},\n' * 99 + "{}]", encoding="utf-8")

    with pytest.raises(DataError, match=r"rows\.json:3: not JSON: Expecting value, near .*oops"):
        bad_rows(path)


def test_a_line_break_inside_a_text_of_an_array_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"q": 1},\n{"q": "a\nb"}]', encoding="utf-8")

    with pytest.raises(DataError, match=r"rows\.json:2: not JSON: a line break or tab inside"):
        bad_rows(path)


def test_text_behind_an_array_is_not_silently_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"q": 1}]\n[{"q": 2}]', encoding="utf-8")

    with pytest.raises(DataError, match=r"rows\.json:2: .*more after the end of the array"):
        bad_rows(path)


def test_bad_lines_of_jsonl_are_reported_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'{"q": 1}\n{"q": \n[1]\n{"q": {"x": [0, NaN]}}\n{"q": "\xff"}\n\0\0\n{"q": 1e999}\n'
        b'{"q": 2, "q": 3}\n\n{"q": "half'
    )

    rows, bad = bad_rows(path)

    assert rows == [{"q": 1}, {"q": 3}]
    assert [(row.line, row.field) for row in bad] == [
        (2, ""), (3, ""), (4, "q.x[1]"), (5, ""), (6, ""), (7, "q"), (10, "")
    ]  # fmt: skip
    reasons = [row.reason for row in bad]
    assert "Expecting value at character 8" in reasons[0]
    assert "a list stands here, expected an object" in reasons[1]
    assert "NaN is not JSON" in reasons[2]
    offset = path.read_bytes().index(0xFF)
    assert f"byte {offset} (0xff) is not UTF-8" in reasons[3]
    assert "null byte" in reasons[4]
    assert "too large" in reasons[5]
    assert "may break off here" in reasons[6]
    with pytest.raises(RowError, match=r"rows\.jsonl:2: not JSON"):
        list(read_rows(path))


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_nan_in_an_array_is_refused_with_its_field_and_the_next_row_read(
    tmp_path: Path, constant: str
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(f'[{{"q": 1}},\n{{"a": "b", "q": [{constant}]}},\n{{"q": 2}}]')

    rows, bad = bad_rows(path)

    assert rows == [{"q": 1}, {"q": 2}]
    assert [(row.line, row.field) for row in bad] == [(2, "q[0]")]
    assert bad[0].reason.startswith(f"{constant} is not JSON")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.txt"])
def test_gbk_text_is_recognised(tmp_path: Path, name: str) -> None:
    head = {"rows.json": "[\n", "rows.jsonl": '{"q": 1}\n', "rows.csv": "q\n", "rows.txt": "q\n"}
    (tmp_path / name).write_bytes((head[name] + '{"q": "你好，世界"}').encode("gbk"))

    match = rf"{name}:2: .*byte .*looks like GBK.*iconv -f GBK -t UTF-8"
    with pytest.raises(DataError, match=match):
        list(read_rows(tmp_path / name))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.txt"])
def test_utf16_text_is_recognised(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes('[{"q": "a"}]'.encode(encoding))

    with pytest.raises(DataError, match=r"looks like UTF-16.*iconv"):
        list(read_rows(tmp_path / name))


def test_a_damaged_utf8_file_is_not_taken_for_gbk(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes('[{"q": "你好"},\n{"q": "世'.encode() + b"\xff" + '界"}]'.encode())

    with pytest.raises(DataError, match=r"rows\.json:2: byte 28 \(0xff\) is not UTF-8") as caught:
        list(read_rows(path))
    assert "GBK" not in str(caught.value)


def test_deep_nesting_and_huge_integers_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": ' + "[" * 200_000 + "\n" + '{"q": ' + "1" * 5000 + "}\n", "utf-8")

    rows, bad = bad_rows(path)

    assert rows == []
    assert "nested too deeply" in bad[0].reason
    assert "digits" in bad[1].reason


def test_bad_records_of_csv_are_reported_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b'q,a\n1,2\n3\n4,5,6\n7,\xff\n"8" x,9\n10,"11\n12"\n\n13,14\r\n15,"broken\noff\n'
    )

    rows, bad = bad_rows(path)

    assert [row["q"] for row in rows] == ["1", "10", "13"]
    assert rows[1]["a"] == "11\n12"
    assert [row.line for row in bad] == [3, 4, 5, 6, 11]
    assert "1 fields, but the header has 2: q, a" in bad[0].reason
    assert "not UTF-8" in bad[2].reason
    assert "quote" in bad[3].reason


def test_a_csv_with_another_separator_or_a_column_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "semi.csv").write_text("q;a\n1;2\n", encoding="utf-8")
    (tmp_path / "twice.csv").write_text("q,q\n1,2\n", encoding="utf-8")
    (tmp_path / "mac.csv").write_bytes(b"q,a\r1,2\r")

    with pytest.raises(DataError, match="seems to be separated by ';', expected ','"):
        list(read_rows(tmp_path / "semi.csv"))
    with pytest.raises(DataError, match="names a column twice: q"):
        list(read_rows(tmp_path / "twice.csv"))
    with pytest.raises(DataError, match=r"lines end in .r alone"):
        list(read_rows(tmp_path / "mac.csv"))


@pytest.mark.parametrize("name", ["rows.json.gz", "rows.jsonl.zst", "rows.parquet"])
def test_a_truncated_or_wrong_container_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS * 1000)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=name):
        bad_rows(path)

    path.write_bytes(b"this is none of it")
    with pytest.raises(DataError, match=name):
        bad_rows(path)


def test_a_web_page_or_a_git_lfs_pointer_is_named_for_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("<!DOCTYPE html><html>", encoding="utf-8")
    with pytest.raises(DataError, match="not JSON: it begins with '<!DOCTYPE"):
        list(read_rows(path))

    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", encoding="utf-8")
    with pytest.raises(DataError, match="git lfs pull"):
        list(read_rows(path))


def test_a_split_of_a_plain_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="plain files have no splits"):
        read_rows(write(tmp_path / "rows.json", ROWS), split="train")


def test_modelscope_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)  # as if it were not installed

    with pytest.raises(DataError, match=r"pip install 'glmtune\[modelscope\]'"):
        read_rows("modelscope://someone/rows")


def test_a_hub_id_that_cannot_be_reached_says_so_and_a_local_path_never_asks(
    tmp_path: Path,
) -> None:
    (tmp_path / "here").mkdir()
    write(tmp_path / "here" / "rows.json", ROWS)
    script = """
import sys
from glmtune.data.sources import read_rows
from glmtune.errors import DataError
assert len(list(read_rows("here/rows.json"))) == 3
try:
    read_rows("here/raws.json")
except DataError as error:
    assert "no such file" in str(error), error
assert "datasets" not in sys.modules
try:
    read_rows("someone/no-such-rows")
except DataError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert "someone/no-such-rows: there is no such file or folder" in done.stdout
    assert "the Hugging Face Hub did not give a data set of that name" in done.stdout
