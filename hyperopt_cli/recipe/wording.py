"""The words of error messages: a value as it was given, a name that may have been meant."""

import difflib
import reprlib
from collections.abc import Iterable

_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = _shortener.maxlong = 60


def shown(value: object) -> str:
    """Returns `value` for a message, shortened, in the words of YAML.

    >>> shown(None), shown(True), shown("abc"), shown({"a": 1})
    ('null', 'true', "'abc'", "{'a': 1}")
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _shortener.repr(value)


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Returns `; did you mean X?` for the closest of `allowed`, or an empty string.

    >>> did_you_mean("stpes", ["steps", "seed"])
    '; did you mean steps?'
    """
    by_lower = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(word[:100].lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""
