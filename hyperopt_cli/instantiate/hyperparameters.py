"""The hyperparameters of a recipe -> a `Space`, and everything that is wrong with them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hyperopt_cli.errors import Issue
from hyperopt_cli.instantiate.experiment import trained
from hyperopt_cli.optimizers.base import InnerOptimizer
from hyperopt_cli.recipe.entries import Entry
from hyperopt_cli.recipe.entries import Hyperparameter as Written
from hyperopt_cli.recipe.schema import Recipe
from hyperopt_cli.recipe.wording import did_you_mean
from hyperopt_cli.space import Grouping, Hyperparameter, Knob, Schedule, Space, Transform, select
from hyperopt_cli.space.schedules import PARAMETERS

Path = tuple[str | int, ...]


class Names(NamedTuple):
    """What a hyperparameter may be called: arguments of the optimizer and of the loss, `l2`, `init_scale`.

    Attributes:
        optimizer: the arguments of the optimizer.
        loss: the arguments of the loss that take a tensor.
        numbers: those that take a number alone, which is not differentiated in.
        loss_name: how the recipe calls the loss.
        shares: those that are tuned by their logit unless the recipe says otherwise; the others by their logarithm.
        betas: those of the optimizer among them, whose distance from 1 is what counts.
        complete: whether these are all; if not, only what looks like a slip of the pen is refused.
    """

    optimizer: tuple[str, ...]
    loss: frozenset[str]
    complete: bool = True
    numbers: frozenset[str] = frozenset()
    loss_name: str = "the loss"
    shares: frozenset[str] = frozenset()
    betas: frozenset[str] = frozenset()

    def known(self) -> list[str]:
        """Returns all names that are known to be right."""
        return [*self.optimizer, *sorted(self.loss), "l2", "init_scale"]

    def grouped(self, name: str) -> bool:
        """Returns whether groups of parameters may have values of their own."""
        return name in self.optimizer or name in ("l2", "init_scale") or self.may_be(name)

    def may_be(self, name: str) -> bool:
        """Returns whether a name that is not known may be right all the same."""
        return not self.complete and not did_you_mean(name, self.known())


def make_space(
    recipe: Recipe, names: Names, optimizer: InnerOptimizer, model: nn.Module | None
) -> tuple[Space, list[Issue]]:
    """Returns the space of `recipe`, and what is wrong with it.

    Args:
        recipe: the recipe as it was written.
        names: what a hyperparameter may be called.
        optimizer: whose defaults stand for what only a group fixes.
        model: whose parameters are grouped; None: everything but the groups is checked.
    """
    issues: list[Issue] = []

    fixed: dict[str, dict[str, float]] = {}  # by hyperparameter and parameter: a later group wins
    for i, group in enumerate(recipe.groups):
        chosen: list[str] = []
        try:
            chosen = select(model, group.parameters) if model is not None else []
        except ValueError as error:
            issues.append(Issue(("groups", i, "parameters"), str(error)))
        for name, number in group.fixed.items():
            if names.grouped(name):
                fixed.setdefault(name, {}).update(dict.fromkeys(chosen, number))
            else:
                allowed = [*names.optimizer, "l2", "init_scale"]
                issues.append(Issue(("groups", i, name), _unknown(name, allowed), at_key=True))

    made = []
    for name, written in recipe.hyperparameters.items():
        path = ("hyperparameters", name)
        issues += _misnamed(name, written, recipe, names, path)
        made.append(_hyperparameter(name, written, names, recipe.steps, fixed.pop(name, {}), model, path, issues))

    for name, numbers in fixed.items():
        start = torch.tensor(float(getattr(optimizer, name, 0.0)), dtype=torch.float64)
        grouping = Grouping.per("model", _free(model, numbers))
        schedule = Schedule("constant", recipe.steps)
        made.append(Hyperparameter(name, Knob(start, Transform("identity"), False), schedule, {}, grouping, numbers))
    return Space(tuple(made)), issues


def _misnamed(name: str, written: Written, recipe: Recipe, names: Names, path: Path) -> list[Issue]:
    if name not in names.known() and name in names.numbers:
        message = (
            f"{names.loss_name} takes {name} as a plain value, in which nothing is differentiated; fix it under loss, "
            "or write the loss as a function of your own that computes with a tensor"
        )
        return [Issue(path, message, at_key=True)]
    if name not in names.known() and names.may_be(name):
        return []
    if name not in names.known():
        return [Issue(path, _unknown(name, names.known()), at_key=True)]
    found = []
    if name in recipe.optimizer.arguments:
        found.append(
            Issue(path, f"fixed under optimizer ({recipe.optimizer.arguments[name]}) too; keep one of the two")
        )
    if name in recipe.loss.arguments:
        found.append(Issue(path, f"fixed under loss ({recipe.loss.arguments[name]}) too; keep one of the two"))
    if written.per != "model" and not names.grouped(name):
        found.append(Issue((*path, "per"), f"got {written.per}; the loss reads {name} as one number: per: model"))
    if name == "init_scale" and written.schedule.kind != "constant":
        kind = written.schedule.kind
        found.append(Issue((*path, "schedule"), f"got {kind}; init_scale is read once, before the first step"))
    return found


def _unknown(name: str, known: list[str]) -> str:
    return f"unknown hyperparameter{did_you_mean(name, known) or '.'} Allowed here: {', '.join(known)}"


def _hyperparameter(
    name: str,
    written: Written,
    names: Names,
    steps: int,
    fixed: dict[str, float],
    model: nn.Module | None,
    path: Path,
    issues: list[Issue],
) -> Hyperparameter:
    kind = written.schedule.kind
    try:
        schedule = Schedule(kind, steps, written.schedule.count)
        if written.schedule.milestones:
            schedule = replace(schedule, milestones=written.schedule.milestones)
    except ValueError as error:
        issues.append(Issue((*path, "schedule", kind), str(error)))
        schedule = Schedule("constant", steps)

    grouping = Grouping.per(written.per, _free(model, fixed)) if model is not None else Grouping(("",), {})
    shape = [size for size in (schedule.size, grouping.size) if size is not None]
    transform = _transform(written, "logit" if name in names.shares else "log", None, path, issues)
    if fixed and not grouping.members:
        issues.append(Issue(path, "groups fix it for every parameter; nothing is left to tune"))
    # a list whose schedule was refused has no windows to go to: the first number stands for it
    starts = written.starts if schedule.size is not None else written.starts[:1]
    knob = Knob(_start(starts, shape), transform, written.tuned, written.step, name in names.betas)
    _check_start(written, transform, path, issues)

    parameters = {}
    for key, otherwise in PARAMETERS[kind].items():
        given = written.schedule.parameters.get(key)
        if given is None:
            start = torch.tensor(otherwise.initial, dtype=torch.float64)
            parameters[key] = Knob(start, otherwise.transform, tuned=False)
            continue
        at = (*path, "schedule", kind, key)
        shape_transform = _transform(given, otherwise.transform.name, otherwise.transform.bounds, at, issues)
        _check_start(given, shape_transform, at, issues)
        parameters[key] = Knob(_start(given.starts, []), shape_transform, given.tuned, given.step)
    return Hyperparameter(name, knob, schedule, parameters, grouping, fixed, in_step=name != "init_scale")


def _free(model: nn.Module | None, fixed: Mapping[str, float]) -> list[str]:
    return [] if model is None else [name for name in trained(model) if name not in fixed]


def _transform(
    written: Entry, name: str, bounds: tuple[float, float] | None, path: Path, issues: list[Issue]
) -> Transform:
    if written.transform is not None and written.transform != name:
        name, bounds = written.transform, None
    if written.bounds is not None:
        bounds = (float(written.bounds[0]), float(written.bounds[1]))
    try:
        return Transform(name, bounds)
    except ValueError as error:
        issues.append(Issue((*path, "bounds"), str(error)))
        return Transform(name)


def _check_start(written: Entry, transform: Transform, path: Path, issues: list[Issue]) -> None:
    if not written.tuned:
        return
    for i, start in enumerate(written.starts):
        refusal = transform.refusal(float(start))
        if refusal is not None:
            place: Path = ("initial", i) if isinstance(written.initial, tuple) else ("initial",)
            issues.append(Issue((*path, *place), refusal))


def _start(starts: tuple[float, ...], shape: list[int]) -> Tensor:
    """Returns the start values, spread over windows (the first dimension) and groups."""
    values = torch.tensor(starts, dtype=torch.float64)
    if len(values) == 1:
        return values[0].expand(shape).clone()
    return values.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()
