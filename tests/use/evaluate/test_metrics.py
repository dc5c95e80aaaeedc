"""Metrics equal their libraries, and say nothing of rows that they do not apply to."""

import random
from typing import Any, get_args

import pytest

from glmtune.errors import DataError
from glmtune.recipe.choices import METRIC_NAMES
from glmtune.tool_calls import render_tool_call
from glmtune.use.evaluate.answers import choose_metrics
from glmtune.use.evaluate.metrics import (
    METRICS,
    Answered,
    bleu_4,
    character_tokens,
    chrf,
    common_subsequence,
    corpus_score,
    exact,
    is_json,
    last_number,
    number,
    tool_call,
    tool_name,
    word_tokens,
)

TEXTS = [
    "今天天气很好，我们去公园散步吧。",
    "今天的天气不错！我们去公园。Hello world 3.14",
    "北京是中国的首都",
    "机器学习 是让计算机从数据中学习规律的方法。北京？是的。",
    "the cat sat on the mat, the cat sat",
]


def of(name: str, answer: str, reference: str | None, **more: Any) -> float | None:
    given = {"num_tokens": 3, "has_ended": True, **more}
    return METRICS[name].of(Answered(answer, reference, **given))  # type: ignore[index]


def test_every_name_of_a_recipe_is_a_metric_of_that_name() -> None:
    assert tuple(METRICS) == METRIC_NAMES
    assert all(metric.name == name for name, metric in METRICS.items())


@pytest.mark.parametrize("kind", ["1", "2", "l"])
def test_rouge_is_that_of_the_official_demo_over_words_and_over_characters(kind: str) -> None:
    pytest.importorskip("jieba", reason="the extra `evaluate` is not installed")
    library = pytest.importorskip("rouge_chinese", reason="rouge-chinese is not installed").Rouge()
    for answer in TEXTS:
        for reference in TEXTS:
            split = (" ".join(word_tokens(text)) for text in (answer, reference))
            [theirs] = library.get_scores(*split)
            ours = of(f"rouge-{kind}", answer, reference)
            assert ours == pytest.approx(100 * theirs[f"rouge-{kind}"]["f"])
            characters = (" ".join(character_tokens(text)) for text in (answer, reference))
            [theirs] = library.get_scores(*characters)
            ours = of(f"rouge-{kind}-char", answer, reference)
            assert ours == pytest.approx(100 * theirs[f"rouge-{kind}"]["f"])


def test_the_longest_common_subsequence_is_that_of_the_table() -> None:
    drawn = random.Random(0)
    for _ in range(50):
        one, other = (drawn.choices("abcd", k=drawn.randrange(90)) for _ in range(2))
        row = [0] * (len(one) + 1)
        for token in other:
            before, row = row, [0]
            for i, each in enumerate(one):
                row.append(before[i] + 1 if each == token else max(before[i + 1], row[i]))
        assert common_subsequence(one, other) == row[-1]


def test_bleu_and_chrf_are_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="the extra `evaluate` is not installed")
    answers, references = TEXTS[:2], [TEXTS[1], TEXTS[0]]
    for answer, reference in zip(answers, references, strict=True):
        theirs = sacrebleu.sentence_bleu(answer, [reference], tokenize="zh")
        assert bleu_4(answer, reference) == pytest.approx(theirs.score)
        assert chrf(answer, reference) == pytest.approx(
            sacrebleu.sentence_chrf(answer, [reference]).score
        )
    whole = sacrebleu.corpus_bleu(answers, [references], tokenize="zh").score
    assert corpus_score("bleu-4", list(zip(answers, references, strict=True))) == (
        pytest.approx(whole)
    )
    assert 5 < whole < 60
    # the example of sacrebleu's own documentation, with one of its references
    hypotheses = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    true = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
    pairs = list(zip(hypotheses, true, strict=True))
    assert corpus_score("bleu-4", pairs) == pytest.approx(
        sacrebleu.corpus_bleu(hypotheses, [true]).score
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("共 1,200 元", "1200"), ("从 3 到 12。", "12"), ("-3.5", "-7/2"), ("3-5 天", "5"),
        ("１／２", "1/2"), ("½", "1/2"), ("50%", "50"), ("x=−7", "-7"), ("1/0", None),
        ("没有", None), ("9" * 300, None), ("12345,678", "678"),
    ],
)  # fmt: skip
def test_the_last_number_of_a_text_is_found(text: str, value: str | None) -> None:
    found = last_number(text)
    assert (None if found is None else str(found)) == value


def test_texts_numbers_and_json_are_compared_as_described() -> None:
    assert exact(" 二。\n", "二。") == 100
    assert exact("二", "二。") == 0
    assert of("contains", "答案是二。", "二") == 100
    assert of("contains", "二", " ") is None
    assert number("所以是 0.50", "1/2") == 100
    assert number("没有", "7") == 0
    assert number("7", "七") is None
    assert [is_json(text) for text in ('{"a": [1]}', "```json\n{}\n```", "NaN", "[" * 9999)] == [
        100, 0, 0, 0,
    ]  # fmt: skip
    assert is_json("9" * 9999) == 0  # more digits than Python converts
    assert of("exact", "二。", None) is None
    assert of("json", "{}", None) == 100
    assert (of("stop", "", None, has_ended=False), of("length", "", None)) == (0, 3)


def test_a_tool_call_is_compared_by_name_and_by_arguments_in_any_order() -> None:
    def call(name: str, **arguments: Any) -> str:
        return f"我查一下。\n{name}\n{render_tool_call(arguments)}"

    right = call("weather", city="北京", days=2)
    assert tool_call(call("weather", days=2, city="北京"), right) == 100
    assert tool_call(call("weather", city="上海", days=2), right) == 0
    assert tool_name(call("weather", city="上海"), right) == 100
    assert tool_name("北京晴。", right) == 0
    assert tool_call("北京晴。", "北京晴。") is None
    assert tool_call('weather\n{"a": 1}', 'weather\n{"a":1}') == 100
    assert tool_call("weather\n```python\nos.system('x')\n```", right) == 0


def test_words_are_those_of_jieba_without_white_space() -> None:
    pytest.importorskip("jieba", reason="the extra `evaluate` is not installed")
    assert word_tokens("今天 天气\n很好") == ["今天", "天气", "很", "好"]
    assert character_tokens("今天 good_day，3.14") == ["今", "天", "good_day", "，", "3", ".", "14"]


def test_an_unknown_metric_names_those_that_exist() -> None:
    with pytest.raises(DataError, match=r"'rouge' is not a metric\. Choose from exact, contains"):
        choose_metrics(["rouge"])
    assert [each.name for each in choose_metrics(["exact"])] == ["exact", "stop", "length"]


def test_a_metric_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from glmtune.use.evaluate import metrics

    metrics._sacrebleu_metric.cache_clear()
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(DataError, match=r"pip install 'glmtune\[evaluate\]'"):
        choose_metrics(["bleu-4"])


def test_the_names_are_those_of_the_type() -> None:
    from glmtune.recipe.choices import MetricName

    assert get_args(MetricName) == METRIC_NAMES
