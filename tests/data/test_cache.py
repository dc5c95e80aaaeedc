"""The cache of encoded data: used again, made again after damage, never half written."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.data.encoding import ALPACA, LONG, CountingTemplate, expected, write

from glmtune.data import dataset
from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.errors import DataError, OutputError
from glmtune.template.base import Example
from glmtune.template.chatglm import ChatGLMTemplate

if TYPE_CHECKING:
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer


def test_a_second_start_encodes_nothing_and_gives_the_same(
    tmp_path: Path, template: CountingTemplate
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)

    first = encode_data(path, template, LONG)
    second = encode_data(path, template, LONG)

    assert template.num_encoded == 3
    assert list(second) == list(first) == expected(ALPACA, template, "alpaca")
    assert (second.report, second.key) == (first.report, first.key)
    assert second.origin(1) == first.origin(1)


def test_a_changed_file_is_read_again_even_if_its_size_and_time_stay(
    tmp_path: Path, template: CountingTemplate
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)
    first = encode_data(path, template, LONG)
    stat = path.stat()

    changed = [*ALPACA[:2], {**ALPACA[2], "output": "2"}]
    write(path, changed)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    second = encode_data(path, template, LONG)

    assert list(second) == expected(changed, template, "alpaca")
    assert list(first) == expected(ALPACA, template, "alpaca")  # still mapped, still right
    assert first.key != second.key


def test_other_options_another_template_or_another_cap_do_not_share_a_cache(
    tmp_path: Path, tiny_tokenizer: ChatGLMTokenizer, template: CountingTemplate
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)
    keys = {
        encode_data(path, template, LONG).key,
        encode_data(path, template, EncodeOptions(max_length=9_999)).key,
        encode_data(path, template, EncodeOptions(max_length=10_000, format="alpaca")).key,
        encode_data(f"{path}#2", template, LONG).key,
        encode_data([path, path], template, LONG).key,
        encode_data(path, ChatGLMTemplate(tiny_tokenizer, "tutorial"), LONG).key,
    }

    assert len(keys) == 6


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("examples.arrow", lambda data: data[: len(data) // 2]),
        ("examples.arrow", lambda data: data[:300] + bytes([data[300] ^ 1]) + data[301:]),
        ("examples.arrow", lambda data: b""),
        ("about.json", lambda data: data[:-9]),
        ("about.json", lambda data: b"{}"),
        ("bad_rows.jsonl", lambda data: data + b"x"),
    ],
)
def test_a_damaged_cache_is_made_again(
    tmp_path: Path,
    template: CountingTemplate,
    cache: Path,
    name: str,
    damage: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)
    key = encode_data(path, template, LONG).key
    (cache / key / name).write_bytes(damage((cache / key / name).read_bytes()))

    data = encode_data(path, template, LONG)

    assert list(data) == expected(ALPACA, template, "alpaca")
    assert "is damaged" in caplog.text
    template.num_encoded = 0
    assert list(encode_data(path, template, LONG)) == list(data)
    assert template.num_encoded == 0


def test_a_cache_with_a_missing_file_is_made_again(
    tmp_path: Path, template: CountingTemplate, cache: Path
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)
    key = encode_data(path, template, LONG).key
    (cache / key / "examples.arrow").unlink()

    assert list(encode_data(path, template, LONG)) == expected(ALPACA, template, "alpaca")


def test_an_interrupted_run_leaves_no_files(
    tmp_path: Path, template: CountingTemplate, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)
    monkeypatch.setattr(dataset, "BATCH_ROWS", 1)

    def interrupt(num_rows: int) -> None:
        if num_rows == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_data(path, template, LONG, progress=interrupt)
    assert list(cache.iterdir()) == []
    assert len(encode_data(path, template, LONG)) == 3


def test_many_starts_at_once_do_not_disturb_each_other(
    tmp_path: Path, tiny_tokenizer: ChatGLMTokenizer, cache: Path
) -> None:
    path = write(tmp_path / "rows.json", ALPACA * 50)
    template = ChatGLMTemplate(tiny_tokenizer)
    answer = expected(ALPACA, template, "alpaca") * 50

    def start(_: int) -> list[Example]:
        return list(encode_data(path, ChatGLMTemplate(tiny_tokenizer), LONG))

    with ThreadPoolExecutor(8) as pool:
        assert all(examples == answer for examples in pool.map(start, range(16)))
    assert len(list(cache.iterdir())) == 1


def test_a_file_that_changes_while_it_is_read_is_refused_and_not_kept(
    tmp_path: Path, template: CountingTemplate, cache: Path
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)

    def change(_: int) -> None:
        write(path, ALPACA[:2])

    with pytest.raises(DataError, match="changed while it was read"):
        encode_data(path, template, LONG, progress=change)
    assert list(cache.iterdir()) == []


def test_the_error_for_an_unwritable_cache_explains_how_to_choose_another(
    tmp_path: Path, template: CountingTemplate
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")

    with pytest.raises(OutputError, match=r"could not be written: .* set GLMTUNE_CACHE"):
        encode_data(path, template, LONG, cache_dir=tmp_path / "file")


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let the system refuse to write more into a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_leaves_no_files(
    tmp_path: Path, template: CountingTemplate, cache: Path
) -> None:
    path = write(tmp_path / "rows.json", ALPACA * 500)

    with largest_file(10_000), pytest.raises(OutputError, match="Make room, or set GLMTUNE_CACHE"):
        encode_data(path, template, LONG)

    assert list(cache.iterdir()) == []
    assert len(encode_data(path, template, LONG)) == 1500


def test_the_cache_follows_the_environment(
    tmp_path: Path, template: CountingTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.json", ALPACA)
    monkeypatch.delenv("GLMTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))

    key = encode_data(path, template, LONG).key

    assert (tmp_path / "xdg" / "glmtune" / "data" / key / "about.json").is_file()
