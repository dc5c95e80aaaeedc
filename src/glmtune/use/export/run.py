"""Export a model or an adapter: write it, open it again, compare, and say what came out.

open      base, adapter, template         what cannot be exported is refused here
write     DIR.partial                     the weights, one tensor after another
prove     source and result               the same prompts, logits and answers
rename    DIR, or DIR.failed              export.json holds all of it
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import glmtune
from glmtune.errors import CheckpointError, RecipeError, TemplateError
from glmtune.recipe.choices import Layout
from glmtune.use.export.folder import ProofError, new_folder, refuse_existing, write_report
from glmtune.use.export.formats import FORMATS, Format
from glmtune.use.export.job import LOCAL_PATH, Job, open_job
from glmtune.use.export.probes import reference_of
from glmtune.use.export.proofs import Check
from glmtune.use.export.shards import DEFAULT_SHARD
from glmtune.use.export.stock import StockError
from glmtune.use.export.update import ENOUGH, Survival

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export has written.

    Attributes:
        folder: complete, and proven unless the proof was left out.
        checks: the comparisons with the source.
        survival: what of the update survives in the dtype; None if nothing was rounded.
        start: the command line that uses the result.
    """

    folder: Path
    checks: list[Check]
    survival: Survival | None
    start: str


def export(
    source: str | Path,
    target: str | Path,
    to: str = "chatglm",
    *,
    base: str | None = None,
    layout: Layout | None = None,
    dtype: str = "auto",
    max_shard_size: str = DEFAULT_SHARD,
    quantize: str = "",
    prove: bool = True,
) -> Exported:
    """Write a model or an adapter for another tool, and prove that it answers the same.

    Args:
        source: folder of an adapter, or folder or hub id of a complete model.
        target: folder to make; it must not exist.
        to: a name of `FORMATS`.
        base: of the adapter; None takes the one that the adapter names.
        layout: of the prompts; None takes that of the folder, or "official".
        dtype: of the weights, by torch's name; "auto" is that of the base.
        max_shard_size: of a file of weights, such as "2GB".
        quantize: a GGUF type, such as q8_0; for gguf and ollama.
        prove: open the result again and compare it with the source.

    Raises:
        CheckpointError: a folder is missing or damaged, or the format cannot hold what it has.
        OutputError: the target exists, or cannot be written.
        ProofError: the result answers otherwise; it is kept under another name.
    """
    target = Path(target).expanduser()
    if to not in FORMATS:
        raise RecipeError(f"--to {to}: expected one of {', '.join(FORMATS)}.")
    refuse_existing(target)
    form = FORMATS[to]
    if quantize and not form.is_gguf:
        raise RecipeError(f"--quantize {quantize}: only --to gguf and --to ollama take it.")
    job = open_job(
        source, base, layout=layout, dtype=dtype, max_shard_size=max_shard_size, quantize=quantize
    )
    if form.keeps_adapter and job.adapter is not None and dtype != "auto":
        raise RecipeError(
            f"--dtype {dtype}: --to {to} keeps the adapter as it is. Leave --dtype out."
        )
    with new_folder(target) as folder:
        survival = form.write(job, folder)
        job.write_card(folder)
        if survival is not None and job.adapter is not None:
            _log_survival(survival)
        checks = _prove(form, job, folder, survival) if prove else []
        failed = [check for check in checks if check.verdict == "failed"]
        start = form.start(job, target)
        report = _report(job, to, survival, checks)
        write_report(folder, {"status": "failed" if failed else "complete", **report})
        if failed:
            reasons = "; ".join(f"{check.name}: {check.detail}" for check in failed)
            raise ProofError(f"{target}: the result does not answer as its source. {reasons}.")
    return Exported(target, checks, survival, start)


def _prove(form: Format, job: Job, folder: Path, survival: Survival | None) -> list[Check]:
    logger.info("comparing what was written with its source")
    is_merged = survival is not None
    reference = reference_of(
        job, is_merged=is_merged, dtype=None if survival is None else survival.dtype
    )
    try:
        return form.check(job, folder, reference)
    except (
        CheckpointError,
        TemplateError,
        StockError,
    ) as error:  # it cannot even be read
        raise ProofError(str(error)) from error


def _log_survival(survival: Survival) -> None:
    if survival.share >= ENOUGH:
        logger.info(survival.sentence())
        return
    logger.warning(
        "%s. Use --dtype float32 to keep it all, or use the adapter together with its base.",
        survival.sentence(),
    )


def _report(job: Job, to: str, survival: Survival | None, checks: list[Check]) -> dict[str, Any]:
    """Return what export.json holds; a folder is named by its last part alone."""

    def name(path: Path | str) -> str:
        return Path(path).name if LOCAL_PATH.match(str(path)) else str(path)

    report: dict[str, Any] = {
        "glmtune_version": glmtune.__version__,
        "format": to,
        "source": name(job.source.resolve() if job.adapter else job.base_name),
        "base": name(job.base_name),
        "dtype": job.dtype,
        "proofs": [asdict(check) for check in checks],
    }
    if survival is not None and job.adapter is not None:
        report["update"] = {
            "survives": survival.share,
            "dtype": str(survival.dtype).removeprefix("torch."),
            "tensors": survival.num_tensors,
            "numbers_changed": survival.num_changed,
            "numbers": survival.num_numbers,
            "worst_tensor": survival.worst,
            "worst_survives": survival.worst_share,
        }
    return report
