"""Whatever pairs hold, what was read is what was learned and what was left out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.data.formats.rows import MESSAGES, ROWS

from glmtune.data.encode import EncodeOptions
from glmtune.data.lint.run import lint_data
from glmtune.data.pairs import encode_pairs
from glmtune.errors import DataError
from glmtune.recipe.sections import DataSection, LintSection
from glmtune.template.chatglm import ChatGLMTemplate

if TYPE_CHECKING:
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

TEXTS = {"prompt": "北京", "chosen": "3 度。", "rejected": "不知道。"}
TURNED = {"messages": MESSAGES, "rejected_response": "不知道。"}
VALUES: tuple[Any, ...] = (
    None, "", "x", 3, False, [], {}, ["x"], [None], {"role": "assistant", "content": "y"},
    [{"role": "assistant", "content": "y", "loss": False}], [{"role": "user"}], MESSAGES,
    [{"from": "gpt", "value": "y"}], "长" * 200,
)  # fmt: skip


def mutated(row: dict[str, Any], random_: random.Random) -> dict[str, Any]:
    """Take a field of a row away, or give it another value."""
    name = random_.choice([*row, "label", "history", "prompt", "messages"])
    if random_.random() < 0.3:
        return {key: value for key, value in row.items() if key != name}
    return {**row, name: random_.choice(VALUES)}


@pytest.mark.parametrize(
    "good", [TEXTS, TURNED, ROWS["chosen_rejected"], ROWS["rejected_response"]]
)
def test_rows_of_pairs_are_learned_or_left_out_and_counted(
    tmp_path: Path, tiny_tokenizer: ChatGLMTokenizer, good: dict[str, Any]
) -> None:
    random_ = random.Random(str(good))
    template = ChatGLMTemplate(tiny_tokenizer)
    rows = [good, *(mutated(good, random_) for _ in range(150))]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))

    data = encode_pairs(
        path,
        template,
        EncodeOptions(max_length=100, bad_rows="skip"),
        cache_dir=tmp_path,
        quarantine=tmp_path / "bad.jsonl",
    )
    report = data.report
    left_out = report.num_bad_rows + report.num_overlong + report.num_without_labels
    section = DataSection.model_validate(
        {"train": str(path), "max_length": 100, "bad_rows": "skip"}
    )
    linted = lint_data(section, template, LintSection(), pairs=True)

    assert report.num_rows == len(rows) == linted.num_rows == len(data) + left_out
    assert report.num_examples == 2 * len(data)
    unusable = {finding.row for finding in linted.findings if not finding.is_usable}
    assert len(unusable) == report.num_bad_rows == len((tmp_path / "bad.jsonl").open().readlines())
    assert 0 < report.num_bad_rows < len(rows) - 10


@pytest.mark.parametrize("good", [TEXTS, TURNED])
def test_a_damaged_pair_is_an_error_that_names_its_line(
    tmp_path: Path, tiny_tokenizer: ChatGLMTokenizer, good: dict[str, Any]
) -> None:
    template = ChatGLMTemplate(tiny_tokenizer)
    path = tmp_path / "pairs.jsonl"
    for name in good:
        lacking = {key: value for key, value in good.items() if key != name}
        path.write_text("\n".join(json.dumps(row) for row in (good, lacking)))

        with pytest.raises(DataError, match=r"pairs\.jsonl:2: "):
            encode_pairs(path, template, EncodeOptions(max_length=100), cache_dir=tmp_path)
