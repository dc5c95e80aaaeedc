import shlex
from pathlib import Path

import pytest
import yaml

from glmtune.errors import RecipeError
from glmtune.recipe.reading import build_recipe, load_recipe
from glmtune.recipe.recipe import PretrainRecipe, Recipe
from glmtune.recipe.shipped import RECIPES

SMALLEST = {
    "model": {"name_or_path": "m"},
    "data": {"train": "rows.json"},
    "output": {"dir": "out"},
}


def test_the_tutorial_recipe_holds_the_tutorials_numbers() -> None:
    recipe = load_recipe(RECIPES["chatglm3-alpaca-zh-tutorial"])

    assert (recipe.adapter.r, recipe.adapter.lora_alpha, recipe.adapter.lora_dropout) == (8, 8, 0)
    assert recipe.adapter.target_modules == ("query_key_value",)
    training = recipe.training
    assert (training.learning_rate, training.adam_epsilon) == (1e-4, 1e-4)
    assert training.per_device_train_batch_size == 2
    assert training.gradient_accumulation_steps == 16
    assert (recipe.data.max_length, recipe.data.overlong) == (256, "tutorial")


def test_what_was_resolved_can_be_read_back(tmp_path: Path) -> None:
    recipe = build_recipe(SMALLEST, ["learning_rate=3e-5", "data.columns.instruction=q"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")

    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert recipe.training.learning_rate == 3e-5
    assert recipe.data.columns == {"instruction": "q"}


def test_one_value_may_be_written_without_a_list() -> None:
    recipe = build_recipe(SMALLEST, ["adapter.target_modules=dense", "report_to=none"])

    assert recipe.data.train == ("rows.json",)
    assert recipe.adapter.target_modules == ("dense",)
    assert recipe.output.report_to == ()


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(RecipeError, match=r"'adapter\.lora_alhpa' .*Did you mean 'lora_alpha'"):
        build_recipe({**SMALLEST, "adapter": {"lora_alhpa": 8}})
    with pytest.raises(RecipeError, match="Did you mean 'learning_rate'"):
        build_recipe(SMALLEST, ["learning_rat=1"])
    with pytest.raises(RecipeError, match="Did you mean 'training'"):
        build_recipe({**SMALLEST, "trainig": {}})


def test_a_value_that_does_not_fit_is_named_with_its_key() -> None:
    with pytest.raises(RecipeError, match=r"adapter\.r is 0: .*greater than 0"):
        build_recipe(SMALLEST, ["adapter.r=0"])
    with pytest.raises(RecipeError, match=r"data\.overlong is 'cut'"):
        build_recipe(SMALLEST, ["data.overlong=cut"])
    with pytest.raises(RecipeError, match=r"data\.layout is null.* Leave the key out"):
        build_recipe(SMALLEST, ["data.layout=null"])
    with pytest.raises(RecipeError, match=r"output\.dir is null.* Give a value"):
        build_recipe(SMALLEST, ["output.dir="])


def test_the_error_for_a_missing_key_shows_how_to_set_it() -> None:
    with pytest.raises(RecipeError, match=r"output is missing"):
        build_recipe({"model": {"name_or_path": "m"}, "data": {"train": "x"}})


def test_names_of_older_releases_are_accepted_with_one_warning() -> None:
    tree = {**SMALLEST, "training": {"evaluation_strategy": "steps", "warmup_ratio": 0.1}}
    with pytest.warns(UserWarning, match="is now called") as warned:
        recipe = build_recipe(tree)

    assert len(warned) == 2
    assert (recipe.training.eval_strategy, recipe.training.warmup_steps) == ("steps", 0.1)


def test_an_old_name_beside_its_new_one_is_refused() -> None:
    tree = {**SMALLEST, "training": {"evaluation_strategy": "no", "eval_strategy": "steps"}}
    with pytest.raises(RecipeError, match="both given"):
        build_recipe(tree)


def test_keys_belong_to_the_method_that_has_them() -> None:
    recipe = build_recipe(SMALLEST, ["adapter.method=freeze", "adapter.trainable_layers=2"])

    assert recipe.adapter.trainable_layers == 2
    with pytest.raises(RecipeError, match=r"'adapter\.r' is not a key of adapter\.method=full"):
        build_recipe(SMALLEST, ["adapter.method=full", "adapter.r=8"])
    with pytest.raises(RecipeError, match=r"adapter\.method is 'lroa'\. Did you mean 'lora'"):
        build_recipe(SMALLEST, ["adapter.method=lroa"])


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["adapter.method=full", "model.dtype=bfloat16"], "bfloat16 loses most of their updates"),
        (["adapter.method=freeze"], "trains nothing without further keys"),
        (["adapter.method=none"], "nothing held out"),
        (["adapter.method=qlora", "init_lora_weights=olora"], "weights, which are packed"),
        (["adapter.method=qlora", "quantization_method=torchao"], "packs weights into 8 bits"),
        (["adapter.layers_to_transform=[0]"], "needs adapter.target_modules by name"),
        (["init_lora_weights=pissa", "use_dora=true"], "peft cannot save the two"),
        (["init_lora_weights=piza"], r"adapter\.init_lora_weights"),
        (["loraplus_lr_ratio=0.5"], r"adapter\.loraplus_lr_ratio is 0.5"),
        (["adapter.method=qlora", "model.compute=int8"], "two ways to store the same layers"),
        (["output.dir=m"], r"output.dir \(m\) is the folder of the model itself"),
    ],
)
def test_what_cannot_go_together_is_refused_with_the_reason(
    overrides: list[str], complaint: str
) -> None:
    with pytest.raises(RecipeError, match=complaint):
        build_recipe(SMALLEST, overrides)


def test_early_stopping_without_held_out_rows_is_refused() -> None:
    with pytest.raises(RecipeError, match="needs held-out rows"):
        build_recipe(SMALLEST, ["early_stopping_patience=2"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("", "empty"), ("- a\n", "a list"), ("a: [", "not valid YAML"), ("a: \x00", "not valid YAML")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_a_recipe_cannot_be_changed() -> None:
    recipe: Recipe = build_recipe(SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        recipe.output.dir = "elsewhere"  # type: ignore[misc]


@pytest.mark.parametrize("key", ["save_strategy", "eval_strategy"])
def test_a_bare_no_means_no(key: str) -> None:
    tree = {"model": {"name_or_path": "m"}, "data": {"train": "t"}, "output": {"dir": "o"}}

    recipe = build_recipe(tree, [f"training.{key}=no"])

    assert getattr(recipe.training, key) == "no"


def test_an_attention_that_would_change_the_objective_is_refused() -> None:
    flash = ["model.attn_implementation=flash_attention_2"]

    with pytest.raises(RecipeError, match="silently learn another objective"):
        build_recipe(SMALLEST, flash, kind=PretrainRecipe)

    causal = ["objective.token=0", "objective.document=0", "objective.causal=1"]
    assert build_recipe(SMALLEST, [*flash, *causal], kind=PretrainRecipe).objective.causal == 1


def test_adalora_is_refused_with_the_reason() -> None:
    with pytest.raises(RecipeError, match=r"'adalora'\. It is not offered: peft does not save"):
        build_recipe({**SMALLEST, "adapter": {"method": "adalora"}})


@pytest.mark.parametrize("key", ["checks.general_rows", "data.train", "lint.off"])
def test_a_number_instead_of_a_list_is_explained(key: str) -> None:
    tree = {"model": {"name_or_path": "x"}, "data": {"train": "r"}, "output": {"dir": "o"}}
    with pytest.raises(RecipeError, match=rf"{key} is 3, expected a list. Write {key}: \[first"):
        build_recipe(tree, [f"{key}=3"])


def test_the_default_tracker_is_tensorboard_only_where_it_is_installed() -> None:
    output = build_recipe(SMALLEST).output

    assert output.trackers({"tensorboard", "wandb"}) == ("tensorboard",)
    assert output.trackers({"wandb"}) == ()


def test_a_tracker_that_is_named_is_used_once_whether_or_not_it_is_installed() -> None:
    named = build_recipe(SMALLEST, ["report_to=[auto,tensorboard,wandb]"]).output
    nothing = build_recipe(SMALLEST, ["report_to=null"])

    assert named.trackers({"tensorboard"}) == ("tensorboard", "wandb")
    assert named.trackers(set()) == ("tensorboard", "wandb")  # refused later, with its name
    assert nothing.output.trackers({"tensorboard"}) == ()
    assert build_recipe(yaml.safe_load(nothing.to_yaml())) == nothing


@pytest.mark.parametrize(
    ("name", "kind", "command"),
    [("nano-pretrain", Recipe, "glmtune pretrain"), ("nano-chat", PretrainRecipe, "glmtune train")],
)
def test_a_recipe_of_the_other_command_is_refused_with_that_command(
    name: str, kind: type[Recipe] | type[PretrainRecipe], command: str
) -> None:
    with pytest.raises(RecipeError, match=f"{name}.*Use `{command}`"):
        load_recipe(name, kind=kind)


@pytest.mark.parametrize("name", ["my rows.json", "rows.jsonl", "rows.csv", "rows.parquet"])
def test_rows_in_place_of_a_recipe_are_answered_with_a_command(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('[{"instruction": "a", "output": "b"}]', encoding="utf-8")

    with pytest.raises(RecipeError, match="these are rows, expected a recipe") as refused:
        load_recipe(path)
    _, _, recipe, change = shlex.split(str(refused.value).partition("in one: ")[2])
    assert load_recipe(recipe, [change]).data.train == (str(path),)


def test_a_folder_in_place_of_a_recipe_is_answered_by_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"is a folder, .* model\.name_or_path=.* names a model"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(RecipeError, match=r"recipe\.yaml is the recipe of the run in it"):
        load_recipe(tmp_path)


def test_names_that_no_file_system_takes_are_no_recipes() -> None:
    for name in ("x" * 300, "x" * 5_000, "a\0b"):
        with pytest.raises(RecipeError, match=r"cannot be read|no such recipe"):
            load_recipe(name)


@pytest.mark.parametrize("value", ["1", "1.0", "1.5", "-0.1", "2.5"])
def test_held_out_rows_are_a_share_or_a_number(value: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.eval_fraction is"):
        build_recipe(SMALLEST, [f"eval_fraction={value}"])
    assert build_recipe(SMALLEST, ["eval_fraction=300"]).data.eval_fraction == 300


def test_a_pattern_that_is_no_expression_is_refused() -> None:
    for name in ("(", "*", "a{99999999999999999999}", "(" * 500, "(.*)*x", "(a+)+", "((a+)b)*"):
        with pytest.raises(RecipeError, match=r"adapter\.rank_pattern is .*expressions, and"):
            build_recipe({**SMALLEST, "adapter": {"rank_pattern": {name: 4}}})
    for name in (r"^mlp\.\w+$", r"(\d+)\.mlp\.\w+", r"(layers\.\d+\.)?dense", "dense_(4h|h)_to_.*"):
        assert build_recipe({**SMALLEST, "adapter": {"rank_pattern": {name: 4}}})


@pytest.mark.parametrize(
    ("given", "read"), [("true", True), ("no", False), ("offload", "offload"), ("1", True)]
)
def test_checkpointing_is_a_flag_or_offload(given: str, read: object) -> None:
    tree = {"model": {"name_or_path": "m"}, "data": {"train": "a"}, "output": {"dir": "o"}}

    recipe = build_recipe(tree, [f"training.gradient_checkpointing={given}"])
    assert recipe.training.gradient_checkpointing == read
    assert recipe.model_dump(mode="json")["training"]["gradient_checkpointing"] == read
    with pytest.raises(RecipeError, match="expected true, false or offload"):
        build_recipe(tree, ["training.gradient_checkpointing=maybe"])
