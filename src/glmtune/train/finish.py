"""After the last step: publish, prove and report.

What was trained is published if all of it has learned. Then the published files are compared with
the trained model, a few prompts are asked, and general rows are scored again. Each proof is logged
with its verdict and goes into `report.html`; one that must not fail ends the run with an error,
after everything has been written.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glmtune.data.batches import MicroBatch, pack_examples
from glmtune.errors import some
from glmtune.inspect.shown_row import show_row
from glmtune.methods import method
from glmtune.prove import liveness
from glmtune.prove.answers import Answer, Sample, answer_all, answer_limit
from glmtune.prove.folder_card import rewrite_card
from glmtune.prove.forgetting import METRIC, check_forgetting, general_loss
from glmtune.prove.merged import check_merged
from glmtune.prove.metrics import until
from glmtune.prove.proof import (
    ALIVE,
    FORGETS,
    MERGED,
    PROOFS,
    SAVED,
    STOCK_READER,
    STOPS,
    STREAMED,
    Proof,
    prove,
)
from glmtune.prove.report.facts import ReportFacts
from glmtune.prove.report.page import write_report
from glmtune.prove.saved import check_saved
from glmtune.prove.stock_reader import check_stock_reader
from glmtune.prove.stops import count_ended
from glmtune.prove.streamed import Probe, check_streamed, probe
from glmtune.prove.wanted import check_trained
from glmtune.recipe.recipe import Recipe
from glmtune.train import process_memory
from glmtune.train.alarms import find_no_progress
from glmtune.train.before import SAMPLED_PROMPTS, Before, pair_answers
from glmtune.train.changed_files import changed_since
from glmtune.train.checkpoint import damage
from glmtune.train.output import publish
from glmtune.train.training import Training

logger = logging.getLogger(__name__)

# A failure of these is only reported; any other failed proof fails the run, since the files cannot
# be trusted.
ONLY_REPORTED = (STOPS, FORGETS, MERGED)


@dataclass(frozen=True, slots=True)
class ProofResults:
    """The proofs of a finished run, and sample answers; none after an interrupt.

    Attributes:
        proofs: with their verdicts.
        samples: answers of base and tuned model.
        saved_step: of the weights that were published, the best ones or the last.
    """

    proofs: tuple[Proof, ...] = ()
    samples: tuple[Sample, ...] = ()
    saved_step: int | None = None

    @property
    def failed(self) -> list[Proof]:
        """Failed proofs that fail the run."""
        return [p for p in self.proofs if p.verdict == "failed" and p.name not in ONLY_REPORTED]


def finish(training: Training, before: Before, model: Any) -> ProofResults:
    """Publish what a finished run has trained, and prove it.

    The last proof merges an adapter into the base, so the model is of no further use.

    Args:
        training: after its last step.
        before: the base, to compare with.
        model: with all trained weights, without the wrapper of its engine.

    Raises:
        OutputError: something could not be written.
    """
    model.zero_grad(set_to_none=True)
    process_memory.release_freed_pages()
    losses = [line["loss"] for line in training.folder.read_metrics() if "loss" in line]
    if training.recipe.trains and (why := find_no_progress(losses)):
        logger.warning("%s", why)
    step = take_best(training, model)
    proofs, probes = _publish_and_prove(training, before, model, step)
    checks, template = training.checks, training.data.template
    asked = before.prompts[: max(checks.stop_prompts, len(before.answers))]
    limit = answer_limit(before.prompts, checks.max_new_tokens)
    tuned = answer_all(model, template, asked, limit)
    if before.asked is not None:
        proofs.append(_note_changes(before.asked, changed_since(training.data.stamps)))
    if isinstance(training.recipe, Recipe):  # pre-training has no prompts
        proofs.append(_check_stops(training, tuned, limit))
    if any(proof.name == SAVED for proof in proofs):  # something was published
        proofs.append(prove(STOCK_READER, lambda: _check_stock_reader(training)))
    loss = before.general_loss
    if loss is not None and checks.forgetting is not None:
        proofs.append(prove(FORGETS, lambda: _check_forgetting(training, loss, model, step)))
    samples = pair_answers(before, tuned)
    if probes:
        proofs.append(prove(MERGED, lambda: check_merged(model, probes, checks.merged_tolerance)))
    if before.packed is not None:
        proofs.append(before.packed)
    proofs.sort(key=lambda proof: PROOFS.index(proof.name))
    _log_proofs(proofs)
    return ProofResults(tuple(proofs), tuple(samples), step)


def _publish_and_prove(
    training: Training, before: Before, model: Any, step: int
) -> tuple[list[Proof], list[Probe]]:
    """Publish what has learned, and compare the files with the model.

    Returns:
        The proofs, and probes to compare the merged model with; no probes unless the saved files
        are the trained model.
    """
    if not before.start:  # nothing was trained
        return [], []
    alive = prove(ALIVE, lambda: _check_alive(training, before, model, step))
    if alive.verdict != "passed":
        return [alive], []
    data, output = training.data, training.folder.path
    lines = until(training.folder.read_metrics(), step)
    publish(model, output, data.template, data.tokenizer, training.recipe, lines)
    rows = pack_examples(data.examples, training.plan.rows[:1]).to(model.device)
    saved = prove(SAVED, lambda: _check_saved(model, output, rows))
    prompts = before.prompts[:SAMPLED_PROMPTS]
    if not prompts or saved.verdict != "passed":
        return [alive, saved], []
    probes = probe(model, output, data.template, prompts)
    tolerance = training.checks.streamed_tolerance
    streamed = prove(STREAMED, lambda: check_streamed(model, probes, tolerance))
    return [alive, saved, streamed], probes


def _check_alive(training: Training, before: Before, model: Any, step: int) -> None:
    check_trained(model, training.recipe.adapter)
    taken = max(1, step - training.state.skipped_steps)
    liveness.check_changed(model, before.start, taken, training.section.learning_rate)


def _log_proofs(proofs: Sequence[Proof]) -> None:
    for proof in proofs:
        log = logger.warning if proof.verdict == "failed" else logger.info
        detail = f" ({proof.detail})" if proof.detail else ""
        log("proof: %s: %s%s", proof.name, proof.verdict, detail)


def take_best(training: Training, model: Any) -> int:
    """Restore the weights of the best evaluation, if the recipe asks for them.

    Returns:
        The step of the weights.
    """
    state, section = training.state, training.section
    if not section.load_best_model_at_end or state.best_step in (None, state.step):
        return state.step
    best = training.folder.path / f"checkpoint-{state.best_step}"
    if section.save_strategy == "no":
        problem: str | None = "training.save_strategy=no kept no checkpoint of it"
    elif not best.is_dir():
        problem = f"{best} is gone"
    else:
        problem = damage(best)
        problem = problem and f"{best} is damaged: {problem}"
    if problem is not None:
        logger.warning(
            "the best held-out %s was at step %d, but %s; the weights are those of the last step",
            section.metric_for_best_model,
            state.best_step,
            problem,
        )
        return state.step
    method.restore(best, model)
    logger.info(
        "the weights are those of step %d, the best held-out %s",
        state.best_step,
        section.metric_for_best_model,
    )
    return state.best_step


def _check_saved(model: Any, folder: Path, rows: MicroBatch) -> str:
    difference = check_saved(model, folder, rows)
    return (
        f"scores of a row differ by {difference:g}" if difference else "to the last bit of a score"
    )


def _note_changes(proof: Proof, changed: list[str]) -> Proof:
    """Say which files no longer hold the rows that were learned."""
    if not changed:
        return proof
    note = (
        f"{some(changed)} changed or went away while the run learned the rows as they were before"
    )
    logger.warning("%s", note)
    return replace(proof, detail=f"{proof.detail}; {note}")


def _check_stock_reader(training: Training) -> Proof | str:
    if not training.checks.stock_reader:
        return Proof(STOCK_READER, "not run", "checks.stock_reader is false")
    data = training.data
    return check_stock_reader(training.folder.path, data.template, data.tokenizer)


def _check_stops(training: Training, answers: Sequence[Answer], limit: int) -> Proof:
    checks = training.checks
    if not checks.stop_prompts:
        return Proof(STOPS, "not run", "checks.stop_prompts is 0")
    rate = count_ended(answers[: checks.stop_prompts], limit)
    return rate.proof(checks.least_stop_rate, "held-out" if training.data.eval_rows else "learned")


def _check_forgetting(training: Training, before: float, model: Any, step: int) -> Proof:
    """Score the general rows again, and add both losses to the metrics once."""
    rows, limit = training.data.general, training.checks.forgetting
    assert limit is not None
    after = general_loss(model, rows, model.device)
    if not any(METRIC in line for line in training.folder.read_metrics()):
        training.folder.metrics.write({"step": step, METRIC: after, f"base_{METRIC}": before})
    return check_forgetting(
        before, after, limit, num_rows=len(rows), vocab_size=model.config.vocab_size
    )


def write_run_report(training: Training, model: Any, results: ProofResults, seconds: float) -> Path:
    """Write `report.html` with all that is known of the run.

    Args:
        training: finished or interrupted.
        model: without the wrapper of its engine.
        results: proofs and answers.
        seconds: from the first step to the last.
    """
    output, data, plan = training.folder.path, training.data, training.plan
    trainable, total = method.count_parameters(model)
    of_the_task = (each for each in plan.shown_rows() if each not in data.replay)
    row = next(of_the_task, data.rows[0])
    example, place = data.examples[row], data.origin(row)
    facts = ReportFacts(
        is_finished=bool(results.proofs),
        num_steps=training.num_steps,
        saved_step=results.saved_step,
        seconds=seconds,
        num_trainable=trainable,
        num_parameters=total,
        template=data.template.description,
        template_fingerprint=data.template.fingerprint,
        data_fingerprint=data.examples.fingerprint,
        held_out_fingerprint=None if data.is_split_off else data.eval_examples.fingerprint,
        data=data.examples.report,
        held_out=None if data.is_split_off else data.eval_examples.report,
        replay=data.replay_report,
        num_train_rows=plan.rows_per_epoch - plan.num_replayed,
        num_replayed_rows=plan.num_replayed if data.replay_report else None,
        num_held_out_rows=len(data.eval_rows),
        lint=data.findings,
        example=show_row(example, example, data.tokenizer, place=place),
        proofs=results.proofs,
        samples=results.samples or None,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    page = write_report(output, facts)
    rewrite_card(output)
    return page
