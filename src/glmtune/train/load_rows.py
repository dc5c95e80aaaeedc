"""The rows of a run as token ids: to learn, held out, mixed in, and general ones.

data.train  ->  lint  ->  encode  ->  rows to learn, rows held out
data.replay            ->  encode  ->  general rows to mix in, appended to the same examples
checks.general_rows    ->  encode  ->  rows that show what is forgotten
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glmtune.data.encode import EncodeOptions, encode_data, split_data
from glmtune.data.lint.findings import CHECKS
from glmtune.data.lint.findings import Finding as LintFinding
from glmtune.data.lint.report import LintReport
from glmtune.data.lint.run import lint_data, refuse_errors
from glmtune.data.mixing import weigh_rows, weights_of
from glmtune.data.pairs import encode_pairs
from glmtune.data.sources import AnySource
from glmtune.data.store import EncodedData, EncodeReport
from glmtune.data.streaming import SEGMENT, StreamedData
from glmtune.errors import DataError
from glmtune.prove.forgetting import general_conversations
from glmtune.recipe.recipe import Recipe, RunRecipe
from glmtune.recipe.sections import DataSection
from glmtune.template.base import Example, Template
from glmtune.train.changed_files import Stamps, stamp

logger = logging.getLogger(__name__)

Finding = dict[str, Any]
"""A finding of lint, as the report shows it."""


@dataclass(frozen=True)
class RunData:
    """The rows of a run as token ids, and what encoded them.

    Attributes:
        tokenizer, template: of the model to tune.
        examples: indexed by `rows` and `replay`.
        eval_examples: indexed by `eval_rows`; the same object when they were split off.
        rows, eval_rows: to learn, and held out.
        replay: general rows to mix in.
        replay_report: how those were encoded; None where the recipe asks for none.
        general: rows that show what is forgotten.
        findings: of lint; None when it was not run.
        stamps: of the files, before they were read.
    """

    tokenizer: Any
    template: Template
    examples: EncodedData | StreamedData
    eval_examples: EncodedData | StreamedData
    rows: Sequence[int]
    eval_rows: Sequence[int]
    replay: Sequence[int] = ()
    replay_report: EncodeReport | None = None
    general: Sequence[Example] = ()
    findings: tuple[Finding, ...] | None = None
    stamps: Stamps = field(default_factory=dict)

    @cached_property
    def lengths(self) -> Sequence[int]:
        """Tokens of each of `examples`."""
        return _numbers(self.examples.lengths)

    @cached_property
    def eval_lengths(self) -> Sequence[int]:
        """Tokens of each of `eval_examples`."""
        return _numbers(self.eval_examples.lengths)

    @cached_property
    def learned_lengths(self) -> Sequence[int]:
        """Learned tokens of each of `examples`."""
        return _numbers(self.examples.learned_lengths)

    @cached_property
    def eval_learned_lengths(self) -> Sequence[int]:
        """Learned tokens of each of `eval_examples`."""
        return _numbers(self.eval_examples.learned_lengths)

    @property
    def is_split_off(self) -> bool:
        """Whether held-out rows, if any, come from the same sources as those to learn."""
        return self.eval_examples is self.examples

    def origin(self, row: int) -> str:
        """Where a row comes from, as `file:line`."""
        return self.examples.origin(row)

    def mixed_with(self, replay: EncodedData) -> "RunData":
        """Append general rows, from which every epoch takes some."""
        assert isinstance(self.examples, EncodedData)  # a rule refuses general rows in a stream
        examples = self.examples.followed_by(replay)  # the indices of the others stay
        return replace(
            self,
            examples=examples,
            eval_examples=examples if self.is_split_off else self.eval_examples,
            replay=range(len(self.examples), len(examples)),
            replay_report=replay.report,
        )


def _numbers(values: npt.NDArray[np.int64] | Sequence[int]) -> Sequence[int]:
    """Return numbers by index: a list is faster than an array, and a stream has only some."""
    return values.tolist() if isinstance(values, np.ndarray) else values


def load_rows(
    recipe: Recipe, tokenizer: Any, template: Template, output: Path, *, run_lint: bool
) -> RunData:
    """Lint and encode all rows of a run.

    Args:
        recipe: of the run.
        tokenizer, template: of the model.
        output: where bad rows are listed, if the recipe asks for that.
        run_lint: whether to run lint, if the recipe asks for that; one process is enough.

    Raises:
        DataError: a row, or what lint finds, does not allow the training.
    """
    replayed = recipe.data.replayed.train if recipe.data.replayed is not None else ()
    stamps = stamp([str(each) for each in (*recipe.data.train, *recipe.data.eval, *replayed)])
    findings = lint(recipe, template) if run_lint else None
    data = encode_rows(recipe, tokenizer, template, output)
    if recipe.data.replayed is not None:
        data = data.mixed_with(_encode_replay(recipe, recipe.data.replayed, template, output))
    general = _encode_general(recipe, template, output)
    return replace(data, general=general, findings=findings, stamps=stamps)


def encode_rows(recipe: Recipe, tokenizer: Any, template: Template, output: Path) -> RunData:
    """Encode the rows to learn and those held out."""
    options = replace(encode_options(recipe.data), needs_label=recipe.has_labels)
    encode_sources = encode_pairs if recipe.is_preference else encode_data

    def encode(sources: Sequence[AnySource], quarantine: Path) -> EncodedData:
        return encode_sources(sources, template, options, quarantine=quarantine)

    if recipe.data.streaming:
        return _stream_rows(recipe, tokenizer, template, encode, output)
    data = split_held_out(recipe, tokenizer, template, encode, split_data, output)
    _check_added_tokens_occur(recipe.model.add_tokens, data)
    return data


def _stream_rows(
    recipe: Recipe,
    tokenizer: Any,
    template: Template,
    encode: Callable[[Sequence[AnySource], Path], EncodedData],
    output: Path,
) -> RunData:
    """Open rows that are encoded while they are learned; held-out rows are encoded as always."""
    section, weights = recipe.data, weights_of(recipe.data.train)
    examples = StreamedData(
        section.train,
        template,
        encode_options(section),
        seed=recipe.training.seed,
        weights=weights if len(set(weights)) > 1 else (),
    )
    logger.info(
        "data.streaming: rows are read while training, and lint and the proofs look at the first "
        "%d; evaluations and checkpoints by epoch come at the end of the run",
        SEGMENT,
    )
    logger.info("the first training rows: %s", examples.report)
    eval_examples: EncodedData | StreamedData = examples
    eval_rows: Sequence[int] = ()
    if section.eval:
        eval_examples = encode(section.eval, output / "bad_eval_rows.jsonl")
        logger.info("held-out rows: %s", eval_examples.report)
        eval_rows = range(len(eval_examples))
    return RunData(tokenizer, template, examples, eval_examples, examples.head, eval_rows)


def _check_added_tokens_occur(tokens: Sequence[str], data: RunData) -> None:
    """Refuse an added token that no row to learn contains, so that its row would never learn.

    Raises:
        DataError: names the tokens.
    """
    missing = {data.tokenizer.convert_tokens_to_ids(token): token for token in tokens}
    for row in data.rows if missing else ():
        for found in missing.keys() & set(data.examples[row].input_ids):
            del missing[found]
        if not missing:
            return
    if missing:
        raise DataError(
            f"model.add_tokens has {', '.join(missing.values())}, and no row that is learned "
            "contains it. Check its spelling in the rows, or take it out of the list."
        )


def split_held_out(
    recipe: RunRecipe,
    tokenizer: Any,
    template: Template,
    encode: Callable[[Sequence[AnySource], Path], EncodedData],
    split: Callable[[EncodedData, float, int], tuple[Any, Any]],
    output: Path,
) -> RunData:
    """Encode sources, with those of `data.eval` held out or `data.eval_fraction` split off.

    Args:
        recipe: of the run.
        tokenizer, template: of the model.
        encode: (sources, file of bad rows) -> examples.
        split: (examples, fraction, seed) -> arrays of rows to learn and of held-out rows.
        output: where bad rows are listed, if the recipe asks for that.

    Raises:
        DataError: nothing is left to learn.
    """
    section = recipe.data
    examples = encode(section.train, output / "bad_rows.jsonl")
    logger.info("training rows: %s", examples.report)
    rows: Sequence[int] = range(len(examples))
    eval_examples = examples
    eval_rows: Sequence[int] = ()
    if section.eval:
        eval_examples = encode(section.eval, output / "bad_eval_rows.jsonl")
        logger.info("held-out rows: %s", eval_examples.report)
        eval_rows = range(len(eval_examples))
    elif section.eval_fraction:
        learned, held_out = split(examples, section.eval_fraction, recipe.training.seed)
        if not len(learned):
            raise DataError(
                f"data.eval_fraction={section.eval_fraction} leaves none of "
                f"{examples.report.num_rows} rows to learn. Lower it, or give more rows."
            )
        rows, eval_rows = learned.tolist(), held_out.tolist()
    weights = weights_of(section.train)
    if any(weight != 1 for weight in weights):
        rows = weigh_rows(rows, examples.source_counts, weights, recipe.training.seed)
        logger.info("an epoch learns %d rows by the weights of their sources", len(rows))
    return RunData(tokenizer, template, examples, eval_examples, rows, eval_rows)


def encode_options(section: DataSection) -> EncodeOptions:
    """Return the options of encoding that a section has."""
    return EncodeOptions(
        max_length=section.max_length,
        overlong=section.overlong,
        bad_rows=section.bad_rows,
        format=section.format,
        columns=section.columns,
        roles=section.roles,
        split=section.split,
        mask_history=section.mask_history,
        train_on_prompt=section.train_on_prompt,
    )


def _encode_replay(
    recipe: Recipe, section: DataSection, template: Template, output: Path
) -> EncodedData:
    """Encode the general rows to mix in."""
    quarantine = output / "bad_replay_rows.jsonl"
    replay = encode_data(section.train, template, encode_options(section), quarantine=quarantine)
    logger.info("general rows to mix in: %s", replay.report)
    return replay


def _encode_general(recipe: Recipe, template: Template, output: Path) -> Sequence[Example]:
    """Encode the rows that show what is forgotten; none where checks.forgetting is off."""
    if recipe.checks.forgetting is None:
        return ()
    if not recipe.checks.general_rows:
        return template.encode_batch(list(general_conversations()))
    section = recipe.data.with_rows(recipe.checks.general_rows)
    quarantine = output / "bad_general_rows.jsonl"
    options = replace(encode_options(section), train_on_prompt=False)
    rows = encode_data(section.train, template, options, quarantine=quarantine)
    logger.info("general rows to show what is forgotten: %s", rows.report)
    return list(rows)


def _first_of_each(report: LintReport) -> dict[str, LintFinding]:
    """Return the first warning or error of each check."""
    first: dict[str, LintFinding] = {}
    for finding in report.findings:
        if finding.severity != "info":
            first.setdefault(finding.check, finding)
    return first


def lint(recipe: Recipe, template: Template) -> tuple[Finding, ...] | None:
    """Check the rows before they are encoded, and log what was found; None when it is off.

    Raises:
        DataError: lint found errors, and `lint.errors` is "stop".
    """
    if not recipe.lint.before_training:
        return None
    report = lint_data(
        recipe.data,
        template,
        recipe.lint,
        general=recipe.checks.general_rows,
        seed=recipe.training.seed,
        pairs=recipe.is_preference,
        labeled=recipe.preference if recipe.has_labels else None,
        most_rows=SEGMENT if recipe.data.streaming else None,
    )
    counted = [
        f"{sum(by_severity.values())} {check}"
        for check, by_severity in report.counts().items()
        if by_severity["error"] or by_severity["warning"]
    ]
    if counted:
        logger.warning("lint: %s. `glmtune lint` with this recipe shows them", ", ".join(counted))
        for check, finding in _first_of_each(report).items():
            what = f"{finding.place}: {finding.message.rstrip('.')}. {CHECKS[check].remedy}"
            logger.warning("lint: %s: %s", check, what)
    else:
        logger.info("lint: nothing to fix in %d rows", report.num_rows)
    for check, reason in report.not_checked.items():
        if check not in recipe.lint.off:
            logger.info("lint: not checked: %s (%s)", check, reason)
    refuse_errors(report, recipe.lint)
    return tuple(
        {
            "id": finding.check,
            "severity": finding.severity,
            "place": finding.place,
            "excerpt": finding.excerpt,
            "message": finding.message,
        }
        for finding in report.findings
    )
