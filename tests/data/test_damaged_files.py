"""Whatever bytes a data file has, its rows, bad rows or one sentence come out, in bounded time.

`python -m tests.data.test_damaged_files 20000` tries that many.
"""

import gzip
import json
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet
import pytest

from glmtune.data.rows import BadRow
from glmtune.data.sources import read_rows
from glmtune.errors import DataError

MOST_SECONDS = 10.0  # for one file; the usual one takes milliseconds
ROWS = [
    {"instruction": "你好，世界", "input": "", "output": "Hello.\n", "n": 1, "s": [0.5, None]},
    {"instruction": '"quoted", and; more', "input": "\t", "output": "😀", "n": -2, "s": []},
    {"instruction": "三", "input": "x", "output": "四", "n": 10**15, "s": [1e-7]},
]
PIECES = (
    b"[", b"]", b"{", b"}", b'"', b",", b":", b"\n", b"\r", b"\0", b"\\", b"\\u", b"\\ud800",
    b"NaN", b"-Infinity", b"1e999", b"-", b"0x", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"[" * 5000,
    b"9" * 6000, b'{"data":' * 300, b'"data":[{}],', b'"train":[', b'"train":{', b'"n":1,"n":2,',
    "联通".encode("gbk"), "你好".encode("utf-16"), b";", b"\t", b'""', b"sep=;\n", b"\x1f\x8b",
    b"PAR1", b"---\n", b"null", b"\xe2\x80\xa8", b" " * 3000,
)  # fmt: skip


def whole_files() -> dict[str, bytes]:
    """Undamaged files of each kind: name -> bytes."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), sink)
    table = "instruction,input,output\n" + "\n".join('"a ""b""",c,"d\ne"' for _ in range(3))
    files = {
        "array.json": json.dumps(ROWS, ensure_ascii=False, indent=1).encode(),
        "container.json": json.dumps({"data": ROWS, "version": 1}).encode(),
        "splits.json": json.dumps({"train": ROWS, "test": ROWS[:1]}).encode(),
        "objects.json": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
        "lines.jsonl": lines.encode(),
        "gbk.jsonl": lines.replace("😀", "").encode("gbk"),
        "table.csv": table.encode(),
        "table.tsv": table.replace(",", "\t").encode("utf-8-sig"),
        "text.txt": "一\n\n二三\n".encode(),
        "rows.parquet": sink.getvalue().to_pybytes(),
    }
    return files | {"lines.jsonl.gz": gzip.compress(files["lines.jsonl"])}


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage some bytes: change, insert, remove, repeat, cut off."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        at = rng.randrange(len(damaged) + 1)
        match rng.randrange(6):
            case 0 if at < len(damaged):
                damaged[at] ^= 1 << rng.randrange(8)
            case 1:
                damaged[at:at] = rng.choice(PIECES)
            case 2:
                del damaged[at : at + rng.choice((1, 3, 40))]
            case 3:
                damaged[at:at] = damaged[at : at + rng.choice((2, 60))] * rng.choice((1, 3))
            case 4 if rng.random() < 0.3:
                del damaged[at:]
            case 5 if at < len(damaged):
                damaged[at] = rng.choice((0, 9, 10, 34, 44, 91, 92, 123, 127, 128, 255))
    return bytes(damaged)


def try_file(folder: Path, name: str, data: bytes, rng: random.Random) -> float:
    """Read a file in all ways; return the seconds that took."""
    path = folder / name
    path.write_bytes(data)
    start = time.perf_counter()
    bad: list[BadRow] = []
    for source, split in ((path, None), (f"{path}#2", None), (folder, None), (path, "test")):
        try:
            for row in read_rows(source, split=split, on_bad=bad.append):
                assert row.line > 0
        except DataError as error:
            assert str(error).strip()  # noqa: PT017
    for each in bad:
        str(each).encode("utf-8", "surrogateescape")
    return time.perf_counter() - start


def fuzz(count: int, seed: int, folder: Path) -> float:
    """Try some damaged files; return the longest time of one."""
    rng = random.Random(seed)
    files = whole_files()
    slowest = 0.0
    for _ in range(count):
        name = rng.choice(list(files))
        data = mutate(files[name], rng)
        ending = name
        if rng.random() < 0.1:
            ending = rng.choice(list(files))
        slowest = max(slowest, try_file(folder, ending, data, rng))
        (folder / ending).unlink()
    return slowest


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_gives_rows_bad_rows_or_one_sentence(tmp_path: Path, seed: int) -> None:
    assert fuzz(150, seed, tmp_path) < MOST_SECONDS


def test_a_damaged_file_of_a_saved_data_set_never_ends_the_process(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    files = sorted((tmp_path / "saved").iterdir())
    assert [file.suffix for file in files] == [".arrow", ".json", ".json"]
    whole = [file.read_bytes() for file in files]
    rng = random.Random(5)
    read = refused = 0
    for _ in range(120):
        index = rng.choice((0, 0, 1, 2))
        files[index].write_bytes(mutate(whole[index], rng))
        try:
            read += len(list(read_rows(tmp_path / "saved", on_bad=lambda bad: None))) >= 0
        except DataError:
            refused += 1
        files[index].write_bytes(whole[index])

    assert read > 5
    assert refused > 5


if __name__ == "__main__":
    with TemporaryDirectory() as place:
        print(f"slowest: {fuzz(int(sys.argv[1]), int(sys.argv[-1]), Path(place)):.2f} s")
