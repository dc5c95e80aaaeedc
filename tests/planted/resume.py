"""Faults between a run and its resumption: states that were lost, and things that changed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


@dataclass(frozen=True, slots=True)
class Run:
    """A base, rows, and the output of a run that was killed after its checkpoint."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def rows(self) -> Path:
        return self.folder / "rows.json"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def checkpoint(self) -> Path:
        return self.output / "checkpoint-2"


@dataclass(frozen=True, slots=True)
class ResumeFault:
    """How it is planted or overridden, and words of the error."""

    plant: Callable[[Run], Any]
    words: str
    overrides: tuple[str, ...] = ()


def _without(name: str) -> Callable[[Run], Any]:
    return lambda run: (run.checkpoint / name).unlink()


def _emptied(name: str) -> Callable[[Run], Any]:
    """Lose the moments of AdamW, as a script does that makes a new optimizer."""

    def plant(run: Run) -> None:
        path = run.checkpoint / name
        state = torch.load(path, weights_only=True)
        torch.save({**state, "state": {}}, path)

    return plant


def _zeroed(run: Run) -> None:
    path = run.checkpoint / "adapter_model.safetensors"
    save_file({k: torch.zeros_like(v) for k, v in load_file(path).items()}, path)


def _halved(run: Run) -> None:
    path = run.checkpoint / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _other_rows(change: Callable[[list[Any]], Any]) -> Callable[[Run], Any]:
    def plant(run: Run) -> None:
        rows = json.loads(run.rows.read_text(encoding="utf-8"))
        change(rows)
        run.rows.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    return plant


def _base(run: Run) -> None:
    path = run.base / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "dense" in name)
    tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


def _config(run: Run) -> None:
    path = run.base / "config.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**tree, "rope_ratio": 3.0}), encoding="utf-8")


def _nothing(run: Run) -> None:
    pass


DAMAGED = "every checkpoint in it is damaged"
RESUME_FAULTS: dict[str, ResumeFault] = {
    "the state of the optimizer lost": ResumeFault(_without("optimizer.pt"), DAMAGED),
    "the moments of the optimizer lost": ResumeFault(_emptied("optimizer.pt"), DAMAGED),
    "the state of the schedule lost": ResumeFault(_without("scheduler.pt"), DAMAGED),
    "the state of the random numbers lost": ResumeFault(_without("rng_state.pth"), DAMAGED),
    "the weights of the checkpoint zeroed": ResumeFault(_zeroed, DAMAGED),
    "the weights of the checkpoint half written": ResumeFault(_halved, DAMAGED),
    "a row added before resuming": ResumeFault(
        _other_rows(lambda rows: rows.append(rows[0])), "training data"
    ),
    "rows in another order": ResumeFault(_other_rows(lambda rows: rows.reverse()), "training data"),
    "one digit of a row changed": ResumeFault(
        _other_rows(lambda rows: rows[0].update(output=rows[0]["output"] + "！")), "training data"
    ),
    "a layer of the base blanked before resuming": ResumeFault(_base, "changed: base"),
    "the base of rotary embeddings changed before resuming": ResumeFault(_config, "changed: base"),
    "another learning rate": ResumeFault(_nothing, "learning_rate", ("learning_rate=1e-3",)),
    "another seed": ResumeFault(_nothing, "training.seed", ("seed=7",)),
    "another batch": ResumeFault(
        _nothing, "gradient_accumulation_steps", ("gradient_accumulation_steps=1",)
    ),
    "another layout": ResumeFault(_nothing, "layout", ("data.layout=tutorial",)),
}
