"""Healthy short runs of any kind never fail the proof of merging; a broken merge does in each."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune.kernels.half_precision import widen
from glmtune.methods import method
from glmtune.model.load import load_model
from glmtune.prove.answers import Prompt
from glmtune.prove.merged import check_merged
from glmtune.prove.proof import Proof
from glmtune.prove.streamed import probe
from glmtune.recipe.reading import build_recipe
from glmtune.template.base import Template
from glmtune.use.export import merge

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "all linear layers": {"r": 4, "target_modules": "all-linear"},
    "rank-stabilized": {"r": 16, "use_rslora": True},
    "dora": {"r": 4, "use_dora": True},
    "pissa": {"r": 4, "init_lora_weights": "pissa"},
    "bias": {"r": 4, "bias": "all"},
    "a module beside": {"r": 4, "modules_to_save": ["output_layer"]},
    "ia3": {"method": "ia3"},
    "vera": {"method": "vera"},
    "oft": {"method": "oft", "oft_block_size": 16},
}
BASES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "widened": torch.bfloat16}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in list(BASES)[1:]]
# Each kind of adapter with each length of run; a base with a third of the kinds in the longer ones.
RUNS = {"short": (3, 1e-4), "one step": (1, 1e-5), "longer": (10, 2e-3)}
HEALTHY = [
    pytest.param(
        kind,
        list(BASES)[0 if run == 0 else (number + run) % len(BASES)],
        *lengths,
        marks=[pytest.mark.slow] if run else [],
    )
    for number, kind in enumerate(KINDS)
    for run, lengths in enumerate(RUNS.values())
]
Train = Callable[..., Any]


def short_run(model: Any, steps: int, learning_rate: float) -> None:
    """What a few optimizer steps do to a model."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0)
    ids = torch.arange(2, 42).reshape(1, -1)
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def proved(
    folder: Path,
    output: Path,
    template: Template,
    prompts: Sequence[Prompt],
    kind: str,
    base: str,
    steps: int,
    learning_rate: float,
) -> Proof:
    loaded = load_model(folder, dtype=BASES[base])
    if base == "widened":
        widen(loaded)
    torch.manual_seed(0)
    section = build_recipe(
        {
            "model": {"name_or_path": "m"},
            "data": {"train": "d"},
            "adapter": KINDS[kind],
            "output": {"dir": "o"},
        }
    ).adapter
    model = method.attach(loaded, section)
    short_run(model, steps, learning_rate)
    method.save(model, output, template)
    return check_merged(model, probe(model, output, template, prompts), tolerance=0.05)


@pytest.mark.parametrize(("kind", "base", "steps", "learning_rate"), HEALTHY)
def test_a_healthy_short_run_never_fails(
    taught_model_dir: Path,
    tmp_path: Path,
    template: Template,
    prompts: Sequence[Prompt],
    kind: str,
    base: str,
    steps: int,
    learning_rate: float,
) -> None:
    proof = proved(taught_model_dir, tmp_path, template, prompts, kind, base, steps, learning_rate)

    assert proof.verdict != "failed", proof


def without_last(model: Any) -> None:
    """A merge that forgets the last layer."""
    for layer in [module for module in model.modules() if is_layer(module)][:-1]:
        layer.merge(safe_merge=True)


def twice(model: Any) -> None:
    """A merge that adds the update a second time."""
    weights = {m: m.base_layer.weight.data.clone() for m in model.modules() if is_layer(m)}
    model.merge_adapter()
    for layer, before in weights.items():
        layer.base_layer.weight.data += layer.base_layer.weight.data - before


def is_layer(module: Any) -> bool:
    return hasattr(module, "base_layer") and hasattr(module, "merge")


@pytest.mark.parametrize("broken", [without_last, twice])
@pytest.mark.parametrize("base", ["bfloat16", *SLOW])
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_a_broken_merge_fails_after_a_short_run(
    taught_model_dir: Path,
    tmp_path: Path,
    template: Template,
    prompts: Sequence[Prompt],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    base: str,
    broken: Callable[[Any], None],
) -> None:
    monkeypatch.setattr(merge, "merge_in_place", broken)

    proof = proved(taught_model_dir, tmp_path, template, prompts, kind, base, 10, 1e-3)

    assert proof.verdict == "failed", proof
    assert "are not those of base and adapter together" in proof.detail
