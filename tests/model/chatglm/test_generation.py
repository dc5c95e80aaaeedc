"""Generation gives the reference's sequences, and `chat` keeps its promises."""

import json
import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache

from glmtune.model.chatglm.chat_format import ChatIds
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

CASES = [
    "greedy_single_0",
    "greedy_single_1",
    "greedy_single_2",
    "greedy_batch_left_padded",
    "greedy_batch_stop_ids",
    "greedy_repetition_penalty",  # its margins were not checked, nor those of the next
    "beam_search",
    "ptuning.greedy",
    "ptuning_projection.greedy",
]
PROMPTS = torch.tensor([[0, 0, 0, 0, 215, 271, 11, 480, 345], [1, 4, 9, 5, 6, 246, 49, 171, 139]])
MASK = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [1] * 9])
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> ChatGLMForConditionalGeneration:
    model: ChatGLMForConditionalGeneration = ChatGLMForConditionalGeneration.from_pretrained(
        tiny_model_dir
    )
    return model.eval()


@pytest.fixture(scope="module")
def expected(model: ChatGLMForConditionalGeneration) -> Tensor:
    """What the model gives without any cache, (2, 21)."""
    sequences = model.generate(PROMPTS, attention_mask=MASK, use_cache=False, **GREEDY)
    assert isinstance(sequences, Tensor)
    return sequences


@pytest.mark.parametrize("without", [(), ("position_ids",)])
@pytest.mark.parametrize("name", CASES)
def test_sequences_are_those_of_the_reference(
    golden: Path, name: str, without: tuple[str, ...]
) -> None:
    folder = golden / "tiny-model"
    cases = json.loads((folder / "golden.json").read_text(encoding="utf-8"))["generate"]
    [case] = [case for case in cases if case["name"] == name]
    kind = name.split(".", maxsplit=1)[0] if "." in name else None
    config = ChatGLMConfig.from_pretrained(
        folder,
        pre_seq_len=5 if kind else None,
        prefix_projection=kind == "ptuning_projection",
    )
    model = ChatGLMForConditionalGeneration.from_pretrained(folder, config=config).eval()
    prefix = load_file(folder / "prefix_encoders.safetensors")
    model.load_state_dict(
        {k.removeprefix(f"{kind}/"): v for k, v in prefix.items() if k.startswith(f"{kind}/")},
        strict=False,
    )
    inputs = {
        key: torch.tensor(case[key])
        for key in ("input_ids", "attention_mask", "position_ids")
        if case.get(key) is not None and key not in without
    }

    sequences = model.generate(**inputs, **case["kwargs"], do_sample=False, pad_token_id=0)

    assert sequences.tolist() == case["sequences"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cache_implementation": "static", "disable_compile": True},
        {"prefill_chunk_size": 4},
        {"past_key_values": DynamicCache},
    ],
    ids=["dynamic", "static", "chunked prefill", "a cache of one's own"],
)
def test_every_cache_gives_what_no_cache_gives(
    model: ChatGLMForConditionalGeneration, expected: Tensor, settings: dict[str, Any]
) -> None:
    if "past_key_values" in settings:
        settings = {"past_key_values": DynamicCache(config=model.config)}

    sequences = model.generate(PROMPTS, attention_mask=MASK, **GREEDY, **settings)

    assert torch.equal(sequences, expected)


def test_lookup_in_the_prompt_changes_nothing(
    model: ChatGLMForConditionalGeneration, expected: Tensor
) -> None:
    sequences = model.generate(PROMPTS[1:], prompt_lookup_num_tokens=3, **GREEDY)

    assert torch.equal(sequences, expected[1:])


def test_several_samples_and_beams_are_returned(model: ChatGLMForConditionalGeneration) -> None:
    torch.manual_seed(0)
    samples = model.generate(
        PROMPTS, attention_mask=MASK, **{**GREEDY, "do_sample": True}, num_return_sequences=3
    )
    beams = model.generate(
        PROMPTS, attention_mask=MASK, **GREEDY, num_beams=3, num_return_sequences=2
    )

    assert samples.shape == (6, 21)
    assert not torch.equal(samples[0], samples[1])
    assert beams.shape == (4, 21)


# ---- chat --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(taught_model_dir: Path) -> ChatGLMForConditionalGeneration:
    model: ChatGLMForConditionalGeneration = ChatGLMForConditionalGeneration.from_pretrained(
        taught_model_dir
    )
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer(taught_model_dir: Path) -> ChatGLMTokenizer:
    tokenizer: ChatGLMTokenizer = ChatGLMTokenizer.from_pretrained(taught_model_dir)
    return tokenizer


def test_chat_answers_and_extends_a_history_that_is_not_the_callers(
    taught: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer
) -> None:
    given: list[dict[str, Any]] = []

    response, history = taught.chat(tokenizer, "你叫什么名字？", history=given, do_sample=False)
    again, longer = taught.chat(tokenizer, "再说一次", history=history, do_sample=False)

    assert response == "我是小助手。😀 鑫！"
    assert given == []
    assert history == [
        {"role": "user", "content": "你叫什么名字？"},
        {"role": "assistant", "metadata": "", "content": "我是小助手。😀 鑫！"},
    ]
    assert again == "小助手。"
    assert longer[:2] == history
    assert len(longer) == 4


def test_chat_calls_a_tool_and_reads_its_result(
    taught: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer
) -> None:
    response, history = taught.chat(tokenizer, "北京天气怎么样？", do_sample=False)
    answer, _ = taught.chat(
        tokenizer, '{"celsius": 3}', history=history, role="observation", do_sample=False
    )

    assert response == {"name": "weather", "content": " ```python\ntool_call(city='北京')\n```"}
    assert [message["role"] for message in history] == ["user", "assistant", "assistant"]
    assert answer == "北京现在 3 度。"


def test_a_history_encodes_to_the_ids_that_the_model_wrote(
    taught: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer
) -> None:
    inputs = tokenizer.build_chat_input("北京天气怎么样？")
    stop_ids = ChatIds.of(tokenizer).stop
    written = taught.generate(**inputs, do_sample=False, max_length=200, eos_token_id=stop_ids)

    _, history = taught.chat(tokenizer, "北京天气怎么样？", do_sample=False)
    again = tokenizer.build_chat_input("x", history=history, role="observation")["input_ids"]

    assert "<|assistant|> weather\n" in tokenizer.decode(written[0]), "no tool was called"
    assert again[0, : written.shape[1]].tolist() == written[0].tolist()


def test_chat_loses_no_token_when_it_ends_by_length(
    taught: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer
) -> None:
    whole = tokenizer.encode("\n", add_special_tokens=False)
    whole += tokenizer.encode("我是小助手。😀 鑫！", add_special_tokens=False)
    prompt = tokenizer.build_chat_input("你叫什么名字？")["input_ids"].shape[1]

    by_new, _ = taught.chat(tokenizer, "你叫什么名字？", do_sample=False, max_new_tokens=5)
    by_all, _ = taught.chat(tokenizer, "你叫什么名字？", do_sample=False, max_length=prompt + 5)

    assert by_new == by_all == tokenizer.decode(whole[:5]).strip()
    assert by_new


def test_chat_samples_by_default(
    taught: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer
) -> None:
    # So hot that a model which always took the best token would show.
    settings = {"temperature": 50.0, "top_p": 1.0, "max_new_tokens": 12}
    torch.manual_seed(0)

    responses = {str(taught.chat(tokenizer, "你好", **settings)[0]) for _ in range(3)}

    assert len(responses) == 3


def test_the_stop_ids_are_the_end_and_the_roles_that_speak_next(
    tokenizer: ChatGLMTokenizer,
) -> None:
    end, *roles = ChatIds.of(tokenizer).stop

    assert end == 2
    assert tokenizer.convert_ids_to_tokens(roles) == ["<|user|>", "<|observation|>"]


def test_a_stream_grows_into_the_answer_of_chat(
    taught: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer
) -> None:
    given: list[dict[str, Any]] = []
    steps = list(taught.stream_chat(tokenizer, "你叫什么名字？", given, do_sample=False))
    texts = [response for response, _ in steps]

    assert (texts[-1], steps[-1][1]) == taught.chat(tokenizer, "你叫什么名字？", do_sample=False)
    assert len(texts) > 5
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert not any("\ufffd" in text for text in texts), "half a character was shown"
    assert given == []


def test_a_stream_continues_from_the_cache_of_the_previous_turn(
    taught: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer
) -> None:
    first = list(
        taught.stream_chat(
            tokenizer, "你叫什么名字？", do_sample=False, return_past_key_values=True
        )
    )
    _, history, cache = first[-1]
    cached = cache.get_seq_length()
    new = tokenizer.build_chat_input("再说一次")["input_ids"]
    second = list(
        taught.stream_chat(
            tokenizer,
            "再说一次",
            history,
            past_key_values=cache,
            do_sample=False,
            return_past_key_values=True,
            max_new_tokens=3,
        )
    )

    # The same by hand: the new message after everything cached.
    prompt = tokenizer.build_chat_input("你叫什么名字？")["input_ids"]
    reply = tokenizer.encode("\n", add_special_tokens=False)
    reply += tokenizer.encode("我是小助手。😀 鑫！", add_special_tokens=False)
    whole = torch.cat((prompt, torch.tensor([reply]), new), dim=1)
    assert cached == whole.shape[1] - new.shape[1]
    expected = taught.generate(whole, **{**GREEDY, "max_new_tokens": 3})[0, whole.shape[1] :]
    [ids] = [tokenizer.encode(second[-1][0], add_special_tokens=False)]
    assert tokenizer.decode(expected).strip() == tokenizer.decode(ids).strip()
    assert second[-1][2] is cache


def test_a_stream_of_a_prefix_model_agrees_with_chat(
    taught_model_dir: Path, tokenizer: ChatGLMTokenizer
) -> None:
    torch.manual_seed(0)
    config = ChatGLMConfig.from_pretrained(taught_model_dir, pre_seq_len=3)
    model = ChatGLMForConditionalGeneration.from_pretrained(taught_model_dir, config=config).eval()
    settings = {"do_sample": False, "max_new_tokens": 8}

    *_, (streamed, _) = model.stream_chat(tokenizer, "你叫什么名字？", **settings)
    response, _ = model.chat(tokenizer, "你叫什么名字？", **settings)

    assert streamed == response
    assert response


def call_chat(model: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer) -> None:
    model.chat(tokenizer, "你好")


def call_stream_chat(model: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer) -> None:
    list(model.stream_chat(tokenizer, "你好"))


@pytest.mark.parametrize("call", [call_chat, call_stream_chat])
def test_scores_that_are_not_numbers_end_a_chat_with_a_clear_error(
    tiny_model_dir: Path, tokenizer: ChatGLMTokenizer, call: Callable[..., None]
) -> None:
    model = ChatGLMForConditionalGeneration.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        model.transformer.output_layer.weight[7] = torch.nan

    with pytest.raises(FloatingPointError, match=r"not finite.*dtype=torch.bfloat16"):
        call(model, tokenizer)


def test_chatting_without_sampling_warns_of_nothing(
    taught: ChatGLMForConditionalGeneration,
    tokenizer: ChatGLMTokenizer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        taught.chat(tokenizer, "你好", do_sample=False, max_new_tokens=2)
        list(taught.stream_chat(tokenizer, "你好", do_sample=False, max_new_tokens=2))
    finally:
        library.removeHandler(caplog.handler)

    assert caplog.records == []
