"""Checks of one row's text, which need no tokenizer.

Each check takes a conversation and returns the first fault in it, so a row has at most one finding
per check. Prefer a miss to a false alarm: nobody reads a hundred of them. So each pattern is as
narrow as the fault it is for, and what a question asks for is not a fault in its answer.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

import regex  # type: ignore[import-untyped]  # has classes for scripts, unlike `re`

from glmtune.conversation import Conversation, Message
from glmtune.data.lint.findings import Fault, Severity
from glmtune.recipe.sections import LintSection
from glmtune.template.base import is_learned

TextCheck = Callable[[Conversation], Fault | None]


def text_checks(section: LintSection) -> Mapping[str, TextCheck]:
    """Return the checks of this module by id.

    Args:
        section: their thresholds.
    """
    return {
        "role-order": find_wrong_order,
        "empty-answer": find_empty_answer,
        "empty-question": find_empty_question,
        "no-label": find_nothing_learned,
        "encoding": find_broken_encoding,
        "role-marker": find_role_marker,
        "placeholder": find_placeholder,
        "refusal": find_refusal,
        "language-mix": partial(find_language_mix, min_words=section.language_min_words),
    }


def around(text: str, start: int, end: int) -> str:
    """Return the text from `start` to `end` with some characters before and after it."""
    left, right = max(0, start - 24), min(len(text), max(end, start + 60))
    return ("..." if left else "") + text[left:right] + ("..." if right < len(text) else "")


def answers_of(conversation: Conversation) -> list[str]:
    """Return the answers of the assistant, without calls of tools."""
    return [m.content for m in conversation if m.role == "assistant" and not m.metadata]


# --- Turns --------------------------------------------------------------------------------


def find_wrong_order(conversation: Conversation) -> Fault | None:
    """Find an order that `check_turns` accepts and that is probably a mistake."""
    messages = conversation.messages
    last = messages[-1]
    if last.role != "assistant":
        why = f"the last turn is from {last.role} and has no answer"
        return Fault("warning", why, around(last.content, 0, 0))
    for before, message in pairwise(messages):
        if before.role != "assistant" or before.metadata:
            continue
        if message.role == "observation":
            why = "a tool's result follows an answer that calls no tool"
            return Fault("warning", why, around(message.content, 0, 0))
        if message.role == "assistant" and not message.metadata:
            why = "two answers follow each other"
            return Fault("warning", why, around(message.content, 0, 0))
    return None


def find_empty_answer(conversation: Conversation) -> Fault | None:
    """Find an answer that is only white space."""
    if all(answer.strip() for answer in answers_of(conversation)):
        return None
    return Fault("error", "the answer is empty", _question(conversation))


def find_same_answers(better: Conversation, worse: Conversation) -> Fault | None:
    """Find a pair whose answers differ only by white space."""
    first, second = (["".join(answer.split()) for answer in answers_of(c)] for c in (better, worse))
    if first != second:
        return None
    message = "the rejected answer differs from the chosen one only by white space"
    return Fault("error", message, around(worse.messages[-1].content, 0, 0))


def find_empty_question(conversation: Conversation) -> Fault | None:
    """Find a user message without text."""
    for message in conversation:
        if message.role == "user" and not message.content.strip():
            answer = next(iter(answers_of(conversation)), "")
            return Fault("warning", "the question is empty", around(answer, 0, 0))
    return None


def find_nothing_learned(conversation: Conversation) -> Fault | None:
    """Find a row whose answers are all marked as not learned; training leaves it out."""
    if any(map(is_learned, conversation)):
        return None
    why = "every answer is marked as not learned, by loss flags or by a label that is false"
    return Fault("warning", why, _question(conversation))


def _question(conversation: Conversation) -> str:
    question = next((m.content for m in conversation if m.role == "user"), "")
    return around(question, 0, 0)


# --- Broken characters --------------------------------------------------------------------

_CP1252 = "\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013\u2014\u2018-\u201e"
_CP1252 += "\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122"  # where it leaves latin-1
_BROKEN = re.compile(
    "(?P<replaced>\ufffd)"
    "|(?P<twice>锟斤拷|烫烫烫|屯屯屯)"
    "|(?P<control>[\x00-\x08\x0b\x0c\x0e-\x1f\x7f])"
    # UTF-8 read as latin-1 or cp1252: é -> Ã©, ’ -> â€™, 你好 -> ä½\xa0å¥½
    "|(?P<latin>[\u00c2\u00c3][\u0080-\u00bf]|\u00e2(?:\u20ac|\u0080)."
    f"|(?:[\u00e4-\u00e9][\u0080-\u00bf{_CP1252}]{{2}}){{2}})"
    # GBK read as latin-1: 你好 -> ÄãºÃ
    "|(?P<gbk>(?:[\u00b0-\u00f7][\u00a1-\u00fe]){2,})"
    # UTF-8 read as GBK: ， 。 的 -> 锛?, 銆?, 鐨?; so rare that two of them are not a coincidence
    "|(?P<utf8>[锛銆鐨鈥][^锛銆鐨鈥]{0,20}[锛銆鐨鈥])"
    # Chinese written as ASCII; three may be meant
    r"|(?P<ascii>\?{5,})"
)
_MAY_BE_BROKEN = re.compile(
    r"\?{5}|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\u00ff\ufffd锟烫屯锛銆鐨鈥]"
)  # quick
_WHY_BROKEN = {
    "replaced": "U+FFFD replaces a character that could not be decoded",
    "twice": "bytes were decoded twice in a wrong encoding",
    "control": "a control character",
    "latin": "UTF-8 was read as latin-1",
    "gbk": "GBK was read as latin-1",
    "utf8": "UTF-8 was read as GBK",
    "ascii": "characters were replaced by question marks",
}


def find_broken_encoding(conversation: Conversation) -> Fault | None:
    """Find the traces of a wrong decoding."""
    for message in conversation:
        text = message.content
        if not _MAY_BE_BROKEN.search(text):
            continue
        for match in _BROKEN.finditer(text):
            kind = match.lastgroup or ""
            if kind == "gbk" and not _looks_like_gbk(match[0]):
                continue
            return Fault("error", _WHY_BROKEN[kind], around(text, *match.span()))
    return None


def _looks_like_gbk(text: str) -> bool:
    """Distinguish GBK from latin-1 symbols as in 138××××5678, which repeat and are not letters."""
    if len(set(text)) < 3 or not any(char.isalpha() for char in text):
        return False
    try:
        return all("\u4e00" <= char <= "\u9fff" for char in text.encode("latin-1").decode("gbk"))
    except UnicodeDecodeError:
        return False


# --- Markers of chat formats --------------------------------------------------------------

_MARKER = re.compile(
    r"<\|[A-Za-z_]{2,24}\|>"  # ChatGLM3, ChatML, Llama 3, Phi, GPT
    r"|\[(?:gMASK|sMASK|/?INST)\]|<</?SYS>>"
    r"|</?(?:start|end)_of_turn>|<(?:eop|sop|bos|eos|pad|unk)>"
    r"|</s>"
    r"|^sop(?=\s*$|\s*<\||\n)"
    r"|^\s*#{2,3} ?(?:Human|Assistant|Instruction|Response)\s*:"
    r"|\[Round \d+\]\s+问：",
    re.MULTILINE,
)
_MAY_MARK = re.compile(r"[<\[#]|^sop", re.MULTILINE)


def find_role_marker(conversation: Conversation) -> Fault | None:
    """Find control tokens as text; in an answer the model would learn to write them."""
    for message in conversation:
        text = message.content
        if not _MAY_MARK.search(text):
            continue
        for match in _MARKER.finditer(text):
            if match[0] == "</s>" and "<s>" in text[: match.start()]:
                continue  # strikethrough in HTML
            why = f"the text of the {message.role} contains {match[0].strip()}"
            severity: Severity = "error" if is_learned(message) else "warning"
            return Fault(severity, why, around(text, *match.span()))
    return None


# --- Placeholders -------------------------------------------------------------------------

_VARIABLE = re.compile(
    r"\{\{\s*[A-Za-z_\u4e00-\u9fff][\w. -]{0,40}\}\}"
    r"|(?<![\w{$])\{(?:instruction|input|output|question|answer|query|response|prompt|history)\}"
)
_TO_FILL_IN = re.compile(
    r"<[A-Z][A-Z_]{2,24}>"
    r"|\[(?i:your|insert|enter|company|recipient|name|date|address|phone|email|city)\b[^\]\n]{0,30}\]"
    r"(?!\()"  # a link
    r"|[\[【](?:你的|您的|请?填写|请?插入|请?输入|姓名|名字|公司名|日期|地址|电话|邮箱)"
    r"[^\]】\n]{0,15}[\]】]"
    r"|\b(?:TODO|FIXME|TBD)\b"
    r"|(?<![A-Za-z])(?:X{3,}|x{3,})(?![A-Za-z.])"
)
# Where other tools put a picture. HTML has the other two, but seldom alone on a line.
_MEDIUM = re.compile(
    r"<(?:image|img|ImageHere|\|image\|)>|[\[【(（](?:图片|图像|视频|语音|音频|表情|image|img|IMG)[\]】)）](?!\()"
    r"|^<(?:video|audio)>\s*$",
    re.MULTILINE,
)
_MAY_FILL_IN = re.compile(r"[<\[【{（(]|TODO|FIXME|TBD|XXX|xxx")
_ASKS_FOR_FORM = re.compile(
    r"信|邮件|模板|范本|样本|脚本|收据|发票|合同|协议|简历|请柬|邀请函|表格"
    r"|(?i:letter|e-?mail|template|script|receipt|invoice|contract|resume|invitation|form\b)"
)
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


def find_placeholder(conversation: Conversation) -> Fault | None:
    """Find placeholders that were not filled in.

    Variables of a template and places of images are searched in all messages, the rest only in
    answers. An answer to
    a request for a letter may contain [Your Name], so that is only noted; and a placeholder of
    the question may occur in the answer.
    """
    asked = ""
    for message in conversation:
        text = message.content
        if _MAY_FILL_IN.search(text):
            prose = _without_code(text)
            if variable := _VARIABLE.search(prose):
                why = f"{variable[0]} was never filled in"
                return Fault("error", why, around(prose, *variable.span()))
            if (medium := _MEDIUM.search(prose)) and "</" not in prose:
                why = f"{medium[0].strip()} stands for something that a model of text cannot see"
                return Fault("warning", why, around(prose, *medium.span()))
            if message.role == "assistant" and not message.metadata:
                for match in _TO_FILL_IN.finditer(prose):
                    if match[0] in asked or _is_markup(match[0], prose):
                        continue
                    severity: Severity = "info" if _ASKS_FOR_FORM.search(asked) else "warning"
                    why = f"{match[0]} was not filled in"
                    return Fault(severity, why, around(prose, *match.span()))
        asked += text if message.role != "assistant" else ""
    return None


def _without_code(text: str) -> str:
    """Replace fenced code by spaces: its braces and brackets are not placeholders."""
    return _CODE.sub(lambda match: " " * len(match[0]), text) if "```" in text else text


def _is_markup(match: str, text: str) -> bool:
    """Distinguish <TABLE> from <NAME>: markup has closing tags."""
    return match.startswith("<") and "</" in text


# --- Refusals -----------------------------------------------------------------------------

_SELF = re.compile(
    r"作为(?:一个|一名|一位|一款|一种|个)?(?:AI|人工智能)(?P<zh_model>语言模型|模型)?"
    r"(?:助手|助理|机器人|聊天机器人|程序|系统)?[，,、]?\s*我"
    r"|我(?:只)?是(?:一个|一名|一款|一种|个)?(?:AI|人工智能)(?P<zh_am>语言模型|模型)?"
    r"|\b[Aa]s an (?:AI|artificial intelligence)(?P<en_model> (?:language )?model)?\b"
    r"|\bI(?:'|’)?(?:m| am) (?:just |only )?an (?:AI|artificial intelligence)"
    r"(?P<en_am> (?:language )?model)?\b",
)
_INABILITY = re.compile(
    r"无法|不能|没有|不具备|不会|不可以|并非|can(?:no|['’])?t\b|unable|not able"
    r"|(?:do not|don['’]t) (?:have|possess)"
)
_SORRY = re.compile(
    r"\W{0,3}(?:(?:很|非常|十分)?(?:抱歉|对不起|不好意思)[^。！!]{0,8}我(?:无法|不能|没法)"
    r"(?:[^。]{0,12})(?:回答|提供|完成|生成|访问|满足|协助|讨论|浏览)"
    r"|(?:I(?:'|’)m|I am) (?:very |so |really )?sorry,? (?:but )?I (?:can(?:no|['’])?t|am unable)"
    r"|I (?:cannot|can['’]t) (?:fulfil|assist|help with|comply))"
)


def find_refusal(conversation: Conversation) -> Fault | None:
    """Find the typical sentences of other assistants, and refusals.

    "I am an AI" is a fault only together with something that is refused: rows that teach a
    model its own name are meant. And only in the first line: further down it may be a quotation.
    """
    for answer in answers_of(conversation):
        if match := _SORRY.match(answer):
            return Fault("warning", "the answer is a refusal", around(answer, *match.span()))
        if "AI" not in answer and "人工智能" not in answer and "artificial" not in answer:
            continue
        first_line = (answer.lstrip().find("\n") + 1) or len(answer)
        for match in _SELF.finditer(answer):
            sentence = answer[match.end() : match.end() + 60]
            is_excuse = match.start() < first_line and _INABILITY.search(sentence)
            if any(match.groups()) or is_excuse:
                why = "the answer has a typical sentence of another assistant"
                return Fault("warning", why, around(answer, *match.span()))
    return None


# --- Languages ----------------------------------------------------------------------------

_WORDS = {
    "Chinese": regex.compile(r"\p{Han}+"),
    "Latin": regex.compile(r"\p{Latin}{2,}"),
    "Japanese": regex.compile(r"[\p{Hiragana}\p{Katakana}]+"),
    "Korean": regex.compile(r"\p{Hangul}+"),
    "Cyrillic": regex.compile(r"\p{Cyrillic}{2,}"),
    "Arabic": regex.compile(r"\p{Arabic}{2,}"),
}
# Any script above that is neither Chinese nor Latin.
_OTHER_SCRIPT = regex.compile(r"[\p{Hiragana}\p{Katakana}\p{Hangul}\p{Cyrillic}\p{Arabic}]")
_ASKS_FOR_ANOTHER = re.compile(
    r"译|[英中汉日韩法德俄西]语|[英中日韩法德俄]文|西班牙|阿拉伯|语言|语句|拼音|单词|词汇|句子|例句|造句|一词|字母|缩写"
    r"|代码|编程|程序|脚本|函数|算法|命令|查询|公式|网址|网站|正则|域名|歌词|歌名|邮箱"
    r"|[Pp]ython|Java|SQL|HTML|CSS|JSON|XML|URL|C\+\+"
    r"|(?i:translat|language|chinese|mandarin|pinyin|japanese|korean|russian|arabic|english"
    r"|french|german|spanish|code|script|function)"
)
_LANGUAGE_CHARS = 250  # the language of a text is that of its beginning


def find_language_mix(conversation: Conversation, min_words: int) -> Fault | None:
    """Find an answer in another script than its question, which does not ask for it.

    Args:
        conversation: with any number of questions.
        min_words: of the answer, each Chinese character counting as one; fewer may be a name.
    """
    asked: Message | None = None
    for message in conversation:
        if message.role == "user":
            asked = message
        elif message.role != "assistant" or message.metadata:
            asked = None  # an answer to a tool's result depends on that result
        elif asked is not None:
            question, answer = asked.content, message.content
            of_question, of_answer = _language(question, 3), _language(answer, min_words)
            if of_question in ("", of_answer) or not of_answer:
                continue
            if _ASKS_FOR_ANOTHER.search(question) or "```" in answer or "</" in answer:
                continue
            why = f"the question is {of_question}, the answer {of_answer}"
            return Fault("warning", why, around(answer, 0, 0))
    return None


def _language(text: str, min_words: int) -> str:
    """Name the script of nearly all words of a text; "" if they are mixed or few."""
    text = text[:_LANGUAGE_CHARS]
    if text.isascii():
        is_enough = len(_WORDS["Latin"].findall(text)) >= min_words
        return "Latin" if is_enough else ""
    scripts = _WORDS if _OTHER_SCRIPT.search(text) else ("Chinese", "Latin")
    counts = {name: _num_words(text, name) for name in scripts}
    if counts.get("Japanese", 0) * 5 > counts["Chinese"]:
        counts["Japanese"] += counts.pop("Chinese")
    name = max(counts, key=lambda name: counts[name])
    is_clear = counts[name] >= max(min_words, 0.9 * sum(counts.values()))
    return name if is_clear else ""


def _num_words(text: str, name: str) -> int:
    found = _WORDS[name].findall(text)
    # Where words have no space between them, a character counts as one.
    return len("".join(found)) if name in ("Chinese", "Japanese", "Korean") else len(found)
