"""Whatever a recipe or an override says, it is a recipe that reads back equal, or an error in plain words.

    HYPEROPT_FUZZ=100000 python -m pytest tests/recipe/test_fuzz.py

draws that many cases, others each time; without it, the same ones are drawn wherever the tests run.
"""

import contextlib
import copy
import io
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer.main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperopt_cli.cli import main
from hyperopt_cli.errors import UsageError
from hyperopt_cli.recipe import Recipe, load
from hyperopt_cli.recipe.document import dump, parse
from tests.recipe.texts import GOOD

ASKED = int(os.environ.get("HYPEROPT_FUZZ", 0))
JARGON = re.compile(
    r"Traceback|NoneType|<class|object at 0x|pydantic|validation error|codec|defect"
    r"|\b(Type|Value|Key|Index|Attribute|Overflow|Assertion|Recursion|Memory|Unicode\w*)Error"
)

RICH = """\
model: {call: torch.nn.Linear, in_features: 64, out_features: 10}
loss: {call: torch.nn.HuberLoss, delta: 0.5}
dataset: {call: synthetic, num_examples: 100, batch_size: all, chunk_size: 5, crop: 0, workers: 0}
optimizer: {call: AdamW, eps: 1.0e-6}
steps: 8
hyperparameters:
  lr: {initial: [1, 2, 3], transform: log, bounds: [0.1, 4], schedule: {knots: 3}, per: layer}
  weight_decay: {value: 0.1, schedule: {one_cycle: {warmup: 0.3, final: {initial: 0.1, transform: log}}}}
  beta1: {initial: 0.5, schedule: {step_decay: {milestones: [0.5, 0.75], factor: {value: 0.1}}}}
  init_scale: 1
groups:
- {parameters: [norms, '*.bias'], weight_decay: 0}
outer: {optimizer: sgd, lr: 0.1, steps: 3, momentum: 0.9, clip_norm: 1, patience: 2, seed: fresh, replicas: 2}
mode: {name: reverse, slots: {device: 1, host: 2, disk: 3}, compile: false}
precision: float64
device: cpu
seed: 3
"""
BASES = [parse(text, "base").data for text in (GOOD, RICH)]

ODD_NUMBERS = [0, -1, 1, 2, 10**6, 10**6 + 1, 10**12, 2**63 - 1, -(2**63) + 1, 0.0, -0.0, 0.5, 1e-320, 1e308, 1e30]
ODD_NUMBERS += [float("inf"), float("-inf"), float("nan")]
ODD_TEXTS = [
    "",
    "~",
    "no",
    "1e-3",
    "0o17",
    "..",
    "/",
    "-",
    "<<",
    "=",
    "*",
    "all",
    "auto",
    "\x00",
    "\x1b[2J",
    "\u202e",
    "é",
]
ODD_TEXTS += ["cpu:9", "cuda:-1", "cuda:99999999999999999999", "meta", "linear", "per_step", "windows", "one_cycle"]
NAMES = ["mlp", "logistic", "os.system", "torch.load", "torch.nn.modules.os.system", "torch.nn.Module.apply"]
NAMES += ["torch.nn.functional.mse_loss", "torch.nn.Bilinear", "torch.nn.MSELoss", "torchvision.models.resnet18"]
NAMES += ["hyperopt_cli.cli.run.run", "torchvision.models.get_model", "InMemory", "InnerOptimizer", "SGD", "output"]
NAMES += [
    "torch.nn.CrossEntropyLoss",
    "torch.nn.functional.relu",
    "a." * 200 + "b",
    "torch.nn.\uff2cinear",
    "...",
    "Adam",
]
KEYS = ["steps", "call", "name", "initial", "value", "schedule", "windows", "optimizer", "x", "lr", "momentum", "mode"]

scalars = st.sampled_from([None, True, False, *ODD_NUMBERS, *ODD_TEXTS, *NAMES, *KEYS]) | st.text(max_size=5)
numbers = st.integers(-(2**70), 2**70) | st.floats()
values = st.recursive(
    scalars | numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS + ODD_TEXTS), inner, max_size=3),
    max_leaves=4,
)


def places(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every path below the root."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def holder_of(data: Any, path: tuple[str | int, ...]) -> Any:
    for key in path[:-1]:
        data = data[key]
    return data


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A good recipe's data with up to three changes."""
    data = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(list(places(data)) or [("x",)]))
        holder, key = holder_of(data, path), path[-1]
        old = holder[key] if isinstance(holder, list) else holder.get(key)
        change = draw(st.sampled_from(["replace", "replace", "replace", "drop", "rename", "wrap", "move"]))
        if change == "drop":
            del holder[key]
        elif change == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from([*KEYS, *ODD_TEXTS, f"{key}s", str(key)[1:]]))] = holder.pop(key)
        elif change == "wrap":
            holder[key] = draw(st.sampled_from([[old], {"call": old}, {"initial": old}, {"name": old}, [[old, old]]]))
        elif change == "move":
            data[draw(st.sampled_from(sorted(data) or ["x"]))] = copy.deepcopy(old)
        else:
            holder[key] = draw(values)
        if not data:
            break
    return data


@st.composite
def written_out(draw: st.DrawFn) -> bytes:
    """A changed recipe as YAML, sometimes with a mistake in the text as well."""
    text = dump(draw(mutated()))
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 6))
        text = text[:at] + draw(st.sampled_from(SNIPPETS) | st.text(max_size=3)) + text[at + cut :]
    return text.encode("utf-8", errors="surrogatepass")


SNIPPETS = [
    "&a ",
    "*a",
    "!!int ",
    "!x ",
    "? ",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "|\n",
    ">-\n  ",
    "'",
    '"',
    "#",
    "%YAML 9.9\n",
]
SNIPPETS += [
    "---\n",
    "...\n",
    "\t",
    "\r",
    "\x00",
    "\ufeff",
    "\u2028",
    "<<: ",
    "a: &a [*a]\n",
    '"\\ud800"',
    "\\x",
    "@",
    "`",
]
SNIPPETS += [
    "%TAG ! x\n",
    "!<",
    "!%ff",
    "9" * 5000,
    "1e999",
    "0x" + "f" * 50,
    "steps: 3\n",
    "model: {call: mlp}\n",
    "\n  ",
]

soup = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=3), max_size=15).map("".join)
raw = st.binary(max_size=60) | soup.map(lambda text: text.encode("utf-8", errors="surrogatepass"))
raw |= soup.map(lambda text: (GOOD + text).encode("utf-8", errors="surrogatepass"))
raw |= st.builds(GOOD.replace, st.sampled_from([":", ",", "\n", "0", "{", "lr"]), soup, st.just(1)).map(
    lambda text: text.encode("utf-8", errors="surrogatepass")
)
raw |= soup.map(lambda text: (GOOD + "#" + text.replace("\n", "")).encode("utf-8", errors="surrogatepass"))

GOOD_PLACES = [".".join(map(str, path)) for base in BASES for path in places(base)]
override_keys = st.sampled_from(GOOD_PLACES) | st.text(max_size=5)
override_keys |= st.builds(
    "{}.{}".format, st.sampled_from(GOOD_PLACES), st.sampled_from([*KEYS, "0", "-1", "9" * 30, ""])
)
override_keys |= st.integers(1, 3000).map(lambda length: ".".join("a" * length))
override_values = values.map(lambda value: dump(value).removesuffix("...\n")) | soup | st.text(max_size=5)
plain_overrides = st.sampled_from(["steps=3", "seed=7", "outer.steps=2", "precision=float64", "device=cpu"])
overrides = st.lists(
    st.builds("{}={}".format, override_keys, override_values) | st.text(max_size=8) | plain_overrides, max_size=2
)


def cases(number: int) -> Callable[[Any], Any]:
    """That many cases, always the same; with HYPEROPT_FUZZ so many that the four of them draw that number."""
    return settings(
        max_examples=-(-ASKED * number // 10_000) if ASKED else number,
        derandomize=not ASKED,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome_of(content: bytes, changes: list[str]) -> bool:
    """Whether it is a recipe; fails unless it is one that reads back equal, or an error in plain words."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(content)
        try:
            recipe = load(path, changes)
        except UsageError as error:
            check_message(str(error), text_of(content, changes))
            return False
        assert isinstance(recipe, Recipe)
        text = recipe.to_yaml()
        path.write_text(text, encoding="utf-8")
        again = load(path)
        assert again.to_yaml() == text
        assert repr(again) == repr(recipe)  # NaN is not equal to itself
        return True


def text_of(content: bytes, changes: list[str]) -> str:
    return content.decode(errors="ignore") + " ".join(changes)


def check_message(message: str, given: str) -> None:
    assert message.strip()
    ours = re.sub(r" raised \w+: .*", "", message)  # what torch says of an argument is quoted as it is
    words = [found[0] for found in JARGON.finditer(ours) if found[0] not in given]
    assert not words, message
    message.encode()
    assert all(line.isprintable() for line in message.split("\n")), message


commands = cache(typer.main.get_command)  # of an app they are the same at each call, of which they take half


def validated(content: bytes, changes: list[str]) -> int:
    """The exit code of `hyperopt validate`, called as `hyperopt` is."""
    out, err = io.StringIO(), io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(content)
        called = ["hyperopt", "validate", str(path), "--", *changes]
        with mock.patch("sys.argv", called), mock.patch("typer.main.get_command", commands):
            try:
                main()
                code: Any = 0
            except SystemExit as ended:
                code = ended.code or 0
        assert [entry.name for entry in Path(folder).iterdir()] == ["recipe.yaml"]
    assert code in (0, 2), err.getvalue()
    assert (code == 0) == (err.getvalue() == ""), err.getvalue()
    if code:
        check_message(err.getvalue(), text_of(content, changes))
    return int(code)


def fuzz(check: Callable[[bytes, list[str]], Any], contents: Any, changes: Any, number: int) -> None:
    outcomes: list[Any] = []

    @cases(number)
    @given(content=contents, chosen=changes)
    def run(content: bytes, chosen: list[str]) -> None:
        outcomes.append(check(content, chosen))

    run()
    counted = Counter(outcomes)
    assert len(counted) == 2, "nothing is valid, or everything"
    assert min(counted.values()) >= len(outcomes) / 250, "nearly nothing is valid, or nearly everything"


PARTS = {
    "texts": (outcome_of, raw, st.just([]), 2500),
    "recipes": (outcome_of, written_out(), st.just([]), 3500),
    "overrides": (outcome_of, st.sampled_from([GOOD.encode(), RICH.encode()]), overrides, 2500),
    "commands": (validated, written_out() | st.just(RICH.encode()), st.just([]) | overrides, 1500),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_few_cases(part: str) -> None:
    check, contents, changes, number = PARTS[part]
    fuzz(check, contents, changes, number // 25)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_ten_thousand_cases(part: str) -> None:
    fuzz(*PARTS[part])
