"""Runs that run out of memory, under a limit of the kernel's: they go on with less, or say what would fit."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_cli import Forward, Problem, Reverse, Reversible
from hyperopt_cli.errors import NoMemoryError, Stopped
from hyperopt_cli.modes import Mode
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.outer.descent import Descent, descend
from hyperopt_cli.outer.outer_step import OuterStep
from hyperopt_cli.run_directory.signals import StopFlag
from hyperopt_cli.space import Hyperparameter, Knob, Schedule, Space, Transform
from tests.heard import Heard
from tests.instantiate.recipes import recipe_of
from tests.limited import needs_a_limit, within
from tests.test_resume import Watching, run, written

pytestmark = [needs_a_limit, pytest.mark.slow]

MIB, STEPS, NUM = 2**20, 24, 8


def of_size(num: int) -> Problem:
    """Heavy ball on `num` weights: a state has 8 bytes of each."""

    def loss(params: Any, hyper: Any, batch: Any = None) -> Tensor:
        away: Tensor = params["w"] - 0.1
        return away.square().sum() / 2

    return Problem({"w": torch.linspace(-1, 1, num)}, loss, loss, lambda t: None, SGD(momentum=0.9), STEPS)


def of_activations(num: int) -> Problem:
    """One weight, a rate and NUM penalties: a column has tangents of `num` numbers."""
    x = torch.linspace(-1, 1, num, dtype=torch.float64)

    def inner(params: Any, hyper: Any, batch: Any) -> Tensor:
        out: Tensor = torch.tanh(x * params["w"]).square().mean()
        return out + (hyper["l2"] * params["w"].square()).sum()

    def outer(params: Any, hyper: Any) -> Tensor:
        return (params["w"] - 0.3).square().sum()

    return Problem({"w": torch.ones(1, dtype=torch.float64)}, inner, outer, lambda t: None, SGD(lr=0.1), 3)


def descended(problem: Problem, space: Space, mode: Mode) -> tuple[list[OuterStep], list[str]]:
    heard = Heard()
    steps = list(descend(lambda seed: problem, space, Descent(steps=1), mode, callback=heard))
    said = [text.removeprefix("outer step 0: ") for text in heard.messages]
    return [step._replace(params={}, inner_loss=torch.empty(0)) for step in steps], said


def states(mode: Mode) -> tuple[list[OuterStep], list[str]]:
    """24 states of 4 MiB."""
    rate = Hyperparameter("lr", Knob(torch.tensor(0.01), Transform("log")), Schedule("constant", STEPS))
    return descended(of_size(2**19), Space((rate,)), mode)


def columns(mode: Mode) -> tuple[list[OuterStep], list[str]]:
    """8 columns of 8 MiB, each of them several times."""
    penalties = Knob(torch.full((NUM,), 0.01, dtype=torch.float64), Transform("log"))
    return descended(of_activations(2**20), Space((Hyperparameter("l2", penalties, Schedule("constant", 3)),)), mode)


def test_reverse_takes_half_of_its_states_until_they_fit_and_has_the_same_bits() -> None:
    mode = Reverse(compile=False)
    wanted, nothing = states(mode)
    got, said = within(80 * MIB, states, mode)
    assert nothing == []
    assert said[0].startswith("reverse:compile=False ran out of memory (can't allocate memory: you tried to allocate ")
    assert said[0].endswith("; reverse:slots=12,compile=False takes its place")
    for a, b in zip(wanted, got, strict=True):
        assert a.validation_loss == b.validation_loss
        assert torch.equal(a.hypergradient["lr"], b.hypergradient["lr"])


def test_forward_takes_half_of_its_columns_at_once_until_they_fit() -> None:
    mode = Forward(engine="folded", compile=False)
    wanted, nothing = columns(mode)
    got, said = within(300 * MIB, columns, mode)
    assert nothing == []
    assert said[0].endswith("; forward:engine=folded,columns_at_once=4,compile=False takes its place")
    for a, b in zip(wanted, got, strict=True):
        assert torch.allclose(a.hypergradient["l2"], b.hypergradient["l2"], rtol=1e-10, atol=0)


def test_reversible_cannot_do_with_less_and_says_what_others_need() -> None:
    with pytest.raises(NoMemoryError) as raised:
        within(80 * MIB, states, Reversible())
    message = str(raised.value)
    assert message.startswith("mode: reversible ran out of memory (can't allocate memory: ")
    assert "reverse:slots=2 " in message
    assert "a device with more memory" in message


def figures(folder: Path) -> dict[str, Any]:
    """What was measured; with fewer states more gradients are taken."""
    found = written(folder)
    for line in found["metrics"]:
        del line["num_gradients"]
    return found


def part(folder: Path, stop_at: int | None) -> list[str]:
    """A run of 24 states of 5 MiB, or the rest of it, up to that many steps there and back; what was said."""
    made = recipe_of(
        folder,
        model={"call": "mlp", "hidden": [4000]},
        mode={"name": "reverse", "compile": False},
        steps=STEPS,
        hyperparameters={"lr": 0.01, "momentum": 0.8},
        outer={"optimizer": "adam", "lr": 0.1, "steps": 1},
        checkpoint_every_s=1e9,
    )
    flag = StopFlag()

    def stop(num: int) -> None:
        if num == stop_at:
            flag.signal = "SIGTERM"

    watcher = Watching(stop)
    with suppress(Stopped):
        run(folder / "run", made, watcher, flag)
    return watcher.heard


def test_a_continued_run_begins_with_the_mode_that_had_fitted(tmp_path: Path) -> None:
    for name in ("disturbed", "undisturbed"):
        (tmp_path / name).mkdir()
    first = within(130 * MIB, part, tmp_path / "disturbed", 60)
    assert ": reverse:compile=False ran out of memory (can't allocate " in first[0]
    second = within(130 * MIB, part, tmp_path / "disturbed", None)
    assert second[0].startswith("continued from ")
    assert not any(": reverse:compile=False ran out of memory" in said for said in second)
    part(tmp_path / "undisturbed", None)
    assert figures(tmp_path / "disturbed" / "run") == figures(tmp_path / "undisturbed" / "run")
