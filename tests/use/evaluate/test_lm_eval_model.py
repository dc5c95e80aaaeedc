"""The model class of lm-evaluation-harness, where the harness is installed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glmtune.model.load import load_model, load_tokenizer

pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the harness's own imports
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
QUESTION, ANSWER = "你叫什么名字？", "我是小助手。😀 鑫！"


def requests(*arguments: Any) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


def test_the_harness_runs_a_task_of_its_own_kind_on_our_model(taught_model_dir: Path) -> None:
    import lm_eval
    from lm_eval.api.registry import get_model
    from lm_eval.api.task import ConfigurableTask

    from glmtune.use.evaluate.lm_eval_model import GlmtuneLM

    assert get_model("glmtune") is GlmtuneLM
    model = GlmtuneLM(str(taught_model_dir), batch_size="4")
    rows = taught_model_dir.parent / "rows.jsonl"
    rows.write_text(f'{{"q": "{QUESTION}", "a": "{ANSWER}"}}\n' * 3, encoding="utf-8")
    config = {
        "task": "own", "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}",
        "output_type": "generate_until", "generation_kwargs": {"until": [], "max_gen_toks": 40},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    task = ConfigurableTask(config=config)
    found = lm_eval.simple_evaluate(
        model=model, tasks=[task], apply_chat_template=True, bootstrap_iters=0
    )
    assert found["results"]["own"]["exact_match,none"] == 1.0


def test_likelihoods_are_those_of_the_model(taught_model_dir: Path) -> None:
    from glmtune.use.evaluate.lm_eval_model import GlmtuneLM

    model = GlmtuneLM(str(taught_model_dir))
    tokenizer, plain = load_tokenizer(taught_model_dir), load_model(taught_model_dir)

    pairs = [("今天的天气", "很好"), ("北京是", "中国的首都。"), ("", "春天")]
    for (context, continuation), (logp, _) in zip(
        pairs, model.loglikelihood(requests(*pairs)), strict=True
    ):
        ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
        start = len(tokenizer(context)["input_ids"])
        with torch.no_grad():
            scores = plain(input_ids=ids).logits[0].log_softmax(-1)
        wanted = sum(float(scores[i - 1, ids[0, i]]) for i in range(start, ids.size(1)))
        assert logp == pytest.approx(wanted, abs=1e-3)
    [rolling] = model.loglikelihood_rolling(requests(("今天的天气很好",)))
    [(whole, _)] = model.loglikelihood(requests(("", "今天的天气很好")))
    assert rolling == pytest.approx(whole, abs=1e-3)
    chat = model.apply_chat_template([{"role": "user", "content": QUESTION}])
    (_, is_greedy), (_, is_other) = model.loglikelihood(
        requests((chat, f" {ANSWER}"), (chat, " 小明"))
    )
    assert (is_greedy, is_other) == (True, False)
