"""A loss that takes for a constant what it kept of other steps, or of lambda, is refused, wherever Python keeps it."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hyperopt_cli import Forward, Problem, Reverse, Reversible, hypergradient
from hyperopt_cli.errors import NonDeterministicError, UsageError
from hyperopt_cli.modes.checks.remembered import Place
from hyperopt_cli.optimizers import SGD
from tests.modes.checks.test_cut_gradients import START, batch, fit, hidden, outer
from tests.modes.checks.training import F64, HYPER, error, truth

MODES: dict[str, Callable[[], Any]] = {"forward": Forward, "reverse": Reverse, "reversible": Reversible}
STEPS, SET, USED = 9, 4, 6  # kept at step 4, used from step 6 on
Loss = Callable[[Any, Any, tuple[int, slice]], Tensor]
LATE: Any = None


def plain(p: Any, at: tuple[int, slice]) -> Tensor:
    return fit(hidden(p, at[1]), p, at[1])


class Pair(NamedTuple):
    step: int
    norm: Tensor


class Shared:
    rate: Any = None


class Teacher(nn.Module):
    """It keeps what it was at one step, no parameter and no buffer."""

    before: Tensor

    def forward(self, p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        if at[0] == SET:
            self.before = p["f"].detach().clone()
        return plain(p, at) + (0.3 * (p["f"] - self.before).square().sum() if at[0] >= USED else 0)


class Holder:
    def __init__(self) -> None:
        self.seen: deque[Any] = deque(maxlen=3)

    def __call__(self, p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        if at[0] <= SET:
            self.seen.append(p["f"].detach().norm().item())
        return plain(p, at) * (1 + (self.seen[-1] if at[0] >= USED else 0))


def of_one_step(every: int) -> Loss:
    kept: dict[str, Tensor] = {}

    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        if at[0] % every == 0:
            kept["f"] = p["f"].detach().clone()
        return plain(p, at) + 0.3 * (p["f"] - kept["f"].to(p["f"])).square().sum()

    return loss


def variable() -> Loss:
    anchor: Any = None

    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        nonlocal anchor
        if anchor is None and at[0] >= SET:
            anchor = p["f"].detach().clone()
        return plain(p, at) + (0.3 * (p["f"] - anchor).square().sum() if at[0] >= USED else 0)

    return loss


def best_so_far() -> Loss:
    best = [float("inf")]

    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        value = plain(p, at)
        if at[0] <= SET:
            best[0] = min(best[0], float(value.detach()))
        return value * (1 + best[0]) if at[0] >= USED else value

    return loss


def of_a_class() -> Loss:
    Shared.rate = None

    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        if at[0] == SET:
            Shared.rate = float(h["lr"])
        return plain(p, at) * (1 + Shared.rate) if at[0] >= USED else plain(p, at)

    return loss


def of_the_module() -> Loss:
    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        global LATE
        if at[0] == SET:
            LATE = p["f"].detach().mean()
        return plain(p, at) * (1 + LATE**2) if at[0] >= USED else plain(p, at)

    return loss


def of_a_helper() -> Loss:
    kept: list[Any] = [Pair(0, torch.zeros((), dtype=F64))]

    def norm(p: Any, t: int) -> Any:
        if t == SET:
            kept[0] = Pair(t, p["f"].detach().norm())
        return kept[0].norm if t >= USED else 0

    return lambda p, h, at: plain(p, at) * (1 + norm(p, at[0]))


def of_an_argument() -> Loss:
    def loss(p: Any, h: Any, at: tuple[int, slice], kept: Any) -> Tensor:
        if at[0] == SET:
            kept["norm"] = np.float32(p["f"].detach().norm())
        return plain(p, at) * (1 + (float(kept["norm"]) if at[0] >= USED else 0))

    return partial(loss, kept={})


def by_step(keep: Callable[..., Tensor]) -> Loss:
    kept: dict[Any, Any] = {}

    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        return plain(p, at) + 0.1 * (p["f"] - keep(kept, p, h, at[0])).square().sum()

    return loss


def teacher_of(kept: dict[Any, Any], p: Any, h: Any, t: int) -> Tensor:
    """A mean of the weights over the steps, kept by step, so that a step taken twice gives the same."""
    if t not in kept:
        kept[t] = p["f"].detach().clone() if t == 0 else 0.9 * kept[t - 1] + 0.1 * p["f"].detach()
    return kept[t]  # type: ignore[no-any-return]


def previous(kept: dict[Any, Any], p: Any, h: Any, t: int) -> Tensor:
    kept.setdefault(t, p["f"].detach().clone())
    return kept.get(t - 1, p["f"].detach())  # type: ignore[no-any-return]


def rate_of_the_first_call(kept: dict[Any, Any], p: Any, h: Any, t: int) -> Tensor:
    kept.setdefault("lr", h["lr"].detach().clone())
    return kept["lr"] * p["f"]  # type: ignore[no-any-return]


def start_of_the_run(kept: dict[Any, Any], p: Any, h: Any, t: int) -> Tensor:
    """L2-SP of Li et al. 2018: it does not depend on lambda."""
    return kept.setdefault("start", p["f"].detach().clone())  # type: ignore[no-any-return]


def logged_beside(kept: dict[Any, Any], p: Any, h: Any, t: int) -> Tensor:
    kept[len(kept)] = p["f"].detach().norm() + (0.9 * kept[len(kept) - 1] if kept else 0)
    return torch.ones_like(p["f"])


def mask_of_the_first_call(kept: dict[Any, Any], p: Any, h: Any, t: int) -> Tensor:
    return kept.setdefault("mask", torch.ones_like(p["f"]).tril())  # type: ignore[no-any-return]


def mean_of_the_data(kept: dict[Any, Any], p: Any, h: Any, t: int) -> Tensor:
    if "mean" not in kept:
        kept["mean"] = float(torch.arange(5.0, dtype=F64).mean())
    return kept["mean"] * torch.ones_like(p["f"])  # type: ignore[no-any-return]


def seen_by_step(kept: dict[Any, Any], p: Any, h: Any, t: int) -> Tensor:
    """Of the data, by the number of the step."""
    return kept.setdefault(t, torch.full_like(p["f"], t / 10))  # type: ignore[no-any-return]


REFUSED: dict[str, Callable[[], Loss]] = {
    "of every tenth step": partial(of_one_step, 10),
    "of the first step": partial(of_one_step, 25),
    "a variable of the closure": variable,
    "the best loss so far": best_so_far,
    "an attribute of a class": of_a_class,
    "an attribute of an object": Holder,
    "an attribute of a module": Teacher,
    "a global": of_the_module,
    "a tuple, by a helper": of_a_helper,
    "a number of numpy, in an argument": of_an_argument,
    "a teacher": partial(by_step, teacher_of),
    "the step before": partial(by_step, previous),
    "the rate of the first call": partial(by_step, rate_of_the_first_call),
}
TAKEN: dict[str, Callable[[], Loss]] = {
    "the start of the run": partial(by_step, start_of_the_run),
    "what is logged": partial(by_step, logged_beside),
    "a mask": partial(by_step, mask_of_the_first_call),
    "a mean of the data": partial(by_step, mean_of_the_data),
    "data by step": partial(by_step, seen_by_step),
}


def problem_of(loss: Loss, steps: int = STEPS) -> Problem:
    return Problem(START, loss, outer, lambda t: (t, batch(t % 5)), SGD(), steps)


@pytest.mark.filterwarnings("ignore:Converting a tensor")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_loss_keeps_of_other_steps_is_no_constant(name: str, mode: str) -> None:
    """Where something else is said of it first, it is refused for that."""
    with pytest.raises((NonDeterministicError, UsageError), match=r"it keeps what depends|engine|a number|gave"):
        hypergradient(problem_of(REFUSED[name](), 25 if "step" in name else STEPS), HYPER, MODES[mode]())


@pytest.mark.parametrize(
    "name", ["a variable of the closure", "an attribute of a module", "the rate of the first call"]
)
def test_it_is_called_by_the_name_of_the_variable(name: str) -> None:
    of = {"a variable of the closure": "anchor", "an attribute of a module": "before"}.get(name, "kept")
    with pytest.raises(NonDeterministicError, match=rf"on lambda \({of}\), and"):
        hypergradient(problem_of(REFUSED[name]()), HYPER, "reverse")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TAKEN)
def test_what_depends_on_neither_may_be_kept(name: str, mode: str) -> None:
    got = hypergradient(problem_of(TAKEN[name]()), HYPER, MODES[mode]())
    want = truth(START, TAKEN[name](), outer, lambda t: (t, batch(t % 5)), STEPS)
    assert error(got.grad, want) < 1e-6


def test_what_was_logged_is_left_as_the_run_left_it() -> None:
    history: list[float] = []
    last: dict[str, Any] = {}

    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        value = plain(p, at)
        history.append(value.item())
        last.update(value=value, step=at[0])
        return value

    got = [hypergradient(problem_of(loss), HYPER, "reverse") for _ in range(2)]
    assert torch.equal(got[0].grad["lr"], got[1].grad["lr"])
    assert len(history) > 2 * STEPS
    assert history[0] == pytest.approx(float(plain(START, (0, batch(0)))))
    assert isinstance(last["value"], Tensor)


class Counted:
    total = 1.0


def test_a_place_holds_again_what_it_held() -> None:
    value = 1.0

    def function() -> float:
        return value

    assert function.__closure__ is not None
    several = [function.__closure__[0], [1, 2], deque([1]), {"a": 1}, Counted]
    others: list[dict[Any, Any]] = [{None: 2.0}, {0: 5}, {0: 7, 1: 8}, {"b": 2}, {"total": 2.0, "more": 3.0}]
    for owner, other in zip(several, others, strict=True):
        place = Place(owner, "name")
        before = place.content()
        place.put(other)
        assert place.content() == other
        place.put(before)
        assert place.content() == before
    assert value == 1.0
    globals_of_two = Place({"a": 1, "b": 2, "c": 3}, "", frozenset(("a", "b")))
    globals_of_two.put({"b": 5})
    assert globals_of_two.owner == {"b": 5, "c": 3}
