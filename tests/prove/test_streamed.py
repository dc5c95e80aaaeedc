"""What is on disk, streamed with a cache, answers as the model in memory; other weights do not."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from glmtune.errors import TrainingError
from glmtune.kernels.half_precision import widen
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_frozen_model, load_model
from glmtune.prove.answers import Prompt, answer_all
from glmtune.prove.merged import check_merged
from glmtune.prove.streamed import PROBE_TOKENS, check_streamed, probe
from glmtune.template.base import Template

Tune = Callable[..., Any]


def test_what_is_on_disk_streams_and_merges_as_it_was_trained(
    taught_model_dir: Path,
    tmp_path: Path,
    template: Template,
    prompts: Sequence[Prompt],
    tune: Tune,
) -> None:
    model = tune(load_model(str(taught_model_dir)), std=0.02)
    lora.save(model, tmp_path, template)

    probes = probe(model, tmp_path, template, prompts)

    asked = answer_all(model, template, prompts, max_new_tokens=PROBE_TOKENS)
    assert [len(each.answer) for each in probes] == [a.num_tokens + a.has_ended for a in asked]
    assert list(model.peft_config) == ["default"]
    num_tokens = sum(len(each.answer) for each in probes)
    same = f"{num_tokens} of {num_tokens} first choices are the same"
    assert same in check_streamed(model, probes, tolerance=1e-4)
    proof = check_merged(model, probes, tolerance=0.001)
    assert proof.verdict == "passed", proof
    assert same in proof.detail


def test_an_adapter_on_disk_that_answers_otherwise_is_caught_when_streamed(
    taught_model_dir: Path,
    tmp_path: Path,
    template: Template,
    prompts: Sequence[Prompt],
    tune: Tune,
) -> None:
    model = tune(load_model(str(taught_model_dir)), std=0.02)
    lora.save(model, tmp_path, template)
    with torch.no_grad():
        next(adapted_layers(model))[1].lora_B["default"].weight.mul_(-20)

    probes = probe(model, tmp_path, template, prompts)

    with pytest.raises(TrainingError, match="Chat would not answer as the trained model does"):
        check_streamed(model, probes, tolerance=0.25)


@pytest.mark.parametrize("compute", ["bfloat16", "float32", "int8"])
def test_rounding_that_a_model_amplifies_is_measured_and_told_apart_from_another_adapter(
    taught_model_dir: Path,
    tmp_path: Path,
    template: Template,
    prompts: Sequence[Prompt],
    tune: Tune,
    compute: Literal["bfloat16", "float32", "int8"],
) -> None:
    """bfloat16 weights on a CPU that multiplies them, on one that does not, and in int8."""
    name, cpu = str(taught_model_dir), torch.device("cpu")
    if compute == "int8":
        base = load_frozen_model(name, dtype="bfloat16", device=cpu, compute=compute)
    else:
        base = load_model(name, dtype=torch.bfloat16).requires_grad_(False)
    if compute == "float32":
        widen(base)
    model = tune(base, std=0.02)
    lora.save(model, tmp_path, template)
    probes = probe(model, tmp_path, template, prompts)
    nothing = -1.0  # is within it, so rounding is measured

    assert "rounding its input once more" in check_streamed(model, probes, nothing)

    with torch.no_grad():
        next(adapted_layers(model))[1].lora_B["default"].weight.mul_(-20)
    others = probe(model, tmp_path, template, prompts)
    with pytest.raises(TrainingError, match="Chat would not answer as the trained model does"):
        check_streamed(model, others, nothing)


def test_scores_that_are_not_finite_fail_rather_than_pass(
    taught_model_dir: Path,
    tmp_path: Path,
    template: Template,
    prompts: Sequence[Prompt],
    tune: Tune,
) -> None:
    model = tune(load_model(str(taught_model_dir)), std=0.02)
    lora.save(model, tmp_path, template)
    with torch.no_grad():
        next(adapted_layers(model))[1].lora_B["default"].weight[0, 0] = torch.nan

    probes = probe(model, tmp_path, template, prompts)

    with pytest.raises(TrainingError, match="differ by nan"):
        check_streamed(model, probes, tolerance=0.25)
