"""The texts of the program in the language of its reader.

The code writes English. Where a text leaves the program (an error, a line of the log, help, a
table, a page), `translate` finds the template that it was made of, and fills in its Chinese twin:

    rows.json: there are no rows in it.     a text
    {0}: there are no rows in it.           its template, a msgid of messages_zh.po
    {0}：里面没有数据行。                      the twin, with the same values filled in

A value is translated in turn if it is a text of ours, and left alone otherwise. What no template
fits is translated by sentences and clauses; what is no text of ours comes back as it is. For
readers of English nothing is loaded. Files for programs (JSON, metrics) stay as the code writes
them.

The language is that of `--lang`, which sets GLMTUNE_LANG, then of LC_ALL, LC_MESSAGES and LANG.
`python -m tests.messages` lists texts without a twin.
"""

import json
import os
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

CATALOGUE = Path(__file__).with_name("messages_zh.po")
LANGUAGES = ("zh", "en")
VARIABLE = "GLMTUNE_LANG"
WORD = "word"  # the msgctxt of what is translated only where it stands alone, as a cell or a label
MAX_CHARACTERS = 4000  # of a text that is looked up; longer ones are data
MIN_CITED = 150  # the weight of a text that others cite without its place: fifteen letters
MAX_DEPTH, MAX_PARTS = 9, 40  # of texts within texts; more parts are a list of data


def language() -> str:
    """Return `zh` or `en`, the language of messages.

    >>> os.environ["GLMTUNE_LANG"] = "en"
    >>> language()
    'en'
    """
    for name in (VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


def is_chinese() -> bool:
    """Whether messages are in Chinese."""
    return language() == "zh"


def choose(name: str) -> None:
    """Choose the language of this process and of those that it starts.

    Args:
        name: one of `LANGUAGES`.
    """
    os.environ[VARIABLE] = name


def translate(text: str) -> str:
    """Return a text of ours in the language of the reader.

    Args:
        text: a message, with its values. White space around it is kept.
    """
    return in_chinese(text) if is_chinese() else text


def in_chinese(text: str) -> str:
    """Return a text of ours in Chinese, whatever the language of the reader."""
    if len(text) > MAX_CHARACTERS:
        lines = text.split("\n")
        return "\n".join(map(in_chinese, lines)) if len(lines) > 1 else text
    if not (inner := text.strip()):
        return text
    found, weight = _best(inner, 0)
    if word := _words().get(inner):
        found = word
    elif weight:
        found = _CLOSE.sub("", found)
    return text.replace(inner, found, 1)


_CLOSE = re.compile(r"(?<=[，。；：（]) (?=\S)")  # a space that full-width marks do not need


def width(text: str) -> int:
    """Return the columns that a text takes on a terminal: two for a Chinese character.

    >>> width("loss"), width("损失")
    (4, 4)
    """
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in text
    )


def padded(text: str, columns: int) -> str:
    """Add spaces after a text until it takes that many columns."""
    return text + " " * (columns - width(text))


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a catalogue.

    Attributes:
        source: the English text, with `{0}` for what is filled in.
        twin: the Chinese text; "" if there is none yet.
        context: `word` or "".
        comments: lines that begin with `#`, such as the place in the code.
    """

    source: str
    twin: str
    context: str = ""
    comments: tuple[str, ...] = ()

    @property
    def is_internal(self) -> bool:
        """Whether the text is for a program or a model, and stays as it is."""
        return "#, internal" in self.comments


def read_catalogue(path: Path = CATALOGUE) -> Iterator[Entry]:
    """Yield the entries of a .po file after its header.

    Raises:
        ValueError: a line is none of a .po file.
    """
    parts: dict[str, str] = {}
    comments: list[str] = []
    key = ""
    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), ""], start=1):
        if not line.strip():
            if parts.get("msgid"):
                yield Entry(
                    parts["msgid"],
                    parts.get("msgstr", ""),
                    parts.get("msgctxt", ""),
                    tuple(comments),
                )
            parts, comments, key = {}, [], ""
        elif line.startswith("#"):
            comments.append(line)
        else:
            name, _, quoted = line.partition(" ") if not line.startswith('"') else (key, "", line)
            if name not in ("msgid", "msgstr", "msgctxt"):
                raise ValueError(f"{path}:{number}: expected msgid, msgstr or msgctxt: {line}")
            key = name
            parts[key] = parts.get(key, "") + json.loads(quoted)


@dataclass(frozen=True, slots=True)
class _Template:
    """A text with gaps, split once so that most texts are told apart without an expression.

    Attributes:
        start, end: what a text must start and end with.
        longest: what it must contain.
        fields: the names of the gaps, in their order.
        literals: what stands between them.
        twin: with the same gaps.
        weight: of the literals.
    """

    start: str
    end: str
    longest: str
    fields: tuple[str, ...]
    literals: tuple[str, ...]
    twin: str
    weight: int

    def values(self, text: str) -> dict[str, str] | None:
        """Return what fills the gaps in a text; None if it was not made of this template.

        Each gap takes as little as possible, so one pass from left to right is enough.
        """
        if not (text.startswith(self.start) and text.endswith(self.end) and self.longest in text):
            return None
        values: dict[str, str] = {}
        at, last = len(self.start), len(text) - len(self.end)
        for name, literal in zip(self.fields, self.literals[1:], strict=True):
            if name is self.fields[-1] and name[0] != "n":
                end = last
            elif name[0] == "n":
                end = _end_of_number(text, at, literal)
            else:
                end = text.find(literal, at, last)
            if not at <= end <= last:
                return None
            values[name] = text[at:end]
            at = end + len(literal)
        return values if at == len(text) else None


def _end_of_number(text: str, at: int, literal: str) -> int:
    """Return where a number ends that a literal follows; -1 without one."""
    match = _NUMBER.match(text, at)
    ends = (match.end(), match.end(1)) if match else ()
    return next((end for end in ends if text.startswith(literal, end)), -1)


# What a gap such as {n0} takes: a number, with a percent sign or without.
_NUMBER = re.compile(r"( *[-+]?(?:\d(?:[\d.,]*\d)?(?:e[-+]?\d+)?|nan|inf))(?: ?%)?")


def parts_of(template: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split a template into its literals and the names of its gaps, one fewer.

    >>> parts_of("{0} of {{x}}")
    (('', ' of {x}'), ('0',))
    """
    if "{{" not in template and "}}" not in template:  # as nearly all
        pieces = _GAP.split(template)
        return tuple(pieces[::2]), tuple(pieces[1::2])
    literals, fields = [""], list[str]()
    for literal, name, _, _ in string.Formatter().parse(template):
        literals[-1] += literal
        if name is not None:
            fields.append(name)
            literals.append("")
    return tuple(literals), tuple(fields)


_GAP = re.compile(r"\{(\w*)\}")


def _weigh(texts: Iterable[str]) -> int:
    """Weigh what was recognized: by its letters, and a little by the other characters."""
    text = _SPACE.sub("", "".join(texts))
    return len(text) + 9 * len(_OTHERS.sub("", text))


_SPACE, _OTHERS = re.compile(r"\s+"), re.compile("[^A-Za-z]+")


@cache
def _entries() -> tuple[Entry, ...]:
    """Return the entries with a twin; also without the place before it or the period after it.

    Texts cite each other in this way.
    """
    found = {(each.source, each.context): each for each in read_catalogue() if each.twin}
    for each in tuple(found.values()):
        source, twin = each.source.removeprefix("{0}: "), each.twin.removeprefix("{0}：")
        if "{0}" in source + twin or _weigh([source]) < MIN_CITED:
            source, twin = each.source, each.twin
        for cut in (Entry(source, twin), Entry(source.rstrip("."), twin.rstrip("。"))):
            found.setdefault((cut.source, each.context), cut)
    return tuple(found.values())


@cache
def _words() -> dict[str, str]:
    return {each.source: each.twin for each in _entries() if each.context == WORD}


@cache
def _constants() -> dict[str, str]:
    """Return the twins of the texts without gaps."""
    texts = (each for each in _entries() if not each.context)
    return {
        parts_of(each.source)[0][0]: parts_of(each.twin)[0][0]
        for each in texts
        if not parts_of(each.source)[1]
    }


@cache
def _templates() -> dict[str, list[_Template]]:
    """Return the templates by a word that each text of theirs has, the rarest; "" if by none."""
    made = []
    for each in _entries():
        literals, fields = parts_of(each.source)
        weight = _weigh(literals)
        if fields and not each.context and weight >= 20:  # at least two letters
            longest = max(literals, key=len)
            made.append(
                _Template(literals[0], literals[-1], longest, fields, literals, each.twin, weight)
            )
    words = {template: _whole_words(template.literals) for template in made}
    count = Counter(word for found in words.values() for word in found)
    index: dict[str, list[_Template]] = {}
    for template in made:
        word = min(words[template], key=lambda word: (count[word], word), default="")
        index.setdefault(word, []).append(template)
    return index


_WORD = re.compile(r"\w+")


def _whole_words(literals: Sequence[str]) -> set[str]:
    """Return the words of a template that no gap can make longer."""
    found = set()
    for index, literal in enumerate(literals):
        for match in _WORD.finditer(literal):
            is_open = (match.start() == 0 and index > 0) or (
                match.end() == len(literal) and index < len(literals) - 1
            )
            if not is_open:
                found.add(match[0])
    return found


def _candidates(text: str) -> list[_Template]:
    """Return the templates that a text may be made of, those that say most first."""
    index = _templates()
    words = {"", *_WORD.findall(text)}
    found = [template for word in words for template in index.get(word, ())]
    return sorted(found, key=lambda template: (-template.weight, template.literals))


# What joins texts, and what joins their twins. A sentence keeps its period.
_JOINTS = (
    (re.compile(r"\n"), "\n"),
    (re.compile(r" · "), " · "),
    (re.compile(r"(?<=[.!?]) +"), ""),
    (re.compile(r"; "), "；"),
    (re.compile(r": "), "："),
    (re.compile(r", or "), "，或"),
    (re.compile(r", "), "，"),
)
_BRACKETED = re.compile(r"(.+?) \((.+)\)(\.?)", re.DOTALL)


@lru_cache(maxsize=8192)
def _best(text: str, depth: int) -> tuple[str, int]:
    """Return the best translation of a text, and the weight of what was recognized in it."""
    if twin := _constants().get(text):
        return twin, _weigh([text])
    if depth > MAX_DEPTH or " " not in text or (text[0] in "'\"`" and text[0] == text[-1]):
        return text, 0  # a name, a number, or a value in quotes
    best, most, is_balanced = text, 0, _is_balanced(text)
    for template in _candidates(text):
        values = template.values(text)
        if values is None or (is_balanced and not all(map(_is_balanced, values.values()))):
            continue
        filled = {name: _in_place(value, depth) for name, value in values.items()}
        found = template.weight + sum(weight for _, weight in filled.values())
        if found > most:
            best = _fill(template.twin, {name: value for name, (value, _) in filled.items()})
            most = found
    for other, found in _pieces(text, depth):
        if found > most:
            best, most = other, found
    return best, most


def _is_balanced(text: str) -> bool:
    return all(text.count(first) == text.count(last) for first, last in ("()", "[]"))


def _in_place(value: str, depth: int) -> tuple[str, int]:
    """Translate a value, and keep the white space around it."""
    inner = value.strip()
    if not inner:
        return value, 0
    twin, weight = _best(inner, depth + 1)
    return value.replace(inner, twin, 1) if weight else value, weight


def _fill(twin: str, values: dict[str, str]) -> str:
    literals, fields = parts_of(twin)
    filled = [literals[0]]
    for name, literal in zip(fields, literals[1:], strict=True):
        filled += [values[name], literal]
    return "".join(filled)


def _join(parts: Sequence[str], twin: str) -> str:
    """Join parts; a sentence that stays English keeps the space after it."""
    if twin:
        return twin.join(parts)
    return "".join(f"{part} " if part[-1:] in ".!?" else part for part in parts).rstrip(" ")


def _pieces(text: str, depth: int) -> Iterator[tuple[str, int]]:
    """Yield translations of a text by its sentences and clauses."""
    for joint, twin in _JOINTS:
        parts = joint.split(text, maxsplit=MAX_PARTS)
        if not 1 < len(parts) <= MAX_PARTS:
            continue
        splits = [parts]
        if len(parts) > 2:  # the rest may be one text that has such a joint itself
            splits.append(joint.split(text, maxsplit=1))
        for split in splits:
            done = [_in_place(part, depth) for part in split]
            yield _join([part for part, _ in done], twin), sum(weight for _, weight in done)
    if match := _BRACKETED.fullmatch(text):
        first, inside = (_in_place(part, depth) for part in match.groups()[:2])
        bracketed = _in_place(f"({match[2]})", depth)
        if bracketed[1] < inside[1]:
            bracketed = f"（{inside[0]}）", inside[1]
        end = "。" if match[3] else ""
        yield f"{first[0]}{bracketed[0]}{end}", first[1] + bracketed[1]
    if text.endswith(".") and not text.endswith(".."):
        inner, weight = _in_place(text[:-1], depth)
        yield f"{inner}。", weight
