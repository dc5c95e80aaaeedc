"""A text -> its example under GLM's objective: tokens, both positions, and the attention mask."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glmtune.data.rows import raise_bad_row
from glmtune.data.sources import find_sources
from glmtune.data.texts import documents, text_column
from glmtune.errors import DataError
from glmtune.kernels.packed_attention import dense_mask
from glmtune.model.load import load_tokenizer
from glmtune.objective.blank_infilling import BlankInfilling, Infilling, marks_of
from glmtune.recipe.recipe import PretrainRecipe
from glmtune.recipe.sections import ObjectiveSection
from glmtune.template.base import IGNORE

# Settings for one objective: those of the mixture, and the usual names of task families.
OBJECTIVES: Mapping[str, Mapping[str, float]] = {
    "token": {"token": 1},
    "sentence": {"sentence": 1},
    "document": {"document": 1},
    "causal": {"causal": 1},
    "masked-lm": {"token": 1},
    "prefix-lm": {"document": 1, "prefix_share": 1},
    "causal-lm": {"document": 1, "prefix_share": 1, "shortest_document_share": 1},
}


@dataclass(frozen=True, slots=True)
class SeenInfilling:
    """A text as an example of one objective.

    Attributes:
        place: `file:line`.
        example: ids, targets and positions.
        tokens, targets: as text; a target that is not learned is "".
        may_attend: whether a token (row) attends to another (column), (seq, seq).
    """

    place: str
    example: Infilling
    tokens: tuple[str, ...]
    targets: tuple[str, ...]
    may_attend: NDArray[np.bool_]


def see_infilling(recipe: PretrainRecipe, objective: str, row: int = 1) -> SeenInfilling:
    """Prepare a text as a run of the recipe would with a single objective.

    Args:
        recipe: its model, of which only the tokenizer is read, its texts and settings.
        objective: a key of `OBJECTIVES`.
        row: the text of data.train, counted from 1.

    Raises:
        CheckpointError: there is no tokenizer.
        DataError: the tokenizer is not ChatGLM's, a file cannot be read, or there are fewer texts.
    """
    tokenizer = load_tokenizer(recipe.model.name_or_path, recipe.model.add_tokens)
    marks = marks_of(tokenizer)
    place, text = _find_text(recipe, row)
    ids = [*tokenizer.encode(text, add_special_tokens=False), marks.end][: recipe.data.max_length]
    infilling = BlankInfilling(single_objective(recipe.objective, objective), marks)
    generator = np.random.default_rng((recipe.training.seed, row))
    [example] = infilling.batch([np.array(ids)], generator)
    mask = dense_mask(torch.tensor([0, len(example)]), torch.tensor([example.prefix_length]))
    return SeenInfilling(
        place=place,
        example=example,
        tokens=_pieces(example.input_ids.tolist(), tokenizer),
        targets=_pieces(example.targets.tolist(), tokenizer),
        may_attend=mask.numpy(),
    )


def single_objective(section: ObjectiveSection, objective: str) -> ObjectiveSection:
    """Return the settings of one objective, with the weights of all others at 0."""
    no_weights = dict.fromkeys(section.weights(), 0.0)
    return section.model_copy(update={**no_weights, **OBJECTIVES[objective]})


def _pieces(ids: list[int], tokenizer: Any) -> tuple[str, ...]:
    # ChatGLM's tokenizer has no text for the end-of-text token.
    named = {IGNORE: "", tokenizer.eos_token_id: str(tokenizer.eos_token)}
    return tuple(named[i] if i in named else str(tokenizer.convert_ids_to_tokens(i)) for i in ids)


def _find_text(recipe: PretrainRecipe, row: int) -> tuple[str, str]:
    number, column = 0, recipe.data.columns.get("text", "text")
    for source in find_sources(recipe.data.train, split=recipe.data.split):
        rows = source.rows(raise_bad_row)
        for first, text in documents(rows, text_column(source, column), raise_bad_row):
            number += 1
            if number == row:
                return f"{first.file}:{first.line}", text
    raise DataError(
        f"{', '.join(map(str, recipe.data.train))}: there is no text {row}, only {number:,}. "
        "Texts are counted from 1."
    )
