"""Encodings other than UTF-8 are recognized, and the printed command converts them."""

import gzip
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from glmtune.data.encodings import guess_encoding
from glmtune.data.rows import BadRow
from glmtune.data.sources import read_rows
from glmtune.errors import DataError

SIMPLIFIED = "今天的天气很好，我们去公园散步吧。镕"
TRADITIONAL = "今天的天氣很好，我們去公園散步吧。"


def refused(path: str | Path) -> str:
    """The message for a file that cannot be read."""
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    return str(caught.value)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.txt"])
def test_gbk_text_is_recognised(tmp_path: Path, name: str) -> None:
    head = {"rows.json": "[\n", "rows.jsonl": '{"q": 1}\n', "rows.csv": "q\n", "rows.txt": "q\n"}
    (tmp_path / name).write_bytes((head[name] + '{"q": "你好，世界"}').encode("gbk"))

    match = rf"{name}:2: .*byte .*looks like GB18030.*iconv -f GB18030 -t UTF-8"
    with pytest.raises(DataError, match=match):
        list(read_rows(tmp_path / name))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.txt"])
def test_utf16_text_is_recognised(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes('[{"q": "a"}]'.encode(encoding))

    with pytest.raises(DataError, match=rf"looks like {encoding[:6].upper()}.*iconv"):
        list(read_rows(tmp_path / name))


def test_a_damaged_utf8_file_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes('[{"q": "你好"},\n{"q": "世'.encode() + b"\xff" + '界"}]'.encode())

    with pytest.raises(DataError, match=r"rows\.json:2: byte 28 \(0xff\) is not UTF-8") as caught:
        list(read_rows(path))
    assert "looks like" not in str(caught.value)

    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"q": "你好，世界，今天"}\n'.encode() + '{"q": "好"}\n'.encode("gbk"))
    assert "looks like" not in refused(path)


@pytest.mark.parametrize(
    ("text", "codec", "name"),
    [
        (SIMPLIFIED, "gbk", "GB18030"),
        ("问：㐂？答：龘靐。这是一个例子", "gb18030", "GB18030"),
        (TRADITIONAL, "big5", "BIG5"),
        ("你好", "big5", "BIG5"),
        ("안녕하세요. 서울은 대한민국의 수도입니다.", "euc-kr", "EUC-KR"),
        ("안녕하세요. 햏햏 뷁, 오늘 날씨가", "cp949", "CP949"),
        ("今日はとても良い天気です。カタカナも", "euc-jp", "EUC-JP"),
        ("爱不爱，宝宝。不爱", "gbk", "GB18030"),  # in the place of few syllables
        ("Un café très cher, à côté de l'école", "latin-1", "WINDOWS-1252"),
        ("He said “no” – and that’s it, née Müller", "cp1252", "WINDOWS-1252"),
    ],
)
def test_the_encoding_is_told_by_the_characters(text: str, codec: str, name: str) -> None:
    assert guess_encoding(text.encode(codec)) == name
    assert guess_encoding(b'{"q": "' + text.encode(codec) * 3000 + b'"}') == name


def test_an_encoding_that_is_not_recognized_gets_no_command(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes('[{"q": "今日はとても良い天気です"}]'.encode("shift_jis"))

    message = refused(path)

    assert "was not recognized. Open it in the program that wrote it" in message
    assert "iconv" not in message


def test_bytes_of_no_text_have_no_encoding() -> None:
    assert guess_encoding(bytes(range(128, 256)) * 9) == ""
    assert guess_encoding(b'{"q": "\xff"}') == ""
    assert guess_encoding("今天的天气".encode() * 9 + b"\xff\xfe") == ""


@pytest.mark.skipif(shutil.which("iconv") is None, reason="iconv is not installed")
@pytest.mark.parametrize("place", ["rows.json", "a b/它's $x.jsonl", "-rows.csv", "rows.json.gz"])
@pytest.mark.parametrize("codec", ["gb18030", "big5", "utf-16", "utf-16-be", "utf-32", "latin-1"])
def test_the_command_that_is_printed_converts_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, codec: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(place).parent.mkdir(exist_ok=True)
    text = {"gb18030": SIMPLIFIED + "㐂", "latin-1": "un café très cher"}.get(codec, TRADITIONAL)
    whole = f"q\n{text}\n" if place.endswith(".csv") else f'{{"q": "{text}"}}\n'
    data = whole.encode(codec)
    Path(place).write_bytes(gzip.compress(data, mtime=0) if place.endswith(".gz") else data)

    command = re.search("`(.*)`", refused(place))
    assert command is not None
    subprocess.run(command[1], shell=True, check=True, cwd=tmp_path)

    copy = place.removesuffix(".gz")
    copy = f"{copy[: copy.rindex('.')]}.utf8{copy[copy.rindex('.') :]}"
    assert list(read_rows(copy)) == [{"q": text}]


def test_the_path_in_the_command_is_the_one_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "my home"))
    (tmp_path / "my home").mkdir()
    data = f'[{{"q": "{SIMPLIFIED}"}}]'.encode("gb18030")
    Path("my home/a b.json").write_bytes(data)

    given = "`iconv -f GB18030 -t UTF-8 'my home/a b.json' > 'my home/a b.utf8.json'`"
    assert given in refused("my home/a b.json")
    assert f"'{tmp_path}/my home/a b.json' >" in refused("~/a b.json")


def test_a_unicode_text_of_excel_becomes_a_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes("问题\t回答\r\n一\t二\r\n".encode("utf-16"))

    message = refused(path)

    assert f"{path} > {tmp_path}/rows.utf8.tsv" in message


def test_every_line_of_a_file_in_another_encoding_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(f'{{"q": 1}}\n{{"q": "{SIMPLIFIED}"}}\n{{"q": "联通"}}\n'.encode("gbk"))
    bad: list[BadRow] = []

    assert list(read_rows(path, on_bad=bad.append)) == [{"q": 1}]
    assert [(row.line, row.check) for row in bad] == [(2, "encoding"), (3, "encoding")]


def test_the_shared_gb18030_file_is_converted_by_the_printed_command(
    shared: Path, tmp_path: Path
) -> None:
    if shutil.which("iconv") is None:
        pytest.skip("iconv is not installed")
    path = shutil.copy(shared / "cases" / "35_gb18030.json", tmp_path / "a b.json")

    command = re.search("`(.*)`", refused(path))
    assert command is not None
    subprocess.run(command[1], shell=True, check=True)

    [row] = read_rows(tmp_path / "a b.utf8.json")
    assert row == {"instruction": "𠮷野家在哪", "output": "东京㐀"}


def test_a_file_of_windows_is_advised_what_windows_can_do(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes('[{"q": "Die Straße führt über den Fluss, schöne Grüße"}]'.encode("cp1252"))

    message = refused(path)

    assert "looks like WINDOWS-1252. Save it as UTF-8 in the program that wrote it" in message


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.txt"])
@pytest.mark.parametrize(
    ("head", "right"),
    [(gzip.compress(b"{}", mtime=0), ".gz"), (b"PK\x03\x04x", "CSV"), (b"PAR1", ".parquet")],
)
def test_another_kind_of_file_says_which_name_it_needs(
    tmp_path: Path, name: str, head: bytes, right: str
) -> None:
    (tmp_path / name).write_bytes(head)

    assert "is not a text file" in refused(tmp_path / name)
    assert right in refused(tmp_path / name)


def test_the_name_that_a_compressed_file_is_said_to_need_works(tmp_path: Path) -> None:
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(b'[{"q": 1}]', mtime=0))

    assert list(read_rows(tmp_path / "rows.json.gz")) == [{"q": 1}]
