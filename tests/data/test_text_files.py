"""Encodings other than UTF-8 are recognized."""

from pathlib import Path

import pytest

from glmtune.data.sources import read_rows
from glmtune.errors import DataError


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
