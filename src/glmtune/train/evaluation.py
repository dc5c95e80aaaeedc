"""The held-out loss during a run, scores of answers to held-out rows, and the best step.

With several processes each one answers its share of the rows, and all know the sums, so that all
agree on what is best.
"""

import logging
import math
from collections.abc import Sequence

from glmtune.errors import RecipeError
from glmtune.objective.held_out import held_out_loss
from glmtune.prove.answers import Prompt, answer_all, answer_limit, last_prompt
from glmtune.recipe.sections import TrainingSection
from glmtune.train.load_rows import RunData
from glmtune.train.training import EvalView, Training
from glmtune.use.evaluate.metrics import METRICS, Answered

logger = logging.getLogger(__name__)


MOST_ANSWER_TOKENS = 2048  # of an answer that is scored


def evaluate(training: Training) -> dict[str, float]:
    """Measure the held-out loss, in nats per learned token, and the metrics, and record them.

    Returns:
        The measured values by name, of which "loss" is one.
    """
    views, state = training.task.views, training.state
    losses = {name: _view_loss(training, view) for name, view in views.items()}
    loss = sum(losses[name] * view.share for name, view in views.items())
    named = {name: value for name, value in losses.items() if name}
    values = {"step": state.step, "eval_loss": loss}
    values |= {f"eval_loss_{name}": value for name, value in named.items()}
    values |= {f"eval_{name}": v for name, v in measured(training, is_training=False).items()}
    values |= {f"perplexity_{name}": math.exp(value) for name, value in named.items()}
    scores = score_answers(training)
    values |= {f"eval_{name}": value for name, value in scores.items()}
    training.record(values)
    training.alarms.evaluation(state.step, loss)
    best = ""
    if state.best_eval_loss is not None:
        best = f"  (best before: {state.best_eval_loss:.4f} at step {state.best_step})"
    logger.info("step %d/%d  held-out loss %.4f%s", state.step, training.num_steps, loss, best)
    if scores:
        shown = ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
        logger.info("step %d/%d  held-out answers: %s", state.step, training.num_steps, shown)
    if named:
        shown = ", ".join(f"{name} {math.exp(value):.2f}" for name, value in named.items())
        logger.info("step %d/%d  held-out perplexity: %s", state.step, training.num_steps, shown)
    return {"loss": loss, **scores}


def evaluate_and_compare(training: Training) -> bool:
    """Evaluate; True when the model is the best so far and checkpoints are kept."""
    values = evaluate(training)
    state, loss = training.state, values["loss"]
    name = training.section.metric_for_best_model
    if name == "loss":
        is_best = state.best_eval_loss is None or loss < state.best_eval_loss
    else:
        is_best = state.best_score is None or values[name] > state.best_score
        state.best_score = values[name] if is_best else state.best_score
    if is_best:
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


def score_answers(training: Training) -> dict[str, float]:
    """Answer a part of the held-out rows, and return the mean of each metric over them.

    A metric that applies to none of the rows is left out.
    """
    names, data = training.section.eval_metrics, training.data
    if not names:
        return {}
    processes = training.engine.processes
    prompts = scored_prompts(data, training.section.eval_metric_rows)
    limit = answer_limit(prompts, MOST_ANSWER_TOKENS)
    mine = prompts[processes.process_index :: processes.num_processes]
    answers = answer_all(training.engine.unwrapped(), data.template, mine, limit)
    scored = [
        Answered(answer.text, prompt.expected, answer.num_tokens, answer.has_ended)
        for prompt, answer in zip(mine, answers, strict=True)
    ]
    means: dict[str, float] = {}
    for name in names:
        scores = [score for each in scored if (score := METRICS[name].of(each)) is not None]
        total, count = processes.sum(sum(scores)), processes.sum(len(scores))
        if count:
            means[name] = total / count
    return means


def scored_prompts(data: RunData, number: int) -> list[Prompt]:
    """Return the prompts of at most `number` held-out rows, evenly spaced among them."""
    rows: Sequence[int] = data.eval_rows
    count = min(number, len(rows))
    chosen = [rows[index * len(rows) // count] for index in range(count)]
    return [last_prompt(data.eval_examples[row], data.template, data.tokenizer) for row in chosen]


def check_scored(section: TrainingSection, data: RunData) -> None:
    """Refuse to choose the best step by a metric that no held-out row can be scored by.

    Raises:
        RecipeError: names the metric.
    """
    name = section.metric_for_best_model
    if name == "loss" or not data.eval_rows:
        return
    prompts = scored_prompts(data, section.eval_metric_rows)
    if all(METRICS[name].of(Answered("", each.expected, 0, True)) is None for each in prompts):
        raise RecipeError(
            f"training.metric_for_best_model={name} applies to none of the {len(prompts)} held-out "
            "rows that are scored. Use another metric, or loss."
        )
