"""One optimizer step, and many; devices and ranks by accelerate.

A step learns a fixed set of rows, split into micro-batches that fit in memory:

    for each micro-batch:   loss = sum over its learned tokens / learned tokens of the step
                            backward
    clip the gradient's norm, step the optimizer, step the learning rate

A loss or a gradient that is not finite stops the run before it touches a weight, with the
rows and the first module at fault; in float16 a gradient may overflow, and the step is skipped
(`train/precision.py`). An interrupt (Ctrl-C, SIGTERM) gives the unfinished step
up, saves a checkpoint of the last finished one and leaves.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from glmtune.data.batches import (
    Batch,
    BatchPlan,
    Examples,
    MakeMicroBatch,
    MicroBatch,
    batches,
    rows_as_they_are,
)
from glmtune.errors import TrainingError
from glmtune.machine import peak_memory_bytes
from glmtune.objective.held_out import held_out_loss
from glmtune.objective.next_token import NextToken, Objective
from glmtune.prove import liveness
from glmtune.prove.answers import Answer
from glmtune.prove.metrics import MetricsFile
from glmtune.recipe.sections import ChecksSection, TrainingSection
from glmtune.template.base import Example, Template
from glmtune.train import process_memory
from glmtune.train.alarms import Watch
from glmtune.train.checkpoint import (
    Gathered,
    TrainerState,
    prune_checkpoints,
    random_state,
    save_checkpoint,
)
from glmtune.train.engines import deepspeed
from glmtune.train.engines.fsdp import gather, gather_optimizer, is_sharded
from glmtune.train.progress import Progress

logger = logging.getLogger(__name__)


class Interrupted(Exception):  # noqa: N818  # not an error: the user asked for it
    """The user, or the machine's scheduler, asked the run to stop."""


@dataclass(frozen=True, slots=True)
class Judge:
    """One way to see held-out rows, and its share of the held-out loss."""

    make: MakeMicroBatch = rows_as_they_are
    share: float = 1.0


@dataclass(slots=True)
class Run:
    """What a loop works on: fixed parts, and the state that a checkpoint saves.

    Attributes:
        model: what is tuned, as accelerate prepared it.
        start: its trained tensors as they were before the first step.
        base_answers: what the base answered to the sample prompts, before anything changed.
        general: rows that show what is forgotten, encoded.
        base_general_loss: of the base on them; None where nobody measured it.
        examples, lengths: encoded rows and their numbers of tokens.
        eval_rows: held-out rows among `examples`, or of `eval_examples` when that is given.
        origin: where a row came from, "file:line".
        num_steps: optimizer steps of the whole run.
        scaler: of the loss, where it goes back through float16.
        autocast: in which the model goes forward.
        show_samples: answers a few prompts into the log.
        objective, eval_objective: what each step makes smaller, and what held-out rows are judged
            by.
        make: what the model sees of rows in a step.
        judges: the ways to see the held-out rows, by name.
    """

    model: Any
    optimizer: torch.optim.Optimizer
    scheduler: Any
    accelerator: Any
    template: Template
    section: TrainingSection
    checks: ChecksSection
    plan: BatchPlan
    examples: Examples
    lengths: Sequence[int]
    eval_examples: Examples
    eval_lengths: Sequence[int]
    eval_rows: Sequence[int]
    origin: Callable[[int], str]
    output: Path
    num_steps: int
    state: TrainerState
    metrics: MetricsFile
    watch: Watch
    show_samples: Callable[[], None]
    scaler: torch.amp.GradScaler
    autocast: Callable[[], AbstractContextManager[Any]]
    objective: Objective = field(default_factory=NextToken)
    eval_objective: Objective = field(default_factory=NextToken)
    make: MakeMicroBatch = rows_as_they_are
    judges: Mapping[str, Judge] = field(default_factory=lambda: {"": Judge()})
    start: Mapping[str, liveness.Start] = field(default_factory=dict)
    base_answers: Sequence[Answer] = ()
    general: Sequence[Example] = ()
    base_general_loss: float | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        loss_sum: in nats, over this step's learned tokens, on all processes.
        learned_tokens: their number.
        tokens: real tokens, padding not counted.
        grad_norm: the gradient's 2-norm before clipping; not finite where the step was skipped.
        learning_rate: of this step.
    """

    loss_sum: float
    learned_tokens: int
    tokens: int
    grad_norm: float
    learning_rate: float


def optimizer_step(
    run: Run, batch: Batch, should_stop: Callable[[], bool] = lambda: False
) -> StepResult:
    """Learn the rows of one batch.

    Raises:
        TrainingError: the loss or the gradient is not finite; no weight has changed.
        Interrupted: `should_stop` said so between two micro-batches; no weight has changed.
    """
    model, accelerator = run.model, run.accelerator
    model.train()
    run.optimizer.zero_grad(set_to_none=True)
    counts = [run.objective.count(part) for part in batch.micro_batches]
    learned = _sum_over_processes(accelerator, sum(counts))
    num_parts = _sum_over_processes(accelerator, sum(bool(p.rows) for p in batch.micro_batches))
    loss_sum = 0.0
    for index, (part, count) in enumerate(zip(batch.micro_batches, counts, strict=True)):
        if _any_process(accelerator, should_stop()):
            run.optimizer.zero_grad(set_to_none=True)
            raise Interrupted
        began = time.perf_counter()
        on_device = part.to(accelerator.device)
        is_last = index + 1 == len(batch.micro_batches)
        with _sync_gradients(accelerator, model, is_last):
            with run.autocast():
                loss = run.objective.loss(model, on_device)
            if not loss.isfinite():
                _explain_loss(run, on_device, loss.item())
            share = _share(run.section, count, learned, num_parts)
            # Gradients are averaged over processes, but this loss is to be summed over them.
            summed = loss * (share * accelerator.num_processes)
            if deepspeed.is_engine(model):
                model.backward(summed, scale_wrt_gas=False)
            else:
                accelerator.backward(run.scaler.scale(summed))
        loss_sum += loss.item()
        del loss, summed
        if time.perf_counter() - began > process_memory.SLOW:
            process_memory.give_back()
    learning_rate = float(run.scheduler.get_last_lr()[0])
    if deepspeed.is_engine(model):
        grad_norm = _step_dealt_out(run, batch)
    else:
        if run.state.step == 0:
            liveness.check_gradients(run.accelerator.unwrap_model(model))
        grad_norm = _clip(run, batch)
        _change_weights(run, batch)
    return StepResult(
        loss_sum=_sum_over_processes(accelerator, loss_sum),
        learned_tokens=int(learned),
        tokens=int(_sum_over_processes(accelerator, sum(run.lengths[row] for row in batch.rows))),
        grad_norm=grad_norm,
        learning_rate=learning_rate,
    )


def _share(section: TrainingSection, count: int, learned: float, num_micro_batches: float) -> float:
    """What a micro-batch's summed loss is multiplied by, to make the step's mean of it.

    The counts are those of all processes, so that their number changes nothing.
    """
    if section.average == "tokens":
        return 1 / max(learned, 1)
    return 1 / max(count, 1) / num_micro_batches


def _sync_gradients(accelerator: Any, model: Any, is_last: bool) -> Any:
    """Exchange gradients between processes only at a step's last micro-batch."""
    if deepspeed.is_engine(model):
        model.set_gradient_accumulation_boundary(is_last)
        return nullcontext()
    return nullcontext() if is_last else accelerator.no_sync(model)


def _sum_over_processes(accelerator: Any, value: float) -> float:
    if accelerator.num_processes == 1:
        return value
    total = torch.tensor(value, device=accelerator.device, dtype=torch.float64)
    return float(accelerator.reduce(total, "sum").item())


def _any_process(accelerator: Any, said: bool) -> bool:
    """Whether any process says so: a signal may reach only one, and all must leave together."""
    return said if accelerator.num_processes == 1 else _sum_over_processes(accelerator, said) > 0


def _clip(run: Run, batch: Batch) -> float:
    run.scaler.unscale_(run.optimizer)
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    limit = run.section.max_grad_norm
    norm = run.accelerator.clip_grad_norm_(parameters, limit if limit is not None else math.inf)
    value = float(norm)
    if not math.isfinite(value) and not run.scaler.is_enabled():
        names = [
            name
            for name, p in run.model.named_parameters()
            if p.grad is not None and not p.grad.isfinite().all()
        ]
        raise TrainingError(
            f"step {run.state.step + 1}: the loss is finite but the gradient is not "
            f"(norm {value}); the first parameter at fault is {names[0] if names else 'unknown'}. "
            f"Rows: {_origins(run, batch.rows)}. No weight was changed. "
            "Lower training.learning_rate, or use model.dtype=bfloat16 instead of float16."
        )
    return value


def _step_dealt_out(run: Run, batch: Batch) -> float:
    """Let DeepSpeed clip and step; give the gradient's norm before."""
    run.model.step()
    norm = float(run.model.get_global_grad_norm())
    if not math.isfinite(norm):
        raise TrainingError(
            f"step {run.state.step + 1}: the loss is finite but the gradient is not (norm {norm}). "
            f"Rows: {_origins(run, batch.rows)}. DeepSpeed has taken the step, so go back to the "
            "last checkpoint, and lower training.learning_rate."
        )
    run.scheduler.step()
    return norm


def _change_weights(run: Run, batch: Batch) -> None:
    """Step the optimizer and the learning rate; neither where a scaled gradient overflowed."""
    before = run.scaler.get_scale()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    scale = run.scaler.get_scale()
    if scale >= before:
        run.scheduler.step()
        return
    state = run.state
    state.skipped_steps += 1
    step = state.step + 1
    if scale < run.checks.smallest_loss_scale:
        raise TrainingError(
            f"step {step}: a gradient is not finite in float16, though the loss is scaled by no "
            f"more than {before:g} after {state.skipped_steps} skipped steps. "
            f"Rows: {_origins(run, batch.rows)}. This step changed no weight. "
            "Use bfloat16 or float32 in place of float16, or lower training.learning_rate."
        )
    logger.info(
        "step %d: a gradient did not fit float16, so no weight was changed and the loss is "
        "scaled by %g from now on (skipped steps so far: %d)",
        *(step, scale, state.skipped_steps),
    )


def _origins(run: Run, rows: Sequence[int]) -> str:
    shown = ", ".join(run.origin(row) for row in rows[:8])
    return shown + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")


def _explain_loss(run: Run, micro_batch: MicroBatch, loss: float) -> None:
    if is_sharded(run.model):  # and the others are not here to go forward again
        culprit = "not looked for, since training.sharding is on"
    else:
        model = run.accelerator.unwrap_model(run.model)
        culprit = first_nonfinite_module(model, micro_batch, run.autocast)
    raise TrainingError(
        f"step {run.state.step + 1}: the loss is {loss}. "
        f"First module with an output that is not finite: {culprit}. "
        f"Rows: {_origins(run, micro_batch.rows)}. No weight was changed by this step. "
        "Lower training.learning_rate, look at these rows with `glmtune inspect`, or use "
        "model.dtype=bfloat16 instead of float16."
    )


@torch.no_grad()
def first_nonfinite_module(
    model: nn.Module,
    micro_batch: MicroBatch,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> str:
    """Run a micro-batch again and name the innermost module that first leaves the numbers.

    Returns:
        The module's name, and whether its own weights are not finite; or "none (the loss
        itself)" where every module's output is finite.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            bad = any(
                isinstance(t, torch.Tensor) and t.is_floating_point() and not t.isfinite().all()
                for t in tensors
            )
            if bad and not found:
                own = [n for n, p in module.named_parameters(recurse=False) if not _finite(p)]
                found.append(f"{name}, whose {' and '.join(own)} is not finite" if own else name)

        return hook

    hooks = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if n]
    try:
        with autocast():
            model(**micro_batch.inputs(), use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    return found[0].removeprefix("base_model.model.") if found else "none (the loss itself)"


def _finite(parameter: nn.Parameter) -> bool:
    return bool(parameter.isfinite().all())


def train(run: Run) -> bool:
    """Take the steps that are left; evaluate, save and report between them.

    Returns:
        Whether the run came to its end; False after an interrupt, with a checkpoint saved.

    Raises:
        TrainingError: something is not finite, or an adapted layer gets no gradient.
        OutputError: a checkpoint could not be written.
    """
    steps = batches(run.examples, run.lengths, run.plan, run.state.step, run.num_steps, run.make)
    is_main = run.accelerator.is_main_process
    window = _Window()
    with _stop_on_signal() as should_stop, Progress(run.num_steps, run.state.step, is_main) as bar:
        for batch in steps:
            rng = random_state()
            try:
                result = optimizer_step(run, batch, should_stop)
            except Interrupted:
                _save(run, rng)
                return False
            _account(run, result, window, bar)
            improved = _evaluate_if_due(run)
            if _samples_are_due(run):
                run.show_samples()
            if improved or _is_due(run, run.section.save_strategy, run.section.save_steps):
                _save(run, random_state())
            if _has_stopped_improving(run):
                logger.info(
                    "no better held-out loss in %d evaluations; stopping at step %d",
                    run.state.evaluations_without_gain,
                    run.state.step,
                )
                break
    if not run.num_steps:  # nothing is trained, and the model is judged as it is
        _evaluate(run)
    return True


class _Window:
    """Tokens and time since the last line of metrics."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.tokens, self.started = 0, time.perf_counter()

    def rate(self) -> float:
        return self.tokens / max(time.perf_counter() - self.started, 1e-9)


def _account(run: Run, result: StepResult, window: _Window, bar: Progress) -> None:
    state = run.state
    state.replayed_rows += run.plan.count_replayed(state.step)
    state.step += 1
    state.loss_sum += result.loss_sum
    state.learned_tokens += result.learned_tokens
    window.tokens += result.tokens
    loss = result.loss_sum / max(result.learned_tokens, 1)
    bar.advance(loss, result.tokens)
    if math.isfinite(result.grad_norm):  # or the step was skipped, and nothing has changed
        run.watch.step(state.step, loss, result.grad_norm)
    if state.step % run.section.logging_steps and state.step not in (1, run.num_steps):
        return
    values = {
        "step": state.step,
        "epoch": round(state.step / run.plan.steps_per_epoch, 4),
        "loss": state.loss_sum / max(state.learned_tokens, 1),
        "learning_rate": result.learning_rate,
        "grad_norm": result.grad_norm,
        "tokens_per_second": round(window.rate(), 1),
        "peak_memory_bytes": peak_memory_bytes(),
        **_measured(run, is_training=True),
    }
    if run.plan.num_replayed:
        values["replayed_rows"] = state.replayed_rows
    if run.scaler.is_enabled():
        values |= {"loss_scale": run.scaler.get_scale(), "skipped_steps": state.skipped_steps}
    _report(run, values)
    logger.info(
        "step %d/%d  loss %.4f  lr %.3g  grad norm %.3g  %.0f tokens/s",
        state.step,
        run.num_steps,
        values["loss"],
        values["learning_rate"],
        values["grad_norm"],
        values["tokens_per_second"],
    )
    state.loss_sum, state.learned_tokens = 0.0, 0
    window.reset()


def _report(run: Run, values: dict[str, Any]) -> None:
    if run.accelerator.is_main_process:
        run.metrics.write(values)
    run.accelerator.log({k: v for k, v in values.items() if k != "step"}, step=values["step"])


def _is_due(run: Run, strategy: str, every: int) -> bool:
    step = run.state.step
    if strategy == "no":
        return False
    if step == run.num_steps:
        return True
    return step % (every if strategy == "steps" else run.plan.steps_per_epoch) == 0


def _samples_are_due(run: Run) -> bool:
    """Whether to answer prompts after this step; the last step's answers are in the report."""
    every, section = run.checks.sample_steps, run.section
    if run.state.step == run.num_steps:
        return False
    if every is None:
        return bool(run.eval_rows) and _is_due(run, section.eval_strategy, section.eval_steps)
    return every > 0 and run.state.step % every == 0


def _evaluate_if_due(run: Run) -> bool:
    """Evaluate when it is time; True when the held-out loss is the best so far."""
    if not run.eval_rows or not _is_due(run, run.section.eval_strategy, run.section.eval_steps):
        return False
    loss = _evaluate(run)
    state = run.state
    if state.best_eval_loss is None or loss < state.best_eval_loss:
        state.best_eval_loss, state.best_step = loss, state.step
        state.evaluations_without_gain = 0
        return run.section.save_strategy != "no"
    state.evaluations_without_gain += 1
    return False


def _evaluate(run: Run) -> float:
    """Measure the held-out loss, in nats per learned token, and tell of it."""
    losses = {name: _judge(run, judge) for name, judge in run.judges.items()}
    loss = sum(losses[name] * judge.share for name, judge in run.judges.items())
    state = run.state
    best = state.best_eval_loss
    named = {name: value for name, value in losses.items() if name}
    each = {f"eval_loss_{name}": value for name, value in named.items()}
    each |= {f"eval_{name}": v for name, v in _measured(run, is_training=False).items()}
    each |= {f"perplexity_{name}": math.exp(value) for name, value in named.items()}
    _report(run, {"step": state.step, "eval_loss": loss, **each})
    run.watch.evaluation(state.step, loss)
    logger.info(
        "step %d/%d  held-out loss %.4f%s",
        state.step,
        run.num_steps,
        loss,
        "" if best is None else f"  (best before: {best:.4f} at step {state.best_step})",
    )
    if named:
        told = ", ".join(f"{name} {math.exp(value):.2f}" for name, value in named.items())
        logger.info("step %d/%d  held-out perplexity: %s", state.step, run.num_steps, told)
    return loss


def _measured(run: Run, *, is_training: bool) -> dict[str, float]:
    """Give what the objective has seen besides its loss, on all processes, as means."""
    objective = run.objective if is_training else run.eval_objective
    seen = objective.measured(is_training=is_training)
    totals = {
        name: [_sum_over_processes(run.accelerator, value) for value in values]
        for name, values in seen.items()
    }
    return {name: total / max(over, 1) for name, (total, over) in totals.items()}


def _judge(run: Run, judge: Judge) -> float:
    accelerator = run.accelerator
    with run.autocast():
        total, count = held_out_loss(
            run.model,
            run.eval_examples,
            run.eval_rows,
            max_tokens=run.plan.max_tokens,
            device=accelerator.device,
            lengths=run.eval_lengths,
            objective=run.eval_objective,
            make=judge.make,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
    return _sum_over_processes(accelerator, total) / _sum_over_processes(accelerator, count)


def _has_stopped_improving(run: Run) -> bool:
    patience = run.section.early_stopping_patience
    return patience is not None and run.state.evaluations_without_gain >= patience


def _save(run: Run, rng: dict[str, Any]) -> None:
    from accelerate.utils import gather_object

    states = gather_object([rng])  # of every process, for dropout differs among them
    gathered: Gathered | None = None
    if is_sharded(run.model):
        gathered = (gather(run.model), gather_optimizer(run.optimizer))
    if deepspeed.is_engine(run.model):
        gathered = (None, deepspeed.save(run.model, run.output))
    if not run.accelerator.is_main_process:
        return
    model = run.accelerator.unwrap_model(run.model)
    folder = save_checkpoint(
        *(run.output, model, run.optimizer, run.scheduler, run.scaler),
        *(run.state, states, run.template, gathered),
    )
    logger.info("saved %s", folder)
    prune_checkpoints(run.output, run.section.save_total_limit, run.state.best_step)


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C or SIGTERM; a second Ctrl-C quits at once."""
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        logger.warning("stopping after this micro-batch, to save a checkpoint (again to quit now)")

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, as in some notebooks: signals are not ours
        before = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
