"""What remains after the last step: save, prove, draw, report.

What was trained is published when all of it has learned. Then what was published is held
against what was trained, a few prompts are asked, and general rows are scored again. Each proof
is logged with its verdict and goes into `report.html`; one that must not fail ends the run with
an error, after everything has been written down.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from glmtune.conversation import Conversation
from glmtune.data.batches import Examples, MicroBatch, pack_examples
from glmtune.data.encode import training_conversations
from glmtune.data.store import EncodedData, EncodeReport
from glmtune.errors import CheckpointError, TemplateError, TrainingError
from glmtune.inspect.shown_row import show_row
from glmtune.methods import method
from glmtune.prove import liveness
from glmtune.prove.answers import Answer, Prompt, Sample, answer_all, answer_limit, first_prompt
from glmtune.prove.forgetting import METRIC, check_forgetting, general_loss
from glmtune.prove.merged import check_merged
from glmtune.prove.metrics import read_metrics
from glmtune.prove.prompts import check_template_agrees
from glmtune.prove.proof import (
    ALIVE,
    FORGETS,
    MERGED,
    PROOFS,
    SAVED,
    STOPS,
    STREAMED,
    TEMPLATE,
    Proof,
)
from glmtune.prove.report.facts import ReportFacts
from glmtune.prove.report.page import write_report
from glmtune.prove.saved import check_saved
from glmtune.prove.stops import count_ended
from glmtune.prove.streamed import Probe, check_streamed, probe
from glmtune.recipe.recipe import Recipe, RunRecipe
from glmtune.recipe.sections import ChecksSection
from glmtune.template.base import IGNORE, Example, Template
from glmtune.train import process_memory
from glmtune.train.loop import Run
from glmtune.train.output import publish

logger = logging.getLogger(__name__)

PROBED_ROWS = 20  # whose prompts are compared with what was trained
SAMPLED_PROMPTS = 2
SAMPLE_TOKENS = 32  # of an answer of the base, or in the middle of a run: it is only looked at
# These tell of what was learned; without the others the files themselves are not to be trusted.
OF_THE_RUN = (STOPS, FORGETS, MERGED)


@dataclass(frozen=True, slots=True)
class Finish:
    """What was shown at the end of a run."""

    proofs: tuple[Proof, ...] = ()
    samples: tuple[Sample, ...] = ()

    @property
    def failed(self) -> list[Proof]:
        """Proofs without which what was trained is not to be trusted."""
        return [p for p in self.proofs if p.verdict == "failed" and p.name not in OF_THE_RUN]


def finish(run: Run, recipe: RunRecipe, tokenizer: Any, prompts: Sequence[Prompt]) -> Finish:
    """Publish what a finished run has trained, and prove it.

    The last proof merges an adapter into the base, so the model is of no further use.

    Args:
        run: after its last step.
        recipe: of the run.
        tokenizer: goes along with the weights.
        prompts: to ask, as `choose_prompts` gives them.

    Raises:
        CheckpointError: the best checkpoint is gone.
        OutputError: something could not be written.
    """
    run.model.zero_grad(set_to_none=True)
    process_memory.give_back()
    model = run.accelerator.unwrap_model(run.model)
    checks = recipe.checks
    step = take_best(run, recipe, model)
    proofs: list[Proof] = []
    probes: list[Probe] = []
    if run.start:  # something was trained
        proofs.append(prove(ALIVE, lambda: liveness.check_changed(model, run.start)))
    if proofs and proofs[0].verdict == "passed":
        lines = read_metrics(run.metrics.path)
        publish(model, run.output, run.template, tokenizer, recipe, lines)
        rows = pack_examples(run.examples, run.plan.rows[:1]).to(model.device)
        proofs.append(prove(SAVED, lambda: _check_saved(model, run.output, rows)))
        if prompts and proofs[-1].verdict == "passed":
            probes = probe(model, run.output, run.template, prompts[:SAMPLED_PROMPTS])
            proofs.append(
                prove(STREAMED, lambda: check_streamed(model, probes, checks.streamed_tolerance))
            )
    asked = prompts[: max(checks.stop_prompts, len(run.base_answers))]
    limit = answer_limit(prompts, checks.max_new_tokens)
    tuned = answer_all(model, run.template, asked, limit)
    if isinstance(recipe, Recipe):  # and not a pre-training, which has no prompts
        proofs.append(prove(TEMPLATE, lambda: _compare_prompts(recipe, run.template)))
        proofs.append(_check_stops(run, checks, tuned, limit))
    if run.base_general_loss is not None and checks.forgetting is not None:
        rise = checks.forgetting
        proofs.append(prove(FORGETS, lambda: _check_forgetting(run, rise, model, step)))
    samples = pair_answers(run, asked, tuned)
    if probes:
        proofs.append(prove(MERGED, lambda: check_merged(model, probes, checks.merged_tolerance)))
    proofs.sort(key=lambda proof: PROOFS.index(proof.name))
    for proof in proofs:
        log = logger.warning if proof.verdict == "failed" else logger.info
        log("proof: %s: %s%s", proof.name, proof.verdict, f" ({proof.detail})" * bool(proof.detail))
    return Finish(tuple(proofs), tuple(samples))


def pair_answers(run: Run, prompts: Sequence[Prompt], tuned: Sequence[Answer]) -> list[Sample]:
    """Put what the tuned model answered beside what the base did, where it was asked."""
    return [Sample(*each) for each in zip(prompts, run.base_answers, tuned, strict=False)]


def log_samples(run: Run, recipe: RunRecipe, prompts: Sequence[Prompt]) -> None:
    """Answer a few prompts in the middle of a run, base and tuned, into the log."""
    asked = prompts[: len(run.base_answers)]
    limit = sample_limit(prompts, recipe.checks)
    tuned = answer_all(run.accelerator.unwrap_model(run.model), run.template, asked, limit)
    for sample in pair_answers(run, asked, tuned):
        logger.info(
            "step %d: asked %r\n  base:  %s\n  tuned: %s",
            *(run.state.step, sample.prompt.text, sample.base.text, sample.tuned.text),
        )


def prove(name: str, check: Callable[[], Any]) -> Proof:
    """Run a check; what it returns, or the error it raises, is the detail."""
    try:
        shown = check()
    except (TrainingError, TemplateError) as error:
        return Proof(name, "failed", str(error))
    return shown if isinstance(shown, Proof) else Proof(name, "passed", str(shown or ""))


def take_best(run: Run, recipe: RunRecipe, model: Any) -> int:
    """Go back to the weights with the best held-out loss, if the recipe says so; their step."""
    state = run.state
    if not recipe.training.load_best_model_at_end or state.best_step in (None, state.step):
        return state.step
    if recipe.training.save_strategy == "no":
        logger.warning(
            "the best held-out loss was at step %d, but training.save_strategy=no kept no "
            "checkpoint of it; the weights are those of the last step",
            state.best_step,
        )
        return state.step
    best = run.output / f"checkpoint-{state.best_step}"
    if not best.is_dir():
        raise CheckpointError(f"{best}: the best checkpoint is gone; the last weights stay.")
    method.restore(best, model)
    logger.info("the weights are those of step %d, the best held-out loss", state.best_step)
    return state.best_step


def _check_saved(model: Any, folder: Path, rows: MicroBatch) -> str:
    difference = check_saved(model, folder, rows)
    return (
        f"scores of a row differ by {difference:g}" if difference else "to the last bit of a score"
    )


def _compare_prompts(recipe: Recipe, template: Template) -> Proof | str:
    conversations = islice(_conversations(recipe, template), PROBED_ROWS)
    number = check_template_agrees(template, conversations)
    if not number:
        return Proof(TEMPLATE, "not run", "no row with an answer was found again")
    return f"the ids before {number} answers are those of their prompts"


def _conversations(recipe: Recipe, template: Template) -> Iterator[Conversation]:
    """Read the training data again, as conversations."""
    return training_conversations(recipe.data, template)


def choose_prompts(
    examples: Examples,
    rows: Sequence[int],
    checks: ChecksSection,
    template: Template,
    tokenizer: Any,
) -> list[Prompt]:
    """Pick prompts with short answers among some rows; long ones take long to ask."""
    picked = [examples[row] for row in rows[: 8 * max(checks.stop_prompts, 1)]]
    picked.sort(key=_answer_length)
    number = max(checks.stop_prompts, SAMPLED_PROMPTS)
    return [first_prompt(example, template, tokenizer) for example in picked[:number]]


def sample_limit(prompts: Sequence[Prompt], checks: ChecksSection) -> int:
    """Say how long to wait for an answer that is only looked at."""
    return min(SAMPLE_TOKENS, answer_limit(prompts, checks.max_new_tokens))


def _answer_length(example: Example) -> int:
    return sum(label != IGNORE for label in example.labels)


def _check_stops(run: Run, checks: ChecksSection, answers: Sequence[Answer], limit: int) -> Proof:
    if not checks.stop_prompts:
        return Proof(STOPS, "not run", "checks.stop_prompts is 0")
    rate = count_ended(answers[: checks.stop_prompts], limit)
    return rate.proof(checks.least_stop_rate, "held-out" if run.eval_rows else "learned")


def _check_forgetting(run: Run, limit: float, model: Any, step: int) -> Proof:
    """Score the general rows again, and note it in the metrics once."""
    before = run.base_general_loss
    assert before is not None
    after = general_loss(model, run.general, model.device)
    if not any(METRIC in line for line in read_metrics(run.metrics.path)):
        run.metrics.write({"step": step, METRIC: after, f"base_{METRIC}": before})
    sizes = {"num_rows": len(run.general), "vocab_size": model.config.vocab_size}
    return check_forgetting(before, after, limit, **sizes)


def write_run_report(
    run: Run,
    tokenizer: Any,
    examples: EncodedData,
    eval_examples: EncodedData,
    findings: tuple[dict[str, Any], ...] | None,
    shown: Finish,
    seconds: float,
    replay: EncodeReport | None = None,
) -> Path:
    """Write `report.html` with all that the run knows of itself.

    Args:
        run: finished or interrupted.
        tokenizer: makes text of the ids.
        examples, eval_examples: the same object when held-out rows were split off.
        findings: of lint; None when it did not look.
        shown: proofs and answers.
        seconds: from the first step to the last.
        replay: what became of the general rows that were mixed in.
    """
    trainable, total = method.count_parameters(run.accelerator.unwrap_model(run.model))
    row = run.plan.step_rows(0)[0]
    split_off = eval_examples is examples
    facts = ReportFacts(
        is_finished=bool(shown.proofs),
        num_steps=run.num_steps,
        seconds=seconds,
        num_trainable=trainable,
        num_parameters=total,
        template=run.template.description,
        template_fingerprint=run.template.fingerprint,
        data_fingerprint=examples.key,
        held_out_fingerprint=None if split_off else eval_examples.key,
        data=examples.report,
        held_out=None if split_off else eval_examples.report,
        replay=replay,
        num_train_rows=len(run.plan.rows),
        num_replayed_rows=run.plan.num_replayed if replay else None,
        num_held_out_rows=len(run.eval_rows),
        lint=findings,
        example=show_row(examples[row], examples[row], tokenizer, place=run.origin(row)),
        proofs=shown.proofs,
        samples=shown.samples or None,
    )
    return write_report(run.output, facts)
