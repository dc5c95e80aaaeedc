"""The tab Data: what is in a file of rows, what is wrong with it, and a row as tokens."""

import itertools
import json
from typing import Annotated, Any

from pydantic import Field

from glmtune.cli.board.bodies import Body
from glmtune.cli.board.commands import Gone, Slot
from glmtune.cli.board.folder import BoardError, StartFolder
from glmtune.cli.board.form import as_override

MOST_SHOWN = 2_000  # characters of a row
SHOWN_FINDINGS = 50  # of each check
PAGE_ROWS = 20


class Folder(Body):
    """A folder to list."""

    path: str = ""


class Source(Body):
    """Rows, and how they are read.

    Attributes:
        path: a file or folder below the start folder.
        model: whose tokenizer measures them; "" for none.
        max_length: in tokens.
        columns: our field -> the column of the file.
        format: of the rows; "" is detected.
    """

    path: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(max_length=4_000)] = ""
    max_length: Annotated[int, Field(gt=0, le=2**21)] | None = None
    columns: Annotated[dict[str, str], Field(max_length=50, default_factory=dict)]
    format: Annotated[str, Field(max_length=100)] = ""


class Rows(Source):
    """Rows from a number on, counted from 1."""

    first: Annotated[int, Field(ge=1, le=10**12)] = 1


class Fixed(Source):
    """A clean copy to write, below the start folder."""

    output: Annotated[str, Field(min_length=1)]


class Data:
    """What the tab asks for.

    Args:
        start: the start folder.
    """

    def __init__(self, start: StartFolder) -> None:
        self._start = start
        self._lints = Slot(start.root)

    def files(self, asked: Folder) -> Any:
        """List a folder."""
        return self._start.list(asked.path)

    def look(self, asked: Rows) -> Any:
        """Show rows as they are in the file.

        Raises:
            DataError: the file cannot be read.
        """
        from glmtune.data.dataset import rows_in_place
        from glmtune.data.rows import Row
        from glmtune.data.sources import find_sources

        sources = find_sources((self._path(asked),))
        shown = []
        stop = asked.first - 1 + PAGE_ROWS
        for row in itertools.islice(rows_in_place(sources), asked.first - 1, stop + 1):
            is_row = isinstance(row, Row)
            if isinstance(row, Row):
                text = json.dumps(row, ensure_ascii=False, default=str)
            else:
                text = row.message
            shown.append({"line": row.line, "is_row": is_row, "text": text[:MOST_SHOWN]})
        return {"rows": shown[:PAGE_ROWS], "has_more": len(shown) > PAGE_ROWS}

    async def lint(self, asked: Source, gone: Gone) -> Any:
        """Find what is wrong with the rows, as `glmtune lint` does.

        Raises:
            BoardError: the file cannot be used at all.
        """
        output = await self._lints.run([*self._command(asked), "--json", "-", "--show", "0"], gone)
        report = output.json()
        findings = report.pop("findings", [])
        kept: dict[str, list[Any]] = {}
        for finding in findings:
            of_check = kept.setdefault(finding["check"], [])
            if len(of_check) < SHOWN_FINDINGS:
                of_check.append(finding)
        return report | {"findings": kept}

    async def fix(self, asked: Fixed, gone: Gone) -> Any:
        """Write a copy without unusable rows and duplicates, as `glmtune lint --fix` does.

        Raises:
            BoardError: the copy cannot be written there.
        """
        path = self._start.inside(asked.output)
        self._start.check_new(path)
        name = self._start.name(path)
        command = [*self._command(asked), "--fix", self._start.word(path), "--show", "0"]
        output = await self._lints.run(command, gone)
        said = [line for line in output.text.splitlines() if f"{name}: " in line]
        if not said:
            raise BoardError(output.problem)
        return {"path": name, "message": said[-1]}

    def row(self, asked: Rows) -> Any:
        """Show a row as the tokens that training sees, as `glmtune inspect` does.

        Raises:
            BoardError: no model is named.
            CheckpointError: it has no tokenizer.
            DataError: the row cannot be used.
        """
        if not asked.model:
            raise BoardError("a model is missing: its tokenizer turns rows into tokens. Name one.")
        from glmtune.inspect.row import see_rows
        from glmtune.recipe.reading import build_recipe

        data: dict[str, Any] = {"train": self._path(asked), "columns": asked.columns}
        if asked.max_length:
            data["max_length"] = asked.max_length
        if asked.format:
            data["format"] = asked.format
        tree = {"model": {"name_or_path": asked.model}, "data": data, "output": {"dir": "none"}}
        sides = see_rows(build_recipe(tree), first=asked.first, pairs=None)
        return [
            {
                "place": side.place.removeprefix(f"{self._start.root}/"),
                "format": side.format,
                "fate": side.fate,
                "tokens": side.num_tokens,
                "learned": side.num_learned,
                "pieces": [
                    {"text": p.text, "ids": p.ids, "learned": p.is_learned, "special": p.is_special}
                    for p in side.pieces[:4_000]
                ],
            }
            for side in sides
        ]

    def end(self) -> None:
        """End what runs for a page."""
        self._lints.end()

    def _path(self, asked: Source) -> str:
        path = self._start.inside(asked.path)
        if not path.exists():
            raise BoardError(f"{asked.path[:200]}: there is no such file. Reload the folder.", 404)
        return str(path)

    def _command(self, asked: Source) -> list[str]:
        self._path(asked)
        command = ["lint", self._start.word(self._start.inside(asked.path))]
        command += [as_override(f"data.columns.{k}", v) for k, v in asked.columns.items()]
        command += ["--model", asked.model] if asked.model else []
        command += ["--max-length", str(asked.max_length)] if asked.max_length else []
        return command + (["--format", asked.format] if asked.format else [])
