"""The functions of `import glmtune`: what the commands do, for a script or a notebook.

    run = glmtune.fine_tune("nano", rows, r=8, num_train_epochs=2)
    run.chat("你好").text

Each makes a recipe or reads its arguments, calls the function of a room that the command of the
same name calls, and returns what that returns. Nothing is printed except progress; warnings about
what libraries deprecate in each other are off while a function runs.
"""

import dataclasses
import logging
import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, get_args

from glmtune.errors import CheckpointError, RecipeError
from glmtune.gc_pause import loading
from glmtune.recipe.choices import LAYOUTS, Compute, Dtype, Layout
from glmtune.recipe.keywords import free_folder, names_folder, recipe_for
from glmtune.recipe.recipe import Recipe

if TYPE_CHECKING:
    from glmtune.data.lint.report import LintReport
    from glmtune.kernels.chunked_loss import LossFunction
    from glmtune.run_handle import Run
    from glmtune.train.callbacks import Callback
    from glmtune.train.plan.forecast import Plan
    from glmtune.use.chat import ChatSession, Reply
    from glmtune.use.evaluate.results import Evaluation
    from glmtune.use.export.run import Exported
    from glmtune.use.generate import Sampling

P = ParamSpec("P")
T = TypeVar("T")
NOTHING_WRITTEN = {"output.dir": os.devnull}
SOURCES = ("train", "eval", "data.train", "data.eval")  # keys that take rows in memory


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence what a user cannot fix: deprecations, progress bars of loading, missing kernels."""
    noisy = logging.getLogger("bitsandbytes")  # it warns even if nothing is quantized
    level = noisy.level
    with warnings.catch_warnings():
        for kind in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        # tqdm, in a notebook without the widgets that its bars would be.
        warnings.filterwarnings("ignore", message="IProgress not found")
        noisy.setLevel(logging.ERROR)
        try:
            yield
        finally:
            noisy.setLevel(level)


@contextmanager
def _without_loading_bars() -> Iterator[None]:
    """Switch off the bars of transformers, which stay in a notebook as lines of their own."""
    from transformers.utils import logging as transformers_logging

    were_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if were_shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _quiet(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function of the library without noise, and with PyTorch loaded quickly."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with quiet_libraries():
            with loading():
                import transformers  # noqa: F401
            with _without_loading_bars():
                return function(*args, **kwargs)

    return run


def make_recipe(
    start: Recipe | str | Path, rows: Any = None, keys: Mapping[str, Any] | None = None
) -> Recipe:
    """Make a recipe from a name, rows and keywords, as `fine_tune`, `lint` and `plan` do.

    Args:
        start: as for `fine_tune`.
        rows: as for `fine_tune`.
        keys: of the recipe; those that name rows take them in memory too.

    Raises:
        DataError: rows cannot be used.
        RecipeError: a key is unknown or has a wrong value.
    """
    from glmtune.data.memory_rows import as_sources

    given = dict(keys or {})
    for name in SOURCES:
        if given.get(name) is not None:
            given[name] = as_sources(given[name], name)
    return recipe_for(start, None if rows is None else as_sources(rows), given)


@_quiet
def fine_tune(
    model: Recipe | str | Path,
    rows: Any = None,
    *,
    resume: bool = False,
    loss: "LossFunction | None" = None,
    callbacks: "Sequence[Callback]" = (),
    **keys: Any,
) -> "Run":
    """Fine-tune a model on rows, as `glmtune train` does.

    Args:
        model: a model (`nano`, a folder or a hub id), whose recipe has the default of every key; a
            recipe of the package or a YAML file by its name; or a `Recipe`.
        rows: what is learned: a path or hub id, a list of dicts, a `datasets.Dataset`, a
            `pandas.DataFrame`, or a list of such sources. None takes those of the recipe.
        resume: continue from the newest intact checkpoint; needs `dir`.
        loss: what to minimize instead of the cross-entropy: (logits, targets) -> a sum.
        callbacks: called with each line of metrics; one that returns True ends the run.
        keys: keys of the recipe: `r=8`, `num_train_epochs=2`, `eval=rows`, `dir="out/mine"`.
            Without `dir` the run goes to the first of out/NAME, out/NAME-2, ... that is free.

    Returns:
        The run: `run.chat("...")`, `run.report()`, `run.merge(...)`. A notebook shows its verdict,
        curve and answers.

    Raises:
        GlmtuneError: one of its children, for everything that the user can fix.
    """
    from glmtune.kernels.chunked_loss import cross_entropy_sum
    from glmtune.run_handle import Run
    from glmtune.train.run import fine_tune as train

    recipe = make_recipe(model, rows, keys)
    if not names_folder(model, keys):
        if resume:
            raise RecipeError(
                "resume=True needs the folder of the run that is continued. "
                f"Give it, such as dir={recipe.output.dir!r}."
            )
        folder = free_folder(Path(recipe.output.dir))
        recipe = recipe_for(recipe, None, {"output.dir": str(folder)})
    if loss is not None and recipe.is_preference:
        raise RecipeError(
            f"preference.stage={recipe.preference.stage} has a loss of its own, preference.loss, "
            "and `loss=` is another. Leave one of them out."
        )
    result = train(recipe, resume=resume, loss=loss or cross_entropy_sum, callbacks=callbacks)
    return Run(result.adapter_dir)


@_quiet
def load(
    model: str | Path,
    adapter: str | Path | None = None,
    *,
    layout: Layout | None = None,
    dtype: str = "auto",
    compute: Compute | None = None,
    system: str | None = None,
    tools: Sequence[Any] | None = None,
    any_template: bool = False,
    **sampling: Any,
) -> "ChatSession":
    """Load a model, and an adapter over it, and start a conversation, as `glmtune chat` does.

    Args:
        model: `nano`, a folder or a hub id; or an adapter, which names its base.
        adapter: a folder that `fine_tune` wrote.
        layout: how prompts are built; None takes that of the adapter, or "official".
        dtype: of the weights, or "auto".
        compute: "int8" multiplies in int8, "fp8" in float8 on a GPU that can.
        system: a system message.
        tools: declarations of tools, as ChatGLM3 takes them.
        any_template: allow an adapter that was trained on other prompts.
        sampling: `max_new_tokens`, `temperature` (0 is greedy), `top_p`, `top_k`,
            `repetition_penalty`, `seed`.

    Returns:
        A session: `session.reply("你好").text` answers and remembers; `session.stream("你好")`
        gives the answer piece by piece; `session.reset()` forgets.

    Raises:
        CheckpointError: a folder is missing or damaged, or the adapter is of another model.
        RecipeError: an option is unknown or out of range.
        TemplateError: the adapter was trained on other prompts.
    """
    from glmtune.use.chat import system_messages
    from glmtune.use.open import open_session

    return open_session(
        str(model),
        adapter,
        layout=_checked_layout(layout),
        dtype=_checked_dtype(dtype),
        compute=_checked_compute(compute),
        system=system_messages(system, tools),
        sampling=_sampling(sampling),
        any_template=any_template,
    )


def chat(
    model: str | Path, text: str, adapter: str | Path | None = None, **options: Any
) -> "Reply":
    """Answer one message. To ask a model more than once, `load` it once.

    Args:
        model, adapter: as for `load`.
        text: of the user's message.
        options: as for `load`.

    Returns:
        The reply: `reply.text`, and `reply.messages` with calls of tools.

    Raises:
        GlmtuneError: as `load`; or the message is too long for the model.
    """
    return load(model, adapter, **options).reply(text)


@_quiet
def predict(
    model: str | Path,
    rows: Any,
    *,
    adapter: str | Path | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    layout: Layout | None = None,
    dtype: str = "auto",
    batch_size: int = 32,
    any_template: bool = False,
    columns: Mapping[str, str] | None = None,
    **sampling: Any,
) -> list[dict[str, Any]]:
    """Answer rows, many at once, as `glmtune predict` does.

    Args:
        model, adapter, layout, dtype, any_template: as for `load`.
        rows: as for `fine_tune`, with or without answers.
        output: a JSON Lines file to write; None writes none.
        resume: keep the answers of an interrupted run in `output`.
        overwrite: replace an existing `output`.
        batch_size: rows decoded together; fewer need less memory.
        columns: our field -> the column of the rows.
        sampling: as for `load`, but greedy unless a temperature is given.

    Returns:
        A dict for each row, in order: `row`, `prompt`, `answer`, whether it `ended` by itself, its
        number of `tokens`, and as `reference` the answer in the row.

    Raises:
        GlmtuneError: a model or a row cannot be used, or `output` cannot be written.
    """
    from glmtune.use.answer_rows import open_rows
    from glmtune.use.predict import check_output

    path = None if output is None else Path(output)
    if path is not None:
        check_output(path, resume=resume, overwrite=overwrite)
    keys = {**NOTHING_WRITTEN, "data.bad_rows": "fail", "data.columns": dict(columns or {})}
    recipe = make_recipe(str(model), rows, keys)
    opened = open_rows(
        recipe.model.name_or_path,
        recipe.data,
        _sampling({"temperature": 0.0, **sampling}),
        adapter=None if adapter is None else Path(adapter),
        layout=_checked_layout(layout),
        dtype=_checked_dtype(dtype),
        any_template=any_template,
    )
    if path is None:
        lines = {line["row"]: line for line in opened.answers(batch_size=batch_size)}
    else:
        file = opened.file(path, resume=resume)
        file.write(opened.answers(done=file.lines, batch_size=batch_size))
        lines = file.lines
    return [lines[row] for row in sorted(lines)]


@_quiet
def evaluate(
    model: str | Path,
    rows: Any,
    *,
    metrics: Sequence[str] = (),
    adapter: str | Path | None = None,
    with_base: bool = False,
    output: str | Path | None = None,
    overwrite: bool = False,
    layout: Layout | None = None,
    dtype: str = "auto",
    batch_size: int = 32,
    any_template: bool = False,
    columns: Mapping[str, str] | None = None,
    **sampling: Any,
) -> "Evaluation":
    """Answer rows and score the answers against those in the rows, as `glmtune evaluate` does.

    Args:
        model, adapter, layout, dtype, any_template: as for `load`.
        rows: as for `fine_tune`, each with an answer.
        metrics: names such as "exact" and "rouge-l", or FILE.py:FUNCTION; empty takes the default.
        with_base: also evaluate the base without the adapter, and compare the two.
        output: a JSON file of the result, the answers next to it; None writes none.
        overwrite: replace an existing `output`.
        batch_size, columns, sampling: as for `predict`.

    Returns:
        `scores`, and with `with_base` those of the `base` and the `differences`, each by metric;
        a score has a `value` and its interval of 95 %, from `low` to `high`.

    Raises:
        GlmtuneError: a model, a row or a metric cannot be used, or `output` cannot be written.
    """
    from glmtune.use.evaluate.answers import DEFAULT_METRICS, answers_task, choose_metrics
    from glmtune.use.evaluate.run import evaluate as run_evaluation
    from glmtune.use.evaluate.run import open_model
    from glmtune.use.evaluate.task import ModelChoice

    keys = {**NOTHING_WRITTEN, "data.columns": dict(columns or {})}
    recipe = make_recipe(str(model), rows, keys)
    choice = ModelChoice(
        recipe.model.name_or_path,
        None if adapter is None else str(adapter),
        _checked_layout(layout),
        _checked_dtype(dtype),
        any_template,
        batch_size,
    )
    opened = open_model(choice)
    task = answers_task(
        recipe.data,
        opened.template,
        choose_metrics([*(metrics or DEFAULT_METRICS)]),
        sampling=_sampling({"temperature": 0.0, **sampling}),
        context_length=opened.context_length,
    )
    with TemporaryDirectory() as folder:
        target = Path(folder) / "scores.json" if output is None else Path(output)
        return run_evaluation(opened, task, target, with_base=with_base, overwrite=overwrite)


@_quiet
def merge(
    adapter: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    layout: Layout | None = None,
    dtype: str = "auto",
    max_shard_size: str = "2GB",
    prove: bool = True,
) -> "Exported":
    """Merge an adapter into its base, as `glmtune merge` does.

    Args:
        adapter: a folder that `fine_tune` wrote.
        output: a folder to make.
        base, layout, dtype, max_shard_size, prove: as for `export`.

    Returns:
        The folder, its proofs, and the command that uses it.

    Raises:
        GlmtuneError: as `export`; or it is a complete model already.
    """
    from glmtune.methods import method
    from glmtune.use.export.run import export as write

    folder = Path(adapter).expanduser()
    if not method.is_adapter(folder):
        if (folder / "config.json").is_file():
            again = ["glmtune", "export", str(adapter), "--to", "chatglm", "-o", str(output)]
            raise CheckpointError(
                f"{adapter} is a complete model, so there is nothing to merge. Use it as it is, or "
                f"write it again: {shlex.join(again)}"
            )
        method.check_folder(folder)  # says what is missing
    return write(
        adapter,
        output,
        base=base,
        layout=_checked_layout(layout),
        dtype=_checked_dtype(dtype),
        max_shard_size=max_shard_size,
        prove=prove,
    )


@_quiet
def export(
    source: str | Path,
    output: str | Path,
    to: str = "chatglm",
    *,
    base: str | None = None,
    layout: Layout | None = None,
    dtype: str = "auto",
    max_shard_size: str = "2GB",
    quantize: str = "",
    prove: bool = True,
) -> "Exported":
    """Write a model or an adapter for another tool, as `glmtune export` does.

    Args:
        source: a folder of an adapter, or a folder or hub id of a model.
        output: a folder to make.
        to: chatglm, glm, lora-glm, vllm, gguf, lora-gguf or ollama.
        base: of the adapter; None takes the one that the adapter names.
        layout: of the prompts; None takes that of the folder.
        dtype: of the weights; "auto" is that of the base.
        max_shard_size: of a file of weights.
        quantize: of gguf and ollama, the type of matrices, such as q8_0.
        prove: open the result again and compare its answers with the source.

    Returns:
        The folder, its proofs, and the command that uses it.

    Raises:
        GlmtuneError: a folder is missing or damaged, the format cannot hold what it has, or the
            result answers otherwise.
    """
    from glmtune.use.export.run import export as write

    return write(
        source,
        output,
        to,
        base=base,
        layout=_checked_layout(layout),
        dtype=_checked_dtype(dtype),
        max_shard_size=max_shard_size,
        quantize=quantize,
        prove=prove,
    )


def lint(
    rows: Any,
    model: Recipe | str | Path | None = None,
    *,
    pairs: bool | None = None,
    **keys: Any,
) -> "LintReport":
    """Find what is wrong with rows before training, as `glmtune lint` does.

    Args:
        rows: as for `fine_tune`; None takes those of a recipe.
        model: whose tokenizer measures the rows, or a recipe; without one, checks that need
            tokens are skipped.
        pairs: whether rows have two answers; None finds out.
        keys: of the recipe, such as `max_length=512` or `eval=rows`.

    Returns:
        `report.findings`, `report.count("error")`, `report.lengths`.

    Raises:
        GlmtuneError: a source or a key cannot be used. A bad row is a finding.
    """
    if rows is None and model is None:
        raise RecipeError("there are no rows to check. Give rows, or a recipe as model=.")
    with quiet_libraries():
        return lint_rows(make_recipe(model or "", rows, {**NOTHING_WRITTEN, **keys}), pairs)


def lint_rows(
    recipe: Recipe, pairs: bool | None, progress: Callable[[int], None] | None = None
) -> "LintReport":
    """Check the rows of a recipe; those checks that need tokens only where it names a model."""
    from glmtune.data.lint.run import lint_data

    template = None
    if recipe.model.name_or_path:
        with loading():
            from glmtune.model.load import load_tokenizer
            from glmtune.template.select import template_for

        template = template_for(load_tokenizer(recipe.model.name_or_path), recipe.data.layout)
    return lint_data(
        recipe.data,
        template,
        recipe.lint,
        general=recipe.checks.general_rows,
        seed=recipe.training.seed,
        pairs=recipe.is_preference or pairs,
        labeled=recipe.preference if recipe.has_labels else None,
        progress=progress,
    )


@_quiet
def plan(
    model: Recipe | str | Path, rows: Any = None, *, device: Sequence[str] = (), **keys: Any
) -> "Plan":
    """Estimate the memory and the time of a run, as `glmtune plan` does; no weights are read.

    Args:
        model, rows, keys: as for `fine_tune`.
        device: GPUs to estimate for too, by name or memory, such as ["4090", "24GB"].

    Returns:
        `plan.targets`, each with `fits`, `memory` and the `changes` that would make it fit;
        `plan.run_seconds`.

    Raises:
        GlmtuneError: a key, the model's configuration or a row cannot be used.
    """
    from glmtune.train.plan.forecast import make_plan

    return make_plan(make_recipe(model, rows, keys), list(device))


_RANGES: Mapping[str, tuple[float, float, str]] = {
    "max_new_tokens": (1, 2**31, "a whole number from 1"),
    "temperature": (0, 1e6, "a number from 0, which is greedy"),
    "top_p": (0.01, 1, "a number from 0.01 to 1"),
    "top_k": (0, 2**31, "a whole number from 0, which is all"),
    "repetition_penalty": (0.01, 1e6, "a number from 0.01; 1 is none"),
    "seed": (0, 2**63, "a whole number from 0, or None"),
}


def _sampling(options: Mapping[str, Any]) -> "Sampling":
    """Check the options of sampling.

    Raises:
        RecipeError: one is unknown or out of range.
    """
    from glmtune.use.generate import Sampling

    types = {field.name: field.type for field in dataclasses.fields(Sampling)}
    for name, value in options.items():
        if name not in _RANGES:
            raise RecipeError(
                f"{name}={value!r}: is not an option here. Those of sampling are "
                f"{', '.join(_RANGES)}."
            )
        low, high, expected = _RANGES[name]
        is_whole = "int" in str(types[name])
        kinds = int if is_whole else int | float
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if not (is_number and low <= value <= high) and not (name == "seed" and value is None):
            raise RecipeError(f"{name}={value!r}: expected {expected}.")
    return Sampling(**options)


def _checked_layout(layout: str | None) -> Layout | None:
    for known in LAYOUTS:
        if layout == known:
            return known
    if layout is None:
        return None
    raise RecipeError(f"layout={layout!r}: expected one of {', '.join(LAYOUTS)}.")


def _checked_compute(compute: str | None) -> Compute | None:
    for known in get_args(Compute):
        if compute == known:
            return cast("Compute", known)
    if compute is not None:
        raise RecipeError(
            f"compute={compute!r}: expected one of {', '.join(get_args(Compute))}, or None."
        )
    return None


def _checked_dtype(dtype: str) -> Dtype:
    for known in get_args(Dtype):
        if dtype == known:
            return cast("Dtype", known)
    raise RecipeError(f"dtype={dtype!r}: expected one of {', '.join(get_args(Dtype))}.")
