"""The run itself for a few steps on its heaviest pack, measured and thrown away."""

import logging
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from glmtune.errors import TrainingError
from glmtune.model.load import load_tokenizer
from glmtune.prove.metrics import peak_memory_bytes, read_metrics
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.template.select import template_for
from glmtune.train.before import Before
from glmtune.train.load_model import load_base
from glmtune.train.load_rows import encode_rows
from glmtune.train.output import METRICS
from glmtune.train.plan.workload import describe_workload, rows_of
from glmtune.train.prepare import prepare_run
from glmtune.train.run import train_and_prove
from glmtune.train.training import Task

STEPS = 3
SHORTENED = (
    f"training.max_steps={STEPS}",
    *("training.logging_steps=1", "training.save_strategy=no", "training.eval_strategy=no"),
    *("checks.sample_steps=0", "checks.stop_prompts=0", "output.report_to=none"),
)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a few steps on the heaviest pack really took.

    Attributes:
        peak_bytes: of the process from its start to its end, or of the GPU.
        tokens_per_second: of the fastest step.
    """

    peak_bytes: int
    tokens_per_second: float


def probe(recipe: Recipe) -> Probe:
    """Run some steps in a process of its own.

    Raises:
        DataError: the data is not here.
        GlmtuneError: as in training.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_quiet) as fresh:
        try:
            return fresh.submit(run_some_steps, recipe).result()
        except BrokenProcessPool as error:
            raise TrainingError(
                "the probe was killed from outside, mostly for want of memory. Make the run "
                "smaller, as the plan says without --probe."
            ) from error


def _quiet() -> None:
    warnings.simplefilter("ignore")  # libraries among themselves, as on the command line
    logging.getLogger("glmtune").setLevel(logging.ERROR)


def run_some_steps(recipe: Recipe) -> Probe:
    """Run some steps in this process; its peak counts from its start.

    Raises:
        GlmtuneError: as in training.
    """
    with TemporaryDirectory() as folder:
        changed = [*SHORTENED, f"output.dir={folder}/run"]
        short = build_recipe(recipe.model_dump(mode="json"), changed)
        output = Path(short.output.dir)
        processes = prepare_run(short, resume=False)
        tokenizer = load_tokenizer(short.model.name_or_path)
        template = template_for(tokenizer, short.data.layout)
        data = encode_rows(short, tokenizer, template, output)
        heavy = describe_workload(recipe, rows_of(data.examples, data.rows)).rows
        model = load_base(short, processes.device)
        train_and_prove(short, processes, model, replace(data, rows=heavy), Task(), Before())
        lines = read_metrics(output / METRICS)
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    return Probe(peak_memory_bytes(), max(speeds))
