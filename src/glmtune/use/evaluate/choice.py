"""Questions with options -> the letter that a model prefers, and its accuracy by subject.

    by likelihood   the likeliest of the letters as the answer to the prompt; nothing is generated
    by generation   the letter that a generated answer names

A prompt has the words of its benchmark, then solved examples of the same subject (`dev`, then
`val`), then the question. It is one user message, so a chat model gets it as in chat; `--layout
plain` gives it as bare text, as papers do for base models. Examples that do not fit are dropped
from the end, as MMLU's code does.

Sources: C-Eval https://arxiv.org/abs/2305.08322; CMMLU https://arxiv.org/abs/2306.09212; MMLU
https://arxiv.org/abs/2009.03300; AGIEval https://arxiv.org/abs/2304.06364.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from itertools import takewhile
from typing import Any, Literal

from glmtune.conversation import Conversation, Message
from glmtune.errors import DataError
from glmtune.template.base import IGNORE, Example, Template
from glmtune.use.evaluate.answers import digest_of
from glmtune.use.evaluate.choice_files import ChoiceFiles, ChoiceQuestion, read_choice_files
from glmtune.use.evaluate.kept import Line
from glmtune.use.evaluate.likelihood import log_likelihoods, next_token_logps
from glmtune.use.evaluate.results import TaskName
from glmtune.use.evaluate.statistics import Measured, as_array
from glmtune.use.evaluate.task import Measurement
from glmtune.use.generate import Sampling
from glmtune.use.predict import Question, predict

By = Literal["likelihood", "generation"]
ANSWER_TOKENS = 64  # of a generated answer

_NAMED = re.compile(
    r"(?:答案|正确选项|选项|应选|选择|选|answer)\s*(?:应该是|应为|是|为|就是|is|:|：|\*|“|\")*\s*"
    r"[（(\[【*]*([A-J])(?![A-Za-z])",
    re.IGNORECASE,
)
_FIRST = re.compile(r"^\W*([A-J])(?![A-Za-z'])")
_ALONE = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z'])")


@cache
def _subjects() -> dict[str, dict[str, str]]:
    text = (files("glmtune.use.evaluate") / "subjects.json").read_text(encoding="utf-8")
    loaded: dict[str, dict[str, str]] = json.loads(text)
    return loaded


def heading(question: ChoiceQuestion) -> str:
    """Return the words before the examples, with the subject as the benchmark names it."""
    known = _subjects().get(question.style, {})
    subject = known.get(question.subject, question.subject.replace("_", " "))
    match question.style:
        case "ceval":
            return f"以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。\n\n"
        case "cmmlu":
            return f"以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n"
        case "mmlu":
            about = f" about {subject}" if subject else ""
            return f"The following are multiple choice questions (with answers){about}.\n\n"
        case "agieval":
            return ""
        case "gaokao":
            return "请选出下面单项选择题的正确答案。\n\n"


def body(question: ChoiceQuestion) -> str:
    """Write a question and its options, up to where the letter follows."""
    pairs = zip(question.letters, question.options, strict=False)
    if question.style == "agieval":
        shown = " ".join(f"({letter}){text}" for letter, text in pairs)
        last = question.letters[-1]
        if re.search(r"[\u4e00-\u9fff]", question.text):
            return f"问题：{question.text} 选项：{shown}\n答案：从A到{last}, 我们应选择"
        return (
            f"Q: {question.text} Answer Choices: {shown}\nA: Among A through {last}, the answer is"
        )
    options = "".join(f"\n{letter}. {text}" for letter, text in pairs)
    before = "题目：" if question.style == "cmmlu" else ""
    asks = {"ceval": "答案：", "cmmlu": "答案是：", "mmlu": "Answer:", "gaokao": "答案："}
    return f"{before}{question.text}{options}\n{asks[question.style]}"


def prompt_text(question: ChoiceQuestion, examples: Sequence[ChoiceQuestion]) -> str:
    """Write the complete prompt of a question."""
    space = " " if question.style == "mmlu" else ""
    solved = "".join(f"{body(each)}{space}{each.answer}\n\n" for each in examples)
    return f"{heading(question)}{solved}{body(question)}"


def letter_in(text: str, letters: str) -> str | None:
    """Find the letter that an answer names; None if it names none, or several alone.

    >>> letter_in("因为 A 不对，所以答案是 B。", "ABCD")
    'B'
    """
    named: list[str] = [
        letter.upper() for letter in _NAMED.findall(text) if letter.upper() in letters
    ]
    if named:
        return named[-1]
    first = _FIRST.match(text)
    if first and first[1] in letters:
        return str(first[1])
    alone: set[str] = {letter for letter in _ALONE.findall(text) if letter in letters}
    return alone.pop() if len(alone) == 1 else None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its prompt.

    Attributes:
        question: of the benchmark.
        prompt: what is asked.
        ids: of the prompt, for generation.
    """

    question: ChoiceQuestion
    prompt: Conversation
    ids: tuple[int, ...]


@dataclass(frozen=True)
class ChoiceTask:
    """Choose one of the options of every question.

    Attributes:
        asked: by number.
        by: how the letter is found.
        template: of the prompts.
        sampling: of generated answers.
        num_shots: solved examples before a question.
        split: that is evaluated.
        data: the sources.
    """

    asked: Mapping[int, Asked]
    by: By
    template: Template
    sampling: Sampling
    num_shots: int
    split: str
    data: tuple[str, ...]
    notes: tuple[str, ...] = ()
    name: TaskName = "choice"

    @property
    def settings(self) -> Mapping[str, str | int | float | None]:
        """How the questions were asked."""
        return {"by": self.by, "shots": self.num_shots, "split": self.split or None}

    @property
    def rows(self) -> Sequence[int]:
        """The numbers of the questions."""
        return [*self.asked]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The prompts, and how the letter is found."""
        questions = (self._as_question(row) for row in self.asked)
        how = asdict(self.sampling) if self.by == "generation" else {}
        return {"prompts": digest_of(questions), "by": self.by, "sampling": how}

    def _as_question(self, row: int) -> Question:
        asked = self.asked[row]
        place = asked.question
        return Question(row, place.file, place.line, None, place.text, asked.ids, place.answer)

    def lines(self, model: Any, rows: Sequence[int], batch_size: int) -> Iterator[Line]:
        """Ask some questions."""
        if self.by == "generation":
            questions = [self._as_question(row) for row in rows]
            for answer in predict(
                model, self.template, questions, sampling=self.sampling, batch_size=batch_size
            ):
                yield Line.model_validate(answer)
            return
        encoded = {row: self._continuations(row) for row in rows}
        short = [row for row in rows if all(len(ids) == 1 for ids in encoded[row][1])]
        yield from self._by_next_token(model, short, encoded, batch_size)
        others = [row for row in rows if row not in set(short)]
        yield from self._by_sequences(model, others, encoded, batch_size)

    def _continuations(self, row: int) -> tuple[list[int], list[list[int]]]:
        """Return what all letters have before them, and the ids of each letter after that."""
        asked = self.asked[row]
        sequences = []
        for letter in asked.question.letters:
            messages = (*asked.prompt.messages, Message("assistant", letter))
            ids = self.template.encode(Conversation(messages)).input_ids
            sequences.append(ids[:-1] if ids[-1] in self.template.stop_ids else ids)
        same = takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False))
        length = min(sum(1 for _ in same), *(len(ids) - 1 for ids in sequences))
        return sequences[0][:length], [ids[length:] for ids in sequences]

    def _by_next_token(
        self,
        model: Any,
        rows: Sequence[int],
        encoded: Mapping[int, tuple[list[int], list[list[int]]]],
        batch_size: int,
    ) -> Iterator[Line]:
        prompts = [encoded[row][0] for row in rows]
        chosen = [[ids[0] for ids in encoded[row][1]] for row in rows]
        for index, logps in next_token_logps(model, prompts, chosen, batch_size):
            yield self._line(rows[index], logps)

    def _by_sequences(
        self,
        model: Any,
        rows: Sequence[int],
        encoded: Mapping[int, tuple[list[int], list[list[int]]]],
        batch_size: int,
    ) -> Iterator[Line]:
        examples, owners = [], []
        for row in rows:
            before, letters = encoded[row]
            for ids in letters:
                examples.append(Example([*before, *ids], [IGNORE] * len(before) + ids))
                owners.append(row)
        found: dict[int, list[float]] = {row: [] for row in rows}
        for index, logp in log_likelihoods(model, examples, batch_size):
            row = owners[index]
            found[row].append(logp)
            if len(found[row]) == len(self.asked[row].question.letters):
                yield self._line(row, found[row])

    def _line(self, row: int, logps: Sequence[float]) -> Line:
        question = self.asked[row].question
        letters = dict(zip(question.letters, (min(0.0, logp) for logp in logps), strict=True))
        return Line(
            row=row,
            file=question.file,
            line=question.line,
            prompt=question.text,
            answer=max(letters, key=lambda letter: letters[letter]),
            letters=letters,
        )

    def measure(self, lines: Mapping[int, Line]) -> dict[str, Measurement]:
        """Return the accuracy, and its mean over subjects where there are several."""
        rows = tuple(sorted(lines))
        found = [letter_in(lines[row].answer, self.asked[row].question.letters) for row in rows]
        right = as_array(
            [
                100.0 * (letter == self.asked[row].question.answer)
                for row, letter in zip(rows, found, strict=True)
            ]
        )
        measurements = {"accuracy": Measurement(rows, Measured(right, is_share=True))}
        subjects = self.subjects(rows)
        sizes = Counter(subjects.values())
        if len(sizes) > 1:
            weights = as_array([1 / sizes[subjects[row]] for row in rows])
            by_subject = Measured(right * weights, weights)
            measurements["accuracy, mean of subjects"] = Measurement(rows, by_subject)
        if self.by == "generation":
            named = as_array([100.0 * (letter is not None) for letter in found])
            measurements["names a letter"] = Measurement(rows, Measured(named, is_share=True))
        return measurements

    def subjects(self, rows: Iterable[int]) -> Mapping[int, str]:
        """Return the subject of each question."""
        return {row: self.asked[row].question.subject for row in rows}


def choice_task(
    sources: Sequence[str],
    template: Template,
    *,
    split: str | None,
    num_shots: int,
    by: By,
    sampling: Sampling,
    context_length: int | None,
) -> ChoiceTask:
    """Read the questions of a benchmark, and make their prompts.

    Args:
        sources: files and folders.
        template: of the model.
        split: to evaluate; None is `test` where it has answers, else `val`, else `dev`.
        num_shots: solved examples before a question, of the splits `dev` and `val`.
        by: how the letter is found.
        sampling: of generated answers.
        context_length: the tokens that prompt and answer may have together.

    Raises:
        DataError: a source cannot be read, the split has no answers, or a prompt is too long.
    """
    read = read_choice_files(tuple(sources))
    split = _choose_split(read, split, sources)
    chosen = [each for each in read.questions if each.split == split and each.answer]
    by_subject = _solved(read, split)
    notes = []
    if read.num_several:
        notes.append(f"{read.num_several} questions with several right answers were left out")
    room = sampling.max_new_tokens if by == "generation" else 2
    asked, num_dropped = {}, 0
    for number, question in enumerate(chosen, start=1):
        examples = by_subject.get(question.subject, [])[:num_shots]
        asked[number] = _ask(question, examples, template, context_length, room)
        num_dropped += len(examples) < num_shots
    if num_dropped:
        notes.append(f"{num_dropped} questions have fewer than {num_shots} examples before them")
    return ChoiceTask(asked, by, template, sampling, num_shots, split, tuple(sources), tuple(notes))


def _choose_split(read: ChoiceFiles, split: str | None, sources: Sequence[str]) -> str:
    answered = {question.split for question in read.questions if question.answer}
    order = [split] if split is not None else ["test", "val", "", "dev", "train"]
    for name in order:
        if name in answered:
            return name
    there = sorted({question.split for question in read.questions} - {""})
    raise DataError(
        f"{', '.join(sources)}: there is no question with an answer"
        f"{f' in the split {split!r}' if split else ''}. It has the splits "
        f"{', '.join(there) or 'of no name'}; those with answers: "
        f"{', '.join(sorted(answered)) or 'none'}. Choose one: data.split=val"
    )


def _solved(read: ChoiceFiles, split: str) -> dict[str, list[ChoiceQuestion]]:
    """Return the examples of each subject, from splits that are not evaluated."""
    found: dict[str, list[ChoiceQuestion]] = {}
    for name in ("dev", "val"):
        if name == split:
            continue
        for question in read.questions:
            if question.split == name and question.answer:
                found.setdefault(question.subject, []).append(question)
    return found


def _ask(
    question: ChoiceQuestion,
    examples: Sequence[ChoiceQuestion],
    template: Template,
    context_length: int | None,
    room: int,
) -> Asked:
    """Make the prompt of a question, with as many examples as fit."""
    for number in range(len(examples), -1, -1):
        text = prompt_text(question, examples[:number])
        prompt = Conversation((Message("user", text),))
        ids = template.prompt_ids(prompt)
        if context_length is None or len(ids) + room + 4 <= context_length:
            return Asked(question, prompt, tuple(ids))
    raise DataError(
        f"{question.file}:{question.line}: the question alone has {len(ids):,} tokens, and the "
        f"model was made for {context_length:,} with the answer. Take it out."
    )
