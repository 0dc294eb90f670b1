"""A loss that takes for a constant what it kept of other steps, or of lambda, is refused, wherever Python keeps it."""

import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hyperopt_cli import Chunked, Forward, Problem, Reverse, Reversible, hypergradient
from hyperopt_cli.checks import remembered
from hyperopt_cli.errors import NonDeterministicError, UsageError
from hyperopt_cli.modes import Measurements
from hyperopt_cli.optimizers import SGD
from tests.checks.test_cut_gradients import START, batch, fit, hidden, outer
from tests.checks.training import F64, HYPER, error, truth

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


def late(keep: Callable[[Any, Any, Tensor], None], read: Callable[[Any], Tensor], made: Callable[[], Any]) -> Loss:
    """Kept in something at one step, and used at later ones."""
    place = made()

    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        if at[0] == SET:
            keep(place, h, p["f"].detach().clone())
        return plain(p, at) + (0.3 * (p["f"] - read(place)).square().sum() if at[0] >= USED else 0)

    return loss


class Slotted:
    __slots__ = ("anchor",)


class Made:
    def __init__(self, anchor: Tensor) -> None:
        self.anchor = anchor


def set_anchor(place: Any, h: Any, x: Tensor) -> None:
    place.anchor = x


def into_numpy(place: Any, h: Any, x: Tensor) -> None:
    place[:] = x.numpy()


def normalised(place: Any, h: Any, x: Tensor) -> None:
    place["x"] = torch.nn.functional.normalize(x)


def quotient(place: Any, h: Any, x: Tensor) -> None:
    place["x"] = h["lr"] / h["momentum"] * torch.ones_like(x)


def own_function() -> Any:
    return lambda: None


def of_itself() -> Loss:
    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        if at[0] == SET:
            loss.anchor = p["f"].detach().clone()  # type: ignore[attr-defined]
        return plain(p, at) + (0.3 * (p["f"] - loss.anchor).square().sum() if at[0] >= USED else 0)  # type: ignore[attr-defined]

    return loss


def once_at_a_step() -> Loss:
    kept: dict[str, Tensor] = {}

    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        if at[0] == SET:
            kept.setdefault("f", p["f"].detach().clone())
        return plain(p, at) + (0.3 * (p["f"] - kept["f"]).square().sum() if at[0] >= USED else 0)

    return loss


def on_the_batch() -> Loss:
    """A teacher that lies beside the data of its step."""
    batches: list[dict[str, Tensor]] = [{} for _ in range(STEPS)]

    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        teacher = batches[at[0]].setdefault("teacher", p["f"].detach().clone())
        return plain(p, at) + 0.3 * (2 * p["f"] - teacher).square().sum()

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
    "an attribute of a class": of_a_class,
    "an attribute of an object": Holder,
    "an attribute of a module": Teacher,
    "a global": of_the_module,
    "a tuple, by a helper": of_a_helper,
    "a number of numpy, in an argument": of_an_argument,
    "an attribute of the function": of_itself,
    "an attribute of another function": partial(late, set_anchor, lambda f: f.anchor, own_function),
    "a namespace": partial(late, set_anchor, lambda f: f.anchor, SimpleNamespace),
    "an object with slots": partial(late, set_anchor, lambda f: f.anchor, Slotted),
    "an object that is made in the run": partial(
        late, lambda d, h, x: d.update(best=Made(x)), lambda d: d["best"].anchor, dict
    ),
    "an array of numpy": partial(late, into_numpy, torch.from_numpy, lambda: np.zeros(START["f"].shape)),
    "weights that are normalised": partial(late, normalised, lambda d: d["x"], dict),
    "a quotient of hyperparameters": partial(late, quotient, lambda d: d["x"], dict),
    "once, at one step": once_at_a_step,
    "the batch": on_the_batch,
    "a teacher": partial(by_step, teacher_of),
    "the step before": partial(by_step, previous),
    "the rate of the first call": partial(by_step, rate_of_the_first_call),
}
SAID_FIRST = {
    **dict.fromkeys(("of every tenth step", "of the first step", "an attribute of an object"), "evaluated twice"),
    "a teacher": "it keeps what depends|engine folded: cannot carry",  # tangents, where a step finds those of another
}
TAKEN: dict[str, Callable[[], Loss]] = {
    "the start of the run": partial(by_step, start_of_the_run),
    "what is logged": partial(by_step, logged_beside),
    "a mask": partial(by_step, mask_of_the_first_call),
    "a mean of the data": partial(by_step, mean_of_the_data),
    "data by step": partial(by_step, seen_by_step),
}


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps are looked at, however slow the machine is."""
    monkeypatch.setattr(remembered, "FIRST_S", 1e3)
    monkeypatch.setattr(remembered, "AT_MOST_S", 1e3)


def problem_of(loss: Loss, steps: int = STEPS) -> Problem:
    return Problem(START, loss, outer, lambda t: (t, batch(t % 5)), SGD(), steps)


@pytest.mark.filterwarnings("ignore:Converting a tensor")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_loss_keeps_of_other_steps_is_no_constant(name: str, mode: str) -> None:
    with pytest.raises((NonDeterministicError, UsageError), match=SAID_FIRST.get(name, "it keeps what depends")):
        hypergradient(problem_of(REFUSED[name](), 25 if "step" in name else STEPS), HYPER, MODES[mode]())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TAKEN)
def test_what_depends_on_neither_may_be_kept(name: str, mode: str) -> None:
    got = hypergradient(problem_of(TAKEN[name]()), HYPER, MODES[mode]())
    want = truth(START, TAKEN[name](), outer, lambda t: (t, batch(t % 5)), STEPS)
    assert error(got.grad, want) < 1e-6


@pytest.mark.parametrize("name", ["a variable of the closure", "a teacher", "the rate of the first call"])
def test_it_is_refused_again_until_it_is_made_anew(name: str) -> None:
    loss = REFUSED[name]()
    for _ in range(2):
        with pytest.raises(NonDeterministicError, match="it keeps what depends"):
            hypergradient(problem_of(loss), HYPER, "reverse")


@pytest.mark.parametrize("by_step", [False, True])
def test_what_the_loss_keeps_and_E_reads_is_refused(by_step: bool) -> None:
    """The last weights, or a mean of them over the steps."""
    kept: dict[Any, Tensor] = {}

    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        if by_step:
            teacher_of(kept, p, h, at[0])
        else:
            kept["last"] = p["f"].detach().clone()
        return plain(p, at)

    def reading(p: Any, h: Any) -> Tensor:
        return outer(p, h) + (p["f"] - kept[max(kept)]).square().sum()

    problem = Problem(START, loss, reading, lambda t: (t, batch(t % 5)), SGD(), STEPS)
    with pytest.raises((NonDeterministicError, UsageError), match=r"outer_loss|it keeps what depends"):
        hypergradient(problem, HYPER, "reverse")


@pytest.mark.parametrize(("chunk", "set_at", "used_from"), [(1, (SET,), USED), (0, range(STEPS), 0)])
def test_what_is_kept_in_another_chunk_is_refused(chunk: int, set_at: Sequence[int], used_from: int) -> None:
    """Of another step, or by the first chunk for the second of the same one, at every step."""
    kept: dict[str, Tensor] = {}

    def loss(p: Any, h: Any, at: tuple[int, slice, int]) -> Tensor:
        if at[2] == chunk and at[0] in set_at:
            kept["f"] = p["f"].detach().clone()
        is_used = at[0] >= used_from and at[2] == 1
        return plain(p, at[:2]) + (0.3 * (p["f"] - kept["f"]).square().sum() if is_used else 0)

    def cut(t: int) -> Chunked:
        return Chunked([((t, batch((t + i) % 5), i), 0.5) for i in range(2)])

    with pytest.raises(NonDeterministicError, match="it keeps what depends"):
        hypergradient(Problem(START, loss, outer, cut, SGD(), STEPS), HYPER, "reverse")


@pytest.mark.parametrize(("sleep_s", "least", "most"), [(0.0, 4 * 40, 5 * 40 + 9), (0.01, 0, 4 * 13 + 29)])
def test_a_mode_asks_once_of_a_loss_and_of_a_slow_one_some_steps(
    sleep_s: float, least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Measurements()
    calls = [0]
    if sleep_s:  # then the time that there is allows at most so many
        monkeypatch.undo()

    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        calls[0] += 1
        time.sleep(sleep_s)
        return plain(p, at)

    mode, counts = Reverse(), []
    for _ in range(2):
        calls[0] = 0
        hypergradient(problem_of(loss, 40), HYPER, mode, measurements=known)
        counts.append(calls[0])
    examined = 3 * 14  # steps that the first run examines and later ones do not, at most
    assert least <= counts[0] - counts[1] <= most + examined


class Unready:
    @property
    def __class__(self) -> Any:
        raise RuntimeError("not ready")

    def __call__(self) -> None:
        raise RuntimeError("not ready")


def test_what_a_closure_holds_is_not_looked_into() -> None:
    """A proxy of what is gone, an object that answers nothing."""
    gone, unready = weakref.proxy(Shared()), Unready()

    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        return plain(p, at) if at[0] < 100 else gone.rate * unready()

    want = hypergradient(problem_of(lambda p, h, at: plain(p, at)), HYPER, "reverse")
    assert torch.equal(hypergradient(problem_of(loss), HYPER, Reverse()).grad["lr"], want.grad["lr"])


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
