"""Arguments to the signature of the callable that takes them, before it is called."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from hyperopt_cli.recipe.limits import MAX_ISSUES
from hyperopt_cli.recipe.positions import Finding
from hyperopt_cli.recipe.wording import did_you_mean

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_KEYWORD = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def bind(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    filled: Iterable[str] = (),
    num_leading: int = 0,
    known: Sequence[str] = (),
) -> list[Finding]:
    """Returns what is wrong with calling `function` by these arguments: unknown ones, missing ones.

    Args:
        function: what will be called.
        arguments: its keyword arguments.
        filled: names that the builder fills in where the signature has them.
        num_leading: how many leading positional arguments the builder passes: a loss's outputs and targets.
        known: keys of the section that are no arguments, to be named among what is allowed.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature: nothing to check against
        return []
    leading = [parameter for parameter in parameters if parameter.kind in _POSITIONAL][:num_leading]
    rest = [parameter for parameter in parameters if parameter not in leading]
    findings = []

    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in rest):
        names = [*(parameter.name for parameter in rest if parameter.kind in _KEYWORD), *known]
        allowed = ", ".join(names) or "no arguments"
        for key in islice((key for key in arguments if key not in names), MAX_ISSUES):
            close = did_you_mean(key, names) or "."
            findings.append(Finding((key,), f"unknown argument{close} Allowed here: {allowed}", at_key=True))

    given = {*arguments, *filled}
    for parameter in rest:
        is_required = parameter.default is inspect.Parameter.empty and parameter.kind not in _VARIADIC
        if is_required and parameter.name not in given:
            findings.append(Finding((), f"the argument {parameter.name} is missing; add {parameter.name}: VALUE"))
    return findings
