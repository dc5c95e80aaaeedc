"""The held-out loss during a run, and the step that had the best."""

import logging
import math

from glmtune.objective.held_out import held_out_loss
from glmtune.train.training import EvalView, Training

logger = logging.getLogger(__name__)


def evaluate(training: Training) -> float:
    """Measure the held-out loss, in nats per learned token, and record it."""
    views, state = training.task.views, training.state
    losses = {name: _view_loss(training, view) for name, view in views.items()}
    loss = sum(losses[name] * view.share for name, view in views.items())
    named = {name: value for name, value in losses.items() if name}
    values = {"step": state.step, "eval_loss": loss}
    values |= {f"eval_loss_{name}": value for name, value in named.items()}
    values |= {f"eval_{name}": v for name, v in measured(training, is_training=False).items()}
    values |= {f"perplexity_{name}": math.exp(value) for name, value in named.items()}
    training.record(values)
    training.alarms.evaluation(state.step, loss)
    best = ""
    if state.best_eval_loss is not None:
        best = f"  (best before: {state.best_eval_loss:.4f} at step {state.best_step})"
    logger.info("step %d/%d  held-out loss %.4f%s", state.step, training.num_steps, loss, best)
    if named:
        shown = ", ".join(f"{name} {math.exp(value):.2f}" for name, value in named.items())
        logger.info("step %d/%d  held-out perplexity: %s", state.step, training.num_steps, shown)
    return loss


def evaluate_and_compare(training: Training) -> bool:
    """Evaluate; True when the held-out loss is the best so far and checkpoints are kept."""
    loss = evaluate(training)
    state = training.state
    if state.best_eval_loss is None or loss < state.best_eval_loss:
        state.best_eval_loss, state.best_step = loss, state.step
        state.evaluations_without_gain = 0
        return training.section.save_strategy != "no"
    state.evaluations_without_gain += 1
    return False


def measured(training: Training, *, is_training: bool) -> dict[str, float]:
    """Return what the objective has measured besides its loss, as means over all processes."""
    task, processes = training.task, training.engine.processes
    objective = task.objective if is_training else task.eval_objective
    totals = {
        name: [processes.sum(value) for value in values]
        for name, values in objective.measured(is_training=is_training).items()
    }
    means = {name: total / over for name, (total, over) in totals.items() if over}
    if {"reward_chosen", "reward_rejected"} <= means.keys():  # of other rows each
        means["reward_margin"] = means["reward_chosen"] - means["reward_rejected"]
    return means


def _view_loss(training: Training, view: EvalView) -> float:
    engine, data = training.engine, training.data
    processes = engine.processes
    with engine.autocast():
        total, count = held_out_loss(
            engine.model,
            data.eval_examples,
            data.eval_rows,
            max_tokens=training.plan.max_tokens,
            device=processes.device,
            lengths=data.eval_lengths,
            objective=training.task.eval_objective,
            make=view.make,
            process_index=processes.process_index,
            num_processes=processes.num_processes,
            total_of=processes.sum,
        )
    return processes.sum(total) / processes.sum(count)
