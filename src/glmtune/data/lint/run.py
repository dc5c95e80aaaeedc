"""Check the rows of a recipe, and stop a training whose rows have errors."""

from collections import Counter

from glmtune.data.cache import Progress
from glmtune.data.lint.findings import CHECKS, Finding, check_off
from glmtune.data.lint.labels import Labels
from glmtune.data.lint.report import LintReport
from glmtune.data.lint.scan import Scan
from glmtune.errors import DataError
from glmtune.recipe.sections import DataSection, LintSection, PreferenceSection
from glmtune.template.base import Template

SHOWN_ERRORS = 5


def lint_data(
    data: DataSection,
    template: Template | None = None,
    lint: LintSection | None = None,
    *,
    seed: int = 42,
    pairs: bool | None = False,
    labeled: PreferenceSection | None = None,
    general: tuple[str, ...] = (),
    most_rows: int | None = None,
    progress: Progress | None = None,
) -> LintReport:
    """Find what is wrong with the rows of a recipe. Reads them once and changes nothing.

    Args:
        data: which rows, and how training would read them.
        template: makes the ids; without one the checks of tokens are skipped, and lengths are
            in characters.
        lint: which checks, and their thresholds.
        seed: training.seed, which decides what data.eval_fraction holds out.
        pairs: whether rows are a better and a worse answer, and both are checked; None: where
            their format has two.
        labeled: the recipe's `preference`, where every row says if its answer is a good one.
        general: checks.general_rows, which measure forgetting and so must not be learned.
        most_rows: of each source of data.train that are checked; None for all.
        progress: called with the number of rows read so far.

    Raises:
        DataError: a file cannot be used at all. A single bad row is a finding.
        RecipeError: `lint.off` names a check that does not exist, or cannot be off.
    """
    lint = lint or LintSection()
    check_off(lint)
    labels = None if labeled is None else Labels(labeled)
    scan = Scan(template, lint, pairs, progress or (lambda num_rows: None), labels)
    scan.read(data, data.train, most_rows=most_rows)
    if data.replayed is not None:
        scan.read(data.replayed, data.replayed.train, is_own=False)
    scan.read(data, data.eval, is_held_out=True)
    if general:
        scan.read(data.with_rows(general), general, is_held_out=True, is_own=False)
    return scan.report(data, seed)


def refuse_errors(report: LintReport, section: LintSection) -> None:
    """Stop a training whose rows have errors, unless `lint.errors` is "report".

    Bad rows that training skips (`data.bad_rows`) are warnings, so they do not stop it.

    Args:
        report: of the rows that are about to be learned.
        section: `lint` of the recipe.

    Raises:
        DataError: names the first errors, what to do about each check, and how to train anyway.
    """
    errors = [finding for finding in report.findings if finding.severity == "error"]
    if not errors or section.errors == "report":
        return
    lines = [_line(finding) for finding in errors[:SHOWN_ERRORS]]
    if len(errors) > SHOWN_ERRORS:
        counts = Counter(finding.check for finding in errors)
        by_check = ", ".join(f"{count:,} {check}" for check, count in counts.items())
        lines.append(f"... {len(errors):,} errors in all: {by_check}")
    for check in dict.fromkeys(finding.check for finding in errors[:SHOWN_ERRORS]):
        lines.append(f"{check}: {CHECKS[check].remedy}")
    advice = "`glmtune lint` with this recipe shows all of them."
    if ids := list(dict.fromkeys(finding.check for finding in errors if finding.is_usable)):
        advice += (
            " To train on these rows as they are, set lint.errors=report, or switch checks off: "
            f"lint.off=[{', '.join(ids)}]."
        )
    raise DataError("\n".join(["lint found errors in the rows:", *lines, advice]))


def _line(finding: Finding) -> str:
    return f"{finding.place}: {finding.check}: {finding.message.rstrip('.')}."
