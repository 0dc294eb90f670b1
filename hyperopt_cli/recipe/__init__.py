"""Recipes: YAML to a validated, frozen `Recipe`, with every error at once and where it stands."""

from hyperopt_cli.recipe.json_schema import json_schema
from hyperopt_cli.recipe.load import load
from hyperopt_cli.recipe.schema import Recipe
from hyperopt_cli.recipe.shipped import shipped

__all__ = ["Recipe", "json_schema", "load", "shipped"]
