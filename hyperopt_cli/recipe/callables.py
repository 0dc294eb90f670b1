"""Every callable that a recipe names is looked up, and its arguments are bound, before anything runs."""

from collections.abc import Callable, Iterable, Sequence
from inspect import isclass
from typing import Any

from hyperopt_cli.errors import UsageError
from hyperopt_cli.recipe.binding import bind
from hyperopt_cli.recipe.names import NoLeaveError, device_problem, resolve
from hyperopt_cli.recipe.permitted import Kind
from hyperopt_cli.recipe.positions import Finding, KeyPath
from hyperopt_cli.recipe.schema import Dataset
from hyperopt_cli.registry import LOSSES, OPTIMIZERS

FILLED = ("input_shape", "num_classes")  # the builder knows them from the data set


def check_callables(data: dict[str, Any], allow: Sequence[str]) -> list[Finding]:
    """Returns what is wrong with the callables of a recipe's plain data, as far as the data goes."""
    sections = {name: section for name, section in data.items() if isinstance(section, dict)}
    return [
        *_check_model(sections.get("model", {}), allow),
        *_check_dataset(sections.get("dataset", {}), allow),
        *(_check_loss(sections["loss"], _tuned_names(sections), allow) if "loss" in sections else ()),
        *_check_optimizer(sections.get("optimizer", {}), _tuned_names(sections), allow),
        *_check_device(data.get("device")),
    ]


def _tuned_names(sections: dict[str, Any]) -> list[str]:
    return list(sections.get("hyperparameters", {}))


def _check_model(section: dict[str, Any], allow: Sequence[str]) -> list[Finding]:
    return _check("model", section, allow, lambda function: bind(function, _without(section, "call"), FILLED))


def _check_dataset(section: dict[str, Any], allow: Sequence[str]) -> list[Finding]:
    arguments = _without(section, *Dataset.model_fields)
    loading = [name for name in Dataset.model_fields if name != "call"]
    return _check("dataset", section, allow, lambda function: bind(function, arguments, known=loading))


def _check_loss(section: dict[str, Any], tuned: list[str], allow: Sequence[str]) -> list[Finding]:
    arguments = _without(section, "call")
    section = {"call": next(iter(LOSSES))} | section
    return _check("loss", section, allow, lambda function: _bind_loss(function, arguments, tuned))


def _bind_loss(function: Callable[..., Any], arguments: dict[str, Any], tuned: list[str]) -> list[Finding]:
    if isclass(function):
        return bind(function, arguments)
    return bind(function, arguments, tuned, num_leading=2)


def _check_optimizer(section: dict[str, Any], tuned: list[str], allow: Sequence[str]) -> list[Finding]:
    name = section.get("name")
    if isinstance(name, str) and name in OPTIMIZERS and section.get("call") is None:
        section = section | {"call": OPTIMIZERS[name].path.partition(":")[2]}
    arguments = _without(section, "call", "name")
    return _check("optimizer", section, allow, lambda function: bind(function, arguments, tuned))


def _check_device(name: object) -> list[Finding]:
    problem = device_problem(name) if isinstance(name, str) and name not in ("", "auto") else ""
    return [Finding(("device",), problem)] if problem else []


def _check(
    kind: Kind, section: dict[str, Any], allow: Sequence[str], bound: Callable[[Callable[..., Any]], Iterable[Finding]]
) -> list[Finding]:
    name = section.get("call")
    if not isinstance(name, str) or not name:
        return []
    path: KeyPath = (kind,)
    try:
        function = resolve(name, kind, allow)
    except UsageError as error:
        pattern = error.pattern if isinstance(error, NoLeaveError) else ""
        return [Finding((*path, "call"), str(error), pattern=pattern)]
    return [Finding(path + finding.path, finding.message, finding.at_key) for finding in bound(function)]


def _without(section: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in keys}
