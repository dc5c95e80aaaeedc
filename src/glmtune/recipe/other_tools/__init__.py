"""Convert the recipes of other tools to ours, and list what could not be converted."""

from glmtune.recipe.other_tools.convert import convert_recipe

__all__ = ["convert_recipe"]
