"""Fixtures that tests share: the reference vectors, and tiny models and tokenizers made here."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings
from tests.tiny_model import make_llama, make_model, make_tokenizer

if TYPE_CHECKING:
    from glmtune.conversation import Role
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

os.environ["GLMTUNE_LANG"] = "en"  # whatever the locale of who runs the tests
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices are slower on two threads
if not torch.cuda.is_available():  # kernels run in the interpreter; read when triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A busy machine generates examples slowly, and coverage slows it further: no fault of a test.
settings.register_profile("busy", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("busy")
SHARED = Path(__file__).resolve().parents[2] / "shared"

TURNS: tuple[tuple[Role, str], ...] = (
    ("user", "你叫什么名字？"),
    ("assistant", "我是小助手。😀 鑫！"),
    ("user", "再说一次"),
    ("assistant", "小助手。"),
)
LESSONS = (
    TURNS,
    ("北京天气怎么样？", "我查一下。", '{"celsius": 3}', "北京现在 3 度。"),
)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference vectors and real rows, which is not part of this repository."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"the reference vectors are not in this checkout (looked in {SHARED})")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Vectors made by the original code; `tests/golden` has our own, which are always there."""
    return shared / "golden"


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatGLMTokenizer:
    """A tokenizer of 480 pieces and 489 ids, made on the spot; its folder is `name_or_path`."""
    return make_tokenizer(tmp_path_factory.mktemp("tiny-tokenizer"))


@pytest.fixture(scope="session")
def tiny_model_dir(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: ChatGLMTokenizer
) -> Path:
    """A checkpoint folder: 2 layers, 64 wide, float32, with reproducible random weights."""
    return make_model(tmp_path_factory.mktemp("tiny-model"), tiny_tokenizer)


@pytest.fixture(scope="session")
def taught_model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The tiny checkpoint after overfitting on `LESSONS`, in the official layout."""
    import torch

    from glmtune.conversation import Conversation, Message
    from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
    from glmtune.template.chatglm import ChatGLMTemplate
    from glmtune.tool_calls import render_tool_call

    tokenizer = ChatGLMTokenizer.from_pretrained(tiny_model_dir)
    model = ChatGLMForConditionalGeneration.from_pretrained(tiny_model_dir)
    template = ChatGLMTemplate(tokenizer)
    name, weather = LESSONS
    lessons = [
        Conversation(tuple(Message(*turn) for turn in name)),
        Conversation(
            (
                Message("user", weather[0]),
                Message("assistant", weather[1]),
                Message("assistant", render_tool_call({"city": "北京"}), metadata="weather"),
                Message("observation", weather[2]),
                Message("assistant", weather[3]),
            )
        ),
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    examples = template.encode_batch(lessons)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(60):
            for example in examples:
                loss = model(
                    input_ids=torch.tensor([example.input_ids]),
                    labels=torch.tensor([example.labels]),
                ).loss
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert loss.item() < 0.01, f"the tiny model did not learn its lessons: {loss.item()}"
    folder = tmp_path_factory.mktemp("taught-model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers with a chat template and reproducible random weights."""
    return make_llama(tmp_path_factory.mktemp("tiny-llama"))
