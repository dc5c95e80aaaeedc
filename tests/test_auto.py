"""After `import glmtune.auto`, transformers' Auto classes give ours and run no code of a folder."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import glmtune.auto  # noqa: F401
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import (
    ChatGLMForConditionalGeneration,
    ChatGLMForSequenceClassification,
)
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

PUBLISHED_AUTO_MAP = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSequenceClassification": "modeling_chatglm.ChatGLMForSequenceClassification",
}
AUTO_CLASSES = [
    (AutoConfig, ChatGLMConfig),
    (AutoTokenizer, ChatGLMTokenizer),
    (AutoModel, ChatGLMForConditionalGeneration),
    (AutoModelForCausalLM, ChatGLMForConditionalGeneration),
    (AutoModelForSeq2SeqLM, ChatGLMForConditionalGeneration),
    (AutoModelForSequenceClassification, ChatGLMForSequenceClassification),
]


def extend_json(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **fields}), encoding="utf-8")


@pytest.fixture
def trap(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint laid out as published, whose code leaves the file `witness` when it runs."""
    folder = tmp_path / "trap"
    shutil.copytree(tiny_model_dir, folder)
    extend_json(folder / "config.json", auto_map=PUBLISHED_AUTO_MAP)
    extend_json(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    )
    for name in ("configuration_chatglm", "modeling_chatglm", "tokenization_chatglm"):
        code = f"open({str(tmp_path / 'witness')!r}, 'w').close()\n"
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return folder


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}, {"trust_remote_code": False}])
@pytest.mark.parametrize(("auto_class", "expected"), AUTO_CLASSES)
def test_an_auto_class_gives_ours_and_runs_no_code_of_the_folder(
    trap: Path, auto_class: Any, expected: type, trust: dict[str, bool]
) -> None:
    loaded = auto_class.from_pretrained(trap, **trust)

    assert type(loaded) is expected
    assert not (trap.parent / "witness").exists()
    runpy.run_path(str(trap / "modeling_chatglm.py"))
    assert (trap.parent / "witness").exists(), "the trap does not work, so the test shows nothing"


def test_a_tokenizer_is_found_without_a_tokenizer_config(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(tiny_model_dir / name, tmp_path / name)

    tokenizer: object = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is ChatGLMTokenizer


def test_a_saved_model_is_found_again_by_its_own_config(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    AutoModel.from_pretrained(tiny_model_dir).save_pretrained(tmp_path)

    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))

    assert written["model_type"] == "chatglm"
    assert written["architectures"] == ["ChatGLMForConditionalGeneration"]  # which vLLM knows
    assert type(AutoModel.from_pretrained(tmp_path)) is ChatGLMForConditionalGeneration
