"""No key of a row is lost without a word: it is read, harmless, refused, or named."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.data.formats.rows import ROWS, SINGLE, WEATHER, read, row, unread, user_and_assistant

from glmtune.conversation import Conversation, Message
from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.data.formats import FORMATS, KeyScan, Notes, convert, convert_pair, detect
from glmtune.data.formats.detection import fields_of
from glmtune.data.formats.keys import (
    HARMLESS,
    LABELS,
    LOSS_KEYS,
    MEDIA,
    MESSAGE_HARMLESS,
    ROW_WEIGHTS,
)
from glmtune.data.formats.unread import UnreadKey
from glmtune.data.rows import RowError
from glmtune.errors import DataError
from glmtune.template.chatglm import ChatGLMTemplate

PAGE = Path(__file__).parents[3] / "docs" / "data.md"

# Values that each key may have, where it is read at all.
VALUES: dict[str, Any] = {
    "system": "简短",
    "tools": [WEATHER],
    "functions": [WEATHER],
    "history": [["一", "1"]],
    "input": "补充",
    "context": "补充",
    "label": False,
    "kto_tag": False,
    "images": ["a.png"],
    "loss_scale": 0.5,
    "weight": 2,
    "loss": False,
}


@pytest.mark.parametrize("format", SINGLE)
def test_every_optional_column_changes_what_is_learned(format: str) -> None:
    plain = read(**ROWS[format])
    for name in FORMATS[format].optional:
        assert read(**ROWS[format], **{name: VALUES[name]}) != plain, name
        assert unread(**ROWS[format], **{name: VALUES[name]}) == []


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_a_key_that_means_nothing_here_is_named_and_a_harmless_one_is_not(format: str) -> None:
    assert unread(**ROWS[format], mood="glad", id=3, source="web") == ["mood"]
    assert unread(**ROWS[format], mood="", notes=[], images=[]) == []


def test_keys_of_messages_are_named_with_the_column_of_the_messages() -> None:
    answer = {"role": "assistant", "content": "a", "reasoning_content": "hm", "audio": None}
    messages = [{"role": "user", "content": "q", "name": "Ann", "loss": True}, answer]

    assert unread(messages=messages) == [
        "messages[].name", "messages[].loss", "messages[].reasoning_content"
    ]  # fmt: skip
    assert unread(conversations=messages) == [
        "conversations[].name", "conversations[].loss", "conversations[].reasoning_content"
    ]  # fmt: skip
    turns = [{"human": "q", "assistant": "a", "time": "now"}]
    assert unread(conversation=turns) == ["conversation[].time"]
    text = json.dumps([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "x": 1}])
    assert unread(conversations=text) == ["conversations[].x"]


def test_a_prompt_that_looks_like_json_is_a_text() -> None:
    assert unread(prompt='["a"]', completion='[{"b": 1}]') == []
    assert read(prompt='["a"]', completion='[{"b": 1}]')[0].content == '["a"]'


def test_what_a_tool_needs_is_read_and_what_others_have_is_named() -> None:
    call = {"function": {"name": "f", "arguments": "{}"}, "id": "1", "type": "function"}
    result = {"role": "tool", "name": "f", "content": "3", "tool_call_id": "1"}
    asked = {"role": "user", "content": "q"}
    assert unread(messages=[asked, {"role": "assistant", "tool_calls": [call]}, result]) == []

    official = {"role": "tool", "name": "f", "parameters": {"a": 1}, "observation": "3"}
    assert unread(conversations=[asked, official]) == []
    assert unread(messages=[{**asked, "tools": [WEATHER]}, {"role": "assistant", "content": "a"}]) \
        == ["messages[].tools"]  # fmt: skip


@pytest.mark.parametrize("format", SINGLE)
@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("images", ["a.png"], "ChatGLM3 reads text alone"),
        ("video", "a.mp4", "ChatGLM3 reads text alone"),
        ("weight", 0.5, "every row counts once"),
        ("loss_scale", "all", "every row counts once"),
        ("weight", 0, "every row counts once"),
    ],
)
def test_a_key_that_changes_the_meaning_of_a_row_is_refused(
    format: str, key: str, value: Any, reason: str
) -> None:
    with pytest.raises(RowError, match=reason) as caught:
        read(**ROWS[format], **{key: value})

    assert caught.value.bad.field == key
    assert read(**ROWS[format], weight=1, loss_scale=1.0, images=[]) == read(**ROWS[format])


@pytest.mark.parametrize("format", ["openai", "sharegpt", "chatglm3", "conversation", "ultrachat"])
def test_earlier_turns_beside_messages_are_refused(format: str) -> None:
    with pytest.raises(RowError, match="has its turns in"):
        read(**ROWS[format], history=[["一", "1"]])
    assert read(**ROWS[format], history=[]) == read(**ROWS[format])


def test_images_of_messages_are_refused_and_weights_are_read() -> None:
    asked = {"role": "user", "content": "<image>?", "images": ["a.png"]}
    with pytest.raises(RowError, match=r"field 'messages\[0\].images': got a list, and ChatGLM3"):
        read(messages=[asked, {"role": "assistant", "content": "a"}])
    for key in sorted(LOSS_KEYS):
        for wrong in (-1, 1001, float("nan"), "all"):
            answer = {"role": "assistant", "content": "a", key: wrong}
            with pytest.raises(RowError, match="expected true, false, or a weight from 0 to 1,000"):
                read(messages=[{"role": "user", "content": "q"}, answer])
        learned = [
            read(messages=[{"role": "user", "content": "q"}, {**answer, key: flag}])[1].is_learned
            for flag in (True, False, 1, 0, 1.0, 0.0, 0.5, 2, None)
        ]
        assert learned == [True, False, True, False, True, False, 0.5, 2.0, None]
        assert [type(each) for each in learned[:6]] == [bool] * 6  # as they were before weights
    both = {"role": "assistant", "content": "a", "loss": True, "weight": 0}
    with pytest.raises(RowError, match="loss and weight contradict each other"):
        read(messages=[{"role": "user", "content": "q"}, both])
    weighed = {"role": "assistant", "content": "a", "loss": True, "weight": 0.5}
    assert read(messages=[{"role": "user", "content": "q"}, weighed])[1].is_learned == 0.5


def test_a_column_that_the_format_does_not_read_cannot_be_mapped() -> None:
    fields = row(messages=[{"role": "user", "content": "q"}], ctx="c")

    with pytest.raises(DataError, match=r"openai does not read 'input'\. It reads messages,"):
        detect([fields], columns={"input": "ctx"})
    assert read(prompt="翻译", input="hello", response="你好")[0].content == "翻译\nhello"
    asked = row(prompt="翻译", ctx="hello", response="你好")
    columns = {"input": "ctx"}
    format = detect([asked], columns=columns)
    assert convert(asked, format, columns).messages == user_and_assistant("翻译\nhello", "你好")
    notes = Notes()
    KeyScan(format, columns, {}).note(row(**asked, input="lost"), notes)
    assert list(notes.unread) == ["input"]  # `ctx` takes its place


def test_what_a_pair_does_not_use_is_named() -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert unread(**pair, score_chosen=5) == ["score_chosen"]
    assert unread(**pair, question="other") == ["question"]
    assert unread(**pair, response="overwritten") == ["response"]
    assert unread(**ROWS["chosen_rejected"], messages=[{"role": "user", "content": "x"}]) \
        == ["messages"]  # fmt: skip
    message = {"messages": [{"role": "user", "content": "q"}]}
    answers = {"chosen": {"role": "assistant", "content": "a"}}
    rejected = {"role": "assistant", "content": "b", "mood": 1}
    assert unread(**message, **answers, rejected=rejected) == ["messages[].mood"]


def test_the_report_of_encoding_names_unread_keys_once(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    rows = [{**ROWS["alpaca"], "mood": mood} for mood in ("", "glad", "sad")]
    path.write_text("\n".join(map(json.dumps, rows)))

    for _ in range(2):  # the second time from the cache
        report = encode_data(path, ChatGLMTemplate(tiny_tokenizer), EncodeOptions(99)).report
        assert report.unread == {"mood": {"rows": 2, "first": f"{path}:2"}}
        assert f"'mood' is not read (in 2 rows, first {path}:2)" in str(report)


def test_the_page_lists_every_key_by_format() -> None:
    page = PAGE.read_text(encoding="utf-8")
    lines = {
        line.split("`")[1]: line
        for line in page.splitlines()
        if line.startswith("| `") and line.count("|") > 2
    }
    for name, format in FORMATS.items():
        for key in (*format.required, *format.optional, *format.harmless):
            assert f"`{key}`" in lines[name], (name, key)
    for key in (*HARMLESS, *MESSAGE_HARMLESS, *MEDIA, *LOSS_KEYS, *ROW_WEIGHTS):
        assert f"`{key}`" in page, key


# --- Any key, by chance -------------------------------------------------------------------

NEW_VALUES = (
    "x",
    3,
    True,
    False,
    0.5,
    ["y"],
    {"z": 1},
    [["一", "1"]],
    [WEATHER],
    [{"role": "user"}],
)
KNOWN_KEYS = sorted(
    {name for format in FORMATS.values() for name in fields_of(format)}
    | MEDIA
    | ROW_WEIGHTS
    | {"reasoning_content", "name", "metadata", "loss", "train", "role", "from", "content", "value"}
)


def outcome(fields: Mapping[str, Any], name: str) -> tuple[list[Conversation] | None, set[str]]:
    """What is learned of a row, None if it is refused, and the keys that are named."""
    fields_row = row(**fields)
    try:
        format = detect([fields_row])
        if format.is_pair:
            learned = list(convert_pair(fields_row, format))
        else:
            learned = [convert(fields_row, format)]
    except DataError:
        return None, set()
    notes = Notes()
    KeyScan(format, {}, {}).note(fields_row, notes)
    return learned, {key.rsplit(".", maxsplit=1)[-1] for key in notes.unread}


def with_key(
    fields: dict[str, Any], key: str, value: Any, random_: random.Random
) -> dict[str, Any]:
    """Add a key to a row, or to a message of it."""
    lists = [name for name, each in fields.items() if isinstance(each, list)]
    lists = [name for name in lists if isinstance(fields[name][0], dict)]
    if not lists or random_.random() < 0.5:
        return {**fields, key: value} if key not in fields else fields
    name = random_.choice(lists)
    messages = [dict(message) for message in fields[name]]
    messages[random_.randrange(len(messages))].setdefault(key, value)
    return {**fields, name: messages}


@pytest.mark.parametrize("format", sorted(ROWS))
def test_a_random_key_changes_what_is_learned_or_is_refused_or_named(format: str) -> None:
    random_ = random.Random(format)
    plain, _ = outcome(ROWS[format], format)
    named = changed = refused = 0
    for _ in range(600):
        key = random_.choice([*KNOWN_KEYS, "mood", "rating", "补充"])
        value = random_.choice(NEW_VALUES)
        fields = with_key(ROWS[format], key, value, random_)
        learned, unread_keys = outcome(fields, format)
        if fields == ROWS[format]:
            continue
        named += bool(unread_keys)
        refused += learned is None
        changed += learned is not None and learned != plain
        is_harmless_value = value is True and key in (*LOSS_KEYS, *ROW_WEIGHTS, "label", "kto_tag")
        is_flag = key in LOSS_KEYS and value is False  # users are never learned
        assert learned is None or learned != plain or unread_keys or is_harmless_value or is_flag, (
            fields
        )
    assert named > 20
    assert changed + refused > 20


def test_a_label_leaves_the_answer_out_unless_it_is_good() -> None:
    for key in ("label", "kto_tag"):
        for format in SINGLE:
            plain = read(**ROWS[format])
            assert read(**ROWS[format], **{key: True}) == plain
            assert read(**ROWS[format], **{key: "true"}) == plain
            for value in (False, "False"):
                marked = read(**ROWS[format], **{key: value})
                assert [message.is_learned for message in marked] == [False] * len(plain)
    assert unread(**ROWS["alpaca"], label="positive") == ["label"]
    assert unread(**ROWS["alpaca"], label=0) == ["label"]  # of a class, perhaps


def test_a_single_tool_is_read_in_brackets_as_its_error_says() -> None:
    with pytest.raises(RowError, match=r"expected a list of tools\. Put a single tool in brackets"):
        read(**ROWS["alpaca"], tools=WEATHER)
    assert read(**ROWS["alpaca"], tools=[WEATHER])[0].role == "system"


def test_a_kto_tag_may_be_a_number() -> None:
    for value, is_learned in ((0, False), (0.0, False), ("0", False), (1, True), ("1", True)):
        [_, answer] = read(**ROWS["alpaca"], kto_tag=value)
        assert (answer.is_learned is not False) is is_learned, value
        assert unread(**ROWS["alpaca"], kto_tag=value) == []
    assert unread(**ROWS["alpaca"], kto_tag=2) == ["kto_tag"]


def test_a_key_that_is_read_elsewhere_is_not_said_to_be_unknown() -> None:
    columns = tuple(sorted({*LABELS, "instruction", "output"}))
    label = UnreadKey("a.json", 1, 1, "alpaca", columns)
    loss = UnreadKey("a.json", 1, 2, "openai", ("content", "loss", "role"))

    assert label.describe("label") == (
        "'label' is read where it is true or false, and 1 row has another value"
    )
    assert loss.describe("messages[].loss") == (
        "'messages[].loss' is not read of a turn with such a role, and 2 rows have it there"
    )


def test_rows_with_a_bad_label_are_counted_and_not_learned(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    rows = [{**ROWS["openai"], "label": label} for label in (True, False, False)]
    path.write_text("\n".join(map(json.dumps, rows)))

    report = encode_data(path, ChatGLMTemplate(tiny_tokenizer), EncodeOptions(99)).report

    assert (report.num_rows, report.num_examples, report.num_without_labels) == (3, 1, 2)
    assert report.num_marked_bad == 2
    assert "2 of them because label or kto_tag is false" in str(report)


def test_tools_may_be_any_json_in_the_official_format_alone() -> None:
    messages = ROWS["chatglm3"]["conversations"]
    announced = read(conversations=messages, tools={"name": "f"})[0]
    assert announced.text.endswith('{\n    "name": "f"\n}')
    assert read(conversations=messages, tools='{"name": "f"}')[0] == announced
    assert isinstance(announced, Message)
    with pytest.raises(RowError, match="expected a list of tools"):
        read(messages=messages, tools={"name": "f"})


def test_a_row_that_is_not_to_be_learned_is_refused_and_a_name_of_a_part_is_not() -> None:
    for no in (False, 0, "false"):
        with pytest.raises(RowError, match="field 'train': the row says that it is not to be"):
            read(instruction="q", output="a", train=no)
    assert read(instruction="q", output="a", train="part 1") == user_and_assistant("q", "a")


def test_keys_of_a_call_that_nothing_reads_are_named() -> None:
    function = {"name": "f", "arguments": {"a": 1}, "strict": True}
    call = {"id": "1", "type": "function", "index": 0, "function": function, "weight": 3}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    said = json.dumps({"name": "f", "arguments": {}, "thought": "hm"})
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": said}]

    keys = ["messages[].tool_calls[].weight", "messages[].tool_calls[].strict"]
    assert unread(messages=messages) == keys
    assert unread(conversations=turns) == ["conversations[].tool_calls[].thought"]


def test_two_kinds_of_arguments_of_a_call_are_refused_unless_they_are_the_same() -> None:
    def call(**values: Any) -> list[dict[str, Any]]:
        calls = [{"name": "f", "arguments": {"a": 1}, **values}]
        return [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": calls}]

    with pytest.raises(RowError, match="arguments and parameters, and they differ"):
        read(messages=call(parameters={"b": 2}))
    assert read(messages=call(parameters={"a": 1})) == read(messages=call())


def test_the_text_of_an_official_turn_of_a_tool_is_named_as_not_read() -> None:
    tool = {"role": "tool", "name": "f", "parameters": {}, "observation": 3}
    turns = [{"role": "user", "content": "q"}, {**tool, "content": "lost", "metadata": "m"}]

    assert unread(conversations=turns) == ["conversations[].content", "conversations[].metadata"]
    assert unread(conversations=[turns[0], {**tool, "content": ""}]) == []


def test_a_role_that_is_no_text_leaves_the_error_to_the_format() -> None:
    question = [{"role": "user", "content": "q"}]
    healthy, damaged = (
        row(
            messages=question,
            **{side: {"role": role, "content": side} for side in ("chosen", "rejected")},
        )
        for role in ("assistant", ["assistant"])
    )
    format, notes = detect([healthy]), Notes()

    KeyScan(format, {}, {}).note(damaged, notes)

    assert notes.unread == {}
