"""JSON and JSON Lines: whatever their layout, and wherever they are damaged."""

import json
from pathlib import Path

import pytest

from glmtune.data import text_files
from glmtune.data.rows import BadRow, RowError
from glmtune.data.sources import find_source, read_rows
from glmtune.errors import DataError

ROWS = [
    {"instruction": "你好", "input": "", "output": "你好！"},
    {"instruction": 'two\nlines, and a "quote"', "input": "\t", "output": "是 "},
    {"instruction": "separators \u2028 \x85 inside", "input": "x", "output": "😀"},
]


def bad_rows(path: Path) -> tuple[list[dict[str, object]], list[BadRow]]:
    """The rows that can be read, and those that cannot."""
    bad: list[BadRow] = []
    return [dict(row) for row in read_rows(path, on_bad=bad.append)], bad


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


def test_a_blank_json_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b" \n\n")

    with pytest.raises(DataError, match="blank"):
        list(read_rows(tmp_path / "rows.json"))


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9, 0.999])
def test_a_half_written_array_gives_the_rows_before_the_break(tmp_path: Path, cut: float) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS * 50, ensure_ascii=False, indent=2), encoding="utf-8")
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


def test_text_after_an_array_is_not_silently_left_out(tmp_path: Path) -> None:
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

    assert rows == [{"q": 1}]
    assert [(row.line, row.field) for row in bad] == [
        (2, ""), (3, ""), (4, "q.x[1]"), (5, ""), (6, ""), (7, "q"), (8, "q"), (10, "")
    ]  # fmt: skip
    reasons = [row.reason for row in bad]
    assert "Expecting value at character 8" in reasons[0]
    assert "got a value of type list, expected an object" in reasons[1]
    assert "NaN is not JSON" in reasons[2]
    offset = path.read_bytes().index(0xFF)
    assert f"byte {offset} (0xff) is not UTF-8" in reasons[3]
    assert "null byte" in reasons[4]
    assert "too large" in reasons[5]
    assert "the key 'q' is given twice, with different values" in reasons[6]
    assert "may break off here" in reasons[7]
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


def test_deep_nesting_and_huge_integers_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": ' + "[" * 200_000 + "\n" + '{"q": ' + "1" * 5000 + "}\n", "utf-8")

    rows, bad = bad_rows(path)

    assert rows == []
    assert "nested too deeply" in bad[0].reason
    assert "digits" in bad[1].reason


def test_a_web_page_or_a_git_lfs_pointer_is_named_for_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("<!DOCTYPE html><html>", encoding="utf-8")
    with pytest.raises(DataError, match="not JSON: it begins with '<!DOCTYPE"):
        list(read_rows(path))

    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", encoding="utf-8")
    with pytest.raises(DataError, match="git lfs pull"):
        list(read_rows(path))


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}\n{"a": 2, "data": []}\n{"a": 3}',  # lines
        '{\n"a": 1}\n{\n"a": 2,\n"data": []}\n{"a": 3}',  # objects
        '{"a": 1, "data": [{"x": 1}]}\n{"a": 2}\n{"a": 3}',
        '{\n"a": 1, "data": [{"x": 1}]}\n{"a": 2}\n{"a": 3}',
        '[{"a": 1, "data": [{"x": 1}]}, {"a": 2, "data": []}, {"a": 3, "data": [1]}]',
        '{"a": 1, "data": ["q", "a"]}\n{"a": 2, "data": ["q", "a"]}\n{"a": 3}',
    ],
)
def test_a_list_under_data_inside_a_row_does_not_hide_the_row(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")

    assert [row["a"] for row in read_rows(path)] == [1, 2, 3]


def test_one_row_alone_in_its_file_is_a_row_though_it_has_a_list_under_data(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for data in ('["q", "a"]', "[1]", "[]", "7"):
        path.write_text(f'{{"a": 1,\n"data": {data}}}', encoding="utf-8")

        assert [row["a"] for row in read_rows(path)] == [1]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("text", ['["q", "a"]\n["q2", "a2"]', '[["q", "a"],\n["q2", "a2"]]'])
def test_a_row_that_is_a_list_of_texts_has_the_field_data(
    tmp_path: Path, name: str, text: str
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")

    rows = list(read_rows(path))

    assert rows == [{"data": ["q", "a"]}, {"data": ["q2", "a2"]}]
    assert [row.line for row in rows] == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        '[{"q": 0}, {"q": 1,\n"q": 2}, {"q": 3}]',
        '{\n"q": 0}\n{"q": 1, "q": 2}\n{"q": 3}',
        '{"q": 0}\n{"x": {"q": 1, "q": "1"}}\n{"q": 3}',
        '{"data": [{"q": 0}, {"q": 1, "q": true}, {"q": 3}]}',
    ],
)
def test_a_key_given_twice_is_reported_with_its_row(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")

    rows, bad = bad_rows(path)

    assert rows == [{"q": 0}, {"q": 3}]
    assert [row.field for row in bad] == ["q"]
    assert "the key 'q' is given twice, with different values. Keep one." in bad[0].reason


def test_a_key_given_twice_with_one_value_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for text in ('{"q": [1], "q": [1]}', '{\n"q": [1], "q": [1]}', '[{"q": [1], "q": [1]}]'):
        path.write_text(text, encoding="utf-8")

        assert list(read_rows(path)) == [{"q": [1]}]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_nesting_that_other_libraries_cannot_walk_is_a_bad_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for depth, has_nan in ((199, False), (500, False), (700, True), (50_000, True)):
        inner = "NaN" if has_nan else "1"
        deep = f'{{"q": {"[" * depth}{inner}{"]" * depth}}}'
        path.write_text(f'{{"a": 1}}\n{deep}\n{{"a": 2}}\n', encoding="utf-8")
        rows, bad = bad_rows(path)
        assert [row.get("a") for row in rows] == ([1, None, 2] if depth == 199 else [1, 2]), depth
        assert [row.line for row in bad] == ([] if depth == 199 else [2])
        path.write_text(f"[{deep}]", encoding="utf-8")
        if depth > 1000:  # the end of such a row is not found
            with pytest.raises(DataError, match="nested too deeply"):
                bad_rows(path)
        else:
            rows, bad = bad_rows(path)
            assert (len(rows), len(bad)) == ((1, 0) if depth == 199 else (0, 1))


def test_the_shared_file_with_a_list_under_data_has_three_rows(shared: Path) -> None:
    rows, bad = bad_rows(shared / "cases" / "34_datacol2.json")

    assert [row["instruction"] for row in rows] == ["一", "三", "五"]
    assert bad == []


def test_rows_beside_those_under_data_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"data": [{"q": 1}], "more": [{"q": 2}], "ids": [3], "by": {}}')

    assert list(read_rows(path)) == [{"q": 1}]
    assert find_source(path).left_out == f"{path}: the rows under 'data' are read; left out: more"
    assert find_source(tmp_path).left_out.endswith(find_source(path).left_out)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ('{"q": 1},\n{"q": 2}\n', "Take the comma off"),
        ('{\n"q": 1\n}\n', "name the file .json"),
        ("{'q': 1}\n", "quotes of Python"),
        ('{"q": 1\n', "Repair the line"),
        ('{"q": 1', "may break off here"),
    ],
)
def test_a_line_that_is_not_json_says_what_was_written_instead(
    tmp_path: Path, text: str, remedy: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(text)

    assert remedy in bad_rows(tmp_path / "rows.jsonl")[1][0].reason


def test_the_remedies_for_lines_of_json_work(tmp_path: Path) -> None:
    (tmp_path / "several.json").write_text('{\n"q": 1\n}\n{\n"q": 2\n}\n')
    (tmp_path / "comma.jsonl").write_text('{"q": 1},\n{"q": 2}\n'.replace("},", "}"))

    for name in ("several.json", "comma.jsonl"):
        assert list(read_rows(tmp_path / name)) == [{"q": 1}, {"q": 2}]
