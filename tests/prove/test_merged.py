"""A merged model answers as the adapter over its base, unless a part of the update is lost."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune.kernels.half_precision import widen
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_model
from glmtune.prove.answers import Prompt
from glmtune.prove.merged import check_merged
from glmtune.prove.streamed import probe
from glmtune.template.base import Template

Tune = Callable[..., Any]


def test_a_merge_that_leaves_one_layer_out_is_caught(
    taught_model_dir: Path,
    tmp_path: Path,
    template: Template,
    prompts: Sequence[Prompt],
    tune: Tune,
) -> None:
    model = tune(load_model(str(taught_model_dir)), std=0.02)
    lora.save(model, tmp_path, template)
    probes = probe(model, tmp_path, template, prompts)
    with torch.no_grad():
        next(adapted_layers(model))[1].lora_B["default"].weight.zero_()

    proof = check_merged(model, probes, tolerance=0.05)

    assert proof.verdict == "failed", proof
    assert "keep the adapter separate, or merge into float32" in proof.detail


@pytest.mark.parametrize(("dtype", "std"), [(torch.float32, 1e-9), (torch.bfloat16, 1e-4)])
def test_an_update_that_rounding_hides_is_not_called_merged(
    taught_model_dir: Path,
    tmp_path: Path,
    template: Template,
    prompts: Sequence[Prompt],
    tune: Tune,
    dtype: torch.dtype,
    std: float,
) -> None:
    base = load_model(str(taught_model_dir), dtype=dtype)
    if dtype == torch.bfloat16:
        widen(base)  # at the same speed on every CPU
    model = tune(base, std=std)
    lora.save(model, tmp_path, template)
    probes = probe(model, tmp_path, template, prompts)

    proof = check_merged(model, probes, tolerance=0.05)

    assert (proof.verdict, "nothing to compare" in proof.detail) == ("not run", True)
