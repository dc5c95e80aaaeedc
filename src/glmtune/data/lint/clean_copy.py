"""Write a copy of a data set without the rows that teach nothing."""

import json
import os
from contextlib import suppress
from pathlib import Path

from glmtune.data.dataset import rows_in_place
from glmtune.data.lint.findings import CHECKS
from glmtune.data.lint.report import LintReport
from glmtune.data.rows import ESCAPED, Row
from glmtune.data.sources import find_sources
from glmtune.errors import DataError, OutputError
from glmtune.files import explain_write_error, sync
from glmtune.recipe.sections import DataSection
from glmtune.recipe.sources import SourceSection


def write_clean_copy(data: DataSection, report: LintReport, path: Path) -> tuple[int, int]:
    """Write the rows of data.train to a new JSON Lines file, without those not worth keeping.

    Rows that cannot be used are left out, and those found by a check with `is_dropped`:
    duplicates, empty answers, rows with nothing learned. The others are not changed.

    Args:
        data: the section that was checked.
        report: of these rows.
        path: a file that does not exist yet.

    Returns:
        How many rows were written, and how many left out.

    Raises:
        OutputError: the file exists, or cannot be written.
        DataError: the files have different formats, which one file cannot have; or a row has a
            value that JSON cannot represent.
    """
    check_copy(path)
    formats = {name for file, name in report.formats.items() if file not in report.other_files}
    if len(formats) > 1:
        raise DataError(
            f"the files are of formats {', '.join(sorted(formats))}, and one file has one format. "
            "Clean them one by one."
        )
    own = [each for each in data.train if isinstance(each, SourceSection)]
    if len(data.train) > 1 and any(each.columns or each.roles for each in own):
        raise DataError(
            "the sources have columns or roles of their own, which one file cannot have. Clean "
            "them one by one."
        )
    left_out = {
        finding.row
        for finding in report.findings
        if not finding.is_held_out and (CHECKS[finding.check].is_dropped or not finding.is_usable)
    }
    partial = path.with_name(f".{path.name}.partial")
    num_written = num_rows = 0
    try:
        with partial.open("w", encoding="utf-8", errors=ESCAPED) as file:
            sources = find_sources(data.train, split=data.split)
            for num_rows, row in enumerate(rows_in_place(sources), start=1):
                if num_rows not in left_out and isinstance(row, Row):
                    file.write(_as_json(row) + "\n")
                    num_written += 1
            file.flush()
            sync(file, path)
        check_copy(path)  # again: reading took a while
        partial.rename(path)
    except OSError as error:
        again, elsewhere = "run the command again", "path for the copy"
        message = explain_write_error(path, error, again=again, elsewhere=elsewhere)
        raise OutputError(message) from error
    finally:
        with suppress(OSError):  # none was left, or the disk is read-only
            partial.unlink()
    return num_written, num_rows - num_written


def check_copy(path: Path) -> None:
    """Refuse a path that exists already, or that cannot be written.

    Raises:
        OutputError: the path exists, its folder does not, or its name does not end with .jsonl.
    """
    if os.path.lexists(path):
        raise OutputError(f"{path}: exists already, and is not overwritten. Choose another name.")
    if not os.path.isdir(path.parent):  # False for a name that is too long, too
        raise OutputError(f"{path}: there is no folder {str(path.parent)!r}. Create it first.")
    if path.suffix != ".jsonl":
        raise OutputError(f"{path}: expected a name that ends with .jsonl, for one row per line.")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(
            f"{path}: the folder {path.parent} cannot be written: permission denied, or the disk "
            "is read-only. Choose another."
        )


def _as_json(row: Row) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{row.file}:{row.line}: cannot be written as JSON: {error}. Convert that column."
        ) from error
