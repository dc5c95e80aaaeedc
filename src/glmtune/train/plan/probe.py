"""Measure a few real steps of a run on its heaviest pack; the result is discarded."""

import logging
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from tempfile import TemporaryDirectory

from glmtune.errors import TrainingError
from glmtune.machine import peak_memory_bytes
from glmtune.model.load import load_tokenizer
from glmtune.prove.metrics import METRICS, read_metrics
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.template.select import template_for
from glmtune.train.plan.workload import describe_workload, row_lengths_of
from glmtune.train.run import Ingredients, begin, carry_out, load_base, load_data

STEPS = 3
SHORTENED = (
    f"training.max_steps={STEPS}",
    "training.logging_steps=1",
    "training.save_strategy=no",
    "training.eval_strategy=no",
    "checks.sample_steps=0",
    "checks.stop_prompts=0",
    "output.report_to=none",
)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a few steps on the heaviest pack took.

    Attributes:
        peak_bytes: of the process from start to end, or of the GPU.
        tokens_per_second: of the fastest step.
    """

    peak_bytes: int
    tokens_per_second: float


def probe(recipe: Recipe) -> Probe:
    """Run a few steps in a new process.

    Raises:
        DataError: the data is not available.
        GlmtuneError: as in training.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_quiet) as executor:
        try:
            return executor.submit(run_probe_steps, recipe).result()
        except BrokenProcessPool as error:
            raise TrainingError(
                "the probe was killed from outside, usually because the machine ran out of memory. "
                "Make the run smaller; the plan without --probe lists changes that do."
            ) from error


def _quiet() -> None:
    warnings.simplefilter("ignore")  # libraries about each other, as on the command line
    logging.getLogger("glmtune").setLevel(logging.ERROR)


def run_probe_steps(recipe: Recipe) -> Probe:
    """Run a few steps in this process; the peak is that of the process since its start.

    Raises:
        GlmtuneError: as in training.
    """
    with TemporaryDirectory() as folder:
        changed = [*SHORTENED, f"output.dir={folder}/run"]
        short = build_recipe(recipe.model_dump(mode="json"), changed)
        accelerator, output = begin(short, resume=False)
        tokenizer = load_tokenizer(short.model.name_or_path)
        template = template_for(tokenizer, short.data.layout)
        examples, eval_examples, rows, eval_rows = load_data(short, template, output)
        heavy = describe_workload(recipe, row_lengths_of(examples, rows)).rows
        model = load_base(short, accelerator.device)
        given = (tokenizer, template, examples, eval_examples, heavy, eval_rows, model)
        carry_out(short, Ingredients(*given), accelerator)
        lines = read_metrics(output / METRICS)
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    return Probe(peak_memory_bytes(), max(speeds))
