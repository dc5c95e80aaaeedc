"""Answers are resumed only for the model, the prompts and the settings that they were made with."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from shutil import copytree
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune.errors import CheckpointError, OutputError
from glmtune.methods import method
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import AdapterSection, LoraSection, PtuningV2Section
from glmtune.recipe.sections import DataSection
from glmtune.template.select import template_for
from glmtune.use.generate import Sampling
from glmtune.use.predict import (
    RECORDED_LATER,
    AnswerFile,
    check_output,
    identify,
    read_questions,
)


def save(base: Path, folder: Path, section: AdapterSection) -> None:
    """Save an adapter with random weights; those of every call are different."""
    model = method.attach(load_model(base), section)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_()
    method.save(model, folder, template_for(load_tokenizer(base)))


def identity_of(base: Path, adapter: Path | None) -> dict[str, Any]:
    template = template_for(load_tokenizer(base))
    return identify(str(base), adapter, template, [], Sampling(), "auto")


def interrupt(output: Path, identity: dict[str, Any]) -> None:
    """Leave a partial file with one answer."""

    def answers() -> Iterator[dict[str, Any]]:
        yield {"row": 1, "answer": "好"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        AnswerFile(output, identity).write(answers())


@pytest.mark.parametrize("section", [LoraSection(r=2), PtuningV2Section(pre_seq_len=3)])
def test_answers_of_two_adapters_in_the_same_folder_are_not_mixed(
    tiny_model_dir: Path, tmp_path: Path, section: AdapterSection
) -> None:
    folder, output = tmp_path / "adapter", tmp_path / "answers.jsonl"
    save(tiny_model_dir, folder, section)
    interrupt(output, identity_of(tiny_model_dir, folder))
    same = AnswerFile(output, identity_of(tiny_model_dir, folder))
    same.resume()
    assert list(same.lines) == [1]

    save(tiny_model_dir, folder, section)

    with pytest.raises(OutputError, match="another run; adapter, adapter_digest changed"):
        AnswerFile(output, identity_of(tiny_model_dir, folder)).resume()


def test_answers_of_an_adapter_with_another_scale_are_not_mixed(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    save(tiny_model_dir, tmp_path / "adapter", LoraSection(r=2))
    interrupt(output, identity_of(tiny_model_dir, tmp_path / "adapter"))
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 1}))

    with pytest.raises(OutputError, match="another run; adapter_digest changed"):
        AnswerFile(output, identity_of(tiny_model_dir, tmp_path / "adapter")).resume()


def test_answers_of_a_model_that_was_tuned_again_are_not_mixed(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model, output = copytree(tiny_model_dir, tmp_path / "model"), tmp_path / "answers.jsonl"
    interrupt(output, identity_of(model, None))
    AnswerFile(output, identity_of(model, None)).resume()
    tensors = load_file(model / "model.safetensors")
    tensors["transformer.encoder.final_layernorm.weight"] += 0.01
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(OutputError, match="another run; model_digest changed"):
        AnswerFile(output, identity_of(model, None)).resume()


def test_a_partial_file_of_an_earlier_version_is_resumed_with_its_own_adapter_alone(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder, output = tmp_path / "adapter", tmp_path / "answers.jsonl"
    save(tiny_model_dir, folder, LoraSection(r=2))
    earlier = identity_of(tiny_model_dir, folder)
    for key in RECORDED_LATER:
        del earlier[key]
    assert len(earlier["adapter"]) == 1
    interrupt(output, earlier)

    same = AnswerFile(output, identity_of(tiny_model_dir, folder))
    same.resume()
    assert list(same.lines) == [1]

    save(tiny_model_dir, folder, LoraSection(r=2))
    with pytest.raises(OutputError, match="another run; adapter changed"):
        AnswerFile(output, identity_of(tiny_model_dir, folder)).resume()
    prefix = tmp_path / "prefix"
    save(tiny_model_dir, prefix, PtuningV2Section(pre_seq_len=3))
    interrupt(output, {**earlier, "adapter": []})  # what was recorded of any prefix
    with pytest.raises(OutputError, match="another run; adapter changed"):
        AnswerFile(output, identity_of(tiny_model_dir, prefix)).resume()


@pytest.mark.parametrize("first", ["[1, 2]", "[0]", '"model"', "7", "null"])
def test_a_first_line_without_a_run_identity_is_refused(tmp_path: Path, first: str) -> None:
    (tmp_path / "answers.jsonl.partial").write_text(f"{first}\n")

    with pytest.raises(OutputError, match="is damaged, or was not written by glmtune predict"):
        AnswerFile(tmp_path / "answers.jsonl", {"model": "m"}).resume()


@pytest.mark.parametrize(
    "line", ['{"row": "1"}', '{"row": [1]}', "[1]", "7", "{}", '{"row": 1.5}', "[" * 100_000]
)
def test_a_partial_file_with_other_lines_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "answers.jsonl.partial").write_text(f'{{"model": "m"}}\n{line}\n')
    with pytest.raises(OutputError, match="is damaged, or was not written by glmtune predict"):
        AnswerFile(tmp_path / "answers.jsonl", {"model": "m"}).resume()


def test_ids_that_json_has_no_type_for_are_text(
    tmp_path: Path, tiny_tokenizer: ChatGLMTokenizer
) -> None:
    ids = {
        "date": (pa.array([1], pa.date32()), "1970-01-02"),
        "time": (pa.array([0], pa.timestamp("s")), "1970-01-01 00:00:00"),
        "bytes": (pa.array([b"a\xff"]), "a\\xff"),
        "decimal": (pa.array([Decimal("1.50")]), "1.50"),
        "nan": (pa.array([float("nan")]), "nan"),
        "list": (pa.array([[b"a", b"b"]]), ["a", "b"]),
        "struct": (pa.array([{"k": b"v", "n": 1}]), {"k": "v", "n": 1}),
        "number": (pa.array([7]), 7),
    }
    for name, (values, expected) in ids.items():
        path = tmp_path / f"{name}.parquet"
        columns = {"id": values, "instruction": ["问"], "output": ["答"]}
        pyarrow.parquet.write_table(pa.table(columns), path)

        section = DataSection(train=(str(path),))
        [question] = read_questions(section, template_for(tiny_tokenizer))

        assert question.id == expected
        json.dumps(question.id, allow_nan=False)


def answers(*lines: dict[str, Any], fails: bool = False) -> Iterator[dict[str, Any]]:
    yield from lines
    if fails:
        raise CheckpointError("the scores are not finite")


def test_a_partial_file_without_an_answer_is_not_left(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    with pytest.raises(CheckpointError):
        AnswerFile(output, {}).write(answers(fails=True))
    assert list(tmp_path.iterdir()) == []

    with pytest.raises(CheckpointError):
        AnswerFile(output, {}).write(answers({"row": 1}, fails=True))
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl.partial"]


def test_half_a_character_in_an_id_or_a_file_name_is_written_as_an_escape(tmp_path: Path) -> None:
    lines = [{"row": 1, "id": "\ud800", "file": "\udcff.json"}, {"row": 2, "id": "好"}]

    AnswerFile(tmp_path / "answers.jsonl", {}).write(answers(*lines))

    text = (tmp_path / "answers.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == lines
    assert "好" in text


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded() -> None:
    with pytest.raises(OutputError, match="the folder /proc/self cannot be written"):
        check_output(Path("/proc/self/answers.jsonl"), resume=False, overwrite=False)
