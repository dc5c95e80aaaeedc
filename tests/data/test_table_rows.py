"""CSV, TSV and text files."""

from pathlib import Path

import pytest

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
