"""The grid of `--array seed=0..9 --array mode=forward,reverse`: one element for each combination of values."""

import itertools
import math
import re
from typing import NamedTuple

from hyperopt_cli.errors import UsageError

MAX_ELEMENTS = 10_000
MAX_NAME_BYTES = 200  # file systems end at 255, and a suffix follows
ONLY = "run"  # the name of a job's element where there is just one

_AXIS = re.compile(r"([A-Za-z_][\w-]*(?:\.[\w-]+)*)=(.*)", re.DOTALL)
_RANGE = re.compile(r"([+-]?\d{1,15})\.\.([+-]?\d{1,15})")
_EXAMPLE = "give KEY=A..B (both included) or KEY=VALUE,VALUE, such as --array seed=0..9 --array mode=forward,reverse"


class Element(NamedTuple):
    """One run of a job.

    Attributes:
        task: its place in the array, from 0; Slurm's array task.
        name: what varies, fit for the name of a folder: `seed=3,mode=reverse`.
        overrides: the same, each as `KEY=VALUE`.
    """

    task: int
    name: str
    overrides: tuple[str, ...] = ()


class _Axis(NamedTuple):
    key: str
    values: tuple[str, ...]


def elements(*texts: str) -> tuple[Element, ...]:
    """Returns the elements of a job with these `--array`: all combinations of all keys, the last varying fastest.

    It makes no difference whether several keys are given in one text or in several. Without a text there is one
    element without overrides.

    >>> [element.name for element in elements("seed=0..1", "mode=forward,reverse")]
    ['seed=0,mode=forward', 'seed=0,mode=reverse', 'seed=1,mode=forward', 'seed=1,mode=reverse']

    Raises:
        UsageError: a text is no such grid, names a key twice, or there would be more than `MAX_ELEMENTS` elements.
    """
    if not texts:
        return (Element(0, ONLY),)
    axes = [axis for text in texts for axis in _axes(text)]
    keys = [axis.key for axis in axes]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise UsageError(f"--array: got {twice[0]} twice; give all of its values at once: {twice[0]}=VALUE,VALUE")
    num = math.prod(len(axis.values) for axis in axes)
    if num > MAX_ELEMENTS:
        raise UsageError(f"--array: got {num} elements; at most {MAX_ELEMENTS} are allowed: submit it in parts")
    grid = list(itertools.product(*([f"{key}={value}" for value in values] for key, values in axes)))

    # A name is that of a folder; they are numbered where they would be too long, or alike.
    names = [re.sub(r"[^\w.,=+-]+", "-", ",".join(given)) for given in grid]
    short = all(len(name.encode()) <= MAX_NAME_BYTES for name in names)
    # Some file systems take a and A for the same.
    if not short or len({name.casefold() for name in names}) < len(names):
        names = [f"{n:0{len(str(len(names) - 1))}}-{name[:40]}" for n, name in enumerate(names)]
    return tuple(Element(n, name, given) for n, (name, given) in enumerate(zip(names, grid, strict=True)))


def _axes(text: str) -> list[_Axis]:
    """Returns the keys of a text with their values; a part without a key is one more value of the key before it."""
    parts: list[tuple[str, list[str]]] = []
    for part in _split(text):
        match = _AXIS.fullmatch(part)
        if match:
            parts.append((match[1], [match[2].strip()]))
        elif parts:
            parts[-1][1].append(part)
        else:
            raise UsageError(f"--array: got {text!r}; {_EXAMPLE}")

    axes = []
    for key, given in parts:
        values: list[str] = []
        for value in given:
            if not value:
                raise UsageError(f"--array: got an empty value of {key}; {_EXAMPLE}")
            values += _range(key, value) if ".." in value else [value]
        if len(set(values)) < len(values):
            twice = min(value for value in values if values.count(value) > 1)
            raise UsageError(f"--array: got {key}={twice} twice; the same run twice tells nothing: leave one out")
        axes.append(_Axis(key, tuple(values)))
    return axes


def _split(text: str) -> list[str]:
    """Returns the parts of the text between commas, except for commas within brackets, braces or quotes."""
    parts, depth, quote, begin = [], 0, "", 0
    for n, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[begin:n].strip())
            begin = n + 1
    if quote or depth:
        raise UsageError(f"--array: got {text!r}, with a bracket or a quote that is not closed; {_EXAMPLE}")
    return [*parts, text[begin:].strip()]


def _range(key: str, value: str) -> list[str]:
    match = _RANGE.fullmatch(value)
    if match is None:
        if re.fullmatch(r"[\w.+-]*", value):
            raise UsageError(f"--array: got {key}={value}; a range is two integers, such as {key}=0..9")
        return [value]
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise UsageError(f"--array: got {key}={value}, which is empty; did you mean {key}={last}..{first}?")
    if last - first >= MAX_ELEMENTS:
        raise UsageError(f"--array: {key}={value} has more than {MAX_ELEMENTS} values: submit it in parts")
    return [str(number) for number in range(first, last + 1)]
