"""An unknown role is advised by what it means, and the advice works when it is followed."""

import re

import pytest
import yaml
from tests.data.formats.rows import row

from glmtune.data.formats import FORMATS, convert
from glmtune.data.formats.roles import TARGETS, advise
from glmtune.data.rows import RowError

MEANT = {
    "用户": "user",
    "病人": "user",
    "prompter": "user",
    "User": "user",
    "Human": "user",
    "user1": "user",
    "助手": "assistant",
    "客服": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ASSISTANT": "assistant",
    "assistent": "assistant",
    "系统": "system",
    "system_prompt": "system",
    "tool_calls": "function_call",
    "function-call": "function_call",
    "functioncall": "function_call",
    "tool_result": "observation",
    "tool result": "observation",
    "function_response": "observation",
    "ipython": "observation",
    "工具": "observation",
}


@pytest.mark.parametrize(("theirs", "ours"), MEANT.items())
def test_a_role_is_advised_by_what_it_means(theirs: str, ours: str) -> None:
    assert yaml.safe_load(advise(theirs).removesuffix(".")) == {"data.roles": {theirs: ours}}


@pytest.mark.parametrize("theirs", ["narrator", "旁白", "a: b", "# 1", '"x"'])
def test_a_role_without_a_known_meaning_gets_the_choices(theirs: str) -> None:
    advice = advise(theirs)

    assert advice.endswith(f"with one of {', '.join(TARGETS)}.")
    mapping = advice.removeprefix("data.roles: ").split(" with one of")[0]
    assert yaml.safe_load(mapping.replace("...", "user")) == {theirs: "user"}


@pytest.mark.parametrize("style", ["sharegpt", "openai", "chatglm3"])
@pytest.mark.parametrize(("theirs", "ours"), MEANT.items())
def test_the_advice_works_when_it_is_followed(style: str, theirs: str, ours: str) -> None:
    who, what = ("from", "value") if style == "sharegpt" else ("role", "content")
    asked = "human" if style == "sharegpt" else "user"
    call = '{"name": "f", "arguments": {}}'
    turns = {
        "user": [(theirs, "q"), ("assistant", "a")],
        "assistant": [(asked, "q"), (theirs, "a")],
        "system": [(theirs, "s"), (asked, "q"), ("assistant", "a")],
        "function_call": [(asked, "q"), (theirs, call)],
        "observation": [(asked, "q"), ("assistant", "a"), (theirs, "o"), ("assistant", "b")],
    }[ours]
    field = FORMATS[style].required[0]
    fields = {field: [{who: role, what: text} for role, text in turns]}

    with pytest.raises(RowError) as caught:
        convert(row(**fields), FORMATS[style])
    advice = re.search(r"data\.roles: (\{.*\})\.$", caught.value.bad.reason)
    assert advice is not None, caught.value

    read = convert(row(**fields), FORMATS[style], None, yaml.safe_load(advice[1]))
    expected = "assistant" if ours == "function_call" else ours
    assert expected in [message.role for message in read]
    assert any(message.metadata == "f" for message in read) is (ours == "function_call")


def test_a_role_that_is_no_text_is_refused() -> None:
    fields = {"messages": [{"role": 1, "content": "q"}]}

    with pytest.raises(RowError, match=r"messages\[0\].role': got the number 1, expected one of"):
        convert(row(**fields), FORMATS["openai"])


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (3, "Put it in quotes"),
        (True, "Put it in quotes"),
        (["a", "b"], "Join its items into one text"),
        ({"a": 1}, "json.dumps"),
    ],
)
def test_the_advice_for_a_value_that_is_no_text_fits_the_value(value: object, advice: str) -> None:
    with pytest.raises(RowError, match=advice):
        convert(row(instruction="q", output=value), FORMATS["alpaca"])
