"""Sample one of GLM's objectives for each step over windows of text.

The same seed, step and window give the same example, on any number of processes and after any
interruption. Held-out windows are cut in the same way at every evaluation, once per objective.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glmtune.data.batches import Examples, MakeMicroBatch, MicroBatch
from glmtune.objective.blank_infilling import BlankInfilling, Ids, marks_of, pack_infillings
from glmtune.recipe.sections import ObjectiveSection


def mixture(section: ObjectiveSection, tokenizer: Any, seed: int) -> MakeMicroBatch:
    """Return the function that `batches` calls: one objective for a step, sampled by weight."""
    infilling = BlankInfilling(section, marks_of(tokenizer))

    def make(examples: Examples, rows: Sequence[int], step: int) -> MicroBatch:
        texts = [_ids(examples, row) for row in rows]
        # The packs of a step must sample the same objective, so its seed is that of the step.
        draw = infilling.draw([max(map(len, texts))], np.random.default_rng((seed, step)))
        made = [
            infilling.example(text, draw, np.random.default_rng((seed, step, row)))
            for text, row in zip(texts, rows, strict=True)
        ]
        return pack_infillings(made, rows)

    return make


def each_objective(
    section: ObjectiveSection, tokenizer: Any, seed: int
) -> Mapping[str, tuple[MakeMicroBatch, float]]:
    """Return each objective of a mixture alone, with its share."""
    weights = {name: weight for name, weight in section.weights().items() if weight}
    nothing = dict.fromkeys(section.weights(), 0.0)
    return {
        name: (
            mixture(section.model_copy(update={**nothing, name: 1.0}), tokenizer, seed),
            weight / sum(weights.values()),
        )
        for name, weight in weights.items()
    }


def _ids(examples: Examples, row: int) -> Ids:
    return np.array(examples[row].input_ids, dtype=np.int64)
