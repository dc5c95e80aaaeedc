"""Which files of a folder belong to which split, by the rules of the Hugging Face Hub.

    README.md                configs: [{config_name: zh, data_files: [{split: train, path: zh/*}]}]
    data/train-00000-of-00002.parquet      shards in data/: any word is a split
    train/a.json  test/a.json              a folder with a word of `SPLIT_KEYWORDS` in its name
    train.json  rows_val-1.json            a file with such a word in its name
    a.json  b.json                         none of these: all files are `train`

The first rule that finds a file decides. A word stands alone in a name: between its ends, or
characters of `-._ 0-9`. Only data files count, hidden ones do not. A local folder never needs the
package `datasets`; where that is installed, tests compare the two.

Source: https://huggingface.co/docs/datasets/repository_structure, and data_files.py of datasets.
"""

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.errors import DataError, some

SPLIT_KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_WORDS = frozenset(word for words in SPLIT_KEYWORDS.values() for word in words)
MAX_HEADER_CHARS = 1 << 20  # of README.md

_SHARD = re.compile(r"data/([^/]+)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*")
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")
_GLOB_TOKEN = re.compile(r"\*\*?|\[!?\]?[^\]/]+\]|.", re.DOTALL)
_README = "README.md"


@dataclass(frozen=True, slots=True)
class FolderSplits:
    """The splits of a folder.

    Attributes:
        splits: name -> its files, in order; at least one file each.
        others: data files in no split.
    """

    splits: Mapping[str, tuple[Path, ...]]
    others: tuple[Path, ...]


def find_splits(
    name: str, folder: Path, files: Sequence[Path], config: str | None = None
) -> FolderSplits:
    """Assign the data files of a folder to splits.

    Args:
        name: of the folder, as the user gave it.
        folder: where it is.
        files: all of its data files, in order.
        config: which configuration of README.md; its default one if not given.

    Raises:
        DataError: README.md cannot be used, or has several configurations and no default.
    """
    chosen = _choose_config(name, _read_configs(name, folder), config) or {}
    start = folder / posixpath.normpath(str(chosen.get("data_dir") or "."))
    inside = [file for file in files if file.is_relative_to(start)]
    paths = {file.relative_to(start).as_posix(): file for file in inside}
    if chosen.get("data_files") is None:
        found = _splits_by_name(name, list(paths))
    else:
        patterns = _patterns(name, chosen["data_files"])
        found = {
            split: [path for path in paths if any(glob.fullmatch(path) for glob in globs)]
            for split, globs in patterns.items()
        }
    splits = {
        split: tuple(paths[path] for path in matched) for split, matched in found.items() if matched
    }
    used = {file for of_split in splits.values() for file in of_split}
    if not splits:
        raise DataError(
            f"{name}/{_README}: its configuration matches no data file of the folder, which has "
            f"{some([file.name for file in files])}. Correct data_files there, or name a file."
        )
    return FolderSplits(splits, tuple(file for file in files if file not in used))


def choose_split(
    name: str, splits: Sequence[str], split: str | None = None, others: Sequence[Path] = ()
) -> str:
    """Choose the split to read: the one asked for, `train`, or the only one.

    Args:
        name: of the source, as the user gave it.
        splits: the names that there are.
        split: the one asked for.
        others: files in no split; with some of these, the only split is no obvious choice.

    Raises:
        DataError: there is no such split.
    """
    is_only = len(splits) == 1 and not others
    chosen = split or (splits[0] if is_only else "train")
    if chosen not in splits:
        left = f" (and files in no split: {some([file.name for file in others])})" if others else ""
        raise DataError(
            f"{name}: there is no split {chosen!r}; it has {', '.join(splits) or 'none'}{left}. "
            f"{_remedy(chosen, splits)}"
        )
    return chosen


def _remedy(wanted: str, splits: Sequence[str]) -> str:
    """Say which split may be meant, as by the slices of the package `datasets`."""
    words = next((words for words in SPLIT_KEYWORDS.values() if wanted in words), ())
    start, slice, _ = wanted.partition("[")
    if slice and start in splits:
        return f"Slices are not read: choose data.split={start}, and path#500 for the first 500."
    if near := [split for split in splits if split in words]:
        return f"Choose it with data.split={near[0]}."
    return "Choose one with data.split, or name the files."


def _splits_by_name(name: str, paths: Sequence[str]) -> dict[str, list[str]]:
    """Find the splits in the names of files and folders."""
    shards: dict[str, list[str]] = {}
    for path in paths:
        if shard := _SHARD.fullmatch(path):
            shards.setdefault(shard[1], []).append(path)
    if wrong := [split for split in shards if not _SPLIT_NAME.fullmatch(split)]:
        raise DataError(
            f"{name}: the shards of split {wrong[0]!r} have a name that no split can have, "
            "expected letters, digits and underscores. Rename the files, or name them one by one."
        )
    if shards:
        known = [split for split in SPLIT_KEYWORDS if split in shards]
        return {split: shards[split] for split in (*known, *sorted(set(shards) - set(known)))}
    for is_of in (_is_in_folder_of, _is_named):
        found = {
            split: [path for path in paths if any(is_of(path, word) for word in words)]
            for split, words in SPLIT_KEYWORDS.items()
        }
        if any(found.values()):
            return {split: matched for split, matched in found.items() if matched}
    return {"train": list(paths)}


def _is_named(path: str, word: str) -> bool:
    return re.fullmatch(rf"(.*[-._ 0-9])?{word}[-._ 0-9].*", posixpath.basename(path)) is not None


def _is_in_folder_of(path: str, word: str) -> bool:
    folder = re.compile(rf"(.*[-._ 0-9])?{word}([-._ 0-9].*)?")
    return any(folder.fullmatch(part) for part in path.split("/")[:-1])


# --- README.md ----------------------------------------------------------------------------


def _read_configs(name: str, folder: Path) -> list[dict[str, Any]]:
    """Read the `configs` in the YAML header of README.md; none if there is no such header."""
    import yaml

    path = folder / _README
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(MAX_HEADER_CHARS).removeprefix("\ufeff")
    lines = text.splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return []
    header = "\n".join(lines[1 : lines.index("---", 1)])
    if "configs" not in header:
        return []
    where = f"{name}/{_README}"
    try:
        # Everything is read as text, list or mapping: no other type is needed, and none is made.
        tree = yaml.load(header, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 2}" if mark else ""
        problem = getattr(error, "problem", None) or "nested too deeply"
        raise DataError(f"{where}{line}: its header is not YAML: {problem}. Fix it.") from None
    configs = tree.get("configs", []) if isinstance(tree, dict) else []
    if not isinstance(configs, list) or not all(
        isinstance(each, dict) and isinstance(each.get("config_name"), str) for each in configs
    ):
        raise DataError(
            f"{where}: configs is not what was expected: a list of entries with config_name and "
            "data_files. Correct it, or name a file of the folder."
        )
    return configs


def _choose_config(
    name: str, configs: Sequence[dict[str, Any]], wanted: str | None
) -> dict[str, Any] | None:
    """Choose a configuration: by name, the only one, or the default one."""
    names = [config["config_name"] for config in configs]
    if wanted is not None:
        if wanted not in names:
            raise DataError(
                f"{name}: there is no configuration {wanted!r}; its {_README} has "
                f"{', '.join(names) or 'none'}."
            )
        return configs[names.index(wanted)]
    if len(configs) < 2:
        return configs[0] if configs else None
    defaults = [
        config
        for config in configs
        if config["config_name"] == "default"
        or str(config.get("default", "")).lower() in ("true", "yes", "on")
    ]
    if len(defaults) != 1:
        raise DataError(
            f"{name}: its {_README} has several configurations, {', '.join(names)}, and "
            f"{'several are' if defaults else 'none is'} the default. Choose one: "
            f"data.train: [{{path: {name}, config: {names[0]}}}]."
        )
    return defaults[0]


def _patterns(name: str, data_files: Any) -> dict[str, list[re.Pattern[str]]]:
    """Read `data_files`: a pattern, a list of them, or a list of splits with their patterns."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    by_split: dict[str, list[str]] = {}
    for entry in entries:
        split: Any = "train"
        path: Any = entry
        if isinstance(entry, dict):
            split, path = entry.get("split"), entry.get("path")
        patterns = path if isinstance(path, list) else [path]
        if not isinstance(split, str) or not all(isinstance(each, str) for each in patterns):
            raise DataError(
                f"{name}/{_README}: data_files has {str(entry)[:80]!r}, expected a pattern, or "
                "split and path. Correct it, or name a file of the folder."
            )
        by_split.setdefault(split, []).extend(patterns)
    return {split: [_glob(name, each) for each in globs] for split, globs in by_split.items()}


def _glob(name: str, pattern: str) -> re.Pattern[str]:
    """Translate a pattern: `*` and `?` stay within a name, `**` is any number of folders."""
    plain = posixpath.normpath(pattern)
    if "://" in pattern or plain.startswith(("/", "..")):
        raise DataError(
            f"{name}/{_README}: the pattern {pattern!r} leads out of the folder. Download those "
            "files, and name them in data.train."
        )
    *folders, last = plain.split("/")
    parts = [r"(?:[^/]+/)*" if part == "**" else _glob_name(part) + "/" for part in folders]
    try:
        return re.compile("".join(parts) + (".+" if last == "**" else _glob_name(last)))
    except re.error as error:
        raise DataError(
            f"{name}/{_README}: the pattern {pattern!r} cannot be used: {error}. Correct it."
        ) from None


def _glob_name(pattern: str) -> str:
    """Translate the part of a pattern between two slashes; `fnmatch` would match slashes too."""
    chunks = [""]  # between the asterisks
    for token in _GLOB_TOKEN.findall(pattern):
        if token.startswith("*"):
            chunks.append("")
        elif token == "?":
            chunks[-1] += "[^/]"
        elif len(token) > 1:
            inside = token[1:-1].replace("\\", r"\\")
            chunks[-1] += f"[^{inside[1:]}]" if inside[0] in "!^" else f"[{inside}]"
        else:
            chunks[-1] += re.escape(token)
    if len(chunks) == 1:
        return chunks[0]
    # An asterisk stops at the first place that fits; going back would never help.
    middle = "".join(f"(?>[^/]*?{chunk})" for chunk in chunks[1:-1])
    return f"{chunks[0]}{middle}[^/]*{chunks[-1]}"
