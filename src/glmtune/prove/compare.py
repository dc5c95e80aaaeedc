"""Runs side by side: what differs in their recipes, what they cost, and what came out.

    out/a  recipe.yaml, metrics.jsonl, report.json, scores.json     a table for a terminal,
    out/b  the same files                                       ->  one page without a network

Only `recipe.yaml` is required. A run of another version is read as far as its files are known, and
a damaged file is named in a note rather than shown as if nothing had been measured.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from glmtune.errors import OutputError
from glmtune.files import explain_write_error, write_atomically
from glmtune.prove.answers import Answer
from glmtune.prove.card import without_paths
from glmtune.prove.proof import Proof
from glmtune.prove.report.charts import Chart, draw, thin
from glmtune.prove.report.record import RunRecord, read_record
from glmtune.prove.report.render import render
from glmtune.prove.report.summary import (
    key_figures,
    method_of,
    model_name,
    prompt_text,
    tokens_seen,
)
from glmtune.units import duration, number, readable
from glmtune.use.evaluate.names import SCORES_FILES
from glmtune.use.evaluate.results import Score, read_evaluation

PAGE = "compare.html"
MARK = "glmtune compare"  # in our page, so that no other file is replaced
ABSENT = "-"


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs.

    Attributes:
        name: the shortest end of its path that tells it from the others.
        record: its files.
        scores: of `glmtune evaluate`: (metric, its data) -> score with its interval.
        notes: what could not be read.
    """

    name: str
    record: RunRecord
    scores: Mapping[tuple[str, str], Score]
    notes: tuple[str, ...]

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The losses and other measurements, of the saved weights."""
        return key_figures(self.record.lines, self.record.facts.saved_step)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: what it is, and its value for each run."""

    label: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the runs differ in it."""
        return len(set(self.values)) > 1


@dataclass(frozen=True, slots=True)
class Shared:
    """A prompt that several runs answered.

    Attributes:
        prompt: without the tokens that mark turns.
        expected: the answer in the data.
        answers: (run, its answer); first "base", where they agree on it.
    """

    prompt: str
    expected: str
    answers: tuple[tuple[str, Answer], ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs side by side.

    Attributes:
        names: of the runs.
        tables: title -> lines, in order.
        charts: a curve for each run.
        answers: to the prompts that several runs answered.
        notes: what a reader must know before comparing.
    """

    names: tuple[str, ...]
    tables: Mapping[str, tuple[Row, ...]]
    charts: tuple[Chart, ...]
    answers: tuple[Shared, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Return the tables, the answers and the notes as JSON, for programs."""
        tables = {
            title: {row.label: dict(zip(self.names, row.values, strict=True)) for row in rows}
            for title, rows in self.tables.items()
        }
        answers = [
            {
                "prompt": each.prompt,
                "expected": each.expected,
                "answers": {name: answer.text for name, answer in each.answers},
            }
            for each in self.answers
        ]
        tree = {
            "runs": list(self.names), **tables, "answers": answers, "notes": list(self.notes),
        }  # fmt: skip
        return json.dumps(tree, ensure_ascii=False, indent=2)


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Compare runs.

    Args:
        folders: their output folders, at least two.

    Raises:
        OutputError: there are fewer than two, one is given twice, or one holds no run.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    real = [path.resolve() for path in paths]
    if len(set(real)) != len(real) or len(real) < 2:
        given = f"{len(paths)} folder{'s' * (len(paths) != 1)}"
        twice = next((str(path) for path in paths if real.count(path.resolve()) > 1), "")
        got = f"{twice} is given twice" if twice else f"got {given}"
        raise OutputError(
            f"{got}, expected the output.dir of at least two different runs: "
            "glmtune compare out/first out/second."
        )
    runs = [_read(name, path) for name, path in zip(_names(real), paths, strict=True)]
    return Comparison(
        names=tuple(run.name for run in runs),
        tables={title: tuple(rows) for title, rows in _tables(runs) if rows},
        charts=tuple(_charts(runs)),
        answers=tuple(_shared_answers(runs)),
        notes=tuple(_notes(runs)),
    )


def write_page(comparison: Comparison, path: Path) -> None:
    """Write a comparison as one HTML file.

    Raises:
        OutputError: it cannot be written, or another file is there.
    """
    try:
        if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
            raise OutputError(
                f"{path}: exists already, and is not a page that `glmtune compare` wrote. Choose "
                "another --output."
            )
    except OSError as error:
        raise OutputError(explain_write_error(path, error)) from error
    title = " · ".join(comparison.names)
    write_atomically(path, render("compare.html", title=title, mark=MARK, all=comparison))


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that differ: `a/run`, `b/run`."""
    for length in range(1, 1 + max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read(name: str, folder: Path) -> ComparedRun:
    record = read_record(folder, damaged_too=True)
    notes = [record.why_missing] if record.why_missing else []
    if not record.recipe:
        notes.append(f"{folder / 'recipe.yaml'}: is not a recipe; its keys are not compared.")
    if not record.lines:
        notes.append("It has no metrics.")
    scores: dict[tuple[str, str], Score] = {}
    for file in SCORES_FILES:
        if not (folder / file).is_file():
            continue
        try:
            found = read_evaluation(folder / file)
        except OutputError as error:
            notes.append(str(error))
            continue
        scores |= {(metric, found.data_names): score for metric, score in found.scores.items()}
    return ComparedRun(name, record, scores, tuple(str(without_paths(each)) for each in notes))


def _tables(runs: Sequence[ComparedRun]) -> Iterator[tuple[str, list[Row]]]:
    yield "runs", [_row(runs, label, of) for label, of in _ABOUT.items()]
    yield "results", _known([_row(runs, label, of) for label, of in _results(runs)])
    yield "scores", list(_score_rows(runs))
    yield "cost", _known([_row(runs, label, of) for label, of in _COST.items()])
    yield "data", _known([_row(runs, label, of) for label, of in _DATA.items()])
    yield "recipe", list(_recipe_rows(runs))


def _row(runs: Sequence[ComparedRun], label: str, of: Any) -> Row:
    values = []
    for run in runs:
        value = of(run)
        values.append(ABSENT if value is None else value)
    return Row(label, tuple(values))


def _known(rows: Sequence[Row]) -> list[Row]:
    """Leave out the lines that no run has a value for."""
    return [row for row in rows if any(value != ABSENT for value in row.values)]


def _optional(value: float | None) -> str | None:
    return None if value is None else number(value)


def _ended(run: ComparedRun) -> str | None:
    facts = run.record.facts
    if facts.is_finished is False:
        return f"stopped after step {run.figures['last_step'] or 0:,}"
    return None if facts.date is None else facts.date[:16].replace("T", " ")


_ABOUT = {
    "model": lambda run: model_name(run.record),
    "method": lambda run: method_of(run.record),
    "ended": _ended,
    "steps": lambda run: (
        None if run.figures["last_step"] is None else f"{run.figures['last_step']:,}"
    ),
    "saved step": lambda run: (
        None if run.record.facts.saved_step is None else f"{run.record.facts.saved_step:,}"
    ),
}


def _results(runs: Sequence[ComparedRun]) -> Iterator[tuple[str, Any]]:
    yield "training loss", lambda run: _optional(run.figures["last_loss"])
    yield "held-out loss", lambda run: _optional(run.figures["last_held_out"])
    for kind in ("held out", "training"):
        for name in ("accuracy", "margin"):
            yield (
                f"reward {name}, {kind}",
                lambda run, kind=kind, name=name: _optional(
                    run.figures["rewards"].get(kind, {}).get(name)
                ),
            )
    for name in sorted({name for run in runs for name in run.figures["perplexity"]}):
        yield (
            f"perplexity, {name}",
            lambda run, name=name: _optional(run.figures["perplexity"].get(name)),
        )
    yield "proofs", lambda run: _verdicts(run.record.facts.proofs)


def _verdicts(proofs: Sequence[Proof]) -> str | None:
    if not proofs:
        return None
    failed = [proof.name for proof in proofs if proof.verdict == "failed"]
    passed = sum(proof.verdict == "passed" for proof in proofs)
    return f"{passed} of {len(proofs)} passed" + (f"; failed: {', '.join(failed)}" * bool(failed))


_COST = {
    "time": lambda run: (
        None if run.record.facts.seconds is None else duration(run.record.facts.seconds)
    ),
    "tokens, about": lambda run: (
        None if (tokens := tokens_seen(run.record)) is None else f"{tokens:,}"
    ),
    "tokens per second": lambda run: _optional(run.figures["speed"]),
    "peak memory": lambda run: (
        None if run.figures["memory"] is None else readable(run.figures["memory"])
    ),
    "trained parameters": lambda run: (
        None if run.record.facts.num_trainable is None else f"{run.record.facts.num_trainable:,}"
    ),
    "processor": lambda run: run.record.facts.machine.get("processor"),
    "GPUs": lambda run: run.record.facts.machine.get("GPUs"),
}
_DATA = {
    "training rows": lambda run: (
        None if run.record.facts.num_train_rows is None else f"{run.record.facts.num_train_rows:,}"
    ),
    "held-out rows": lambda run: (
        None
        if run.record.facts.num_held_out_rows is None
        else f"{run.record.facts.num_held_out_rows:,}"
    ),
    "fingerprint of the training data": lambda run: _hex(run.record.facts.data_fingerprint),
    "fingerprint of the held-out data": lambda run: _hex(run.record.facts.held_out_fingerprint),
    "fingerprint of the template": lambda run: _hex(run.record.facts.template_fingerprint),
}


def _hex(fingerprint: str | None) -> str | None:
    return None if fingerprint is None else fingerprint[:12]


def _score_rows(runs: Sequence[ComparedRun]) -> Iterator[Row]:
    keys = dict.fromkeys(key for run in runs for key in run.scores)
    for metric, data in keys:
        values = []
        for run in runs:
            score = run.scores.get((metric, data))
            values.append(
                ABSENT
                if score is None
                else f"{number(score.value)} ({number(score.low)} to {number(score.high)}, "
                f"{score.num_rows:,} rows)"
            )
        yield Row(f"{metric} on {data}" if data else metric, tuple(values))


def _recipe_rows(runs: Sequence[ComparedRun]) -> Iterator[Row]:
    """Yield the keys in which recipes differ; a run of another version may not have a key."""
    flat = [dict(_flatten(run.record.recipe)) for run in runs]
    keys = dict.fromkeys(key for each in flat for key in each)
    for key in keys:
        row = Row(key, tuple(each.get(key, ABSENT) for each in flat))
        if row.differs and key != "output.dir":
            yield row


def _flatten(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for section, values in recipe.items():
        for key, value in values.items() if isinstance(values, Mapping) else ():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{section}.{key}", str(without_paths(text))


def _charts(runs: Sequence[ComparedRun]) -> Iterator[Chart]:
    for title, key, may_be_log in (
        ("Training loss", "loss", True),
        ("Held-out loss", "eval_loss", True),
        ("Reward accuracy, held out", "eval_reward_accuracy", False),
        ("Gradient norm", "grad_norm", True),
        ("Speed, tokens per second", "tokens_per_second", False),
    ):
        series = {
            run.name: {line["step"]: line[key] for line in thin(run.record.lines) if key in line}
            for run in runs
        }
        chart = draw(title, "", series, may_be_log=may_be_log)
        if chart is not None:
            yield chart


def _shared_answers(runs: Sequence[ComparedRun]) -> Iterator[Shared]:
    """Yield the prompts that at least two runs answered, in the order of the first."""
    samples = {run.name: run.record.facts.samples or () for run in runs}
    by_text = {
        name: {sample.prompt.text: sample for sample in found} for name, found in samples.items()
    }
    for text in dict.fromkeys(sample.prompt.text for found in samples.values() for sample in found):
        having = {name: found[text] for name, found in by_text.items() if text in found}
        if len(having) < 2:
            continue
        first = next(iter(having.values()))
        answers = [(name, sample.tuned) for name, sample in having.items()]
        if len({sample.base for sample in having.values()}) == 1:
            answers.insert(0, ("base", first.base))
        yield Shared(prompt_text(text), first.prompt.expected, tuple(answers))


def _notes(runs: Sequence[ComparedRun]) -> Iterator[str]:
    for run in runs:
        yield from (f"{run.name}: {note}" for note in run.notes)
    if len({(run.record.is_preference, run.record.is_pretraining) for run in runs}) > 1:
        yield "The runs have different objectives, so their losses are not comparable."
    elif len({_held_out(run) for run in runs}) > 1:
        yield "The held-out rows differ, so held-out losses are not comparable."
    if len({run.record.facts.template_fingerprint for run in runs}) > 1:
        yield "The prompts or the tokenizers differ, so losses per token are not comparable."
    if len({run.record.facts.machine.get("processor") for run in runs}) > 1:
        yield "The runs were made on different machines, so times are not comparable."


def _held_out(run: ComparedRun) -> tuple[Any, ...]:
    """Identify the held-out rows: those of data.eval, or the ones that were split off."""
    facts, record = run.record.facts, run.record
    if facts.held_out_fingerprint is not None:
        return (facts.held_out_fingerprint,)
    split = (record.value("data.eval_fraction"), record.value("training.seed"))
    return (facts.data_fingerprint, facts.num_held_out_rows, *split)
