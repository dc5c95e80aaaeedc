"""What only the whole set shows: its habits, and the rows that break them.

A single answer without a full stop may be a name. Where every second answer of a set that writes
prose has none, they were cut. So each of these checks counts first, and speaks when the count is
more than real rows have by themselves.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from glmtune.conversation import Conversation
from glmtune.data.lint.chinese import find_traditional, plain
from glmtune.data.lint.findings import Fault, Severity
from glmtune.data.lint.pairing import Pairing
from glmtune.data.lint.prose import (
    has_wrong_numbers,
    is_han,
    is_imperative,
    is_open,
    is_prose,
    is_question,
)
from glmtune.data.lint.texts import around

FEWEST_ROWS = 12  # to speak of a habit
LEAST_CASES = 3  # of a fault that real rows have now and then
OPEN_SHARE = 0.05  # of prose that ends in mid-sentence; 2 % in real rows
ECHO_SHARE = 0.02  # of answers that repeat their prompt; 0.2 % in real rows
LEAST_LETTERS = 4  # of a prompt that is repeated
NUMBERS_SHARE = 0.1  # of the answers with equations or lists
SAME_LONG, SAME_SHORT = 0.3, 0.95  # of all answers, by their length
SHORT_CHARS = 20
SWAPPED_SHARE = 0.03  # of rows that are swapped among right ones
MOST_LABELS = 30  # different answers of a classification
SYSTEM_SHARES = (0.02, 0.98)  # of rows that have the usual system prompt
TRADITIONAL_CHARS = 3  # different ones, that a name does not have

Found = Iterator[tuple[str, int, Fault]]
"""The check, the index of a row, and the fault."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is kept of a row."""

    row: int
    answer: int  # hash
    num_answer_chars: int
    is_closed: bool | None  # whether its prose ends as a sentence does; None: it is no prose
    is_short_open: bool | None  # the same of a short sentence
    echoes: bool
    asks: tuple[bool, bool]  # question, answer: whether it asks for something
    is_longer_question: bool
    wrong_numbers: bool | None  # None: no numbers to check
    num_traditional: int
    is_chinese: bool
    system: int | None  # hash of the system prompt; None: it has none
    has_tools: bool
    excerpts: tuple[str, str]  # of the end of the answer, and of its beginning


class Habits:
    """Collects facts of rows, and finds what they show together."""

    def __init__(self) -> None:
        self._rows: list[_Facts] = []
        self._pairing = Pairing()
        self._num_answered = self._num_off = 0
        self._first_off: int | None = None

    def add(self, row: int, conversation: Conversation) -> None:
        """Look at a row that is learned; `row` is its index."""
        answers = [message for message in conversation if message.role == "assistant"]
        self._num_answered += bool(answers)
        if answers and all(answer.is_learned is False for answer in answers):
            self._num_off += 1
            self._first_off = row if self._first_off is None else self._first_off
        question, answer = _first_turn(conversation)
        if question and answer:
            self._rows.append(_facts(row, question, answer, conversation))
            self._pairing.add(row, question, answer)

    def find(self) -> Found:
        """Yield what the rows show together."""
        yield from self._mispaired()
        if self._first_off is not None and self._num_off > self._num_answered / 2:
            why = (
                f"all answers of {self._num_off:,} of {self._num_answered:,} rows are marked as "
                "not learned, so most of the set teaches nothing"
            )
            yield "few-learned", self._first_off, Fault("warning", why, "")
        if len(self._rows) < FEWEST_ROWS:
            return
        for find in (
            _unfinished, _echoes, _same_answer, _ordered, _swapped, _system, _numbers, _script,
        ):  # fmt: skip
            yield from find(self._rows)

    def _mispaired(self) -> Found:
        for block in self._pairing.finish():
            moved = (
                f"; the answers moved by {abs(block.shift)} row{'s'[: abs(block.shift) > 1]} "
                f"{'down' if block.shift > 0 else 'up'}"
                if block.shift
                else ""
            )
            why = (
                f"of {block.num_voted} answers here that take up words of a question, only "
                f"{block.num_own} take up their own{moved}"
            )
            yield "mispaired", block.first, Fault("error", why, "")


def _first_turn(conversation: Conversation) -> tuple[str, str]:
    """Return the first question with a plain answer, and that answer."""
    question = ""
    for message in conversation:
        if message.role == "user":
            question = message.content
        elif message.role == "assistant" and not message.metadata and question:
            return question, message.content
        elif message.role != "system":
            question = ""  # an answer to a tool's result depends on that
    return "", ""


def _facts(row: int, question: str, answer: str, conversation: Conversation) -> _Facts:
    prose = is_prose(answer)
    system = next((m.content for m in conversation if m.role == "system"), "")
    traditional = find_traditional(question + answer)
    is_short = not prose and len(answer) >= 12 and is_han(answer) and "\n" not in answer
    return _Facts(
        row=row,
        answer=hash(answer.strip()),
        num_answer_chars=len(answer),
        is_closed=not is_open(answer) if prose else None,
        is_short_open=is_open(answer) if is_short else None,
        echoes=_echoes_prompt(question, answer),
        asks=(is_question(question) or is_imperative(question), is_question(answer)),
        is_longer_question=len(question) > 2 * len(answer),
        wrong_numbers=has_wrong_numbers(question, answer),
        num_traditional=len(set(traditional)),
        is_chinese=is_han(question + answer),
        system=hash(system.strip()) if system.strip() else None,
        has_tools=any(m.tools for m in conversation),
        excerpts=(f"...{answer.rstrip()[-60:]}", around(answer, 0, 0)),
    )


def _echoes_prompt(question: str, answer: str) -> bool:
    """Whether an answer has its entire prompt, or the instruction, in it."""
    asked = question.strip()
    if sum(map(str.isalpha, asked[:40])) < LEAST_LETTERS:
        return False  # 3 + 4 = 7 repeats 3 + 4
    if len(asked) >= 10 and asked in answer:
        return True
    if asked[:2] not in answer[:40]:
        return False  # nearly every row
    asked, first = plain(asked[:2_000]), plain(asked.split("\n", 1)[0][:2_000])
    said = plain(answer[: len(question) + 40])
    return (len(asked) >= 4 and said.startswith(asked)) or (
        len(first) >= 6 and said.startswith(first)
    )


# --- Each habit ---------------------------------------------------------------------------------


def _each(check: str, rows: Sequence[_Facts], why: str, severity: Severity = "warning") -> Found:
    for row in rows:
        yield check, row.row, Fault(severity, why, row.excerpts[1])


def _unfinished(rows: Sequence[_Facts]) -> Found:
    long = [row for row in rows if row.is_closed is not None]
    short = [row for row in rows if row.is_short_open is not None]
    cut = [row for row in long if row.is_closed is False]
    if not _is_more(cut, long, OPEN_SHARE):
        cut = []
    num_all = len(long) if cut else 0
    few = [row for row in short if row.is_short_open]
    if _is_more(few, short, OPEN_SHARE) and len(few) < 0.3 * len(short):
        cut, num_all = cut + few, num_all + len(short)
    for row in sorted(cut, key=lambda row: row.row):
        why = f"the answer ends in mid-sentence, as {len(cut):,} of {num_all:,} here do"
        yield "unfinished", row.row, Fault("warning", why, row.excerpts[0])


def _is_more(cases: Sequence[_Facts], rows: Sequence[_Facts], share: float) -> bool:
    return len(cases) >= LEAST_CASES and len(cases) > share * len(rows)


def _echoes(rows: Sequence[_Facts]) -> Found:
    cases = [row for row in rows if row.echoes]
    if _is_more(cases, rows, ECHO_SHARE):
        why = f"the answer repeats its prompt, as {len(cases):,} of {len(rows):,} here do"
        yield from _each("echo", cases, why)


def _same_answer(rows: Sequence[_Facts]) -> Found:
    (answer, times), *_ = Counter(row.answer for row in rows).most_common(1)
    first = next(row for row in rows if row.answer == answer)
    most = SAME_SHORT if first.num_answer_chars <= SHORT_CHARS else SAME_LONG
    if times == len(rows) or times > most * len(rows):
        why = f"{times:,} of {len(rows):,} questions have this one answer, whatever they ask"
        yield "one-answer", first.row, Fault("warning", why, first.excerpts[1])


def _ordered(rows: Sequence[_Facts]) -> Found:
    counts = Counter(row.answer for row in rows)
    if not 2 <= len(counts) <= MOST_LABELS or len(rows) < 5 * len(counts):
        return
    changes = [
        after.row for before, after in pairwise(rows)
        if before.answer != after.answer
    ]  # fmt: skip
    expected = len(rows) * (1 - sum((count / len(rows)) ** 2 for count in counts.values()))
    if expected >= 5 and len(changes) < 0.3 * expected:
        why = (
            f"the {len(counts)} different answers stand in order: they change {len(changes)} times "
            f"in {len(rows):,} rows, where {expected:.0f} times are usual"
        )
        yield "ordered", changes[0], Fault("warning", why, rows[0].excerpts[1])


def _swapped(rows: Sequence[_Facts]) -> Found:
    asking = sum(row.asks[0] for row in rows)
    answers = [row for row in rows if row.asks[1]]
    odd = [row for row in rows if row.asks[1] and not row.asks[0]]
    if len(answers) > asking + 0.3 * len(rows):
        why = (
            f"{len(answers):,} of {len(rows):,} answers ask for something, and {asking:,} questions"
        )
        yield "swapped", answers[0].row, Fault("warning", why, answers[0].excerpts[1])
        return
    odd = [row for row in odd if row.is_longer_question]
    if asking > 0.5 * len(rows) and _is_more(odd, rows, SWAPPED_SHARE):
        why = f"the question reads as an answer and the answer as a question, in {len(odd):,} rows"
        yield from _each("swapped", odd, why)


def _system(rows: Sequence[_Facts]) -> Found:
    rows = [row for row in rows if not row.has_tools]
    counts = Counter(row.system for row in rows if row.system is not None)
    if not counts:
        return
    times = counts.most_common(1)[0][1]
    without = [row for row in rows if row.system is None]
    low, high = SYSTEM_SHARES
    if times >= 0.8 * counts.total() and without and low < times / len(rows) < high:
        why = (
            f"no system prompt, as in {len(without):,} rows of {len(rows):,}; {times:,} have "
            "the same one"
        )
        yield "system-prompt", without[0].row, Fault("warning", why, without[0].excerpts[1])


def _numbers(rows: Sequence[_Facts]) -> Found:
    checked = [row for row in rows if row.wrong_numbers is not None]
    wrong = [row for row in checked if row.wrong_numbers]
    if _is_more(wrong, checked, NUMBERS_SHARE):
        why = (
            f"a sum or the order of a numbered list is wrong, as in {len(wrong):,} of "
            f"{len(checked):,} answers that have one"
        )
        yield from _each("numbers", wrong, why)


def _script(rows: Sequence[_Facts]) -> Found:
    chinese = [row for row in rows if row.is_chinese]
    mixed = [row for row in chinese if row.num_traditional >= TRADITIONAL_CHARS]
    if not mixed or len(mixed) > 0.7 * len(chinese):
        return  # a traditional set
    severity: Severity = "warning" if _is_more(mixed, chinese, OPEN_SHARE / 2) else "info"
    why = (
        f"traditional characters, as in {len(mixed):,} of {len(chinese):,} Chinese rows; the "
        "others are simplified"
    )
    yield from _each("script", mixed, why, severity)
