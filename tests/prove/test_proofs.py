"""The proofs of a finished run: each passes on a healthy one and sees the fault it is for."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from glmtune.conversation import Conversation, Message, render_tool_call
from glmtune.errors import TemplateError, TrainingError
from glmtune.kernels.half_precision import widen
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_frozen_model, load_model, load_tokenizer
from glmtune.prove.answers import Prompt, answer_all, answer_limit, first_prompt
from glmtune.prove.merged import check_merged
from glmtune.prove.prompts import check_template_agrees
from glmtune.prove.proof import STOPS, Proof
from glmtune.prove.stops import StopRate, stop_rate
from glmtune.prove.streamed import PROBE_TOKENS, check_streamed, probe
from glmtune.recipe.choices import LAYOUTS
from glmtune.recipe.methods import LoraSection
from glmtune.template.base import IGNORE, Template
from glmtune.template.chatglm import ChatGLMTemplate
from glmtune.template.select import template_for

NAME = Conversation(
    (
        Message("user", "你叫什么名字？"),
        Message("assistant", "我是小助手。😀 鑫！"),
        Message("user", "再说一次"),
        Message("assistant", "小助手。"),
    )
)
WEATHER = Conversation(
    (
        Message("user", "北京天气怎么样？"),
        Message("assistant", "我查一下。"),
        Message("assistant", render_tool_call({"city": "北京"}), metadata="weather"),
        Message("observation", '{"celsius": 3}'),
        Message("assistant", "北京现在 3 度。"),
    )
)


@pytest.fixture(scope="module")
def tokenizer(taught_model_dir: Path) -> Any:
    return load_tokenizer(str(taught_model_dir))


@pytest.fixture(scope="module")
def template(tokenizer: Any) -> Template:
    return template_for(tokenizer)


@pytest.fixture(scope="module")
def taught(taught_model_dir: Path) -> Any:
    return load_model(str(taught_model_dir))


@pytest.fixture(scope="module")
def prompts(template: Template, tokenizer: Any) -> list[Prompt]:
    """One prompt the model knows by heart, and a shorter one."""
    return [first_prompt(template.encode(each), template, tokenizer) for each in (WEATHER, NAME)]


def test_a_row_cut_before_its_first_learned_token_is_the_prompt_that_chat_makes(
    template: Template, prompts: Sequence[Prompt]
) -> None:
    asked = prompts[1]

    assert list(asked.ids) == template.prompt_ids(Conversation(NAME.messages[:1]))
    assert asked.text.endswith("<|user|> \n 你叫什么名字？<|assistant|>")
    assert asked.expected == "我是小助手。😀 鑫！"


def test_a_model_that_learned_its_answers_ends_them_in_a_batch_padded_on_the_left(
    taught: Any, template: Template, prompts: Sequence[Prompt]
) -> None:
    assert len(prompts[0].ids) != len(prompts[1].ids)  # or nothing would be padded

    answers = answer_all(taught, template, prompts, max_new_tokens=60)

    assert [answer.text for answer in answers] == [
        "我查一下。\nweather\n" + render_tool_call({"city": "北京"}),
        "我是小助手。😀 鑫！",
    ]
    assert stop_rate(taught, template, prompts, max_new_tokens=60) == StopRate(2, (), 60)


def test_an_answer_that_runs_into_the_limit_counts_as_endless(
    taught: Any, template: Template, prompts: Sequence[Prompt]
) -> None:
    [whole] = answer_all(taught, template, prompts[1:], max_new_tokens=60)

    rate = stop_rate(taught, template, prompts, max_new_tokens=whole.num_tokens)
    one_more = stop_rate(taught, template, prompts[1:], max_new_tokens=whole.num_tokens + 1)

    assert 1 in rate.endless
    assert one_more.endless == ()  # the token that ends the answer had room


def test_sampling_settings_of_the_model_do_not_touch_the_proof(
    taught: Any, template: Template, prompts: Sequence[Prompt]
) -> None:
    before = taught.generation_config.to_dict()
    try:
        taught.generation_config.update(do_sample=True, temperature=50.0, eos_token_id=[5])

        [answer] = answer_all(taught, template, prompts[1:], max_new_tokens=60)
    finally:
        taught.generation_config.update(**before)

    assert answer.text == prompts[1].expected


def test_a_model_that_never_learned_to_stop_fails_the_proof(
    tiny_model_dir: Path, template: Template, prompts: Sequence[Prompt]
) -> None:
    rate = stop_rate(load_model(str(tiny_model_dir)), template, prompts, max_new_tokens=12)

    proof = rate.proof(min_share=0.9)

    assert proof.verdict == "failed"
    assert "0 of 2 held-out prompts" in proof.detail
    assert "expected 90%" in proof.detail


def test_an_answer_is_given_twice_the_time_of_those_in_the_data(
    prompts: Sequence[Prompt], template: Template
) -> None:
    lengths = [prompt.num_expected for prompt in prompts]
    answer = template.encode(Conversation(NAME.messages[:2]))
    assert lengths[1] == sum(label != IGNORE for label in answer.labels)

    assert answer_limit(prompts, 128) == 2 * max(lengths) + 16
    assert answer_limit(prompts, 20) == 20
    assert answer_limit([*prompts, Prompt((1,), "")], 128) == 128  # nobody knows its answer


def test_the_verdict_depends_on_the_share_that_is_asked_for() -> None:
    half = StopRate(4, (0, 3), 10)

    assert half.share == 0.5
    assert half.proof(0.5).verdict == "passed"
    assert half.proof(0.6).verdict == "failed"


def test_without_held_out_rows_the_proof_is_not_run_rather_than_passed(
    taught: Any, template: Template
) -> None:
    rate = stop_rate(taught, template, [], max_new_tokens=5)

    assert rate.proof(0.0) == Proof(STOPS, "not run", "There are no held-out rows to ask.")


def tuned(base: Any, std: float) -> Any:
    """Put an adapter on all linear layers, as if it had learned; B is as large as `std`."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = lora.attach(base, LoraSection(r=4, target_modules="all-linear"))
        for _, layer in adapted_layers(model):
            layer.lora_B["default"].weight.normal_(std=std)
    return model


def test_what_is_on_disk_streams_and_merges_as_it_was_trained(
    taught_model_dir: Path, tmp_path: Path, template: Template, prompts: Sequence[Prompt]
) -> None:
    model = tuned(load_model(str(taught_model_dir)), std=0.02)
    lora.save(model, tmp_path, template)

    probes = probe(model, tmp_path, template, prompts)

    asked = answer_all(model, template, prompts, max_new_tokens=PROBE_TOKENS)
    assert [len(each.answer) for each in probes] == [a.num_tokens + a.has_ended for a in asked]
    assert list(model.peft_config) == ["default"]
    num_tokens = sum(len(each.answer) for each in probes)
    same = f"{num_tokens} of {num_tokens} first choices are the same"
    assert same in check_streamed(model, probes, tolerance=1e-4)
    proof = check_merged(model, probes, tolerance=0.001)
    assert proof.verdict == "passed", proof
    assert same in proof.detail


def test_an_adapter_on_disk_that_answers_otherwise_is_caught_when_streamed(
    taught_model_dir: Path, tmp_path: Path, template: Template, prompts: Sequence[Prompt]
) -> None:
    model = tuned(load_model(str(taught_model_dir)), std=0.02)
    lora.save(model, tmp_path, template)
    with torch.no_grad():
        next(adapted_layers(model))[1].lora_B["default"].weight.mul_(-20)

    probes = probe(model, tmp_path, template, prompts)

    with pytest.raises(TrainingError, match="Chat would not answer as the trained model does"):
        check_streamed(model, probes, tolerance=0.25)


@pytest.mark.parametrize("compute", [None, "int8"])
def test_rounding_that_a_model_makes_large_is_measured_and_told_from_another_adapter(
    taught_model_dir: Path,
    tmp_path: Path,
    template: Template,
    prompts: Sequence[Prompt],
    compute: Literal["int8"] | None,
) -> None:
    cpu = torch.device("cpu")
    base = load_frozen_model(str(taught_model_dir), dtype="bfloat16", device=cpu, compute=compute)
    model = tuned(base, std=0.02)
    lora.save(model, tmp_path, template)
    probes = probe(model, tmp_path, template, prompts)
    nothing = -1.0  # is within it, so rounding is measured

    assert "rounding its input once more" in check_streamed(model, probes, nothing)

    with torch.no_grad():
        next(adapted_layers(model))[1].lora_B["default"].weight.mul_(-20)
    others = probe(model, tmp_path, template, prompts)
    with pytest.raises(TrainingError, match="Chat would not answer as the trained model does"):
        check_streamed(model, others, nothing)


def test_scores_that_are_not_finite_fail_rather_than_pass(
    taught_model_dir: Path, tmp_path: Path, template: Template, prompts: Sequence[Prompt]
) -> None:
    model = tuned(load_model(str(taught_model_dir)), std=0.02)
    lora.save(model, tmp_path, template)
    with torch.no_grad():
        next(adapted_layers(model))[1].lora_B["default"].weight[0, 0] = torch.nan

    probes = probe(model, tmp_path, template, prompts)

    with pytest.raises(TrainingError, match="differ by nan"):
        check_streamed(model, probes, tolerance=0.25)


def test_a_merge_that_leaves_one_layer_out_is_caught(
    taught_model_dir: Path, tmp_path: Path, template: Template, prompts: Sequence[Prompt]
) -> None:
    model = tuned(load_model(str(taught_model_dir)), std=0.02)
    lora.save(model, tmp_path, template)
    probes = probe(model, tmp_path, template, prompts)
    with torch.no_grad():
        next(adapted_layers(model))[1].lora_B["default"].weight.zero_()

    proof = check_merged(model, probes, tolerance=0.05)

    assert proof.verdict == "failed", proof
    assert "keep the adapter beside its base, or merge into float32" in proof.detail


@pytest.mark.parametrize(("dtype", "std"), [(torch.float32, 1e-9), (torch.bfloat16, 1e-4)])
def test_an_update_that_rounding_hides_is_not_called_merged(
    taught_model_dir: Path,
    tmp_path: Path,
    template: Template,
    prompts: Sequence[Prompt],
    dtype: torch.dtype,
    std: float,
) -> None:
    base = load_model(str(taught_model_dir), dtype=dtype)
    if dtype == torch.bfloat16:
        widen(base)  # at the same speed on every CPU
    model = tuned(base, std=std)
    lora.save(model, tmp_path, template)
    probes = probe(model, tmp_path, template, prompts)

    proof = check_merged(model, probes, tolerance=0.05)

    assert (proof.verdict, "nothing to compare" in proof.detail) == ("not run", True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_asks_in_chat_what_it_learned_in_training(tokenizer: Any, layout: Any) -> None:
    one_turn = Conversation(NAME.messages[:2])
    taken = {"plain": [one_turn], "chatglm2": [one_turn, NAME]}  # the others know tools as well
    conversations = taken.get(layout, [one_turn, NAME, WEATHER])

    num_answers = check_template_agrees(template_for(tokenizer, layout), conversations)

    assert num_answers == {"plain": 1, "tutorial": 3, "chatglm2": 2, "official": 6}[layout]


class _ForgetsTheRole(ChatGLMTemplate):
    """Chat that asks without `<|assistant|>`: the fault of many a fine-tuning script."""

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        return super().prompt_ids(conversation)[:-1]


class _AsksOtherwise(ChatGLMTemplate):
    def prompt_ids(self, conversation: Conversation) -> list[int]:
        ids = super().prompt_ids(conversation)
        return [*ids[:-1], 5, ids[-1]]


def test_a_template_that_leaves_the_role_out_of_the_prompt_is_found(tokenizer: Any) -> None:
    start = len(ChatGLMTemplate(tokenizer).prompt_ids(Conversation(NAME.messages[:1])))
    message = f"conversation 1: training begins to learn at token {start}, but chat would begin"

    with pytest.raises(TemplateError, match=re.escape(message)):
        check_template_agrees(_ForgetsTheRole(tokenizer), [NAME])


def test_a_template_with_another_token_in_the_prompt_is_found(tokenizer: Any) -> None:
    conversations = [Conversation(NAME.messages[:1]), NAME]

    with pytest.raises(TemplateError, match=r"conversation 2, turn 1: at token \d+ chat has \[5,"):
        check_template_agrees(_AsksOtherwise(tokenizer), conversations)
