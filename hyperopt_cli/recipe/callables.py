"""Every callable that a recipe names is looked up, and its arguments are bound, before anything runs."""

from collections.abc import Sequence
from inspect import isclass
from typing import Any

from hyperopt_cli.errors import UsageError
from hyperopt_cli.recipe.binding import bind
from hyperopt_cli.recipe.names import NoLeaveError, device_problem, resolve
from hyperopt_cli.recipe.permitted import Kind
from hyperopt_cli.recipe.positions import Finding, KeyPath
from hyperopt_cli.recipe.schema import Dataset, Model
from hyperopt_cli.registry import LOSSES, OPTIMIZERS

FILLED = ("input_shape", "num_classes")  # the builder knows them from the data set


def check_callables(data: dict[str, Any], allow: Sequence[str]) -> list[Finding]:
    """Returns what is wrong with the callables of a recipe's plain data, as far as the data goes."""
    sections = {name: section for name, section in data.items() if isinstance(section, dict)}
    tuned = list(sections.get("hyperparameters", {}))
    keys = tuple(Model.model_fields)
    findings = _check("model", sections.get("model", {}), keys, allow, filled=FILLED, known=["state_dict"])

    keys = tuple(Dataset.model_fields)
    loading = [name for name in keys if name != "call"]
    findings += _check("dataset", sections.get("dataset", {}), keys, allow, known=loading)

    if "loss" in sections:
        loss = {"call": next(iter(LOSSES))} | sections["loss"]
        findings += _check("loss", loss, ("call",), allow, filled=tuned)

    optimizer = sections.get("optimizer", {})
    name = optimizer.get("name")
    if isinstance(name, str) and name in OPTIMIZERS and optimizer.get("call") is None:
        optimizer = optimizer | {"call": OPTIMIZERS[name].path.partition(":")[2]}
    findings += _check("optimizer", optimizer, ("call", "name"), allow, filled=tuned)

    device = data.get("device")
    problem = device_problem(device) if isinstance(device, str) and device not in ("", "auto") else ""
    return [*findings, Finding(("device",), problem)] if problem else findings


def _check(
    kind: Kind,
    section: dict[str, Any],
    keys: Sequence[str],
    allow: Sequence[str],
    filled: Sequence[str] = (),
    known: Sequence[str] = (),
) -> list[Finding]:
    """Returns what is wrong with the callable of a section, whose arguments are all but `keys`; the rest as `bind`."""
    name = section.get("call")
    if not isinstance(name, str) or not name:
        return []
    path: KeyPath = (kind,)
    try:
        function = resolve(name, kind, allow)
    except UsageError as error:
        pattern = error.pattern if isinstance(error, NoLeaveError) else ""
        return [Finding((*path, "call"), str(error), pattern=pattern)]
    arguments = {key: value for key, value in section.items() if key not in keys}
    if kind != "loss":
        found = bind(function, arguments, filled, known=known)
    elif isclass(function):  # outputs, targets and what is tuned go to what it makes
        found = bind(function, arguments)
    else:
        found = bind(function, arguments, filled, num_leading=2)
    return [Finding(path + finding.path, finding.message, finding.at_key) for finding in found]
