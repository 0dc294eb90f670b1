"""Plain data to a `Recipe`, with pydantic's messages in plain sentences."""

import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hyperopt_cli.recipe.fields import Invalid
from hyperopt_cli.recipe.json_schema import allowed_keys, expected
from hyperopt_cli.recipe.limits import MAX_ISSUES
from hyperopt_cli.recipe.positions import Finding, KeyPath
from hyperopt_cli.recipe.schema import Recipe
from hyperopt_cli.recipe.wording import did_you_mean, shown


def validate(data: Any) -> tuple[Recipe | None, list[Finding]]:
    """Returns the recipe that `data` describes, or None and everything that is wrong with it."""
    if not isinstance(data, dict):
        keys = ", ".join(allowed_keys(()))
        return None, [Finding((), f"got {shown(data)}; a recipe is a mapping with the keys {keys}")]
    try:
        return Recipe.model_validate(data), []
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        findings = [_finding(details) for details in mistakes[:MAX_ISSUES]]
        more = len(mistakes) - len(findings)
        return None, [*findings, *([Finding((), f"{more} more mistakes; mend the others first")] if more else ())]


def _finding(details: ErrorDetails) -> Finding:
    path: KeyPath = details["loc"]
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, Invalid):
        return Finding(path + cause.path, str(cause))
    if details["type"] == "extra_forbidden":
        allowed = allowed_keys(path[:-1])
        close = did_you_mean(str(path[-1]), allowed) or "."
        return Finding(path, f"unknown key{close} Allowed here: {', '.join(allowed) or 'none'}", at_key=True)
    if details["type"] == "missing":
        return Finding(path, f"missing; must be {expected(path)}")
    given, close = details["input"], ""
    if details["type"] == "literal_error" and isinstance(given, str):
        close = did_you_mean(given, re.findall(r"'([^']*)'", details["ctx"]["expected"]))
    return Finding(path, f"got {shown(given)}{close}; must be {expected(path)}")
