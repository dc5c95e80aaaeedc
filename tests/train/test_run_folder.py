"""The files of a run, by which a new run finds that a folder is taken."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults import limited_to

from glmtune.errors import OutputError
from glmtune.methods import adapter_folder, ptuning_v2, virtual_tokens
from glmtune.methods.adapter_folder import CARD
from glmtune.prove.metrics import METRICS
from glmtune.recipe.recipe import RECIPE
from glmtune.train.run_folder import (
    LOCK,
    MODEL_FILES,
    RUN_FILES,
    check_folder,
    locked,
    run_files,
)


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


HOLD = """
import sys, time
from pathlib import Path
from glmtune.train.run_folder import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"

    with pytest.raises(OutputError, match=rf"\(process {holder.pid} on .*\)\. Wait"):
        with locked(tmp_path):
            pass
    holder.kill()
    holder.communicate()

    assert (tmp_path / LOCK).exists()  # a killed process cannot remove it
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_ends_with_its_block_whatever_happens_there(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), locked(tmp_path):
            raise KeyboardInterrupt


def test_a_lock_that_does_not_fit_on_the_disk_is_not_held(tmp_path: Path) -> None:
    with limited_to(0), pytest.raises(OutputError, match="could not be written") as caught:
        with locked(tmp_path):
            raise AssertionError

    with locked(tmp_path):  # although the traceback still has the frames of the first try
        assert caught.tb is not None
