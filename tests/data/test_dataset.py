"""Every reader of rows sees the same rows, each in the format of its file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glmtune.cli.options import recipe_for_rows
from glmtune.conversation import Conversation, Message
from glmtune.data.dataset import HEAD_ROWS, Dataset, Entry, batched
from glmtune.data.encode import EncodeOptions, encode_data, training_conversations
from glmtune.data.formats import convert
from glmtune.data.lint.findings import CHECKS
from glmtune.data.lint.run import lint_data
from glmtune.data.rows import BadRow, RowCheck, RowError
from glmtune.errors import DataError
from glmtune.inspect.survey import survey_rows
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.recipe.recipe import Recipe
from glmtune.recipe.sections import DataSection
from glmtune.template.chatglm import ChatGLMTemplate
from glmtune.use.predict import read_questions

ALPACA = {"instruction": "一", "output": "1"}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "二"}, {"from": "gpt", "value": "2"}],
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def template(tiny_tokenizer: ChatGLMTokenizer) -> ChatGLMTemplate:
    return ChatGLMTemplate(tiny_tokenizer)


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    texts = [
        line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines
    ]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8", errors="surrogateescape")
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with a file of each of two formats."""
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", ALPACA)
    write(tmp_path / "data" / "b.jsonl", SHAREGPT)
    return tmp_path / "data"


def section(path: Path, **values: Any) -> DataSection:
    return DataSection.model_validate({"train": str(path), **values})


def read(data: DataSection) -> list[Entry[Conversation] | BadRow]:
    return list(Dataset.of(data).read(convert))


def test_each_file_of_a_folder_has_its_own_format(mixed: Path) -> None:
    dataset = Dataset.of(section(mixed))

    entries = list(dataset.read(convert))

    assert [entry.format.name for entry in entries if isinstance(entry, Entry)] == [
        "alpaca",
        "sharegpt",
    ]
    assert dataset.formats == {
        str(mixed / "a.jsonl"): "alpaca",
        str(mixed / "b.jsonl"): "sharegpt",
    }


def test_predict_reads_a_folder_of_two_formats_as_training_does(
    mixed: Path, template: ChatGLMTemplate
) -> None:
    examples = encode_data(mixed, template, EncodeOptions(max_length=100))

    questions = read_questions(section(mixed), template)

    assert len(examples) == 2
    assert [(each.row, each.text, each.reference) for each in questions] == [
        (1, "一", "1"),
        (2, "二", "2"),
    ]


def test_the_proof_of_the_template_sees_every_file_of_a_folder(
    mixed: Path, template: ChatGLMTemplate
) -> None:
    conversations = list(training_conversations(section(mixed), template))

    assert conversations == [
        Conversation((Message("user", "一"), Message("assistant", "1"))),
        Conversation((Message("user", "二"), Message("assistant", "2"))),
    ]


def test_the_proof_of_the_template_leaves_out_only_what_training_leaves_out(
    tmp_path: Path, tiny_tokenizer: ChatGLMTokenizer
) -> None:
    plain = ChatGLMTemplate(tiny_tokenizer, "plain")  # cannot render a history
    with_history = {**ALPACA, "history": [["零", "0"]]}
    rows = write(tmp_path / "rows.jsonl", ALPACA, {"instruction": "q"}, with_history, "{", ALPACA)

    skipping = list(training_conversations(section(rows, bad_rows="skip"), plain))

    assert len(skipping) == 2
    with pytest.raises(RowError, match=r"rows\.jsonl:2: field 'output'"):
        list(training_conversations(section(rows), plain))


def test_bad_rows_come_in_their_place(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", "{", ALPACA, {"instruction": "q"}, "[]", ALPACA, "{")

    entries = read(section(rows))

    assert [isinstance(entry, BadRow) for entry in entries] == [
        True, False, True, True, False, True
    ]  # fmt: skip
    assert [entry.line for entry in entries if isinstance(entry, BadRow)] == [1, 3, 4, 6]


def test_a_file_without_any_good_row_needs_no_format(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", *["{"] * (HEAD_ROWS + 1))
    write(tmp_path / "data" / "b.jsonl", ALPACA)
    dataset = Dataset.of(section(tmp_path / "data"))

    entries = list(dataset.read(convert))

    assert [type(entry) for entry in entries] == [*[BadRow] * (HEAD_ROWS + 1), Entry]
    assert list(dataset.formats) == [str(tmp_path / "data" / "b.jsonl")]


def test_a_role_that_does_not_exist_is_refused_before_reading(mixed: Path) -> None:
    with pytest.raises(DataError, match="maps 'bot' to 'robot'"):
        Dataset.of(section(mixed, roles={"bot": "robot"}))


def test_batches_close_at_a_number_of_rows_or_of_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("glmtune.data.dataset.BATCH_ROWS", 3)
    monkeypatch.setattr("glmtune.data.dataset.BATCH_CHARS", 10)

    assert list(batched([1, 1, 1, 1, 9, 20, 1], num_chars=lambda size: size)) == [
        [1, 1, 1],
        [1, 9],
        [20],
        [1],
    ]


# --- Bad rows name their check ------------------------------------------------------------


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


QUESTION = {"instruction": "q"}


@pytest.mark.parametrize(
    ("check", "row"),
    [
        ("empty-answer", {**QUESTION, "output": " "}),
        ("empty-answer", {**QUESTION, "output": "a", "history": [["q", ""]]}),
        ("empty-answer", chat(("user", "q"), ("assistant", ""))),
        ("no-label", chat(("user", "q"))),
        ("role-order", chat(("user", "q"), ("narrator", "x"), ("assistant", "a"))),
        ("role-order", chat(("user", "q"), ("user", "q"), ("assistant", "a"))),
        ("encoding", r'{"instruction": "q", "output": "\ud800"}'),
        ("encoding", '{"instruction": "q", "output": "\udce9"}'),  # a byte of latin-1
        ("encoding", '{"instruction": "q", "output": "\0"}'),
        ("unreadable", QUESTION),
        ("unreadable", {**QUESTION, "output": 3}),
        ("unreadable", "{"),
        ("unreadable", "[]"),
        ("unreadable", '{"instruction": NaN, "output": "a"}'),
    ],
)
def test_a_bad_row_names_the_check_that_it_fails(
    tmp_path: Path, check: RowCheck, row: dict[str, Any] | str
) -> None:
    good = chat(("user", "q"), ("assistant", "a")) if "messages" in row else ALPACA

    [_, bad] = read(section(write(tmp_path / "rows.jsonl", good, row)))

    assert isinstance(bad, BadRow)
    assert bad.check == check
    assert check in CHECKS


def test_a_pair_of_equal_answers_names_its_check(tmp_path: Path) -> None:
    row = {**QUESTION, "chosen": "a", "rejected": "a"}
    empty = {**QUESTION, "chosen": "a", "rejected": ""}
    rows = write(tmp_path / "rows.jsonl", {**QUESTION, "chosen": "a", "rejected": "b"}, row, empty)

    found = lint_data(section(rows), pairs=True).findings

    assert [(each.check, each.line) for each in found] == [("empty-answer", 3), ("same-answers", 2)]


@pytest.mark.parametrize("ending", ["csv", "txt"])
def test_a_wrong_byte_in_a_table_fails_the_encoding_check(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(b"instruction,output\nq,a\nq,\xe9\n")
    dataset = Dataset.of(section(path), needs_answer=ending == "csv")

    entries = list(dataset.read(lambda row, *_: row))

    assert [entry.check for entry in entries if isinstance(entry, BadRow)] == ["encoding"]


# --- A file that breaks off ---------------------------------------------------------------


@pytest.fixture
def truncated(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ALPACA] * 3, ensure_ascii=False)[:-5], encoding="utf-8")
    return path


@pytest.mark.parametrize("bad_rows", ["fail", "skip"])
def test_a_truncated_file_is_an_error_for_every_reader(
    truncated: Path, template: ChatGLMTemplate, tiny_model_dir: Path, bad_rows: Any
) -> None:
    data = section(truncated, bad_rows=bad_rows)
    recipe = Recipe.model_validate(
        {
            "model": {"name_or_path": str(tiny_model_dir)},
            "data": data.model_dump(),
            "output": {"dir": str(truncated.parent / "out")},
        }
    )
    readers: list[Callable[[], object]] = [
        lambda: encode_data(truncated, template, EncodeOptions(100, bad_rows=bad_rows)),
        lambda: list(training_conversations(data, template)),
        lambda: read_questions(data, template),
        lambda: survey_rows(recipe),
    ]

    for reader in readers:
        with pytest.raises(RowError, match=r"rows\.json:1: the file breaks off here"):
            reader()
    [broken] = [each for each in lint_data(data).findings if not each.is_usable]
    assert (broken.check, broken.severity) == ("unreadable", "error")


def test_a_truncated_last_line_of_json_lines_can_be_skipped(
    tmp_path: Path, template: ChatGLMTemplate
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ALPACA) + '\n{"instruction": "h', encoding="utf-8")

    data = encode_data(path, template, EncodeOptions(100, bad_rows="skip"))

    assert (len(data), data.report.num_bad_rows) == (1, 1)
    [finding] = lint_data(section(path, bad_rows="skip")).findings
    assert (finding.check, finding.severity) == ("unreadable", "warning")


def test_a_cap_does_not_narrow_the_rows_that_decide_the_format(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"问": "一", "答": "1"}, {"问": "二", "答": "2", "系统": "短"}]
    write(path, *rows, rows[0], "{")
    columns = {"instruction": "问", "output": "答", "system": "系统"}

    data = DataSection.model_validate({"train": f"{path}#1", "columns": columns})
    entries = list(Dataset.of(data).read(convert))

    assert [entry.row.line for entry in entries if isinstance(entry, Entry)] == [1]
    assert len(entries) == 1  # the broken row is beyond the cap


def test_a_device_is_refused_as_data_and_not_for_the_output_that_nothing_writes() -> None:
    recipe = recipe_for_rows(os.devnull, {"model.name_or_path": "m"}, [], Recipe)
    with pytest.raises(DataError, match="is a device, expected a file"):
        list(Dataset.of(recipe.data).read(convert))
