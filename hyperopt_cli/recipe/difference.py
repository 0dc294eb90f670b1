"""What tells two resolved recipes apart, but for what may change from one part of a run to the next."""

import difflib

import yaml

from hyperopt_cli.recipe.document import dump
from hyperopt_cli.recipe.validate import validate

FREE = (("outer", "steps"), ("outer", "budget"), ("outer", "trials"), ("checkpoint_every_s",), ("shard",))


def difference(before: str, now: str) -> str:
    """Returns the lines that differ, as `diff -u` shows them, except for keys that may change between parts of a run.

    Args:
        before: a resolved recipe, as YAML text.
        now: another one.
    """
    old, new = (_fixed(text).splitlines() for text in (before, now))
    return "\n".join(difflib.unified_diff(old, new, "before", "now", n=1, lineterm=""))


def _fixed(resolved: str) -> str:
    content = yaml.safe_load(resolved)
    recipe, _ = validate(content)
    if recipe is not None:  # what an earlier version left out is filled in
        content = yaml.safe_load(recipe.to_yaml())
    for *parents, last in FREE:
        section = content
        for key in parents:
            section = section.get(key, {})
        section.pop(last, None)
    return dump(content)
