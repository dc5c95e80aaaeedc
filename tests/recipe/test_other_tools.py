import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from glmtune.errors import RecipeError
from glmtune.recipe.methods import FullSection, LoraSection, QloraSection
from glmtune.recipe.other_tools import convert_recipe
from glmtune.recipe.reading import load_recipe

OFFICIAL: dict[str, Any] = {  # the keys and values of ChatGLM3's finetune_demo/configs/lora.yaml
    "data_config": {
        "train_file": "train.json",
        "val_file": "dev.json",
        "test_file": "dev.json",
        "num_proc": 16,
    },
    "max_input_length": 256,
    "max_output_length": 512,
    "training_args": {
        "output_dir": "./output",
        "max_steps": 3000,
        "learning_rate": "3e-4",  # as YAML 1.1 reads a bare 3e-4
        "per_device_train_batch_size": 4,
        "dataloader_num_workers": 16,
        "remove_unused_columns": False,
        "save_strategy": "steps",
        "save_steps": 2000,
        "log_level": "info",
        "logging_strategy": "steps",
        "logging_steps": 10,
        "per_device_eval_batch_size": 16,
        "evaluation_strategy": "steps",
        "eval_steps": 500,
        "predict_with_generate": True,
        "generation_config": {"max_new_tokens": 512},
        "use_cpu": False,
    },
    "peft_config": {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 32,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
    },
}
LLAMA_FACTORY: dict[str, Any] = {
    "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
    "trust_remote_code": True,
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "dataset": "identity,wiki",
    "template": "llama3",
    "cutoff_len": 2048,
    "max_samples": 1000,
    "preprocessing_num_workers": 16,
    "output_dir": "saves/sft",
    "logging_steps": 10,
    "save_steps": 500,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1.0e-4,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
}


def write(tmp_path: Path, tree: dict[str, Any]) -> Path:
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_the_official_recipe_means_the_same(tmp_path: Path) -> None:
    converted = convert_recipe(
        write(tmp_path, OFFICIAL), model="./chatglm3-6b", data_dir=Path("fix")
    )
    ours = tmp_path / "ours.yaml"
    ours.write_text(converted.to_yaml("lora.yaml"), encoding="utf-8")
    recipe = load_recipe(ours)

    assert recipe.model.name_or_path == "./chatglm3-6b"
    assert recipe.data.train == ("fix/train.json",)
    assert recipe.data.eval == ("fix/dev.json",)
    assert recipe.data.max_length == 256 + 512 + 1
    assert isinstance(recipe.adapter, LoraSection)
    assert (recipe.adapter.r, recipe.adapter.lora_alpha, recipe.adapter.lora_dropout) == (
        *(32, 32),
        0.1,
    )
    training = recipe.training
    assert (training.max_steps, training.learning_rate, training.eval_steps) == (3000, 3e-4, 500)
    assert training.gradient_accumulation_steps == 1  # transformers' default, which is not ours
    assert training.eval_strategy == "steps"  # it says evaluation_strategy
    assert not training.load_best_model_at_end
    assert "training_args" not in "".join(converted.not_converted)
    assert any(line.startswith("test_file: dev.json") for line in converted.not_converted)
    assert "peft_config.task_type" in converted.not_needed


def test_an_official_recipe_without_peft_trains_every_weight(tmp_path: Path) -> None:
    tree = {key: value for key, value in OFFICIAL.items() if key != "peft_config"}
    tree["training_args"] = OFFICIAL["training_args"] | {"deepspeed": "ds_zero_3.json"}

    converted = convert_recipe(write(tmp_path, tree))
    tree["peft_config"] = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 128}
    prefix = convert_recipe(write(tmp_path, tree))

    assert converted.sections["adapter"] == {"method": "full"}
    assert converted.sections["training"]["deepspeed"] == "ds_zero_3.json"
    assert "deepspeed" not in prefix.sections["training"]
    [message] = [
        line for line in prefix.not_converted if line.startswith("deepspeed: ds_zero_3.json. ")
    ]
    assert "works with adapter.method=lora, full, freeze, and not with ptuning_v2" in message


def test_the_official_prefix_tuning_is_p_tuning_v2(tmp_path: Path) -> None:
    peft_config = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 128}

    converted = convert_recipe(write(tmp_path, OFFICIAL | {"peft_config": peft_config}))

    assert converted.sections["adapter"] == {"method": "ptuning_v2", "pre_seq_len": 128}


def test_a_recipe_of_llama_factory_means_the_same(tmp_path: Path) -> None:
    register = {
        "identity": {"file_name": "identity.json"},
        "wiki": {"hf_hub_url": "someone/wiki", "formatting": "alpaca"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(register), encoding="utf-8")

    converted = convert_recipe(write(tmp_path, LLAMA_FACTORY), data_dir=tmp_path)
    ours = tmp_path / "ours.yaml"
    ours.write_text(converted.to_yaml("theirs.yaml"), encoding="utf-8")
    recipe = load_recipe(ours)

    assert recipe.data.train == (f"{tmp_path}/identity.json#1000", "someone/wiki#1000")
    assert isinstance(recipe.adapter, LoraSection)
    assert recipe.adapter.target_modules == "all-linear"
    assert recipe.adapter.lora_alpha == 16  # twice the rank, where it does not say
    assert recipe.model.dtype == "bfloat16"
    assert not recipe.training.bf16  # which would be a float32 base
    assert recipe.training.warmup_steps == 0.1
    assert recipe.training.gradient_checkpointing  # it always does
    assert recipe.output.report_to == ()
    assert [line for line in converted.not_converted if not line.startswith("truncating")] == []


def test_float16_is_of_the_frozen_base_or_of_the_arithmetic(tmp_path: Path) -> None:
    register = {"identity": {"file_name": "identity.json"}, "wiki": {"file_name": "wiki.json"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(register), encoding="utf-8")
    tree = {key: value for key, value in LLAMA_FACTORY.items() if key != "bf16"} | {"fp16": True}

    lora = convert_recipe(write(tmp_path, tree), data_dir=tmp_path)
    full = convert_recipe(write(tmp_path, tree | {"finetuning_type": "full"}), data_dir=tmp_path)

    assert lora.sections["model"]["dtype"] == "float16"
    assert "fp16" not in lora.sections["training"]
    assert full.sections["training"]["fp16"] is True
    assert "dtype" not in full.sections["model"]


def test_preferences_of_llama_factory_are_converted(tmp_path: Path) -> None:
    register = {"identity": {"file_name": "pairs.json", "ranking": True}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(register), encoding="utf-8")
    tree = LLAMA_FACTORY | {"dataset": "identity", "stage": "dpo", "pref_loss": "orpo"}

    converted = convert_recipe(write(tmp_path, tree | {"pref_beta": 0.2}), data_dir=tmp_path)

    assert converted.sections["preference"] == {"stage": "dpo", "loss": "orpo", "beta": 0.2}
    assert [line for line in converted.not_converted if not line.startswith("truncating")] == []


def test_columns_and_roles_of_a_data_set_are_converted(tmp_path: Path) -> None:
    register = {
        "identity": {
            "file_name": "talks.json",
            "formatting": "sharegpt",
            "columns": {"messages": "talk"},
            "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "人"},
        }
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(register), encoding="utf-8")
    tree = LLAMA_FACTORY | {"dataset": "identity", "quantization_bit": 4, "val_size": 0.1}

    converted = convert_recipe(write(tmp_path, tree), data_dir=tmp_path)

    data = converted.sections["data"]
    assert data["format"] == "sharegpt"
    assert data["columns"] == {"conversations": "talk"}
    assert data["roles"] == {"人": "user"}
    assert data["eval_fraction"] == 0.1
    assert converted.sections["adapter"]["method"] == QloraSection().method
    assert load_full(tmp_path, tree | {"finetuning_type": "full", "quantization_bit": None})


def load_full(tmp_path: Path, tree: dict[str, Any]) -> bool:
    """Whether a full run computes in bfloat16 over float32 weights."""
    converted = convert_recipe(write(tmp_path, tree), data_dir=tmp_path)
    assert converted.sections["adapter"] == {"method": FullSection().method}
    assert "dtype" not in converted.sections["model"]
    return bool(converted.sections["training"]["bf16"])


def test_what_has_no_counterpart_is_listed(tmp_path: Path) -> None:
    tree = LLAMA_FACTORY | {
        "lr_scheduler_type": "cosine_with_restarts",
        "mask_history": True,
        "val_size": 300,
        "dataset": "gone",
        "seed": "a\nb: c",
    }

    converted = convert_recipe(write(tmp_path, tree), data_dir=tmp_path)
    message = "\n".join(converted.not_converted)

    assert "lr_scheduler_type: cosine_with_restarts. training.lr_scheduler_type takes:" in message
    assert "mask_history: True, which has no counterpart here" in message
    assert "val_size: 300 rows. Set data.eval_fraction" in message
    assert "the path of data set gone" in message
    written = yaml.safe_load(converted.to_yaml("theirs.yaml"))
    assert written["training"].get("lr_scheduler_type") is None
    assert written.keys() == {"model", "data", "adapter", "training", "output"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "pt"}, "pre-training"),
        ({"stage": "rm"}, "stage: rm is not supported"),
        ({"finetuning_type": "lokr"}, "finetuning_type: lokr cannot be converted"),
        ({"model_name_or_path": None}, "names no model"),
        ({"dataset": None}, "names no data"),
    ],
)
def test_what_we_do_not_do_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        convert_recipe(write(tmp_path, LLAMA_FACTORY | change), data_dir=tmp_path)


def test_a_file_of_no_tool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="neither a recipe of ChatGLM3's finetune_demo"):
        convert_recipe(write(tmp_path, {"base_model": "x"}))
    with pytest.raises(RecipeError, match="is already a recipe of glmtune"):
        convert_recipe(write(tmp_path, {"model": {}, "data": {}, "output": {}}))
    with pytest.raises(RecipeError, match="expected keys and values"):
        convert_recipe(write(tmp_path, []))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="cannot be read"):
        convert_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        ("", "the file is empty"),
        ("- a\n", "the file is a list"),
        ("a: 1\nb: [\n", r"theirs.yaml:3: not valid YAML: .*\. Fix the file\.$"),
    ],
)
def test_what_is_no_recipe_is_refused_in_a_sentence(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "theirs.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")

    with pytest.raises(RecipeError, match=message):
        convert_recipe(path)
