"""One conflict between keys of a recipe, and the check of a recipe against many."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from glmtune.recipe.recipe import AnyRecipe, RunRecipe

# Contravariant: a rule of every run also applies to each kind of recipe.
CheckedRecipe_contra = TypeVar("CheckedRecipe_contra", bound="RunRecipe", contravariant=True)


@dataclass(frozen=True, slots=True)
class Rule(Generic[CheckedRecipe_contra]):
    """Values of keys that do not go together.

    Attributes:
        example: overrides that break the rule, in a recipe that is valid without them.
        is_broken: whether a recipe has such values.
        message: what is wrong and what to do, without a period at the end; `{section.key}` is
            replaced by the value of the recipe.
    """

    example: tuple[str, ...]
    is_broken: Callable[[CheckedRecipe_contra], bool]
    message: str

    def explain(self, recipe: CheckedRecipe_contra) -> str:
        """Write the message with the values of a recipe."""
        return self.message.format_map(
            {name: getattr(recipe, name) for name in type(recipe).model_fields}
        )


def check_rules(recipe: "AnyRecipe", rules: Sequence[Rule["AnyRecipe"]]) -> None:
    """Refuse a recipe that breaks a rule.

    Raises:
        ValueError: the message of the first broken rule.
    """
    for rule in rules:
        if rule.is_broken(recipe):
            raise ValueError(rule.explain(recipe))
