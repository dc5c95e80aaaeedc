"""The base before training, as the proofs compare it with the tuned model."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from glmtune.data.batches import batches
from glmtune.data.encode import training_conversations
from glmtune.data.pairs import Pairs
from glmtune.errors import CheckpointError, TrainingError, some
from glmtune.prove import liveness
from glmtune.prove.answers import Answer, Prompt, Sample, answer_all, answer_limit, first_prompt
from glmtune.prove.fits import Fit, judge, sample_rows, score_fit
from glmtune.prove.forgetting import general_conversations, general_loss
from glmtune.prove.packed import check_packed
from glmtune.prove.prompts import check_template_agrees
from glmtune.prove.proof import PACKED, TEMPLATE, Proof, prove
from glmtune.recipe.recipe import Recipe
from glmtune.recipe.sections import ChecksSection
from glmtune.template.base import IGNORE, Example
from glmtune.train.changed_files import changed_since
from glmtune.train.load_rows import RunData
from glmtune.train.processes import Processes
from glmtune.train.training import Training

logger = logging.getLogger(__name__)

SAMPLED_PROMPTS = 2
PROBED_ROWS = 20  # whose prompts are compared with what is trained
PACKED_ROWS = 4  # the shortest of a step, which are scored in a pack and alone
KNOWN_ROWS = 12  # general ones, which show whether the base can judge others
SHOWN_ROWS = 2  # of the least likely answers, and of the likeliest
SAMPLE_TOKENS = 32  # of an answer of the base, or during a run: it is only shown


@dataclass(frozen=True, slots=True)
class Before:
    """What the proofs compare the tuned model with.

    Attributes:
        prompts: to ask at the end; none in pre-training.
        answers: of the base to the first of them.
        general_loss: of the base on general rows, in nats per token; None if it was not measured.
        start: the trained tensors before the first step, by name.
        asked: whether chat asks as training did; None where that was not looked at.
        packed: whether a pack is scored as its rows are alone; None where that was not looked at.
    """

    prompts: Sequence[Prompt] = ()
    answers: Sequence[Answer] = ()
    general_loss: float | None = None
    start: Mapping[str, liveness.Start] = field(default_factory=dict)
    asked: Proof | None = None
    packed: Proof | None = None


def look_at_base(recipe: Recipe, model: Any, data: RunData, processes: Processes) -> Before:
    """Let the base answer prompts, and measure its loss on general rows, on rank 0.

    If its logits are not finite, this only warns: the first training step then fails with the name
    of the module, which is more specific.
    """
    prompts = choose_prompts(data, recipe.checks)
    is_slow = recipe.training.sharding and processes.device.type != "cpu"  # it is on the CPU
    if not prompts or not recipe.trains or not processes.is_main or is_slow:
        return Before(prompts)
    asked, limit = prompts[:SAMPLED_PROMPTS], sample_limit(prompts, recipe.checks)
    try:
        answers = answer_all(model, data.template, asked, limit)
        loss = general_loss(model, data.general, model.device) if data.general else None
    except (CheckpointError, TrainingError) as error:
        logger.warning("the base cannot answer: %s", error)
        return Before(prompts)
    return Before(prompts, answers, loss)


def judge_rows(recipe: Recipe, model: Any, data: RunData, processes: Processes) -> RunData:
    """Let the base judge a sample of rows, on rank 0; log it, and add doubts to the findings."""
    is_slow = recipe.training.sharding and processes.device.type != "cpu"
    if not recipe.checks.answers_fit or not recipe.trains or not processes.is_main or is_slow:
        return data
    sample = sample_rows(data.examples, data.rows, data.lengths)
    if not sample:
        logger.info("the base was not asked about rows: too few to be worth a sample")
        return data
    began, stops = time.monotonic(), data.template.stop_ids
    general = data.template.encode_batch(list(general_conversations()[:KNOWN_ROWS]))
    try:
        known = score_fit(model, general, range(len(general)), stops)
        fit = judge(score_fit(model, data.examples, sample, stops), known)
    except TrainingError as error:
        logger.warning("the base cannot judge rows: %s", error)
        return data
    logger.info("%s (%.1f s)", fit.describe(), time.monotonic() - began)
    log_extremes(fit, data)
    for check, why in fit.doubts:
        logger.warning("%s: %s", check, why)
    found = [
        {
            "id": check,
            "severity": "warning",
            "place": "a sample of rows",
            "excerpt": "",
            "message": why,
        }
        for check, why in fit.doubts
    ]
    return replace(data, findings=(*found, *(data.findings or ()))) if found else data


def log_extremes(fit: Fit, data: RunData) -> None:
    """Log the answers that the base finds least likely, and those that it knows by heart."""
    by_loss = sorted(fit.scored, key=lambda each: each.loss)
    for what, some_rows in (("least", by_loss[::-1]), ("most", by_loss)):
        for each in some_rows[:SHOWN_ROWS]:
            text = first_prompt(data.examples[each.row], data.template, data.tokenizer).expected
            logger.info(
                "%s likely to the base: %s, %.2f nats per token: %.60r",
                what,
                data.origin(each.row),
                each.loss,
                text,
            )


def prove_prompts(recipe: Recipe, data: RunData) -> Proof:
    """Compare the ids before some answers with the prompts of chat, while the files are there."""

    def compare() -> Proof | str:
        conversations = training_conversations(
            recipe.data, data.template, needs_label=recipe.has_labels
        )
        number = check_template_agrees(data.template, islice(conversations, PROBED_ROWS))
        if changed := changed_since(data.stamps):
            return Proof(TEMPLATE, "not run", f"{some(changed)} changed while it was read")
        if not number:
            return Proof(TEMPLATE, "not run", "no row with an answer was found again")
        return f"the ids before {number} answers are those of their prompts"

    return prove(TEMPLATE, compare)


def prove_packing(training: Training) -> Proof | None:
    """Compare a few rows, packed as in the next step, with the same rows one by one.

    Raises:
        TrainingError: the losses differ.
    """
    recipe, engine, data = training.recipe, training.engine, training.data
    if not isinstance(recipe, Recipe) or not recipe.trains or not engine.processes.is_main:
        return None
    if not engine.can_run_alone:
        return Proof(PACKED, "not run", "the weights are sharded, so one process cannot score rows")
    step = min(training.state.step, training.num_steps - 1)
    chosen = sorted(training.plan.step_rows(step), key=lambda row: data.lengths[row])[:PACKED_ROWS]
    plan = training.plan.alone(chosen)
    [batch] = batches(data.examples, data.lengths, plan, 0, 1, training.task.make)
    packed = max(batch.micro_batches, key=lambda part: len(part.rows))
    sides: list[Example] = []
    for row in packed.rows:
        sides.append(data.examples[row])
        if isinstance(data.examples, Pairs):
            sides.append(data.examples.worse(row))
    with engine.autocast():
        on_device = packed.to(engine.processes.device)
        return check_packed(engine.unwrapped(), on_device, sides)


def choose_prompts(data: RunData, checks: ChecksSection) -> list[Prompt]:
    """Pick prompts with short answers, of held-out rows if there are any."""
    examples, rows = data.examples, data.rows
    if data.eval_rows:
        examples, rows = data.eval_examples, data.eval_rows
    labels = examples.labels
    if labels is not None and labels[rows].any():  # an answer is expected, and not a bad one
        rows = [row for row in rows if labels[row]]
    picked = [examples[row] for row in rows[: 8 * max(checks.stop_prompts, 1)]]
    picked.sort(key=_answer_length)
    number = max(checks.stop_prompts, SAMPLED_PROMPTS)
    return [first_prompt(example, data.template, data.tokenizer) for example in picked[:number]]


def sample_limit(prompts: Sequence[Prompt], checks: ChecksSection) -> int:
    """Return the maximum length of an answer that is only shown, not proved, in tokens."""
    return min(SAMPLE_TOKENS, answer_limit(prompts, checks.max_new_tokens))


def _answer_length(example: Example) -> int:
    return sum(label != IGNORE for label in example.labels[example.prompt_length or 0 :])


def log_samples(training: Training, before: Before) -> None:
    """Log the answers of base and tuned model to a few prompts, during a run."""
    asked = before.prompts[: len(before.answers)]
    limit = sample_limit(before.prompts, training.checks)
    tuned = answer_all(training.engine.unwrapped(), training.data.template, asked, limit)
    for sample in pair_answers(before, tuned):
        logger.info(
            "step %d: asked %r\n  base:  %s\n  tuned: %s",
            training.state.step,
            sample.prompt.text,
            sample.base.text,
            sample.tuned.text,
        )


def pair_answers(before: Before, tuned: Sequence[Answer]) -> list[Sample]:
    """Pair the tuned model's answers with the base's, for the prompts that the base was asked."""
    return [
        Sample(prompt, base, answer)
        for prompt, base, answer in zip(before.prompts, before.answers, tuned, strict=False)
    ]
