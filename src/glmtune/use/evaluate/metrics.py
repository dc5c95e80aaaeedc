r"""Metrics: pure functions of an answer and its reference, by name.

    exact            the same text, without white space around it                       0 or 100
    contains         the reference is in the answer                                     0 or 100
    number           the last number of both is the same: 1,200 = 1200.0, 1/2 = 0.5     0 or 100
    bleu-4           of one sentence, by sacrebleu with its Chinese tokens              0 to 100
    chrf             character n-grams, by sacrebleu                                    0 to 100
    rouge-1 ...      F1 over words of jieba, as ChatGLM3's finetune_demo counts         0 to 100
    rouge-1-char ... F1 over characters of Chinese and words of other scripts           0 to 100
    json             the answer is JSON                                                 0 or 100
    tool-name        the tools that are called, of rows whose reference calls one       0 or 100
    tool-call        their names and arguments                                          0 or 100
    stop             the model ended the answer by itself                               0 or 100
    length           of the answer, in tokens

ROUGE is computed here, since the package that the official demo uses (rouge-chinese) is no longer
maintained and needs memory for every pair of words; `tests/use/evaluate` compares the two. As
there, n-grams count once, and the longest common subsequence goes across sentences.

A metric that says nothing about a row returns None: `number` where the reference has no number,
for example. Such a row is not counted.
"""

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from typing import Any, Literal

import regex  # type: ignore[import-untyped]  # has classes for scripts, unlike `re`

from glmtune.errors import DataError
from glmtune.recipe.choices import MetricName
from glmtune.tool_calls import parse_tool_call

MAX_DIGITS = 200  # of a number; longer ones are texts
EPSILON = 1e-8  # in the denominator of F1, as rouge-chinese has it

_NUMBER = regex.compile(
    r"(?:(?<![\w.)])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s*/\s*\d+(?![\d.]))?"
)
_SIGNS = str.maketrans("\N{MINUS SIGN}\N{FRACTION SLASH}", "-/")
_TOKEN = regex.compile(r"\p{Han}|[[\p{L}\p{M}\p{N}_]--\p{Han}]+|\S", regex.V1)
_CALL = regex.compile(r"(?:^|\n)([^\n`]+)\n```[^\n]*\n(.*?)\n```", regex.DOTALL)

Score = float | None


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, and what a metric may look at.

    Attributes:
        answer: the text, as chat shows it.
        reference: the answer of the row; None if it has none.
        num_tokens: of the answer, without the stop token.
        has_ended: whether the model ended it, rather than the limit.
    """

    answer: str
    reference: str | None
    num_tokens: int
    has_ended: bool


@dataclass(frozen=True, slots=True)
class Metric:
    """A way to score answers.

    Attributes:
        name: of a recipe and of a result.
        of: scores an answer; None where the metric says nothing about the row.
        is_share: whether every score is 0 or 100, so that the mean is a share in percent.
        better: whether higher scores are better; None where neither is.
    """

    name: str
    of: Callable[[Answered], Score]
    is_share: bool = False
    better: Literal["higher", "lower"] | None = "higher"


def exact(answer: str, reference: str) -> float:
    """Compare two texts to the letter; white space around them does not count."""
    return _percent(answer.strip() == reference.strip())


def contains(answer: str, reference: str) -> Score:
    """Look for the reference in the answer."""
    wanted = reference.strip()
    return _percent(wanted in answer) if wanted else None


def number(answer: str, reference: str) -> Score:
    """Compare the last number of both texts; None where the reference has none."""
    wanted = last_number(reference)
    return None if wanted is None else _percent(last_number(answer) == wanted)


def last_number(text: str) -> Fraction | None:
    """Return the last number of a text: an integer, a decimal or a fraction, also full-width."""
    plain = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    found = _NUMBER.findall(plain)
    if not found or len(found[-1]) > MAX_DIGITS:
        return None
    over, _, under = found[-1].replace(",", "").partition("/")
    if under.strip():
        return Fraction(over.strip()) / int(under) if int(under) else None
    return Fraction(over.strip())


def bleu_4(answer: str, reference: str) -> float:
    """Compute sentence BLEU with up to four-grams; a short answer has fewer (effective order)."""
    return float(_sacrebleu_metric("bleu-4").sentence_score(answer, [reference]).score)


def chrf(answer: str, reference: str) -> float:
    """Compute chrF, the F2 of character n-grams up to six."""
    return float(_sacrebleu_metric("chrf").sentence_score(answer, [reference]).score)


@cache
def _sacrebleu_metric(name: str) -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise missing_extra(name, "sacrebleu") from None
    return CHRF() if name == "chrf" else BLEU(tokenize="zh", effective_order=True)


def rouge_n(answer: Sequence[str], reference: Sequence[str], n: int) -> float:
    """Compute the F1 of n-grams, each counted once.

    Args:
        answer, reference: their tokens.
        n: of the n-grams.
    """
    ours, theirs = (
        {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}
        for tokens in (answer, reference)
    )
    return _f1(len(ours & theirs), len(ours), len(theirs))


def rouge_l(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Compute the F1 of the longest common subsequence of two lists of tokens."""
    return _f1(common_subsequence(answer, reference), len(answer), len(reference))


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, a row of the table at a time.

    The row is one integer, a bit for each token of `one`, so that memory is linear.
    Source: Hyyrö 2004, Bit-parallel LCS-length computation revisited.
    """
    places: dict[str, int] = {}
    for index, token in enumerate(one):
        places[token] = places.get(token, 0) | (1 << index)
    full = (1 << len(one)) - 1
    row = full
    for token in other:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(one) - row.bit_count()


def _f1(common: int, num_ours: int, num_theirs: int) -> float:
    precision = common / num_ours if num_ours else 0.0
    recall = common / num_theirs if num_theirs else 0.0
    return 100 * 2 * precision * recall / (precision + recall + EPSILON)


def character_tokens(text: str) -> list[str]:
    """Split a text: each Chinese character, each word of other scripts, each punctuation mark."""
    return [*_TOKEN.findall(text)]


def word_tokens(text: str) -> list[str]:
    """Split a text into the words of jieba, as the official demo does; white space is none."""
    return " ".join(_jieba().cut(text)).split()


@cache
def _jieba() -> Any:
    import logging

    try:
        import jieba
    except ImportError:
        raise missing_extra("rouge-l", "jieba", instead="rouge-l-char needs nothing more") from None
    jieba.setLogLevel(logging.WARNING)
    return jieba.Tokenizer()


def is_json(answer: str, reference: str = "") -> float:
    """Whether the answer is JSON as a program would read it; no fence around it is removed."""
    try:
        json.loads(answer, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return 0.0
    return 100.0


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def tool_calls(text: str) -> list[tuple[str, Any]]:
    """Find the tool calls in a text: each a name and its arguments.

    A call is the name on a line, then `tool_call(...)` between fences as ChatGLM3 writes it, or a
    JSON object to the end of the text as GLM-4 does. Arguments that cannot be read are a text.
    """
    found: list[tuple[str, Any]] = []
    for name, source in _CALL.findall(text):
        try:
            arguments: Any = parse_tool_call(f"```\n{source}\n```")
        except ValueError:
            arguments = source
        found.append((name.strip(), arguments))
    if found:
        return found
    name, _, rest = text.strip().partition("\n")
    if name and rest.startswith("{"):
        try:
            return [(name.strip(), json.loads(rest))]
        except (ValueError, RecursionError):
            return []
    return []


def tool_name(answer: str, reference: str) -> Score:
    """Compare the names of the tools; None where the reference calls none."""
    wanted = [name for name, _ in tool_calls(reference)]
    return _percent([name for name, _ in tool_calls(answer)] == wanted) if wanted else None


def tool_call(answer: str, reference: str) -> Score:
    """Compare names and arguments, in any order of arguments; None where none is called."""
    wanted = tool_calls(reference)
    return _percent(tool_calls(answer) == wanted) if wanted else None


def _percent(is_right: bool) -> float:
    return 100.0 if is_right else 0.0


def missing_extra(name: str, package: str, *, instead: str = "") -> DataError:
    """Return the error for a metric whose package is not installed."""
    other = f" {instead}." if instead else ""
    return DataError(
        f"the metric {name} needs the package {package}, which is not installed. "
        f"Run `pip install 'glmtune[evaluate]'`, or leave the metric out.{other}"
    )


def of_pair(name: str, score: Callable[[str, str], Score], *, is_share: bool = False) -> Metric:
    """Make a metric of a function of an answer and its reference."""

    def of(answered: Answered) -> Score:
        return None if answered.reference is None else score(answered.answer, answered.reference)

    return Metric(name, of, is_share)


def _rouge(name: str, tokens: Callable[[str], list[str]], n: int | None) -> Metric:
    score = rouge_l if n is None else partial(rouge_n, n=n)
    return of_pair(name, lambda answer, reference: score(tokens(answer), tokens(reference)))


METRICS: Mapping[MetricName, Metric] = {
    "exact": of_pair("exact", exact, is_share=True),
    "contains": of_pair("contains", contains, is_share=True),
    "number": of_pair("number", number, is_share=True),
    "bleu-4": of_pair("bleu-4", bleu_4),
    "chrf": of_pair("chrf", chrf),
    "rouge-1": _rouge("rouge-1", word_tokens, 1),
    "rouge-2": _rouge("rouge-2", word_tokens, 2),
    "rouge-l": _rouge("rouge-l", word_tokens, None),
    "rouge-1-char": _rouge("rouge-1-char", character_tokens, 1),
    "rouge-2-char": _rouge("rouge-2-char", character_tokens, 2),
    "rouge-l-char": _rouge("rouge-l-char", character_tokens, None),
    "json": Metric("json", lambda each: is_json(each.answer), is_share=True),
    "tool-name": of_pair("tool-name", tool_name, is_share=True),
    "tool-call": of_pair("tool-call", tool_call, is_share=True),
    "stop": Metric("stop", lambda each: _percent(each.has_ended), is_share=True),
    "length": Metric("length", lambda each: float(each.num_tokens), better=None),
}


def corpus_score(name: str, pairs: Sequence[tuple[str, str]]) -> float | None:
    """Return the score of a whole set, for metrics that papers compute so; None for others.

    Args:
        name: of the metric.
        pairs: answers and their references.
    """
    if not pairs or name not in ("bleu-4", "chrf"):
        return None
    answers, references = zip(*pairs, strict=True)
    return float(_sacrebleu_metric(name).corpus_score(list(answers), [list(references)]).score)


def check_installed(names: Sequence[str]) -> None:
    """Load what the metrics need, before anything is generated for them.

    Raises:
        DataError: a package is missing; names the metric and the extra.
    """
    for name in names:
        if name in ("bleu-4", "chrf"):
            _sacrebleu_metric(name)
        elif name in ("rouge-1", "rouge-2", "rouge-l"):
            _jieba()
