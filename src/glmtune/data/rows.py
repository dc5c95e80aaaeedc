"""Files, folders and hub ids -> rows."""

from typing import Any


class Row(dict[str, Any]):
    """The fields of one row, and where it stands.

    Attributes:
        file: the path as the user gave it, or the hub id.
        line: the line it starts on, counted from 1; for Parquet and Arrow the row number,
            counted from 1.
    """

    def __init__(self, fields: dict[str, Any], file: str, line: int) -> None:
        super().__init__(fields)
        self.file = file
        self.line = line
