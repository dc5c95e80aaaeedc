"""Count the keys of rows that nothing reads, so that none is lost without a word.

    {"prompt": ..., "response": ..., "mood": "glad"}              mood
    {"messages": [{"role": ..., "reasoning_content": ...}]}       messages[].reasoning_content

Keys are compared as sets, and values are looked at only where a set has something that is not
plainly read, so that a scan takes about a microsecond a row.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from glmtune.data.formats.detection import detect, fields_of, rename
from glmtune.data.formats.format import Format
from glmtune.data.formats.keys import (
    CALL,
    CHATGLM3_MESSAGE,
    FROM_MESSAGE,
    HARMLESS,
    LABELS,
    LOSS_KEYS,
    MESSAGE_HARMLESS,
    ROLE_MESSAGE,
    ROW_WEIGHTS,
    TOOL_TURN,
    is_marked_bad,
    label_of,
)
from glmtune.data.formats.pairs import ANSWERS, sides
from glmtune.data.formats.question_answer import TURN_KEYS
from glmtune.data.formats.roles import Roles, role_of
from glmtune.data.formats.values import EMPTY
from glmtune.data.json_values import parse_json
from glmtune.data.rows import Row
from glmtune.errors import printable

THOUGHT = "reasoning_content"  # of a message: not every template has a place for it
_TURN = frozenset((*(key for keys in TURN_KEYS for key in keys), "system"))
_MESSAGE_KEYS = {"from": FROM_MESSAGE, "role": ROLE_MESSAGE, "": _TURN}


@dataclass(slots=True)
class UnreadKey:
    """A key that nothing reads.

    Attributes:
        file, line: of the first row that has it.
        count: rows that have it.
        format: of the first row.
        read: what this format reads, of a row or of a message.
    """

    file: str
    line: int
    count: int
    format: str
    read: tuple[str, ...]

    def describe(self, key: str) -> str:
        """Say that the key is not read, and what is."""
        rows = "1 row has" if self.count == 1 else f"{self.count:,} rows have"
        if "tool_calls[]." in key:
            return f"nothing reads {key!r}, which {rows}; of a call, name and arguments are read"
        if key.rpartition("[].")[2] in self.read:  # but not everywhere
            if "[]." in key:
                return f"{key!r} is not read of a turn with such a role, and {rows} it there"
            return f"{key!r} is read where it is true or false, and {rows} another value"
        what = "of a message" if "[]." in key else "of a row"
        return (
            f"nothing reads {key!r}, which {rows}; {what}, format {self.format} reads "
            f"{', '.join(self.read)}"
        )


@dataclass(slots=True)
class Notes:
    """What is to be said of rows that are read without an error.

    Attributes:
        unread: key -> where it was found, in the order of rows.
        num_marked_bad: rows whose label says that the answer is a bad one.
    """

    unread: dict[str, UnreadKey] = field(default_factory=dict)
    num_marked_bad: int = 0

    def drop_thoughts(self) -> None:
        """Forget the thoughts of answers, for a template that reads them."""
        for key in [key for key in self.unread if key.endswith(f"[].{THOUGHT}")]:
            del self.unread[key]

    def to_json(self) -> dict[str, Any]:
        """Return the unread keys as JSON: key -> number of rows, and the first one."""
        return {
            key: {"rows": each.count, "first": f"{each.file}:{each.line}"}
            for key, each in self.unread.items()
        }


class KeyScan:
    """Finds the keys of rows of one file that nothing reads.

    Args:
        format: of the file.
        columns: our field -> their column.
        roles: their role -> ours.
        needs_label: whether every row has a label, which then may be a number.
    """

    def __init__(
        self,
        format: Format,
        columns: Mapping[str, str],
        roles: Roles,
        *,
        needs_label: bool = False,
    ) -> None:
        self._format = format
        self._columns = columns
        self._roles = roles
        read = (*format.required, *format.optional, *format.harmless)
        self._column_of = {name: columns.get(name, name) for name in read}
        self._labels = {self._column_of[name]: name for name in sorted(LABELS) if name in read}
        known = {*self._column_of.values(), *HARMLESS}
        if not needs_label:
            known -= self._labels.keys()
        self._known = frozenset(known)
        names = ("conversation",) if format.name == "conversation" else format.messages
        self._messages = [(name, self._column_of[name]) for name in names]
        self._is_pair = format.is_pair
        self._is_native = format.name == "chatglm3"
        known_keys = _MESSAGE_KEYS[format.style]
        self._message_keys = CHATGLM3_MESSAGE if self._is_native else known_keys

    @cached_property
    def _plain_keys(self) -> frozenset[str]:
        return frozenset(self._message_keys - {"tool_calls"})

    @cached_property
    def _special_roles(self) -> frozenset[str]:
        return self._call_roles | (self._tool_roles if self._is_native else frozenset())

    @cached_property
    def _call_roles(self) -> frozenset[str]:
        return self._roles_that_mean("function_call")

    @cached_property
    def _tool_roles(self) -> frozenset[str]:
        return self._roles_that_mean("tool")

    def _roles_that_mean(self, ours: str) -> frozenset[str]:
        known = self._format.known_roles
        return frozenset(
            each for each in {*known, *self._roles} if role_of(each, self._roles, known) == ours
        )

    def note(self, row: Row, notes: Notes) -> None:
        """Count the unread keys of a row, and whether it is marked as bad.

        Args:
            row: that was read without an error.
            notes: to add to.
        """
        if self._is_pair:
            self._note_pair(row, notes)
            return
        is_plain = row.keys() <= self._known
        if is_plain and not self._messages:
            return
        keys: list[str] = []
        if not is_plain:
            keys += self._of_row(row)
            if not LABELS.isdisjoint(self._column_of) and self._is_marked_bad(row):
                notes.num_marked_bad += 1
        for name, column in self._messages:
            value = row.get(column)
            if isinstance(value, str) and len(self._messages) == 1:  # as in a CSV file
                value = _parsed(value)
            if isinstance(value, list):
                keys += self._of_messages(name, value)
        for key in dict.fromkeys(keys):
            self._add(key, row, notes)

    def _is_marked_bad(self, row: Row) -> bool:
        labels = self._labels.items()
        return any(label_of(name, row.get(column)) is False for column, name in labels)

    def _of_row(self, row: Row) -> Iterator[str]:
        """Yield the columns that nothing reads; weights and images have been checked."""
        for name, value in row.items():
            if name in self._known or value in EMPTY or name in ROW_WEIGHTS:
                continue
            if name in self._labels and label_of(self._labels[name], value) is not None:
                continue
            yield name

    def _of_messages(self, name: str, messages: list[Any]) -> Iterator[str]:
        plain, style, special = self._plain_keys, self._format.style, self._special_roles
        for item in messages:
            role = item.get(style)  # of any type: the format's own check refuses others than text
            if not item.keys() <= plain or (isinstance(role, str) and role in special):
                yield from self._of_message(name, item, messages)

    def _of_message(self, name: str, item: Mapping[str, Any], others: list[Any]) -> Iterator[str]:
        """Yield the keys that nothing reads of a message that is not plain."""
        role = item.get(self._format.style)
        if "tool_calls" in item or role in self._call_roles:
            yield from self._of_calls(name, item)
        if self._is_native and role in self._tool_roles and not self._has_calls(others):
            # Its call and its result have keys of their own.
            for key in ("content", "metadata"):
                if item.get(key) not in EMPTY:
                    yield f"{name}[].{key}"
        for key, value in item.items():
            if key in self._message_keys or key in MESSAGE_HARMLESS or value in EMPTY:
                continue
            if not self._is_read(key, item):
                yield f"{name}[].{key}"

    def _has_calls(self, messages: list[Any]) -> bool:
        """Whether calls are messages of their own, as in rows of ms-swift."""
        return any(item.get(self._format.style) in self._call_roles for item in messages)

    def _of_calls(self, name: str, item: Mapping[str, Any]) -> Iterator[str]:
        """Yield the keys of calls, which were read without an error, that say nothing."""
        calls = item.get("tool_calls")
        if item.get(self._format.style) in self._call_roles:
            value = item.get("value" if self._format.style == "from" else "content")
            calls = _parsed(value) if isinstance(value, str) else value
        for call in calls if isinstance(calls, list) else [calls]:
            parts = (call, call.get("function")) if isinstance(call, dict) else ()
            for part in parts:
                if isinstance(part, dict):
                    unknown = (key for key in part if key not in CALL and part[key] not in EMPTY)
                    yield from (f"{name}[].tool_calls[].{key}" for key in unknown)

    def _is_read(self, key: str, item: Mapping[str, Any]) -> bool:
        """Whether a key of a message is read because of the message's role."""
        role = role_of(item.get(self._format.style), self._roles, self._format.known_roles)
        if key in LOSS_KEYS:
            if role in ("assistant", "function_call") or not item[key]:
                return True
            return self._is_native and role in ("tool", "observation")
        if key == "tools":
            return role == "system"
        if role != "tool":
            return False
        return key in TOOL_TURN if self._is_native else key == "name"

    def _note_pair(self, row: Row, notes: Notes) -> None:
        """Count the keys that neither side reads: of the question, and of the two answers."""
        named = rename(row, self._columns)
        better, worse = sides(named, self._format.required)
        side = KeyScan(detect([better]), {}, self._roles)
        found = Notes()
        for each in (better, worse):
            side.note(each, found)
        # A message of an answer is appended to the messages of the row; all else replaces.
        is_appended = isinstance(named.get("chosen"), dict)
        replaced = [
            name
            for name, value in better.items()
            if not is_appended and name in named and named[name] is not value
        ]
        others = [name for name in ANSWERS if name not in self._format.required]
        replaced += [name for name in others if named.get(name) not in EMPTY]
        for key in (*found.unread, *replaced):
            self._add(key, row, notes)
        notes.num_marked_bad += is_marked_bad(better)

    def _add(self, key: str, row: Row, notes: Notes) -> None:
        key = printable(key)
        if (known := notes.unread.get(key)) is not None:
            known.count += 1
            return
        if "[]." in key:
            read = tuple(sorted(self._message_keys | LOSS_KEYS))
        else:
            read = fields_of(self._format)
        notes.unread[key] = UnreadKey(row.file, row.line, 1, self._format.name, read)


def _parsed(value: str) -> Any:
    """Parse messages that are JSON text."""
    try:
        return parse_json(value)
    except ValueError:
        return None
