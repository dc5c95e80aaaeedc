"""Every known symptom is found in a real message, and in no other one."""

import ast
import re
from pathlib import Path

import pytest
import typer
import yaml
from tests.inspect.doctor.messages import MESSAGES

import glmtune
from glmtune.cli.main import app
from glmtune.inspect.doctor.log import diagnose
from glmtune.inspect.doctor.symptoms import SYMPTOMS
from glmtune.recipe.reading import build_recipe, load_recipe


@pytest.mark.parametrize(("message", "name"), MESSAGES)
def test_a_real_message_is_known_and_taken_for_nothing_else(message: str, name: str) -> None:
    assert [finding.name for finding in diagnose(message)] == [name]


def test_every_symptom_has_a_message_and_is_explained_in_sentences() -> None:
    assert {name for _, name in MESSAGES} == {symptom.name for symptom in SYMPTOMS}
    assert len({symptom.name for symptom in SYMPTOMS}) == len(SYMPTOMS)
    for symptom in SYMPTOMS:
        for sentence in (symptom.cause, symptom.remedy):
            assert sentence.endswith("."), symptom.name
            assert ". " not in sentence, symptom.name


def test_a_cause_names_what_the_message_names() -> None:
    [finding] = diagnose(
        "TypeError: LoraConfig.__init__() got an unexpected keyword argument 'eva_config'"
    )

    assert "'eva_config'" in finding.cause


def test_every_command_that_a_remedy_names_exists() -> None:
    command = typer.main.get_command(app)
    known = set(getattr(command, "commands", {}))

    named = {name for each in SYMPTOMS for name in re.findall(r"`glmtune (\S+?)[ `]", each.remedy)}

    assert {"chat", "info", "inspect", "plan", "predict", "serve", "train"} <= named <= known


def test_every_recipe_value_that_a_remedy_names_is_valid() -> None:
    pattern = r"\b(?:model|data|adapter|training|output|checks)\.\w+=\S+?(?=[,.;]?(?:\s|$))"
    values = {value for each in SYMPTOMS for value in re.findall(pattern, each.remedy)}

    assert len(values) > 4
    for value in values:
        tree = {"model": {"name_or_path": "x"}, "data": {"train": "x"}, "output": {"dir": "out"}}
        build_recipe(tree, [value])


def test_recipes_accept_the_learning_rate_that_yaml_takes_for_text(tmp_path: Path) -> None:
    recipe = tmp_path / "run.yaml"
    recipe.write_text(
        "model: {name_or_path: x}\ndata: {train: y}\noutput: {dir: z}\n"
        "training: {learning_rate: 5e-5}\n"
    )

    assert yaml.safe_load(recipe.read_text())["training"]["learning_rate"] == "5e-5"
    assert load_recipe(recipe, []).training.learning_rate == 5e-5


PRINTING = {"info", "warning", "echo", "secho", "note", "print"}


def test_no_message_that_we_print_or_log_is_taken_for_a_symptom() -> None:
    num_messages, found = 0, []
    for path in Path(glmtune.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            function = getattr(node, "func", None)
            if getattr(function, "attr", getattr(function, "id", "")) not in PRINTING:
                continue
            parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            text = "".join(part if isinstance(part, str) else "1" for part in parts)
            num_messages += 1
            found += [(path.name, each.name, text) for each in diagnose(text)]

    assert num_messages > 60
    assert found == []
