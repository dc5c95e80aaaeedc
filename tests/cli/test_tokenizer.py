"""`glmtune tokenizer train`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.errors import DataError, OutputError
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

runner = CliRunner()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    lines = ["春天来了，花儿开了，小鸟在树上唱歌。", "机器学习是让计算机从数据中学习规律的方法。"]
    path.write_text("\n\n".join([*lines, "I like reading books, and you?"]), encoding="utf-8")
    return path


def test_a_tokenizer_is_made_from_texts(texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    command = ["tokenizer", "train", str(texts), "--output", str(folder), "--vocab-size", "310"]
    shown = runner.invoke(app, command)

    assert shown.exit_code == 0, shown.output
    assert "319 ids" in shown.output
    tokenizer = ChatGLMTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("春天来了。😀", add_special_tokens=False)["input_ids"]) == (
        "春天来了。😀"
    )


def test_a_folder_with_something_in_it_is_left_alone(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    command = ["tokenizer", "train", str(texts), "--output", str(tmp_path / "full")]
    shown = runner.invoke(app, command)

    assert isinstance(shown.exception, OutputError)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("size", "expected_message"), [("100", "at least"), ("60000", "are too few for")]
)
def test_a_size_that_does_not_fit_is_explained(
    size: str, expected_message: str, texts: Path, tmp_path: Path
) -> None:
    command = ["tokenizer", "train", str(texts), "-o", str(tmp_path / "t"), "--vocab-size", size]
    shown = runner.invoke(app, command)

    assert isinstance(shown.exception, DataError)
    assert expected_message in str(shown.exception)
