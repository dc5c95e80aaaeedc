"""A probe takes real steps of the run, on its heaviest pack."""

import json
import logging
from pathlib import Path

import pytest

from glmtune.recipe.reading import build_recipe
from glmtune.train.plan.probe import run_probe_steps


def test_a_probe_takes_three_real_steps_on_the_longest_rows(
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    rows = [{"instruction": "说", "output": "好。" * (40 if n == 7 else 2)} for n in range(20)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    recipe = build_recipe(
        {
            "model": {"name_or_path": str(tiny_model_dir)},
            "data": {"train": str(tmp_path / "rows.json"), "max_length": 200},
            "training": {"per_device_train_batch_size": 1, "use_cpu": True},
            "output": {"dir": str(tmp_path / "out"), "report_to": []},
        }
    )

    with caplog.at_level(logging.INFO, logger="glmtune"):
        probed = run_probe_steps(recipe)

    steps = [text for text in caplog.messages if text.startswith("step ")]
    assert [text.split()[1] for text in steps] == ["1/3", "2/3", "3/3"]
    [heaviest] = [text for text in caplog.messages if text.startswith("the heaviest pack")]
    pack = [len(row["output"]) for row in rows]
    assert max(pack) == 80
    assert int(heaviest.split("together ")[1].split()[0]) > max(pack), heaviest
    assert probed.tokens_per_second > 0
    assert probed.peak_bytes > 100 * 2**20, "the libraries alone take more"
    assert not (tmp_path / "out").exists()
