"""The facts of a run that only the run itself knows, kept in `report.json` for its report.

The recipe and the metrics are files of the run already, so a report reads those. Everything else on
the page comes from here, so `glmtune report` can make the page again without the model. Reading it
back loads neither torch nor transformers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glmtune import machine
from glmtune.data.store import EncodeReport
from glmtune.errors import OutputError
from glmtune.files import sha256_of_text, write_atomically
from glmtune.inspect.shown_row import ShownRow
from glmtune.prove.answers import Sample
from glmtune.prove.proof import PROOFS, Proof
from glmtune.units import GIB

FACTS = "report.json"
MAX_BYTES = 256 * 2**20  # of the file; lint may have many findings
Count = Annotated[int, Field(ge=0, le=2**63)]
Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide a run."""
    return {each.name: each.found or "not installed" for each in machine.versions()}


def machine_facts() -> dict[str, str]:
    """Describe this machine, and the variables that change what libraries do on it."""
    import torch

    gpus = [f"{gpu.name} ({gpu.memory_bytes / GIB:.1f} GiB)" for gpu in machine.gpus()]
    variables = [f"{name}={value}" for name, value in machine.environment_variables().items()]
    return {
        "system": machine.system_name(),
        "processor": machine.cpu_name(),
        "cores": f"{machine.num_cores()}, torch uses {torch.get_num_threads()}",
        "memory": f"{machine.host_memory().total_bytes / GIB:.1f} GiB",
        "GPUs": ", ".join(gpus) or "none",
        "environment": ", ".join(variables) or "nothing that matters is set",
    }


class ReportFacts(BaseModel):
    """What a run knows about itself. None always means "not recorded", as the page then shows.

    Attributes:
        is_finished: False after an interrupt or an error.
        num_steps: optimizer steps of the complete run, done or not.
        saved_step: of the weights that were saved, the last or the best ones.
        seconds: from the first step to the last.
        num_trainable, num_parameters: parameters that are trained, and all.
        template: family and layout.
        template_fingerprint, data_fingerprint, held_out_fingerprint: hex.
        data, held_out: how many rows were used and left out; `held_out` is None when rows were
            split off from the training data.
        replay: the same for the general rows that were mixed in, if any were asked for.
        num_train_rows, num_held_out_rows: examples to train on, and those held out.
        num_replayed_rows: general rows in each epoch.
        lint: findings, each with `id`, `severity`, `place`, `excerpt`, `message`; empty when
            nothing was found.
        example: one row as it was trained on.
        proofs: in the order to show them. Members of `glmtune.prove.proof.PROOFS` that are missing
            here are shown as not run.
        samples: held-out prompts, answered with and without the adapter.
        command: repeats the run; None derives it from the folder.
        date: when the run ended, as ISO 8601 writes it, in UTC.
        versions, machine: found when the facts are made; empty means "not recorded".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    is_finished: bool | None = None
    num_steps: Count | None = None
    saved_step: Count | None = None
    seconds: Seconds | None = None
    num_trainable: Count | None = None
    num_parameters: Count | None = None
    template: Mapping[str, str] | None = None
    template_fingerprint: str | None = None
    data_fingerprint: str | None = None
    held_out_fingerprint: str | None = None
    data: EncodeReport | None = None
    held_out: EncodeReport | None = None
    replay: EncodeReport | None = None
    num_train_rows: Count | None = None
    num_replayed_rows: Count | None = None
    num_held_out_rows: Count | None = None
    lint: tuple[Mapping[str, Any], ...] | None = None
    example: ShownRow | None = None
    proofs: tuple[Proof, ...] = ()
    samples: tuple[Sample, ...] | None = None
    command: str | None = None
    date: str | None = None
    versions: Mapping[str, str] = Field(default_factory=library_versions)
    machine: Mapping[str, str] = Field(default_factory=machine_facts)

    @property
    def all_proofs(self) -> list[Proof]:
        """The recorded proofs, then the missing members of `PROOFS` as not run."""
        recorded = {proof.name for proof in self.proofs}
        missing = [Proof(name, "not run") for name in PROOFS if name not in recorded]
        return [*self.proofs, *missing]


NO_FACTS = ReportFacts(versions={}, machine={})


class _FactsFile(BaseModel):
    """The file: facts, and a checksum of the recipe of their run."""

    recipe_sha256: str
    facts: ReportFacts


def write_facts(output: Path, facts: ReportFacts, recipe_text: str) -> None:
    """Write the facts into the folder of the run.

    Raises:
        OutputError: the folder cannot be written.
    """
    content = _FactsFile(recipe_sha256=sha256_of_text(recipe_text), facts=facts)
    write_atomically(output / FACTS, content.model_dump_json(indent=1) + "\n")


def read_facts(output: Path, recipe_text: str) -> tuple[ReportFacts, str]:
    """Read the facts of a run.

    Returns:
        The facts, and "" or the reason why there are none.

    Raises:
        OutputError: the file is damaged.
    """
    path = output / FACTS
    if not path.is_file():
        return NO_FACTS, f"The folder has no {FACTS}, where a run records facts for its report."
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"it has {size:,} bytes")
        content = _FactsFile.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # a ValidationError is a ValueError
        reason = _first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise OutputError(
            f"{path}: expected the JSON that `glmtune train` wrote, but: {reason}. "
            "Restore the file, or delete it to make a report from the other files."
        ) from None
    if content.recipe_sha256 != sha256_of_text(recipe_text):
        return NO_FACTS, f"The {FACTS} in the folder belongs to a run with another recipe."
    return content.facts, ""


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]
