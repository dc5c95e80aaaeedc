"""Every write of a cache, a quarantine file and a clean copy fails once."""

import json
import shutil
from pathlib import Path

import pytest
from tests.data.encoding import ALPACA
from tests.faults import ERRORS, KILL, check_sentence, fail_everywhere, limited_to

from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.data.lint.clean_copy import write_clean_copy
from glmtune.data.lint.run import lint_data
from glmtune.errors import DataError, OutputError
from glmtune.recipe.sections import DataSection
from glmtune.template.chatglm import ChatGLMTemplate

EVERY = [[fault] for fault in (*ERRORS, KILL)]
OPTIONS = EncodeOptions(max_length=200, bad_rows="skip")
ROWS = [*ALPACA, {"instruction": "没有答案"}]


def test_a_cache_is_whole_or_absent_and_the_next_run_reads_the_same(
    template: ChatGLMTemplate, tmp_path: Path
) -> None:
    rows, root = tmp_path / "rows.json", tmp_path / "work"
    rows.write_text(json.dumps(ROWS, ensure_ascii=False))
    root.mkdir()

    def encode() -> list[list[int]]:
        data = encode_data(
            rows, template, OPTIONS, cache_dir=root / "cache", quarantine=root / "bad.jsonl"
        )
        return [data[index].input_ids for index in range(len(data))]

    lefts = fail_everywhere(root, tmp_path / "kept", encode, *EVERY)
    whole, listed = encode(), (root / "bad.jsonl").read_bytes()

    assert len(lefts) > 20
    for left in lefts:
        check_sentence(left, OutputError)
        shutil.rmtree(root)
        shutil.copytree(left.folder, root)
        assert encode() == whole, left.point
        assert (root / "bad.jsonl").read_bytes() == listed, left.point


@pytest.mark.parametrize("num_bytes", [0, 100, 1_000])
def test_a_cache_that_does_not_fit_on_the_disk_is_one_sentence(
    num_bytes: int, template: ChatGLMTemplate, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(ROWS, ensure_ascii=False))

    with limited_to(num_bytes), pytest.raises(OutputError, match=r"set GLMTUNE_CACHE") as caught:
        encode_data(rows, template, OPTIONS, cache_dir=tmp_path / "cache")

    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "data").iterdir())
    assert len(encode_data(rows, template, OPTIONS, cache_dir=tmp_path / "cache")) == 3


def test_a_clean_copy_is_whole_or_absent(tmp_path: Path) -> None:
    rows, root = tmp_path / "rows.json", tmp_path / "work"
    rows.write_text(json.dumps([*ROWS, ROWS[0]], ensure_ascii=False))
    root.mkdir()
    copy = root / "clean.jsonl"
    section = DataSection(train=(str(rows),))
    report = lint_data(section)

    lefts = fail_everywhere(
        root, tmp_path / "kept", lambda: write_clean_copy(section, report, copy), *EVERY[:3]
    )

    whole = copy.read_bytes()
    assert whole.count(b"\n") == 3
    assert len(lefts) > 6
    for left in lefts:
        check_sentence(left, OutputError, DataError)
        for path in left.folder.iterdir():
            assert path.name == "clean.jsonl" or not left.raised, left.point
            assert path.read_bytes() == whole, left.point
