"""The output folder: what a run writes there, and checks that no earlier run is lost.

adapter_config.json, adapter_model.safetensors   peft's adapter format; or the original's
config.json, pytorch_model.bin                   for a P-Tuning v2 prefix; or a full model,
config.json, model*.safetensors                  where the weights themselves were trained
tokenizer files, chat_template.jinja,            how prompts are built, for glmtune and for tools
generation_config.json, glmtune.json             that know nothing of it
README.md                                        a model card
recipe.yaml                                      every value of the run, to repeat it
metrics.jsonl, loss.svg, runs/                   curves; runs/ is for TensorBoard
report.html, report.json                         what the run did and proved
checkpoint-N/                                    to resume, each an adapter too
bad_rows.jsonl                                   rows that were skipped, if asked for
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.errors import OutputError
from glmtune.files import (
    explain_write_error,
    remove_folder,
    remove_leftovers,
    rename,
    write_atomically,
    written_folder,
)
from glmtune.methods import method
from glmtune.model.card import seal
from glmtune.model.chatglm.stock_files import write_stock_files
from glmtune.prove.card import render_card
from glmtune.prove.folder_card import README, run_facts
from glmtune.prove.metrics import METRICS, MetricsFile, cut_metrics, read_metrics
from glmtune.recipe.recipe import RECIPE, RunRecipe
from glmtune.template.base import Template
from glmtune.train.run_folder import check_folder, checkpoints, locked, run_files


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The output folder of a run."""

    path: Path

    @property
    def metrics(self) -> MetricsFile:
        """The file of metrics."""
        return MetricsFile(self.path / METRICS)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the lines of metrics so far."""
        return read_metrics(self.path / METRICS)

    def begin(self, recipe: RunRecipe, step: int, *, clear: bool) -> None:
        """Write the resolved recipe, and keep the metrics up to the step where the run resumes.

        Args:
            recipe: of the run.
            step: steps done so far.
            clear: delete what an earlier run wrote.
        """
        if clear:
            clear_run(self.path)
        remove_leftovers(self.path)
        write_atomically(self.path / RECIPE, recipe.to_yaml())
        cut_metrics(self.path / METRICS, step)


def prepare_output(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Make the output folder, and refuse one whose contents would be lost.

    Raises:
        OutputError: it is a file, cannot be written, or holds something and neither
            `resume` nor `overwrite` was asked for.
    """
    check_folder(output, resume=resume, overwrite=overwrite)
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(explain_write_error(output, error)) from error


@contextmanager
def sole_run(recipe: RunRecipe, *, is_main: bool, resume: bool) -> Iterator[None]:
    """Keep other runs out of the output folder, which is checked again: one may just have ended.

    Raises:
        OutputError: another run is writing into the folder, or has written into it.
    """
    if not is_main:
        yield
        return
    output = Path(recipe.output.dir)
    with locked(output):
        check_folder(output, resume=resume, overwrite=recipe.output.overwrite)
        yield


def clear_run(output: Path) -> None:
    """Delete what an earlier run wrote, and nothing else."""
    for path in run_files(output):
        try:
            path.unlink()
        except OSError as error:
            raise OutputError(explain_write_error(path, error)) from error
    for folder in checkpoints(output):
        remove_folder(folder)
    shutil.rmtree(output / "runs", ignore_errors=True)


def publish(
    model: Any,
    output: Path,
    template: Template,
    tokenizer: Any,
    recipe: RunRecipe,
    lines: Sequence[Mapping[str, Any]],
) -> None:
    """Move what was trained into the output folder, with tokenizer and README.md.

    The files move in one by one, the configuration last, so that a folder with a configuration
    is a complete adapter or model.

    Args:
        model: after training.
        output: the folder.
        template, tokenizer: of the prompts.
        recipe: of the run.
        lines: its metrics.
    """
    facts = run_facts(recipe, lines, is_adapter=method.is_adapted(model))
    with written_folder(output / "adapter") as partial:
        method.save(model, partial, template)
        write_stock_files(partial, tokenizer, model.config, layout=recipe.data.layout)
        seal(partial)
        (partial / README).write_text(render_card(facts), encoding="utf-8")
    finished = output / "adapter"
    names = sorted(path.name for path in finished.iterdir())
    last = "config.json" if "config.json" in names else "adapter_config.json"
    for name in sorted(names, key=lambda name: name == last):
        try:
            rename(finished / name, output / name)
        except OSError as error:
            raise OutputError(explain_write_error(output / name, error)) from error
    with suppress(OSError):  # what counts has moved; `--resume` removes an empty folder
        finished.rmdir()
