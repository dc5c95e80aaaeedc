"""What an evaluation does with its rows: the protocol of answers, choice and perplexity."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from glmtune.recipe.choices import Dtype, Layout
from glmtune.use.evaluate.kept import Line
from glmtune.use.evaluate.results import TaskName
from glmtune.use.evaluate.statistics import Measured
from glmtune.use.generate import BATCH_SIZE


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model is evaluated, and how it is loaded.

    Attributes:
        name: a folder or hub id of a model; or an adapter folder, which names its base.
        adapter: the folder of an adapter.
        layout, dtype, any_template: as for `open_session`.
        batch_size: rows at once.
    """

    name: str
    adapter: str | None = None
    layout: Layout | None = None
    dtype: Dtype = "auto"
    any_template: bool = False
    batch_size: int = BATCH_SIZE


@dataclass(frozen=True, slots=True)
class Measurement:
    """A metric of one model: the rows that it applies to, in order, and their values."""

    rows: tuple[int, ...]
    measured: Measured
    corpus: float | None = None


class Task(Protocol):
    """Rows, and what is measured of them."""

    @property
    def name(self) -> TaskName:
        """The name of the task."""

    @property
    def data(self) -> tuple[str, ...]:
        """The sources of the rows."""

    @property
    def settings(self) -> Mapping[str, str | int | float | None]:
        """How it is done, for the result."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the result must know."""

    @property
    def rows(self) -> Sequence[int]:
        """The numbers of the rows."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the lines, besides the model and the template."""

    def lines(self, model: Any, rows: Sequence[int], batch_size: int) -> Iterator[Line]:
        """Let a model do some of the rows, in any order."""

    def measure(self, lines: Mapping[int, Line]) -> dict[str, Measurement]:
        """Score the lines of all rows, by metric."""

    def subjects(self, rows: Iterable[int]) -> Mapping[int, str]:
        """Return the subject of each row; empty where rows have none."""
