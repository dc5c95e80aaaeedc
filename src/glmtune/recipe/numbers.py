"""The numbers and lists of a recipe, each typed and bounded.

Every number has a largest value, far above what makes sense and far below what a machine would
try in earnest (r = 10^12). `true` is not a number, nor are infinity and nan. A text that is a
number is one, since YAML reads 5e-5 as a text; 16.0 is a whole number.
"""

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

_NUMBER = re.compile(r"[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?")
_EXPONENT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d{1,3}")
_MAX_CHARACTERS = 400


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("bool_for_number", "expected a number; yes, on and true are none")
    number = _from_text(value) if isinstance(value, str) else value
    if isinstance(number, float) and not math.isfinite(number):
        raise PydanticCustomError("not_finite", "expected a number that is finite")
    return number


def _whole(value: Any) -> Any:
    number = _number(value)
    if isinstance(number, float):
        if number != int(number):
            raise PydanticCustomError("not_whole", "expected a whole number")
        return int(number)
    return number


def _from_text(text: str) -> int | float:
    word = text.strip()
    if (
        len(word) > _MAX_CHARACTERS
        or _NUMBER.fullmatch(word) is None
        or re.match(r"[-+]?0\d", word)
    ):
        raise PydanticCustomError("not_a_number", "expected a number, such as 16 or 5e-5")
    digits = word.replace("_", "")
    return int(digits) if digits.lstrip("+-").isdigit() else float(digits)


def number_of(value: Any) -> int | float | None:
    """Return a number, also from a text that is one; None for everything else."""
    try:
        number = _number(value)
    except PydanticCustomError:
        return None
    return number if isinstance(number, int | float) else None


def number_or_text(value: Any) -> Any:
    """Read a text as a number if it is one that YAML takes for text, such as 1e-5."""
    if isinstance(value, str) and re.fullmatch(_EXPONENT, value):
        number = float(value)
        return number if math.isfinite(number) else value
    return value


def _one_is_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _one_or_none_is_many(value: Any) -> Any:
    return () if value is None else _one_is_many(value)


def split_words(value: Any) -> Any:
    """Read `a,b` as a list of words, and null as an empty one."""
    if isinstance(value, str):
        return tuple(word for part in value.split(",") if (word := part.strip()))
    return () if value is None else value


Number = BeforeValidator(_number)
Whole = BeforeValidator(_whole)

LARGEST = 10**18  # in magnitude, of any number
MOST = 10**9  # of what is counted
MOST_SIZE = 65_536  # of a batch, or of a text in tokens
MOST_RANK = 16_384  # of ranks, virtual tokens and widths: more would be larger than the weights

Count = Annotated[int, Whole, Field(gt=0, le=MOST)]
CountOrZero = Annotated[int, Whole, Field(ge=0, le=MOST)]
Size = Annotated[int, Whole, Field(gt=0, le=MOST_SIZE)]
Rank = Annotated[int, Whole, Field(gt=0, le=MOST_RANK)]
Seed = Annotated[int, Whole, Field(ge=0, le=2**32 - 1)]
LayerNumber = Annotated[int, Whole, Field(ge=0, le=9_999)]
Positive = Annotated[float, Number, Field(gt=0, le=MOST)]
PositiveOrZero = Annotated[float, Number, Field(ge=0, le=MOST)]
Rate = Annotated[float, Number, Field(gt=0, le=10)]
"""A learning rate."""
Share = Annotated[float, Number, Field(ge=0, lt=1)]
ShareOrAll = Annotated[float, Number, Field(ge=0, le=1)]

Names = Annotated[tuple[str, ...], BeforeValidator(_one_is_many)]
"""A list of names or paths; a single one may be written without brackets."""
NamesOrNone = Annotated[tuple[str, ...], BeforeValidator(_one_or_none_is_many)]
"""The same, where null is an empty list."""
Words = Annotated[tuple[str, ...], BeforeValidator(split_words)]
"""A list of names without commas; `a,b` is two of them, null is an empty list."""
