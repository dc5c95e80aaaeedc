"""What a run has to do: how many rows, steps and tokens, and which pack is the heaviest.

Without the data, packs are taken to be full and learned all through, which is the most they can
be, and the number of steps is unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from glmtune.data.batches import MicroBatch, heaviest, micro_batch_of
from glmtune.data.packing import pack
from glmtune.data.sources import find_source
from glmtune.data.store import EncodedData
from glmtune.errors import CheckpointError, DataError
from glmtune.model.load import load_tokenizer
from glmtune.recipe.recipe import Recipe
from glmtune.template.base import IGNORE, Example
from glmtune.template.select import template_for
from glmtune.train.load_rows import encode_rows as encode_run_rows
from glmtune.train.prepare import count_steps, plan_batches


@dataclass(frozen=True, slots=True)
class Rows:
    """The encoded rows of a run, as far as they decide its cost.

    Attributes:
        lengths, learned: tokens of each example, and how many of them are learned.
        chosen: the indices of the rows to learn.
    """

    lengths: Sequence[int]
    learned: Sequence[int]
    chosen: Sequence[int]


@dataclass(frozen=True, slots=True)
class Workload:
    """What a run has to do.

    Attributes:
        lengths, learned: of the heaviest pack: tokens of each row, and learned ones.
        later_lengths, later_learned: of the heaviest that is not the first of its step, and so
            finds gradients there; none when every step has one pack.
        proof: tokens of the row by which what was saved is proved.
        num_rows: that are learned in an epoch, None when the data is not here.
        num_steps: optimizer steps of the whole run, None when it is not known.
        num_tokens: in the whole run, None when it is not known.
        rows: of the heaviest pack; none when the data is not here.
    """

    lengths: tuple[int, ...]
    learned: tuple[int, ...]
    proof: int
    later_lengths: tuple[int, ...] = ()
    later_learned: tuple[int, ...] = ()
    num_rows: int | None = None
    num_steps: int | None = None
    num_tokens: int | None = None
    rows: tuple[int, ...] = ()

    def micro_batch(self, max_tokens: int | None = None) -> MicroBatch:
        """Make a pack of the heaviest one's lengths, of its first tokens; all ids are 0."""
        return _pack_of(self.lengths, self.learned, max_tokens)

    def later_micro_batch(self) -> MicroBatch | None:
        """Make the heaviest pack that finds gradients; None when there is none."""
        if not self.later_lengths:
            return None
        return _pack_of(self.later_lengths, self.later_learned)

    def proof_row(self) -> MicroBatch:
        """Make a row for the proof; all ids are 0."""
        return micro_batch_of(pack([Example([0] * self.proof, [0] * self.proof)]))


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
    return micro_batch_of(pack(examples))


def encode_rows(recipe: Recipe) -> tuple[Rows | None, str]:
    """Encode the data as training does, or say why that is not possible yet.

    Raises:
        DataError: the data is here, and a row of it cannot be used.
    """
    try:
        tokenizer = load_tokenizer(recipe.model.name_or_path)
        for source in (*recipe.data.train, *recipe.data.eval):
            find_source(source, split=recipe.data.split)
    except (CheckpointError, DataError) as error:  # told with the plan, which then is a bound
        return None, str(error)
    template = template_for(tokenizer, recipe.data.layout)
    with TemporaryDirectory() as folder:  # for a list of bad rows
        data = encode_run_rows(recipe, tokenizer, template, Path(folder))
    return rows_of(data.examples, data.rows), ""


def rows_of(examples: EncodedData, chosen: Sequence[int]) -> Rows:
    """Keep what decides the cost."""
    lengths, learned = examples.lengths.tolist(), examples.learned_lengths.tolist()
    return Rows(lengths, learned, chosen)


def describe_workload(recipe: Recipe, rows: Rows | None) -> Workload:
    """Find the heaviest pack of a run, and count what it learns.

    Rows longer than `data.max_length` are left out, whatever becomes of them in training.

    Raises:
        DataError: no row is short enough.
    """
    if rows is None:
        length, batch = recipe.data.max_length, recipe.training.per_device_train_batch_size
        lengths, learned = (length,) * batch, (length - 1,) * batch
        full = Workload(lengths, learned, length, num_steps=recipe.training.max_steps)
        if recipe.training.gradient_accumulation_steps == 1:
            return full
        return replace(full, later_lengths=lengths, later_learned=learned)
    from accelerate import PartialState

    chosen = [row for row in rows.chosen if rows.lengths[row] <= recipe.data.max_length]
    if not chosen:
        raise DataError(
            f"no row is as short as data.max_length={recipe.data.max_length}; "
            f"the shortest has {min(rows.lengths)} tokens. Raise data.max_length."
        )
    batches = plan_batches(recipe, chosen, PartialState(cpu=recipe.training.use_cpu))
    num_steps = count_steps(recipe, batches)
    steps = [batches.micro_batch_rows(step, rows.lengths) for step in range(num_steps)]
    packs = [pack for packs_of_step in steps for pack in packs_of_step]
    heavy = heaviest(packs, rows.lengths, rows.learned)
    later = [pack for packs_of_step in steps for pack in packs_of_step[1:]]
    heavy_later = heaviest(later, rows.lengths, rows.learned) if later else ()
    return Workload(
        lengths=tuple(rows.lengths[row] for row in heavy),
        learned=tuple(rows.learned[row] for row in heavy),
        proof=rows.lengths[chosen[0]],
        later_lengths=tuple(rows.lengths[row] for row in heavy_later),
        later_learned=tuple(rows.learned[row] for row in heavy_later),
        num_rows=len(chosen),
        num_steps=num_steps,
        num_tokens=sum(rows.lengths[row] for rows_of_pack in packs for row in rows_of_pack),
        rows=tuple(heavy),
    )
