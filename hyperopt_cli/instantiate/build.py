"""`check` and `build`: a recipe's names looked up, bound and called."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from hyperopt_cli.data.batches import Data, Loading, load
from hyperopt_cli.data.seeds import derive
from hyperopt_cli.data.splits import as_splits
from hyperopt_cli.dynamics.precision import refusal
from hyperopt_cli.errors import HyperoptError, Issue, RecipeError, UsageError
from hyperopt_cli.instantiate.compatibility import incompatibility
from hyperopt_cli.instantiate.experiment import Experiment, seeded, trained
from hyperopt_cli.instantiate.foreseen import Facts, filled, foreseen, lacking
from hyperopt_cli.instantiate.hyperparameters import Names, make_space
from hyperopt_cli.instantiate.loss import Loss, make_loss
from hyperopt_cli.instantiate.mixing import mixes_examples
from hyperopt_cli.instantiate.models import UnfitStateError, prepared, read_state_dict
from hyperopt_cli.modes import MODES, Mode
from hyperopt_cli.optimizers.base import InnerOptimizer
from hyperopt_cli.outer.descent import Descent
from hyperopt_cli.problem import Precision
from hyperopt_cli.ranks.group import ALONE, Ranks
from hyperopt_cli.recipe.names import resolve
from hyperopt_cli.recipe.rest import Rest
from hyperopt_cli.recipe.schema import Dataset, Recipe
from hyperopt_cli.registry import OPTIMIZERS
from hyperopt_cli.registry import load as load_name


class Parts(NamedTuple):
    """The parts of an experiment that can be made without data."""

    optimizer: InnerOptimizer
    loss: Loss
    names: Names
    mode: Mode


def check(recipe: Recipe, allow_import: Sequence[str] = (), may_open: bool = False) -> None:
    """Checks a recipe's hyperparameters, optimizer, loss, model and mode without opening its data set.

    Args:
        recipe: validated by `recipe.load`.
        allow_import: as given to it.
        may_open: whether a data set of the user's own may be called after all, where the model needs to know of it.

    Raises:
        RecipeError: something is wrong; it lists everything, with positions.
    """
    if issues := _found(recipe, allow_import, may_open):
        raise recipe.located(RecipeError(issues))


def check_rest(rest: Rest, found: RecipeError, allow_import: Sequence[str] = ()) -> None:
    """Finds further mistakes in a recipe, in what is left without those that were found.

    Raises:
        RecipeError: there are new mistakes; it lists them with the old ones.
    """
    known = {issue.path for issue in found.issues}
    issues = _found(rest.recipe, allow_import, False, rest)
    if new := [issue for issue in issues if issue.path not in known and not rest.touches(issue.path)]:
        raise rest.recipe.located(RecipeError([*found.issues, *new]))


def _found(recipe: Recipe, allow: Sequence[str], may_open: bool, rest: Rest | None = None) -> list[Issue]:
    parts, issues = _parts(recipe, allow)
    model, lacks = foreseen(recipe, allow, may_open)
    issues += lacks
    if (weights := recipe.model.state_dict) is not None and not Path(weights).is_file():
        message = f"got {weights}, which is no file seen from {Path.cwd()}; give the path of a state_dict"
        issues.append(Issue(("model", "state_dict"), f"{message}, such as model.pt of a run"))
    if parts is None:
        return issues
    names = parts.names
    if rest is not None:
        names = names._replace(complete=not rest.own)
        if "optimizer" in rest.bare | rest.own:  # it may be any: allowed is what one of those that ship takes
            shipped = [load_name(entry.path) for entry in OPTIMIZERS.values()]
            arguments = dict.fromkeys(name for each in shipped for name in each.argument_names())
            names = names._replace(optimizer=tuple(arguments))
    return issues + make_space(recipe, names, parts.optimizer, model)[1]


def build(recipe: Recipe, allow_import: Sequence[str] = (), ranks: Ranks = ALONE, local_rank: int = 0) -> Experiment:
    """Opens the data set, makes the model once, and returns the experiment.

    Args:
        recipe: validated by `recipe.load`.
        allow_import: as given to it.
        ranks: the processes that share the work.
        local_rank: which of those on this machine this is; it takes the GPU of that number.

    Raises:
        RecipeError: what `check` finds, or what the model or the data set refuses, with positions.
        DatasetError: the data set is missing, damaged or too small.
        UsageError: the device is not there.
    """
    check(recipe, allow_import)
    parts, _ = _parts(recipe, allow_import)
    assert parts is not None
    device = pick_device(recipe.device, local_rank if ranks.size > 1 else None)
    if device.type == "cuda" and ranks.size > 1:
        torch.cuda.set_device(device)  # or every rank opens the first one too
    dtype = torch.float64 if recipe.precision == "float64" else torch.float32
    # of the inner gradient's products, where it is lower than that of the parameters
    lowered = cast(Precision, recipe.precision) if recipe.precision in get_args(Precision) else None
    if lowered is not None and (reason := refusal(lowered, device)) is not None:
        raise recipe.located(RecipeError([Issue(("precision",), f"got {lowered}; {reason}")]))
    loss = parts.loss.to(device, dtype)
    data = None if recipe.dataset is None else _data(recipe, recipe.dataset, loss, device, dtype, allow_import)
    make_model = _model_maker(recipe, data, device, dtype, allow_import)
    model = make_model(derive(recipe.seed, "init"))
    space, issues = make_space(recipe, parts.names, parts.optimizer, model)
    class_dim = getattr(model, "class_dim", 1)
    if not isinstance(class_dim, int) or isinstance(class_dim, Tensor):
        issues.append(Issue(("model", "call"), f"its class_dim is {class_dim!r}; must be 1, or another dimension"))
    if issues:
        raise recipe.located(RecipeError(issues))
    outer = recipe.outer.model_dump()
    experiment = Experiment(
        space=space,
        mode=parts.mode,
        descent=Descent(**{name: value for name, value in outer.items() if value is not None}),
        data=data,
        optimizer=parts.optimizer,
        steps=recipe.steps,
        loss=loss,
        loss_names=loss.tunable,
        make_model=make_model,
        device=device,
        seed=recipe.seed,
        precision=lowered,
        ranks=ranks,
        class_dim=class_dim,
    )
    least = experiment.least_price()  # before anything is written it says which package the method lacks
    budget = recipe.outer.budget
    if budget is not None and budget < least:
        what = f"got {budget:g}; the first point of {recipe.outer.optimizer} costs {least:g} plain training runs"
        raise recipe.located(RecipeError([Issue(("outer", "budget"), f"{what}; give at least that")]))
    if (issue := incompatibility(experiment)) is not None:
        raise recipe.located(RecipeError([issue]))
    return experiment


def check_dividing(experiment: Experiment, recipe: Recipe) -> None:
    """Checks that ranks may divide the run's columns or batches; all ranks call this at the same time.

    Raises:
        UsageError: they may not; a RecipeError, which is one, has the position.
    """
    experiment.mode.check_ranks(experiment.space.natural(experiment.space.initial()), experiment.ranks)
    if (issue := mixes_examples(experiment)) is not None:
        raise recipe.located(RecipeError([issue]))


def make_mode(recipe: Recipe) -> Mode:
    """Makes the mode that the recipe names.

    Raises:
        ValueError: its arguments do not fit.
    """
    return MODES[recipe.mode.name](**recipe.mode.arguments)


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """Returns the device of that name; `auto` is the GPU where there is one, and each process takes another.

    Raises:
        UsageError: the device is not there, or torch cannot use it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None and (count := torch.cuda.device_count()):
        name = f"cuda:{local_rank % count}"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device: got {name}; this machine has {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"device: got {name}, which this build of torch cannot use ({error}); use cpu or auto"
        ) from None
    return device


def _parts(recipe: Recipe, allow: Sequence[str]) -> tuple[Parts | None, list[Issue]]:
    issues: list[Issue] = []
    mode = optimizer = loss = None
    try:
        loss = make_loss(recipe, allow)
    except HyperoptError:
        raise
    except Exception as error:  # the constructor of a loss, on arguments that are not for it
        issues.append(Issue(("loss",), f"{recipe.loss.call} raised {type(error).__name__}: {error}"))
    try:
        mode = make_mode(recipe)
    except ValueError as error:
        issues.append(Issue(("mode",), str(error)))
    try:
        optimizer = _optimizer(recipe, allow)
        optimizer.slots({}, frozenset(recipe.hyperparameters))
    except (TypeError, ValueError) as error:
        issues.append(Issue(("optimizer",), str(error)))
    if mode is None or optimizer is None or loss is None:
        return None, issues
    betas = frozenset(optimizer.shares())
    names = Names(
        optimizer.argument_names(),
        loss.tunable,
        numbers=loss.numbers,
        loss_name=recipe.loss.call,
        shares=betas | loss.shares,
        betas=betas,
    )
    return Parts(optimizer, loss, names, mode), issues


def _optimizer(recipe: Recipe, allow: Sequence[str]) -> InnerOptimizer:
    written = recipe.optimizer
    if written.name is not None:
        made = load_name(OPTIMIZERS[written.name].path)(**written.arguments)
    else:
        made = resolve(str(written.call), "optimizer", allow)(**written.arguments)
    if not isinstance(made, InnerOptimizer):
        raise TypeError(
            f"{written.call} returned a {type(made).__name__}; an inner optimizer is a subclass of "
            "hyperopt_cli.optimizers.InnerOptimizer"
        )
    return made


def _data(
    recipe: Recipe, written: Dataset, loss: Loss, device: torch.device, dtype: torch.dtype, allow: Sequence[str]
) -> Data:
    function = resolve(written.call, "dataset", allow)
    try:
        returned = function(**written.arguments)
    except HyperoptError:
        raise
    except Exception as error:
        issue = Issue(("dataset",), f"{written.call} raised {type(error).__name__}: {error}")
        raise recipe.located(RecipeError([issue])) from error
    splits = as_splits(returned)
    loading = Loading(**{name: getattr(written, name) for name in Loading.__dataclass_fields__})
    weigh = loss.example_weights if loss.of_classes else None
    return load(splits, loading, seed=recipe.seed, device=device, dtype=dtype, weigh=weigh, summed=loss.summed)


def _model_maker(
    recipe: Recipe, data: Data | None, device: torch.device, dtype: torch.dtype, allow: Sequence[str]
) -> Callable[[int], nn.Module]:
    """seed -> the model, initialised from it or from the recipe's state_dict, with batch statistics."""
    function = resolve(recipe.model.call, "model", allow)
    facts = Facts() if data is None else Facts(data.input_shape, data.num_classes)
    arguments = filled(function, facts, recipe.model.arguments)
    if issues := lacking(function, facts, arguments):
        raise recipe.located(RecipeError(issues))

    def refused(error: UnfitStateError) -> RecipeError:
        return recipe.located(RecipeError([Issue(("model", "state_dict"), str(error))]))

    try:
        state = None if recipe.model.state_dict is None else read_state_dict(recipe.model.state_dict)
    except UnfitStateError as error:
        raise refused(error) from None

    def example() -> tuple[Tensor, ...]:
        return () if data is None else (data.train_chunks[0][0].inputs[:2],)

    def make(seed: int) -> nn.Module:
        with seeded(seed, device):
            try:
                model = function(**arguments)
                if isinstance(model, nn.Module):
                    model = prepared(model, device, dtype, example, state)
            except HyperoptError:
                raise
            except UnfitStateError as error:
                raise refused(UnfitStateError(f"{recipe.model.state_dict} {error}")) from None
            except Exception as error:
                issue = Issue(("model",), f"{recipe.model.call} raised {type(error).__name__}: {error}")
                raise recipe.located(RecipeError([issue])) from error
        if not isinstance(model, nn.Module):
            issue = Issue(
                ("model", "call"), f"{recipe.model.call} returned a {type(model).__name__}; must be nn.Module"
            )
            raise recipe.located(RecipeError([issue]))
        if not trained(model):
            issue = Issue(
                ("model", "call"), f"{recipe.model.call} has no parameter that is not frozen; nothing to train"
            )
            raise recipe.located(RecipeError([issue]))
        return model

    return make
