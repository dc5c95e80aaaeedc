"""`glmtune merge` and `glmtune export`: what they print, and how they fail."""

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from glmtune.cli.export import FORMATS_HELP
from glmtune.cli.main import app
from glmtune.errors import CheckpointError, OutputError
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import LoraSection
from glmtune.template.select import template_for
from glmtune.use.export.formats import FORMATS


@pytest.fixture(scope="module")
def adapter_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = lora.attach(load_model(tiny_model_dir), LoraSection(target_modules="all-linear"))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for _, layer in adapted_layers(model):
            layer.lora_B["default"].weight.normal_(0, 0.1)
    lora.save(model, folder, template_for(load_tokenizer(tiny_model_dir)))
    return folder


def test_a_merge_prints_its_proofs_and_the_line_to_use_it(
    adapter_dir: Path, tmp_path: Path
) -> None:
    ran = CliRunner().invoke(app, ["merge", str(adapter_dir), "-o", str(tmp_path / "out")])

    assert ran.exit_code == 0, ran.output
    assert f"{tmp_path / 'out'}: complete" in ran.output
    assert "  passed: logits are the same (they differ by" in ran.output
    assert f"Use it:  glmtune chat {tmp_path / 'out'}" in ran.output


def test_a_comparison_that_was_left_out_is_not_called_passed(
    adapter_dir: Path, tmp_path: Path
) -> None:
    arguments = [str(adapter_dir), "--to", "vllm", "-o", str(tmp_path / "out"), "--no-proof"]
    ran = CliRunner().invoke(app, ["export", *arguments])

    assert ran.exit_code == 0, ran.output
    assert "not run: the comparison with the source (--no-proof)" in ran.output
    assert "passed" not in ran.output


def test_a_complete_model_has_nothing_to_merge(tiny_model_dir: Path, tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["merge", str(tiny_model_dir), "-o", str(tmp_path / "out")])

    assert isinstance(ran.exception, CheckpointError)
    assert f"glmtune export {tiny_model_dir} --to chatglm -o {tmp_path / 'out'}" in str(
        ran.exception
    )


def test_the_help_names_every_format() -> None:
    for name in FORMATS:
        assert re.search(rf"\b{name}\b", FORMATS_HELP)


def test_a_target_that_exists_is_refused(adapter_dir: Path, tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["merge", str(adapter_dir), "-o", str(tmp_path)])

    assert isinstance(ran.exception, OutputError)
    assert "already exists" in str(ran.exception)
