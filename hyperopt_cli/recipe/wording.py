"""The words of error messages: a value as it was given, a name that may have been meant."""

import difflib
import math
import reprlib
from collections.abc import Iterable


class _Shortener(reprlib.Repr):
    """Writes values in the words of YAML, and cuts them where they are long."""

    def repr_NoneType(self, value: None, level: int) -> str:
        del value, level
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:
        del level
        return "true" if value else "false"

    def repr_float(self, value: float, level: int) -> str:
        del level
        if math.isfinite(value):
            return repr(value)
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"


_shortener = _Shortener()
_shortener.maxstring = _shortener.maxother = _shortener.maxlong = 60


def shown(value: object) -> str:
    """Returns `value` for a message, shortened, in the words of YAML.

    >>> shown(None), shown([True, float("inf")]), shown("abc"), shown({"a": None})
    ('null', '[true, .inf]', "'abc'", "{'a': null}")
    """
    return _shortener.repr(value)


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Returns `; did you mean X?` for the closest of `allowed`, or an empty string.

    >>> did_you_mean("stpes", ["steps", "seed"])
    '; did you mean steps?'
    """
    by_lower = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(word[:100].lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""
