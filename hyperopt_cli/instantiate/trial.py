"""One inner step of a recipe, taken where it is cheap to fail: before a job waits in a queue."""

from collections.abc import Sequence

import torch

from hyperopt_cli.dynamics.derivatives import gradient
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.errors import HyperoptError, NonFiniteError, UsageError
from hyperopt_cli.instantiate.build import build
from hyperopt_cli.recipe.schema import Recipe

# one inner step is the same whatever these say
FREE = {"seed", "steps", "outer", "mode", "device", "shard", "checkpoint_every_s"}


def distinct(recipes: Sequence[Recipe]) -> list[int]:
    """Returns the indices of the recipes to try: the first of all that take the same inner step but for the seed."""
    kinds: dict[str, int] = {}
    for n, recipe in enumerate(recipes):
        kinds.setdefault(repr(recipe.model_dump(exclude=FREE)), n)
    return list(kinds.values())


def try_step(recipe: Recipe, allow_import: Sequence[str] = ()) -> None:
    """Opens the data set, makes the model and takes the first inner step, on the CPU and in full precision.

    Args:
        recipe: validated by `recipe.load`.
        allow_import: as given to it.

    Raises:
        HyperoptError: the error with which a run would end in its first step.
    """
    precision = "float64" if recipe.precision == "float64" else "float32"  # the lower ones need not be here
    experiment = build(recipe.model_copy(update={"device": "cpu", "precision": precision}), allow_import)
    try:
        problem = experiment.problem(experiment.descent.seeds(experiment.seed, 0)[0])
        hyper = experiment.space.natural(experiment.space.initial())
        dynamics = Dynamics.of(problem, hyper)
        at, start = dynamics.hyper_at(hyper, 0), dynamics.start
        point = dynamics.layout.unpack(dynamics.point(start, at, 0))
        loss, grads = gradient(dynamics.loss_at(0), point, at)
        after = dynamics.update(start, dynamics.layout.pack(grads), at, 0)
    except HyperoptError:
        raise
    except Exception as error:  # the backward of a user's loss, a rule of the user's own
        raise UsageError(f"the first inner step raised {type(error).__name__}: {error}") from error
    if not torch.isfinite(loss):
        raise NonFiniteError(0, "the training loss")
    if not all(torch.isfinite(w).all() for w in after.params.values()):
        raise NonFiniteError(1, "w")
