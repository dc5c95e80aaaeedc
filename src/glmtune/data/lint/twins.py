"""Pairs of rows: duplicates, near duplicates, contradictions, leaks.

Only numbers are kept of each row, about 620 bytes: hashes of the row and of its prompt, a MinHash
of its questions and one of its answers. Two rows are near duplicates only if both MinHashes are
close: a thousand questions with the answer "Yes." are not duplicates, nor are two answers to
one question.

    near        question and answer share 90 % of their 4-grams of characters, by estimate
    a band      4 slots of the one MinHash and 4 of the other; near rows agree in one of 32 bands
                with a probability above 1 - (1 - 0.9^8)^32 = 99.99 %

rensa computes the MinHashes; the index is our own, for memory. rensa's RMinHashLSH takes 2,775
bytes a row for one MinHash (measured with 128 slots in 32 bands), and a band here spans two. Ours
is one 8-byte key for each row and band, sorted one band at a time.

Source: Broder 1997, "On the resemblance and containment of documents"; bands: Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4.
"""

from array import array
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from glmtune.conversation import Conversation
from glmtune.data.lint.chinese import MARK, marked
from glmtune.data.lint.findings import Fault
from glmtune.recipe.sections import LintSection

NGRAM_CHARS = 4
SLOTS = 128  # a share of 90 % is estimated within 3 %
BAND_SLOTS = 4
LEAST_TURN_CHARS = 20  # of a question with its answer; thanks and greetings are shorter
_SEED = 1
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio

Digests = npt.NDArray[np.uint16]  # the lower half is enough to tell slots apart
RowIndices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Twin:
    """A row, what is wrong with it, and the other row that it is compared with.

    Attributes:
        check: the id.
        row: an index, in the order in which rows were added.
        other: the index of the other row, which is earlier or is learned.
        fault: without an excerpt.
    """

    check: Literal["duplicate", "near-duplicate", "contradiction", "leak"]
    row: int
    other: int
    fault: Fault


def can_find_near() -> bool:
    """Whether near-duplicates can be found: rensa, which computes the MinHash, is an extra."""
    return find_spec("rensa") is not None


class Twins:
    """Collects rows, then compares each with those that may be similar."""

    def __init__(self) -> None:
        self._row_keys = array("q")
        self._prompt_keys = array("q")
        self._exact_keys = array("q")  # of the prompt, but for case and white space
        self._plain_keys = array("q")  # of prompt and answer, without what makes no difference
        self._turn_keys = array("q")  # of each question with its answer,
        self._turn_rows = array("q")  # and the row of each
        self._answer_chars = array("q")
        self._digests: list[Digests] = []
        self._finds_near = can_find_near()

    def __len__(self) -> int:
        return len(self._row_keys)

    def add(self, conversations: Sequence[Conversation], rejected: Sequence[str]) -> None:
        """Add rows.

        Args:
            conversations: of each row; of a pair, the better side.
            rejected: the worse answer of each; "" where there is none.
        """
        questions, answers = [], []
        for conversation, worse in zip(conversations, rejected, strict=True):
            turns = [(m.role, m.metadata, m.content, str(m.tools)) for m in conversation]
            last = max(i for i, turn in enumerate(turns) if turn[0] == "assistant")
            texts = [marked(message.content) for message in conversation]
            said = [
                (role, name, text.replace(MARK, "") or content, tools)
                for text, (role, name, content, tools) in zip(texts, turns, strict=True)
            ]
            prompt, answer = said[:last], said[last][2]
            self._row_keys.append(hash((*turns, worse)))
            # An answer without a prompt has none in common with another.
            self._prompt_keys.append(hash(tuple(prompt)) if prompt else self._row_keys[-1])
            self._exact_keys.append(
                hash("".join("".join(t[2] for t in turns[:last]).lower().split()))
            )
            self._answer_chars.append(len(turns[last][2]))
            self._plain_keys.append(hash((*prompt, answer, worse)))
            self._add_turns(prompt, answer)
            questions.append(
                "".join(
                    text
                    for text, turn in zip(texts, turns, strict=True)
                    if turn[0] in ("user", "observation")
                )
            )
            answers.append(
                "".join(
                    turn[1] + text
                    for text, turn in zip(texts, turns, strict=True)
                    if turn[0] == "assistant"
                )
                + marked(worse)
            )
        if self._finds_near:
            self._digests.append(np.concatenate((minhash(questions), minhash(answers)), axis=1))

    def _add_turns(self, prompt: Sequence[tuple[str, str, str, str]], answer: str) -> None:
        """Remember each question with its answer, whatever stands before or after both."""
        row = len(self._row_keys) - 1
        texts = [*((role, text) for role, _, text, _ in prompt), ("assistant", answer)]
        for (role, question), (next_role, reply) in pairwise(texts):
            is_turn = role == "user" and next_role == "assistant"
            if is_turn and len(question) + len(reply) >= LEAST_TURN_CHARS:
                self._turn_keys.append(hash((question, reply)))
                self._turn_rows.append(row)

    def find(self, is_held_out: npt.NDArray[np.bool_], section: LintSection) -> Iterator[Twin]:
        """Compare the rows.

        Args:
            is_held_out: of each row, (rows,).
            section: the thresholds.
        """
        if not len(self):
            return
        digests, bands = self._hash_bands()
        row_keys, prompts = np.asarray(self._row_keys), np.asarray(self._prompt_keys)
        for rows in (np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)):
            same = _earlier_same(row_keys, rows)
            alike = _earlier_same(np.asarray(self._plain_keys), rows)
            near = _nearest(digests, bands, rows, section.near_duplicate)
            if self._finds_near:
                near |= {row: (other, 1.0) for row, other in alike.items()}
            copies = Counter(same.values())
            for row, first in same.items():
                yield Twin("duplicate", row, first, _duplicate(copies[first]))
            for row, (other, share) in near.items():
                if row not in same:
                    yield Twin(
                        "near-duplicate", row, other, self._near(row, other, share, alike, section)
                    )
            for row, first in _earlier_same(prompts, rows).items():
                if row not in same and row not in near:
                    fault = self._contradiction(row, first, section)
                    yield Twin("contradiction", row, first, fault)
        near_leaks = _leaks(digests, bands, prompts, is_held_out, section.near_duplicate)
        leaks = {twin.row: twin for twin in self._leaked_turns(is_held_out)}
        leaks |= {twin.row: twin for twin in near_leaks}
        yield from (leaks[row] for row in sorted(leaks))

    def _leaked_turns(self, is_held_out: npt.NDArray[np.bool_]) -> Iterator[Twin]:
        """Find held-out rows that begin with a question and answer of some learned row."""
        keys, rows = np.asarray(self._turn_keys), np.asarray(self._turn_rows)
        first_with: dict[int, int] = {}
        for key, row in zip(keys.tolist(), rows.tolist(), strict=True):
            if not is_held_out[row]:
                first_with.setdefault(key, row)
        first_turns = dict(zip(rows[::-1].tolist(), keys[::-1].tolist(), strict=True))
        why = "the first question and answer of this held-out row are also learned"
        for row in np.flatnonzero(is_held_out).tolist() if first_with else ():
            if (other := first_with.get(first_turns.get(row, 0))) is not None:
                yield Twin("leak", row, other, Fault("warning", why, ""))

    def _hash_bands(self) -> tuple[Digests, npt.NDArray[np.uint64]]:
        """Return digests, (rows, 2 * SLOTS), and keys, (bands, rows); no bands without rensa."""
        if not self._digests:
            return np.empty((len(self), 0), np.uint16), np.empty((0, len(self)), np.uint64)
        digests = np.concatenate(self._digests)
        return digests, _band_keys(digests)

    def _near(
        self, row: int, other: int, share: float, alike: Container[int], section: LintSection
    ) -> Fault:
        if row not in alike:
            why = f"question and answer are {share:.0%} those of the other row"
            return Fault("warning", why, "")
        # A short question is often meant to be learned with and without its question mark.
        is_short = self._answer_chars[row] <= section.short_answer_chars
        is_meant = is_short and self._exact_keys[row] != self._exact_keys[other]
        why = "but for punctuation, case or script it is the other row"
        return Fault("info" if is_meant else "warning", why, "")

    def _contradiction(self, row: int, first: int, section: LintSection) -> Fault:
        longest = max(self._answer_chars[row], self._answer_chars[first])
        is_exact = self._exact_keys[row] == self._exact_keys[first]
        if longest <= section.short_answer_chars and is_exact:
            return Fault("warning", "the same prompt has another short answer", "")
        return Fault("info", "the same prompt has another answer", "")


def _duplicate(copies: int) -> Fault:
    times = f", {copies + 1:,} times in all" if copies > 1 else ""
    return Fault("warning", f"the same row occurs earlier{times}", "")


def _leaks(
    digests: Digests,
    bands: npt.NDArray[np.uint64],
    prompts: RowIndices,
    is_held_out: npt.NDArray[np.bool_],
    threshold: float,
) -> Iterator[Twin]:
    """Find held-out rows whose prompt, or nearly the entire row, is learned too."""
    learned, held_out = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    if not len(held_out):
        return
    first_with: dict[int, int] = {}
    for row in learned.tolist():
        first_with.setdefault(prompts[row].item(), row)
    near = _nearest(digests, bands, held_out, threshold, among=learned)
    for row in held_out.tolist():
        if (other := first_with.get(prompts[row].item())) is not None:
            why = "this held-out row's prompt is also learned"
            yield Twin("leak", row, other, Fault("error", why, ""))
        elif row in near:
            other, share = near[row]
            why = f"this held-out row is {share:.0%} one that is learned"
            yield Twin("leak", row, other, Fault("warning", why, ""))


def minhash(texts: Sequence[str]) -> Digests:
    """MinHash the n-grams of texts, (texts, SLOTS); all empty texts are equal."""
    import rensa

    hashes, offsets = _ngram_hashes(texts)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, SLOTS, _SEED)
    slots = np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(texts), SLOTS)
    return slots.astype(np.uint16)


def _ngram_hashes(
    texts: Sequence[str],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Hash the n-gram that begins at each character; at the end of a text they are shorter.

    Returns:
        The hashes of all texts, and where each text begins and the last one ends.
    """
    # A NUL stands for the end of a text here, so one in a text is taken for another character.
    texts = [text.replace("\0", "\ufffd") for text in texts]
    end = "\0" * (NGRAM_CHARS - 1)
    letters = np.frombuffer(
        "".join(text + end for text in texts).encode("utf-32-le"), dtype=np.uint32
    ).astype(np.uint64)
    hashes = letters.copy()
    for shift in range(1, NGRAM_CHARS):
        hashes *= _ODD
        hashes[:-shift] += letters[shift:]
    hashes ^= hashes >> np.uint64(29)
    hashes *= _ODD
    lengths = np.fromiter(map(len, texts), np.uint64, count=len(texts))
    offsets = np.concatenate((np.zeros(1, np.uint64), np.cumsum(lengths, dtype=np.uint64)))
    return hashes[letters != 0], offsets


def _band_keys(digests: Digests) -> npt.NDArray[np.uint64]:
    """Hash each band of each row to one number, (bands, rows)."""
    both = digests.reshape(len(digests), 2, SLOTS // BAND_SLOTS, BAND_SLOTS).astype(np.uint64)
    keys = np.zeros((len(digests), SLOTS // BAND_SLOTS), dtype=np.uint64)
    for half in range(2):
        for slot in range(BAND_SLOTS):
            keys = (keys ^ both[:, half, :, slot]) * _ODD
            keys ^= keys >> np.uint64(31)
    return np.ascontiguousarray(keys.T)


def _earlier_same(keys: RowIndices, rows: RowIndices) -> dict[int, int]:
    """Return each row whose key occurs earlier in `rows`, with the first row that has it."""
    first: dict[int, int] = {}
    pairs = ((row, first.setdefault(keys[row].item(), row)) for row in rows.tolist())
    return {row: other for row, other in pairs if row != other}


def _nearest(
    digests: Digests,
    bands: npt.NDArray[np.uint64],
    rows: RowIndices,
    threshold: float,
    among: RowIndices | None = None,
) -> dict[int, tuple[int, float]]:
    """Find for each row one that is near.

    Among the rows with an equal band, it is compared with the first and with the one before it,
    so that a thousand equal rows take a thousand comparisons.

    Args:
        digests: of all rows.
        bands: of all rows.
        rows: the rows to compare, in order.
        threshold: the least share of equal slots of near rows.
        among: the rows to compare with; None for the earlier ones of `rows`.

    Returns:
        row -> (the other, the smaller of the two shares of equal slots).
    """
    best: dict[int, tuple[int, float]] = {}
    for keys in bands:
        for left, right in _candidates(keys, rows, rows if among is None else among):
            shares = _shares(digests, left, right)
            is_near = shares >= threshold
            near = (left[is_near].tolist(), right[is_near].tolist(), shares[is_near].tolist())
            for row, other, share in zip(*near, strict=True):
                if row not in best or share > best[row][1]:
                    best[row] = (other, share)
    return best


def _candidates(
    keys: npt.NDArray[np.uint64], rows: RowIndices, among: RowIndices
) -> Iterator[tuple[RowIndices, RowIndices]]:
    """Pair each row with the first of `among` that has its key, and with the last before it."""
    order = among[np.argsort(keys[among], kind="stable")]  # by key, then by row
    sorted_keys = keys[order]
    first = np.searchsorted(sorted_keys, keys[rows], side="left")
    if among is rows:
        position = np.empty(len(keys), dtype=np.int64)
        position[order] = np.arange(len(order))
        before = position[rows] - 1
    else:
        before = np.searchsorted(sorted_keys, keys[rows], side="right") - 1
    for found in (first, before):
        inside = (found >= 0) & (found < len(order))
        left, right = rows[inside], order[found[inside]]
        is_pair = (keys[left] == keys[right]) & (left != right)
        yield left[is_pair], right[is_pair]


def _shares(digests: Digests, left: RowIndices, right: RowIndices) -> npt.NDArray[np.float64]:
    """Estimate the similarity of pairs: the smaller share, of questions and of answers."""
    shares = np.empty(len(left))
    for start in range(0, len(left), 20_000):  # 20 MB at a time
        part = slice(start, start + 20_000)
        equal = digests[left[part]] == digests[right[part]]
        halves = equal.reshape(-1, 2, SLOTS).mean(axis=2)
        shares[part] = halves.min(axis=1)
    return shares
