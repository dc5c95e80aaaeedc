"""What comes before the first step: checks, devices, the plan of batches, and resuming."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from glmtune.data.batches import BatchPlan
from glmtune.data.stream_plan import StreamPlan
from glmtune.data.streaming import StreamedData
from glmtune.methods import method
from glmtune.model.load import check_compute
from glmtune.recipe.recipe import Recipe, RunRecipe
from glmtune.train.alarms import Alarms, find_disproportions
from glmtune.train.callbacks import Callback, Callbacks
from glmtune.train.checkpoint import (
    TrainerState,
    load_state,
    newest_intact_checkpoint,
    restore_checkpoint,
)
from glmtune.train.engines.choose import make_engine
from glmtune.train.engines.deepspeed import check_deepspeed
from glmtune.train.engines.fsdp import check_sharding
from glmtune.train.evaluation import check_scored
from glmtune.train.identity import (
    check_identity,
    deciding_values,
    identify,
    recorded,
    rounded_shares,
)
from glmtune.train.load_rows import RunData
from glmtune.train.optimizer import optimizer_class
from glmtune.train.output import RunFolder, prepare_output
from glmtune.train.precision import check_base
from glmtune.train.processes import Processes, seed_everything, start_processes
from glmtune.train.training import Task, Training
from glmtune.use.evaluate.metrics import check_installed

logger = logging.getLogger(__name__)


class Rank(Protocol):
    """The rank of this process; `Processes` and accelerate's `PartialState` have these fields."""

    process_index: int
    num_processes: int


def prepare_run(recipe: RunRecipe, *, resume: bool) -> Processes:
    """Check what can be checked early, prepare the output folder, find the devices, and seed.

    Raises:
        GlmtuneError: the recipe does not fit the model, the machine or the folder.
    """
    method.check_fits(recipe.adapter, recipe.model.name_or_path)
    optimizer_class(recipe.training)
    check_base(recipe)
    check_installed(recipe.training.eval_metrics)
    processes = start_processes(recipe)
    check_compute(recipe.model.compute, processes.device)
    check_sharding(recipe.training, processes.num_processes)
    check_deepspeed(recipe.training, processes.num_processes)
    if processes.is_main:
        folder = Path(recipe.output.dir)
        prepare_output(folder, resume=resume, overwrite=recipe.output.overwrite)
    processes.wait()
    seed_everything(recipe.training.seed)
    return processes


def prepare_training(
    recipe: RunRecipe,
    processes: Processes,
    model: Any,
    data: RunData,
    task: Task,
    *,
    resume: bool,
    callbacks: Sequence[Callback] = (),
) -> Training:
    """Plan the batches, make the engine, and restore the newest checkpoint if asked to resume.

    Args:
        recipe: of the run.
        processes: that train.
        model: with what is trained attached.
        data: encoded rows.
        task: what is learned from them.
        resume: continue from a checkpoint in the output folder.
        callbacks: called with each line of metrics.

    Raises:
        CheckpointError: the checkpoint belongs to another run, or all are damaged.
    """
    folder = RunFolder(Path(recipe.output.dir))
    check_scored(recipe.training, data)
    plan = plan_batches(recipe, data.rows, processes, data.replay)
    num_steps = count_steps(recipe, plan)
    if isinstance(recipe, Recipe) and isinstance(data.examples, StreamedData):
        plan = StreamPlan.of(plan, recipe.data.shuffle_buffer, num_steps)
        data.examples.keep(plan.span)
    if recipe.trains:
        for warning in find_disproportions(recipe, plan.rows_per_epoch, num_steps):
            logger.warning("%s", warning)
    checkpoint = newest_intact_checkpoint(folder.path) if resume else None
    state = _restore_state(recipe, processes, data, checkpoint, num_steps)
    if state.stream is not None and isinstance(data.examples, StreamedData):
        data.examples.seek(state.stream)
    if checkpoint is not None:
        method.restore(checkpoint, model)
    engine = make_engine(recipe, model, processes, num_steps)
    if checkpoint is not None:
        restore_checkpoint(checkpoint, engine)
        logger.info("resuming from %s at step %d of %d", checkpoint, state.step, num_steps)
    elif resume and processes.is_main:
        logger.warning(
            "%s: no checkpoint yet, so the run starts at its beginning", recipe.output.dir
        )
    if processes.is_main:
        folder.begin(recipe, state.step, clear=checkpoint is None)
    processes.start_trackers(recipe)
    return Training(
        recipe=recipe,
        engine=engine,
        data=data,
        task=task,
        plan=plan,
        num_steps=num_steps,
        state=state,
        folder=folder,
        alarms=Alarms(recipe.checks),
        callbacks=Callbacks(callbacks),
    )


def _restore_state(
    recipe: RunRecipe,
    processes: Processes,
    data: RunData,
    checkpoint: Path | None,
    num_steps: int,
) -> TrainerState:
    """Return the state of the loop in a checkpoint, or that of a new run."""
    identity = identify(
        recipe, data.template, data.examples, data.eval_examples, processes.num_processes
    )
    identity |= rounded_shares(recipe, len(data.rows) + len(data.eval_rows), num_steps)
    state = TrainerState()
    if checkpoint is not None:
        state = load_state(checkpoint)
        check_identity(state, identity, checkpoint, recipe)
    state.identity = recorded(identity)
    state.recipe, state.working_directory = deciding_values(recipe), str(Path.cwd())
    return state


def plan_batches(
    recipe: RunRecipe, rows: Sequence[int], rank: Rank, replay: Sequence[int] = ()
) -> BatchPlan:
    """Decide which rows each step takes.

    Args:
        recipe: the run.
        rows: to learn.
        rank: of this process.
        replay: general rows to draw from; if there are fewer than wanted, all are taken.
    """
    section = recipe.training
    num_replayed = 0
    if isinstance(recipe, Recipe) and recipe.data.replay is not None:
        wanted = max(1, round(recipe.data.replay.ratio * len(rows)))
        num_replayed = min(wanted, len(replay))
        if num_replayed < wanted:
            logger.warning(
                "data.replay.ratio asks for %d general rows an epoch, and there are %d; each is "
                "learned once an epoch",
                wanted,
                num_replayed,
            )
    answers_per_row = 2 if recipe.is_preference else 1  # both of a pair go through the model
    batch_size = section.per_device_train_batch_size
    return BatchPlan(
        rows,
        rows_per_step=batch_size * section.gradient_accumulation_steps * rank.num_processes,
        max_tokens=batch_size * recipe.data.max_length * answers_per_row,
        seed=section.seed,
        process_index=rank.process_index,
        num_processes=rank.num_processes,
        replay=replay,
        num_replayed=num_replayed,
        rows_per_micro_batch=batch_size if section.average == "micro_batches" else None,
    )


def count_steps(recipe: RunRecipe, plan: BatchPlan) -> int:
    """Count the optimizer steps of the run; 0 where nothing is trained."""
    if not recipe.trains:
        return 0
    if recipe.training.max_steps is not None:
        return recipe.training.max_steps
    return max(1, round(plan.steps_per_epoch * recipe.training.num_train_epochs))
