"""Which steps are of one kind, and which are examined."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hyperopt_cli.checks.watch import FEW_KINDS, FIRST, MOST_KINDS, Watch
from hyperopt_cli.dynamics.kinds import LEAVING, METHODS, Leaving, kind_of
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.problem import Problem
from tests.checks.training import F64

W = torch.tensor([0.5, -0.25, 1.0], dtype=F64)


def kind(function: Callable[[Tensor], Any]) -> Any:
    """Of the same loss, with `function` of the weights beside it."""
    w = W.clone().requires_grad_()
    with torch.enable_grad(), Leaving() as leaving:
        function(w)
        value = w.square().sum()
    leaving.mark(value)
    return kind_of(value)


def without_gradient(w: Tensor) -> None:
    with torch.no_grad():
        torch.tanh(w)


# what leaves no trace in the graph of the loss, by the name under which it is counted
UNSEEN: dict[str, Callable[[Tensor], Any]] = {
    "detach": lambda w: w.detach(),
    "detach_": lambda w: (w * 1).detach_(),
    "register_hook": lambda w: w.register_hook(lambda g: 2 * g),
    "requires_grad_": lambda w: torch.zeros(1).requires_grad_(),
    "new_tensor": lambda w: w.new_tensor([1.0]),
    "item": lambda w: w.sum().item(),
    "tolist": lambda w: w.tolist(),
    "numpy": lambda w: w.detach().numpy(),
    "__array__": lambda w: np.asarray(w.detach()),
    "__float__": lambda w: float(w.sum()),
    "__int__": lambda w: int(w.sum()),
    "__bool__": lambda w: bool(w.sum() > 0),
    "__complex__": lambda w: complex(w.sum()),
    "__index__": lambda w: range(int.__index__(w.argmax().__index__())),
    "__format__": lambda w: f"{w.sum():.3f}",
    "__dlpack__": lambda w: torch.from_dlpack(w.detach()),
    "data": lambda w: w.data,
    "grad_fn": lambda w: w.square().grad_fn,
    "tensor": lambda w: torch.tensor(1.0),
    "grad": lambda w: torch.autograd.grad(w.square().sum(), w),
    "set_grad_enabled": without_gradient,
    "tanh": without_gradient,  # inside of it every function counts
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad", "ignore:To copy construct")
@pytest.mark.parametrize("name", UNSEEN)
def test_what_leaves_no_trace_in_the_graph_is_of_the_kind(name: str) -> None:
    found = kind(UNSEEN[name])
    assert found != kind(lambda w: None)
    assert any(edge[0] == name for edge, _ in found)


def test_every_name_that_is_counted_is_in_the_table() -> None:
    assert {*METHODS, *LEAVING.values()} <= {*UNSEEN}


def test_two_reads_are_another_kind_than_one() -> None:
    assert kind(lambda w: w.sum().item()) != kind(lambda w: [w.sum().item() for _ in range(2)])
    assert kind(lambda w: w.sum().item()) == kind(lambda w: w.prod().item())


def kinds(*names: str) -> set[Any]:
    """Each of one edge."""
    return {frozenset({((name, None), 1)}) for name in names}


def problem(steps: int, loss: Any = None) -> Problem:
    value = loss or (lambda p, *rest: p["w"].square().sum())
    return Problem({"w": W}, value, lambda p, h: p["w"].sum(), lambda t: None, SGD(), steps)


def begun(steps: int = 50) -> Watch:
    watch = Watch()
    assert watch.begin(problem(steps))
    return watch


def test_in_the_first_run_a_few_later_steps_are_drawn_in_later_ones_one() -> None:
    watch, run = Watch(), problem(50)
    drawn = []
    for _ in range(4):
        watch.begin(run)
        drawn.append([t for t in range(50) if watch.taken(t, set()) is not None])
    assert [len(each) for each in drawn] == [FIRST, 1, 1, 1]
    assert all(t > 0 for each in drawn for t in each)
    assert len({t for each in drawn for t in each}) > FIRST  # others each time


def test_without_time_no_step_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, run = Watch(), problem(50)
    watch.begin(run)
    monkeypatch.setattr(Watch, "affords", property(lambda self: False))
    watch.begin(run)
    assert all(watch.taken(t, set()) is None for t in range(50))


def test_a_run_that_is_not_examined_is_not() -> None:
    watch = Watch()
    watch.begin(problem(50), examines=False)
    watch.met = kinds("a")
    assert all(watch.taken(t, set()) is None for t in range(50))


def test_another_loss_is_another_problem() -> None:
    watch = begun()
    assert not watch.begin(problem(60))
    assert watch.begin(problem(50, lambda p, *rest: p["w"].sum() ** 2))


def test_a_kind_that_is_not_known_is_examined_once() -> None:
    watch = begun(1)
    watch.met = kinds("a", "b")
    assert watch.taken(0, kinds("a")) == kinds("b")
    watch.met = kinds("a")
    assert watch.taken(0, kinds("a", "b")) is None
    assert watch.taken(0, kinds("a", "b"), due=True) == set()


@pytest.mark.parametrize("affords", [True, False])
def test_of_many_kinds_those_with_an_edge_that_was_not_met_are_examined(
    affords: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loops of many lengths have the same edges in other numbers."""
    monkeypatch.setattr(Watch, "affords", property(lambda self: affords))
    watch = begun()
    again = {frozenset({(("0", None), 2)})}  # an edge that is known, twice
    for num, examined in ((FEW_KINDS - 1, True), (FEW_KINDS, affords), (MOST_KINDS - 1, affords), (MOST_KINDS, False)):
        known = kinds(*map(str, range(num)))
        assert watch.worth(again, known) == (again if examined else set())
        assert watch.worth(kinds("another"), known) == kinds("another")
