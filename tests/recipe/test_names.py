"""Names that people bring are understood, or answered with ours; and each remedy works."""

import re
from pathlib import Path

import pytest

from glmtune.errors import RecipeError
from glmtune.recipe.explain import known_keys
from glmtune.recipe.names import HINTS
from glmtune.recipe.reading import build_recipe, load_recipe
from glmtune.recipe.recipe import Recipe

TREE = {"model": {"name_or_path": "m"}, "data": {"train": "rows.json"}, "output": {"dir": "out"}}


def refusal(overrides: list[str]) -> str:
    """Say why a recipe is refused; empty if it is not."""
    try:
        build_recipe(TREE, overrides)
    except RecipeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("name", "value", "ours"),
    [
        ("lora_rank", "8", "adapter.r"),
        ("rank", "8", "adapter.r"),
        ("alpha", "8", "adapter.lora_alpha"),
        ("lora_target", "dense", "adapter.target_modules"),
        ("epochs", "3", "training.num_train_epochs"),
        ("lr", "1e-4", "training.learning_rate"),
        ("batch_size", "4", "training.per_device_train_batch_size"),
        ("cutoff_len", "512", "data.max_length"),
        ("max_seq_length", "512", "data.max_length"),
        ("dataset", "rows.json", "data.train"),
        ("val_size", "0.1", "data.eval_fraction"),
        ("model_path", "m", "model.name_or_path"),
        ("model", "m", "model.name_or_path"),
        ("data", "rows.json", "data.train"),
        ("output", "there", "output.dir"),
        ("early_stopping_steps", "3", "training.early_stopping_patience"),
    ],
)
def test_a_name_of_another_tool_is_answered_with_ours(name: str, value: str, ours: str) -> None:
    message = refusal([f"{name}={value}"])

    assert f"Write {ours}={value}" in message
    assert refusal([f"{ours}={value}"]) != message
    assert "lora_alpha" not in message or "alpha" in ours


@pytest.mark.parametrize("name", HINTS)
def test_every_hint_names_a_key_and_is_given_in_a_file_too(name: str, tmp_path: Path) -> None:
    assert HINTS[name] in known_keys(Recipe)

    section = HINTS[name].partition(".")[0]
    path = tmp_path / "recipe.yaml"
    own = {"model": "name_or_path: m", "data": "train: r", "output": "dir: o"}
    for text in (f"{name}: 8\n", f"{section}: {{{own.pop(section, 'x: 1')}, {name}: 8}}\n"):
        rest = "".join(f"{key}: {{{value}}}\n" for key, value in own.items())
        path.write_text(rest + text, encoding="utf-8")
        with pytest.raises(RecipeError) as refused:
            load_recipe(path)
        known = name in {key.partition(".")[2] for key in known_keys(Recipe)}
        is_section = name in Recipe.model_fields
        assert known or is_section or f"it is called {HINTS[name]} here" in str(refused.value)


def test_a_key_in_the_wrong_section_is_answered_with_the_right_one() -> None:
    assert "It is training.learning_rate." in refusal(
        ["adapter.method=full", "adapter.learning_rate=1"]
    )
    assert "It is adapter.r." in refusal(["training.r=4"])
    assert "one for `glmtune pretrain`" in refusal(["model.config={a: 1}"])


def test_a_section_may_be_replaced_so_that_another_method_can_be_chosen() -> None:
    message = refusal(["adapter.r=4", "adapter.method=full"])

    assert "not a key of adapter.method=full, but of lora, qlora, vera" in message
    [remedy] = re.findall(r"adapter='(\{.*?\})'", message)
    assert not refusal(["adapter.r=4", f"adapter={remedy}"])


def test_a_section_without_its_keys_is_answered_with_the_key(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: ./m\ndata: {train: r}\noutput: {dir: o}\n", encoding="utf-8")

    with pytest.raises(
        RecipeError, match=r":1: model is '\./m', expected keys and values\. Write mod"
    ):
        load_recipe(path)
    assert "Write adapter.method=qlora" in refusal(["adapter=qlora"])
    assert not refusal(["adapter.method=qlora"])


def test_an_empty_section_is_its_defaults() -> None:
    assert build_recipe({**TREE, "checks": None}) == build_recipe(TREE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.max_steps", "-1"), ("training.max_steps", "0"), ("training.max_grad_norm", "0"),
        ("training.max_grad_norm", "0.0"), ("training.save_total_limit", "0"),
        ("training.save_total_limit", "-1"), ("training.early_stopping_patience", "0"),
        ("training.neftune_noise_alpha", "0"), ("adapter.loraplus_lr_ratio", "0"),
        ("checks.forgetting", "0"), ("checks.sample_steps", "-1"),
    ],
)  # fmt: skip
def test_what_other_tools_switch_off_by_zero_is_switched_off_by_null(key: str, value: str) -> None:
    message = refusal([f"{key}={value}"])

    assert f"{key} is {value}" in message
    assert f"{key}=null" in message
    assert not refusal([f"{key}=null"])


def test_an_old_name_on_the_command_line_changes_what_the_recipe_says() -> None:
    with pytest.warns(UserWarning, match=r"output_dir is now called output\.dir"):
        assert build_recipe(TREE, ["output_dir=there"]).output.dir == "there"
    with pytest.warns(UserWarning, match="is now called"):
        assert build_recipe({**TREE, "output_dir": "x", "output": {}}).output.dir == "x"


def test_a_warmup_ratio_of_one_does_not_become_one_step() -> None:
    with pytest.raises(RecipeError, match="expected a share of all steps below 1"):
        build_recipe({**TREE, "training": {"warmup_ratio": 1.0}})


def test_a_key_alone_and_in_its_section_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"learning_rate is given twice, alone and as training\."):
        build_recipe({**TREE, "learning_rate": 1e-4, "training": {"learning_rate": 1e-3}})


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("adapter.target_modules='query_key_value, dense'", ("query_key_value", "dense")),
        ("adapter.target_modules=dense", ("dense",)),
        ("adapter.target_modules=[a, b]", ("a", "b")),
        ("adapter.target_modules=all-linear", "all-linear"),
        ("adapter.target_modules=null", None),
    ],
)
def test_layers_may_be_named_in_one_text(override: str, names: object) -> None:
    assert build_recipe(TREE, [override]).adapter.target_modules == names


@pytest.mark.parametrize("value", ["3", "[]", "[3]", "''", "{a: b}", "true"])
def test_layers_that_are_no_names_are_refused_with_one_sentence(value: str) -> None:
    message = refusal([f"adapter.target_modules={value}"])

    assert "expected names of layers, such as [query_key_value, dense], or all-linear" in message
    assert "\n" not in message


def test_null_is_an_empty_list() -> None:
    nothing = ["checks.general_rows=null", "data.eval=null", "lint.off=null", "report_to=null"]
    recipe = build_recipe(TREE, nothing)

    assert (recipe.checks.general_rows, recipe.data.eval, recipe.lint.off) == ((), (), ())
    assert recipe.output.report_to == ()
    assert build_recipe(TREE, ["report_to='wandb,tensorboard'"]).output.report_to == (
        *("wandb", "tensorboard"),
    )


def test_no_rows_are_refused() -> None:
    for nothing in ("[]", "null"):
        assert "data.train is" in refusal([f"data.train={nothing}"])


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("output.run_name=2024", 'output.run_name="2024"'),
        ("data.format=no", 'data.format="false"'),
    ],
)
def test_text_that_looks_like_something_else_is_put_in_quotes(override: str, remedy: str) -> None:
    assert remedy in refusal([override])
    assert not refusal([remedy])
    assert "quotes" not in refusal([override.partition("=")[0] + "=[a]"])  # which would not help


def test_an_entry_of_a_list_or_a_mapping_is_explained_where_it_is() -> None:
    assert refusal(["lint.off=[a, 1]"]).endswith(
        'lint.off.1 is 1, expected text. Put it in quotes: "1".'
    )
    assert "data.train is ['a', 1]: expected paths" in refusal(["data.train=[a, 1]"])
    assert """'data.columns.a="3"'""" in refusal(["data.columns.a=3"])
    assert "Did you mean 'ratio'" in refusal(["data.replay={path: a, ration: 1}"])
