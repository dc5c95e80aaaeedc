"""Values from programs -> plain values, bounded: the border of `build_recipe`.

    Path                       text
    scalars of numpy, torch    int, float, bool
    members of an Enum         their value
    tuples, other mappings     list, dict
    a section                  its keys

Anything else is refused by name, and so is what no recipe holds: numbers of hundreds of digits,
text that is not Unicode, a list that contains itself.
"""

import enum
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from glmtune.errors import RecipeError
from glmtune.recipe.numbers import LARGEST
from glmtune.recipe.yaml_text import MAX_DEPTH, MAX_VALUES


def as_plain(value: Any, source: str) -> Any:
    """Return a tree of dict, list, str, int, float, bool and None.

    Args:
        value: a tree that a program or a YAML text made.
        source: names it in errors.

    Raises:
        RecipeError: a value is of another type, or out of all bounds.
    """
    return _Reader(source).read(value, ())


class _Reader:
    def __init__(self, source: str) -> None:
        self.source, self.num_values = source, 0

    def read(self, value: Any, path: tuple[str, ...]) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES or len(path) > MAX_DEPTH:
            raise RecipeError(
                f"{self.source}: {'.'.join(path[:3])} holds more than {MAX_VALUES:,} values or "
                f"{MAX_DEPTH} levels. Give a plain mapping of sections and keys."
            )
        value = _unwrapped(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, float):
            return float(value)  # of numpy's class too
        if isinstance(value, int):
            return self._whole(value, path)
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, Mapping):
            return {
                self._key(key, path): self.read(each, (*path, str(key)))
                for key, each in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.read(each, (*path, str(index))) for index, each in enumerate(value)]
        raise RecipeError(
            f"{self._where(path)} is of the type {type(value).__name__}, expected text, a number, "
            "true, false, null, a list or a mapping."
        )

    def _key(self, key: Any, path: tuple[str, ...]) -> str:
        if not isinstance(key, str):
            raise RecipeError(
                f"{self._where(path)} has the key {str(key)[:60]!r} ({type(key).__name__}), "
                "expected text. If it is a text, put it in quotes."
            )
        return self._text(key, path)

    def _whole(self, value: int, path: tuple[str, ...]) -> int:
        if abs(value) > LARGEST:
            raise RecipeError(
                f"{self._where(path)} is a number of more than 18 digits, which no key takes. "
                "Give a smaller one."
            )
        return int(value)

    def _text(self, value: str, path: tuple[str, ...]) -> str:
        for index, char in enumerate(value):
            if char == "\0" or "\ud800" <= char <= "\udfff":
                raise RecipeError(
                    f"{self._where(path)} has a character at position {index} that no text may "
                    f"have (U+{ord(char):04X}). Remove it; the name of a file must be Unicode."
                )
        return str(value)

    def _where(self, path: tuple[str, ...]) -> str:
        return f"{self.source}: {'.'.join(path) or 'the recipe'}"


def _unwrapped(value: Any) -> Any:
    """Return what a value stands for: a path its text, a numpy scalar its number."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, BaseModel):
        return value.model_dump()
    if not isinstance(value, str | int | float) and getattr(value, "shape", None) == ():
        return value.item()  # of numpy or torch
    return value
