"""CSV, TSV and text files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

import glmtune
from glmtune.data.rows import BadRow
from glmtune.data.sources import read_rows
from glmtune.errors import DataError


def bad_rows(path: Path) -> tuple[list[dict[str, object]], list[BadRow]]:
    """The rows that can be read, and those that cannot."""
    bad: list[BadRow] = []
    return [dict(row) for row in read_rows(path, on_bad=bad.append)], bad


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


def test_empty_columns_that_excel_adds_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbfq,a,,\r\n"1","x\r\ny",,\r\n2,y,\r\n3,z\r\n4,w,,,,\r\n')

    assert list(read_rows(path)) == [
        {"q": "1", "a": "x\r\ny"},
        {"q": "2", "a": "y"},
        {"q": "3", "a": "z"},
        {"q": "4", "a": "w"},
    ]


def test_a_value_in_a_column_without_a_name_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("q,a,,\n1,2,,\n3,4,,kept?\n5\n6,7,,,8\n", encoding="utf-8")

    rows, bad = bad_rows(path)

    assert rows == [{"q": "1", "a": "2"}]
    assert [row.line for row in bad] == [3, 4, 5]
    assert "'kept?' is in column 4, which has no name in the header" in bad[0].reason
    assert "1 fields, but the header has 2: q, a" in bad[1].reason
    assert "5 fields, but the header has 2" in bad[2].reason


def test_the_row_numbers_that_pandas_adds_are_a_column_without_a_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(",q,a\n0,1,2\n1,3,4\n", encoding="utf-8")

    assert list(read_rows(path)) == [{"": "0", "q": "1", "a": "2"}, {"": "1", "q": "3", "a": "4"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a b.csv", "q;a\n1;'2'\n\"3;\n\";4\n"),
        ("rows.csv", "\ufeffq\ta;\n1\t'2'\n\"3;\n\"\t4\n"),
        ("rows.tsv", "q,a\n1,'2'\n\"3;\n\",4\n"),
        ("rows.csv", "sep=;\nq;a\n1;'2'\n\"3;\n\";4\n"),
        ("rows.csv", "sep=,\nq,a\n1,'2'\n\"3;\n\",4\n"),
    ],
)
def test_the_printed_command_writes_a_table_with_the_right_separator(
    tmp_path: Path, name: str, text: str
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="the header") as caught:
        list(read_rows(path))
    command = re.search("`(.*)`", str(caught.value))
    assert command is not None

    subprocess.run(command[1], shell=True, check=True)

    rows = list(read_rows(path.with_name(f"{path.stem}.fixed{path.suffix}")))
    assert [list(row.values()) for row in rows] == [["1", "'2'"], ["3;\n", "4"]]


def test_the_shared_table_of_excel_is_read(shared: Path) -> None:
    [row] = read_rows(shared / "cases" / "05_excel.csv")

    assert row == {"instruction": '他说"好"', "input": "第一行\r\n第二行", "output": "a,b;c"}


def test_a_value_of_parquet_that_cannot_be_read_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")
    )
    times = pa.array([0, 1, 2**62], pa.int64()).cast(pa.timestamp("us"))
    pyarrow.parquet.write_table(pa.table({"q": texts, "t": times}), path)

    rows, bad = bad_rows(path)

    assert [row["q"] for row in rows] == ["a"]
    assert [(row.line, row.check) for row in bad] == [(2, "encoding"), (3, "encoding")]
    assert "column 'q' is not UTF-8" in bad[0].reason
    assert "column 't' has a value of type timestamp" in bad[1].reason


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["q", "q"])
    pyarrow.parquet.write_table(table, path)

    with pytest.raises(DataError, match="has a column twice: q"):
        list(read_rows(path))


def test_a_time_with_nanoseconds_is_read_with_or_without_pandas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.parquet"
    times = pa.array([0, 1], pa.int64()).cast(pa.timestamp("ns"))
    pyarrow.parquet.write_table(pa.table({"q": ["a", "b"], "t": times}), path)
    (tmp_path / "pandas").mkdir()
    (tmp_path / "pandas" / "__init__.py").write_text("raise ImportError('not installed')")
    script = (
        "import sys\nfrom glmtune.data.sources import read_rows\n"
        "print([str(row['t']) for row in read_rows(sys.argv[1])])"
    )
    expected = "['1970-01-01 00:00:00', '1970-01-01 00:00:00.000000001']"

    assert str([str(row["t"]) for row in read_rows(path)]) == expected
    paths = [str(tmp_path), str(Path(glmtune.__file__).parents[1])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    command = [sys.executable, "-c", script, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == expected


def test_a_comma_in_a_text_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("q,a\none,1\ntwo, 2, 3\n")

    rows, bad = bad_rows(path)

    assert rows == [{"q": "one", "a": "1"}]
    assert [each.line for each in bad] == [3]
    assert "A text with a separator in it needs quotes" in bad[0].reason
