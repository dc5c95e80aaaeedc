"""Questions with options, as benchmarks publish them, in a folder or a file.

    C-Eval        dev/accountant_dev.csv       id, question, A, B, C, D, answer, explanation
    CMMLU         dev/agronomy.csv             , Question, A, B, C, D, Answer
    MMLU          dev/anatomy_dev.csv          no header: question, four options, answer
    on the hub    anatomy/dev-00000-of-...     question, choices, answer (0 to 3), as Parquet
    AGIEval       gaokao-history.jsonl         passage, question, options "(A)...", label
    GAOKAO-Bench  2010-2022_History_MCQs.json  {"example": [{question, answer: ["A"]}]}

The subject is the name of the file or folder, or the column `subject`; the split is the folder or
the end of the name. A question with several right letters, or none, is counted and left out.
"""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glmtune.data.rows import Row, row_excerpt
from glmtune.data.sources import find_source
from glmtune.data.text_files import numbered_lines
from glmtune.errors import DataError
from glmtune.files import read_json_object

Style = Literal["ceval", "cmmlu", "mmlu", "agieval", "gaokao"]
LETTERS = "ABCDEFGHIJ"
SPLITS = {"dev": "dev", "val": "val", "validation": "val", "test": "test", "train": "train"}
ENDINGS = (".csv", ".jsonl", ".json", ".parquet")
MAX_BYTES = 64 * 2**20  # of a file of GAOKAO-Bench
_PREFIX = re.compile(r"^\s*[（(]?([A-J])[)）.．、:：]\s*")
_IN_TEXT = re.compile(r"(?:^|[\s(（])([A-J])[.．、:：)）]")
_HAN = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A question, its options and the right one.

    Attributes:
        file, line: where it comes from.
        subject, split: of the benchmark; "" if the layout names none.
        text: the question, after its passage if there is one.
        options: the texts of A, B, ...; empty where they are part of the question.
        letters: to choose from.
        answer: the right letter; None where the benchmark keeps it secret.
        style: of the prompt.
    """

    file: str
    line: int
    subject: str
    split: str
    text: str
    options: tuple[str, ...]
    letters: str
    answer: str | None
    style: Style


@dataclass(frozen=True, slots=True)
class ChoiceFiles:
    """All questions of some sources, and how many cannot be used.

    Attributes:
        questions: in order, of all splits.
        num_several: with several right answers, which a single choice cannot give.
    """

    questions: tuple[ChoiceQuestion, ...]
    num_several: int


class _SeveralAnswersError(Exception):
    """A question has several right letters."""


def read_choice_files(sources: tuple[str, ...]) -> ChoiceFiles:
    """Read the questions of files and folders.

    Raises:
        DataError: a file cannot be read, or a row is no question with options.
    """
    questions: list[ChoiceQuestion] = []
    num_several = 0
    for source in sources:
        for file, subject, split in _files(source):
            for row, style in _rows(file):
                try:
                    questions.append(_question(row, subject, split, style))
                except _SeveralAnswersError:
                    num_several += 1
    return ChoiceFiles(tuple(questions), num_several)


def _files(source: str) -> Iterator[tuple[Path, str, str]]:
    """Find the files of a source, each with its subject and split."""
    path = Path(source).expanduser()
    if path.is_file():
        yield path, *_subject_and_split(path, path.parent)
        return
    if not path.is_dir():
        raise DataError(
            f"{source}: there is no such file or folder. Download the benchmark, and give the "
            "folder it was unpacked into."
        )
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in ENDINGS and not file.name.startswith((".", "_"))
    )
    subjects = {_subject_and_split(file, path)[0] for file in found}
    number = 0
    for file in found:
        subject, split = _subject_and_split(file, path)
        is_repeated = subject == "all" and len(subjects) > 1  # a copy of all others, on the hub
        if is_repeated or "auxiliary_train" in (subject, *file.relative_to(path).parts):
            continue
        number += 1
        yield file, subject, split
    if not number:
        raise DataError(
            f"{source}: there are no {', '.join(ENDINGS)} files in it. Give the folder that the "
            "benchmark was unpacked into."
        )


def _subject_and_split(file: Path, top: Path) -> tuple[str, str]:
    """Tell both from a path, such as dev/anatomy_dev.csv or anatomy/dev-00000-of-00001.parquet."""
    folders = file.parent.relative_to(top).parts if file.is_relative_to(top) else ()
    stem, parents = file.stem, [folder.lower() for folder in folders]
    base, _, ending = stem.rpartition("_")
    if base and ending.lower() in SPLITS:
        return base, SPLITS[ending.lower()]
    first = stem.split("-")[0].lower()
    if first in SPLITS:
        return (folders[-1] if folders else ""), SPLITS[first]
    split = next((SPLITS[folder] for folder in reversed(parents) if folder in SPLITS), "")
    own_folder = SPLITS.get(file.parent.name.lower(), "") if not folders else ""
    return stem, split or own_folder


def _rows(file: Path) -> Iterator[tuple[Row, Style | None]]:
    """Read a file; the style is that of its layout, None where the row decides."""
    if file.suffix.lower() == ".csv":
        yield from _csv_rows(file)
        return
    if file.suffix.lower() == ".json" and '"example"' in _beginning(file):
        content = read_json_object(file, DataError, remedy="Restore it.", max_bytes=MAX_BYTES)
        examples = content.get("example")
        if not isinstance(examples, list) or not all(isinstance(each, dict) for each in examples):
            raise DataError(f"{file}: expected a list of objects under 'example', as GAOKAO-Bench.")
        for number, each in enumerate(examples, start=1):
            yield Row(each, str(file), number), "gaokao"
        return
    for row in find_source(str(file)).rows():
        yield row, None


def _beginning(file: Path) -> str:
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as opened:
            return opened.read(4096)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}.") from None


def _csv_rows(file: Path) -> Iterator[tuple[Row, Style | None]]:
    """Read a table; MMLU's have no header."""
    name = str(file)
    csv.field_size_limit(2**31 - 1)
    places: list[int] = []

    def texts() -> Iterator[str]:
        for number, text, problem in numbered_lines(file, name):
            if problem:
                raise DataError(f"{name}:{number}: {problem}")
            if not places:
                places.append(number)
            yield text

    records = csv.reader(texts(), strict=True)
    header: list[str] | None = None
    style: Style | None = None
    while True:
        places.clear()
        try:
            record = next(records, None)
        except csv.Error as error:
            raise DataError(f"{name}:{places[0] if places else 1}: {error}.") from None
        if record is None:
            return
        if not any(record):
            continue
        if header is None:
            names = [each.strip() for each in record]
            if "question" in [each.lower() for each in names]:
                header, style = names, "cmmlu" if "Question" in names else None
                continue
            header, style = ["question", *LETTERS[: len(record) - 2], "answer"], "mmlu"
        if len(record) != len(header):
            raise DataError(
                f"{name}:{places[0]}: {len(record)} fields, expected {len(header)}: "
                f"{', '.join(header)}."
            )
        yield Row(dict(zip(header, record, strict=True)), name, places[0]), style


def _question(row: Row, subject: str, split: str, style: Style | None) -> ChoiceQuestion:
    """Make a question of a row.

    Raises:
        DataError: it has no question, no options, or an answer that is none of them.
        _SeveralAnswersError: more than one letter is right.
    """
    fields = {key.strip().lower(): value for key, value in row.items()}
    text = _text(row, fields, "question")
    passage = fields.get("passage")
    if isinstance(passage, str) and passage.strip():
        text = f"{passage}\n{text}"
    options, own_style = _options(row, fields)
    letters = LETTERS[: len(options)]
    if not options and style == "gaokao":
        letters = "".join(dict.fromkeys(_IN_TEXT.findall(text))) or "ABCD"
        letters = "".join(sorted(letters))
    if len(letters) < 2:
        raise DataError(
            f"{row.file}:{row.line}: has no options, expected columns A, B, C, D, or a list "
            f"'choices' or 'options': {row_excerpt(row)}"
        )
    named = fields.get("subject")
    return ChoiceQuestion(
        file=row.file,
        line=row.line,
        subject=named if isinstance(named, str) and named else subject,
        split=split,
        text=text.strip(),
        options=options,
        letters=letters,
        answer=_answer(row, fields, letters),
        style=style or own_style or ("ceval" if _HAN.search(text) else "mmlu"),
    )


def _text(row: Row, fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if isinstance(value, str) and value.strip():
        return value
    problem = f"got {type(value).__name__}, expected text" if value is not None else "is missing"
    raise DataError(f"{row.file}:{row.line}: field {key!r}: {problem}: {row_excerpt(row)}")


def _options(row: Row, fields: Mapping[str, Any]) -> tuple[tuple[str, ...], Style | None]:
    listed = fields.get("choices") if fields.get("choices") is not None else fields.get("options")
    style: Style | None = None
    if isinstance(listed, dict) and isinstance(listed.get("text"), list):  # as in ARC
        listed = listed["text"]
    if isinstance(listed, dict):
        listed = [listed.get(letter) for letter in LETTERS if listed.get(letter) is not None]
    if listed is None:
        columns = [letter.lower() for letter in LETTERS if fields.get(letter.lower()) is not None]
        listed = [fields[column] for column in columns]
        if columns != [letter.lower() for letter in LETTERS[: len(columns)]]:
            raise DataError(f"{row.file}:{row.line}: an option is missing: {row_excerpt(row)}")
        if "answer" in fields and len(listed) > 4:  # empty columns E to J of a table
            while listed and listed[-1] == "":
                listed.pop()
    elif isinstance(listed, list) and "label" in fields:
        style = "agieval"
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise DataError(f"{row.file}:{row.line}: the options are not all texts: {row_excerpt(row)}")
    if len(listed) > len(LETTERS):
        raise DataError(f"{row.file}:{row.line}: has {len(listed)} options, at most 10 are read.")
    if all(_PREFIX.match(each) for each in listed):
        listed = [_PREFIX.sub("", each) for each in listed]
    return tuple(listed), style


def _answer(row: Row, fields: Mapping[str, Any], letters: str) -> str | None:
    """Return the right letter; None where there is none."""
    given = next(
        (fields[key] for key in ("answer", "label", "answerkey") if _is_given(fields.get(key))),
        None,
    )
    if given is None:
        return None
    if isinstance(given, list):
        if len(given) > 1:
            raise _SeveralAnswersError
        given = given[0]
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(letters):
        return letters[given]
    text = str(given).strip().strip("()（）").upper() if isinstance(given, str) else ""
    if text in letters and len(text) == 1:
        return text
    if text and all(letter in letters for letter in text):
        raise _SeveralAnswersError
    raise DataError(
        f"{row.file}:{row.line}: the answer is {given!r:.60}, expected one of "
        f"{', '.join(letters)}: {row_excerpt(row)}"
    )


def _is_given(value: Any) -> bool:
    return value is not None and value not in ("", [])
