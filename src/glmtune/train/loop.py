"""The training loop: steps, and what is due between them.

    for each step:   learn its rows             step.py
                     write metrics              every logging_steps
                     evaluate                   evaluation.py, by eval_strategy
                     answer a few prompts       by checks.sample_steps
                     save a checkpoint          by save_strategy, and where the loss is the best

An interrupt (Ctrl-C, SIGTERM) discards the unfinished step, saves a checkpoint of the last
finished one and ends the loop.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from glmtune.data.batches import BatchPlan, batches
from glmtune.machine import peak_memory_bytes
from glmtune.train.ahead import one_ahead
from glmtune.train.checkpoint import prune_checkpoints, random_state, save_checkpoint
from glmtune.train.evaluation import evaluate, evaluate_and_compare, measured
from glmtune.train.progress import Progress
from glmtune.train.smaller_packs import step_or_smaller
from glmtune.train.step import Interrupted, StepResult
from glmtune.train.training import Training

logger = logging.getLogger(__name__)


def train(training: Training, show_samples: Callable[[], None] | None = None) -> bool:
    """Take the steps that are left; evaluate, save and record between them.

    Args:
        training: about to start or to resume.
        show_samples: logs the answers to a few prompts.

    Returns:
        Whether the run came to its end; False after an interrupt, with a checkpoint saved.

    Raises:
        TrainingError: something is not finite, or an adapted layer gets no gradient.
        OutputError: a checkpoint could not be written.
    """
    data, state, num_steps = training.data, training.state, training.num_steps
    is_main = training.engine.processes.is_main
    # A run that has stopped early does nothing more when it is resumed.
    last = state.step if _has_stopped_improving(training) else num_steps
    steps = batches(
        data.examples, data.lengths, training.plan, state.step, last, training.task.make
    )
    if may_be_ahead(training.plan, training.engine.processes.device):
        steps = one_ahead(steps)
    window = _Window()
    with _stop_on_signal() as should_stop, Progress(num_steps, state.step, is_main) as bar:
        for batch in steps:
            rng = random_state()
            try:
                result = step_or_smaller(training, batch, rng, should_stop)
            except Interrupted:
                _save(training, rng)
                return False
            _account(training, result, window, bar)
            is_best = _evaluation_is_due(training) and evaluate_and_compare(training)
            if show_samples is not None and _samples_are_due(training):
                show_samples()
            is_asked = training.callbacks.want_to_stop
            stops = is_asked or _has_stopped_improving(training)
            if is_best or _checkpoint_is_due(training, is_last=stops):
                _save(training, random_state())
            if is_asked:
                logger.info("a callback ends the run at step %d", state.step)
                break
            if stops:
                logger.info(
                    "no better held-out %s in %d evaluations; stopping at step %d",
                    training.section.metric_for_best_model,
                    state.evaluations_without_gain,
                    state.step,
                )
                break
    if not num_steps:  # nothing is trained, and the model is evaluated as it is
        evaluate(training)
    return True


def may_be_ahead(plan: Any, device: torch.device) -> bool:
    """Whether the packs of the next step can be made, and had better be, during a step."""
    return device.type != "cpu" and type(plan) is BatchPlan


class _Window:
    """Tokens and time since the last line of metrics."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.tokens, self.started = 0, time.perf_counter()

    def rate(self) -> float:
        return self.tokens / max(time.perf_counter() - self.started, 1e-9)


def _account(training: Training, result: StepResult, window: _Window, bar: Progress) -> None:
    """Count a step, and record it where a line of metrics is due."""
    state = training.state
    state.replayed_rows += training.plan.count_replayed(state.step)
    state.step += 1
    state.loss_sum += result.loss_sum
    state.learned_tokens += result.learned_tokens
    window.tokens += result.tokens
    loss = result.loss_sum / (result.learned_tokens or 1)
    bar.advance(loss, result.tokens)
    if math.isfinite(result.grad_norm):  # or the step was skipped, and nothing has changed
        training.alarms.step(state.step, loss, result.grad_norm)
    if state.step % training.section.logging_steps and state.step not in (1, training.num_steps):
        return
    values = _metrics(training, result, window.rate())
    training.record(values)
    logger.info(
        "step %d/%d  loss %.4f  lr %.3g  grad norm %.3g  %.0f tokens/s",
        state.step,
        training.num_steps,
        values["loss"],
        values["learning_rate"],
        values["grad_norm"],
        values["tokens_per_second"],
    )
    state.loss_sum, state.learned_tokens = 0.0, 0
    window.reset()


def _metrics(training: Training, result: StepResult, rate: float) -> dict[str, Any]:
    """Return a line of metrics, as prove/metrics.py describes it."""
    state, plan, scaler = training.state, training.plan, training.engine.scaler
    values = {
        "step": state.step,
        "epoch": round(state.step / plan.steps_per_epoch, 4),
        "loss": state.loss_sum / (state.learned_tokens or 1),
        "learning_rate": result.learning_rate,
        "grad_norm": result.grad_norm,
        "tokens_per_second": round(rate, 1),
        "peak_memory_bytes": peak_memory_bytes(),
        **measured(training, is_training=True),
    }
    if plan.num_replayed:
        values["replayed_rows"] = state.replayed_rows
    if scaler.is_enabled():
        values |= {"loss_scale": scaler.get_scale(), "skipped_steps": state.skipped_steps}
    return values


def _is_due(training: Training, strategy: str, every: int) -> bool:
    step = training.state.step
    if strategy == "no":
        return False
    if step == training.num_steps:
        return True
    return step % (every if strategy == "steps" else training.plan.steps_per_epoch) == 0


def _checkpoint_is_due(training: Training, *, is_last: bool) -> bool:
    section = training.section
    if is_last and section.save_strategy != "no":
        return True
    return _is_due(training, section.save_strategy, section.save_steps)


def _evaluation_is_due(training: Training) -> bool:
    section = training.section
    if not training.data.eval_rows:
        return False
    return _is_due(training, section.eval_strategy, section.eval_steps)


def _samples_are_due(training: Training) -> bool:
    """Whether to answer prompts after this step; the last step's answers are in the report."""
    every, step = training.checks.sample_steps, training.state.step
    if step == training.num_steps:
        return False
    if every is None:
        return _evaluation_is_due(training)
    return every > 0 and step % every == 0


def _has_stopped_improving(training: Training) -> bool:
    patience = training.section.early_stopping_patience
    return patience is not None and training.state.evaluations_without_gain >= patience


def _save(training: Training, rng: dict[str, Any]) -> None:
    engine, output = training.engine, training.folder.path
    training.note_stream()
    states = engine.processes.gather(rng)  # dropout differs among processes
    collected = engine.collect(output)
    if not engine.processes.is_main:
        return
    folder = save_checkpoint(
        output,
        engine=engine,
        collected=collected,
        state=training.state,
        random_states=states,
        template=training.data.template,
    )
    logger.info("saved %s", folder)
    section, state = training.section, training.state
    best = state.best_step if section.load_best_model_at_end else None
    prune_checkpoints(output, section.save_total_limit, state.step, best)


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C or SIGTERM; a second Ctrl-C quits at once."""
    is_asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        if is_asked:
            raise KeyboardInterrupt
        is_asked = True
        logger.warning("stopping after this micro-batch, to save a checkpoint (again to quit now)")

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, as in some notebooks: signals are not ours
        before = {}
    try:
        yield lambda: is_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
