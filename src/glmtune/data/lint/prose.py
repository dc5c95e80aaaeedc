"""What kind of text is this: a sentence that ends, a question, a request, a sum that is right?"""

import re
from itertools import pairwise

CLOSING = frozenset("。！？!?.…”’\"')）]】》」』}*`|~～>$;；😊")
_INNER_STOP = re.compile(r"[。！？!?]|[a-z]\. [A-Z]")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_ITEM = re.compile(r"\s*(?:\d+\s*[.、)）:：]|[-*•·]|\|)")
_LEAST_PROSE, _LEAST_CHINESE, _SIGNATURE = 30, 10, 12  # characters


def is_han(text: str) -> bool:
    """Whether a text is mostly Chinese."""
    part = text[:120]
    return 2 * len(_HAN.findall(part)) >= len(part.strip()) > 0


def is_prose(text: str) -> bool:
    """Whether a text has sentences, so that its end is the end of one."""
    if len(text) < (_LEAST_CHINESE if is_han(text) else _LEAST_PROSE):
        return False
    return bool(_INNER_STOP.search(text[:-1]))


def is_open(text: str) -> bool:
    """Whether a text ends in mid-sentence; the last item of a list need not be a sentence."""
    text = text.rstrip()
    if text.count("```") % 2:
        return True
    if not text or text[-1] in CLOSING or not text[-1].isalnum():
        return text[-1:] in ("，", "、", "：", "（", "《", "“")
    before, _, last_line = text.rpartition("\n")
    is_signature = bool(before) and len(last_line) <= _SIGNATURE
    return not is_signature and not (_ITEM.match(last_line) and len(last_line) < _LEAST_PROSE)


_QUESTION = re.compile(r"[？?][”\"’')）]?\s*$")
_REQUEST = re.compile(
    r"\s*(?:请|给我|给出|写|列出|列举|解释|描述|创建|生成|把|翻译|计算|找出|编写|设计|总结|概括|识别|构建|制作|比较|说明"
    r"|将|为|根据|提供|分析|确定|使用|改写|重写|想象|起草|建议|添加|推荐|提出|指出|编造|编辑|选|制定|从.{1,20}中|用.{1,12}(?:写|造|说)"
    r"|如何|什么|怎么|怎样|为什么|谁|哪|分类|判断|预测|评估|讨论|讲|介绍|估计|选择|帮我|告诉我|能否|你能|可以"
    r"|(?i:write|list|explain|describe|create|give|what|how|why|who|where|when|which|please|find"
    r"|summari|translate|generate|tell|can you|is |are |do |does |name |make|suggest|identify)"
    r")"
)


def is_question(text: str) -> bool:
    """Whether a text ends with a question mark, or begins as a request does and is short."""
    return bool(_QUESTION.search(text[-8:])) or (len(text) < 60 and bool(_REQUEST.match(text)))


def is_imperative(text: str) -> bool:
    """Whether a text of any length begins as a request does."""
    return bool(_REQUEST.match(text))


# --- Numbers that can be checked ----------------------------------------------------------------

_SUM = re.compile(
    r"(?<![\w.,^(])(\d{1,9}(?:\.\d{1,6})?)\s*([+\-*/×÷])\s*(\d{1,9}(?:\.\d{1,6})?)"
    r"\s*=\s*(-?\d{1,12}(?:\.\d{1,9})?)(?![\w.,/%^]|\s*[+\-*/×÷=])"
)
_ASKED_SUM = re.compile(
    r"(\d{1,9})\s*(加上?|减去?|乘以?|除以|\+|-|×|\*|÷|/)\s*(\d{1,9})\s*(?:等于|=|是多少|得|的和|的差|的积)"
)
_OPERATORS = "+-*/×÷=^xX"
_NUMBERED = re.compile(r"^\s*(\d{1,3})\s*[.、)）]", re.MULTILINE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_SIGNS = {"加": "+", "减": "-", "乘": "*", "除": "/"}


def has_wrong_numbers(question: str, answer: str) -> bool | None:
    """Whether a sum in an answer is wrong, or its numbered list out of order.

    Returns:
        None where there is nothing to check.
    """
    if not _NUMBER.search(answer):
        return None
    verdicts = _sums(answer[:3_000]) if "=" in answer else []
    asked = _ASKED_SUM.search(question[:300])
    numbers = _NUMBER.findall(answer[:200])
    if asked and numbers and len(answer) < 60:
        right = _value(asked[1], asked[2], asked[3])
        verdicts.append(all(abs(float(each) - right) > 0.01 * abs(right) for each in numbers))
    if "`" not in answer and len(listed := _NUMBERED.findall(answer)) >= 3:
        verdicts.append(_is_out_of_order([int(each) for each in listed]))
    return any(verdicts) if verdicts else None


def _sums(text: str) -> list[bool]:
    """Return for each sum of two numbers whether it is wrong by more than rounding."""
    wrong = []
    for match in _SUM.finditer(text):
        before, after = text[: match.start()].rstrip(" \\$"), text[match.end() : match.end() + 4]
        if (before and before[-1] in _OPERATORS) or "余" in after or "mod" in before[-8:]:
            continue  # a part of a longer one
        digits = len(match[4].partition(".")[2])
        right = _value(match[1], match[2], match[3])
        wrong.append(abs(right - float(match[4])) > 0.51 * 10.0**-digits + 1e-3 * abs(right))
    return wrong


def _value(first: str, sign: str, second: str) -> float:
    a, b, sign = float(first), float(second), _SIGNS.get(sign[0], sign[0])
    if sign in "/÷":
        return a / b if b else 0.0
    return {"+": a + b, "-": a - b}.get(sign, a * b)


def _is_out_of_order(numbers: list[int]) -> bool:
    """Whether a list does not count up from 0 or 1, nor down; it may start again."""
    slips = int(numbers[0] not in (0, 1) and abs(numbers[1] - numbers[0]) != 1)
    starts_late = numbers[0] > 2 and numbers[1] == numbers[0] + 1
    slips += sum(
        after not in (before, before + 1, before - 1, 0, 1) for before, after in pairwise(numbers)
    )
    return slips >= 2 or (slips == 1 and len(numbers) <= 4) or starts_late or numbers[:2] == [2, 3]
