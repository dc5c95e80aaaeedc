"""Find the heaviest pack of a run, and count its rows, steps and tokens.

Without the data, packs are assumed to be full and every token to be learned, which is an upper
bound, and the number of steps is unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from glmtune.data.batches import MicroBatch, heaviest, micro_batch_of
from glmtune.data.packing import pack
from glmtune.data.pairs import Pairs
from glmtune.data.sources import find_source
from glmtune.data.streaming import StreamedData
from glmtune.errors import CheckpointError, DataError, RecipeError
from glmtune.model.load import load_tokenizer
from glmtune.recipe.recipe import Recipe
from glmtune.template.base import IGNORE, Example
from glmtune.template.select import template_for
from glmtune.train.load_rows import RunData
from glmtune.train.load_rows import encode_rows as encode_run_rows
from glmtune.train.prepare import count_steps, plan_batches

MAX_STEPS = 20_000  # that are looked at for the heaviest pack; later epochs repeat the same rows
MAX_PACK_TOKENS = 2**22  # of a full pack, where the data is not available


@dataclass(frozen=True, slots=True)
class RowLengths:
    """The lengths of a run's encoded rows, which decide its cost.

    Attributes:
        lengths, learned: tokens of each row, and how many of them are learned; of both answers of
            a pair together.
        chosen: indices of the rows to train on.
        pairs: the rows, where they are pairs, to look up the two answers of one.
    """

    lengths: Sequence[int]
    learned: Sequence[int]
    chosen: Sequence[int]
    pairs: Pairs | None = None

    def examples_of(self, rows: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens of each example in a pack of rows, and how many are learned."""
        if self.pairs is None:
            return tuple(self.lengths[r] for r in rows), tuple(self.learned[r] for r in rows)
        sides = [side for r in rows for side in (self.pairs[r], self.pairs.worse(r))]
        learned = (sum(label != IGNORE for label in side.labels) for side in sides)
        return tuple(len(side.input_ids) for side in sides), tuple(learned)


@dataclass(frozen=True, slots=True)
class Workload:
    """What a run has to do.

    Attributes:
        lengths, learned: of the heaviest pack: tokens of each example, and learned tokens. A pair
            is two examples.
        later_lengths, later_learned: of the heaviest pack that is not the first of its step, so
            that gradients exist already; empty if every step has one pack.
        proof: tokens of the row that the proof of the saved files uses.
        num_rows: rows in an epoch, None if the data is not available.
        num_steps: optimizer steps of the run, None if not known.
        num_tokens: tokens of the run, None if not known.
        num_packs: micro-batches of the run, None if not known.
        max_tokens: of a pack.
        step_tokens: of the rows of a step, at most: more is not put into a pack.
        rows: indices of the rows of the heaviest pack; empty if the data is not available.
    """

    lengths: tuple[int, ...]
    learned: tuple[int, ...]
    proof: int
    later_lengths: tuple[int, ...] = ()
    later_learned: tuple[int, ...] = ()
    num_rows: int | None = None
    num_steps: int | None = None
    num_tokens: int | None = None
    num_packs: int | None = None
    max_tokens: int = 0
    step_tokens: int = 0
    rows: tuple[int, ...] = ()

    def micro_batch(self, max_tokens: int | None = None) -> MicroBatch:
        """Make a pack with the lengths of the heaviest one, or its first tokens; all ids are 0."""
        return _pack_of(self.lengths, self.learned, max_tokens)

    def later_micro_batch(self) -> MicroBatch | None:
        """Make the heaviest pack that is not the first of its step; None if there is none."""
        if not self.later_lengths:
            return None
        return _pack_of(self.later_lengths, self.later_learned)

    def proof_row(self) -> MicroBatch:
        """Make the row of the proof; all ids are 0."""
        return micro_batch_of(pack([Example([0] * self.proof, [0] * self.proof)]))

    @property
    def longest_row(self) -> int:
        """Tokens of the longest example of the heaviest pack."""
        return max(self.lengths)


def _pack_of(
    lengths: Sequence[int], learned: Sequence[int], max_tokens: int | None = None
) -> MicroBatch:
    left = sum(lengths) if max_tokens is None else max_tokens
    examples = []
    for length, number in zip(lengths, learned, strict=True):
        kept = min(length, left)
        num_learned = round(number * kept / length)
        examples.append(Example([0] * kept, [IGNORE] * (kept - num_learned) + [0] * num_learned))
        left -= kept
        if not left:
            break
    return micro_batch_of(pack(examples), range(len(examples)))


def encode_row_lengths(recipe: Recipe) -> tuple[RowLengths | None, str]:
    """Encode the data as training does.

    Returns:
        The lengths of its rows and "", or None and why the data cannot be read yet.

    Raises:
        DataError: the data is available, but a row of it cannot be used.
    """
    try:
        tokenizer = load_tokenizer(recipe.model.name_or_path, recipe.model.add_tokens)
        for source in (*recipe.data.train, *recipe.data.eval):
            find_source(source, split=recipe.data.split, streaming=recipe.data.streaming)
    except (CheckpointError, DataError) as error:  # shown beside the plan, then an upper bound
        return None, str(error)
    template = template_for(tokenizer, recipe.data.layout)
    with TemporaryDirectory() as folder:  # for the list of bad rows
        data = encode_run_rows(recipe, tokenizer, template, Path(folder))
    return row_lengths_of(data), ""


def row_lengths_of(data: RunData) -> RowLengths:
    """Take the lengths out of encoded data; of a stream, those of its first rows."""
    if isinstance(data.examples, StreamedData):
        first = range(len(data.examples))
        lengths = [data.lengths[row] for row in first]
        return RowLengths(lengths, [data.learned_lengths[row] for row in first], data.rows)
    pairs = data.examples if isinstance(data.examples, Pairs) else None
    return RowLengths(data.lengths, data.learned_lengths, data.rows, pairs)


def describe_workload(
    recipe: Recipe, rows: RowLengths | None, max_tokens: int | None = None
) -> Workload:
    """Find the heaviest pack of a run, and count its steps and tokens.

    Rows longer than `data.max_length` are left out, even if training would truncate them.

    Args:
        recipe: the run.
        rows: its data, None if it is not available.
        max_tokens: of a pack, where the run chooses another number than the recipe's.

    Raises:
        DataError: no row is short enough.
        RecipeError: a pack is so large that even its length in numbers takes gigabytes.
    """
    if rows is None:
        return _full_packs(recipe, max_tokens)
    from accelerate import PartialState

    most = recipe.data.max_length * (2 if recipe.is_preference else 1)
    chosen = [row for row in rows.chosen if rows.lengths[row] <= most]
    if not chosen:
        raise DataError(
            f"no row is as short as data.max_length={recipe.data.max_length}; "
            f"the shortest has {min(rows.lengths)} tokens. Raise data.max_length."
        )
    batches = plan_batches(recipe, chosen, PartialState(cpu=recipe.training.use_cpu))
    if max_tokens is not None:
        batches = replace(batches, max_tokens=max_tokens)
    num_steps = count_steps(recipe, batches)
    num_seen = min(num_steps, MAX_STEPS)
    steps = [batches.micro_batch_rows(step, rows.lengths) for step in range(num_seen)]
    packs = [pack for packs_of_step in steps for pack in packs_of_step]
    num_tokens = sum(rows.lengths[row] for rows_of_pack in packs for row in rows_of_pack)
    heavy = heaviest(packs, rows.lengths, rows.learned)
    later = [pack for packs_of_step in steps for pack in packs_of_step[1:]]
    heavy_later = heaviest(later, rows.lengths, rows.learned) if later else ()
    lengths, learned = rows.examples_of(heavy)
    later_lengths, later_learned = rows.examples_of(heavy_later)
    one_epoch = steps[: batches.steps_per_epoch]
    return Workload(
        lengths=lengths,
        learned=learned,
        proof=rows.lengths[chosen[0]],
        later_lengths=later_lengths,
        later_learned=later_learned,
        num_packs=round(len(packs) * num_steps / num_seen),
        max_tokens=batches.max_tokens,
        step_tokens=max(sum(rows.lengths[r] for p in step for r in p) for step in one_epoch),
        num_rows=len(chosen),
        num_steps=num_steps,
        num_tokens=round(num_tokens * num_steps / num_seen),
        rows=tuple(heavy),
    )


def _full_packs(recipe: Recipe, max_tokens: int | None = None) -> Workload:
    """Return an upper bound: rows of `data.max_length` tokens, of which all but one are learned.

    Raises:
        RecipeError: a pack is so large that even its length in numbers takes gigabytes.
    """
    section, answers = recipe.training, 2 if recipe.is_preference else 1
    length, batch = recipe.data.max_length, section.per_device_train_batch_size
    least, in_step = length * batch * answers, batch * section.gradient_accumulation_steps
    if least > MAX_PACK_TOKENS:
        raise RecipeError(
            f"the data is not available, and a full pack has {least:,} tokens: "
            f"training.per_device_train_batch_size={batch} x data.max_length={length}. Lower one "
            f"of them ({MAX_PACK_TOKENS:,} tokens at most), or give the data."
        )
    chosen = max_tokens or least
    number = min(chosen // (length * answers), in_step) * answers  # examples of a pack
    lengths, learned = (length,) * number, (length - 1,) * number
    full = Workload(
        lengths,
        learned,
        length,
        num_steps=section.max_steps,
        max_tokens=chosen,
        step_tokens=in_step * length * answers,
    )
    if number >= in_step * answers:
        return full
    return replace(full, later_lengths=lengths, later_learned=learned)
