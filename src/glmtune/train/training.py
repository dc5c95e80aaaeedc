"""What the training loop works on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glmtune.data.batches import BatchPlan, MakeMicroBatch, rows_as_they_are
from glmtune.data.stream_plan import StreamPlan
from glmtune.data.streaming import StreamedData
from glmtune.objective.next_token import NextToken, Objective
from glmtune.recipe.recipe import RunRecipe
from glmtune.recipe.sections import ChecksSection, TrainingSection
from glmtune.train.alarms import Alarms
from glmtune.train.callbacks import Callbacks
from glmtune.train.checkpoint import TrainerState
from glmtune.train.engines.engine import Engine
from glmtune.train.load_rows import RunData
from glmtune.train.output import RunFolder


@dataclass(frozen=True, slots=True)
class EvalView:
    """One way to present held-out rows to the model, and its share of the held-out loss."""

    make: MakeMicroBatch = rows_as_they_are
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Task:
    """What is learned from a row, and how held-out rows are evaluated.

    Attributes:
        objective, eval_objective: the loss to minimize, and the one to evaluate.
        make: presents rows to the model in a step.
        views: the ways to present held-out rows, by name; a single one may be called "".
    """

    objective: Objective = field(default_factory=NextToken)
    eval_objective: Objective = field(default_factory=NextToken)
    make: MakeMicroBatch = rows_as_they_are
    views: Mapping[str, EvalView] = field(default_factory=lambda: {"": EvalView()})


@dataclass(frozen=True, slots=True)
class Training:
    """A run that is ready to take steps. Only `state` and what the engine holds change.

    Attributes:
        recipe: of the run.
        engine: holds model and optimizer.
        data: encoded rows.
        task: what is learned from them.
        plan: which rows each step takes.
        num_steps: optimizer steps of the whole run.
        state: what a checkpoint saves of the loop itself.
        folder: where the run writes.
        alarms: warn of what is finite and looks wrong.
        callbacks: of the user; they see each line of metrics, and may end the run.
    """

    recipe: RunRecipe
    engine: Engine
    data: RunData
    task: Task
    plan: BatchPlan
    num_steps: int
    state: TrainerState
    folder: RunFolder
    alarms: Alarms
    callbacks: Callbacks = field(default_factory=Callbacks)

    @property
    def section(self) -> TrainingSection:
        """The recipe's `training`."""
        return self.recipe.training

    @property
    def checks(self) -> ChecksSection:
        """The recipe's `checks`."""
        return self.recipe.checks

    def note_stream(self) -> None:
        """Put the place of streamed rows into the state, before a checkpoint."""
        if isinstance(self.plan, StreamPlan) and isinstance(self.data.examples, StreamedData):
            oldest = self.plan.oldest(self.state.step)
            self.state.stream = self.data.examples.cursor_before(oldest)

    def record(self, values: dict[str, Any]) -> None:
        """Write a line of metrics, of which `step` is one, and send it to the trackers."""
        if self.engine.processes.is_main:
            self.folder.metrics.write(values)
        self.engine.processes.log(values)
        self.callbacks(values)
