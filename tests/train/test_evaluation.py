"""Scores of generated answers during a run: recorded, resumed, and what chooses a step."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glmtune.errors import RecipeError
from glmtune.methods import method
from glmtune.model.load import load_model, load_tokenizer
from glmtune.prove.answers import answer_all, answer_limit, last_prompt
from glmtune.prove.metrics import read_metrics
from glmtune.prove.report.charts import make_charts
from glmtune.recipe.reading import load_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.template.base import IGNORE, Example
from glmtune.template.select import template_for
from glmtune.train.checkpoint import TrainerState, load_state
from glmtune.train.evaluation import check_scored, evaluate_and_compare, scored_prompts
from glmtune.train.identity import deciding_values
from glmtune.train.run import fine_tune
from glmtune.use.evaluate.metrics import METRICS, Answered

METRIC = "rouge-l-char"
OVERRIDES = (
    f"training.eval_metrics=exact,{METRIC},number",
    "training.eval_metric_rows=2",
    f"training.metric_for_best_model=eval_{METRIC}",
    "checks.forgetting=null",
)


def scores_of(lines: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    keys = ("step", "eval_loss", "eval_exact", f"eval_{METRIC}")
    return [tuple(line[key] for key in keys) for line in lines if "eval_loss" in line]


def test_a_run_scores_answers_at_each_evaluation_and_resumes_exactly(recipe: Path) -> None:
    loaded = load_recipe(recipe, OVERRIDES)
    result = fine_tune(loaded)

    output = result.adapter_dir
    lines = read_metrics(output / "metrics.jsonl")
    complete = scores_of(lines)
    assert [score[0] for score in complete] == [3, 6]
    assert "eval_number" not in lines[-1]  # no reference has a number
    assert any(chart.title == "Held-out answers" for chart in make_charts(lines))
    assert len({score[3] for score in complete}) == 2, "with equal scores this proves little"

    base = loaded.model.name_or_path
    tokenizer = load_tokenizer(base)
    template = template_for(tokenizer, "official")
    rows = json.loads(Path(str(loaded.data.train[0])).read_text(encoding="utf-8"))
    from glmtune.data.formats import FORMATS, convert
    from glmtune.data.rows import Row

    examples = [template.encode(convert(Row(row, "", 1), FORMATS["alpaca"])) for row in rows[:2]]
    prompts = [last_prompt(example, template, tokenizer) for example in examples]
    model = method.load(load_model(base), output)
    answers = answer_all(model, template, prompts, answer_limit(prompts, 2048))
    found = [
        METRICS[METRIC].of(Answered(answer.text, row["output"], 1, True)) or 0.0
        for answer, row in zip(answers, rows, strict=False)
    ]
    assert sum(found) / 2 == pytest.approx(complete[-1][3])

    best = load_state(output / "checkpoint-6")
    assert best.best_score == pytest.approx(max(score[3] for score in complete))
    assert best.best_step == max(complete, key=lambda score: score[3])[0]
    for step in (4, 5, 6):
        shutil.rmtree(output / f"checkpoint-{step}")
    fine_tune(loaded, resume=True)
    assert scores_of(read_metrics(output / "metrics.jsonl")) == complete


def fake_training(metric: str) -> Any:
    section = SimpleNamespace(metric_for_best_model=metric, save_strategy="epoch")
    return SimpleNamespace(section=section, state=TrainerState())


def test_the_best_step_is_that_of_the_metric_and_an_equal_score_is_not_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = [
        {"loss": 0.5, "exact": 40.0}, {"loss": 0.6, "exact": 60.0}, {"loss": 0.1, "exact": 60.0},
    ]  # fmt: skip
    for metric, best, without_gain in (("exact", 2, 1), ("loss", 3, 0)):
        training = fake_training(metric)
        waiting = iter(measured)
        monkeypatch.setattr("glmtune.train.evaluation.evaluate", lambda _, w=waiting: next(w))
        for step in (1, 2, 3):
            training.state.step = step
            evaluate_and_compare(training)
        assert training.state.best_step == best
        assert training.state.evaluations_without_gain == without_gain


def test_the_scored_rows_are_spread_over_all_and_their_last_answer_is_asked(
    tiny_model_dir: Path,
) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    template = template_for(tokenizer, "official")
    ids = [11, 12, 13, 14, 15]
    twice = Example(ids, [IGNORE, 12, IGNORE, 14, 15])
    prompt = last_prompt(twice, template, tokenizer)
    assert (prompt.ids, prompt.num_expected) == ((11, 12, 13), 2)

    data: Any = SimpleNamespace(
        eval_rows=range(10), tokenizer=tokenizer, template=template,
        eval_examples=[Example([11 + row, 40], [IGNORE, 40]) for row in range(10)],
    )  # fmt: skip
    assert [each.ids for each in scored_prompts(data, 3)] == [(11,), (14,), (17,)]
    assert len(scored_prompts(data, 50)) == 10

    section = SimpleNamespace(metric_for_best_model="tool-call", eval_metric_rows=3)
    with pytest.raises(RecipeError, match="tool-call applies to none of the 3 held-out rows"):
        check_scored(section, data)  # type: ignore[arg-type]


def test_the_keys_of_metrics_leave_earlier_checkpoints_as_they_were() -> None:
    tree = {
        "model": {"name_or_path": "m"}, "data": {"train": "a", "eval_fraction": 0.1},
        "output": {"dir": "o"},
    }  # fmt: skip
    plain = deciding_values(Recipe.model_validate(tree))
    assert not {"eval_metrics", "eval_metric_rows", "metric_for_best_model"} & set(
        plain["training"]
    )
    used = Recipe.model_validate({**tree, "training": {"eval_metrics": "exact, stop"}})
    assert deciding_values(used)["training"]["eval_metrics"] == ["exact", "stop"]
