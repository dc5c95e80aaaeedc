"""The cache of encoded data: files -> examples on disk, encoded at most once.

The key of a cache is a hash of everything that decides the result: the contents of the files,
the template's fingerprint, the options, and the code of this package that reads rows. A changed
input therefore finds no cache, rather than an outdated one. A cache is written under another
name and renamed when it is complete; later damage is detected by its checksums, and the cache
is written again.
"""

import dataclasses
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol, TypeVar

from glmtune.data.rows import BadRow
from glmtune.data.sources import AnySource, Source, find_sources
from glmtune.data.store import (
    ABOUT,
    BAD_ROWS,
    EXAMPLES,
    EncodedData,
    EncodeReport,
)
from glmtune.data.writer import ExampleWriter
from glmtune.errors import DataError, OutputError
from glmtune.files import explain_write_error, sha256_of_file, sha256_of_text
from glmtune.gc_pause import paused
from glmtune.messages import translate
from glmtune.recipe.choices import BadRows

logger = logging.getLogger(__name__)

NEWER = {"newer": True}  # metadata of an option that keys of earlier versions do not have
Progress = Callable[[int], None]  # called with the number of rows read so far


class StoreOptions(Protocol):
    """What `EncodeOptions` and `TextOptions` have in common."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def max_length(self) -> int:
        """The most ids an example may have."""

    @property
    def bad_rows(self) -> BadRows:
        """Whether bad rows are skipped."""

    @property
    def split(self) -> str | None:
        """Of sources that have splits."""


Data = TypeVar("Data", bound=EncodedData)
# (sources, where to write, progress) -> nothing; writes the examples of all rows.
WriteExamples = Callable[[Sequence[Source], ExampleWriter, Progress], None]


def encode_sources(
    sources: AnySource | Sequence[AnySource],
    write_examples: WriteExamples,
    options: StoreOptions,
    opened_as: type[Data],
    *,
    fingerprint: str,
    code: Sequence[ModuleType],
    earlier_code: Sequence[str],
    cache_dir: str | Path | None = None,
    quarantine: str | Path | None = None,
    progress: Progress | None = None,
) -> Data:
    """Encode sources, or open what an earlier run has encoded.

    Args:
        sources, cache_dir, quarantine, progress: as for `encode_data`.
        write_examples: reads the sources and writes their examples.
        options: part of the key, like the three below.
        opened_as: the class of the result.
        fingerprint: of the template or tokenizer.
        code: the modules that decide what becomes of a row.
        earlier_code: for `EncodedData.earlier_key`.

    Raises:
        DataError, OutputError: as `encode_data`.
    """
    found = find_sources(sources, split=options.split)
    for source in found:
        if source.left_out:
            logger.info("%s", source.left_out)
    before = _stamps(found)
    decides = [_contents(found), fingerprint, _decisive(options)]
    key = _hash_json([*decides, [sha256_of_file(Path(str(module.__file__))) for module in code]])
    folder = cache_home(cache_dir) / "data" / key
    data = _open_cache(folder, opened_as)
    if data is None:
        with _show_progress(progress) as shown, paused():
            writer = ExampleWriter(options.max_length, options.bad_rows)
            earlier_key = _hash_json([*decides, list(earlier_code)])
            _build(folder, found, write_examples, writer, earlier_key, shown)
        if _stamps(found) != before:
            shutil.rmtree(folder, ignore_errors=True)
            names = ", ".join(source.name for source in found)
            raise DataError(f"{names}: a file changed while it was read. Start again.")
        data = opened_as(folder)
    if data.report.num_bad_rows:
        listed = folder / BAD_ROWS
        if quarantine is not None:
            listed = _copy(listed, Path(quarantine))
        data.report = dataclasses.replace(data.report, quarantine=str(listed))
    return data


def cache_home(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of all caches: the one given, $GLMTUNE_CACHE, or that of the user."""
    if cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache_dir = os.environ.get("GLMTUNE_CACHE") or Path(home) / "glmtune"
    return Path(cache_dir).expanduser()


def _decisive(options: StoreOptions) -> dict[str, Any]:
    """Return the options; newer ones only where they are used, so that earlier keys stay."""
    values = dataclasses.asdict(options)
    for each in dataclasses.fields(options):
        if each.metadata == NEWER and values[each.name] == each.default:
            del values[each.name]
    return values


def _hash_json(value: Any) -> str:
    return sha256_of_text(json.dumps(value, sort_keys=True))


def _contents(sources: Sequence[Source]) -> list[Any]:
    """Identify the files of sources. Names count, because examples know their origin."""
    try:
        return [
            [
                source.name,
                source.max_rows,
                [[str(path), sha256_of_file(path)] for path in source.files],
                *_own_options(source),
            ]
            for source in sources
        ]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}.") from error


def _own_options(source: Source) -> list[dict[str, Any]]:
    """List what a source says of its rows; nothing for a plain path, whose key stays as it was."""
    if source.own is None:
        return []
    own = source.own.model_dump(mode="json", exclude={"path", "weight"}, exclude_none=True)
    return [own] if own else []


def _stamps(sources: Sequence[Source]) -> list[tuple[int, int]]:
    """Return size and time of every file, which change when it is written to."""
    try:
        stats = [path.stat() for source in sources for path in source.files]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}.") from error
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def _open_cache(folder: Path, opened_as: type[Data]) -> Data | None:
    """Open what an earlier run has left, if it exists and is undamaged."""
    if not os.path.exists(folder):  # False in a folder that is closed; writing explains that
        return None
    try:
        return opened_as(folder)
    # What it holds was checked by nobody, and Arrow and JSON raise many types for it.
    except Exception as error:
        logger.warning("the cache %s is damaged (%s); encoding again", folder, error)
        return None


def _build(
    folder: Path,
    sources: Sequence[Source],
    write_examples: WriteExamples,
    writer: ExampleWriter,
    earlier_key: str,
    progress: Progress,
) -> None:
    partial = folder.with_name(f".{folder.name[:16]}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with _explained_write_errors(folder):
            partial.mkdir(parents=True)
            with writer.open(partial):
                write_examples(sources, writer, progress)
            report = writer.tally.report()
            _check_examples(report, writer.tally.first_bad, sources)
            about = {
                "report": dataclasses.asdict(report),
                "files": list(report.formats),
                "earlier_key": earlier_key,
                "source_counts": [writer.source_counts[index] for index in range(len(sources))],
                "sha256": {name: sha256_of_file(partial / name) for name in (EXAMPLES, BAD_ROWS)},
            }
            (partial / ABOUT).write_text(json.dumps(about, indent=2), encoding="utf-8")
            _commit(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_examples(
    report: EncodeReport, first_bad: BadRow | None, sources: Sequence[Source]
) -> None:
    """Refuse data with nothing to learn.

    Raises:
        DataError: counts what became of the rows.
    """
    names = ", ".join(source.name for source in sources) or "data.train"
    if report.num_examples:
        return
    if not report.num_rows:
        raise DataError(f"{names}: there are no rows in it.")
    reasons = [
        (report.num_bad_rows, f"cannot be used, the first is {str(first_bad).rstrip('.')}"),
        (
            report.num_overlong,
            f"are longer than data.max_length={report.max_length}: raise it, up to "
            f"{report.longest} for all, or set data.overlong: truncate_prompt",
        ),
        (report.num_without_labels, "have nothing that is learned"),
    ]
    why = "; ".join(f"{count} {what}" for count, what in reasons if count)
    raise DataError(f"{names}: of {report.num_rows} rows none is left to learn from: {why}.")


def _commit(partial: Path, folder: Path) -> None:
    """Rename a complete cache to its final name, unless another process was faster."""
    if folder.exists() and _open_cache(folder, EncodedData) is None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise


@contextmanager
def _explained_write_errors(path: Path) -> Iterator[None]:
    """Convert an OSError into an error that the user can act on.

    Raises:
        OutputError: names the path and the reason.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written: {error.strerror or error}. Make room, or set "
            "GLMTUNE_CACHE to a folder that can be written and has room."
        ) from error


def _copy(source: Path, target: Path) -> Path:
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial)
        partial.replace(target)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise OutputError(explain_write_error(target, error)) from error
    return target


@contextmanager
def _show_progress(progress: Progress | None) -> Iterator[Progress]:
    """Show the number of rows on a terminal, unless the caller shows it."""
    if progress is not None:
        yield progress
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(translate("Encoding rows")) as status:
            yield lambda num_rows: status.update(translate(f"Encoding rows: {num_rows:,} done"))
    else:
        yield lambda num_rows: None
