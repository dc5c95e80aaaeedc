"""What a run left is used as it was meant, or refused in a sentence that names the fault."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.planted.artefacts import ARTEFACT_FAULTS, Place
from tests.planted.corpus import healthy_rows
from tests.planted.test_runs import Recorder, recipe_for

from glmtune.errors import GlmtuneError
from glmtune.train.run import fine_tune
from glmtune.use.export.run import export
from glmtune.use.generate import Sampling
from glmtune.use.open import open_session

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Place:
    """A base, two adapters that differ in their seed and rank, and the first one merged."""
    folder = tmp_path_factory.mktemp("whole")
    rows = folder / "rows.json"
    rows.write_text(json.dumps(healthy_rows()[:20], ensure_ascii=False), encoding="utf-8")
    base = Path(shutil.copytree(tiny_model_dir, folder / "base"))
    for name, *overrides in (("adapter", "seed=1"), ("other", "seed=2", "adapter.lora_alpha=32")):
        recipe = recipe_for(
            str(base), str(rows), str(folder / name), "max_steps=4", "learning_rate=5e-3",
            "checks.sample_steps=0", "adapter.r=4", *overrides,
        )  # fmt: skip
        fine_tune(recipe)
    export(folder / "adapter", folder / "merged", prove=False)
    return Place(base, folder / "adapter", folder / "other", folder / "merged")


@pytest.fixture
def place(whole: Place, tmp_path: Path) -> Place:
    """A copy in which anything may be broken."""
    return Place(
        *(
            Path(shutil.copytree(getattr(whole, name), tmp_path / name))
            for name in ("base", "adapter", "other", "merged")
        )
    )


def answer(place: Place, opened: str, layout: Any = None) -> str:
    if opened == "adapter into base":
        export(place.adapter, place.base.parent / "new", base=str(place.base), prove=False)
        return ""
    what, _, over = opened.partition(" over ")
    folder = place.adapter if over else None
    name = getattr(place, over or what)
    short = Sampling(max_new_tokens=4, temperature=0)
    session = open_session(str(name), folder, layout=layout, sampling=short)
    return session.reply("你好").text


@pytest.mark.parametrize("opened", ["adapter over base", "merged"])
def test_what_a_run_left_is_used_without_a_word(
    place: Place, opened: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="glmtune"):
        answer(place, opened)

    assert caplog.messages == []


@pytest.mark.parametrize("name", ARTEFACT_FAULTS)
def test_a_planted_fault_of_an_artefact_is_refused_by_name(
    place: Place, name: str, record_property: Recorder
) -> None:
    fault = ARTEFACT_FAULTS[name]
    fault.plant(place)

    with pytest.raises(GlmtuneError) as caught:
        answer(place, fault.opened, fault.layout)

    message = str(caught.value)
    record_property("said", message.replace(f"{place.base.parent}/", ""))
    assert fault.words in message
    assert str(place.base.parent) in message  # which folder
    assert message.endswith((".", ")"))
