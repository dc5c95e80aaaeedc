"""A recipe -> a tuned model in a folder: the steps of a run, in order."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from glmtune import machine
from glmtune.data.batches import pack_labeled, rows_as_they_are
from glmtune.data.pairs import pack_pairs
from glmtune.errors import RecipeError, TrainingError
from glmtune.kernels.chunked_loss import LossFunction, cross_entropy_sum, smoothed_cross_entropy_sum
from glmtune.kernels.packed_attention import without_cudnn
from glmtune.model.load import load_tokenizer
from glmtune.model.quantization import check_quantization
from glmtune.objective.kto import Kto
from glmtune.objective.next_token import NextToken
from glmtune.objective.preference import Preference
from glmtune.prove import liveness
from glmtune.prove.forgetting import METRIC
from glmtune.prove.metrics import until
from glmtune.prove.proof import Proof
from glmtune.prove.wanted import check_trained
from glmtune.recipe.recipe import Recipe, RunRecipe
from glmtune.recipe.sections import TrainingSection
from glmtune.template.select import template_for
from glmtune.train.before import (
    Before,
    judge_rows,
    log_samples,
    look_at_base,
    prove_packing,
    prove_prompts,
)
from glmtune.train.callbacks import Callback
from glmtune.train.dry_run import dry_run
from glmtune.train.engines.engine import Engine
from glmtune.train.finish import ProofResults, finish, write_run_report
from glmtune.train.load_model import (
    attach,
    check_earlier_adapter,
    load_base,
    quantization_of,
    reload_unsharded,
)
from glmtune.train.load_rows import RunData, load_rows
from glmtune.train.loop import train
from glmtune.train.output import sole_run
from glmtune.train.pack_size import fit_packs
from glmtune.train.prepare import prepare_run, prepare_training
from glmtune.train.processes import Processes
from glmtune.train.start_times import StartTimes
from glmtune.train.training import EvalView, Task, Training

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a run.

    Attributes:
        adapter_dir: the adapter, or the full model where that is what was trained; the output
            folder with a checkpoint after an interrupt.
        num_steps: optimizer steps done.
        is_finished: False after an interrupt.
        loss, eval_loss: the last measured of the saved weights, in nats per learned token.
        general_loss, base_general_loss: on general rows, after and before.
        proofs: with their verdicts; none after an interrupt.
        saved_step: of the saved weights, the last or the best ones; None after an interrupt.
    """

    adapter_dir: Path
    num_steps: int
    is_finished: bool
    loss: float | None
    eval_loss: float | None
    general_loss: float | None = None
    base_general_loss: float | None = None
    proofs: tuple[Proof, ...] = ()
    saved_step: int | None = None


def fine_tune(
    recipe: Recipe,
    *,
    resume: bool = False,
    loss: LossFunction = cross_entropy_sum,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Tune a model according to a recipe.

    Args:
        recipe: the whole run.
        resume: continue from the newest intact checkpoint in `output.dir`.
        loss: what to minimize, to try an idea: (logits, targets) -> a sum.
        callbacks: called with each line of metrics; one that returns True ends the run.

    Raises:
        GlmtuneError: one of its children, for everything that the user can fix. Earlier
            checkpoints stay as they were.
    """
    times = StartTimes()
    times.lap("program")
    check_quantization(quantization_of(recipe.adapter))
    check_earlier_adapter(recipe)
    task = choose_task(recipe, loss)
    processes = prepare_run(recipe, resume=resume)
    times.lap("device")
    with sole_run(recipe, is_main=processes.is_main, resume=resume):
        data = load_data(recipe, processes, resume=resume)
        times.lap("rows")
        model = load_base(recipe, processes.device)
        times.lap("weights")
        data = judge_rows(recipe, model, data, processes) if not resume else data
        times.lap("judged rows")
        before = look_at_base(recipe, model, data, processes)
        times.lap("base's answers")
        if processes.is_main:
            before = replace(before, asked=prove_prompts(recipe, data))
        return train_and_prove(
            recipe, processes, model, data, task, before, resume=resume, callbacks=callbacks,
            times=times,
        )  # fmt: skip


def choose_task(recipe: Recipe, loss: LossFunction) -> Task:
    """Choose what is learned: rows by the next-token loss, pairs of answers, or labeled ones.

    Raises:
        RecipeError: a loss of one's own is to be smoothed.
    """
    smoothed = training_loss(recipe.training, loss)
    if recipe.has_labels:
        judged = Kto(recipe.preference, recipe.data.max_length)
        return Task(judged, judged, pack_labeled, {"": EvalView(pack_labeled)})
    if not recipe.is_preference:
        return Task(NextToken(smoothed), NextToken(loss), rows_as_they_are)
    preference = Preference(recipe.preference)
    return Task(preference, preference, pack_pairs, {"": EvalView(pack_pairs)})


def training_loss(section: TrainingSection, loss: LossFunction = cross_entropy_sum) -> LossFunction:
    """Return the loss of training steps; held-out rows are evaluated without smoothing.

    Raises:
        RecipeError: a loss of one's own is to be smoothed.
    """
    smoothing = section.label_smoothing_factor
    if not smoothing:
        return loss
    if loss is not cross_entropy_sum:
        raise RecipeError(
            f"training.label_smoothing_factor={smoothing} smooths the cross-entropy, and `loss=` "
            "is another loss. Leave one of them out."
        )
    return partial(smoothed_cross_entropy_sum, label_smoothing=smoothing)


def load_data(recipe: Recipe, processes: Processes, *, resume: bool) -> RunData:
    """Lint and encode the rows; the other processes read what rank 0 has encoded."""
    tokenizer = load_tokenizer(recipe.model.name_or_path, recipe.model.add_tokens)
    template = template_for(tokenizer, recipe.data.layout)
    check_earlier_adapter(recipe, template)
    with processes.main_first():
        run_lint = processes.is_main and not resume
        return load_rows(recipe, tokenizer, template, Path(recipe.output.dir), run_lint=run_lint)


@without_cudnn()
def train_and_prove(
    recipe: RunRecipe,
    processes: Processes,
    model: Any,
    data: RunData,
    task: Task,
    before: Before,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    times: StartTimes | None = None,
) -> Result:
    """Train, publish, prove and report.

    Args:
        recipe: of the run.
        processes: that train.
        model: the base.
        data: encoded rows.
        task: what is learned from them.
        before: what the base answered.
        resume, callbacks: as for `fine_tune`.
        times: of the start so far.

    Raises:
        GlmtuneError: as `fine_tune`.
    """
    model = attach(recipe, model)
    if recipe.trains:
        check_trained(model, recipe.adapter, len(recipe.model.add_tokens))
    before = replace(before, start=liveness.remember(model))
    training = prepare_training(
        recipe, processes, model, data, task, resume=resume, callbacks=callbacks
    )
    del model  # the engine has it, and gives it back
    before = replace(before, packed=prove_packing(training))
    times = times or StartTimes(time.time())
    times.lap("adapter and packing")
    training = fit_packs(training)
    times.lap("length of packs")
    if (load := machine.describe_load()) and processes.is_main:
        logger.info(load)
    dry_run(training)
    times.lap("dry run")
    if processes.is_main:
        logger.info(times.describe())
    began = time.monotonic()
    samples = processes.is_main and training.engine.can_run_alone
    is_finished = train(training, partial(log_samples, training, before) if samples else None)
    seconds = time.monotonic() - began
    trained = leave_processes(recipe, training.engine, is_finished=is_finished)
    results = ProofResults()
    if processes.is_main:
        if is_finished:
            results = finish(training, before, trained)
        report(training, trained, results, seconds)
    return summarize(training, before, results, is_finished=is_finished)


def leave_processes(recipe: RunRecipe, engine: Engine, *, is_finished: bool) -> Any:
    """Destroy the process group; rank 0 continues alone, with a model that has all weights."""
    gathered = engine.gather_trained() if is_finished else None
    model: Any = engine.release()
    if gathered is not None and engine.processes.is_main:
        return reload_unsharded(recipe, gathered)
    return model


def report(training: Training, model: Any, results: ProofResults, seconds: float) -> None:
    """Write the report of a run.

    Raises:
        TrainingError: a proof failed.
    """
    page = write_run_report(training, model, results, seconds)
    logger.info("report: %s", page)
    if results.failed:
        raise TrainingError(
            "; ".join(f"{proof.name}: {proof.detail}" for proof in results.failed) + f" See {page}."
        )


def summarize(
    training: Training, before: Before, results: ProofResults, *, is_finished: bool
) -> Result:
    """Return the result of a run."""
    lines = until(training.folder.read_metrics(), results.saved_step)
    return Result(
        adapter_dir=training.folder.path,
        num_steps=training.state.step,
        is_finished=is_finished,
        loss=_last(lines, "loss"),
        eval_loss=_last(lines, "eval_loss"),
        general_loss=_last(lines, METRIC),
        base_general_loss=before.general_loss,
        proofs=results.proofs,
        saved_step=results.saved_step,
    )


def _last(lines: Sequence[dict[str, Any]], key: str) -> float | None:
    return next((line[key] for line in reversed(lines) if line.get(key) is not None), None)
