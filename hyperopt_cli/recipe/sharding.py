"""What of a recipe's work is divided among several processes."""

import math
from typing import Literal

from hyperopt_cli.errors import Issue, RecipeError
from hyperopt_cli.recipe.schema import Dataset, Recipe
from hyperopt_cli.registry import MODES, load

Shard = Literal["columns", "batch", "replicas"]


def shard_of(recipe: Recipe, size: int) -> Shard:
    """Returns what the processes divide among themselves: what the recipe says, or what fits for `auto`.

    `auto` takes replicas if there are enough, else the columns of forward mode, else batches. It imports the mode.

    Args:
        recipe: the recipe, validated.
        size: how many processes there are.

    Raises:
        RecipeError: the work cannot be divided so; the error has the position.
    """
    shard, replicas, mode = recipe.shard, recipe.outer.replicas, recipe.mode.name
    has_columns = load(MODES[mode].path).has_columns
    if shard == "auto":
        shard = "replicas" if replicas >= size else "columns" if has_columns else "batch"
    reason, dataset = None, recipe.dataset
    if shard == "replicas" and replicas < size:
        reason = f"replicas: {size} ranks for {replicas} (outer.replicas); each needs one"
    elif shard == "columns" and not has_columns:
        reason = f"columns: only mode: forward has columns, not {mode}; set mode: forward or shard: batch"
    elif shard == "batch" and dataset is None:
        reason = "batch: there is no data set to take batches of"
    elif shard == "batch" and dataset is not None and _num_parts(dataset) < size:
        reason = f"batch: {_num_parts(dataset)} examples or chunks of a batch for {size} ranks; each needs one"
    elif shard != "replicas" and recipe.mode.arguments.get("compile") is True:
        reason = f"{shard}: ranks that take a run together do not compile its steps; leave mode.compile out"
    if reason is not None and size > 1:
        raise recipe.located(RecipeError([Issue(("shard",), reason)]))
    return shard


def _num_parts(dataset: Dataset) -> float:
    """Returns into how many parts a batch can be divided; infinitely many where it is the whole data set."""
    if not isinstance(dataset.batch_size, int):
        return math.inf
    return math.ceil(dataset.batch_size / (dataset.chunk_size or 1))
