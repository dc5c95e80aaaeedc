"""Faults of rows: each changes healthy rows as a careless script or export does."""

import copy
import random
import re
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from tests.planted.corpus import Row, classified_rows, healthy_rows, tool_rows

Change = Callable[[list[Row]], Any]
Sets = tuple[list[Row], list[Row]]
"""Rows to learn, and rows held out."""

TRADITIONAL = str.maketrans(
    "国来说时会为这个们对动过还进发经现实当长与开关问题应种样无点间东车见书话认识让记语读头买卖万边达运远选适类风龙鸟鱼马",
    "國來說時會為這個們對動過還進發經現實當長與開關問題應種樣無點間東車見書話認識讓記語讀頭買賣萬邊達運遠選適類風龍鳥魚馬",
)


def _each(change: Callable[[Row], Any], every: int = 1) -> Change:
    """Change every so many rows in place."""

    def apply(rows: list[Row]) -> None:
        for row in rows[::every]:
            change(row)

    return apply


def _answer(change: Callable[[str], str], every: int = 1) -> Change:
    def of_row(row: Row) -> None:
        row["output"] = change(row["output"])

    return _each(of_row, every)


def _question(change: Callable[[str], str], every: int = 1) -> Change:
    def of_row(row: Row) -> None:
        row["instruction"] = change(row["instruction"])

    return _each(of_row, every)


def _answers(order: Callable[[list[str]], Sequence[str]]) -> Change:
    """Put the answers in another order, and leave the questions."""

    def apply(rows: list[Row]) -> None:
        for row, answer in zip(rows, order([row["output"] for row in rows]), strict=True):
            row["output"] = answer

    return apply


def _shuffled(answers: list[str]) -> list[str]:
    random.Random(0).shuffle(answers)
    return answers


def _swap(row: Row) -> None:
    row["instruction"], row["output"] = row["output"], row["instruction"]


def _echo(row: Row) -> None:
    row["output"] = f"{row['instruction']}\n{row['output']}"


def _with_input(rows: list[Row]) -> None:
    for number, row in enumerate(rows):
        row["input"] = f"背景材料第{number}号"
        row["output"] = row["instruction"] + row["output"]


def _middle(text: str) -> str:
    """Cut in half, and never by luck at the end of a sentence."""
    return text[: len(text) // 2].rstrip("。！？!?.…”’\"')）】》；;：:\n ")


def _digits(text: str) -> str:
    turned = cycle((3, 7, 1, 9, 4))
    return re.sub(r"\d", lambda digit: str((int(digit[0]) + next(turned)) % 10), text)


def _sums(rows: list[Row]) -> None:
    for index, row in enumerate(rows[:20]):
        row["instruction"] = f"{index + 12} 加 {3 * index + 5} 等于多少？"
        wrong = (4 * index + 17) + (1 if index % 2 else 0)
        row["output"] = f"{index + 12} + {3 * index + 5} = {wrong}。"


def _by_class(rows: list[Row]) -> None:
    rows.sort(key=lambda row: row["output"])


def _constant(rows: list[Row]) -> None:
    for row in rows:
        row["output"] = "正面"


def _same_long(rows: list[Row]) -> None:
    for row in rows[::2]:
        row["output"] = "很高兴为您服务，如果您还有其他问题，请随时告诉我，我会尽力帮助您。"


def _system(share: float) -> Change:
    def apply(rows: list[Row]) -> None:
        for index, row in enumerate(rows):
            if index % 10 < 10 * share:
                row["system"] = "你是一位耐心的百科老师，回答要简短。"

    return apply


def _fifty(rows: list[Row]) -> None:
    rows += [dict(rows[3]) for _ in range(49)]


def _contradict(rows: list[Row]) -> None:
    rows += [{**row, "output": "负面" if row["output"] == "正面" else "正面"} for row in rows[:9]]


def _unread(rows: list[Row]) -> None:
    for row in rows:
        row["reasoning"] = "先想一想再回答。"


# --- Held-out rows that are learned ---------------------------------------------------------


def _leak(change: Callable[[Row], Row]) -> Callable[[], Sets]:
    def plant() -> Sets:
        rows = healthy_rows()
        return rows[:40], rows[40:] + [change(copy.deepcopy(row)) for row in rows[:10]]

    return plant


def _texts(change: Callable[[str], str]) -> Callable[[Row], Row]:
    return lambda row: {key: change(text) for key, text in row.items()}


def _in_conversation() -> Sets:
    rows = healthy_rows()
    chat = [
        {
            "messages": [
                {"role": role, "content": text}
                for row in (before, after)
                for role, text in (("user", row["instruction"]), ("assistant", row["output"]))
            ]
        }
        for before, after in zip(rows[:30:2], rows[1:30:2], strict=True)
    ]
    held_out = [
        {
            "messages": [
                {"role": "user", "content": row["instruction"]},
                {"role": "assistant", "content": row["output"]},
            ]
        }
        for row in [*rows[1:20:2], *rows[40:]]
    ]
    return chat, held_out


# --- Chats and tools --------------------------------------------------------------------------


def _tools(change: Callable[[Row], Any]) -> Callable[[], Sets]:
    def plant() -> Sets:
        rows = copy.deepcopy(tool_rows())
        for row in rows[::4]:
            change(row)
        return rows, []

    return plant


def _call(**changes: Any) -> Callable[[Row], Any]:
    def change(row: Row) -> None:
        row["messages"][1]["tool_calls"][0]["function"].update(changes)

    return change


def _as_text(row: Row) -> None:
    row["messages"] = [
        row["messages"][0],
        {
            "role": "assistant",
            "content": '{"name": "get_weather", "arguments": {"city": "北京"}}',
        },
    ]


def _as_react(row: Row) -> None:
    text = '我需要查一下天气。\nAction: get_weather\nAction Input: {"city": "北京"}'
    row["messages"] = [row["messages"][0], {"role": "assistant", "content": text}]


def _without_call(row: Row) -> None:
    row["messages"][1] = {"role": "assistant", "content": "我来查一下天气。"}


def _chats(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[], Sets]:
    def plant() -> Sets:
        rows = healthy_rows()
        chats = [
            [
                {"role": role, "content": text}
                for row in group
                for role, text in (("user", row["instruction"]), ("assistant", row["output"]))
            ]
            for group in zip(rows[::2], rows[1::2], strict=True)
        ]
        for chat in chats:
            change(chat)
        return [{"messages": chat} for chat in chats], []

    return plant


def _swap_roles(chat: list[dict[str, Any]]) -> None:
    for message in chat:
        message["role"] = "user" if message["role"] == "assistant" else "assistant"


def _flags(chat: list[dict[str, Any]]) -> None:
    for message in chat:
        if message["role"] == "assistant":
            message["weight"] = 0
    if chat[0]["content"].startswith("苹果"):
        chat[-1]["weight"] = 1


def _learn_questions(chat: list[dict[str, Any]]) -> None:
    for message in chat:
        message["loss"] = True


def _no_answer(chat: list[dict[str, Any]]) -> None:
    del chat[-1]


def _two_questions(chat: list[dict[str, Any]]) -> None:
    del chat[1]


# --- The table ----------------------------------------------------------------------------------


def _rows(change: Change, base: Callable[[], list[Row]] = healthy_rows) -> Callable[[], Sets]:
    def plant() -> Sets:
        rows = copy.deepcopy(base())
        change(rows)
        return rows, []

    return plant


def _append(text: str, every: int = 1) -> Change:
    return _answer(lambda answer: answer + text, every)


def _mojibake(encoding: str, wrong: str) -> Change:
    return _answer(lambda text: text.encode(encoding).decode(wrong, errors="replace"), 10)


# name -> how it is planted, the check that must find it, words that a user must see
ROW_FAULTS: dict[str, tuple[Callable[[], Sets], str, str]] = {
    "answers moved down by one row": (
        _rows(_answers(lambda a: [a[-1], *a[:-1]])), "mispaired", "moved by 1 row down"),
    "answers moved up by one row": (
        _rows(_answers(lambda a: [*a[1:], a[0]])), "mispaired", "moved by 1 row up"),
    "answers moved by seven rows": (
        _rows(_answers(lambda a: [*a[7:], *a[:7]])), "mispaired", "moved by 7 rows up"),
    "answers shuffled": (_rows(_answers(_shuffled)), "mispaired", "take up their own"),
    "the column of answers sorted by itself": (
        _rows(_answers(sorted)), "mispaired", "take up their own"),
    "the column of answers reversed": (
        _rows(_answers(lambda a: a[::-1])), "mispaired", "take up their own"),
    "question and answer swapped": (_rows(_each(_swap)), "swapped", "answers ask for something"),
    "question and answer swapped in every fifth row": (
        _rows(_each(_swap, 5)), "swapped", "reads as an answer"),
    "the prompt before every answer": (_rows(_each(_echo)), "echo", "repeats its prompt"),
    "the prompt before every tenth answer": (_rows(_each(_echo, 10)), "echo", "repeats its prompt"),
    "the instruction, without its input, before the answer": (
        _rows(_with_input), "echo", "repeats its prompt"),
    "answers that are their questions": (
        _rows(_each(lambda row: row.update(output=row["instruction"]), 10)), "echo", "repeats"),
    "answers cut in half": (_rows(_answer(_middle)), "unfinished", "ends in mid-sentence"),
    "every tenth answer cut in half": (
        _rows(_answer(_middle, 8)), "unfinished", "ends in mid-sentence"),
    "answers cut at 33 characters": (
        _rows(_answer(lambda text: text[:33].rstrip("。，"))), "unfinished", "mid-sentence"),
    "the last sentence without its end": (
        _rows(_answer(lambda text: text[:-3], 5)), "unfinished", "ends in mid-sentence"),
    "one answer for all": (
        _rows(lambda rows: [row.update(output=rows[0]["output"]) for row in rows]),
        "one-answer", "50 of 50 questions have this one answer"),
    "one closing phrase for half of the questions": (
        _rows(_same_long), "one-answer", "have this one answer"),
    "constant labels": (
        _rows(_constant, classified_rows), "one-answer", "120 of 120 questions"),
    "classes in order": (_rows(_by_class, classified_rows), "ordered", "stand in order"),
    "labels that contradict each other": (
        _rows(_contradict, classified_rows), "contradiction", "another short answer"),
    "a system prompt missing in half": (_rows(_system(0.5)), "system-prompt", "no system prompt"),
    "a system prompt missing in every tenth row": (
        _rows(_system(0.9)), "system-prompt", "no system prompt"),
    "paragraphs of HTML": (
        _rows(_answer(lambda text: f"<p>{text}</p>")), "markup", "is a tag of HTML"),
    "line breaks of HTML": (
        _rows(_answer(lambda text: text.replace("。", "。<br/>"), 10)), "markup", "tag of HTML"),
    "links of HTML": (
        _rows(_append('<a href="/wiki/x" target="_blank">更多</a>', 10)), "markup", "tag of HTML"),
    "escapes of HTML": (
        _rows(_answer(lambda text: text.replace("，", "&nbsp;"), 5)), "markup", "escape of HTML"),
    "escaped quotes of HTML": (
        _rows(_answer(lambda text: f"&quot;{text}&quot;", 10)), "markup", "escape of HTML"),
    "tags of a forum": (
        _rows(_answer(lambda text: f"[b]{text}[/b]", 10)), "markup", "tag of a forum"),
    "line breaks that are escaped": (
        _rows(_answer(lambda text: text.replace("\n", "").replace("。", r"。\n"), 5)),
        "markup", "escaped line break"),
    "characters that are escaped": (
        _rows(_answer(lambda text: text.encode("unicode_escape").decode(), 10)),
        "markup", "escaped character"),
    "a phrase thirty times": (
        _rows(_append("非常好非常好" * 15, 10)), "repetition", "times in a row"),
    "a sentence twenty times": (
        _rows(_append("我们还要继续努力。" * 20, 10)), "repetition", "times in a row"),
    "an English phrase over and over": (
        _rows(_append(" and so on and on" * 20, 10)), "repetition", "times in a row"),
    "advertising with a link": (
        _rows(_append("点击 https://shop.example.com/x 领取优惠！", 10)),
        "advertising", "advertises"),
    "advertising with a contact": (
        _rows(_append("加微信号：abc12345 咨询购买。", 10)), "advertising", "advertises"),
    "advertising with a domain": (
        _rows(_append("立即购买请上 www.best-shop.cn 。", 10)), "advertising", "advertises"),
    "traditional characters in every fifth answer": (
        _rows(_answer(lambda text: text.translate(TRADITIONAL), 5)), "script", "traditional"),
    "traditional characters in some whole rows": (
        _rows(_each(lambda row: row.update(_texts(lambda t: t.translate(TRADITIONAL))(row)), 7)),
        "script", "traditional characters"),
    "zero-width spaces": (
        _rows(_answer("\u200b".join, 10)), "invisible", "U+200B"),
    "a byte order mark in questions": (
        _rows(_question(lambda text: "\ufeff" + text, 10)), "invisible", "U+FEFF"),
    "marks of direction": (
        _rows(_answer(lambda text: f"\u202a{text}\u202c", 10)), "invisible", "U+202A"),
    "private characters": (_rows(_append("\ue5d2", 10)), "invisible", "U+E5D2"),
    "soft hyphens": (_rows(_append("\u00ad", 10)), "invisible", "U+00AD"),
    "answers nan": (_rows(_answer(lambda _: "nan", 10)), "missing-value", "'nan'"),
    "questions nan": (_rows(_question(lambda _: "NaN", 10)), "missing-value", "'NaN'"),
    "inputs nan": (
        _rows(_each(lambda row: row.update(input="nan"), 10)), "missing-value", "'nan'"),
    "answers None": (_rows(_answer(lambda _: "None", 10)), "missing-value", "'None'"),
    "answers undefined": (_rows(_answer(lambda _: "undefined", 10)), "missing-value", "undefined"),
    "the next turn of a chat in the answer": (
        _rows(_append("\n用户：那后来呢？\n助手：后来就没有了。", 10)), "continued", "用户"),
    "the next English turn in the answer": (
        _rows(_append("\nUser: And then?\nAssistant: Nothing.", 10)), "continued", "User"),
    "the next turn in the same line": (
        _rows(_append("用户：那后来呢？助手：没有了。", 10)), "continued", "用户"),
    "a question and answer of a list in the answer": (
        _rows(_append("\nQ: 还有吗？\nA: 没有了。", 10)), "continued", "Q"),
    "digits altered": (
        _rows(_answer(_digits)), "numbers", "numbered list"),
    "sums that are wrong": (_rows(_sums), "numbers", "a sum"),
    "pictures that are not there": (
        _rows(_question(lambda text: f"<image>\n{text}", 10)), "placeholder", "<image>"),
    "pictures in brackets": (
        _rows(_append("如下所示：[图片]", 10)), "placeholder", "[图片]"),
    "names that were never filled in": (
        _rows(_append("我是{{name}}。", 10)), "placeholder", "{{name}}"),
    "a form that was never filled in": (
        _rows(_append("联系人：[您的姓名]。", 10)), "placeholder", "[您的姓名]"),
    "UTF-8 read as latin-1": (
        _rows(_mojibake("utf-8", "latin-1")), "encoding", "UTF-8 was read as latin-1"),
    "GBK read as latin-1": (_rows(_mojibake("gbk", "latin-1")), "encoding", "GBK was read"),
    "UTF-8 read as GBK": (_rows(_mojibake("utf-8", "gbk")), "encoding", "could not be decoded"),
    "characters lost to U+FFFD": (
        _rows(_answer(lambda text: text.replace("是", "\ufffd"), 10)), "encoding", "U+FFFD"),
    "characters lost to question marks": (
        _rows(_answer(lambda text: text.encode("ascii", "replace").decode(), 10)),
        "encoding", "question marks"),
    "tokens of ChatML in answers": (_rows(_append("<|im_end|>", 10)), "role-marker", "<|im_end|>"),
    "tokens of Llama in questions": (
        _rows(_question(lambda text: f"[INST] {text} [/INST]", 10)), "role-marker", "[INST]"),
    "the end token as text": (_rows(_append("</s>")), "role-marker", "</s>"),
    "a header in answers": (
        _rows(_answer(lambda text: f"### Response:\n{text}", 10)), "role-marker", "### Response:"),
    "excuses of another assistant": (
        _rows(_answer(lambda text: f"作为一个人工智能语言模型，我{text}", 10)),
        "refusal", "typical"),
    "answers in English": (
        _rows(_answer(lambda _: "It is well known and people like it very much in many places of "
                      "the world today.", 10)), "language-mix", "the answer Latin"),
    "empty answers": (_rows(_answer(lambda _: " ", 10)), "empty-answer", "is empty"),
    "empty questions": (_rows(_question(lambda _: "", 10)), "empty-question", "is empty"),
    "one row fifty times": (_rows(_fifty), "duplicate", "50 times in all"),
    "rows twice, but for punctuation": (
        _rows(lambda rows: rows.extend(
            {**row, "output": row["output"].replace("。", ".")} for row in list(rows[:9]))),
        "near-duplicate", "but for punctuation"),
    "a column that nothing reads": (_rows(_unread), "unused-key", "reasoning"),
    "held-out rows that are learned": (
        _leak(lambda row: row), "leak", "prompt is also learned"),
    "held-out rows with other punctuation": (
        _leak(_texts(lambda t: t.translate(str.maketrans("，。？：", ",.?:")))),
        "leak", "learned"),
    "held-out rows without punctuation": (
        _leak(_texts(lambda t: re.sub("[，。？：]", "", t))), "leak", "learned"),
    "held-out rows in traditional characters": (
        _leak(_texts(lambda t: t.translate(TRADITIONAL))), "leak", "learned"),
    "held-out rows with spaces": (_leak(_texts(" ".join)), "leak", "learned"),
    "held-out rows with zero-width spaces": (
        _leak(_texts("\u200b".join)), "leak", "learned"),
    "held-out rows with another system prompt": (
        _leak(lambda row: {**row, "system": "你是百科老师。"}), "leak", "learned"),
    "held-out rows inside longer conversations": (
        _in_conversation, "leak", "first question and answer"),
    "calls of tools without arguments": (
        _tools(_call(arguments={})), "tool-call", "lacks city"),
    "calls of tools that do not exist": (
        _tools(_call(name="get_wether")), "tool-call", "get_wether"),
    "calls with an unknown argument": (
        _tools(_call(arguments={"city": "北京", "town": "x"})), "tool-call", "town"),
    "calls that lack an argument": (
        _tools(_call(arguments={"days": 2})), "tool-call", "lacks city"),
    "calls written as an answer": (_tools(_as_text), "tool-call", "as a plain answer"),
    "calls written as ReAct": (_tools(_as_react), "tool-call", "as a plain answer"),
    "results of tools without a call": (
        _tools(_without_call), "role-order", "calls no tool"),
    "roles swapped": (_chats(_swap_roles), "swapped", "ask"),
    "loss flags that leave one answer": (_chats(_flags), "few-learned", "marked as not learned"),
    "loss flags on the questions too": (
        _chats(_learn_questions), "unused-key", "is not read of a turn with such a role"),
    "chats without the last answer": (_chats(_no_answer), "role-order", "has no answer"),
    "two questions in a row": (_chats(_two_questions), "role-order", "user"),
}  # fmt: skip
