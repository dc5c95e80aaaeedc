"""The `openai` client over a real socket, against `glmtune chat` and the ids of training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import LESSONS, TURNS
from tests.use.serve.conftest import Running, running

from glmtune.conversation import Conversation, read_messages
from glmtune.use.generate import Sampling
from glmtune.use.open import open_session
from glmtune.use.serve.hosted import open_hosted

openai = pytest.importorskip("openai", reason="openai is not installed")
QUESTION, ANSWER = TURNS[0][1], TURNS[1][1]


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_the_base_and_every_adapter_are_listed(client: Any, server: Running) -> None:
    models = client.models.list().data

    assert [model.id for model in models] == [server.base, "one", "two"]
    assert [(model.root, model.parent) for model in models] == [
        (server.base, None), (server.base, server.base), (server.base, server.base),
    ]  # fmt: skip
    assert client.models.retrieve("one").id == "one"


def test_a_greedy_answer_is_that_of_chat(
    client: Any, server: Running, taught_model_dir: Path, adapters: dict[str, Path]
) -> None:
    answers = {}
    for name in (server.base, "one", "two"):
        session = open_session(
            str(taught_model_dir), adapters.get(name),
            sampling=Sampling(temperature=0, max_new_tokens=40),
        )  # fmt: skip
        reply = session.reply(QUESTION)
        answer = client.chat.completions.create(
            model=name, messages=user(QUESTION), temperature=0, max_tokens=40
        )
        assert answer.choices[0].message.content == reply.text
        assert answer.choices[0].finish_reason == reply.ended_by
        assert answer.usage.completion_tokens == reply.num_tokens
        answers[name] = reply.text
    assert answers[server.base] == ANSWER
    assert len(set(answers.values())) == 3


def test_a_streamed_answer_is_the_whole_one(client: Any, server: Running) -> None:
    asked = {"model": "one", "messages": user(QUESTION), "temperature": 0.9, "top_p": 1.0,
             "max_tokens": 30, "seed": 5, "n": 2}  # fmt: skip
    whole = client.chat.completions.create(**asked)

    texts, usage = {0: "", 1: ""}, None
    ends: dict[int, Any] = {}
    for chunk in client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert "\ufffd" not in (choice.delta.content or "")[:-1]
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)

    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert texts[0] != texts[1]


def test_a_seed_decides_whoever_else_is_in_the_batch(client: Any, server: Running) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def draw(seed: int) -> str:
        answer = client.chat.completions.create(
            model="two", messages=user("写一首诗"), temperature=1.0, max_tokens=24, seed=seed
        )
        return str(answer.choices[0].message.content)

    alone = [draw(seed) for seed in (1, 2, 3)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(draw, (1, 2, 3, 1, 2, 3)))

    assert together == alone * 2
    assert len(set(alone)) == 3


TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather"}}]


@pytest.fixture(scope="module")
def tool_server(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A server of a tiny model that has learned to call a tool by heart."""
    import torch

    from glmtune.model.load import load_model, load_tokenizer
    from glmtune.template.select import template_for

    question, remark, result, answer = LESSONS[1]
    call = {"function": {"name": "weather", "arguments": {"city": "北京"}}}
    lesson = read_messages(
        [
            {"role": "user", "content": question},
            {"role": "assistant", "content": remark, "tool_calls": [call]},
            {"role": "tool", "content": result},
            {"role": "assistant", "content": answer},
        ],
        TOOLS,
    )
    model: Any = load_model(tiny_model_dir).train()
    tokenizer = load_tokenizer(tiny_model_dir)
    example = template_for(tokenizer).encode(Conversation(lesson))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("tools") / "tools"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with running(open_hosted(str(folder), {})) as started:
        yield started


def test_a_tool_is_called_and_its_result_answered(tool_server: Running) -> None:
    """The loop that LangChain and others run."""
    client = openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="none", max_retries=0)
    question, remark, result, answer = LESSONS[1]
    asked = {"model": "tools", "temperature": 0, "max_tokens": 80, "tools": TOOLS}

    first = client.chat.completions.create(**asked, messages=user(question)).choices[0]
    streamed = [
        choice
        for chunk in client.chat.completions.create(**asked, messages=user(question), stream=True)
        for choice in chunk.choices
    ]

    assert (first.finish_reason, first.message.content) == ("tool_calls", remark)
    [call] = first.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert call.function.arguments == '{"city": "北京"}'
    assert "".join(choice.delta.content or "" for choice in streamed) == remark
    [[delta]] = [c.delta.tool_calls for c in streamed if c.delta.tool_calls]
    assert (delta.function.name, delta.function.arguments) == ("weather", call.function.arguments)
    assert streamed[-1].finish_reason == "tool_calls"

    messages = [
        *user(question),
        first.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": result},
    ]
    last = client.chat.completions.create(**asked, messages=messages).choices[0]
    assert (last.finish_reason, last.message.content) == ("stop", answer)
    forced = {"type": "function", "function": {"name": "weather"}}
    for choice in (forced, "required"):
        again = client.chat.completions.create(
            **asked, messages=user(question), tool_choice=choice
        ).choices[0]
        assert (again.message.content or "").partition("\n")[0] in ("weather", "")
        assert again.message.content or again.message.tool_calls[0].function.name == "weather"
    other = {"type": "function", "function": {"name": "none"}}
    with pytest.raises(openai.BadRequestError, match="'none', which is not among the tools"):
        client.chat.completions.create(**asked, messages=user(question), tool_choice=other)


def test_a_stop_string_ends_the_answer_before_it(client: Any, server: Running) -> None:
    asked = {"model": server.base, "messages": user(QUESTION), "temperature": 0}
    assert "手。" in ANSWER

    whole = client.chat.completions.create(**asked, stop=["没有", "手。"])
    pieces = [
        choice.delta.content or ""
        for chunk in client.chat.completions.create(**asked, stop="手。", stream=True)
        for choice in chunk.choices
    ]

    assert whole.choices[0].message.content == ANSWER.partition("手。")[0] == "".join(pieces)
    assert whole.choices[0].finish_reason == "stop"


def test_scores_of_tokens_are_those_of_the_model(client: Any, server: Running) -> None:
    answer = client.chat.completions.create(
        model=server.base, messages=user(QUESTION), temperature=0, logprobs=True, top_logprobs=2
    )

    scored = answer.choices[0].logprobs.content
    assert len(scored) == answer.usage.completion_tokens
    raw = b"".join(bytes(each.bytes) for each in scored).decode()
    assert raw.split() == ANSWER.split()
    assert all(each.logprob == max(t.logprob for t in each.top_logprobs) for each in scored)
    assert all(-0.5 < each.logprob <= 0 for each in scored)  # the lesson was learned by heart


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_json_object_is_one_even_if_the_model_never_learned_json(
    client: Any, server: Running, temperature: float
) -> None:
    import json

    for name in (server.base, "one", "two"):
        answer = client.chat.completions.create(
            model=name, messages=user(QUESTION), temperature=temperature, max_tokens=60, seed=3,
            response_format={"type": "json_object"},
        ).choices[0]  # fmt: skip
        assert answer.message.content.startswith("{")
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.message.content), dict)


def test_a_text_is_continued_without_roles(client: Any, server: Running) -> None:
    answer = client.completions.create(
        model="one", prompt=["今天", "The quick"], max_tokens=5, temperature=0, logprobs=1
    )

    assert [choice.index for choice in answer.choices] == [0, 1]
    scored = [choice.logprobs.tokens for choice in answer.choices]
    assert ["".join(tokens) for tokens in scored] == [choice.text for choice in answer.choices]
    assert sum(map(len, scored)) == answer.usage.completion_tokens
    streamed = client.completions.create(
        model="one", prompt="今天", max_tokens=5, temperature=0, stream=True
    )
    text = "".join(choice.text for chunk in streamed for choice in chunk.choices)
    assert text == answer.choices[0].text


def test_an_embedding_is_the_mean_of_the_last_hidden_states(
    client: Any, server: Running, taught_model_dir: Path
) -> None:
    import torch

    from glmtune.model.load import load_model, load_tokenizer
    from glmtune.template.select import template_for

    texts = ["今天的天气很好", "北京"]
    got = client.embeddings.create(model=server.base, input=texts)
    tuned = client.embeddings.create(model="one", input=texts[0], encoding_format="float")

    model: Any = load_model(taught_model_dir).eval()
    template = template_for(load_tokenizer(taught_model_dir), "plain")
    ids = template.prompt_ids(Conversation(read_messages(user(texts[0]))))
    with torch.no_grad():
        hidden = model.transformer(input_ids=torch.tensor([ids])).last_hidden_state
    torch.testing.assert_close(
        torch.tensor(got.data[0].embedding), hidden[0].mean(0), rtol=1e-4, atol=1e-4
    )
    assert got.data[1].embedding != got.data[0].embedding != tuned.data[0].embedding
    assert got.usage.prompt_tokens > len(ids)


def test_errors_are_those_that_the_client_knows(client: Any, server: Running) -> None:
    asked = {"model": server.base, "messages": user(QUESTION)}
    with pytest.raises(openai.NotFoundError, match="there is no model 'none' here"):
        client.chat.completions.create(**{**asked, "model": "none"})
    with pytest.raises(openai.BadRequestError, match="'temperature' cannot be used") as caught:
        client.chat.completions.create(**asked, temperature=-1)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="leaves no room") as caught:
        client.chat.completions.create(**{**asked, "messages": user("北京" * 600)})
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="both from the user"):
        client.chat.completions.create(**{**asked, "messages": user("a") * 2})
    messages = [*user("a"), {"role": "assistant", "content": "b"}]
    with pytest.raises(openai.BadRequestError, match="last message is from the assistant"):
        client.chat.completions.create(**{**asked, "messages": messages})
    with pytest.raises(openai.BadRequestError, match="'logit_bias' is not supported"):
        client.chat.completions.create(**asked, logit_bias={"5": 1})
