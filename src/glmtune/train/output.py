"""The output folder: what a run writes there, and how nothing in it is lost by surprise.

adapter_config.json, adapter_model.safetensors   peft's adapter format; or the original's
config.json, pytorch_model.bin                   for a P-Tuning v2 prefix; or a full model,
config.json, model*.safetensors                  where the weights themselves were trained
tokenizer files, glmtune.json                    how prompts are built
README.md                                        a model card
recipe.yaml                                      every value of the run, to repeat it
metrics.jsonl, loss.png, runs/                   curves; runs/ is for TensorBoard
checkpoint-N/                                    to resume, each an adapter too
bad_rows.jsonl                                   rows that were skipped, if asked for
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import glmtune
from glmtune.errors import OutputError
from glmtune.files import explain_write_error, write_atomically, written_folder
from glmtune.methods import adapter_folder, method, ptuning_v2, virtual_tokens
from glmtune.prove.metrics import MetricsFile, cut_metrics, read_metrics
from glmtune.recipe.recipe import RunRecipe
from glmtune.template.base import Template
from glmtune.train.checkpoint import checkpoints

METRICS = "metrics.jsonl"
RECIPE = "recipe.yaml"
_RUN_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    virtual_tokens.ENCODER,
    adapter_folder.CARD,
    "README.md",
    RECIPE,
    METRICS,
    "loss.png",
    "report.html",
    "report.json",
)


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
        write_atomically(self.path / RECIPE, recipe.to_yaml())
        cut_metrics(self.path / METRICS, step)


def prepare_output(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Make the output folder, and refuse one whose contents would be lost.

    Raises:
        OutputError: it is a file, cannot be written, or holds something and neither
            `resume` nor `overwrite` was asked for.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file, expected a folder. Choose another output.dir.")
    held = [path.name for path in run_files(output)]
    held += [path.name for path in checkpoints(output)] if output.is_dir() else []
    if held and not (resume or overwrite):
        raise OutputError(
            f"{output}: already holds a run ({', '.join(held[:3])}). Continue it with --resume, "
            "choose another output.dir, or replace it with output.overwrite=true."
        )
    if (output / "config.json").exists() and not (output / adapter_folder.CARD).exists():
        raise OutputError(
            f"{output}: holds a model that glmtune did not write. Choose another output.dir."
        )
    if resume and overwrite:
        raise OutputError(
            "--resume and output.overwrite=true contradict each other: one keeps the run, the "
            "other replaces it. Give one of them."
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(explain_write_error(output, error)) from error


def run_files(output: Path) -> list[Path]:
    """List the files of a run that are there; those of a model only beside our glmtune.json."""
    found = [output / name for name in _RUN_FILES]
    if (output / adapter_folder.CARD).is_file():
        found += [output / name for name in ("config.json", "generation_config.json")]
        found += [output / ptuning_v2.WEIGHTS, *weights(output)]
    return [path for path in found if path.exists()]


def weights(output: Path) -> list[Path]:
    """List the weights of a full model, and their index."""
    return [*output.glob("model*.safetensors"), *output.glob("model.safetensors.index.json")]


def clear_run(output: Path) -> None:
    """Delete what an earlier run wrote, and nothing else."""
    for path in run_files(output):
        path.unlink()
    for folder in [*checkpoints(output), output / "runs"]:
        shutil.rmtree(folder, ignore_errors=True)


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
    is_adapted = method.is_adapted(model)
    with written_folder(output / "adapter") as partial:
        method.save(model, partial, template)
        tokenizer.save_pretrained(str(partial))
        card = adapter_card(recipe, lines) if is_adapted else model_card(recipe, lines)
        (partial / "README.md").write_text(card, encoding="utf-8")
    finished = output / "adapter"
    names = sorted(path.name for path in finished.iterdir())
    last = "config.json" if "config.json" in names else "adapter_config.json"
    for name in sorted(names, key=lambda name: name == last):
        (finished / name).replace(output / name)
    finished.rmdir()


def _facts(recipe: RunRecipe, lines: Sequence[Mapping[str, Any]]) -> str:
    """Describe a run in a paragraph."""
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    held_out = [line["eval_loss"] for line in lines if line.get("eval_loss") is not None]
    unit = "per pair" if recipe.is_preference else "nats per token"
    facts = [f"Loss: {losses[0]:.4f} at first, {losses[-1]:.4f} at the end ({unit})."]
    facts += [f"Held-out loss: {held_out[-1]:.4f}, best {min(held_out):.4f}."] if held_out else []
    return (
        f"Made by glmtune {glmtune.__version__} from {', '.join(recipe.data.train)}.\n"
        f"{' '.join(facts)} Every value of the run is in `recipe.yaml`; running that file repeats "
        "it."
    )


def model_card(recipe: RunRecipe, lines: Sequence[Mapping[str, Any]]) -> str:
    """Describe a tuned model: its base, its run, its use."""
    base = recipe.model.name_or_path
    return f"""---
base_model: {base}
library_name: transformers
tags: [glmtune]
---

# {Path(base).name}, tuned

{_facts(recipe, lines)}

```bash
glmtune chat THIS_FOLDER
```
"""


def adapter_card(recipe: RunRecipe, lines: Sequence[Mapping[str, Any]]) -> str:
    """Describe an adapter: its base, its run, its use."""
    base = recipe.model.name_or_path
    is_peft = recipe.adapter.method != "ptuning_v2"
    return f"""---
base_model: {base}
library_name: {"peft" if is_peft else "transformers"}
tags: [{recipe.adapter.method}, glmtune]
---

# Adapter by {recipe.adapter.method} for {Path(base).name}

{_facts(recipe, lines)}

```bash
glmtune chat {base} --adapter THIS_FOLDER
```

```python
{(_BY_PEFT if is_peft else _BY_US).format(base=base)}
```
"""


_BY_PEFT = """\
from peft import PeftModel

from glmtune.model.load import load_model

model = PeftModel.from_pretrained(load_model("{base}"), "THIS_FOLDER")"""
_BY_US = """\
from pathlib import Path

from glmtune.methods import ptuning_v2
from glmtune.model.load import load_model

model = ptuning_v2.load(load_model("{base}"), Path("THIS_FOLDER"))"""
