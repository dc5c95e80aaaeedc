"""Parse one JSON value strictly, and say what is wrong with a line that is not JSON.

Python's own parser accepts NaN, Infinity and a key given twice; JSON does not, and the second of
two equal keys would replace the first without a word.
"""

import itertools
import json
import math
from typing import Any, NoReturn

MAX_DEPTH = 200  # of nested lists and objects


class RepeatedKeyError(ValueError):
    """An object has a key twice, with two values."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} is given twice, with different values. Keep one.")
        self.key = key


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        for key, value in pairs:
            check_repeated(key, value, fields[key])
    return fields


def check_repeated(key: str, value: Any, other: Any) -> None:
    """Refuse a key that is given twice, unless both values are the same.

    Raises:
        RepeatedKeyError: names the key.
    """
    if type(value) is not type(other) or value != other:
        raise RepeatedKeyError(key)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON. Write a number, a text or null.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large.")
    return number


STRICT = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique_keys
)
LENIENT = json.JSONDecoder()  # to find the end of a row with NaN


def parse_json(text: str) -> Any:
    """Parse one JSON value, without what Python's own parser accepts beyond JSON.

    Raises:
        ValueError: not JSON, or with NaN, Infinity, a key given twice or deep nesting; the message
            says why, and at which character.
    """
    try:
        value = STRICT.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply.") from None
    if len(text) > 2 * MAX_DEPTH and text.count("[") + text.count("{") > MAX_DEPTH:
        check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Refuse a value that the recursive functions of other libraries could not walk through.

    A text with few brackets cannot be deep, so this is not called for most values.

    Raises:
        ValueError: it is nested too deeply.
    """
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested too deeply, more than {MAX_DEPTH} levels.")
        lists = [each for each in level if isinstance(each, list)]
        dicts = [each.values() for each in level if isinstance(each, dict)]
        level = list(itertools.chain.from_iterable((*lists, *dicts)))
        depth += 1


def non_finite_field(value: Any, prefix: str = "") -> str:
    """Return the path of the first NaN or infinity in a value, as in `scores[2]`; "" if none."""
    waiting = [(prefix, value)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return path
        children: list[tuple[str, Any]] = []
        if isinstance(value, dict):
            children = [(f"{path}.{key}" if path else key, child) for key, child in value.items()]
        elif isinstance(value, list):
            children = [(f"{path}[{index}]", child) for index, child in enumerate(value)]
        waiting += reversed(children)
    return ""


def why_not_json(line: str, error: ValueError) -> tuple[str, str]:
    """Return the field at fault, if there is one, and the reason."""
    if isinstance(error, RepeatedKeyError):
        return error.key, str(error)
    if not isinstance(error, json.JSONDecodeError):
        try:
            return non_finite_field(LENIENT.decode(line)), str(error)
        except (ValueError, RecursionError):
            return "", str(error)
    return "", f"not JSON: {error.msg} at character {error.pos + 1}. {_remedy(line, error)}"


def _remedy(line: str, error: json.JSONDecodeError) -> str:
    """Say how to repair a line of JSON, by what is often written instead of it."""
    text = line.strip()
    if error.msg == "Extra data" and text[error.pos :].strip(" \t,") == "":
        return "Take the comma off the ends of the lines: every line is a row of its own."
    if text in ("{", "["):
        return "A row is one line here; where rows extend over several lines, name the file .json."
    if text.startswith(("{'", "['")):
        return (
            "These are quotes of Python, not of JSON: json.dumps(row, ensure_ascii=False) writes "
            "a row."
        )
    if not line.endswith("\n"):
        return "It is the last line: the file may break off here. Write the file again."
    return "Repair the line; data.bad_rows: skip leaves such lines out."
