"""Sequences join and leave between two tokens: places, fairness, the queue, and what is reused."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.use.serve.conftest import make_adapter, until

from glmtune.conversation import Conversation, Message
from glmtune.errors import CheckpointError
from glmtune.recipe.methods import Ia3Section, LoraSection, PtuningV2Section
from glmtune.use.chat import reply_text
from glmtune.use.generate import Request, Sampling, Slot
from glmtune.use.open import open_session
from glmtune.use.serve.engine import Engine, Job, Limits, QueueFullError
from glmtune.use.serve.hosted import Hosted, open_hosted
from glmtune.use.serve.metrics import Metrics

GREEDY = Sampling(temperature=0)
LONG = 400  # tokens of an answer that nobody waits for the end of


@contextmanager
def started(hosted: Hosted, **limits: Any) -> Iterator[Engine]:
    defaults = {"max_batch": 2, "num_kept": 4, "max_length": 512, "share_tokens": 8}
    engine = Engine(hosted, Limits(**{**defaults, **limits}), Metrics())
    engine.start()
    try:
        yield engine
    finally:
        engine.close()
        assert not engine.is_alive


def job_of(
    hosted: Hosted, name: str, text: str, num_tokens: int, *, stops: bool = False
) -> tuple[Job, threading.Event]:
    """An answer to a question, and an event that is set when it is over."""
    served = hosted.names[name]
    ids = served.template.prompt_ids(Conversation((Message("user", text),)))
    over = threading.Event()
    slot = Slot(
        Request(ids, num_tokens), GREEDY, served.template.stop_ids if stops else (),
        group=served.adapter,
    )  # fmt: skip
    job = Job(served.lane, slot, lambda: over.set() if job.ending else None)
    return job, over


def run(engine: Engine, *jobs: tuple[Job, threading.Event]) -> list[list[int]]:
    engine.submit([job for job, _ in jobs])
    for job, over in jobs:
        assert over.wait(30)
        assert job.ending == "done", job.slot.failure
    return [job.slot.completion for job, _ in jobs]


def test_answers_of_several_adapters_in_one_batch_are_those_of_each_alone(hosted: Hosted) -> None:
    questions = ["你叫什么名字？", "北京天气怎么样？", "写一首诗"]
    with started(hosted, max_batch=12) as engine:
        alone = {
            (name, text): run(engine, job_of(hosted, name, text, 12))[0]
            for name in hosted.names
            for text in questions
        }
        keys = list(alone)
        together = run(engine, *(job_of(hosted, name, text, 12) for name, text in keys))

    assert together == [alone[key] for key in keys]
    assert len({tuple(each) for each in together}) == 9


def test_a_short_request_does_not_wait_for_long_answers(hosted: Hosted) -> None:
    first, *_ = hosted.names
    with started(hosted) as engine:
        long = [job_of(hosted, first, text, LONG) for text in "abc"]
        engine.submit([job for job, _ in long])
        until(lambda: engine.num_running == 2 and long[0][0].slot.completion)
        short = job_of(hosted, "one", "你好", 3)
        [got] = run(engine, short)
        left = [LONG - len(job.slot.completion) for job, _ in long]
        assert min(left) > LONG / 2  # all of them have most of their answers before them
        assert engine.metrics.value("preemptions_total") > 0
        for job, _ in long:
            assert job.ending == ""
            engine.release(job)
        [alone] = run(engine, job_of(hosted, "one", "你好", 3))

    assert got == alone


def test_an_answer_that_made_room_is_the_same_when_it_is_over(hosted: Hosted) -> None:
    first, *_ = hosted.names
    for num_kept in (0, 4):
        with started(hosted, max_batch=4) as engine:
            alone = run(engine, *(job_of(hosted, first, text, 20) for text in "abc"))
        with started(hosted, max_batch=1, num_kept=num_kept) as engine:
            taken_in_turn = run(engine, *(job_of(hosted, first, text, 20) for text in "abc"))
            assert engine.metrics.value("preemptions_total") >= 4

        assert taken_in_turn == alone


def test_a_full_queue_refuses_and_says_when_to_try_again(hosted: Hosted) -> None:
    first, *_ = hosted.names
    with started(hosted, max_queue=2, share_tokens=1000) as engine:
        jobs = [job_of(hosted, first, text, LONG)[0] for text in "abcd"]
        engine.submit(jobs[:2])
        until(lambda: engine.num_running == 2)
        engine.submit(jobs[2:])
        with pytest.raises(QueueFullError, match="try again in 1 seconds"):
            engine.submit([job_of(hosted, first, "e", 1)[0]])
        for job in jobs:
            engine.release(job)
        until(lambda: all(job.ending == "released" for job in jobs))
        assert (engine.num_running, engine.num_waiting) == (0, 0)
        run(engine, job_of(hosted, first, "e", 1))


def test_the_beginning_of_a_conversation_is_not_computed_again(hosted: Hosted) -> None:
    first, *_ = hosted.names
    served = hosted.names[first]
    fed: list[int] = []
    handle = served.lane.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: fed.append(kwargs["input_ids"].size(1)), with_kwargs=True
    )
    try:
        with started(hosted) as engine:
            question = job_of(hosted, first, "北京是中国的首都，有三千多年的历史。", 6)
            run(engine, question)
            run(engine, job_of(hosted, first, "x", 6))  # another conversation in between
            ids = [*question[0].slot.ids, 20, 21, 22]
            del fed[:]
            over = threading.Event()
            slot = Slot(Request(ids, 3), GREEDY, (), group=served.adapter)
            job = Job(served.lane, slot, lambda: over.set() if job.ending else None)
            run(engine, (job, over))
            assert fed == [4, 1, 1]  # the last token of an answer was never an input
            assert job.num_reused == len(ids) - 4
            tuned = job_of(hosted, "one", "北京是中国的首都，有三千多年的历史。", 1)
            run(engine, tuned)  # keys and values of one adapter are not another's
            assert tuned[0].num_reused == 0
        with started(hosted, num_kept=0) as engine:
            fresh = Slot(Request(ids, 3), GREEDY, (), group=served.adapter)
            over.clear()
            again = Job(served.lane, fresh, lambda: over.set() if again.ending else None)
            run(engine, (again, over))
    finally:
        handle.remove()

    assert fresh.completion == slot.completion


def test_a_long_prompt_is_computed_in_parts_while_others_go_on(hosted: Hosted) -> None:
    first, *_ = hosted.names
    answers = []
    for prompt_tokens in (512, 24):
        with started(hosted, max_batch=4, prompt_tokens=prompt_tokens) as engine:
            jobs = [job_of(hosted, first, text, 12) for text in ("长" * 150, "你好", "北京" * 40)]
            answers.append(run(engine, *jobs))
            steps = engine.metrics.value("steps_total")
        assert (steps > 20) == (prompt_tokens == 24)

    assert answers[0] == answers[1]


def test_a_request_whose_time_is_over_is_ended_running_or_waiting(hosted: Hosted) -> None:
    first, *_ = hosted.names
    with started(hosted, max_batch=1, timeout_seconds=0.3, share_tokens=1000) as engine:
        jobs = [job_of(hosted, first, text, LONG) for text in "ab"]
        slow = hosted.names[first].lane.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
        try:
            engine.submit([job for job, _ in jobs])
            for job, over in jobs:
                assert over.wait(20)
                assert job.ending == "timeout"
        finally:
            slow.remove()


def test_a_step_that_fails_fails_its_requests_and_not_the_server(hosted: Hosted) -> None:
    first, *_ = hosted.names

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory /home/user")

    with started(hosted) as engine:
        handle = hosted.names[first].lane.model.register_forward_pre_hook(fail)
        job, over = job_of(hosted, first, "a", 5)
        engine.submit([job])
        assert over.wait(20)
        handle.remove()

        assert (job.ending, "out of memory" in job.slot.failure) == ("failed", True)
        assert "/home" not in job.slot.failure
        run(engine, job_of(hosted, first, "a", 5))


@pytest.mark.parametrize(
    "section",
    [
        Ia3Section(target_modules=("query_key_value",), feedforward_modules=()),
        PtuningV2Section(pre_seq_len=3),
        LoraSection(r=2, target_modules=("query_key_value",), use_dora=True),
    ],
    ids=lambda section: section.method,
)
def test_an_adapter_of_another_method_takes_turns_with_its_base(
    section: Any, taught_model_dir: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder = make_adapter(taught_model_dir, tmp_path / "other", section, strength=1.0)
    sampling = Sampling(temperature=0, max_new_tokens=10)
    expected = {
        name: open_session(str(taught_model_dir), adapter, sampling=sampling).reply("你好").text
        for name, adapter in ((taught_model_dir.name, None), ("other", folder))
    }
    hosted = open_hosted(str(taught_model_dir), {"other": folder})

    with started(hosted) as engine:
        jobs = {name: job_of(hosted, name, "你好", 10, stops=True) for name in expected}
        completions = run(engine, *jobs.values())
        vector = [hosted.names[n].lane.embed(hosted.names[n].adapter, [5, 6, 7]) for n in expected]

    answers = [reply_text(hosted.names["other"].template.parse(ids)) for ids in completions]
    assert dict(zip(expected, answers, strict=True)) == expected
    assert answers[0] != answers[1]
    assert vector[0] != vector[1]
    with pytest.raises(CheckpointError, match="only adapters by plain LoRA share a process"):
        open_hosted(str(taught_model_dir), {"other": folder, **adapters})


def test_an_adapter_folder_alone_brings_its_base(
    taught_model_dir: Path, adapters: dict[str, Path]
) -> None:
    hosted = open_hosted(str(adapters["one"]), {})

    assert list(hosted.names) == [taught_model_dir.name, "one"]
    with pytest.raises(CheckpointError, match="the base has this name, too"):
        open_hosted(str(taught_model_dir), {taught_model_dir.name: adapters["one"]})
    with pytest.raises(CheckpointError, match="without white"):
        open_hosted(str(taught_model_dir), {"a b": adapters["one"]})


def test_a_llama_is_served_by_its_own_template(tiny_llama_dir: Path) -> None:
    hosted = open_hosted(str(tiny_llama_dir), {})
    session = open_session(str(tiny_llama_dir), sampling=Sampling(temperature=0, max_new_tokens=8))
    with started(hosted) as engine:
        [ids] = run(engine, job_of(hosted, tiny_llama_dir.name, "hello", 8, stops=True))

    served = hosted.names[tiny_llama_dir.name]
    assert served.template.parse(ids)[0].content == session.reply("hello").text
    spelled = served.text_ids("<|im_end|>")
    assert served.tokenizer.convert_tokens_to_ids("<|im_end|>") not in spelled
