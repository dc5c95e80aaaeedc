"""Measure a few real steps of a run on its heaviest pack; the result is discarded."""

import logging
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from glmtune.errors import TrainingError
from glmtune.machine import peak_memory_bytes
from glmtune.model.load import load_tokenizer
from glmtune.prove.metrics import METRICS, read_metrics
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.template.select import template_for
from glmtune.train.before import Before
from glmtune.train.load_model import load_base
from glmtune.train.load_rows import encode_rows
from glmtune.train.plan.workload import describe_workload, row_lengths_of
from glmtune.train.prepare import prepare_run
from glmtune.train.run import train_and_prove
from glmtune.train.training import Task

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
    # It warns about a missing kernel of the hub even if nothing is quantized.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def run_probe_steps(recipe: Recipe) -> Probe:
    """Run a few steps in this process; the peak is that of the process since its start.

    Raises:
        GlmtuneError: as in training.
    """
    with TemporaryDirectory() as folder:
        changed = [*SHORTENED, f"output.dir={folder}/run"]
        short = build_recipe(recipe.model_dump(mode="json"), changed)
        output = Path(short.output.dir)
        processes = prepare_run(short, resume=False)
        tokenizer = load_tokenizer(short.model.name_or_path, short.model.add_tokens)
        template = template_for(tokenizer, short.data.layout)
        data = encode_rows(short, tokenizer, template, output)
        heavy = describe_workload(recipe, row_lengths_of(data)).rows
        model = load_base(short, processes.device)
        train_and_prove(short, processes, model, replace(data, rows=heavy), Task(), Before())
        lines = read_metrics(output / METRICS)
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    return Probe(peak_memory_bytes(), max(speeds))
