"""Tell whether a text may become a JSON object, as it is generated from left to right.

{"a": [1,      may become one
{"a": 1}       is one
{"a": 1}}      never will be
"""

from typing import Literal

MAX_SPACES = 20  # in a row between two tokens, or a model could write them until its limit
MAX_DEPTH = 64
_LITERALS = ("true", "false", "null")
_DIGITS = "0123456789"
# Of a number: by state the characters that may come next, and the state after them.
_NUMBER: dict[str, tuple[tuple[str, str], ...]] = {
    "-": (("0", "zero"), ("123456789", "int")),
    "zero": ((".", "."), ("eE", "e")),
    "int": ((_DIGITS, "int"), (".", "."), ("eE", "e")),
    ".": ((_DIGITS, "fraction"),),
    "fraction": ((_DIGITS, "fraction"), ("eE", "e")),
    "e": (("+-", "sign"), (_DIGITS, "exponent")),
    "sign": ((_DIGITS, "exponent"),),
    "exponent": ((_DIGITS, "exponent"),),
}
_NUMBER_ENDS = ("zero", "int", "fraction", "exponent")


class JsonText:
    """A reader of one JSON object, which is fed text piece by piece.

    Attributes:
        state: "prefix" while more must follow, "complete" when nothing but spaces may, and
            "invalid" once it cannot become an object.
    """

    def __init__(self) -> None:
        self.state: Literal["prefix", "complete", "invalid"] = "prefix"
        self._open: list[str] = []  # "{" and "[", from the outside
        self._expects = "object"
        self._partial = ""  # of a literal, or the state of a number
        self._num_spaces = 0

    def copy(self) -> "JsonText":
        """Return a reader that may go another way."""
        other = JsonText()
        other.state, other._expects, other._partial = self.state, self._expects, self._partial
        other._open, other._num_spaces = [*self._open], self._num_spaces
        return other

    def feed(self, text: str) -> "JsonText":
        """Read more text."""
        for char in text:
            if self.state != "invalid" and not self._read(char):
                self.state = "invalid"
        return self

    def _read(self, char: str) -> bool:
        """Read a character; False if it may not come here."""
        if self._expects in ("string", "escape") or self._expects.startswith("hex"):
            return self._read_in_string(char)
        if self._expects == "literal":
            return self._read_literal(char)
        if self._expects == "number":
            for chars, after in _NUMBER[self._partial]:
                if char in chars:
                    self._partial = after
                    return True
            if self._partial not in _NUMBER_ENDS:
                return False
            self._end_value()
        if char in " \t\n\r":
            self._num_spaces += 1
            return self._num_spaces <= MAX_SPACES
        self._num_spaces = 0
        return self._read_token(char)

    def _read_token(self, char: str) -> bool:
        """Read a character between two tokens."""
        expects = self._expects
        if expects == "object":
            return char == "{" and self._begin("{")
        if expects == "colon":
            self._expects = "value"
            return char == ":"
        if expects in ("value", "first value"):
            return self._read_value(char)
        if expects in ("key", "first key") and char == '"':
            self._partial, self._expects = "key", "string"
            return True
        if char == "," and expects == "comma":
            self._expects = "key" if self._open[-1] == "{" else "value"
            return True
        if char == "]":
            return expects == "comma" and self._open[-1] == "[" and self._close()
        may_close = expects in ("comma", "first key")
        return char == "}" and may_close and self._open[-1] == "{" and self._close()

    def _read_value(self, char: str) -> bool:
        if char in "{[":
            return self._begin(char)
        if char == "]" and self._expects == "first value":
            return self._close()
        if char == '"':
            self._partial, self._expects = "value", "string"
        elif char in "tfn":
            self._partial, self._expects = char, "literal"
        elif char == "-" or char in _DIGITS:
            self._partial = {"-": "-", "0": "zero"}.get(char, "int")
            self._expects = "number"
        else:
            return False
        return True

    def _read_in_string(self, char: str) -> bool:
        if self._expects == "escape":
            self._expects = "hex4" if char == "u" else "string"
            return char in '"\\/bfnrtu'
        if self._expects.startswith("hex"):
            left = int(self._expects[3:]) - 1
            self._expects = f"hex{left}" if left else "string"
            return char in "0123456789abcdefABCDEF"
        if char == "\\":
            self._expects = "escape"
        elif char == '"' and self._partial == "key":
            self._expects = "colon"
        elif char == '"':
            self._end_value()
        return char >= " "

    def _read_literal(self, char: str) -> bool:
        self._partial += char
        if self._partial in _LITERALS:
            self._end_value()
            return True
        return any(literal.startswith(self._partial) for literal in _LITERALS)

    def _begin(self, char: str) -> bool:
        self._open.append(char)
        self._expects = "first key" if char == "{" else "first value"
        return len(self._open) <= MAX_DEPTH

    def _close(self) -> bool:
        self._open.pop()
        self._end_value()
        return True

    def _end_value(self) -> None:
        self._expects, self._partial = "comma", ""
        if not self._open:
            self.state, self._expects = "complete", "nothing"
