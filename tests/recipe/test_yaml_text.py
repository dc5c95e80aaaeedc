"""YAML from anywhere is read within bounds, or refused with its line."""

import time
from itertools import pairwise
from pathlib import Path

import pytest

from glmtune.errors import RecipeError
from glmtune.recipe.reading import build_recipe, load_recipe
from glmtune.recipe.yaml_text import MAX_BYTES, YamlError, parse_yaml

SMALLEST = "model: {name_or_path: m}\ndata: {train: r.json}\noutput: {dir: there}\n"
LETTERS = "abcdefghijklmnop"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise(LETTERS)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in pairwise(LETTERS)
)


def load(tmp_path: Path, text: str | bytes) -> str:
    """Load a recipe, and return what is wrong with it, or an empty text."""
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    try:
        load_recipe(path)
    except RecipeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("lint:\ntraining: {seed: 1}\ntraining: {}\n", ":6: 'training' is given twice"),
        ("training:\n  seed: 1\n  seed: 2\n", ":6: 'seed' is given twice, first in line 5"),
        ("training:\n\tseed: 1\n", ":5: not valid YAML: a tab .* Indent with spaces"),
        ("training: {1: 2}\n", r':4: a key is \'1\', expected text.*"1": value'),
        ("training: {yes: 2}\n", ":4: a key is 'yes', expected text"),
        ("? [a]\n: 1\n", ":4: a key is a list or a mapping"),
        ("training: {use_cpu: !!bool maybe}\n", ":4: 'maybe' is not true or false"),
        ("training: {seed: !!int x}\n", ":4: 'x' is not a whole number"),
        ("training: {seed: !!null x}\n", ":4: 'x' is not null"),
        ("training: {seed: !!timestamp 2026-99-99}\n", ":4: the tag .*timestamp' is not read"),
        ("training: {seed: !!binary x}\n", ":4: the tag .*binary' is not read"),
        ("training: !!set {seed}\n", ":4: the tag .*set' is not read"),
        ("training: !!python/object/apply:os.getcwd []\n", ":4: the tag .*getcwd' is not read"),
        (f"training: {{seed: {'9' * 5_000}}}\n", ":4: a number of 5,000 characters"),
        (f"training: {{seed: {'9' * 300}}}\n", "training.seed is a number of more than 18 digits"),
        ("training: *gone\n", ":4: not valid YAML: found undefined alias"),
        ("training: &a {seed: *a}\n", ":4: an alias inside of what it stands for"),
        ("training: {<<: 3}\n", ":4: '<<' merges mappings"),
        ("---\na: 1\n", ":4: not valid YAML: but found another document"),
        ("训练：{seed: 1}\n", ":4: .* full-width '：'"),
        ("lint: ［a, b\n c: d］\n", "full-width"),
        (f"training: {'[' * 60}", ":4: more than 50 levels deep"),
        (f"training: {'{a: ' * 60}", ":4: more than 50 levels deep"),
    ],
)  # fmt: skip
def test_what_yaml_may_hold_but_no_recipe_does_is_refused_with_its_line(
    tmp_path: Path, addition: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        raise RecipeError(load(tmp_path, SMALLEST + addition))


@pytest.mark.parametrize(
    "text",
    [BOMB, MERGE_BOMB, "[" * 200_000, "a: " + "x" * (MAX_BYTES + 5), "- a\n" * 150_000],
    ids=["aliases", "merge keys", "brackets", "one long text", "a long list"],
)  # fmt: skip
def test_a_text_that_would_take_all_memory_or_hours_is_refused_soon(
    tmp_path: Path, text: str
) -> None:
    began = time.process_time()

    assert load(tmp_path, text)
    assert time.process_time() - began < 10


def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(RecipeError, match="more than 1,000,000"):
        load_recipe("/dev/zero")


@pytest.mark.parametrize("encoding", ["utf-16", "gb18030"])
def test_a_file_in_another_encoding_is_refused_with_the_command_that_converts_it(
    tmp_path: Path, encoding: str
) -> None:
    message = load(tmp_path, (SMALLEST + "# 中文注释\n").encode(encoding))

    assert f"iconv -f {encoding.upper()} -t UTF-8 {tmp_path}" in message


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    assert not load(tmp_path, b"\xef\xbb\xbf" + SMALLEST.replace("\n", "\r\n").encode())


def test_merge_keys_and_aliases_of_a_normal_size_are_read(tmp_path: Path) -> None:
    text = "x: &own {a: 1, b: 2}\ny: {<<: *own, b: 3}\nz: [*own, {<<: [{b: 4}, *own]}]\n"
    tree = parse_yaml(text).tree

    assert tree["y"] == {"a": 1, "b": 3}
    assert tree["z"] == [{"a": 1, "b": 2}, {"a": 1, "b": 4}]  # the first mapping wins
    assert parse_yaml(SMALLEST).lines["data.train"] == 2


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1_000", 1000), ("0x1F", 31), ("0b101", 5), ("-3", -3), ("1.5e+3", 1500.0), (".5", 0.5),
        ("yes", True), ("Off", False), ("~", None), ("null", None),
        ("2026-11-27", "2026-11-27"), ("1:30", "1:30"), ("010", "010"), ("=", "="),
        ("5e-5", "5e-5"), ("1.e3", "1.e3"), ("-.5", "-.5"),
        ("'yes'", "yes"), ("!!str 3", "3"), ("!!float 3", 3.0), ("y", "y"), ("", None),
    ],
)  # fmt: skip
def test_plain_words_mean_what_they_did_but_for_dates_base_60_and_octal(
    word: str, value: object
) -> None:
    read = parse_yaml(f"a: {word}").tree["a"]

    assert (read, type(read)) == (value, type(value))


def test_a_date_may_name_a_folder() -> None:
    tree = {"model": {"name_or_path": "m"}, "data": {"train": "r"}, "output": {"dir": "o"}}

    assert build_recipe(tree, ["output.dir=2026-11-27"]).output.dir == "2026-11-27"


@pytest.mark.parametrize("override", ["a=*b", "run_name=[", "run_name=a: b: c", "seed=!!int x"])
def test_the_value_of_an_override_passes_the_same_border(override: str) -> None:
    tree = {"model": {"name_or_path": "m"}, "data": {"train": "r"}, "output": {"dir": "o"}}

    with pytest.raises(RecipeError, match=r"not valid YAML.* put it in quotes within quotes"):
        build_recipe(tree, [override])
    quoted = f'output.run_name="{override}"'
    assert build_recipe(tree, [quoted]).output.run_name == override


def test_an_empty_text_is_nothing() -> None:
    assert parse_yaml("").tree is None
    with pytest.raises(YamlError):
        parse_yaml("\x00")


def test_a_place_that_is_no_yaml_is_shown_with_a_caret(tmp_path: Path) -> None:
    message = load(tmp_path, SMALLEST + "training:\n  seed: 1\n   max_steps: 3\n")

    assert message.endswith("Fix the file.\n       max_steps: 3\n                ^")
    assert message.count("\n") == 2
