import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from glmtune.cli.main import app
from glmtune.errors import RecipeError
from glmtune.recipe.methods import FullSection, LoraSection, QloraSection
from glmtune.recipe.other_tools import convert_recipe
from glmtune.recipe.other_tools.converted import Converted
from glmtune.recipe.reading import load_recipe
from glmtune.recipe.recipe import Recipe

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


def recipe_of(converted: Converted, tmp_path: Path) -> Recipe:
    """Read the recipe that was converted, as a user would."""
    ours = tmp_path / "ours.yaml"
    ours.write_text(converted.to_yaml("theirs.yaml"), encoding="utf-8")
    return load_recipe(ours)


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


def test_what_other_tools_learn_of_a_row_is_converted(tmp_path: Path) -> None:
    for tree, key in (
        (LLAMA_FACTORY | {"train_on_prompt": True}, "train_on_prompt"),
        (SWIFT | {"loss_scale": "all"}, "train_on_prompt"),
        (SWIFT | {"loss_scale": "last_round"}, "mask_history"),
        (AXOLOTL | {"train_on_inputs": True}, "train_on_prompt"),
    ):
        assert getattr(recipe_of(convert_recipe(write(tmp_path, tree)), tmp_path).data, key)


def test_labeled_rows_of_other_tools_are_converted(tmp_path: Path) -> None:
    columns = {"messages": "messages", "kto_tag": "label"}
    tags = {"role_tag": "role", "content_tag": "content"}
    register = {"identity": {"file_name": "a.json", "formatting": "sharegpt"}}
    register["identity"] |= {"columns": columns, "tags": tags}  # type: ignore[dict-item]
    (tmp_path / "dataset_info.json").write_text(json.dumps(register), encoding="utf-8")
    tree = LLAMA_FACTORY | {"dataset": "identity", "stage": "kto", "kto_rejected_weight": 1.5}

    converted = convert_recipe(write(tmp_path, tree), data_dir=tmp_path)
    recipe = recipe_of(converted, tmp_path)

    assert (recipe.preference.stage, recipe.preference.undesirable_weight) == ("kto", 1.5)
    assert recipe.data.columns == {"kto_tag": "label"}
    assert [line for line in converted.not_converted if not line.startswith("truncating")] == []
    swift = {"rlhf_type": "kto", "beta": 0.2, "desirable_weight": 2}
    section = recipe_of(convert_recipe(write(tmp_path, SWIFT | swift)), tmp_path).preference
    assert (section.stage, section.beta, section.desirable_weight) == ("kto", 0.2, 2)
    axolotl = {"rl": "kto", "kto_undesirable_weight": 0.5}
    section = recipe_of(convert_recipe(write(tmp_path, AXOLOTL | axolotl)), tmp_path).preference
    assert (section.stage, section.undesirable_weight) == ("kto", 0.5)


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
    assert recipe_of(converted, tmp_path).data.mask_history
    assert recipe_of(converted, tmp_path).data.eval_fraction == 300  # so many rows
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
        convert_recipe(write(tmp_path, {"some_model": "x"}))
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
        ("a: 1\nb: [\n", r"theirs.yaml:3: not valid YAML: .*\. Fix the file\.\n"),
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


SWIFT: dict[str, Any] = {
    "model": "ZhipuAI/chatglm3-6b",
    "train_type": "lora",
    "dataset": ["AI-ModelScope/alpaca-gpt4-data-zh#500", "mine.jsonl"],
    "split_dataset_ratio": 0.05,
    "torch_dtype": "bfloat16",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,
    "learning_rate": "1e-4",
    "lora_rank": 8,
    "lora_alpha": 32,
    "target_modules": "all-linear",
    "gradient_accumulation_steps": 16,
    "eval_steps": 50,
    "save_steps": 50,
    "save_total_limit": 2,
    "logging_steps": 5,
    "max_length": 2048,
    "output_dir": "output",
    "system": "You are a helpful assistant.",
    "warmup_ratio": 0.05,
    "dataloader_num_workers": 4,
    "swift_version": "4.6.0",
}
AXOLOTL: dict[str, Any] = {
    "base_model": "zai-org/chatglm3-6b",
    "load_in_8bit": False,
    "load_in_4bit": True,
    "datasets": [{"path": "teknium/GPT4-LLM-Cleaned", "type": "alpaca"}, {"path": "mine.jsonl"}],
    "val_set_size": 0.05,
    "output_dir": "./outputs/out",
    "sequence_len": 2048,
    "sample_packing": True,
    "adapter": "qlora",
    "lora_r": 32,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_linear": True,
    "wandb_project": "glm",
    "gradient_accumulation_steps": 4,
    "micro_batch_size": 2,
    "num_epochs": 3,
    "optimizer": "paged_adamw_8bit",
    "lr_scheduler": "cosine",
    "learning_rate": 0.0002,
    "bf16": "auto",
    "gradient_checkpointing": True,
    "warmup_steps": 10,
    "evals_per_epoch": 4,
    "saves_per_epoch": 1,
    "weight_decay": 0.0,
    "fsdp": None,
}
TOOLS = {"official": OFFICIAL, "LLaMA-Factory": LLAMA_FACTORY, "swift": SWIFT, "Axolotl": AXOLOTL}


def test_a_recipe_of_swift_means_the_same(tmp_path: Path) -> None:
    converted = convert_recipe(write(tmp_path, SWIFT))
    recipe = recipe_of(converted, tmp_path)

    assert recipe.data.train == (
        *("modelscope://AI-ModelScope/alpaca-gpt4-data-zh#500", "mine.jsonl"),
    )
    assert (recipe.data.eval_fraction, recipe.data.max_length) == (0.05, 2048)
    assert isinstance(recipe.adapter, LoraSection)
    assert (recipe.adapter.r, recipe.adapter.lora_alpha) == (8, 32)
    assert recipe.adapter.lora_dropout == 0.05  # its default
    assert recipe.adapter.target_modules == "all-linear"
    training = recipe.training
    assert (training.learning_rate, training.warmup_steps) == (1e-4, 0.05)
    assert (training.weight_decay, training.adam_beta2) == (0.1, 0.95)  # its defaults
    assert (training.eval_strategy, training.eval_steps) == ("steps", 50)
    assert recipe.model.dtype == "bfloat16"
    assert any(line.startswith("system: You are a helpful") for line in converted.not_converted)
    assert "swift_version" in converted.not_needed

    full = convert_recipe(write(tmp_path, SWIFT | {"train_type": "full", "learning_rate": None}))
    assert recipe_of(full, tmp_path).training.learning_rate == 1e-5
    assert recipe_of(full, tmp_path).training.bf16


def test_a_recipe_of_axolotl_means_the_same(tmp_path: Path) -> None:
    converted = convert_recipe(write(tmp_path, AXOLOTL), data_dir=Path("rows"))
    recipe = recipe_of(converted, tmp_path)

    assert recipe.data.train == ("teknium/GPT4-LLM-Cleaned", "rows/mine.jsonl")
    assert isinstance(recipe.adapter, QloraSection)
    assert (recipe.adapter.r, recipe.adapter.lora_alpha, recipe.adapter.quantization_bit) == (
        *(32, 16, 4),
    )
    training = recipe.training
    assert (training.per_device_train_batch_size, training.num_train_epochs) == (2, 3)
    assert (training.optim, training.lr_scheduler_type) == ("adamw_bnb_8bit", "cosine")
    assert training.eval_strategy == "epoch"
    assert recipe.output.report_to == ("wandb",)
    assert recipe.model.dtype == "bfloat16"
    assert any(line.startswith("evals_per_epoch: 4") for line in converted.not_converted)
    pairs = recipe_of(convert_recipe(write(tmp_path, AXOLOTL | {"rl": "ipo"})), tmp_path)
    assert (pairs.preference.stage, pairs.preference.loss) == ("dpo", "ipo")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("left_out", [(), ("model_name_or_path", "model", "base_model")])
def test_train_names_the_converter_and_its_command_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, left_out: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text("{}", encoding="utf-8")
    tree = {key: value for key, value in TOOLS[tool].items() if key not in left_out}
    path = write(tmp_path, tree)
    if tool == "Axolotl" and left_out:
        return  # nothing else tells it apart from a list of keys

    with pytest.raises(RecipeError, match=r"this is a recipe of .* Convert it first: ") as refused:
        load_recipe(path)
    _, command, *arguments = shlex.split(str(refused.value).partition("first: ")[2])
    ran = CliRunner().invoke(app, [command, *arguments], catch_exceptions=False)

    assert ran.exit_code == 0, ran.output
    assert load_recipe("theirs.glmtune.yaml").data.train


def test_what_once_had_no_counterpart_has_one(tmp_path: Path) -> None:
    more = {
        "early_stopping_steps": 3,
        "val_size": 0.1,
        "use_swanlab": True,
        "swanlab_run_name": "mine",
        "optim": "adamw_8bit",
        "max_grad_norm": 0,
        "save_total_limit": 0,
    }

    recipe = recipe_of(convert_recipe(write(tmp_path, LLAMA_FACTORY | more)), tmp_path)

    assert recipe.training.early_stopping_patience == 3
    assert recipe.output.report_to == ("swanlab",)
    assert recipe.output.run_name == "mine"
    assert recipe.training.optim == "adamw_bnb_8bit"
    assert (recipe.training.max_grad_norm, recipe.training.save_total_limit) == (None, None)


def test_values_that_conflict_here_are_dropped_with_the_reason(tmp_path: Path) -> None:
    more = {"early_stopping_steps": 3, "output_dir": ".", "use_dora": True, "pissa_init": True}

    converted = convert_recipe(write(tmp_path, LLAMA_FACTORY | more))
    recipe = recipe_of(converted, tmp_path)
    listed = "\n".join(converted.not_converted)

    assert recipe.training.early_stopping_patience is None
    assert "early_stopping_patience: 3. training.early_stopping_patience needs held-out" in listed
    assert recipe.output.dir == "out/converted"
    assert "dir: .. output.dir (.) is not a folder with a name" in listed
    assert "peft cannot save the two as one adapter" in listed


@pytest.mark.parametrize(
    "entry",
    [
        {"file_name": "a.json", "num_samples": 5, "split": "train"},
        {"hf_hub_url": "a/b", "columns": {"prompt": "q", "response": "a", "images": "i"}},
        {"ms_hub_url": "a/b", "formatting": "sharegpt", "tags": {"role_tag": "r"}},
        {"file_name": 3, "columns": [], "tags": "x", "formatting": ["alpaca"]},
        {"columns": {"prompt": 3, "response": None}, "subset": {}},
        {"file_name": "x" * 300}, {}, [], None, 3, "a.json",
    ],
)  # fmt: skip
def test_a_register_of_data_sets_may_hold_anything(tmp_path: Path, entry: object) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"identity": entry}), encoding="utf-8")
    tree = LLAMA_FACTORY | {"dataset": "identity", "max_samples": None}

    recipe = recipe_of(convert_recipe(write(tmp_path, tree), data_dir=tmp_path), tmp_path)

    assert len(recipe.data.train) == 1


def test_names_that_no_file_system_takes_are_no_data_sets(tmp_path: Path) -> None:
    for more in ({"dataset": "x" * 300}, {"dataset_dir": "x" * 300}):
        recipe = recipe_of(convert_recipe(write(tmp_path, LLAMA_FACTORY | more)), tmp_path)
        assert "x" * 300 in recipe.data.train[0]


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", "\xff", '{"identity": ' * 60])
def test_a_register_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset_info.json").write_text(text, encoding="latin-1")

    with pytest.raises(RecipeError, match=r"dataset_info\.json: "):
        convert_recipe(write(tmp_path, LLAMA_FACTORY), data_dir=tmp_path)


def test_the_columns_of_a_registered_data_set_are_taken_over(tmp_path: Path) -> None:
    entry = {"file_name": "a.json", "columns": {"prompt": "q", "response": "a"}, "num_samples": 5}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}), encoding="utf-8")
    tree = LLAMA_FACTORY | {"dataset": "mine", "max_samples": None}

    data = recipe_of(convert_recipe(write(tmp_path, tree), data_dir=tmp_path), tmp_path).data

    assert data.train == (f"{tmp_path}/a.json#5",)
    assert (data.format, data.columns) == ("alpaca", {"instruction": "q", "output": "a"})


@pytest.mark.parametrize("key", ["training_args", "peft_config", "data_config"])
@pytest.mark.parametrize("value", [{}, None, [], 3, "x", [{}]])
def test_an_official_recipe_with_an_empty_or_wrong_mapping_ends_in_a_sentence(
    tmp_path: Path, key: str, value: object
) -> None:
    path = write(tmp_path, OFFICIAL | {key: value})
    if key == "peft_config" and value is not None:
        with pytest.raises(RecipeError, match=r"theirs\.yaml: peft_config is .*expected its keys"):
            convert_recipe(path)
        return

    converted = convert_recipe(path)

    assert recipe_of(converted, tmp_path)
    is_listed = any(line.startswith(f"{key}: ") for line in converted.not_converted)
    assert is_listed == (value is not None and not isinstance(value, dict))


def test_scores_of_generated_answers_are_converted(tmp_path: Path) -> None:
    official = recipe_of(convert_recipe(write(tmp_path, OFFICIAL), model="m"), tmp_path).training

    assert official.eval_metrics == ("rouge-1", "rouge-2", "rouge-l", "bleu-4")
    assert official.eval_metric_rows == 50  # its command answers the first 50
    generation = {"predict_with_generate": True, "max_new_tokens": 64, "top_p": 0.7, "top_k": []}
    converted = convert_recipe(write(tmp_path, LLAMA_FACTORY | generation | {"do_predict": True}))
    assert converted.sections["training"].get("eval_metrics") is None  # nothing is held out
    listed = "\n".join(converted.not_converted)
    assert "`glmtune predict DATA --max-new-tokens 64 --top-p 0.7` afterwards" in listed
    assert "predict_with_generate: there are no held-out rows" in listed
    assert "no counterpart" not in listed


def test_new_tokens_resuming_and_mixtures_have_a_counterpart(tmp_path: Path) -> None:
    more = {
        "new_special_tokens": "<a>,<b>",
        "resize_vocab": True,
        "resume_from_checkpoint": "out/checkpoint-5",
        "mix_strategy": "interleave_under",
        "interleave_probs": "0.5,0.5",
    }

    converted = convert_recipe(write(tmp_path, LLAMA_FACTORY | more), data_dir=tmp_path)
    listed = "\n".join(converted.not_converted)

    assert recipe_of(converted, tmp_path).model.add_tokens == ("<a>", "<b>")
    assert "`glmtune train RECIPE --resume`" in listed
    assert "data.train: [{path: ..., weight: 2}, ...]" in listed
    assert "no counterpart" not in listed


def test_keys_of_another_method_are_not_needed(tmp_path: Path) -> None:
    converted = convert_recipe(write(tmp_path, LLAMA_FACTORY | {"finetuning_type": "full"}))

    assert {"lora_rank", "lora_target"} <= set(converted.not_needed)
    assert "lora" not in "\n".join(converted.not_converted)


@pytest.mark.parametrize(
    ("more", "command"),
    [
        ({"export_dir": "merged", "template": "glm"}, "glmtune merge out --output merged"),
        ({"infer_backend": "vllm", "template": "glm"}, "glmtune chat m --adapter out"),
    ],
)
def test_a_file_that_merges_or_chats_names_our_command(
    tmp_path: Path, more: dict[str, str], command: str
) -> None:
    tree = {"model_name_or_path": "m", "adapter_name_or_path": "out", **more}

    with pytest.raises(RecipeError, match=f"`{command}` does here"):
        convert_recipe(write(tmp_path, tree))


def test_streaming_is_converted_where_the_run_has_a_length(tmp_path: Path) -> None:
    more = {"streaming": True, "buffer_size": 500}

    endless = convert_recipe(write(tmp_path, LLAMA_FACTORY | more), data_dir=tmp_path)
    listed = "\n".join(endless.not_converted)
    assert not recipe_of(endless, tmp_path).data.streaming
    assert "streaming: true. data.streaming reads rows while training" in listed
    sized = convert_recipe(write(tmp_path, LLAMA_FACTORY | more | {"max_steps": 9}))
    data = recipe_of(sized, tmp_path).data
    assert (data.streaming, data.shuffle_buffer) == (True, 500)
    unused = convert_recipe(write(tmp_path, LLAMA_FACTORY | {"buffer_size": 500}))
    assert "buffer_size" in unused.not_needed


def test_activations_that_are_offloaded_are_converted(tmp_path: Path) -> None:
    tree = {
        "base_model": "m", "datasets": [{"path": "a.jsonl", "type": "alpaca"}],
        "sequence_len": 64, "gradient_checkpointing": "offload", "output_dir": "out",
    }  # fmt: skip

    recipe = recipe_of(convert_recipe(write(tmp_path, tree)), tmp_path)

    assert recipe.training.gradient_checkpointing == "offload"
