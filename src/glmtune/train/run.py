"""A recipe -> a tuned model in a folder. Reads like a table of contents."""

import hashlib
import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import glmtune.kernels.packed_attention  # noqa: F401  # registers attention over packs
from glmtune.data.batches import BatchPlan, MakeMicroBatch, rows_as_they_are
from glmtune.data.encode import EncodeOptions, encode_data, split_data
from glmtune.data.lint.run import lint_data
from glmtune.data.pairs import encode_pairs, pack_pairs
from glmtune.data.store import EncodedData
from glmtune.errors import CheckpointError, DataError, RecipeError, TrainingError
from glmtune.files import write_atomically
from glmtune.kernels.chunked_loss import LossFunction, cross_entropy_sum, smoothed_cross_entropy_sum
from glmtune.methods import adapter_folder, method
from glmtune.model.load import load_frozen_model, load_model, load_tokenizer
from glmtune.model.quantization import Quantization, check_quantization
from glmtune.objective.next_token import NextToken, Objective
from glmtune.objective.preference import Preference
from glmtune.prove import liveness
from glmtune.prove.answers import Answer, Prompt, answer_all
from glmtune.prove.forgetting import METRIC, general_conversations, general_loss
from glmtune.prove.metrics import MetricsFile, cut_metrics, read_metrics
from glmtune.prove.proof import Proof
from glmtune.recipe.methods import (
    AdapterSection,
    FreezeSection,
    FullSection,
    NoneSection,
    QloraSection,
)
from glmtune.recipe.recipe import Recipe, RunRecipe
from glmtune.recipe.sections import DataSection, TrainingSection
from glmtune.template.base import Example, Template
from glmtune.template.select import template_for
from glmtune.train.alarms import Watch, proportions
from glmtune.train.checkpoint import (
    TrainerState,
    check_identity,
    load_state,
    newest_whole_checkpoint,
    restore_checkpoint,
)
from glmtune.train.dry_run import rehearse
from glmtune.train.engines import deepspeed
from glmtune.train.engines.fsdp import check_sharding, gather, is_sharded, shard
from glmtune.train.finish import (
    SAMPLED_PROMPTS,
    Finish,
    choose_prompts,
    finish,
    log_samples,
    sample_limit,
    write_run_report,
)
from glmtune.train.loop import Judge, Run, train
from glmtune.train.neftune import add_noise
from glmtune.train.optimizer import make_optimizer, make_scheduler, optimizer_class
from glmtune.train.output import METRICS, RECIPE, clear_run, prepare_output
from glmtune.train.precision import autocast, check_base, dtype_of_autocast, make_scaler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What a run left behind.

    Attributes:
        adapter_dir: the adapter, or the whole model where that is what was trained; the output
            folder with a checkpoint after an interrupt.
        num_steps: optimizer steps done.
        is_finished: False after an interrupt.
        loss, eval_loss: the last measured, in nats per learned token.
        general_loss, base_general_loss: on general rows, after and before.
        proofs: what the run has shown of itself; none after an interrupt.
    """

    adapter_dir: Path
    num_steps: int
    is_finished: bool
    loss: float | None
    eval_loss: float | None
    general_loss: float | None = None
    base_general_loss: float | None = None
    proofs: tuple[Proof, ...] = ()


def fine_tune(
    recipe: Recipe, *, resume: bool = False, loss: LossFunction = cross_entropy_sum
) -> Result:
    """Tune a model as a recipe says.

    Args:
        recipe: the whole run.
        resume: go on from the newest whole checkpoint in `output.dir`.
        loss: what to minimise, to try an idea: (logits, targets) -> a sum.

    Raises:
        GlmtuneError: one of its children, for whatever the user can mend. Earlier checkpoints
            stay as they were.
    """
    check_quantization(quantization_of(recipe.adapter))
    minimised(recipe.training, loss)
    earlier = getattr(recipe.adapter, "name_or_path", None)
    if earlier is not None:
        adapter_folder.check_folder(Path(earlier))
    accelerator, output = begin(recipe, resume=resume)
    tokenizer = load_tokenizer(recipe.model.name_or_path)
    template = template_for(tokenizer, recipe.data.layout)
    if earlier is not None:
        adapter_folder.check_template(Path(earlier), template)
    is_main = accelerator.is_main_process
    findings = lint(recipe, template) if is_main and not resume else None
    with accelerator.local_main_process_first():  # the others read what it has encoded
        examples, eval_examples, rows, eval_rows = load_data(recipe, template, output)
        replay = load_replay(recipe, template, output)
        general = load_general(recipe, template, output)
    prompts = choose_prompts(
        *((eval_examples, eval_rows) if eval_rows else (examples, rows)),
        recipe.checks,
        template,
        tokenizer,
    )
    model = load_base(recipe, accelerator.device)
    is_preference = recipe.preference.stage == "dpo"
    make = pack_pairs if is_preference else rows_as_they_are
    is_asked = is_main and not isinstance(recipe.adapter, NoneSection)
    if recipe.training.sharding and accelerator.device.type != "cpu":
        is_asked = False  # it lies in main memory, and would take long
    asked = prompts[: SAMPLED_PROMPTS * is_asked]
    limit = sample_limit(prompts, recipe.checks)
    base_answers, base_general_loss = ask_base(model, template, asked, limit, general)
    return carry_out(
        recipe,
        Ingredients(
            tokenizer,
            template,
            examples,
            eval_examples,
            rows,
            eval_rows,
            model,
            findings,
            prompts,
            base_answers=base_answers,
            general=general,
            base_general_loss=base_general_loss,
            replay=replay,
            make=make,
            judges={"": Judge(make)},
            objective=Preference(recipe.preference) if is_preference else None,
        ),
        accelerator,
        resume=resume,
        loss=loss,
    )


def ask_base(
    model: Any,
    template: Template,
    prompts: Sequence[Prompt],
    limit: int,
    general: Sequence[Example],
) -> tuple[Sequence[Answer], float | None]:
    """Let the base answer, and measure it on general rows, before anything changes.

    Nothing where its scores are not finite: training then stops at its first step, and names the
    module, which says more.
    """
    if not prompts:
        return (), None
    try:
        answers = answer_all(model, template, prompts, limit)
        return answers, general_loss(model, general, model.device) if general else None
    except (CheckpointError, TrainingError) as error:
        logger.warning("the base cannot answer: %s", error)
        return (), None


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a run is made of, loaded.

    Attributes:
        examples, eval_examples: the same object when held-out rows were split off.
        rows, eval_rows: indices in each.
        model: before anything is attached to it.
        findings: of lint; None when it did not look.
        prompts: to ask at the end; none where nothing is learned that answers.
        base_answers: to the first of them.
        general: rows that show what is forgotten, encoded.
        base_general_loss: of the base on them, in nats per token.
        make: what the model sees of rows in a step.
        judges: the ways to see the held-out rows, by name.
        replay: general rows to mix in.
        objective: what each step makes smaller; None is the next-token loss.
    """

    tokenizer: Any
    template: Template
    examples: EncodedData
    eval_examples: EncodedData
    rows: Sequence[int]
    eval_rows: Sequence[int]
    model: Any
    findings: tuple[dict[str, Any], ...] | None = None
    prompts: Sequence[Prompt] = ()
    base_answers: Sequence[Answer] = ()
    general: Sequence[Example] = ()
    base_general_loss: float | None = None
    make: MakeMicroBatch = rows_as_they_are
    judges: Mapping[str, Judge] = field(default_factory=lambda: {"": Judge()})
    replay: EncodedData | None = None
    objective: Objective | None = None


def begin(recipe: RunRecipe, *, resume: bool) -> tuple[Any, Path]:
    """Make sure of the output folder, find the devices and seed the generators."""
    output = Path(recipe.output.dir)
    method.check_fits(recipe.adapter, recipe.model.name_or_path)
    optimizer_class(recipe.training)
    check_base(recipe)
    accelerator = make_accelerator(recipe)
    if recipe.training.sharding:
        check_sharding(accelerator.num_processes)
    deepspeed.check_zero(recipe.training, accelerator.num_processes)
    if accelerator.is_main_process:
        prepare_output(output, resume=resume, overwrite=recipe.output.overwrite)
    accelerator.wait_for_everyone()
    seed_everything(recipe.training.seed)
    return accelerator, output


def carry_out(
    recipe: RunRecipe,
    given: Ingredients,
    accelerator: Any,
    *,
    resume: bool = False,
    loss: LossFunction = cross_entropy_sum,
) -> Result:
    """Train what was loaded, and publish, prove and report it.

    Args:
        recipe: the whole run.
        given: its parts.
        accelerator: as `begin` gives it.
        resume, loss: as for `fine_tune`.

    Raises:
        GlmtuneError: as `fine_tune`.
    """
    output, template = Path(recipe.output.dir), given.template
    is_main = accelerator.is_main_process
    examples, eval_examples, mixed_in = mix_in(given)
    model = attach(recipe, given.model)
    plan = plan_batches(recipe, given.rows, accelerator, mixed_in)
    num_steps = count_steps(recipe, plan)
    is_tuned = not isinstance(recipe.adapter, NoneSection)
    for warning in proportions(recipe, plan.rows_per_epoch, num_steps) if is_tuned else ():
        logger.warning("%s", warning)
    start = liveness.remember(model)
    identity = identify(recipe, template, examples, eval_examples)
    state = TrainerState(identity={**identity, "processes": str(accelerator.num_processes)})
    folder = newest_whole_checkpoint(output) if resume else None
    if folder is not None:
        saved = load_state(folder)
        check_identity(saved, state.identity, folder)
        state = saved
        method.restore(folder, model)
    parts = build_parts(recipe, model, accelerator, num_steps)
    model = parts.model
    if folder is not None:
        put_back(parts, folder, accelerator.process_index)
        logger.info("resuming from %s at step %d of %d", folder, state.step, num_steps)
    elif is_main:
        if resume:
            logger.warning("%s: no checkpoint yet, so the run starts at its beginning", output)
        clear_run(output)
    if is_main:
        write_recipe(recipe, output)
        cut_metrics(output / METRICS, state.step)
    start_trackers(accelerator, recipe)

    run = Run(
        model=accelerator.prepare(model) if is_tuned and not recipe.training.dealt_out else model,
        optimizer=parts.optimizer,
        scheduler=parts.scheduler,
        scaler=parts.scaler,
        autocast=nullcontext
        if is_sharded(model)  # which casts by itself
        else partial(autocast, recipe.training, accelerator.device),
        accelerator=accelerator,
        template=template,
        section=recipe.training,
        checks=recipe.checks,
        plan=plan,
        examples=examples,
        lengths=examples.lengths.tolist(),
        eval_examples=eval_examples,
        eval_lengths=eval_examples.lengths.tolist(),
        eval_rows=given.eval_rows,
        origin=examples.origin,
        output=output,
        num_steps=num_steps,
        state=state,
        metrics=MetricsFile(output / METRICS),
        watch=Watch(recipe.checks),
        show_samples=lambda: None,
        objective=given.objective or NextToken(minimised(recipe.training, loss)),
        eval_objective=given.objective or NextToken(loss),
        start=start,
        base_answers=given.base_answers,
        general=given.general,
        base_general_loss=given.base_general_loss,
        make=given.make,
        judges=given.judges,
    )
    rehearse(run, examples.learned_lengths.tolist(), eval_examples.learned_lengths.tolist())
    began = time.monotonic()
    if is_main and not is_sharded(run.model):  # one process cannot answer with a part
        run.show_samples = partial(log_samples, run, recipe, given.prompts)
    is_finished = train(run)
    seconds = time.monotonic() - began
    trained = gather(run.model) if is_sharded(run.model) and is_finished else None
    leave_the_others(run)
    if trained is not None and is_main:
        run.model = whole_again(recipe, trained)
    if not is_main:
        return summarise(run, is_finished, Finish())
    shown = finish(run, recipe, given.tokenizer, given.prompts) if is_finished else Finish()
    report(run, given, (examples, eval_examples), shown, seconds)
    return summarise(run, is_finished, shown)


def mix_in(given: Ingredients) -> tuple[EncodedData, EncodedData, Sequence[int]]:
    """The rows of a run, its held-out rows, and which of the first are general ones."""
    if given.replay is None:
        return given.examples, given.eval_examples, ()
    general = range(len(given.examples), len(given.examples) + len(given.replay))
    examples = given.examples.followed_by(given.replay)  # so that indices of the others stay
    is_split = given.eval_examples is given.examples
    return examples, examples if is_split else given.eval_examples, general


def attach(recipe: RunRecipe, base: Any) -> Any:
    """Make the weights that are learned, and what is done to the others' activations."""
    model = method.attach(base, recipe.adapter)
    if recipe.training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if recipe.training.neftune_noise_alpha is not None:
        add_noise(model, recipe.training.neftune_noise_alpha)
    logger.info(describe_parameters(model))
    return model


@dataclass(frozen=True, slots=True)
class Parts:
    """What a step moves; nothing but the model where nothing is learned."""

    model: Any
    optimizer: Any
    scheduler: Any
    scaler: Any


def build_parts(recipe: RunRecipe, model: Any, accelerator: Any, num_steps: int) -> Parts:
    """Deal out the model where the recipe says so, and make what goes with it."""
    if recipe.training.sharding:
        shard(model, accelerator.device, dtype_of_autocast(recipe.training))
    if accelerator.process_index:  # each process has its own dropout; all start from one adapter
        seed_everything(recipe.training.seed + accelerator.process_index)
    optimizer: Any = None
    scheduler = None
    if not isinstance(recipe.adapter, NoneSection):
        ratio = getattr(recipe.adapter, "loraplus_lr_ratio", None)
        optimizer = make_optimizer(model, recipe.training, ratio)
        scheduler = make_scheduler(optimizer, recipe.training, num_steps)
    scaler = make_scaler(recipe.training, model, accelerator.device)
    if recipe.training.deepspeed:
        model = deepspeed.deal_out(model, optimizer, recipe.training)
        optimizer = model.optimizer
    return Parts(model, optimizer, scheduler, scaler)


def put_back(parts: Parts, folder: Path, process_index: int) -> None:
    """Give the parts, and the random generators, what a checkpoint has of them."""
    is_engine = deepspeed.is_engine(parts.model)
    if is_engine:  # its optimizer is a part of it
        deepspeed.restore(parts.model, folder)
    optimizer = None if is_engine else parts.optimizer
    restore_checkpoint(folder, optimizer, parts.scheduler, parts.scaler, process_index)


def report(
    run: Run,
    given: Ingredients,
    data: tuple[EncodedData, EncodedData],
    shown: Finish,
    seconds: float,
) -> None:
    """Write what there is to see of a run, whose rows and held-out rows are `data`.

    Raises:
        TrainingError: if a proof failed.
    """
    page = write_run_report(
        run,
        given.tokenizer,
        *data,
        given.findings,
        shown,
        seconds,
        replay=given.replay.report if given.replay is not None else None,
    )
    logger.info("report: %s", page)
    if shown.failed:
        raise TrainingError(
            "; ".join(f"{proof.name}: {proof.detail}" for proof in shown.failed) + f" See {page}."
        )


def whole_again(recipe: RunRecipe, trained: Mapping[str, torch.Tensor]) -> Any:
    """Load the model anew into main memory, and give it what was trained in parts."""
    model = method.attach(load_base(recipe, torch.device("cpu")), recipe.adapter)
    unexpected = model.load_state_dict(trained, strict=False).unexpected_keys
    assert not unexpected, unexpected  # or what was trained would be left out in silence
    return model


def leave_the_others(run: Run) -> None:
    """End what the processes had in common; rank 0 goes on alone with the plain model.

    The wrapper goes first: freed after its process group, it waits for a thread that waits
    for it (torch 2.13, gloo).
    """
    run.model = run.accelerator.unwrap_model(run.model)
    run.accelerator.free_memory()
    run.accelerator.end_training()


def make_accelerator(recipe: RunRecipe) -> Any:
    """Devices, ranks and trackers.

    Raises:
        RecipeError: a tracker is not known, or not installed.
    """
    from accelerate import Accelerator
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in recipe.output.report_to:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise RecipeError(f"output.report_to names {name!r}; accelerate knows {known}.")
        if name not in installed:
            raise RecipeError(
                f"output.report_to names {name!r}, which is not installed. "
                f"`pip install {name}`, or leave it out."
            )
    return Accelerator(
        # Without a GPU accelerate knows of several processes only if told that it is a CPU.
        cpu=recipe.training.use_cpu or not torch.accelerator.is_available(),
        mixed_precision="no",  # train/precision.py has it on a CPU too
        log_with=list(recipe.output.report_to) or None,
        project_dir=str(Path(recipe.output.dir) / "runs"),
    )


def load_base(recipe: RunRecipe, device: torch.device, device_map: Any = None) -> Any:
    """Load the model to tune; weights that are trained themselves are float32.

    Args:
        recipe: the run.
        device: where it will run.
        device_map: where the weights go, as for `load_model`; None is all of them to `device`.
    """
    section = recipe.model
    if recipe.training.sharding and device.type != "cpu":  # each process takes its part of it
        device_map = device_map or "cpu"
    if not isinstance(recipe.adapter, FullSection | FreezeSection):
        return load_frozen_model(
            section.name_or_path,
            dtype=section.dtype,
            device=device,
            device_map=device_map,
            compute=section.compute,
            attn_implementation=section.attn_implementation,
            quantization=quantization_of(recipe.adapter),
            may_emulate=recipe.training.fp16,
        )
    return load_model(
        section.name_or_path,
        dtype=torch.float32,
        device_map=device_map or (None if device.type == "cpu" else {"": device}),
        attn_implementation=section.attn_implementation,
    )


def quantization_of(section: AdapterSection) -> Quantization | None:
    """Say how the frozen weights are packed."""
    if not isinstance(section, QloraSection):
        return None
    return Quantization(
        section.quantization_method, section.quantization_bit, section.double_quantization
    )


def seed_everything(seed: int) -> None:
    """Seed what initialises the adapter and draws dropout; the order of rows has its own."""
    random.seed(seed)
    torch.manual_seed(seed)


def load_data(
    recipe: Recipe, template: Template, output: Path
) -> tuple[EncodedData, EncodedData, Sequence[int], Sequence[int]]:
    """Encode the rows to learn and those held out.

    Returns:
        The examples, the held-out examples (the same object when they were split off), and
        the indices of the rows in each.
    """
    section = recipe.data
    options = encode_options(section)
    encode = encode_pairs if recipe.preference.stage == "dpo" else encode_data
    examples = encode(section.train, template, options, quarantine=output / "bad_rows.jsonl")
    logger.info("training rows: %s", examples.report)
    if section.eval:
        held_out = encode(
            section.eval, template, options, quarantine=output / "bad_eval_rows.jsonl"
        )
        logger.info("held-out rows: %s", held_out.report)
        return examples, held_out, range(len(examples)), range(len(held_out))
    if not section.eval_fraction:
        return examples, examples, range(len(examples)), ()
    rows, eval_rows = split_data(examples, section.eval_fraction, recipe.training.seed)
    if not len(rows):
        raise DataError(
            f"data.eval_fraction={section.eval_fraction} of {len(examples)} rows leaves "
            "none to learn. Lower it, or give more rows."
        )
    return examples, examples, rows.tolist(), eval_rows.tolist()


def encode_options(section: DataSection) -> EncodeOptions:
    """Say how the rows of a section become examples."""
    return EncodeOptions(
        max_length=section.max_length,
        overlong=section.overlong,
        bad_rows=section.bad_rows,
        format=section.format,
        columns=section.columns,
        roles=section.roles,
        split=section.split,
    )


def load_replay(recipe: Recipe, template: Template, output: Path) -> EncodedData | None:
    """Encode the general rows to mix in, if there are to be any."""
    section = recipe.data.replayed
    if section is None:
        return None
    quarantine = output / "bad_replay_rows.jsonl"
    replay = encode_data(section.train, template, encode_options(section), quarantine=quarantine)
    logger.info("general rows to mix in: %s", replay.report)
    return replay


def load_general(recipe: Recipe, template: Template, output: Path) -> Sequence[Example]:
    """Encode the rows that show what is forgotten; none where nobody asks."""
    if recipe.checks.forgetting is None:
        return ()
    if not recipe.checks.general_rows:
        return template.encode_batch(list(general_conversations()))
    section = recipe.data.with_rows(recipe.checks.general_rows)
    quarantine = output / "bad_general_rows.jsonl"
    rows = encode_data(section.train, template, encode_options(section), quarantine=quarantine)
    logger.info("general rows to show what is forgotten: %s", rows.report)
    return list(rows)


def lint(recipe: Recipe, template: Template) -> tuple[dict[str, Any], ...] | None:
    """Look for what is wrong with the rows, and say so; None when it is switched off."""
    if not recipe.lint.before_training:
        return None
    report = lint_data(
        recipe.data,
        template,
        recipe.lint,
        general=recipe.checks.general_rows,
        seed=recipe.training.seed,
        pairs=recipe.preference.stage == "dpo",
    )
    counted = [
        f"{sum(by_severity.values())} {check}"
        for check, by_severity in report.counts().items()
        if by_severity["error"] or by_severity["warning"]
    ]
    if counted:
        logger.warning("lint: %s. `glmtune lint` with this recipe shows them", ", ".join(counted))
    else:
        logger.info("lint: nothing to mend in %d rows", report.num_rows)
    return tuple(
        {
            "id": finding.check,
            "severity": finding.severity,
            "place": finding.place,
            "excerpt": finding.excerpt,
            "message": finding.message,
        }
        for finding in report.findings
    )


def minimised(section: TrainingSection, loss: LossFunction) -> LossFunction:
    """Give what training minimises; held-out rows are judged without smoothing.

    Raises:
        RecipeError: a loss of one's own is to be smoothed.
    """
    smoothing = section.label_smoothing_factor
    if not smoothing:
        return loss
    if loss is not cross_entropy_sum:
        raise RecipeError(
            f"training.label_smoothing_factor={smoothing} smooths the cross-entropy, and `loss=` "
            "gives another loss. Leave one of them out."
        )
    return partial(smoothed_cross_entropy_sum, label_smoothing=smoothing)


def plan_batches(
    recipe: RunRecipe, rows: Sequence[int], accelerator: Any, mixed_in: Sequence[int] = ()
) -> BatchPlan:
    """Say which rows each step takes.

    Args:
        recipe: the run.
        rows: to learn.
        accelerator: knows of the processes.
        mixed_in: general rows to draw from; fewer than wanted are all taken.
    """
    section = recipe.training
    num_replayed = 0
    if isinstance(recipe, Recipe) and recipe.data.replay is not None:
        wanted = max(1, round(recipe.data.replay.ratio * len(rows)))
        num_replayed = min(wanted, len(mixed_in))
        if num_replayed < wanted:
            logger.warning(
                "data.replay.ratio asks for %d general rows an epoch, and there are %d; each is "
                "learned once an epoch",
                *(wanted, num_replayed),
            )
    is_preference = isinstance(recipe, Recipe) and recipe.preference.stage == "dpo"
    sides = 2 if is_preference else 1  # both answers of a pair go through the model
    return BatchPlan(
        rows,
        rows_per_step=(
            section.per_device_train_batch_size
            * section.gradient_accumulation_steps
            * accelerator.num_processes
        ),
        max_tokens=section.per_device_train_batch_size * recipe.data.max_length * sides,
        seed=section.seed,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        replay=mixed_in,
        num_replayed=num_replayed,
    )


def count_steps(recipe: RunRecipe, plan: BatchPlan) -> int:
    """Optimizer steps of the whole run; none where nothing is trained."""
    if isinstance(recipe.adapter, NoneSection):
        return 0
    if recipe.training.max_steps is not None:
        return recipe.training.max_steps
    return max(1, round(plan.steps_per_epoch * recipe.training.num_train_epochs))


def identify(
    recipe: RunRecipe, template: Template, examples: EncodedData, eval_examples: EncodedData
) -> dict[str, str]:
    """What must not change between a run and its resumption."""
    decides = recipe.model_dump(mode="json", exclude={"output", "checks", "lint"})
    for key in ("logging_steps", "save_strategy", "save_steps", "save_total_limit", "use_cpu"):
        decides["training"].pop(key)  # these change what is written, not what is learned
    file = recipe.training.deepspeed
    return {
        "recipe": _digest(json.dumps(decides, sort_keys=True)),
        **({"DeepSpeed's file": _digest(Path(file).read_text("utf-8"))} if file else {}),
        "template or tokenizer": template.fingerprint[:16],
        "training data": examples.key[:16],
        "held-out data": eval_examples.key[:16],
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe_parameters(model: Any) -> str:
    """The line that peft prints, with more digits."""
    trainable, total = method.count_parameters(model)
    return (
        f"trainable params: {trainable:,} || all params: {total:,} || "
        f"trainable%: {100 * trainable / total:.4f}"
    )


def write_recipe(recipe: RunRecipe, output: Path) -> None:
    """Write what was resolved beside what it makes."""
    write_atomically(output / RECIPE, recipe.to_yaml())


def start_trackers(accelerator: Any, recipe: RunRecipe) -> None:
    """Tell the trackers about the run, with the recipe as its configuration."""
    flat = {
        f"{section}.{key}": value if isinstance(value, int | float | str | bool) else str(value)
        for section, values in recipe.model_dump(mode="json").items()
        for key, value in values.items()
    }
    accelerator.init_trackers(recipe.output.run_name or "glmtune", config=flat)


def summarise(run: Run, is_finished: bool, shown: Finish) -> Result:
    """Say what came of a run."""
    lines = read_metrics(run.metrics.path)
    return Result(
        adapter_dir=run.output,
        num_steps=run.state.step,
        is_finished=is_finished,
        loss=_last(lines, "loss"),
        eval_loss=_last(lines, "eval_loss"),
        general_loss=_last(lines, METRIC),
        base_general_loss=run.base_general_loss,
        proofs=shown.proofs,
    )


def _last(lines: Sequence[dict[str, Any]], key: str) -> float | None:
    return next((line[key] for line in reversed(lines) if line.get(key) is not None), None)
