"""The splits of a folder are those that the hub's own loader finds."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.encoding import CountingTemplate

from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.data.lint.run import lint_data
from glmtune.data.sources import find_source, read_rows
from glmtune.data.splits import find_splits
from glmtune.errors import DataError
from glmtune.recipe.sections import DataSection
from glmtune.recipe.sources import SourceSection


def make(folder: Path, *paths: str) -> Path:
    """Write files of one row, which names its file."""
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".parquet"):
            pyarrow.parquet.write_table(pa.Table.from_pylist([{"q": path}]), file)
        else:
            file.write_text(json.dumps({"q": path}) + "\n", encoding="utf-8")
    return folder


def read(folder: Path, split: str | None = None) -> list[str]:
    return [row["q"] for row in read_rows(folder, split=split)]


HUB = ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet",
       "data/validation-00000-of-00001.parquet")  # fmt: skip


@pytest.mark.parametrize(
    ("paths", "train"),
    [
        (HUB, ["data/train-00000-of-00001.parquet"]),
        (("train.json", "test.json", "dev.json"), ["train.json"]),
        (("train/a.json", "train/b.json", "test/a.json"), ["train/a.json", "train/b.json"]),
        (("zh/my_train-1.jsonl", "zh/my_eval.jsonl"), ["zh/my_train-1.jsonl"]),
        (("a.json", "b.json", "contest.json"), ["a.json", "b.json", "contest.json"]),
        (("data/random-00000-of-00001.json",), ["data/random-00000-of-00001.json"]),
        (("test.json",), ["test.json"]),
    ],
)
def test_training_reads_the_split_train_alone(
    tmp_path: Path, paths: tuple[str, ...], train: list[str]
) -> None:
    assert read(make(tmp_path, *paths)) == train


def test_a_split_can_be_asked_for_and_the_rest_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path, *HUB, "notes.json")

    assert read(folder, "test") == ["data/test-00000-of-00001.parquet"]
    assert find_source(folder).left_out == (
        f"{folder}: split train is read, 1 file; left out: validation (1 file), test (1 file), "
        "in no split: notes.json"
    )
    with pytest.raises(DataError, match="no split 'dev'; it has train, validation, test"):
        read(folder, "dev")
    assert find_source(make(tmp_path / "plain", "a.json", "b.json")).left_out == ""


def test_a_folder_with_a_test_split_and_other_files_does_not_guess(tmp_path: Path) -> None:
    folder = make(tmp_path, "rows.json", "rows_test.json")

    with pytest.raises(DataError, match=r"no split 'train'; it has test \(and files in no split"):
        read(folder)
    assert read(folder, "test") == ["rows_test.json"]


README = """---
license: mit
configs:
- config_name: zh
  data_files:
  - split: train
    path: zh/*.json
  - split: test
    path: [zh/held/*.json, "zh/**/extra.json"]
- config_name: en
  {default}
  data_files: en/a.json
---
# A data set
"""


def test_a_readme_says_which_files_are_which(tmp_path: Path) -> None:
    paths = ("zh/a.json", "zh/held/a.json", "zh/x/y/extra.json", "en/a.json", "en/b.json")
    folder = make(tmp_path, *paths)
    (folder / "README.md").write_text(README.format(default="default: true"), encoding="utf-8")
    zh = SourceSection(path=str(folder), config="zh")

    assert read(folder) == ["en/a.json"]
    assert [row["q"] for row in read_rows(zh)] == ["zh/a.json"]
    assert [row["q"] for row in read_rows(zh, split="test")] == ["zh/held/a.json", paths[2]]
    with pytest.raises(DataError, match=r"no configuration 'fr'; its README\.md has zh, en"):
        read_rows(SourceSection(path=str(folder), config="fr"))


def test_a_configuration_may_have_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = make(tmp_path, "zh/train.json", "zh/test.json", "zh/x.json", "en/a.json")
    configs = [
        {"config_name": "named", "data_dir": "zh"},
        {"config_name": "listed", "data_dir": "./zh/", "data_files": "x.json"},
        {"config_name": "outside", "data_dir": "../"},
    ]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")

    def read_config(config: str) -> list[str]:
        return [row["q"] for row in read_rows(SourceSection(path=str(folder), config=config))]

    assert read_config("named") == ["zh/train.json"]
    assert read_config("listed") == ["zh/x.json"]
    with pytest.raises(DataError, match="matches no data file"):
        read_config("outside")


def test_several_configurations_without_a_default_are_listed(tmp_path: Path) -> None:
    folder = make(tmp_path, "zh/a.json", "en/a.json")
    (folder / "README.md").write_text(README.format(default=""), encoding="utf-8")

    with pytest.raises(DataError, match=r"zh, en, and none is the default.*config: zh}\]"):
        read(folder)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("configs: [{config_name: a, data_files: [", "README.md:2: its header is not YAML"),
        ("configs: 7", "configs is not what was expected"),
        ("configs: [{name: a}]", "configs is not what was expected"),
        ("configs: [{config_name: a, data_files: {x: 1}}]", "expected a pattern, or split"),
        ("configs: [{config_name: a, data_files: [{split: [], path: a}]}]", "expected a pattern"),
        ("configs: [{config_name: a, data_files: ../x.json}]", "leads out of the folder"),
        ("configs: [{config_name: a, data_files: 'hf://x/y'}]", "leads out of the folder"),
        ("configs: [{config_name: a, data_files: nothing.json}]", "matches no data file"),
        ("configs: [{config_name: a, data_files: '[b-a].json'}]", "cannot be used"),
        ("configs: " + "[" * 3000, "its header is not YAML"),
    ],
)
def test_a_readme_that_cannot_be_used_says_why(tmp_path: Path, header: str, message: str) -> None:
    folder = make(tmp_path, "a.json")
    (folder / "README.md").write_text(f"---\n{header}\n---\n", encoding="utf-8")

    with pytest.raises(DataError, match=message):
        read(folder)


def test_a_readme_without_configurations_changes_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path, "a.json", "b.json")
    for text in ("---\nlicense: [mit\n---\n", "# configs\n", "---\nno end\nconfigs: 1", "\xff"):
        (folder / "README.md").write_bytes(text.encode("latin-1"))

        assert read(folder) == ["a.json", "b.json"]


def test_patterns_with_many_asterisks_take_no_time(tmp_path: Path) -> None:
    folder = make(tmp_path, "a" * 200 + ".json")
    pattern = "*a" * 60 + "b"
    (folder / "README.md").write_text(
        f"---\nconfigs: [{{config_name: a, data_files: '{pattern}'}}]\n---\n", encoding="utf-8"
    )

    with pytest.raises(DataError, match="matches no data file"):
        read(folder)


PATHS = st.lists(
    st.tuples(
        st.sampled_from(["", "data/", "train/", "x/test/", "dev set/", "a-val.1/", "contest/"]),
        st.sampled_from(
            ["a", "train", "test-1", "train-00000-of-00002", "random-00000-of-00001-x", "my_eval",
             "training.2", "attrain", "x train y", "valid0", "Test", "data-dev"]
        ),
        st.sampled_from([".json", ".jsonl.gz", ".parquet"]),
    ).map("".join),
    min_size=1, max_size=6, unique=True,
)  # fmt: skip
PATTERN = st.sampled_from(
    ["**", "*", "*.json", "data/*", "**/train*", "x/**/*.json", "[a-t]*/**", "?.json", "**/*-1.*"]
)


@settings(max_examples=150, deadline=None)
@given(paths=PATHS, patterns=st.none() | st.dictionaries(st.sampled_from("abc"), PATTERN))
def test_the_splits_are_those_of_the_package_datasets(
    tmp_path_factory: pytest.TempPathFactory, paths: list[str], patterns: dict[str, str] | None
) -> None:
    rules = pytest.importorskip("datasets.data_files")
    folder = tmp_path_factory.mktemp("hub")
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    files = sorted(folder / path for path in paths)
    if patterns:
        entries = [{"split": split, "path": path} for split, path in patterns.items()]
        configs = [{"config_name": "default", "data_files": entries}]
        header = json.dumps({"configs": configs})
        (folder / "README.md").write_text(f"---\n{header}\n---\n", encoding="utf-8")
        globs = rules.sanitize_patterns(entries)
    else:
        globs = rules.get_data_patterns(str(folder))
    theirs = {
        split: sorted(set(found))
        for split, found in rules.DataFilesDict.from_patterns(globs, str(folder)).items()
        if found
    }

    if theirs:
        ours = find_splits("hub", folder, files).splits
        assert {split: sorted(map(str, found)) for split, found in ours.items()} == theirs
    else:
        with pytest.raises(DataError, match="matches no data file"):
            find_splits("hub", folder, files)


def test_what_is_left_out_is_logged_and_noted_by_lint(
    tmp_path: Path, template: CountingTemplate, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "rows"
    for name in ("train", "test"):
        row = {"instruction": name, "output": "好。"}
        make(folder, f"{name}.json").joinpath(f"{name}.json").write_text(json.dumps(row))
    note = f"{folder}: split train is read, 1 file; left out: test (1 file)"

    with caplog.at_level("INFO"):
        data = encode_data(folder, template, EncodeOptions(max_length=64))
    report = lint_data(DataSection(train=(str(folder),)))

    assert len(data) == report.num_rows == 1
    assert note in caplog.messages
    assert report.notes == (note,)
    assert json.loads(report.to_json())["notes"] == [note]


@pytest.mark.parametrize(
    ("wanted", "remedy"),
    [("val", "data.split=validation."), ("train[:9]", "data.split=train, and path#500")],
)
def test_a_split_by_another_name_is_told_its_name_here(
    tmp_path: Path, wanted: str, remedy: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(make(tmp_path, *HUB), wanted)

    assert remedy in str(caught.value)
