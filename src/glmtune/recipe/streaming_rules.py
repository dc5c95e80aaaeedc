"""What cannot go together with `data.streaming`, where no number of rows is known beforehand."""

from typing import TYPE_CHECKING

from glmtune.recipe.rule import Rule

if TYPE_CHECKING:
    from glmtune.recipe.recipe import Recipe

_STREAMED = ("data.streaming=true", "training.max_steps=10")

STREAMING_RULES: tuple[Rule["Recipe"], ...] = (
    Rule(
        ("data.streaming=true",),
        lambda recipe: recipe.data.streaming and recipe.training.max_steps is None,
        "data.streaming reads rows while training, so no epoch has a known length. Give "
        "the number of steps, such as training.max_steps=1000",
    ),
    Rule(
        (*_STREAMED, "data.eval_fraction=0.1"),
        lambda recipe: recipe.data.streaming and recipe.data.eval_fraction > 0,
        "data.streaming cannot hold out data.eval_fraction={data.eval_fraction} of rows whose "
        "number is not known. Use data.eval_fraction=0, and give held-out rows in a file of their "
        "own",
    ),
    Rule(
        (*_STREAMED, "preference.stage=dpo"),
        lambda recipe: recipe.data.streaming and recipe.preference.stage != "sft",
        "data.streaming is for rows with one answer, and preference.stage={preference.stage} has "
        "pairs or labels. Leave data.streaming out",
    ),
    Rule(
        (*_STREAMED, "data.replay.path=general.json"),
        lambda recipe: recipe.data.streaming and recipe.data.replay is not None,
        "data.replay mixes in a share of an epoch, and with data.streaming none is known. Leave "
        "data.replay out, and name the general rows as another source to train on, each with a "
        "weight",
    ),
    Rule(
        (*_STREAMED, "model.add_tokens=[<x>]"),
        lambda recipe: recipe.data.streaming and bool(recipe.model.add_tokens),
        "model.add_tokens must occur in the rows, which data.streaming does not know beforehand. "
        "Leave one of them out",
    ),
)
