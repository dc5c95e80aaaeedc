"""Keys that do not go together are refused, each with the reason."""

import re
from pathlib import Path
from typing import Any

import pytest

from glmtune.errors import RecipeError
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import PretrainRecipe, Recipe, RunRecipe
from glmtune.recipe.rule import Rule
from glmtune.recipe.rules import FINE_TUNING_RULES, PRETRAINING_RULES, RUN_RULES, document

RECIPES_PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


@pytest.fixture(autouse=True)
def _somebodys_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder and the home of which the examples speak."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.json").write_text("[]", encoding="utf-8")
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")


VALID = {
    "model": {"name_or_path": "m"},
    "data": {"train": "rows.json"},
    "output": {"dir": "out"},
}
TUNING_RULES: tuple[Rule[Any], ...] = (*RUN_RULES, *FINE_TUNING_RULES)
RULES: list[tuple[Rule[Any], type[RunRecipe]]] = [(rule, Recipe) for rule in TUNING_RULES]
RULES += [(rule, PretrainRecipe) for rule in PRETRAINING_RULES]


@pytest.mark.parametrize(
    ("rule", "kind"), RULES, ids=lambda each: "+".join(getattr(each, "example", []))
)
def test_every_rule_refuses_its_example_with_its_message(
    rule: Rule[Any], kind: type[RunRecipe]
) -> None:
    with pytest.raises(RecipeError) as refused:
        build_recipe(VALID, rule.example, kind=kind)

    message = str(refused.value).removeprefix("recipe: ")
    fixed = rule.message.replace("{{", "{").split("{")[0]
    assert message.startswith(fixed)
    assert message.endswith(".")
    assert "{" not in message
    broken = [other for other, _ in RULES if _explains(other, message)]
    assert broken == [rule]


def _explains(rule: Rule[Any], message: str) -> bool:
    """Whether a message is a rule's: all of its fixed parts are in it, in order."""
    parts = re.split(r"\{[^}]+\}", rule.message)
    return re.fullmatch(".*?".join(map(re.escape, parts)) + r"\.", message) is not None


@pytest.mark.parametrize(
    ("rule", "kind"), RULES, ids=lambda each: "+".join(getattr(each, "example", []))
)
def test_the_example_of_a_rule_has_no_needless_key(rule: Rule[Any], kind: type[RunRecipe]) -> None:
    for left_out in rule.example if len(rule.example) > 1 else ():
        rest = [override for override in rule.example if override != left_out]

        assert not _explains(rule, _refusal(rest, kind))


def _refusal(overrides: list[str], kind: type[RunRecipe]) -> str:
    try:
        build_recipe(VALID, overrides, kind=kind)
    except RecipeError as error:
        return str(error).removeprefix("recipe: ")
    return ""


def test_the_recipe_without_examples_is_valid() -> None:
    assert build_recipe(VALID).data.train == ("rows.json",)
    assert build_recipe(VALID, kind=PretrainRecipe).data.train == ("rows.json",)
    assert len(RULES) > 30


def test_the_recipe_page_lists_every_rule() -> None:
    page = RECIPES_PAGE.read_text(encoding="utf-8")

    assert document() in page, "paste what `python -m glmtune.recipe.rules` prints"


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.deepspeed=zero2.json", "training.sharding=fsdp2"],
        ["model.compute=int8", "adapter.method=freeze", "adapter.trainable_layers=1"],
        ["model.compute=int8", "adapter.init_lora_weights=olora"],
        ["training.deepspeed=zero2.json", "adapter.method=ia3"],
        ["adapter.prompt_tuning_init_text=text", "adapter.method=prompt_tuning"],
        ["preference.stage=dpo", "data.replay.path=general.json"],
        ["preference.stage=dpo", "training.deepspeed=zero2.json"],
        ["preference.stage=dpo", "preference.loss=simpo", "adapter.method=ptuning_v2"],
        ["model.attn_implementation=flash_attention_3", "adapter.method=prefix_tuning"],
    ],
)
def test_a_rule_covers_its_other_combinations_too(overrides: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"(Leave|Use|Keep|give)"):
        build_recipe(VALID, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.deepspeed=zero2.json", "training.bf16=true"],
        ["training.deepspeed=zero2.json", "training.neftune_noise_alpha=5"],
        ["adapter.method=full", "model.dtype=float32", "training.bf16=true"],
        ["preference.stage=dpo", "preference.loss=orpo", "adapter.method=full"],
        ["preference.stage=dpo", "preference.loss=simpo", "adapter.bias=all"],
        ["preference.stage=dpo", "adapter.method=ia3"],
        ["adapter.method=none", "data.eval=held_out.json"],
    ],
)
def test_what_goes_together_is_accepted(overrides: list[str]) -> None:
    assert build_recipe(VALID, overrides)


@pytest.mark.parametrize(
    "folder",
    [".", "", "..", "/", "./", "out/..", "~", "~/run", "/home/me", "/home", "/home/me/",
     "notes.txt/a/b", "rows", "rows/../rows", "model", "model/out", "link", "x" * 300,
     "a/" * 2_500],
)  # fmt: skip
def test_a_run_does_not_write_where_something_else_lives(folder: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("rows")
    tree = VALID | {"model": {"name_or_path": "model"}, "data": {"train": "rows/train.json#5"}}

    with pytest.raises(RecipeError, match=r"output\.dir") as refused:
        build_recipe(tree, [f'output.dir="{folder}"'])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        ["data.train=rows", "output.dir=rows/out"],
        ["data.eval=rows/train.json", "output.dir=rows"],
        ["data.replay.path=rows/train.json", "output.dir=rows"],
        ["checks.general_rows=rows/train.json", "output.dir=rows"],
    ],
)
def test_every_data_file_is_kept_apart_from_the_output(changes: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"output\.dir .* holds the data, or lies in"):
        build_recipe(VALID, changes)


@pytest.mark.parametrize(
    "folder", ["out", "rows2", "rows/out", "/home/me/out", "out.d/../new", "ä/中"]
)
def test_a_folder_of_its_own_is_accepted_also_beside_the_data(folder: str) -> None:
    assert build_recipe(VALID, ["data.train=rows/train.json", f"output.dir={folder}"])
    assert build_recipe(VALID, ["model.name_or_path=zai-org/chatglm3-6b", "output.dir=zai-org"])


KEY = r"\b(?:model|data|adapter|training|checks|output|preference|objective)\.\w+"
VALUES = {  # for a remedy that names a key without a value
    "data.eval": "held_out.json",
    "data.eval_fraction": "0.1",
    "adapter.target_modules": "[query_key_value]",
    "adapter.trainable_modules": "[output_layer]",
    "adapter.prompt_tuning_init_text": "text",
}


def remedies(rule: Rule[Any], message: str) -> list[list[str]]:
    """List what a message says to do, each as the changed overrides of its example."""
    found = []
    for advice in re.split(r"[.;:]\s+|\bor\b", message):
        wanted = re.search(r"\b(use|give|write)\b.*", advice, re.IGNORECASE)
        if wanted:
            for key, given in re.findall(rf"({KEY})(?:=([^\s,.]+))?", wanted[0]):
                if value := given or VALUES.get(key, ""):
                    kept = [each for each in rule.example if not each.startswith(f"{key}=")]
                    found.append([*kept, f"{key}={value}"])
    if "eave" in message or "eep" in message or "neither" in message:
        for left_out in rule.example:
            found.append([each for each in rule.example if each != left_out])
    return found


@pytest.mark.parametrize(
    ("rule", "kind"), RULES, ids=lambda each: "+".join(getattr(each, "example", []))
)
def test_who_follows_a_rules_remedy_gets_further(rule: Rule[Any], kind: type[RunRecipe]) -> None:
    message = _refusal(list(rule.example), kind)
    tried = remedies(rule, message)

    assert tried, f"no remedy found in {message!r}"
    after = [_refusal(overrides, kind) for overrides in tried]
    assert all(each != message for each in after)
    assert "" in after, f"nothing that {message!r} says makes the recipe valid: {after}"
