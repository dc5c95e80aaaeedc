"""What was lost or changed between a run and its resumption is named, never trained over."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.planted.corpus import healthy_rows
from tests.planted.resume import RESUME_FAULTS, Run
from tests.planted.test_runs import Recorder, recipe_for

from glmtune.errors import CheckpointError
from glmtune.recipe.recipe import Recipe
from glmtune.train.run import fine_tune

pytestmark = pytest.mark.slow
SETTINGS = (
    "max_steps=4", "save_strategy=steps", "save_steps=2", "checks.sample_steps=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Run:
    """A run, killed after step 2, in a folder that each test gets back as it was."""
    run = Run(tmp_path_factory.mktemp("resumed") / "work")
    shutil.copytree(tiny_model_dir, run.base)
    run.rows.write_text(json.dumps(healthy_rows()[:20], ensure_ascii=False), encoding="utf-8")
    fine_tune(recipe_of(run))
    shutil.rmtree(run.output / "checkpoint-4")
    return Run(Path(shutil.copytree(run.folder, run.folder.with_name("whole"))))


@pytest.fixture
def run(whole: Run) -> Run:
    run = Run(whole.folder.with_name("work"))  # paths are a part of a run's identity
    shutil.rmtree(run.folder)
    shutil.copytree(whole.folder, run.folder)
    return run


def recipe_of(run: Run, *overrides: str) -> Recipe:
    return recipe_for(str(run.base), str(run.rows), str(run.output), *SETTINGS, *overrides)


@pytest.mark.parametrize("name", RESUME_FAULTS)
def test_a_planted_fault_between_run_and_resumption_is_named(
    run: Run, name: str, record_property: Recorder
) -> None:
    fault = RESUME_FAULTS[name]
    fault.plant(run)
    recipe = recipe_of(run, *fault.overrides)

    with pytest.raises(CheckpointError) as caught:
        fine_tune(recipe, resume=True)

    record_property("said", str(caught.value).replace(f"{run.folder}/", ""))
    assert fault.words in str(caught.value)


def test_a_healthy_run_resumes_to_the_same_bytes(whole: Run, run: Run) -> None:
    fine_tune(recipe_of(run), resume=True)

    name = "adapter_model.safetensors"
    assert (run.output / name).read_bytes() == (whole.output / name).read_bytes()
    assert torch.load(run.output / "checkpoint-4" / "optimizer.pt", weights_only=True)
