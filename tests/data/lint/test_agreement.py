"""Lint and training agree about every file: where one stops, the other has found an error."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.formats.rows import MESSAGES, ROWS

from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.data.lint.clean_copy import write_clean_copy
from glmtune.data.lint.findings import Finding
from glmtune.data.lint.run import lint_data
from glmtune.data.pairs import encode_pairs
from glmtune.errors import DataError
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.recipe.sections import DataSection, LintSection
from glmtune.template.chatglm import ChatGLMTemplate

GOOD = ROWS["alpaca"]
LONE = "\ud83d"
FILES: dict[str, list[Any]] = {
    **{name: [fields, {**fields, "mood": 1}] for name, fields in ROWS.items()},
    "empty": [],
    "a list as answer": [{"instruction": "q", "output": ["a", "b"]}],
    "broken": [GOOD, '{"instruction": "a", "output":', "hello", {"instruction": 5, "output": "b"}],
    "broken alone": ["hello"],
    "empty answer": [GOOD, {**GOOD, "output": ""}],
    "too long": [{**GOOD, "output": "长" * 300}],
    "one too long": [GOOD, {**GOOD, "output": "长" * 300}],
    "bad labels": [{**GOOD, "label": False}],
    "one bad label": [{**GOOD, "label": False}, {**GOOD, "label": True}],
    "images": [{**GOOD, "images": ["a.png"]}],
    "weights": [{"messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0.5}]}],
    "not learned": [{"messages": [MESSAGES[0], {**MESSAGES[1], "loss": False}]}],
    "no answer": [{"messages": MESSAGES[:1]}],
    "an answer alone": [{"messages": MESSAGES[1:]}, {"messages": MESSAGES[1:]}],
    "an unknown role": [{"messages": [{"role": "旁白", "content": "q"}, MESSAGES[1]]}],
    "half a pair": [ROWS["chosen_rejected"], {"chosen": MESSAGES}],
    "equal sides": [ROWS["chosen_rejected"], {"chosen": MESSAGES, "rejected": MESSAGES}],
    "a surrogate in a role": [{"messages": [{"role": LONE, "content": "q"}, MESSAGES[1]]}],
    "a surrogate in an id": [{**GOOD, "id": LONE}],
    "a surrogate in a key": [{**GOOD, LONE: "x"}],
    "a surrogate in another column": [{**GOOD, "mood": LONE}],
    "a surrogate in the answer": [GOOD, {**GOOD, "output": LONE}],
}


def write(path: Path, rows: list[Any]) -> str:
    lines = [each if isinstance(each, str) else json.dumps(each) for each in rows]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize("bad_rows", ["fail", "skip"])
@pytest.mark.parametrize("name", FILES)
def test_lint_has_an_error_where_training_stops_and_none_elsewhere(
    tmp_path: Path, tiny_tokenizer: ChatGLMTokenizer, name: str, bad_rows: Any
) -> None:
    path = write(tmp_path / "rows.jsonl", FILES[name])
    template = ChatGLMTemplate(tiny_tokenizer)
    pairs = name in ("half a pair", "equal sides")
    options = EncodeOptions(max_length=120, bad_rows=bad_rows)
    encode = encode_pairs if pairs else encode_data
    stopped: DataError | None = None
    try:
        encode(path, template, options, quarantine=tmp_path / "bad.jsonl", cache_dir=tmp_path)
    except DataError as error:
        stopped = error

    data = DataSection.model_validate({"train": path, "max_length": 120, "bad_rows": bad_rows})
    try:
        report = lint_data(data, template, LintSection(), pairs=pairs)
    except DataError:  # of the file as a whole
        assert stopped is not None
        return
    errors = [finding for finding in report.findings if finding.severity == "error"]

    assert bool(errors) == (stopped is not None), (stopped, report.findings)
    assert isinstance(report.to_json().encode(), bytes)
    assert all(str(finding.message).encode() for finding in report.findings)


def test_halves_of_surrogate_pairs_are_written_as_json_writes_them(
    tmp_path: Path, tiny_tokenizer: ChatGLMTokenizer
) -> None:
    rows = [{**GOOD, "id": LONE, LONE: 1}, {"messages": [{"role": LONE}]}, {"instruction": LONE}]
    path = write(tmp_path / "rows.jsonl", rows)
    data = DataSection.model_validate({"train": path, "bad_rows": "skip"})
    report = lint_data(data)

    write_clean_copy(data, report, tmp_path / "clean.jsonl")
    options = EncodeOptions(max_length=99, bad_rows="skip")
    listed = tmp_path / "bad.jsonl"
    encode_data(
        path, ChatGLMTemplate(tiny_tokenizer), options, quarantine=listed, cache_dir=tmp_path
    )

    assert json.loads((tmp_path / "clean.jsonl").read_text(encoding="utf-8")) == rows[0]
    assert len(listed.read_text(encoding="utf-8").splitlines()) == 2
    assert [each.check for each in report.findings][:2] == ["unreadable", "unreadable"]
    assert found(report.findings, "unused-key")[0].startswith(r"nothing reads '\\ud83d'")
    assert json.loads(report.to_json())["rows"] == 3


def found(findings: tuple[Finding, ...], check: str) -> list[str]:
    return [finding.message for finding in findings if finding.check == check]


def test_a_key_that_nothing_reads_is_found_once_with_its_first_row(tmp_path: Path) -> None:
    rows = [GOOD, "broken", {**GOOD, "output": "1", "mood": 1}, {**GOOD, "output": "2", "mood": 2}]
    data = DataSection.model_validate(
        {"train": write(tmp_path / "rows.jsonl", rows), "bad_rows": "skip"}
    )

    report = lint_data(data)

    [finding] = [each for each in report.findings if each.check == "unused-key"]
    assert (finding.line, finding.row, finding.severity) == (3, 3, "warning")
    assert finding.message.startswith("nothing reads 'mood', which 2 rows have; of a row, format")
    off = lint_data(data, lint=LintSection(off=("unused-key",)))
    assert found(off.findings, "unused-key") == []


def test_answers_without_a_prompt_do_not_contradict_each_other(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "assistant", "content": text}]} for text in ("红", "蓝", "红")]
    data = DataSection.model_validate({"train": write(tmp_path / "rows.jsonl", rows)})

    checks = [finding.check for finding in lint_data(data).findings]

    assert "contradiction" not in checks
    assert "duplicate" in checks
    asked = [{"messages": [{"role": "user", "content": "色"}, *row["messages"]]} for row in rows]
    data = DataSection.model_validate({"train": write(tmp_path / "rows.jsonl", asked)})
    assert "contradiction" in [finding.check for finding in lint_data(data).findings]
