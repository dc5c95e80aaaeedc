"""A folder whose tokenizer others would misread is found out, in a process without glmtune."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from glmtune.errors import TrainingError
from glmtune.model.chatglm.stock_files import write_stock_files
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.prove import stock_reader
from glmtune.prove.proof import Proof
from glmtune.prove.stock_reader import check_stock_reader
from glmtune.recipe.choices import LAYOUTS, Layout
from glmtune.template.chatglm import ChatGLMTemplate


@pytest.fixture
def folder(tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path) -> Path:
    write_stock_files(tmp_path, tiny_tokenizer)
    return tmp_path


def check(folder: Path, tokenizer: ChatGLMTokenizer, layout: Layout = "official") -> Proof | str:
    return check_stock_reader(folder, ChatGLMTemplate(tokenizer, layout), tokenizer)


def test_what_we_write_is_read_by_transformers_alone(
    folder: Path, tiny_tokenizer: ChatGLMTokenizer
) -> None:
    assert check(folder, tiny_tokenizer) == "5 texts and 3 prompts have the same ids"


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_passes_with_the_prompts_it_has(
    layout: Layout, tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    write_stock_files(tmp_path, tiny_tokenizer, layout=layout)

    number = {"official": 3, "tutorial": 3, "chatglm2": 2, "plain": 1}[layout]
    assert check(tmp_path, tiny_tokenizer, layout) == (
        f"5 texts and {number} prompts have the same ids"
    )


def _edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            _edit("tokenizer.json", '"prepend":"▁"', '"prepend":"_"'),
            r"encodes the text '你好，世界。'",
        ),
        (_edit("chat_template.jinja", "~ '\\n' -}}", "-}}"), r"encodes the prompt '你好，世界。'"),
        (_edit("chat_template.jinja", "guarded(content)", "content"), r"the prompt"),
        (_edit("tokenizer.json", '"merges"', '"merge"'), r"cannot read the tokenizer: "),
        (_edit("tokenizer.json", '"version"', "version"), r"cannot read the tokenizer: "),
    ],
    ids=["pieces", "newline", "guard", "merges", "JSON"],
)
def test_a_folder_that_others_would_misread_fails(
    spoil: Callable[[Path], None],
    problem: str,
    folder: Path,
    tiny_tokenizer: ChatGLMTokenizer,
) -> None:
    spoil(folder)

    with pytest.raises(TrainingError, match=problem):
        check(folder, tiny_tokenizer)


def not_run(result: Proof | str) -> str:
    assert isinstance(result, Proof)
    assert result.verdict == "not run"
    return result.detail


def test_without_tokenizer_json_nothing_is_claimed(
    folder: Path, tiny_tokenizer: ChatGLMTokenizer
) -> None:
    (folder / "tokenizer.json").unlink()

    assert not_run(check(folder, tiny_tokenizer)) == "there is no tokenizer.json; see the log"


def test_a_tokenizer_that_transformers_has_itself_needs_no_proof(
    tiny_llama_dir: Path, folder: Path, tiny_tokenizer: ChatGLMTokenizer
) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(tiny_llama_dir)
    template = ChatGLMTemplate(tiny_tokenizer)

    detail = not_run(check_stock_reader(folder, template, theirs))

    assert detail == "the tokenizer is transformers' own"


def test_a_machine_without_time_is_no_failure(
    folder: Path, tiny_tokenizer: ChatGLMTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock_reader, "TIMEOUT_SECONDS", 0.01)

    assert not_run(check(folder, tiny_tokenizer)) == "no answer within 0.01 seconds"


def test_the_reader_imports_neither_glmtune_nor_torch(
    folder: Path, tiny_tokenizer: ChatGLMTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    real = subprocess.run

    def spy(command: list[str], **options: Any) -> Any:
        told = "print(json.dumps({**found, 'modules': sorted(sys.modules)}))"
        ran = real([*command[:-1], f"{command[-1]}\n{told}"], **options)
        seen.extend(json.loads(ran.stdout.splitlines()[-1])["modules"])
        return ran

    monkeypatch.setattr(subprocess, "run", spy)
    check(folder, tiny_tokenizer)

    assert "transformers" in seen
    assert not [name for name in seen if name.split(".")[0] in ("glmtune", "peft")]
    assert not [name for name in seen if name.startswith("torch.")]
