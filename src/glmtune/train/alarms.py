"""Warnings about what looks wrong in a run, each with a remedy.

A loss that is not finite stops a run (`train/step.py`). What is checked here is finite but looks
wrong; the run continues, since the user may know better.

    learning rate, batch, steps or epochs out of       before the first step
    proportion; settings that let nothing be learned
    a gradient far above those before it               at any step
    a loss that rises, and stays up                    at any step
    a held-out loss that has turned up                 at any evaluation
    a loss that did not fall                           after the last step
"""

import logging
import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from glmtune.recipe.methods import FreezeSection, FullSection, LoraSection
from glmtune.recipe.recipe import Recipe, RunRecipe
from glmtune.recipe.sections import ChecksSection
from glmtune.train.optimizer import count_warmup_steps

logger = logging.getLogger(__name__)

MEMORY_STEPS = 50  # gradient norms that a new one is compared with
FEWEST_STEPS = 10  # before a trend is judged
NEGLIGIBLE_LOSS = 0.05  # nats per token: a loss below it fluctuates by its own size
NEGLIGIBLE_RISE = 1e-4  # of a held-out loss, as a share of it
FULL_TUNING_LR_FACTOR = 0.1  # of an adapter's learning rate, where the model's weights are trained
# The fewer numbers a method trains, the larger their steps: the highest sane learning rate, in
# multiples of LoRA's, and a good start (docs/methods.md).
RATES_OF_METHODS: Mapping[str, tuple[float, str]] = {
    "oft": (5, "1e-3"),
    "vera": (50, "1e-2"),
    "ia3": (50, "1e-2"),
    "prompt_tuning": (50, "3e-2"),
    "p_tuning": (50, "1e-2"),
    "prefix_tuning": (100, "2e-2"),
    "ptuning_v2": (100, "2e-2"),
}
# Beyond these, Adam's steps or the update itself are next to nothing.
SMALLEST_CLIPPING, LARGEST_EPSILON, SMALLEST_SCALE = 1e-4, 1e-3, 1e-2
# Beyond these, something else outweighs the rows.
LARGEST_DECAY, LARGEST_DROPOUT, LARGEST_SMOOTHING, LARGEST_NOISE = 1.0, 0.5, 0.5, 50.0
LARGEST_BETA1, SMALLEST_BETA2 = 0.99, 0.8
LEAST_FALL = 1e-3  # nats per token, of a loss between the first and the last third of a run


def find_disproportions(recipe: RunRecipe, num_rows: int, num_steps: int) -> list[str]:
    """List what in a recipe is out of proportion to its data.

    Args:
        recipe: the run.
        num_rows: that are learned in an epoch.
        num_steps: optimizer steps of the whole run.
    """
    training, checks = recipe.training, recipe.checks
    found = [*_learning_rate(recipe), *_next_to_nothing(recipe, num_steps), *_too_much(recipe)]
    found += _about_steps(recipe, num_rows, num_steps)
    rows_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    epochs = num_steps * rows_per_step / max(num_rows, 1)
    if epochs > checks.most_epochs:
        found.append(
            f"each of {num_rows} rows is learned about {epochs:.0f} times; the model will memorize "
            "them and learn little else. Use fewer epochs, or more rows"
        )
    return found


def _about_steps(recipe: RunRecipe, num_rows: int, num_steps: int) -> list[str]:
    """List what is wrong with the size of a step; no line contradicts another."""
    training, checks, found = recipe.training, recipe.checks, []
    batch, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    rows_per_step = batch * accumulation
    fewest_rows = min(checks.smallest_batch, num_rows)
    can_be_smaller = accumulation > 1 and rows_per_step - batch >= fewest_rows
    longer = "num_train_epochs" if training.max_steps is None else "max_steps"
    if num_steps < FEWEST_STEPS:
        smaller = (
            f"lower gradient_accumulation_steps ({accumulation}) or " if can_be_smaller else ""
        )
        found.append(f"the run has only {num_steps} optimizer steps; {smaller}raise {longer}")
    good = min(16, num_rows) // batch  # never a step of more rows than there are
    if rows_per_step < fewest_rows and good > accumulation:
        found.append(
            f"a step learns from {rows_per_step} rows, so its gradient is mostly noise; raise "
            f"gradient_accumulation_steps ({accumulation}) to {good} or so"
        )
    if rows_per_step > num_rows:
        smaller = (
            "gradient_accumulation_steps" if accumulation > 1 else "per_device_train_batch_size"
        )
        found.append(
            f"a step asks for {rows_per_step} rows, but there are only {num_rows}, so a step is an "
            f"entire epoch; lower {smaller} ({getattr(training, smaller)})"
        )
    return found


def _learning_rate(recipe: RunRecipe) -> Iterator[str]:
    """Yield what is wrong with the learning rate, by what is sane for the method."""
    rate, checks = recipe.training.learning_rate, recipe.checks
    tunes_weights = isinstance(recipe.adapter, FullSection | FreezeSection)
    factor, good = RATES_OF_METHODS.get(recipe.adapter.method, (1, "1e-4"))
    if tunes_weights and isinstance(recipe, Recipe):  # pre-training takes larger steps
        factor, good = FULL_TUNING_LR_FACTOR, "1e-5"
    highest = checks.highest_learning_rate * factor
    if not checks.lowest_learning_rate <= rate <= highest:
        what = "diverges or forgets" if rate > highest else "barely learns"
        yield (
            f"learning_rate {rate:g} is unusual for adapter.method={recipe.adapter.method}, which "
            f"then often {what}; {good} is a good start"
        )


def _next_to_nothing(recipe: RunRecipe, num_steps: int) -> Iterator[str]:
    """Yield the settings under which a run learns next to nothing."""
    training, adapter = recipe.training, recipe.adapter
    warmup = count_warmup_steps(training, num_steps)
    if warmup >= num_steps and training.lr_scheduler_type != "constant":
        remedy = (
            "warmup_steps=0.05 is 5 % of the run" if num_steps > 1 else "warmup_steps=0 is none"
        )
        yield (
            f"the warm-up of {warmup} steps is not shorter than the run of {num_steps}, so the "
            f"learning rate never reaches {training.learning_rate:g}; {remedy}"
        )
    clipped = training.max_grad_norm
    if clipped is not None and clipped < SMALLEST_CLIPPING:
        yield (
            f"max_grad_norm {clipped:g} makes every gradient so small that adam_epsilon outweighs "
            "it; 1 is usual, and null clips nothing"
        )
    if training.adam_epsilon > LARGEST_EPSILON:
        yield (
            f"adam_epsilon {training.adam_epsilon:g} outweighs usual gradients, so steps are next "
            "to nothing; 1e-8 is usual"
        )
    if isinstance(adapter, LoraSection):
        scale = adapter.lora_alpha / (adapter.r**0.5 if adapter.use_rslora else adapter.r)
        if scale < SMALLEST_SCALE:
            yield (
                f"lora_alpha {adapter.lora_alpha:g} with r {adapter.r} multiplies the update by "
                f"{scale:.2g}, so the adapter changes next to nothing; twice r is usual"
            )


def _too_much(recipe: RunRecipe) -> Iterator[str]:
    """Yield what outweighs the rows, so that the loss curve is about something else."""
    training, adapter = recipe.training, recipe.adapter
    if training.weight_decay > LARGEST_DECAY:
        yield (
            f"weight_decay {training.weight_decay:g} pulls what is trained to zero faster than the "
            "rows can move it; 0 to 0.1 is usual"
        )
    for key in ("lora_dropout", "vera_dropout", "module_dropout"):
        dropout = getattr(adapter, key, 0.0)
        if dropout > LARGEST_DROPOUT:
            yield (
                f"adapter.{key} {dropout:g} leaves {1 - dropout:.0%} of the inputs of the adapter, "
                "so its gradient is mostly noise; 0 to 0.1 is usual"
            )
    if training.label_smoothing_factor > LARGEST_SMOOTHING:
        yield (
            f"label_smoothing_factor {training.label_smoothing_factor:g} teaches the whole "
            "vocabulary rather than the answers; 0.1 is usual"
        )
    if (training.neftune_noise_alpha or 0) > LARGEST_NOISE:
        yield (
            f"neftune_noise_alpha {training.neftune_noise_alpha:g} drowns the embeddings in noise; "
            "5 is usual"
        )
    if training.adam_beta1 > LARGEST_BETA1 or training.adam_beta2 < SMALLEST_BETA2:
        yield (
            f"adam_beta1 {training.adam_beta1:g} and adam_beta2 {training.adam_beta2:g} average "
            "over too many or too few steps; 0.9 and 0.999 are usual"
        )
    layers: tuple[int, ...] = getattr(adapter, "layers_to_transform", None) or ()
    if len(layers) == 1:
        yield (
            f"the adapter changes layer {layers[0]} alone, which can learn little; leave "
            "adapter.layers_to_transform out for all layers"
        )
    if 0.5 < recipe.data.eval_fraction < 1:
        yield (
            f"data.eval_fraction {recipe.data.eval_fraction:g} holds out more rows than are "
            "learned; 0.05 is usual"
        )


def find_no_progress(losses: Sequence[float]) -> str:
    """Say that the loss of a run did not fall; "" where it did, or the run was too short.

    Args:
        losses: of training, in the order of the steps that were logged.
    """
    if len(losses) < 2 * FEWEST_STEPS:
        return ""
    first, last = losses[: len(losses) // 3], losses[-(len(losses) // 3) :]
    fell = statistics.fmean(first) - statistics.fmean(last)
    noise = (statistics.variance(first) / len(first) + statistics.variance(last) / len(last)) ** 0.5
    if statistics.fmean(first) < NEGLIGIBLE_LOSS or fell > max(noise, LEAST_FALL):
        return ""
    return (
        f"the loss did not fall: {statistics.fmean(first):.4f} in the first third of the run, "
        f"{statistics.fmean(last):.4f} in the last. Nothing was learned from the rows: raise "
        "learning_rate, look at the warnings before the first step, and check with `glmtune "
        "inspect` that answers fit their questions"
    )


class Alarms:
    """Compares each step and evaluation with the run so far, and logs warnings."""

    def __init__(self, checks: ChecksSection) -> None:
        self._checks = checks
        self._norms: deque[float] = deque(maxlen=MEMORY_STEPS)
        self._losses: deque[float] = deque(maxlen=FEWEST_STEPS)
        self._best_mean = float("inf")
        self._eval_losses: list[float] = []
        self._warned: set[str] = set()

    def step(self, step: int, loss: float, grad_norm: float) -> None:
        """Look at one optimizer step.

        Args:
            step: counted from 1.
            loss: its mean, in nats per learned token.
            grad_norm: before clipping.
        """
        if len(self._norms) >= FEWEST_STEPS:
            usual = statistics.median(self._norms)
            if grad_norm > self._checks.exploding_gradient * usual:
                logger.warning(
                    "step %d: the gradient exploded: its norm is %.3g, %.0f times the usual "
                    "%.3g. Look at this step's rows, or lower learning_rate or max_grad_norm",
                    step,
                    grad_norm,
                    grad_norm / max(usual, 1e-12),
                    usual,
                )
        self._norms.append(grad_norm)
        self._losses.append(loss)
        if len(self._losses) == FEWEST_STEPS:
            mean = statistics.fmean(self._losses)
            if mean > self._checks.rising_loss * max(self._best_mean, NEGLIGIBLE_LOSS):
                self._warn_once(
                    "rising loss",
                    f"step {step}: the loss rises: {mean:.3f} over the last {FEWEST_STEPS} steps, "
                    f"after {self._best_mean:.3f}. Lower learning_rate or add warmup_steps",
                )
            self._best_mean = min(self._best_mean, mean)

    def evaluation(self, step: int, eval_loss: float) -> None:
        """Look at one evaluation; `eval_loss` is in nats per learned token."""
        self._eval_losses.append(eval_loss)
        worse = self._checks.worse_evaluations
        best = min(self._eval_losses)
        since_best = 0  # evaluations that are worse; an equal loss has not turned up
        for loss in reversed(self._eval_losses):
            if loss <= best * (1 + NEGLIGIBLE_RISE):
                break
            since_best += 1
        if since_best >= worse:
            self._warn_once(
                "overfitting",
                f"step {step}: the held-out loss has turned up: {eval_loss:.4f} after "
                f"{best:.4f}, {since_best} evaluations ago. More of the same training makes the "
                "model worse; early_stopping_patience would end it here",
            )

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("%s", message)
