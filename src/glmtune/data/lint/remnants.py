"""Checks of what collecting and converting rows leaves in a text.

As in `texts.py`, each check takes a conversation and returns the first fault in it, and what a
question asks for is not a fault in its answer.
"""

import re
from collections.abc import Callable, Iterator, Mapping

import regex  # type: ignore[import-untyped]  # has classes of characters, unlike `re`

from glmtune.conversation import Conversation, Message
from glmtune.data.lint.findings import Fault
from glmtune.data.lint.texts import around


def remnant_checks() -> Mapping[str, Callable[[Conversation], Fault | None]]:
    """Return the checks of this module by id."""
    return {
        "missing-value": find_missing_value,
        "invisible": find_invisible,
        "markup": find_markup,
        "continued": find_continued_dialogue,
        "repetition": find_repetition,
        "advertising": find_advertising,
    }


def _answers(conversation: Conversation) -> Iterator[tuple[str, Message]]:
    """Yield each plain answer with all that was said to the assistant before it."""
    said = ""
    for message in conversation:
        if message.role == "assistant" and not message.metadata:
            yield said, message
        else:
            said += message.content + "\n"


# --- Values that a table did not have -------------------------------------------------------

_NO_VALUE = re.compile(r"(?:nan|NaN|NAN|<NA>|NaT|#N/A|#REF!|#VALUE!|undefined|\[object Object\])")
_NO_ANSWER = re.compile(r"(?:None|NULL|Null|null|N/A|n/a)")


def find_missing_value(conversation: Conversation) -> Fault | None:
    """Find a message, or a line of a question, that is the `nan` of an empty cell."""
    asked = ""
    for message in conversation:
        text = message.content.strip()
        lines = text.split("\n") if message.role == "user" and len(text) < 10_000 else [text]
        value = next((line for line in lines if _NO_VALUE.fullmatch(line.strip())), None)
        if value is None and _NO_ANSWER.fullmatch(text) and text.lower() not in asked.lower():
            value = text  # a question may name it as a possible answer
        if value is not None and f"'{value}'" not in asked:
            why = f"a text of the {message.role} is {value.strip()!r}, which an empty cell leaves"
            return Fault("warning", why, around(text, 0, 0))
        asked += message.content
    return None


# --- What nobody sees -------------------------------------------------------------------------

_INVISIBLE = re.compile(
    "[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ue000-\uf8ff]"
)
_JOINED = regex.compile(r"[\p{Extended_Pictographic}\ufe0f\p{Arabic}\p{Devanagari}\p{Bengali}"
                        r"\p{Tamil}\p{Malayalam}\p{Sinhala}\p{Hebrew}]")  # fmt: skip


def find_invisible(conversation: Conversation) -> Fault | None:
    """Find characters without a shape: zero-width ones, marks of direction, private ones."""
    for message in conversation:
        text = message.content
        if text.isascii():
            continue
        for match in _INVISIBLE.finditer(text):
            start, end = match.span()
            if _JOINED.search(text[max(0, start - 2) : end + 1]):
                continue  # emoji and some scripts are joined by them
            why = (
                f"the text of the {message.role} has the invisible character U+{ord(match[0]):04X}"
            )
            return Fault("warning", why, around(text, start, end))
    return None


# --- Markup and escapes -----------------------------------------------------------------------

_TAGS = "p|br|div|span|a|b|i|u|strong|em|ul|ol|li|table|tr|td|th|tbody|font|h[1-6]|img|script|style"
_MARKUP = re.compile(
    rf"(?P<tag></?(?:{_TAGS}|center|section|article|iframe|input|button|form|meta|link)"
    r"(?:\s[^<>]{0,200})?/?>)"
    r"|(?P<entity>&(?:nbsp|amp|lt|gt|quot|apos|ldquo|rdquo|mdash|ndash|hellip|middot|#\d{2,5}"
    r"|#x[0-9a-fA-F]{2,4});)"
    r"|(?P<bbcode>\[/?(?:b|i|u|url|img|quote|color|size)(?:=[^\]\n]{1,80})?\])"
    r"|(?P<wiki>\{\{(?:cite|ref|cn|main)\b|<ref\b)"
    r"|(?P<escape>\\u[0-9a-fA-F]{4}|(?:%E[0-9A-F](?:%[0-9A-F]{2}){2}){2})"
    r"|(?P<newline>\\n)",
    re.IGNORECASE,
)
_MAY_HAVE_MARKUP = re.compile(r"[<&\[\\{%]")
_ASKS_FOR_MARKUP = re.compile(
    r"网页|标签|标记|代码|编程|程序|脚本|函数|前端|转义|正则|字符串|网站|编码|换行"
    r"|(?i:html|xml|css|markup|tag\b|code|script|function|latex|bbcode|wiki|json|java|php|regex"
    r"|string|python|c\+\+|web ?page|web ?site|escape)"
)
_WHY_MARKUP = {
    "tag": "is a tag of HTML",
    "entity": "is an escape of HTML",
    "bbcode": "is a tag of a forum",
    "wiki": "is markup of a wiki",
    "escape": "is an escaped character",
    "newline": "is an escaped line break",
}
_FENCED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$[^$]*\$", re.DOTALL)


def find_markup(conversation: Conversation) -> Fault | None:
    """Find remnants of HTML and of other markup, and escapes that were not undone."""
    for said, message in _answers(conversation):
        text = message.content
        if not _MAY_HAVE_MARKUP.search(text):
            continue
        if _ASKS_FOR_MARKUP.search(said) or _MARKUP.search(said):
            continue
        prose = _FENCED.sub(lambda match: " " * len(match[0]), text)
        for match in _MARKUP.finditer(prose):
            kind = match.lastgroup or ""
            if kind == "newline" and (
                "\n" in text or re.match(r"[A-Za-z]{2}", prose[match.end() :])
            ):
                continue  # as in \nabla
            why = f"{match[0]} in the answer {_WHY_MARKUP[kind]}"
            return Fault("warning", why, around(text, *match.span()))
    return None


# --- The other side's words -------------------------------------------------------------------

_SPEAKER = r"(?:用户|提问者|人类|客户|顾客|User|Human|USER|HUMAN|问|Q|Question)"
_OTHER_TURN = re.compile(rf"(?:\n|[。！？!?]\s*)(?:\*\*)?{_SPEAKER}\s*\d*(?:\*\*)?\s*[:：]\s*\S")
_ASKS_FOR_DIALOGUE = re.compile(
    r"对话|对白|剧本|台词|采访|访谈|面试|问答|提问|问题|聊天|交谈|谈话|会话|故事|小说|短剧|场景|脚本|测验|试题|笑话|问卷"
    r"|(?i:dialog|conversation|script|interview|quiz|faq|q&a|question|chat|story|joke|survey)"
)


def find_continued_dialogue(conversation: Conversation) -> Fault | None:
    """Find an answer that goes on with the next words of the user."""
    for said, message in _answers(conversation):
        match = _OTHER_TURN.search(message.content)
        if match and match.start() and not _ASKS_FOR_DIALOGUE.search(said):
            shown = match[0].strip("。！？!? \n")
            why = f"the answer goes on with the user's next words: {shown[:20]}"
            return Fault("warning", why, around(message.content, *match.span()))
    return None


# --- A phrase over and over -------------------------------------------------------------------

_PROBE = 6  # characters that are counted at a few places of a text
_LEAST_COPIES, _LEAST_SHARE = 6, 0.4
_REPEATED = re.compile(r"(?P<unit>(?:.|\n){2,120}?)(?P=unit){5,}")
_ASKS_TO_REPEAT = re.compile(r"重复|遍|次|歌|诗|循环|(?i:repeat|times|song|poem|lyric|loop)")


def find_repetition(conversation: Conversation) -> Fault | None:
    """Find a phrase that an answer says over and over, as a model does that got stuck."""
    for said, message in _answers(conversation):
        text = message.content
        if len(text) < 24:
            continue
        for at in (len(text) // 3, len(text) // 2, len(text) * 3 // 4, len(text) - _PROBE):
            probe = text[at : at + _PROBE]
            if not any(map(str.isalnum, probe)) or text.count(probe) < _LEAST_COPIES:
                continue
            found = _REPEATED.search(text[:4_000])
            is_most = found and len(found[0]) >= _LEAST_SHARE * len(text[:4_000])
            if found and is_most and not _ASKS_TO_REPEAT.search(said):
                phrase, copies = found["unit"].strip(), len(found[0]) // len(found["unit"])
                if any(map(str.isalnum, phrase)) and len(set(phrase)) > 1:
                    why = f"the answer says {phrase[:30]!r} {copies} times in a row"
                    return Fault("warning", why, around(text, *found.span("unit")))
            break
    return None


# --- Advertising ------------------------------------------------------------------------------

_CONTACT = re.compile(
    r"https?://[^\s，。）)]{3,80}|www\.[\w.-]{3,60}|\b[\w-]{2,30}\.(?:com|cn|net|shop|top|vip|xyz)\b"
    r"|(?:微信|QQ|Q群|VX|vx|公众号|客服|热线|电话)\s*(?:号|群)?\s*[:：]?\s*[\w-]{5,20}"
)
_MAY_ADVERTISE = re.compile(
    r"http|www\.|\.(?:com|cn|net|shop|top|vip|xyz)\b|微信|QQ|Q群|VX|vx|公众号|热线"
)
_SELLS = re.compile(
    r"点击|戳这里|关注我|关注公众号|加(?:我|微信|QQ|群)|扫码|优惠|折扣|打折|促销|特价|下单|抢购|立即购买|购买|包邮|咨询"
    r"|免费领|领取|客服|注册送|返利|加盟|代理|返现|红包|推广|广告|赞助"
    r"|(?i:click (?:here|below)|subscribe|buy now|sign up|discount|limited offer|order now|% off"
    r"|free trial|sponsor|visit (?:us|our)|shop now|promo)"
)
_ASKS_FOR_ADVERTISING = re.compile(
    r"广告|营销|推广|宣传|销售|文案|网址|网站|链接|客服|联系|购物|店|邮件|海报|公众号|微信|博客|社交媒体"
    r"|(?i:advert|marketing|slogan|promot|sales|url|link|web ?site|e-?mail|shop|store|post\b|blog)"
)


def find_advertising(conversation: Conversation) -> Fault | None:
    """Find an answer that sells something and says where, unasked."""
    for said, message in _answers(conversation):
        text = message.content
        if not _MAY_ADVERTISE.search(text):
            continue
        for match in _CONTACT.finditer(text):
            near = text[max(0, match.start() - 60) : match.end() + 40]
            if not _SELLS.search(near) or match[0] in said or _ASKS_FOR_ADVERTISING.search(said):
                continue
            why = f"the answer advertises {match[0][:40]}"
            return Fault("warning", why, around(text, *match.span()))
    return None
