"""Which encoding a file has that is not UTF-8, and the command that converts it.

No library decides this. The candidates are few, and the two Chinese families are told apart by
their own order: GB2312 and Big5 both put their common characters first, so a text has nearly all
of its characters in the common part of its own encoding, and only about half in that of the other.

    first byte      A1-A9          B0-D7                 D8-F7
    GB2312          punctuation    3,755 common ones     rare ones
    first byte      A1-A3          A4-C6                 C9-F9
    Big5            punctuation    5,401 common ones     rare ones

Korean and Japanese in their EUC encodings are valid GB2312, too. Korean syllables are all in B0-C8,
where Chinese has half of its characters, and half of a Japanese text is kana, in A4 and A5.

A byte order mark, or a null byte in every second place, means UTF-16 or UTF-32. Isolated bytes
among ASCII letters mean Windows-1252, which contains Latin-1.

Sources: KS X 1001, JIS X 0208, GB 2312-1980, GB 18030-2022, and the Big5 table of the Unicode
consortium.
"""

import codecs
import re
import shlex
from pathlib import Path

_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_PYTHON_NAMES = {"UTF-16": "utf-16", "UTF-16LE": "utf-16-le", "UTF-16BE": "utf-16-be"}
LEAST_COMMON = 0.6  # of the characters of a Chinese text, the share in the common part
LEAST_KANA = 0.2  # of the characters of a Japanese text
LEAST_DISTINCT = 6  # Korean syllables; few different Chinese characters may be in their place
MOST_OTHERS = 0.03  # of the characters: Chinese ones in a Korean text, rare ones in a Japanese
_PAIRS = re.compile(rb"[\x81-\xfe][\x41-\xfe]")
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")


def wide_encoding(head: bytes) -> str:
    """Recognize UTF-16 and UTF-32 by the first bytes of a file.

    Returns:
        The name as `iconv` knows it; "" for any other encoding.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if head[:2].count(0) == 1:
        return "UTF-16BE" if head[0] == 0 else "UTF-16LE"
    return ""


def guess_encoding(sample: bytes) -> str:
    """Guess the encoding of a text that is not UTF-8.

    Args:
        sample: a part of the file that begins with a character, with at least one that is not
            ASCII; its end may cut a character.

    Returns:
        The name as `iconv` knows it; "" if nothing fits, or if it is UTF-8 with some damage.
    """
    if is_damaged_utf8(sample):
        return ""
    shares = {
        "GB18030": _share_of_common(sample, "gb18030", (0xB0, 0xD7), (0xA1, 0xA9)),
        "BIG5": _share_of_common(sample, "cp950", (0xA4, 0xC6), (0xA1, 0xA3)),
    }
    best = max(shares, key=shares.__getitem__)
    if shares[best] >= LEAST_COMMON:
        return _neighbor_of_gb2312(sample) or best
    return "WINDOWS-1252" if _is_western(sample) else ""


def _neighbor_of_gb2312(sample: bytes) -> str:
    """Recognize EUC-KR, its extension CP949, and EUC-JP by the first bytes of their characters."""
    pairs = _PAIRS.findall(sample)
    kana = sum(pair[0] in (0xA4, 0xA5) for pair in pairs)
    letters = [pair[0] for pair in pairs if pair[0] >= 0xB0]
    distinct = len({pair for pair in pairs if pair[0] >= 0xB0})
    if kana and kana >= LEAST_KANA * len(pairs) and _decodes(sample, "euc_jp"):
        rare = sum(lead > 0xCF for lead in letters)  # beyond the common kanji
        return "EUC-JP" if rare <= MOST_OTHERS * len(letters) else ""
    others = sum(lead > 0xC8 for lead in letters)
    if distinct < LEAST_DISTINCT or others > MOST_OTHERS * len(letters):
        return ""
    return next((name for name in ("EUC-KR", "CP949") if _decodes(sample, name)), "")


def _decodes(sample: bytes, codec: str) -> bool:
    try:
        codecs.getincrementaldecoder(codec)().decode(sample)
    except UnicodeDecodeError:
        return False
    return True


def is_damaged_utf8(sample: bytes) -> bool:
    """Whether most characters that are not ASCII are UTF-8."""
    text = sample.decode(errors="replace")
    num_bad = text.count("\ufffd")
    num_good = sum(char > "\x7f" for char in text) - num_bad
    return num_good > num_bad


def _share_of_common(
    sample: bytes, codec: str, common: tuple[int, int], marks: tuple[int, int]
) -> float:
    """Return the share of a text's characters that are common ones; 0 if it has another encoding.

    Args:
        sample: as for `guess_encoding`.
        codec: Python's name.
        common, marks: first and last value of the first byte, of common characters and of
            punctuation, which does not count.
    """
    try:
        text = codecs.getincrementaldecoder(codec)().decode(sample)
    except UnicodeDecodeError:
        return 0.0
    num_common = num_counted = 0
    for char in text:
        if char < "\x80":
            continue
        code = char.encode(codec)
        # GBK put rare characters into the places that GB2312 had left free.
        is_old = len(code) == 2 and (codec != "gb18030" or code[1] >= 0xA1)
        if is_old and marks[0] <= code[0] <= marks[1]:
            continue
        num_counted += 1
        # Four bytes that happen to form a character are no accident.
        num_common += len(code) == 4 or (is_old and common[0] <= code[0] <= common[1])
    return num_common / num_counted if num_counted else 0.0


def _is_western(sample: bytes) -> bool:
    """Whether the bytes that are not ASCII are single letters within words."""
    runs = _HIGH_BYTES.findall(sample)
    in_words = re.findall(rb"[a-zA-Z][\x80-\xff]{1,2}|[\x80-\xff]{1,2}[a-zA-Z]", sample)
    try:
        letters = b"".join(runs).decode("cp1252")
    except UnicodeDecodeError:
        return False
    return 2 * len(in_words) > len(runs) and len(letters) < 2 * len(runs)


def conversion_advice(encoding: str, name: str, head: bytes = b"") -> str:
    """Return the command that makes a UTF-8 copy of a file, as a sentence.

    Args:
        encoding: as `iconv` knows it.
        name: the path as the user gave it.
        head: the first bytes, which show whether a .txt is a table of Excel ("Unicode text").
    """
    source = shell_path(name)
    is_table = _is_table(encoding, head) and Path(name).suffix.lower() in (".txt", ".csv")
    target = shell_path(copy_name(name, "utf8", suffix=".tsv" if is_table else ""))
    convert = f"iconv -f {encoding} -t UTF-8"
    unpack = {".gz": "gzip -dc", ".zst": "zstd -dc"}.get(Path(name).suffix.lower())
    is_western = encoding == "WINDOWS-1252"
    command = f"{unpack} {source} | {convert}" if unpack else f"{convert} {source}"
    # Such a file comes from Windows, which has no iconv.
    save = "Save it as UTF-8 in the program that wrote it, or convert" if is_western else "Convert"
    return (
        f"{save} it with `{command} > {target}`, look whether the text is right, and give that "
        "file instead; in a folder, take the old one out."
    )


def _is_table(encoding: str, head: bytes) -> bool:
    first_line = head.decode(_PYTHON_NAMES.get(encoding, "latin-1"), "ignore").partition("\n")[0]
    return "\t" in first_line


def copy_name(name: str, mark: str, *, suffix: str = "") -> str:
    """Name a copy of a data file: `dir/rows.utf8.json` for `dir/rows.json` and `dir/rows.json.gz`.

    Args:
        name: of the file.
        mark: what makes the name another one.
        suffix: of the copy; that of the file if not given.
    """
    path = Path(name)
    if path.suffix.lower() in (".gz", ".zst"):
        path = path.with_suffix("")
    copy = str(path.with_name(f"{path.stem}.{mark}{suffix or path.suffix}"))
    return f"./{copy}" if name.startswith("./") else copy


def shell_path(name: str) -> str:
    """Quote a path for a POSIX shell."""
    if name.startswith("~"):  # in quotes, the shell would not look up the home folder
        name = str(Path(name).expanduser())
    return shlex.quote(f"./{name}" if name.startswith("-") else name)
