"""The data files below a folder, and errors for paths that are none."""

import difflib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from glmtune.data.text_files import ENDINGS, ending_of
from glmtune.errors import DataError

# Describe data sets, hold no rows; the hub's loader ignores them too.
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "config.json"}


def data_files(name: str, folder: Path) -> list[Path]:
    """List the data files below a folder, sorted by path.

    Args:
        name: of the folder, as the user gave it.
        folder: where it is. Links to other folders are followed, each folder once.

    Raises:
        DataError: there are none, or a folder or file of these cannot be read.
    """
    found = sorted(_visible_files(name, folder))
    files = [path for path in found if ending_of(path)[0] and path.name not in NOT_DATA]
    for path in files:
        refuse_special(path, str(Path(name) / path.relative_to(folder)))
    if not files:
        held = ", ".join(path.name for path in found[:5]) or "nothing"
        raise DataError(
            f"{name}: this folder has no data file; it holds {held}"
            f"{', ...' if len(found) > 5 else ''}. Known endings: {', '.join(ENDINGS)}, "
            "also with .gz or .zst."
        )
    return files


def _visible_files(name: str, folder: Path) -> Iterator[Path]:
    """Yield every file below a folder that is not hidden, in any order.

    Raises:
        DataError: a folder cannot be read.
    """

    def refuse(error: OSError) -> NoReturn:
        raise DataError(
            f"{error.filename}: this folder cannot be read: {error.strerror}. Its files would be "
            f"missing from {name}; allow reading it, or name the files one by one."
        ) from error

    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link back, or two links to one folder
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        yield from (Path(place, each) for each in names if not each.startswith("."))


def refuse_special(path: Path, name: str) -> None:
    """Refuse what is not a file that can be read, or that can be read only once.

    Args:
        path: exists, or is a link.
        name: as the user gave it.

    Raises:
        DataError: names what it is.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            raise _broken_link(name, path) from error
        raise DataError(f"{name}: cannot be read: {error.strerror}. Check the path.") from error
    kinds = (
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    for is_kind, what in kinds:
        if is_kind(mode):
            raise DataError(
                f"{name}: is {what}, expected a file: rows are read more than once. Write them to "
                "a file first."
            )
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise DataError(f"{name}: cannot be read: permission denied. Allow reading it.")


def _broken_link(name: str, path: Path) -> DataError:
    return DataError(
        f"{name}: a link to {str(path.readlink())!r}, which does not exist. Correct the link, or "
        "remove it."
    )


def missing(name: str, path: Path, *, may_be_id: bool) -> DataError:
    """Return the error for a missing file, with the name that may have been meant.

    Args:
        name: as the user gave it.
        path: where it would be.
        may_be_id: whether the name could be that of a data set on a hub.
    """
    if path.is_symlink():
        return _broken_link(name, path)
    if not path.parent.is_dir():
        return DataError(
            f"{name}: no such file, and no folder {str(path.parent)!r} either. "
            f"Paths are taken from the working folder, {Path.cwd()}."
        )
    near = difflib.get_close_matches(path.name, _names_in(path.parent), n=1)
    hint = f"Did you mean {str(path.with_name(near[0]))!r}?" if near else "Check the path."
    if may_be_id:
        hint += f" (If you mean a data set on a hub: the folder {path.parent} here hides it.)"
    return DataError(f"{name}: no such file. {hint} (Working folder: {Path.cwd()})")


def _names_in(folder: Path) -> Sequence[str]:
    try:
        return os.listdir(folder)
    except OSError:  # the names are only for a hint
        return ()
