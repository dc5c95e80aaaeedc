"""A run as a value: what `glmtune.fine_tune` returns, and `Run.open` reads from a folder.

run = Run.open("out/nano")
run                       five lines in a terminal; verdict, curve and answers in a notebook
run.chat("你好").text
run.merge("out/nano-merged")
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import CheckpointError
from glmtune.prove.proof import Proof
from glmtune.prove.report.page import rewrite_report
from glmtune.prove.report.record import RunRecord, read_record
from glmtune.prove.report.summary import key_figures, text_lines
from glmtune.recipe.reading import load_recipe
from glmtune.recipe.recipe import RECIPE, Recipe

if TYPE_CHECKING:
    from glmtune.use.chat import ChatSession, Reply
    from glmtune.use.evaluate.results import Evaluation
    from glmtune.use.export.run import Exported


@dataclass(frozen=True)
class Run:
    """A run in its output folder.

    Attributes:
        folder: the output folder, with the adapter or the model, `recipe.yaml` and `report.html`.
    """

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Open the run in a folder.

        Raises:
            OutputError: the folder holds no run, or a file of it is damaged.
        """
        run = cls(Path(folder).expanduser())
        _ = run.record
        return run

    @cached_property
    def record(self) -> RunRecord:
        """What the files of the run say: its recipe, its metrics and its facts."""
        return read_record(self.folder)

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe; `fine_tune(run.recipe, dir=...)` repeats the run."""
        return load_recipe(self.folder / RECIPE)

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end; False after an interrupt."""
        return bool(self.record.facts.is_finished)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; `pandas.DataFrame(run.metrics)` is a table of them."""
        return [dict(line) for line in self.record.lines]

    @property
    def loss(self) -> float | None:
        """The training loss of the saved weights, in nats per learned token."""
        return self._figure("last_loss")

    @property
    def eval_loss(self) -> float | None:
        """The held-out loss of the saved weights; None without held-out rows."""
        return self._figure("last_held_out")

    def _figure(self, name: str) -> float | None:
        value: float | None = key_figures(self.record.lines, self.record.facts.saved_step)[name]
        return value

    @property
    def proofs(self) -> tuple[Proof, ...]:
        """The proofs with their verdicts; none after an interrupt."""
        return self.record.facts.proofs

    def load(self, **options: Any) -> "ChatSession":
        """Load the tuned model and start a conversation.

        Args:
            options: as for `glmtune.load`, such as `temperature` or `system`.

        Raises:
            CheckpointError: the run left no model, as after an interrupt.
        """
        from glmtune.library import load

        return load(*self._names(), **options)

    def chat(self, text: str, **options: Any) -> "Reply":
        """Answer one message, in a conversation of its own.

        The model is loaded at the first call and kept. For a conversation of several turns, use
        `run.load()`.

        Args:
            text: of the user's message.
            options: as for `glmtune.load`; others than before load the model again.

        Raises:
            CheckpointError, TemplateError: as `glmtune.load` and `ChatSession.reply`.
        """
        key = repr(sorted(options.items()))
        if key not in self._sessions:
            self._sessions.clear()
            self._sessions[key] = self.load(**options)
        session = self._sessions[key]
        session.reset()
        return session.reply(text)

    @cached_property
    def _sessions(self) -> dict[str, "ChatSession"]:
        """The session of the last `chat`, by its options."""
        return {}

    def predict(self, rows: Any, **options: Any) -> list[dict[str, Any]]:
        """Answer rows; options as for `glmtune.predict`."""
        from glmtune.library import predict

        model, adapter = self._names()
        return predict(model, rows, adapter=adapter, **options)

    def evaluate(self, rows: Any, **options: Any) -> "Evaluation":
        """Score answers to rows; options as for `glmtune.evaluate`."""
        from glmtune.library import evaluate

        model, adapter = self._names()
        return evaluate(model, rows, adapter=adapter, **options)

    def merge(self, output: str | Path, **options: Any) -> "Exported":
        """Merge the adapter into its base; options as for `glmtune.merge`."""
        from glmtune.library import merge

        model, adapter = self._names()
        return merge(adapter or model, output, base=model if adapter else None, **options)

    def export(self, output: str | Path, to: str, **options: Any) -> "Exported":
        """Write the model or the adapter for another tool; options as for `glmtune.export`."""
        from glmtune.library import export

        model, adapter = self._names()
        return export(adapter or model, output, to, base=model if adapter else None, **options)

    def report(self) -> Path:
        """Write `report.html` again, and return its path.

        Raises:
            OutputError: a file of the run is damaged, or the page cannot be written.
        """
        return rewrite_report(self.folder)

    def _names(self) -> tuple[str, Path | None]:
        """Return the model to load, and the adapter over it."""
        from glmtune.methods import method

        if method.is_adapter(self.folder):
            return str(self.record.value("model.name_or_path")), self.folder
        if (self.folder / "config.json").is_file():
            return str(self.folder), None
        why = "it did not finish" if not self.is_finished else "nothing was trained"
        raise CheckpointError(
            f"{self.folder}: the run left no model, since {why}. Continue it: "
            f"glmtune.fine_tune(run.recipe, resume=True)."
        )

    def __str__(self) -> str:
        return "\n".join(text_lines(self.record))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from glmtune.prove.report.notebook import run_html

        return run_html(self.record)
