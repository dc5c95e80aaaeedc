"""What a format is: the columns by which it is found, those that it reads, and its reader."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from glmtune.conversation import Message
from glmtune.data.formats.roles import Roles
from glmtune.data.rows import Row

Style = Literal["from", "role", ""]
"""How messages name their author: `from` and `value`, `role` and `content`, or no messages."""


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write a row.

    Attributes:
        name: as in `data.format`.
        required: the columns by which it is detected.
        optional: columns that it also reads.
        read: converts one row to messages; the roles are the user's own `roles`. None for
            pairs, whose sides are rows of other formats.
        answer: the column of the answer; "" if it is one of the messages.
        harmless: columns that it does not read because they change nothing.
        messages: the columns with messages.
        style: how these name their author.
        known_roles: the role in a message -> ours.
        looks: a further condition on a row by which the format is detected.
        rank: of several formats that fit a row, those with the lowest rank are meant.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Row, Roles], Sequence[Message]] | None
    answer: str = ""
    harmless: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    style: Style = ""
    known_roles: Mapping[str, str] = field(default_factory=dict, hash=False)
    looks: Callable[[Row], bool] | None = None
    rank: int = 0

    @property
    def is_pair(self) -> bool:
        """Whether a row has a better and a worse answer."""
        return self.read is None

    def fits(self, fields: set[str], row: Row) -> bool:
        """Whether a row with these columns may be of this format."""
        return fields.issuperset(self.required) and (self.looks is None or self.looks(row))
