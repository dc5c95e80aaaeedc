"""LLaMA-Factory's register of data sets as a source: `data/dataset_info.json#alpaca_zh_demo`.

    "alpaca_zh_demo": {"file_name": "alpaca_zh_demo.json",
                       "columns": {"prompt": "instruction", "response": "output"}}

An entry says where the rows are and what their columns and roles mean, so it becomes a
`SourceSection`. Keys that would change what is learned and that we have nothing for are refused.
`num_samples` takes the first rows; LLaMA-Factory takes as many at random.

Source: https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.errors import DataError, json_kind
from glmtune.files import read_json_object
from glmtune.recipe.sources import SourceSection

REGISTER = "dataset_info.json"
_NAMED = re.compile(rf"(.*{re.escape(REGISTER)})(?:#(.+?))?(#[1-9][0-9]*)?", re.DOTALL)

# Their name of a column -> ours, where they differ.
_ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
_ROLE_TAGS = {
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "observation_tag": ("observation", "observation"),
    "function_tag": ("function_call", "function_call"),
    "system_tag": ("system", "system"),
}
_KEYS = {
    "file_name", "hf_hub_url", "ms_hub_url", "formatting", "ranking", "subset", "split", "folder",
    "num_samples", "columns", "tags",
}  # fmt: skip
_REFUSED = {
    "script_url": "its rows come out of a program, which is not run. Write them to a file",
    "om_hub_url": "that hub is not known. Download the rows, and give file_name",
    "cloud_file_name": "cloud storage is not read. Download the file, and give file_name",
}
_REFUSED_COLUMNS = ("images", "videos", "audios")


def is_register(name: str) -> bool:
    """Whether a source is an entry of such a register, or the register itself."""
    match = _NAMED.fullmatch(name)
    return match is not None and Path(match[1]).name == REGISTER


def registered(source: SourceSection) -> SourceSection:
    """Replace an entry of a register by what it describes.

    Args:
        source: with a path for which `is_register` holds; what it gives itself comes first.

    Raises:
        DataError: there is no such entry, or it cannot be used.
    """
    match = _NAMED.fullmatch(source.path)
    assert match is not None
    register, name, cap = match[1], match[2], match[3]
    path = Path(register).expanduser()
    if not path.is_file():
        raise DataError(f"{register}: no such file. Check the path of LLaMA-Factory's register.")
    entries = read_json_object(path, DataError)
    if not name or name not in entries:
        near = difflib.get_close_matches(name or "", entries, n=1)
        hint = f" Did you mean {register}#{near[0]}?" if near else ""
        raise DataError(
            f"{source.path}: {register} describes data sets. Name one of them, as in "
            f"{register}#NAME; it has {', '.join(entries) or 'none'}.{hint}"
        )
    entry = entries[name]
    where = f"{register}#{name}"
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, got {json_kind(entry)}.")
    _refuse_unknown(where, entry)
    samples = _typed(where, entry, "num_samples", int)
    place = _place(where, entry, path.parent)
    options = {**_layout(where, entry), **_given(source)}
    options["path"] = place + (cap or (f"#{samples}" if samples else ""))
    if entry.get("subset") is not None:
        options.setdefault("config", _typed(where, entry, "subset", str))
    if "file_name" not in entry and entry.get("split") is not None:
        options.setdefault("split", _typed(where, entry, "split", str))
    return SourceSection(**options)


def _given(source: SourceSection) -> dict[str, Any]:
    """Return the keys that a source gives itself."""
    return {key: value for key, value in source.model_dump().items() if value is not None}


def _refuse_unknown(where: str, entry: Mapping[str, Any]) -> None:
    for key, reason in _REFUSED.items():
        if entry.get(key):
            raise DataError(f"{where}: {key}: {reason}.")
    if unknown := [key for key in entry if key not in _KEYS and key not in _REFUSED]:
        raise DataError(f"{where}: {unknown[0]!r} is not known; known are {', '.join(_KEYS)}.")
    columns = _typed(where, entry, "columns", dict) or {}
    for column in _REFUSED_COLUMNS:
        if columns.get(column):
            raise DataError(f"{where}: columns.{column}: ChatGLM3 reads text alone.")


def _typed(where: str, entry: Mapping[str, Any], key: str, kind: type) -> Any:
    value = entry.get(key)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise DataError(f"{where}: {key} is {value!r}, expected {json_kind(kind())}. Correct it.")
    return value


def _place(where: str, entry: Mapping[str, Any], folder: Path) -> str:
    """Return the path or hub id of the rows."""
    if file := _typed(where, entry, "file_name", str):
        return str(folder / file)
    on_hub = _typed(where, entry, "hf_hub_url", str)
    on_modelscope = _typed(where, entry, "ms_hub_url", str)
    if entry.get("folder"):
        raise DataError(
            f"{where}: folder: a folder of a hub's data set is not read alone. Download the data "
            "set, and give that folder as file_name."
        )
    if on_hub or on_modelscope:
        return on_hub or f"modelscope://{on_modelscope}"
    raise DataError(f"{where}: has no file_name, and names no data set of a hub. Add one.")


def _layout(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return format, columns and roles of an entry, where they are not what is detected."""
    style = entry.get("formatting", "alpaca")
    theirs = _typed(where, entry, "columns", dict) or {}
    roles: dict[str, str] = {}
    if style == "alpaca":
        names, form = _ALPACA_COLUMNS, None if entry.get("ranking") else "alpaca"
    elif style in ("sharegpt", "openai"):
        names, roles, form = _dialogue(where, entry, style)
        theirs = {"messages": "conversations", **theirs}  # their default
    else:
        raise DataError(f"{where}: formatting is {style!r}, expected alpaca, sharegpt or openai.")
    columns: dict[str, str] = {}
    for key, column in theirs.items():
        ours = names.get(key, key)
        if column is not None and not isinstance(column, str):
            raise DataError(f"{where}: columns.{key} is {column!r}, expected a name.")
        if column and column != ours:
            columns[ours] = column
    if entry.get("ranking") or columns.keys() & {"kto_tag", "chosen", "rejected"}:
        form = None  # pairs and marked answers have formats of their own, which are detected
    found = {"format": form, "columns": columns or None, "roles": roles or None}
    return {key: value for key, value in found.items() if value is not None}


def _dialogue(
    where: str, entry: Mapping[str, Any], style: str
) -> tuple[dict[str, str], dict[str, str], str]:
    """Return names of columns, roles and format of an entry with messages."""
    tags = _typed(where, entry, "tags", dict) or {}
    default = ("role", "content") if style == "openai" else ("from", "value")
    keys = (tags.get("role_tag", default[0]), tags.get("content_tag", default[1]))
    if keys not in (("from", "value"), ("role", "content")):
        raise DataError(
            f"{where}: tags: messages have {keys[0]!r} and {keys[1]!r}, expected from and value, "
            "or role and content. Rename them in the file."
        )
    roles: dict[str, str] = {}
    for tag, (known, ours) in _ROLE_TAGS.items():
        theirs = tags.get(tag, known)
        if not isinstance(theirs, str):
            raise DataError(f"{where}: tags.{tag} is {theirs!r}, expected a name.")
        if theirs not in (known, ours):
            roles[theirs] = ours
    form = "sharegpt" if keys == ("from", "value") else "openai"
    field = "conversations" if form == "sharegpt" else "messages"
    return {"messages": field}, roles, form
