"""The data sets of LLaMA-Factory's dataset_info.json -> paths, formats, columns, roles.

Source: LLaMA-Factory 0.9.5, data/README.md.
"""

import json
import os.path
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glmtune.errors import RecipeError
from glmtune.recipe.explain import shown
from glmtune.recipe.other_tools.converted import Converted
from glmtune.recipe.other_tools.given import Given
from glmtune.recipe.plain import as_plain

REGISTER = "dataset_info.json"
MAX_BYTES = 10_000_000
ENDINGS = (".json", ".jsonl", ".csv", ".parquet", ".arrow")
ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
KNOWN_ROLES = ("human", "user", "gpt", "assistant", "observation", "function_call", "system")


class DataSets:
    """The register of data sets in a folder.

    Args:
        result: where is listed what cannot be converted.
        folder: that holds dataset_info.json and the files that it names.
    """

    def __init__(self, result: Converted, folder: Path) -> None:
        self._result, self._folder = result, folder
        self._entries = _read_register(folder / REGISTER)

    def find(self, name: str) -> tuple[str, dict[str, Any]]:
        """Return the path of a data set, and its format, columns and roles by our keys."""
        register = self._folder / REGISTER
        values = self._entries.get(name)
        if not isinstance(values, Mapping):
            self._result.not_converted.append(
                f"the path of data set {name}: it is not in {register}. Set data.train and "
                "data.eval"
            )
            return self._guess(name), {}
        entry = Given(values, self._result.not_converted, f"{name} in {register}: ")
        for key in ("subset", "folder", "script_url", "cloud_file_name"):
            if key in entry:
                value = shown(entry.take(key))
                self._result.not_converted.append(f"{name}: {key}: {value} of {register}")
        path = self._path(entry, name)
        if most := entry.number("num_samples"):
            path = f"{path}#{most:.0f}"
        return path, dict(self._layout(entry))

    def _path(self, entry: Given, name: str) -> str:
        file, hub, modelscope = (
            entry.text(key) for key in ("file_name", "hf_hub_url", "ms_hub_url")
        )
        if hub:
            return hub
        if modelscope:
            return f"modelscope://{modelscope}"
        return str(self._folder / file) if file else self._guess(name)

    def _guess(self, name: str) -> str:
        """Return the file of this name in the folder; .json if there is none."""
        candidates = [self._folder / f"{name}{ending}" for ending in ENDINGS]
        found = [path for path in candidates if os.path.exists(path)]
        return str(found[0] if found else candidates[0])

    def _layout(self, entry: Given) -> Iterator[tuple[str, Any]]:
        """Yield format, columns and roles by our keys."""
        columns = _texts(entry.section("columns"))
        tags = {"role_tag": "from", "content_tag": "value"} | _texts(entry.section("tags"))
        if split := entry.text("split"):
            yield "split", split
        if entry.text("formatting", "alpaca") == "alpaca":
            form = "alpaca"
            names = {"prompt": "instruction", "query": "input", "response": "output"}
        else:
            pair = (tags["role_tag"], tags["content_tag"])
            by_role = pair == ("role", "content")
            form = "openai" if by_role else "sharegpt"
            names = {"messages": "messages" if by_role else "conversations"}
            if not by_role and pair != ("from", "value"):
                self._result.not_converted.append(
                    f"tags: {shown(tags)}. Expected from and value, or role and content"
                )
            roles = {tags[tag]: ours for tag, ours in ROLE_TAGS.items() if tag in tags}
            if roles := {their: ours for their, ours in roles.items() if their not in KNOWN_ROLES}:
                yield "roles", roles
        for media in ("images", "videos", "audios"):
            if column := columns.pop(media, None):
                self._result.not_converted.append(f"columns.{media}: {column} is not read here")
        named = {names.get(key, key): column for key, column in columns.items()}
        if named := {ours: column for ours, column in named.items() if ours != column}:
            yield "format", form
            yield "columns", named


def convert_held_out(result: Converted, given: Given, key: str) -> None:
    """Convert how many rows are held out: a share below 1, or a number of rows."""
    held_out = given.number(key)
    if held_out is None or held_out <= 0 or "eval" in result.sections["data"]:
        return
    result.sections["data"]["eval_fraction"] = held_out


def _texts(given: Given | None) -> dict[str, str]:
    """Return the texts in a mapping; other values are listed."""
    if given is None:
        return {}
    found = {key: given.text(key) for key in given.names_left()}
    return {key: text for key, text in found.items() if text is not None}


def _read_register(path: Path) -> Mapping[str, Any]:
    """Read dataset_info.json; empty if there is none.

    Raises:
        RecipeError: it is no JSON object, or out of all bounds.
    """
    try:
        if not os.path.isfile(path):
            return {}
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: more than {MAX_BYTES:,} bytes. Keep the data sets in use.")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: cannot be read as JSON: {error}. Fix the file.") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: is no JSON object of data sets by their names. Fix the file.")
    plain: Mapping[str, Any] = as_plain(content, str(path))
    return plain
