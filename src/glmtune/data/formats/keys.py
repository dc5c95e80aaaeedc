"""Keys of rows and messages that are not read as text: what each of them means.

No key is lost without a word. A key is read by its format, or harmless, or refused because the
row means something else with it; every other one is counted by `Unread`, and lint and the log
of a training report it once.
"""

from collections.abc import Mapping
from typing import Any

from glmtune.data.formats.format import Format
from glmtune.data.formats.values import EMPTY, bad, kind
from glmtune.data.rows import Row

HARMLESS = frozenset(
    [
        "id",
        "_id",
        "idx",
        "index",
        "uid",
        "uuid",
        "guid",
        "row_id",
        "sample_id",
        "example_id",
        "conversation_id",
        "conv_id",
        "prompt_id",
        "question_id",
        "source",
        "data_source",
        "dataset",
        "dataset_name",
        "url",
        "license",
        "language",
        "lang",
        "category",
        "topic",
        "domain",
        "tags",
        "task",
        "task_type",
        "author",
        "model",
        "created_at",
        "timestamp",
        "date",
        "__index_level_0__",
    ]
)
"""Columns that say where a row comes from. They change nothing, so nothing is said of them."""

MESSAGE_HARMLESS = frozenset(["id", "message_id", "timestamp", "created_at", "tool_call_id"])
"""The same on a message. `tool_call_id` is read where a message makes several calls."""

MEDIA = frozenset(["image", "images", "video", "videos", "audio", "audios"])
"""On a row or a message: refused unless empty."""

LOSS_KEYS = frozenset(["loss", "weight", "loss_scale", "train"])
"""On a message: whether it is learned, or with which weight."""

ROW_WEIGHTS = frozenset(["loss", "weight", "loss_scale", "sample_weight"])
"""On a row: refused unless 1 or true."""

ROW_FLAGS = frozenset(["train"])
"""On a row: refused if it says no; any other value may name a part of the data set."""
_SAYS_NO = (False, 0, "false", "False", "0", "no")

LABELS = frozenset(("label", "kto_tag"))
"""On a row: false says that the answer is a bad one."""

CALL = frozenset(["name", "arguments", "parameters", "function", "id", "type", "index"])
"""Of a call of a tool; `id` joins it with its result, and a call says nothing by the last two."""

TOOL_TURN = frozenset(["name", "parameters", "observation"])
"""Of a message with role `tool` in the official format."""

ROLE_MESSAGE = frozenset(
    ["role", "content", "metadata", "tool_calls", "function_call", "tool_call_id"]
)
FROM_MESSAGE = frozenset(["from", "value", "metadata"])
CHATGLM3_MESSAGE = frozenset(["role", "content", "metadata"])


_CHECKED = MEDIA | ROW_WEIGHTS | ROW_FLAGS | {"history"}


def check_keys(row: Row, format: Format) -> None:
    """Refuse a row with a key that would change its meaning.

    Args:
        row: with our names of columns.
        format: of the row.

    Raises:
        RowError: names the key, and what to do.
    """
    if _CHECKED.isdisjoint(row):  # nearly every row
        return
    refuse_media(row, row, "")
    if not ROW_WEIGHTS.isdisjoint(row):
        _check_weight(row)
    for name in ROW_FLAGS & row.keys():
        if row[name] in _SAYS_NO:
            raise bad(row, name, "the row says that it is not to be learned. Take the row out.")
    if "history" in row and "history" not in format.optional and row["history"] not in EMPTY:
        reason = (
            f"format {format.name} has its turns in {' and '.join(format.required)}. Put the "
            "earlier turns there, or take the field out."
        )
        raise bad(row, "history", reason)


def refuse_media(row: Row, fields: Mapping[str, Any], where: str) -> None:
    """Refuse images, videos and sound.

    Args:
        row: for the place of the error.
        fields: of the row or of a message.
        where: of the fields, with a dot at its end; "" for the row.

    Raises:
        RowError: a field has some.
    """
    for name in MEDIA & fields.keys():
        if fields[name] not in EMPTY:
            reason = (
                f"got {kind(fields[name])}, and ChatGLM3 reads text alone. Take the row out; if "
                "its text is enough, take the field out."
            )
            raise bad(row, f"{where}{name}", reason)


def _check_weight(row: Row) -> None:
    for name in ROW_WEIGHTS & row.keys():
        value = row[name]
        if value in EMPTY or value in (1, "1", "1.0", "true", "True"):
            continue
        reason = (
            f"got {kind(value)}, but every row counts once, and other weights of rows are not "
            "supported. Take the row out, or copy it, as often as it should count; then take the "
            "field out."
        )
        raise bad(row, name, reason)


def label_of(name: str, value: Any) -> bool | None:
    """Return what the label of a row says of its answer; None if it is not such a label.

    Numbers are read for `kto_tag` alone: a `label` of 0 may be the first of several classes.

    Args:
        name: `label` or `kto_tag`.
        value: of the row.
    """
    if isinstance(value, str):
        value = {"true": True, "false": False, "1": 1, "0": 0, "1.0": 1, "0.0": 0}.get(
            value.strip().lower()
        )
    if name == "kto_tag" and value in (0, 1):
        return bool(value)
    return value if isinstance(value, bool) else None


def read_label(row: Row) -> bool:
    """Return what a row for KTO says of its answer; a number is a label too.

    Args:
        row: with our names of columns.

    Raises:
        RowError: there is no label, it is neither true nor false, or two contradict each other.
    """
    given = {name: row[name] for name in sorted(LABELS) if row.get(name) not in (None, "")}
    if not given:
        reason = (
            "it is missing or null. With preference.stage=kto every row says whether its answer "
            "is a good one: add label or kto_tag, true or false, or name the column that says it "
            "with data.columns: {kto_tag: their_column}."
        )
        raise bad(row, "label", reason)
    labels = {name: label_of("kto_tag", value) for name, value in given.items()}
    for name, label in labels.items():
        if label is None:
            reason = f"got {kind(given[name])}, expected true or false, or 1 or 0."
            raise bad(row, name, reason)
    if len(set(labels.values())) > 1:
        raise bad(row, "label", "label and kto_tag contradict each other. Keep one of them.")
    return labels.popitem()[1] is True


def is_marked_bad(row: Row) -> bool:
    """Whether a row says that its answer is a bad one, as the rows for KTO do.

    Args:
        row: with our names of columns.
    """
    return any(label_of(name, row.get(name)) is False for name in LABELS)
