"""The files of a run, by which a new run finds that a folder is taken."""

from pathlib import Path

import pytest

from glmtune.errors import OutputError
from glmtune.methods import adapter_folder, ptuning_v2, virtual_tokens
from glmtune.methods.adapter_folder import CARD
from glmtune.prove.metrics import METRICS
from glmtune.recipe.recipe import RECIPE
from glmtune.train.run_folder import MODEL_FILES, RUN_FILES, check_folder, run_files


def test_the_names_are_those_that_a_run_writes() -> None:
    written = {virtual_tokens.ENCODER, RECIPE, METRICS, "report.html", "report.json"}

    assert written <= set(RUN_FILES)
    assert CARD == adapter_folder.CARD
    assert ptuning_v2.WEIGHTS in MODEL_FILES


def test_a_model_counts_as_a_run_only_beside_its_card(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert run_files(tmp_path) == []

    (tmp_path / CARD).touch()
    assert [path.name for path in run_files(tmp_path)] == [CARD, "model.safetensors"]


def test_a_folder_is_refused_unless_it_is_resumed_or_replaced(tmp_path: Path) -> None:
    check_folder(tmp_path, resume=False, overwrite=False)
    check_folder(tmp_path / "new", resume=False, overwrite=False)
    (tmp_path / "checkpoint-10").mkdir()

    with pytest.raises(OutputError, match=r"already holds a run \(checkpoint-10\)"):
        check_folder(tmp_path, resume=False, overwrite=False)
    check_folder(tmp_path, resume=True, overwrite=False)
    check_folder(tmp_path, resume=False, overwrite=True)
    (tmp_path / "config.json").touch()
    with pytest.raises(OutputError, match="holds a model that glmtune did not write"):
        check_folder(tmp_path, resume=False, overwrite=True)
