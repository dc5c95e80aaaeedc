"""What a run was and what came out, in words: for the head of a report, a notebook and a terminal.

A page may be sent to others, so no path of this machine is in it: a path is shortened to its last
part, and the commands work where the folder of the run is.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from glmtune.errors import RecipeError
from glmtune.messages import translate
from glmtune.model.hubs import HUB_ID
from glmtune.prove.card import without_paths
from glmtune.prove.metrics import until
from glmtune.prove.proof import (
    ALIVE,
    FORGETS,
    MERGED,
    PACKED,
    SAVED,
    STOCK_READER,
    STOPS,
    STREAMED,
    TEMPLATE,
    Proof,
)
from glmtune.prove.report.record import RunRecord
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import RECIPE, PretrainRecipe, Recipe
from glmtune.units import duration, number

Figures = dict[str, Any]


def model_name(record: RunRecord) -> str:
    """Return the name of the model that was tuned; of a path the last part."""
    name = str(record.value("model.name_or_path") or "model")
    return name if HUB_ID.fullmatch(name) else Path(name).name


def method_of(record: RunRecord) -> str:
    """Say how a model was tuned: `lora r=8`, `dpo by lora r=8`, `pre-training by full`."""
    method = str(record.value("adapter.method") or "lora")
    if method == "none":
        return "evaluated, not trained"
    rank = record.value("adapter.r")
    method = f"{method} r={rank}" if rank is not None else method
    if record.is_pretraining:
        return f"pre-training by {method}"
    return f"{record.value('preference.stage')} by {method}" if record.is_preference else method


def title_of(record: RunRecord) -> str:
    """Return the title of a run: model, method, rows, and how long it took."""
    facts = record.facts
    rows = facts.num_train_rows
    parts = [model_name(record), method_of(record)]
    if rows is not None and record.trains:
        parts.append("1 row" if rows == 1 else f"{rows:,} {_rows(record)}")
    if facts.date:
        parts.append(facts.date[:10])
    if facts.seconds is not None:
        parts.append(duration(facts.seconds))
    return " · ".join(parts)


def _rows(record: RunRecord) -> str:
    if record.is_pretraining:
        return "examples"
    return "pairs" if record.is_preference else "rows"


def key_figures(lines: Sequence[Mapping[str, Any]], saved_step: int | None = None) -> Figures:
    """Summarize the metrics for the top of a report; None for what was not measured.

    Args:
        lines: of the metrics.
        saved_step: whose losses are shown; None is the last.
    """

    def of(key: str, step: int | None = None) -> list[tuple[int, Any]]:
        shown = until(lines, step)
        return [(line["step"], line[key]) for line in shown if line.get(key) is not None]

    def last(key: str) -> Any:
        values = of(key, saved_step)
        return values[-1][1] if values else None

    losses, held_out = of("loss", saved_step), of("eval_loss", saved_step)
    speeds, memory = of("tokens_per_second"), of("peak_memory_bytes")
    perplexities = sorted({key for line in lines for key in line if key.startswith("perplexity_")})
    return {
        "last_step": max((line["step"] for line in lines), default=None),
        "first_loss": losses[0][1] if losses else None,
        "last_loss": losses[-1][1] if losses else None,
        "last_held_out": held_out[-1][1] if held_out else None,
        "best_held_out": min(held_out, key=lambda each: each[1]) if held_out else None,
        # The first line of a run includes the warm-up.
        "speed": median([value for _, value in speeds[1:] or speeds]) if speeds else None,
        "memory": max(value for _, value in memory) if memory else None,
        "epochs": last("epoch"),
        "rewards": {
            kind: {
                name: last(f"{prefix}reward_{name}")
                for name in ("accuracy", "margin", "chosen", "rejected")
            }
            for kind, prefix in (("held out", "eval_"), ("training", ""))
            if last(f"{prefix}reward_accuracy") is not None
        },
        "perplexity": {key.removeprefix("perplexity_"): last(key) for key in perplexities},
    }


def tokens_seen(record: RunRecord) -> int | None:
    """Estimate the tokens that were trained on: those of a row, times the rows of all epochs."""
    data, rows = record.facts.data, record.facts.num_train_rows
    epochs: float | None = key_figures(record.lines)["epochs"]
    if data is None or rows is None or epochs is None or not data.num_examples:
        return None
    return round(data.num_tokens / data.num_examples * rows * epochs)


# What a proof shows, what it means if it fails, and the key that limits it.
_SENTENCES: Mapping[str, tuple[str, str]] = {
    PACKED: (
        "A row has the same loss in a training pack as when it is answered alone.",
        "A row has another loss in a training pack than when it is answered alone.",
    ),
    ALIVE: (
        "Every weight that the recipe trains has changed, by as much as a healthy run changes it.",
        "Weights that the recipe trains have not learned.",
    ),
    SAVED: (
        "The files, loaded again, are the model that was trained.",
        "The files, loaded again, are not the model that was trained.",
    ),
    STREAMED: (
        "Read from disk one layer at a time, it scores answers as it does in memory.",
        "Read from disk one layer at a time, it scores answers otherwise than in memory.",
    ),
    MERGED: (
        "Merged into the weights of the base, it answers as the base with the adapter does.",
        "Merged into the weights of the base, it does not answer as the adapter does.",
    ),
    TEMPLATE: (
        "Chat asks with the very tokens that training put before an answer.",
        "Chat asks with other tokens than training put before an answer.",
    ),
    STOCK_READER: (
        "Plain transformers, without glmtune, makes the same prompts from this folder.",
        "Plain transformers, without glmtune, does not make the same prompts from this folder.",
    ),
    STOPS: (
        "Its answers end by themselves.",
        "Its answers run on until they are cut off.",
    ),
    FORGETS: (
        "It still answers general questions as well as the base did, within the limit.",
        "It answers general questions worse than the base did.",
    ),
}
_LIMITS: Mapping[str, tuple[str, str]] = {
    STOPS: ("checks.least_stop_rate", "at least {:.0%} of the answers must end"),
    FORGETS: ("checks.forgetting", "the loss may rise by at most {:g} nats per token"),
    STREAMED: ("checks.streamed_tolerance", "at most {:g} of the spread of a token's scores"),
    MERGED: ("checks.merged_tolerance", "at most {:g} of the adapter's change"),
}


@dataclass(frozen=True, slots=True)
class ShownProof:
    """A proof for readers.

    Attributes:
        proof: its name, verdict and numbers.
        sentence: what the verdict means; "" if it was not run, or is not known here.
        limit: of what was measured, "" if it has none.
    """

    proof: Proof
    sentence: str
    limit: str


def show_proofs(record: RunRecord) -> list[ShownProof]:
    """Explain the proofs of a run."""
    shown = []
    for proof in record.facts.all_proofs:
        passed, failed = _SENTENCES.get(proof.name, ("", ""))
        sentence = {"passed": passed, "failed": failed}.get(proof.verdict, "")
        key, text = _LIMITS.get(proof.name, ("", ""))
        value = record.value(key)
        limit = text.format(value) if isinstance(value, int | float) else ""
        shown.append(ShownProof(proof, sentence, limit))
    return shown


def count_verdicts(proofs: Sequence[Proof]) -> dict[str, int]:
    """Count the proofs by their verdicts."""
    return {v: sum(p.verdict == v for p in proofs) for v in ("passed", "failed", "not run")}


def changed_keys(record: RunRecord) -> list[tuple[str, str]]:
    """List the keys of a recipe that differ from their defaults, with their values."""
    kind: type[Recipe] | type[PretrainRecipe] = PretrainRecipe if record.is_pretraining else Recipe
    try:
        recipe = build_recipe(record.recipe, kind=kind)
    except RecipeError:  # of another version
        return []
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    values.setdefault("adapter", {}).setdefault("method", recipe.adapter.method)
    return [
        (f"{section}.{key}", str(without_paths(_text(value))))
        for section, keys in values.items()
        for key, value in keys.items()
    ]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(child)}" for key, child in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class Command:
    """A command that a reader may want next, and what it is for."""

    purpose: str
    line: str


def shown_folder(folder: Path) -> str:
    """Return the folder of a run as commands name it: relative, or its last part."""
    return folder.resolve().name if folder.is_absolute() or str(folder) == "." else str(folder)


def next_commands(record: RunRecord) -> Iterator[Command]:
    """Yield what can be done with a run; the commands work where its folder is.

    Yields:
        Only commands that fit: nothing to chat with where nothing was trained, and no merge of
        what cannot be merged.
    """
    facts, folder = record.facts, shown_folder(record.folder)
    verdicts = {proof.name: proof.verdict for proof in facts.proofs}
    if facts.is_finished and record.trains and verdicts.get(SAVED) != "failed":
        if record.is_pretraining:  # it completes texts, and has not learned to answer
            keys = (f"model.name_or_path={folder}", "data.train=ROWS.json")
            line = _line("train", "chatglm3-lora", *keys, f"output.dir={folder}-chat")
            yield Command("Teach it to answer", line)
        else:
            yield Command("Talk to it", _line("chat", folder))
            to_file = ("rows.json", "--model", folder, "-o", "answers.jsonl")
            yield Command("Answer a file of rows", _line("predict", *to_file))
        if verdicts.get(MERGED) == "passed":
            yield Command(
                "Merge it into its base", _line("merge", folder, "-o", f"{folder}-merged")
            )
        if record.value("adapter.method") != "ptuning_v2":
            line = _line("export", folder, "--to", "gguf", "-o", f"{folder}-gguf")
            yield Command("Write it for llama.cpp", line)
    yield Command("Compare it with another run", _line("compare", folder, "OTHER_RUN"))
    yield Command(*repetition(record))


def repetition(record: RunRecord) -> tuple[str, str]:
    """Return the purpose and the command that repeats a run, or continues an interrupted one."""
    folder = shown_folder(record.folder)
    command = "pretrain" if record.is_pretraining else "train"
    recipe = f"{folder}/{RECIPE}"
    if record.facts.is_finished is False:
        return "Continue this run", _line(command, recipe, f"output.dir={folder}", "--resume")
    return "Repeat this run", _line(command, recipe, f"output.dir={folder}-again")


def _line(*words: str) -> str:
    return shlex.join(["glmtune", *words])


def text_lines(record: RunRecord) -> list[str]:
    """Tell a run in at most five lines, for a terminal."""
    facts, figures = record.facts, key_figures(record.lines, record.facts.saved_step)
    lines = [title_of(record)]
    if facts.is_finished is False:
        lines[0] += f" · stopped after step {figures['last_step'] or 0:,}"
    if losses := loss_line(figures, facts.saved_step):
        lines.append(losses)
    if facts.proofs:
        lines.append(verdict_line(facts.all_proofs))
    lines = [translate(line) for line in lines]
    if facts.samples:
        sample = facts.samples[0]
        asked = _short(prompt_text(sample.prompt.text), from_end=True)
        answer = _short(sample.tuned.text)
        lines.append(f"{asked} -> {answer}")
    lines.append(str(record.folder))
    return lines


def loss_line(figures: Figures, saved_step: int | None) -> str:
    """Return the losses of a run in a line; "" if there are none."""
    parts = []
    if figures["last_loss"] is not None:
        first, last = number(figures["first_loss"]), number(figures["last_loss"])
        parts.append(f"loss {last}" if first == last else f"loss {first} to {last}")
    if figures["last_held_out"] is not None:
        parts.append(f"held-out loss {number(figures['last_held_out'])}")
    for kind, rewards in list(figures["rewards"].items())[:1]:
        parts.append(f"{kind}: the better answer wins {rewards['accuracy']:.0%} of the pairs")
    parts += [
        f"perplexity {name} {number(value)}"
        for name, value in figures["perplexity"].items()
        if value is not None
    ]
    if figures["last_step"]:
        steps = f"{figures['last_step']:,} steps"
        if saved_step not in (None, figures["last_step"]):
            steps += f", saved: step {saved_step:,}"
        parts.append(steps)
    return "; ".join(parts)


def verdict_line(proofs: Sequence[Proof]) -> str:
    """Return the verdicts of all proofs in a line, with the names of those that failed."""
    counts = count_verdicts(proofs)
    line = f"{counts['passed']} of {len(proofs)} proofs passed"
    if counts["not run"]:
        line += f", {counts['not run']} not run"
    if failed := [proof.name for proof in proofs if proof.verdict == "failed"]:
        line += f"; failed: {', '.join(failed)}"
    return line


_MARKS = re.compile(r"\[gMASK\]\s*sop|<\|\w+\|>")


def prompt_text(prompt: str) -> str:
    """Return the texts of a prompt, without the tokens that mark turns."""
    return " ".join(_MARKS.sub(" ", prompt).split())


def _short(text: str, *, most: int = 60, from_end: bool = False) -> str:
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    return f"…{text[1 - most :]}" if from_end else f"{text[: most - 1]}…"
