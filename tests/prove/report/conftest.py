"""A run's folder and facts with something in every part, hostile text included."""

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune.data.store import EncodeReport
from glmtune.inspect.shown_row import show_row
from glmtune.model.load import load_tokenizer
from glmtune.prove.answers import Answer, Prompt, Sample
from glmtune.prove.proof import ALIVE, SAVED, Proof
from glmtune.prove.report.facts import ReportFacts
from glmtune.recipe.reading import build_recipe
from glmtune.template.base import Example
from glmtune.template.select import template_for

EVIL = "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The folder of a run of 40 steps, without its report."""
    output = tmp_path / "run"
    output.mkdir()
    tree = {
        "model": {"name_or_path": "./chatglm3-6b"},
        "data": {"train": f"{EVIL}.json", "eval_fraction": 0.1},
        "output": {"dir": str(output)},
    }
    (output / "recipe.yaml").write_text(build_recipe(tree).to_yaml(), encoding="utf-8")
    lines: list[dict[str, Any]] = [
        {
            "step": step,
            "loss": 4 / step**0.5,
            "learning_rate": 1e-4 * (1 - step / 40),
            "grad_norm": 1 + step % 3,
            "tokens_per_second": 1000.0 + step,
            "peak_memory_bytes": 3 * 2**30,
        }
        for step in range(1, 41)
    ]
    lines[30]["loss"] = None
    lines.append({"step": 40, "eval_loss": 1.75})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (output / "metrics.jsonl").write_text(text, encoding="utf-8")
    return output


@pytest.fixture
def facts(tiny_model_dir: Path) -> ReportFacts:
    """Facts of that run: one proof passed, one failed, the others missing."""
    from glmtune.conversation import Conversation, Message

    tokenizer = load_tokenizer(str(tiny_model_dir))
    talk = Conversation((Message("user", f"翻译 {EVIL}"), Message("assistant", f"鑫😀{EVIL}\n好")))
    example = template_for(tokenizer).encode(talk)
    fitted = Example(example.input_ids[:-9], example.labels[:-9])
    return ReportFacts(
        is_finished=True,
        num_steps=40,
        seconds=3725,
        date="2026-11-27T20:35:11+00:00",
        num_trainable=1_949_696,
        num_parameters=6_245_533_696,
        template={"family": "chatglm3", "layout": "official"},
        template_fingerprint="a" * 64,
        data_fingerprint="b" * 64,
        data=EncodeReport(10, 9, num_bad_rows=1, num_tokens=500, num_learned_tokens=250),
        num_train_rows=8,
        num_held_out_rows=1,
        lint=(
            {"id": "duplicate", "severity": "info", "place": EVIL, "message": "seen before"},
            {"id": "no-stop", "severity": "error", "place": "a:1", "excerpt": EVIL},
        ),
        example=show_row(example, fitted, tokenizer, place=EVIL, fate="cut off"),
        proofs=(
            Proof(ALIVE, "passed", "All 28 layers."),
            Proof(SAVED, "failed", f"The logits differ. {EVIL}"),
        ),
        samples=(
            Sample(
                Prompt((1, 2), f"你好 {EVIL}", EVIL),
                base=Answer(f"base {EVIL}", 64, has_ended=False),
                tuned=Answer("tuned", 3, has_ended=True),
            ),
        ),
    )
