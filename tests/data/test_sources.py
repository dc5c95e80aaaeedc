"""Files, folders and hub data sets give the same rows."""

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
from glmtune.data.rows import BadRow
from glmtune.data.sources import find_source, read_rows
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


KINDS = ["json", "jsonl", "csv", "tsv", "parquet"]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str, packing: str) -> None:
    path = write(tmp_path / f"rows.{kind}{packing}", ROWS)

    assert list(read_rows(path)) == ROWS


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


def test_a_number_after_the_path_takes_that_many_rows(tmp_path: Path) -> None:
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


def test_the_error_for_a_folder_without_data_lists_its_content(tmp_path: Path) -> None:
    (tmp_path / "rows.json").mkdir()
    (tmp_path / "rows.json" / "notes.md").write_text("x", encoding="utf-8")

    with pytest.raises(DataError, match=r"no data file; it holds notes\.md"):
        read_rows(tmp_path / "rows.json")


def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"PK")

    with pytest.raises(DataError, match=r"'.xlsx' is not known.*\.json.*\.parquet"):
        read_rows(tmp_path / "rows.xlsx")


@pytest.mark.parametrize("name", ["rows.json.gz", "rows.jsonl.zst", "rows.parquet"])
def test_a_truncated_or_wrong_container_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS * 1000)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=name):
        list(read_rows(path, on_bad=lambda bad: None))

    path.write_bytes(b"this is none of it")
    with pytest.raises(DataError, match=name):
        list(read_rows(path, on_bad=lambda bad: None))


def test_a_split_of_a_plain_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="plain files have no splits"):
        read_rows(write(tmp_path / "rows.json", ROWS), split="train")


def test_modelscope_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)  # as if it were not installed

    with pytest.raises(DataError, match=r"pip install 'glmtune\[modelscope\]'"):
        read_rows("modelscope://someone/rows")


def test_an_unreachable_hub_id_is_reported_and_a_local_path_never_contacts_the_hub(
    tmp_path: Path,
) -> None:
    (tmp_path / "here").mkdir()
    write(tmp_path / "here" / "rows.json", ROWS)
    script = """
import sys
from glmtune.data.rows import BadRow
from glmtune.data.sources import find_source, read_rows
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
    assert "the Hugging Face Hub returned no data set of that name" in done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a" * 300 + ".json", "cannot be read: File name too long"),
        ("x/" * 3000 + "rows.json", "cannot be read: File name too long"),
        ("a\0b.json", r"'a\\x00b.json': a path cannot have a null character"),
        ("~nobody-here/rows.json", "no folder '~nobody-here' either"),
        ("rows.json/inside.json", "no such file, and no folder 'rows.json' either"),
        ("loop.json", "a link to 'loop.json', which does not exist"),
        ("pipe.json", "is a pipe, expected a file: rows are read more than once"),
        ("/dev/zero", "is a device, expected a file"),
        ("folder", r"folder[/\\]gone.json: a link to 'nowhere.json', which does not exist"),
    ],
)
def test_a_path_that_cannot_be_read_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.json", ROWS)
    (tmp_path / "loop.json").symlink_to("loop.json")
    os.mkfifo("pipe.json")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "rows.json", ROWS)
    (tmp_path / "folder" / "gone.json").symlink_to("nowhere.json")

    with pytest.raises(DataError, match=message) as caught:
        read_rows(name)
    assert len(str(caught.value)) < 1000


def test_a_number_after_the_path_may_be_larger_than_any_file(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", ROWS)

    assert list(read_rows(f"{path}#99999999999999999999")) == ROWS
    assert list(read_rows(f"{path}#{'9' * 5000}"[:200])) == ROWS
    with pytest.raises(DataError, match="no such file"):
        read_rows(f"{path}#0")


def test_links_to_folders_are_followed_and_each_folder_read_once(tmp_path: Path) -> None:
    (tmp_path / "data" / "in").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    write(tmp_path / "data" / "in" / "a.json", ROWS[:1])
    write(tmp_path / "far" / "b.json", ROWS[1:])
    (tmp_path / "data" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "in" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "far" / "self").symlink_to(tmp_path / "far")

    assert sorted(map(str, read_rows(tmp_path / "data"))) == sorted(map(str, ROWS))


@pytest.mark.parametrize("closed", ["data/inner", "data/a.json", "data"])
def test_what_cannot_be_opened_in_a_folder_is_never_left_out_silently(
    tmp_path: Path, closed: str
) -> None:
    (tmp_path / "data" / "inner").mkdir(parents=True)
    for name in ("a.json", "b.json", "inner/c.json"):
        write(tmp_path / "data" / name, ROWS)
    (tmp_path / closed).chmod(0)
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)  # nobody: no file is closed to root
        with pytest.raises(DataError, match="ermission denied") as caught:
            read_rows(tmp_path / "data")
    finally:
        if is_root:
            os.seteuid(0)
        (tmp_path / closed).chmod(0o755)
    assert closed in str(caught.value)


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"features": 7}', b"\xff\xfe", b"[" * 9999]
)
def test_a_damaged_file_of_a_saved_data_set_is_reported(
    tmp_path: Path, name: str, content: bytes
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / name).write_bytes(content)

    try:
        rows = list(read_rows(tmp_path / "saved"))
    except DataError as error:
        assert str(error).startswith(str(tmp_path / "saved"))  # noqa: PT017
    else:
        assert rows == ROWS  # some of these leave it whole


def test_saved_data_sets_without_rows_and_with_odd_values_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([]).save_to_disk(tmp_path / "empty")
    datasets.Dataset.from_dict({"q": []}).save_to_disk(tmp_path / "columns")
    table = pa.table(
        {
            "t": pa.array([0, 2**62], pa.int64()).cast(pa.timestamp("us")),
            "b": pa.array([b"x", b"\xff"]),
            "d": pa.array([1, 2], pa.date32()),
        }
    )
    datasets.Dataset(table).save_to_disk(tmp_path / "odd")
    bad: list[BadRow] = []

    for name in ("empty", "columns"):
        with pytest.raises(DataError, match=f"{name}: this data set has no rows"):
            read_rows(tmp_path / name)
    [row] = read_rows(tmp_path / "odd", on_bad=bad.append)
    assert row["b"] == b"x"
    assert [(each.line, "timestamp" in each.reason) for each in bad] == [(2, True)]


def test_a_json_file_with_splits_gives_the_rows_of_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"train": [{"q": 1}, {"q": 2}],\n "test": [{"q": 3}], "dev": []}')

    assert [row["q"] for row in read_rows(path)] == [1, 2]
    assert [row["q"] for row in read_rows(path, split="test")] == [3]
    assert find_source(path).left_out == f"{path}: split train is read; left out: test, dev"
    with pytest.raises(DataError, match="no split 'eval'; it has train, test, dev"):
        read_rows(path, split="eval")


@pytest.mark.parametrize(
    "text",
    [
        '{"train": [1, 2]}',
        '{"train": "x", "test": [{"q": 1}]}',
        '{"train": [{"q": 1}]}\n{"train": [{"q": 2}]}',
        '{"messages": [{"q": 1}]}',
    ],
)
def test_a_row_with_the_name_of_a_split_is_a_row(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)

    rows = list(read_rows(path))
    assert [json.dumps(row) for row in rows] == text.split("\n")
