"""The sources of `data.train` and `data.eval`: paths, or mappings with keys of their own.

    train: rows.json                            ("rows.json",)
    train: [a.json, {path: b.json, weight: 2}]  ("a.json", SourceSection(path="b.json", weight=2))

A plain path stays a text, so a recipe without mappings is written as it always was.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from glmtune.recipe.numbers import Number


class SourceSection(BaseModel):
    """A source with keys of its own; those left out are the keys of `data`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, Field(min_length=1)]  # a file, folder or hub id, as in data.train
    # Times that an epoch learns each row; 0.5: a half of the rows.
    weight: Annotated[float, Number, Field(gt=0, le=100)] = 1.0
    format: str | None = None
    columns: dict[str, str] | None = None
    roles: dict[str, str] | None = None
    split: str | None = None
    config: str | None = None  # of a data set with several

    def __str__(self) -> str:
        return self.path


def _as_sources(value: Any) -> Any:
    if isinstance(value, str | os.PathLike | Mapping | SourceSection):
        value = (value,)
    return tuple(map(_as_source, value)) if isinstance(value, list | tuple) else value


def _as_source(value: Any) -> Any:
    """Read a mapping here, so that an error names its key and not the types of the union."""
    if isinstance(value, str | SourceSection):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, Mapping):
        raise PydanticCustomError(
            "no_source", "expected paths, or mappings with a path; a number is put in quotes"
        )
    try:
        return SourceSection.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        known = ", ".join(SourceSection.model_fields)
        what = {
            "extra_forbidden": f"{key!r} is not a key of a source; known are {known}",
            "missing": f"a source has no {key!r}",
        }
        reason = what.get(
            problem["type"], f"{key} is {repr(problem['input'])[:80]}: {problem['msg']}"
        )
        raise PydanticCustomError("no_source", "{reason}", {"reason": reason}) from None


Sources = Annotated[tuple[str | SourceSection, ...], BeforeValidator(_as_sources)]
"""Paths, or sources with keys of their own; a single one may be written without brackets."""
SourcesOrNone = Annotated[
    tuple[str | SourceSection, ...],
    BeforeValidator(lambda value: () if value is None else _as_sources(value)),
]
"""The same, where null is an empty list."""
