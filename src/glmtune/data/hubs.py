"""Data sets of the package `datasets`: folders of `save_to_disk`, and those of hubs."""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from glmtune.data.rows import OnBad, Row
from glmtune.data.splits import choose_split
from glmtune.data.table_rows import BATCH_ROWS, arrow_rows
from glmtune.errors import DataError
from glmtune.files import read_json_object

MODELSCOPE = "modelscope://"


class FoundRows(NamedTuple):
    """The rows of a data set: every file they come from, how to read them, and what is left out."""

    files: tuple[Path, ...]
    read: Callable[[OnBad], Iterator[Row]]
    left_out: str


def _require_datasets(problem: str) -> None:
    if find_spec("datasets") is None:
        raise DataError(
            f"{problem} needs the package datasets, which is not installed. Run "
            "`pip install 'glmtune[datasets]'`, or give a JSON, CSV or Parquet file."
        )


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, of a Dataset or of a DatasetDict."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def find_saved(name: str, folder: Path, split: str | None) -> FoundRows:
    """Open a folder for which `is_saved` holds.

    Raises:
        DataError: it cannot be loaded, or lacks the split.
    """
    _require_datasets(f"{name}: is a `datasets.save_to_disk` folder, and reading it")
    import datasets

    left_out = ""
    if (folder / "dataset_dict.json").exists():
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir())
        chosen = choose_split(name, splits, split)
        left_out = _left_out(name, splits, chosen)
        folder /= chosen
    elif split is not None:
        raise DataError(f"{name}: split {split!r} was asked for, but this data set has no splits.")
    if read_json_object(folder / "state.json", DataError).get("_data_files") == []:
        raise DataError(f"{name}: this data set has no rows. Leave it out, or save it again.")
    try:
        data = datasets.load_from_disk(str(folder))
    # The library reads three files without checking them: anything may come out of it.
    except Exception as error:
        raise DataError(
            f"{name}: looks like a `datasets.save_to_disk` folder, but cannot be loaded: "
            f"{_explained(error)}. Save it again."
        ) from error
    files = tuple(path for path in sorted(folder.rglob("*")) if path.is_file())
    return FoundRows(files, _reader(data, name), left_out)


def find_on_hub(
    name: str, split: str | None, config: str | None, *, streaming: bool = False
) -> FoundRows:
    """Download a data set, or find it in the cache; or open it to be read from the hub.

    Raises:
        DataError: there is no such data set, split or configuration.
    """
    _require_datasets(
        f"{name}: there is no such file or folder (working folder: {Path.cwd()}), and reading it "
        "from a hub"
    )
    import datasets

    owner_and_name = name.removeprefix(MODELSCOPE)
    wanted = os.environ.get("USE_MODELSCOPE_HUB", "").lower() in ("1", "true", "yes", "y")
    on_modelscope = wanted or name != owner_and_name
    hub = "ModelScope" if on_modelscope else "the Hugging Face Hub"
    if streaming and on_modelscope:
        raise DataError(
            f"{name}: data.streaming reads the Hugging Face Hub and files, and not {hub}. Download "
            "the data set and give its folder, or leave data.streaming out."
        )
    try:
        place = _download_from_modelscope(owner_and_name) if on_modelscope else owner_and_name
        splits = datasets.load_dataset(place, config, streaming=streaming)
    except DataError:
        raise
    except Exception as error:  # each hub and each version of its library raises its own
        if "Config name is missing" in str(error):
            raise DataError(
                f"{name}: has several configurations. {_explained(error)} Choose one: "
                f"data.train: [{{path: {name}, config: NAME}}]."
            ) from error
        raise DataError(
            f"{name}: there is no such file or folder (working folder: {Path.cwd()}), and {hub} "
            f"returned no data set of that name: {_explained(error)}. Check the "
            "name and the network, or download the data and give its path."
        ) from error
    chosen = choose_split(name, list(splits), split)
    data = splits[chosen]
    files = () if streaming else tuple(Path(file["filename"]) for file in data.cache_files)
    return FoundRows(files, _reader(data, name), _left_out(name, list(splits), chosen))


def _explained(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _left_out(name: str, splits: list[str], chosen: str) -> str:
    others = [split for split in splits if split != chosen]
    read = f"{name}: split {chosen} is read"
    return f"{read}; left out: {', '.join(others)}" if others else ""


def _download_from_modelscope(dataset_id: str) -> str:
    try:
        from modelscope.hub.snapshot_download import dataset_snapshot_download
    except ImportError as error:
        raise DataError(
            f"{MODELSCOPE}{dataset_id}: ModelScope's library is not installed. "
            "Run `pip install 'glmtune[modelscope]'`."
        ) from error
    return str(dataset_snapshot_download(dataset_id))


def _reader(data: Any, name: str) -> Callable[[OnBad], Iterator[Row]]:
    """Return how to read the rows of a `datasets.Dataset`."""

    def read(on_bad: OnBad) -> Iterator[Row]:
        return arrow_rows(
            lambda: data.with_format("arrow").iter(batch_size=BATCH_ROWS),
            name,
            f"{name}: cannot be read",
            on_bad,
        )

    return read
