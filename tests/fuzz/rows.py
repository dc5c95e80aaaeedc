"""Files of rows: read, checked, encoded, answered and cleaned as commands do."""

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tests.data.formats.rows import MESSAGES, ROWS, WEATHER
from tests.fuzz.mutations import NASTY, mutate_bytes, mutate_json, mutate_value
from tests.fuzz.surface import Attempt, Healthy, Surface

from glmtune.data.encode import EncodeOptions, encode_data
from glmtune.data.formats import FORMATS
from glmtune.data.lint.clean_copy import write_clean_copy
from glmtune.data.lint.run import lint_data
from glmtune.data.pairs import encode_pairs
from glmtune.data.texts import TextOptions, encode_texts
from glmtune.errors import GlmtuneError
from glmtune.recipe.choices import BadRows
from glmtune.recipe.sections import DataSection
from glmtune.use.predict import read_questions

CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
GOOD: list[dict[str, Any]] = [
    *ROWS.values(),
    {"messages": [*MESSAGES, {"role": "user", "content": "再见"}], "tools": [WEATHER]},
    {
        "messages": [
            {"role": "system", "content": "简短。"},
            {"role": "user", "content": "北京"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "3"},
            {"role": "assistant", "content": "3 度。"},
        ],
        "tools": json.dumps([WEATHER]),
    },
    {"instruction": "一", "input": "", "output": "1", "history": [["二", "2"]], "system": "s"},
    {"id": 7, "query": "北京", "response": "3 度。", "label": True, "loss": 0.5},
    {"prompt": "北京", "chosen": "3 度。", "rejected": "不知道。"},
    {"text": "北京是中国的首都，有三千多年的历史。"},
]


def copies(random: Random) -> list[Any]:
    """One to four rows, of which at least one is mutated; sometimes of two formats."""
    kinds = random.sample(GOOD, 2 if random.random() < 0.1 else 1)
    rows = [json.loads(json.dumps(random.choice(kinds))) for _ in range(random.randint(1, 4))]
    for _ in range(random.randint(1, 2)):
        at = random.randrange(len(rows))
        rows[at] = mutate_value(rows[at], random)
    return rows


def write_json(random: Random, folder: Path) -> Path:
    rows = copies(random)
    escapes = random.random() < 0.5
    try:
        if random.random() < 0.5:
            text = json.dumps(rows, ensure_ascii=escapes, indent=random.choice((None, 1)))
            path = folder / "rows.json"
        else:
            text = "\n".join(json.dumps(row, ensure_ascii=escapes) for row in rows)
            path = folder / "rows.jsonl"
    except ValueError:  # 10**5000 cannot be written
        text, path = "[]", folder / "rows.json"
    encoding = random.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "gb18030", "utf-16"))
    content = text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
    path.write_bytes(content)
    if random.random() < 0.3:
        mutate_bytes(path, random)
    if random.random() < 0.05:
        path = path.with_name(f"{path.name}.gz")
        path.write_bytes(gzip.compress(content)[: random.choice((None, -4, 20))])
    return path


def write_table(random: Random, folder: Path) -> Path:
    separator = random.choice((",", "\t"))
    path = folder / ("rows.csv" if separator == "," else "rows.tsv")
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    row = random.choice(GOOD)
    writer.writerow(row)
    for _ in range(random.randint(0, 3)):
        values = [
            value if random.random() < 0.8 else random.choice(NASTY) for value in row.values()
        ]
        writer.writerow([_text_of(value) for value in values])
    path.write_bytes(out.getvalue().encode("utf-8", "surrogatepass"))
    if random.random() < 0.6:
        mutate_bytes(path, random)
    return path


def _text_of(value: Any) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except ValueError:
        return "9" * 5000


def write_parquet(random: Random, folder: Path) -> Path:
    rows = copies(random)
    try:
        table = pa.Table.from_pylist(rows)
    except Exception:  # mixed types, which no Parquet file can hold
        table = pa.Table.from_pylist([random.choice(GOOD)])
    if random.random() < 0.3:
        odd = random.choice((pa.date32(), pa.binary(), pa.timestamp("ns"), pa.duration("s")))
        column = pa.array([2**40 if odd == pa.timestamp("ns") else None] * len(table), odd)
        table = table.append_column(random.choice(("id", "x", "instruction")), column)
    path = folder / "rows.parquet"
    try:
        pq.write_table(table, path)
    except Exception:  # a struct without fields
        pq.write_table(pa.Table.from_pylist([{"instruction": "一", "output": "1"}]), path)
    if random.random() < 0.5:
        mutate_bytes(path, random)
    return path


def of_saved_sets(healthy: Healthy) -> Attempt:
    """A folder that `save_to_disk` has written."""
    import datasets

    saved = healthy.folder / "saved"
    datasets.disable_progress_bars()
    datasets.Dataset.from_list([ROWS["alpaca"]] * 3).save_to_disk(saved)
    names = sorted(path.name for path in saved.iterdir())

    def attempt(random: Random, folder: Path) -> None:
        copy = folder / "saved"
        shutil.copytree(saved, copy)
        file = copy / random.choice(names)
        if file.suffix == ".json" and random.random() < 0.7:
            mutate_json(file, random)
        else:
            mutate_bytes(file, random)
        use_rows(random, copy, folder, healthy)

    return attempt


def write_plain(random: Random, folder: Path) -> Path:
    path = folder / random.choice(("rows.txt", "rows.xlsx", "rows", "rows.json"))
    path.write_bytes(random.randbytes(random.choice((0, 3, 200))))
    if random.random() < 0.5:
        path.write_text("北京是中国的首都。\n\n有三千多年的历史。\n" * random.randint(0, 3))
    return path


def _of_files(write: Callable[[Random, Path], Path]) -> Callable[[Healthy], Attempt]:
    def prepare(healthy: Healthy) -> Attempt:
        def attempt(random: Random, folder: Path) -> None:
            use_rows(random, write(random, folder), folder, healthy)

        return attempt

    return prepare


def use_rows(random: Random, path: Path, folder: Path, healthy: Healthy) -> None:
    """Do with a file of rows what three commands do; raises what all of them refuse it with."""
    format = random.choice(list(FORMATS)) if random.random() < 0.1 else None
    columns = {"instruction": "query"} if random.random() < 0.05 else {}
    policy: BadRows = random.choice(("fail", "skip"))
    name = f"{path}#{random.choice((1, 2, 10**12))}" if random.random() < 0.1 else str(path)
    section = DataSection(
        train=(name,),
        bad_rows=policy,
        format=format,
        columns=columns,
        max_length=random.choice((20, 200, 4096)),
        overlong=random.choice(("drop", "truncate_prompt", "tutorial")),
        mask_history=random.random() < 0.1,
    )
    options = EncodeOptions(
        max_length=section.max_length,
        overlong=section.overlong,
        bad_rows=policy,
        format=format,
        columns=columns,
        mask_history=section.mask_history,
    )
    cache, kept = folder / "cache", folder / "kept.jsonl"
    steps: list[Callable[[], object]] = [
        lambda: _encode(encode_data, name, healthy.template, options, cache),
        lambda: _encode(encode_pairs, name, healthy.template, options, cache),
        lambda: encode_texts([name], healthy.tokenizer, TextOptions(64), cache_dir=cache),
        lambda: lint_data(section, healthy.template, pairs=None),
        lambda: write_clean_copy(section, lint_data(section, None, pairs=None), kept),
        lambda: read_questions(section, healthy.template, context_length=512),
    ]
    refusals = []
    for step in random.sample(steps, 3):
        try:
            step()
        except GlmtuneError as error:
            refusals.append(error)
            assert not list(folder.glob(".*kept*")), "a half-written copy stays"
    if len(refusals) == 3:
        raise refusals[-1]


def _encode(encode: Any, name: str, template: Any, options: EncodeOptions, cache: Path) -> None:
    """Encode twice, the second time from the cache; what became of all rows adds up."""
    first = encode([name], template, options, cache_dir=cache).report
    assert first == encode([name], template, options, cache_dir=cache).report
    examples = first.num_examples // (2 if encode is encode_pairs else 1)
    left_out = first.num_bad_rows + first.num_overlong + first.num_without_labels
    assert examples + left_out == first.num_rows, f"{first} does not add up"


def of_registers(healthy: Healthy) -> Attempt:
    """dataset_info.json next to the rows, as LLaMA-Factory has it."""
    tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human"}
    entry: dict[str, Any] = {
        "file_name": "rows.json",
        "formatting": "sharegpt",
        "tags": tags,
        "columns": {},
    }
    entry |= {"columns": {"messages": "conversations"}, "num_samples": 1, "split": "train"}

    def attempt(random: Random, folder: Path) -> None:
        (folder / "rows.json").write_text(json.dumps([ROWS["sharegpt"]], ensure_ascii=False))
        register = mutate_value({"talk": json.loads(json.dumps(entry))}, random)
        path = folder / "dataset_info.json"
        path.write_text(json.dumps(register))
        if random.random() < 0.2:
            mutate_bytes(path, random)
        section = DataSection(train=(f"{path}{random.choice(('#talk', '#talk', '#x', ''))}",))
        read_questions(section, healthy.template)

    return attempt


def of_paths(healthy: Healthy) -> Attempt:
    """Names that a user types: of nothing, of folders, of devices, with odd characters."""
    parts = [*("rows.json", "rows", "..", ".", "/", "~", "#", "#1", "#-1", "#99999999999999999999")]
    parts += ["x" * 300, "中文 名", "a\0b", "\udc80", "'", '"', "$HOME", "*", "?", "[", "/dev/null"]
    parts += ["/dev/full", "/proc/self/mem", "hf:", "ms:", "https://", ":", "\n", " ", "-", "--x"]

    def attempt(random: Random, folder: Path) -> None:
        (folder / "rows.json").write_text(json.dumps([ROWS["alpaca"]]))
        (folder / "rows").mkdir()
        joined = random.choice(("", "/", "#")).join(random.sample(parts, random.randint(1, 3)))
        name = f"{folder}/{joined}"  # inside: a hub is not asked
        try:
            section = DataSection(train=(name,))
        except ValueError:  # a recipe says the same in sentences; see the surface of recipes
            return
        read_questions(section, healthy.template)

    return attempt


def of_caches(healthy: Healthy) -> Attempt:
    """What an earlier run has encoded is damaged: it is encoded again, to the same report."""
    folder = healthy.folder / "encoded"
    folder.mkdir()
    path, cache = folder / "rows.json", folder / "cache"
    path.write_text(json.dumps([ROWS["alpaca"]] * 3, ensure_ascii=False))
    options = EncodeOptions(max_length=200)
    whole = encode_data(path, healthy.template, options, cache_dir=cache)

    def attempt(random: Random, copy: Path) -> None:
        shutil.copytree(cache, copy / "cache")
        [entry] = [each for each in (copy / "cache" / "data").iterdir() if each.is_dir()]
        file = random.choice(sorted(entry.iterdir()))
        if file.suffix == ".json" and random.random() < 0.7:
            file.write_text(json.dumps(mutate_value(json.loads(file.read_text()), random)))
        elif random.random() < 0.1:
            file.unlink()
        else:
            mutate_bytes(file, random)
        found = encode_data(path, healthy.template, options, cache_dir=copy / "cache")
        assert [found[at] for at in range(3)] == [whole[at] for at in range(3)]

    return attempt


SURFACES = (
    Surface("rows of JSON", _of_files(write_json), 24),
    Surface("rows of CSV", _of_files(write_table), 6),
    Surface("rows of Parquet", _of_files(write_parquet), 6),
    Surface("saved data sets", of_saved_sets, 5),
    Surface("texts and other files", _of_files(write_plain), 3),
    Surface("dataset_info.json", of_registers, 6),
    Surface("paths of rows", of_paths, 4),
    Surface("caches of encoded rows", of_caches, 4, refused=0),
)
