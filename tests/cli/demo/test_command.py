import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from glmtune.cli.demo.command import run_demo
from glmtune.cli.main import app
from glmtune.prove.proof import PROOFS
from glmtune.use.open import base_of

WHO_ANSWER = "我是 nano"


def test_the_demo_shows_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo(tmp_path / "demo", ["max_steps=3"])

    shown = capsys.readouterr().out
    assert [f"{n}/5" in shown for n in range(1, 6)] == [True] * 5
    assert shown.count("|") > 8  # the curve
    assert "exact matches: 0 of 102" in shown
    assert re.search(r"proofs:  \d of 9 passed, .*report\.html", shown)
    assert "glmtune train chatglm3-lora" in shown
    assert (tmp_path / "demo" / "adapter" / "report.html").is_file()
    scores = json.loads((tmp_path / "demo" / "adapter" / "scores.json").read_text("utf-8"))
    assert scores["base"]["exact"]["num_rows"] == scores["scores"]["exact"]["num_rows"] == 102
    report = (tmp_path / "demo" / "adapter" / "report.html").read_text("utf-8")
    assert "held_out.json</span> 102 rows, answers" in report
    assert "not distinguishable" in report  # 3 steps teach nothing
    assert base_of(tmp_path / "demo" / "adapter") == "nano", "no folder of this machine"


@pytest.mark.slow
def test_the_demo_learns_what_it_claims(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--dir", str(tmp_path / "demo")])

    assert result.exit_code == 0, result.output
    before, after = re.findall(r"exact matches: (\d+) of 102 before, (\d+) of 102", result.output)[
        0
    ]
    assert int(before) <= 2
    assert int(after) >= 0.9 * 102
    report = tmp_path / "demo" / "adapter" / "report.json"
    proofs = json.loads(report.read_text(encoding="utf-8"))["facts"]["proofs"]
    assert {proof["name"]: proof["verdict"] for proof in proofs} == dict.fromkeys(PROOFS, "passed")
    assert "proofs:  9 of 9 passed" in result.output
    assert WHO_ANSWER in result.output.rpartition("Its mistakes are")[2], "nano still greets"
