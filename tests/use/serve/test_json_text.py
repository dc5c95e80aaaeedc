"""A text is recognized as the beginning of a JSON object, and as a whole one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.use.serve.json_text import JsonText

VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip
OBJECTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=3)


@given(OBJECTS, st.sampled_from([None, 1]), st.booleans())
def test_every_beginning_of_an_object_may_become_one(
    value: Any, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    reader = JsonText()

    for char in text[:-1]:
        assert reader.feed(char).state == "prefix", (text, char)

    assert reader.feed(text[-1]).state == "complete"
    assert reader.copy().feed("\n").state == "complete"
    assert reader.feed("x").state == "invalid"


@given(OBJECTS, st.data())
def test_nothing_but_an_object_is_called_complete(value: Any, data: Any) -> None:
    chars = list(json.dumps(value))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(chars) - 1))
        chars[place : place + data.draw(st.integers(0, 1))] = data.draw(
            st.sampled_from(["", *'{}[]",:0-.eE1tx\\ \n'])
        )
        if not chars:
            return
    text = "".join(chars)

    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False

    assert (JsonText().feed(text).state == "complete") == is_object


@pytest.mark.parametrize(
    "text",
    ["[", "x", '"', '{"a" 1', '{"a":01', '{"a":1,}', "{,", '{"a":tx', '{"\n', "{" + " " * 30],
)
def test_what_can_become_no_object_is_invalid(text: str) -> None:
    assert JsonText().feed(text).state == "invalid"
