"""Sources with keys of their own: how they are read, and how often an epoch learns them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.data.encoding import CountingTemplate

from glmtune.data.dataset import Dataset, Entry
from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.data.formats import convert
from glmtune.data.lint.run import lint_data
from glmtune.data.mixing import weigh_rows
from glmtune.data.pairs import encode_pairs
from glmtune.data.texts import TextOptions, encode_texts
from glmtune.errors import DataError, RecipeError
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.recipe.sections import DataSection
from glmtune.recipe.sources import SourceSection
from glmtune.train.load_rows import encode_rows
from glmtune.use.predict import read_questions


def write(path: Path, *rows: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def alpaca(*texts: str) -> list[dict[str, str]]:
    return [{"instruction": text, "output": f"{text}。"} for text in texts]


def recipe_of(folder: Path, **data: Any) -> Recipe:
    output = {"dir": str(folder / "out")}
    return build_recipe({"model": {"name_or_path": "nano"}, "data": data, "output": output})


def asked(section: DataSection) -> list[tuple[str, str]]:
    """Format and question of each row."""
    return [
        (entry.format.name, entry.value.messages[0].content)
        for entry in Dataset.of(section).read(convert)
        if isinstance(entry, Entry)
    ]


def test_each_source_is_read_with_its_own_format_columns_roles_and_split(
    tmp_path: Path, template: CountingTemplate
) -> None:
    write(tmp_path / "hub" / "train.jsonl", {"问": "甲", "答": "乙"})
    write(tmp_path / "hub" / "test.jsonl", {"问": "丙", "答": "丁"})
    turns = [{"from": "bot0", "value": "戊"}, {"from": "bot1", "value": "己"}]
    section = DataSection.model_validate(
        {
            "columns": {"instruction": "q"},
            "train": [
                write(tmp_path / "a.json", {"q": "天", "output": "地"}),
                {
                    "path": str(tmp_path / "hub"),
                    "split": "test",
                    "format": "query_response",
                    "columns": {"query": "问", "response": "答"},
                },
                {
                    "path": write(tmp_path / "b.json", {"conversations": turns}),
                    "format": "sharegpt",
                    "roles": {"bot0": "user", "bot1": "assistant"},
                },
                {"path": str(tmp_path / "a.json"), "weight": 2},
            ],
        }
    )

    expected = [("alpaca", "天"), ("query_response", "丙"), ("sharegpt", "戊"), ("alpaca", "天")]
    assert asked(section) == expected
    questions = read_questions(section, template)
    assert [question.text for question in questions] == [text for _, text in expected]
    assert lint_data(section).num_rows == 4
    options = EncodeOptions(max_length=64, columns=section.columns)
    data = encode_data(section.train, template, options)
    assert data.source_counts == [1, 1, 1, 1]
    assert [data.origin(index).split("/")[-1] for index in range(4)] == [
        "a.json:1", "test.jsonl:1", "b.json:1", "a.json:1"
    ]  # fmt: skip


def test_changing_the_columns_of_a_source_encodes_it_again(
    tmp_path: Path, template: CountingTemplate
) -> None:
    path = write(tmp_path / "a.json", {"instruction": "天", "output": "地", "other": "人"})
    options = EncodeOptions(max_length=64)

    first = encode_data(SourceSection(path=path), template, options)
    same = encode_data([path], template, options)
    other = encode_data(SourceSection(path=path, columns={"output": "other"}), template, options)

    assert first.key == same.key != other.key
    assert first[0] != other[0]
    weighed = encode_data(SourceSection(path=path, weight=3), template, options)
    assert weighed.key == first.key  # a weight changes no example


def test_a_weight_is_how_often_an_epoch_learns_each_row() -> None:
    counts = [4, 2, 10]

    rows = weigh_rows(range(16), counts, [1, 2, 0.5], seed=1)

    assert sorted(rows[:8]) == [0, 1, 2, 3, 4, 4, 5, 5]
    assert len(rows[8:]) == len(set(rows[8:])) == 5
    assert set(rows[8:]) < set(range(6, 16))
    assert rows == weigh_rows(range(16), counts, [1, 2, 0.5], seed=1)
    assert rows != weigh_rows(range(16), counts, [1, 2, 0.5], seed=2)
    more = Counter(weigh_rows(range(16), counts, [1, 1, 1.3], seed=1)[6:])
    assert sorted(more.values()) == [1] * 7 + [2] * 3
    assert len(weigh_rows([0, 6], counts, [0.01, 1, 0.01], seed=1)) == 2  # at least one each


def test_held_out_rows_are_never_learned_whatever_the_weights(
    tmp_path: Path, template: CountingTemplate, tiny_tokenizer: ChatGLMTokenizer
) -> None:
    train = [
        {"path": write(tmp_path / "a.json", *alpaca(*"甲乙丙丁戊己庚辛")), "weight": 3},
        {"path": write(tmp_path / "b.json", *alpaca(*"天地人你我他好水")), "weight": 0.5},
    ]
    recipe = recipe_of(tmp_path, train=train, eval_fraction=0.25)

    data = encode_rows(recipe, tiny_tokenizer, template, tmp_path)

    counts = Counter(data.rows)
    assert set(data.rows).isdisjoint(data.eval_rows)
    assert len(data.eval_rows) == 4
    own = [row for row in range(8) if row not in data.eval_rows]
    others = [row for row in range(8, 16) if row not in data.eval_rows]
    assert {row: count for row, count in counts.items() if row < 8} == dict.fromkeys(own, 3)
    assert sum(count for row, count in counts.items() if row >= 8) == round(len(others) / 2)
    duplicates = [each for each in lint_data(recipe.data).findings if each.check == "duplicate"]
    assert duplicates == []


def test_a_recipe_of_plain_paths_is_written_as_before(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, train=["a.json", "b.json#5"], eval="c.json")

    dumped = recipe.model_dump(mode="json")["data"]
    assert dumped["train"] == ["a.json", "b.json#5"]
    assert dumped["eval"] == ["c.json"]
    mixed = recipe_of(tmp_path, train={"path": "a.json", "weight": 2})
    again = build_recipe(mixed.model_dump(mode="json"))
    assert again == mixed
    assert mixed.data.train == (SourceSection(path="a.json", weight=2),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": [{"path": "a", "wieght": 2}]}, "'wieght' is not a key of a source; known are"),
        ({"train": [{"weight": 2}]}, "a source has no 'path'"),
        ({"train": [{"path": "a", "weight": 0}]}, "weight is 0"),
        ({"train": [{"path": "a", "weight": 1e9}]}, "weight is 1000000000.0"),
        ({"train": [{"path": "a", "weight": True}]}, "expected a number"),
        ({"train": [{"path": ""}]}, "path is ''"),
        ({"train": ["a.json", 7]}, "expected paths, or mappings with a path"),
        ({"train": [{"path": "a", "weight": float("nan")}]}, "weight is nan"),
        ({"train": [{"path": "a", "columns": [1]}]}, "columns is [1]"),
        ({"train": "a", "eval": [{"path": "b", "weight": 2}]}, "held-out rows count once each"),
        ({"train": 7}, "expected a list"),
    ],
)
def test_a_source_that_cannot_be_used_is_explained(
    tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of(tmp_path, **data)
    assert message.lower() in str(caught.value).lower()


def test_the_roles_and_the_configuration_of_a_source_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", *alpaca("甲"))

    with pytest.raises(DataError, match="expected one of"):
        asked(DataSection(train=(SourceSection(path=path, roles={"x": "nobody"}),)))
    with pytest.raises(DataError, match="only data sets of a hub"):
        asked(DataSection(train=(SourceSection(path=path, config="zh"),)))


def test_pairs_and_texts_know_how_many_come_from_each_source(
    tmp_path: Path, template: CountingTemplate, tiny_tokenizer: ChatGLMTokenizer
) -> None:
    pair = {"instruction": "天", "chosen": "好", "rejected": "坏"}
    pairs = [write(tmp_path / "a.json", pair, pair), write(tmp_path / "b.json", pair)]
    data = encode_pairs(pairs, template, EncodeOptions(max_length=64))
    assert (len(data), data.source_counts) == (3, [2, 1])

    texts: list[str | SourceSection] = [
        write(tmp_path / "c.jsonl", {"text": "今天的天气很好。"}),
        SourceSection(
            path=write(tmp_path / "d.jsonl", {"body": "北京"}, {"body": "公园"}),
            columns={"text": "body"},
        ),
    ]
    windows = encode_texts(texts, tiny_tokenizer, TextOptions(max_length=64))
    assert windows.source_counts == [1, 2]
    with pytest.raises(DataError, match="a text has no format"):
        encode_texts(
            SourceSection(path=texts[0], format="alpaca"),  # type: ignore[arg-type]
            tiny_tokenizer,
            TextOptions(max_length=64),
        )


REGISTER = {
    "plain": {"file_name": "plain.json"},
    "mapped": {
        "file_name": "sub/mapped.json",
        "columns": {"prompt": "q", "query": "more", "response": "a"},
        "num_samples": 1,
    },
    "chat": {
        "file_name": "chat.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "me",
                 "assistant_tag": "you"},
    },
    "better": {
        "file_name": "better.json",
        "ranking": True,
        "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    },
    "script": {"script_url": "x.py"},
    "odd": {"file_name": "plain.json", "weird": 1},
    "tagged": {"file_name": "chat.json", "formatting": "sharegpt", "tags": {"role_tag": "who"}},
    "list": [],
    "nowhere": {},
    "pictures": {"file_name": "plain.json", "columns": {"images": "pics"}},
}  # fmt: skip


@pytest.fixture
def register(tmp_path: Path) -> str:
    """A register of LLaMA-Factory, and its files."""
    folder = tmp_path / "data"
    write(folder / "plain.json", *alpaca("甲"))
    write(
        folder / "sub" / "mapped.json", {"q": "乙", "more": "丙", "a": "x"}, {"q": "丁", "a": "y"}
    )
    talk = [{"role": "me", "content": "戊"}, {"role": "you", "content": "己"}]
    write(folder / "chat.json", {"talk": talk})
    write(folder / "better.json", {"q": "庚", "good": "好", "bad": "坏"})
    return write(folder / "dataset_info.json", REGISTER)


def test_an_entry_of_a_register_says_how_its_rows_are_read(register: str) -> None:
    def read(*names: str) -> list[tuple[str, str]]:
        return asked(DataSection(train=tuple(f"{register}#{name}" for name in names)))

    assert read("plain", "mapped") == [("alpaca", "甲"), ("alpaca", "乙\n丙")]
    assert read("mapped#2") == [("alpaca", "乙\n丙"), ("alpaca", "丁")]
    assert read("chat") == [("openai", "戊")]
    assert read("better") == [("chosen_rejected", "庚")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plian", r"it has plain, mapped.*Did you mean .*#plain\?"),
        ("script", "script_url: its rows come out of a program, which is not run"),
        ("odd", "'weird' is not known"),
        ("tagged", "messages have 'who' and 'value', expected from and value"),
        ("list", "expected an object, got a list"),
        ("nowhere", "has no file_name"),
        ("pictures", "ChatGLM3 reads text alone"),
    ],
)
def test_an_entry_that_cannot_be_used_says_why(register: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        asked(DataSection(train=(f"{register}#{name}",)))


def test_a_register_alone_names_its_entries(register: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Name one of them, as in .*#NAME; it has plain, mapped"):
        asked(DataSection(train=(register,)))
    with pytest.raises(DataError, match="no such file"):
        asked(DataSection(train=(f"{tmp_path}/dataset_info.json#x",)))
