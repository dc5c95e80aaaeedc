"""A model card says what hubs require, in two languages, and names no path of this machine."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from glmtune.errors import CheckpointError
from glmtune.prove.card import (
    License,
    RunFacts,
    find_paths,
    hub_id,
    is_edited,
    license_of,
    render_card,
    without_paths,
)
from glmtune.prove.folder_card import facts_of
from glmtune.prove.proof import ALIVE, STOPS, Proof
from glmtune.recipe.reading import build_recipe

BASE = "zai-org/chatglm3-6b"


def facts(**changes: Any) -> RunFacts:
    recipe = build_recipe(
        {
            "model": {"name_or_path": "/home/me/models/chatglm3-6b"},
            "data": {"train": ["/home/me/rows.json", "silk-road/alpaca-data-gpt4-chinese"]},
            "adapter": {"method": "lora", "r": 8, "target_modules": ["query_key_value"]},
            "output": {"dir": "/home/me/out"},
        }
    )
    values: dict[str, Any] = {
        "base": BASE,
        "base_name": "chatglm3-6b",
        "is_adapter": True,
        "license": license_of(BASE),
        "recipe": recipe,
        "lines": [
            {"step": 1, "loss": 2.5},
            {"step": 9, "loss": 1.25},
            {"step": 9, "eval_loss": 1.5},
        ],
        "proofs": [Proof(ALIVE, "passed", "28 of 28"), Proof(STOPS, "not run", "")],
    }
    return RunFacts(**(values | changes))


def front(card: str) -> dict[str, Any]:
    fields = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(fields, dict)
    return fields


def test_the_head_of_a_card_names_base_license_and_data_by_their_hub_ids() -> None:
    fields = front(render_card(facts()))

    assert fields["base_model"] == BASE
    assert fields["base_model_relation"] == "adapter"
    assert fields["library_name"] == "peft"
    assert fields["license"] == "other"
    assert fields["license_link"].endswith("zai-org/chatglm3-6b/blob/main/MODEL_LICENSE")
    assert fields["datasets"] == ["silk-road/alpaca-data-gpt4-chinese"]
    assert fields["language"] == ["zh", "en"]


def test_the_hub_library_reads_the_head_without_complaint() -> None:
    from huggingface_hub import ModelCard

    read = ModelCard(render_card(facts())).data.to_dict()

    assert (read["base_model"], read["license"]) == (BASE, "other")


def test_a_card_has_results_and_proofs_in_english_and_in_chinese() -> None:
    card = render_card(facts(), "me/support")

    assert "| held-out loss, best | 1.5000 |" in card
    assert "| 验证损失（最佳） | 1.5000 |" in card
    assert f"| {ALIVE} | passed: 28 of 28 |" in card
    assert "| 训练的每个部分都学到了 | 通过 |" in card
    assert f"| {STOPS} | not run |" in card
    assert "hf download me/support --local-dir support" in card


def test_a_card_names_no_path_of_this_machine() -> None:
    proofs = [Proof(ALIVE, "failed", "see /home/me/out/report.html and C:\\Users\\me\\x.json")]

    card = render_card(facts(proofs=proofs, base=None, license=None))

    assert "/home/me" not in card
    assert "Users" not in card
    assert "base_model" not in front(card)
    assert "rows.json" in card


def test_a_complete_model_is_a_finetune_of_its_base() -> None:
    fields = front(render_card(facts(is_adapter=False)))

    assert fields["base_model_relation"] == "finetune"
    assert fields["library_name"] == "transformers"


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("zai-org/chatglm3-6b", {}, "zai-org/chatglm3-6b"),
        ("/models/chatglm3-6b", {"_name_or_path": "THUDM/chatglm3-6b"}, "THUDM/chatglm3-6b"),
        ("/c/hub/models--zai-org--chatglm3-6b/snapshots/1a", {}, "zai-org/chatglm3-6b"),
        ("/models/chatglm3-6b", {}, None),
        ("/models/chatglm3-6b", {"_name_or_path": "/root/x"}, None),
        ("chatglm3-6b", {}, None),
        ("nano", {}, "nano"),
    ],
)
def test_the_hub_id_of_a_base_is_found_or_none(
    name: str, config: dict[str, str], expected: str | None
) -> None:
    assert hub_id(name, config) == expected


def test_a_folder_with_the_form_of_an_id_is_no_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()

    assert hub_id("models/chatglm3-6b") is None


def test_chatglms_license_is_known_and_that_of_others_is_not() -> None:
    assert license_of("ZhipuAI/chatglm3-6b-32k") == License(
        "other",
        "chatglm3-6b-32k",
        "https://huggingface.co/zai-org/chatglm3-6b-32k/blob/main/MODEL_LICENSE",
    )
    assert license_of("someone/model") is None


@pytest.mark.parametrize(
    "text",
    [
        "/home/me/x.json",
        "in ~/models/chatglm3",
        "model=/root/m/x",
        '{"a": "/data/rows/a.json#500"}',
        r"C:\Users\me\a.json",
        "D:/models/glm",
        "(/mnt/disk/模型/a)",
    ],
)
def test_absolute_paths_are_found_in_text(text: str) -> None:
    assert find_paths(text)
    assert not find_paths(without_paths(text))


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/zai-org/chatglm3-6b/blob/main/x",
        "zai-org/chatglm3-6b",
        "3 km/h and/or 1/2/3",
        "<|user|> </s>",
        "rows.json",
        "a: b",
    ],
)
def test_what_is_no_path_stays(text: str) -> None:
    assert find_paths(text) == []
    assert without_paths(text) == text


def test_a_card_that_a_person_changed_is_recognized() -> None:
    card = render_card(facts())

    assert not is_edited(card)
    assert is_edited(card.replace("Training", "How I trained it"))
    assert is_edited("# My model\n")


@pytest.mark.parametrize(
    ("format", "is_adapter", "line"),
    [
        ("glm", False, "pipeline('text-generation', 'support')([{'role': 'user'"),
        ("gguf", False, "llama-server -m support/model.gguf --port 8080"),
        ("lora-gguf", True, f"glmtune export {BASE} --to gguf -o base-gguf"),
        ("lora-glm", True, f"glmtune export {BASE} --to glm -o base-glm"),
        ("ollama", False, "ollama create support -f support/Modelfile"),
    ],
)
def test_the_card_of_an_export_says_how_its_own_tool_runs_it(
    format: str, is_adapter: bool, line: str
) -> None:
    card = render_card(facts(format=format, is_adapter=is_adapter, recipe=None), "me/support")

    assert line in card
    assert "glmtune chat" not in card
    assert "{folder}" not in card
    assert format in front(card)["tags"]
    assert ("library_name" in front(card)) == (format in ("glm", "lora-glm"))


_PASSED = {"name": "logits are the same", "verdict": "passed", "detail": "0"}


def test_the_card_of_an_export_has_its_base_and_its_proofs(tmp_path: Path) -> None:
    report = {
        "format": "glm",
        "base": BASE,
        "proofs": [
            {"name": "logits are the same", "verdict": "passed", "detail": "0"},
            {"x": 1},
            7,
        ],
    }
    (tmp_path / "export.json").write_text(json.dumps(report))
    (tmp_path / "config.json").write_text("{}")

    found = facts_of(tmp_path)

    assert (found.base, found.format, found.is_adapter) == (BASE, "glm", False)
    assert [proof.name for proof in found.proofs] == ["logits are the same"]
    assert found.license == license_of(BASE)


@pytest.mark.parametrize("base", ["a\0b", "x" * 5000, "a/" * 3000])
@pytest.mark.parametrize(
    ("file", "key"),
    [("adapter_config.json", "base_model_name_or_path"), ("export.json", "base")],
)
def test_a_base_that_cannot_be_a_path_is_refused(
    tmp_path: Path, file: str, key: str, base: str
) -> None:
    (tmp_path / file).write_text(json.dumps({key: base}))

    with pytest.raises(CheckpointError, match="cannot be the name of a file or folder"):
        facts_of(tmp_path)


def test_the_home_of_a_user_who_is_not_here_is_a_folder_that_is_not_here(tmp_path: Path) -> None:
    content = {"base_model_name_or_path": "~nobody-here/chatglm3-6b"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))

    assert facts_of(tmp_path).base is None


def test_a_card_has_the_model_type_of_its_base_as_a_tag(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    for folder in (base, out):
        folder.mkdir()
    (base / "config.json").write_text('{"model_type": "glm4"}')
    (out / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))

    assert front(render_card(facts_of(out)))["tags"] == ["glm4", "glmtune"]
    (base / "config.json").write_text('{"model_type": "no tag/"}')
    assert front(render_card(facts_of(out)))["tags"] == ["glmtune"]
    (out / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": BASE}))
    assert front(render_card(facts_of(out)))["tags"] == ["chatglm", "glmtune"]
