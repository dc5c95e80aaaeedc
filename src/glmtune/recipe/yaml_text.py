"""YAML text -> plain values and the line of each key: the one place where YAML is parsed.

A file comes from anywhere, so everything is bounded: its size, how deep it nests, and how many
values it has once its aliases are written out (700 bytes can stand for a billion values). Only
texts, numbers, true, false, null, lists and mappings are read; every key is a text and is given
once.

What a plain word means follows YAML 1.1 as PyYAML reads it, so that recipes stay what they were,
with three exceptions whose reading surprises: dates (2026-11-27), base 60 (1:30) and octal
numbers (010) are texts. A number such as 5e-5 is a text in YAML 1.1; the keys of a recipe that
take numbers read it as one (`numbers.py`).

Source: https://yaml.org/spec/1.1; https://yaml.org/type.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.error import MarkedYAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from glmtune.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_VALUES = 20_000  # with every alias written out
MAX_DIGITS = 400  # of one number; the longest float has 309

NOT_VALID = "not valid YAML: "
FULL_WIDTH = "：，“”‘’［］｛｝＝"  # what a Chinese keyboard types for the signs of YAML

_TAG = "tag:yaml.org,2002:"
_PLAIN_WORDS = (  # tag, what it looks like, first characters
    (
        "bool",
        r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
        "yntfo",
    ),
    (
        "float",
        r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)", "-+0123456789"),
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", "~n"),
)


@dataclass(frozen=True, slots=True)
class Document:
    """What a YAML text holds.

    Attributes:
        tree: plain values: dict, list, str, int, float, bool, None.
        lines: the line of each key of the first two levels, such as `training.learning_rate`.
    """

    tree: Any
    lines: dict[str, int] = field(default_factory=dict)


def read_yaml(path: Path, if_missing: str) -> Document:
    """Read a YAML file.

    Args:
        path: of the file.
        if_missing: the error message if it does not exist.

    Raises:
        RecipeError: it does not exist, is too large or is not YAML; names the line.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"{path}: {if_missing}") from None
    except (OSError, ValueError) as error:  # ValueError: not a path at all
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    try:
        # A file that is too large may end within a character.
        text = content[:MAX_BYTES].decode(
            "utf-8-sig", "ignore" if content[MAX_BYTES:] else "strict"
        )
        return parse_yaml(text + content[MAX_BYTES:].decode("latin-1"))
    except UnicodeDecodeError as error:
        advice = _advice(path, content)
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {error}.{advice}") from None
    except YamlError as error:
        line = f":{error.line}" if error.line else ""
        snippet = f"\n{error.snippet}" if error.snippet else ""
        raise RecipeError(f"{path}{line}: {error}{snippet}") from None


def _advice(path: Path, content: bytes) -> str:
    """Name the command that converts a file in another encoding."""
    encoding = "GB18030"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "UTF-16"
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return " Save it as UTF-8."
    return f" If it is {encoding}: iconv -f {encoding} -t UTF-8 {path} > recipe-utf8.yaml"


class YamlError(ValueError):
    """A text is not YAML, or out of all bounds; the message says what to do.

    Attributes:
        line: where, counted from 1; None if not known.
        snippet: the line with a caret below the place; None where the message says enough.
    """

    def __init__(self, problem: str, mark: yaml.Mark | None = None) -> None:
        super().__init__(problem)
        self.line = mark.line + 1 if mark else None
        is_syntax = mark is not None and problem.startswith(NOT_VALID)
        self.snippet = mark.get_snippet(indent=4, max_length=100) if mark and is_syntax else None


def parse_yaml(text: str) -> Document:
    """Parse a YAML text of one document.

    Raises:
        YamlError: it is not YAML, too large or too deep, or gives a key twice.
    """
    if len(text) > MAX_BYTES:
        raise YamlError(
            f"more than {MAX_BYTES:,} characters, which no recipe has. Rows belong into files "
            "that data.train names."
        )
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        if node is None:
            return Document(None)
        return Document(_plain(node), dict(_lines(node)))
    except MarkedYAMLError as error:
        mark = error.problem_mark
        what = error.problem or " ".join(str(error).split())
        raise YamlError(_explain(what, mark), mark) from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        what = " ".join(str(error).split())
        raise YamlError(f"{NOT_VALID}{what}. Fix the file.") from None


def _explain(problem: str, mark: yaml.Mark | None) -> str:
    if isinstance(problem, _Ours):
        return f"{problem}."
    if "'\\t'" in problem:
        return f"{NOT_VALID}a tab at the start of a line or value. Indent with spaces."
    snippet = mark.get_snippet(indent=0, max_length=100) if mark else None
    if wide := [char for char in FULL_WIDTH if snippet and char in snippet]:
        return (
            f"{NOT_VALID}{problem}. The line has the full-width {wide[0]!r}; YAML needs the "
            "half-width character."
        )
    return f"{NOT_VALID}{problem}. Fix the file."


class _Ours(str):
    """A problem that is explained in full, unlike those of PyYAML."""


def _refuse(problem: str, node: Node) -> yaml.YAMLError:
    return MarkedYAMLError(problem=_Ours(problem), problem_mark=node.start_mark)


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with bounds, and our plain words; nothing is constructed by it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._values = 0
        self._weights: dict[int, int] = {}  # by node: the values in it, aliases written out

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self._depth >= MAX_DEPTH:
            raise MarkedYAMLError(
                problem=_Ours(f"more than {MAX_DEPTH} levels deep, which no recipe is"),
                problem_mark=mark,
            )
        before = self._values
        self._depth += 1
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            weight = self._weights.get(id(node))
            if weight is None:
                raise MarkedYAMLError(
                    problem=_Ours("an alias inside of what it stands for"), problem_mark=mark
                )
            self._values += weight
        else:
            self._values += 1
            self._weights[id(node)] = self._values - before
        if self._values > MAX_VALUES:
            raise MarkedYAMLError(
                problem=_Ours(f"more than {MAX_VALUES:,} values, which no recipe has"),
                problem_mark=mark,
            )
        return node


_Loader.yaml_implicit_resolvers = {}  # its own, not those of PyYAML's class
for _tag, _pattern, _first in _PLAIN_WORDS:
    _starts = [*_first, *(letter.upper() for letter in _first if letter.isalpha())]
    _starts += [""] if _tag == "null" else []
    _Loader.add_implicit_resolver(_TAG + _tag, re.compile(rf"(?:{_pattern})$"), _starts)


def _plain(node: Node) -> Any:
    """Turn a node into a plain value."""
    tag = node.tag.removeprefix(_TAG)
    if isinstance(node, ScalarNode):
        return _scalar(node, tag)
    if isinstance(node, SequenceNode) and tag == "seq":
        return [_plain(child) for child in node.value]
    if isinstance(node, MappingNode) and tag == "map":
        return _mapping(node)
    raise _refuse(f"the tag {node.tag!r} is not read. Leave it out", node)


def _scalar(node: ScalarNode, tag: str) -> Any:
    text = node.value
    if tag == "str":
        return text
    pattern = {name: pattern for name, pattern, _ in _PLAIN_WORDS}.get(tag)
    if pattern is None or tag == "merge":
        raise _refuse(
            f"the tag {node.tag!r} is not read, only text, numbers, true, false, null, lists and "
            "mappings. Leave the tag out",
            node,
        )
    if tag == "float":  # `!!float 5` is one too
        pattern += r"|[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    if re.fullmatch(pattern, text) is None:
        raise _refuse(f"{_shown(text)} is not {_NAMES[tag]}, as its tag says", node)
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() in ("yes", "true", "on")
    if len(text) > MAX_DIGITS:
        raise _refuse(f"a number of {len(text):,} characters, which no key takes", node)
    number = text.replace("_", "")
    if tag == "float":
        return float(re.sub(r"\.(inf|nan)$", r"\1", number.lower()))
    return int(number, 0)


_NAMES = {"null": "null", "bool": "true or false", "int": "a whole number", "float": "a number"}


def _mapping(node: MappingNode) -> dict[str, Any]:
    """Read a mapping; keys of its own come before those that `<<` merges into it."""
    own: dict[str, Any] = {}
    given: dict[str, int] = {}
    merged: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag == _TAG + "merge":
            for part in value.value if isinstance(value, SequenceNode) else [value]:
                if not isinstance(part, MappingNode):
                    raise _refuse("'<<' merges mappings, and this is none", part)
                merged = _mapping(part) | merged
            continue
        if not isinstance(key, ScalarNode) or key.tag != _TAG + "str":
            what = "a list or a mapping" if not isinstance(key, ScalarNode) else _shown(key.value)
            raise _refuse(
                f"a key is {what}, expected text. If it is a text, put it in quotes: "
                f'"{key.value if isinstance(key, ScalarNode) else "name"}": value',
                key,
            )
        line = key.start_mark.line + 1
        if key.value in own:
            raise _refuse(
                f"{_shown(key.value)} is given twice, first in line {given[key.value]}, and only "
                "one of the two can be used. Keep one of them",
                key,
            )
        given[key.value] = line
        own[key.value] = _plain(value)
    return {**merged, **own}


def _lines(node: Node, prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in node.value if isinstance(node, MappingNode) else ():
        name = f"{prefix}{key.value}"
        yield name, key.start_mark.line + 1
        if not prefix:
            yield from _lines(value, f"{name}.")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
