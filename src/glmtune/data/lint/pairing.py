"""Do answers stand with their questions? Judged by the words that both have.

An answer takes up words of its question. In a block of rows, the pieces of two characters that few
questions have vote for the question that an answer is about:

    rows as they should be          nearly every answer votes for its own question
    answers moved by one row        nearly every answer votes for the question before its own
    shuffled                        nearly every answer votes for some other question
    labels, translations            hardly any answer votes, so nothing is known
"""

import re
from collections import Counter
from dataclasses import dataclass

BLOCK = 200  # rows that are compared with each other
ALWAYS_JUDGED = 10  # blocks; after them every tenth one
LEAST_VOTES = 2  # for a question, or the answer is about nothing in particular
FEWEST_ROWS = 12  # that voted, to judge a block
LEAST_OWN = (
    0.2  # share of votes for the own question; 0.4 to 0.8 in real rows, 0.05 in shuffled ones
)
LEAST_OWN_VOTES = 0.3  # of those for the best question, to be about the own one too
_MOST_QUESTIONS = 0.03  # share of questions with a piece in common; more say nothing
_MOST_CHARS = 300  # of a text that is looked at

_RUNS = re.compile(r"[\u4e00-\u9fff]{2,}|[a-z]{4,}|\d{3,}")


@dataclass(frozen=True, slots=True)
class Mispaired:
    """A block of rows whose answers belong to other questions.

    Attributes:
        first: index of its first row with such an answer.
        example: index of the row whose question that answer is about.
        num_voted, num_own: rows whose answer is about some question, and about its own too.
        shift: by how many rows the answers moved, if it is the same for most; else 0.
    """

    first: int
    example: int
    num_voted: int
    num_own: int
    shift: int


def pieces(text: str) -> set[str]:
    """Return the pairs of Chinese characters, the words and the numbers of a text."""
    found: set[str] = set()
    for run in _RUNS.findall(text[:_MOST_CHARS].lower()):
        if run[0] > "\u4dff":
            found.update(map(str.__add__, run, run[1:]))
        else:
            found.add(run)
    return found


class Pairing:
    """Collects rows in blocks and judges each block once it is full."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._questions: list[set[str]] = []
        self._answers: list[set[str]] = []
        self._num_blocks = 0
        self._found: list[Mispaired] = []

    def add(self, row: int, question: str, answer: str) -> None:
        """Add a row by its index, with what was asked and what was answered."""
        if self._is_judged():
            self._questions.append(pieces(question))
            self._answers.append(pieces(answer))
        self._rows.append(row)
        if len(self._rows) == BLOCK:
            self._close()

    def finish(self) -> list[Mispaired]:
        """Judge the rest; return the blocks at fault."""
        self._close()
        return self._found

    def _is_judged(self) -> bool:
        return self._num_blocks < ALWAYS_JUDGED or self._num_blocks % 10 == 0

    def _close(self) -> None:
        if self._questions and (fault := self._judge()):
            self._found.append(fault)
        self._num_blocks += 1
        self._rows, self._questions, self._answers = [], [], []

    def _judge(self) -> Mispaired | None:
        with_piece = self._questions_by_piece()
        others: list[tuple[int, list[int]]] = []  # a row, and the questions its answer is about
        num_voted = 0
        distinct = {frozenset(answer): row for row, answer in enumerate(self._answers)}
        for answer, row in distinct.items():
            votes: dict[int, float] = {}
            for piece in answer & with_piece.keys():
                for asked in with_piece[piece]:
                    votes[asked] = votes.get(asked, 0) + 1 / len(with_piece[piece])
            best = max(votes, key=votes.__getitem__, default=None)
            if best is None or len(answer & self._questions[best]) < LEAST_VOTES:
                continue
            num_voted += 1
            if votes.get(row, 0) < LEAST_OWN_VOTES * votes[best]:
                others.append((row, [each for each in votes if votes[each] > 0.9 * votes[best]]))
        num_own = num_voted - len(others)
        asked_once = {best[0] for _, best in others}  # not one that quotes all the answers
        is_usual = num_own >= LEAST_OWN * num_voted or 2 * len(asked_once) < len(others)
        if num_voted < FEWEST_ROWS or is_usual:
            return None
        shifts = Counter(row - asked for row, best in others for asked in best)
        shift, times = shifts.most_common(1)[0]
        row, asked = next(
            (row, asked) for row, best in others for asked in best if row - asked == shift
        )
        is_shifted = times > num_voted / 2
        return Mispaired(
            self._rows[row], self._rows[asked], num_voted, num_own, shift if is_shifted else 0
        )

    def _questions_by_piece(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for index, question in enumerate(self._questions):
            for piece in question:
                found.setdefault(piece, []).append(index)
        most = max(5, int(_MOST_QUESTIONS * len(self._questions)))
        return {piece: rows for piece, rows in found.items() if len(rows) <= most}
