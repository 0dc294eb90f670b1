"""What a mode leaves when it is interrupted: another process goes on from it and ends with the same bits."""

import io
import random
import weakref
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from hyperopt_cli import Forward, Reverse, Reversible, hypergradient
from hyperopt_cli.modes import Measurements
from hyperopt_cli.program import CompiledStep, PartitionedStep
from hyperopt_cli.run_directory.checkpoints import on_host
from tests.cases import CASES

MODES: dict[str, Any] = {
    "forward": lambda: Forward(engine="folded", compile=False),
    "forward in chunks": lambda: Forward(engine="reverse_over_reverse", columns_at_once=2, compile=False),
    "forward, compiled": lambda: Forward(engine="folded", compile=True),
    "reverse": lambda: Reverse(compile=False),
    "reverse, 1 slot": lambda: Reverse(slots=1, compile=False),
    "reverse, 3 slots": lambda: Reverse(slots=3, compile=False),
    "reverse, slots on the disk": lambda: Reverse(slots={"device": 1, "disk": 2}, compile=False),
    "reverse, a window": lambda: Reverse(window=4, slots=2, compile=False),
    "reverse, along the line": lambda: Reverse(path="linear", compile=False),
    "reverse, compiled": lambda: Reverse(compile=True),
    "reverse, compiled, in segments": lambda: Reverse(slots=9, compile=True),
    "reverse, compiled, a window in segments": lambda: Reverse(slots=9, window=10, compile=True),
    "reversible": lambda: Reversible(compile=False),
}
PROBLEMS = ("momentum", "windows", "adam", "init")


class Interrupt(Exception):
    """What ends the run."""


class Once:
    """A keeper that takes the state at one offer, and then ends the run.

    Args:
        at: how many offers it lets pass.
    """

    def __init__(self, at: int) -> None:
        self.offers, self.at = 0, at
        self.file = io.BytesIO()
        self.progress: list[int] = []

    def due(self) -> bool:
        return self.offers >= self.at or self._passed()

    def _passed(self) -> bool:
        self.offers += 1
        return False

    def save(self, state: dict[str, Any]) -> None:
        torch.save(on_host(state), self.file)
        self.progress.append(state["progress"])
        raise Interrupt

    def barrier(self) -> None:
        pass

    def saved(self) -> dict[str, Any]:
        self.file.seek(0)
        return dict(torch.load(self.file, weights_only=True))


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is divided and called as if it were compiled; the compiler itself has no part in it."""
    for whole in (CompiledStep, PartitionedStep):
        monkeypatch.setattr(whole, "_build", staticmethod(lambda graph, tensors: graph))


def exact(a: Any, b: Any) -> None:
    assert torch.equal(a.value, b.value)
    assert (a.stats["growth"], a.stats["digits"]) == (b.stats["growth"], b.stats["digits"])
    assert all(torch.equal(a.grad[name], b.grad[name]) for name in b.grad)
    assert all(torch.equal(a.params[name], b.params[name]) for name in b.params)
    assert torch.equal(a.stats["inner_loss"], b.stats["inner_loss"])
    for count in ("num_steps", "num_gradients", "num_hvps"):
        assert a.stats[count] == b.stats[count], count


def ends(mode: str, case: str, stride: int) -> int:
    """Interrupts at every `stride`th offer, and compares; returns how often."""
    _, problem, hyper = CASES[case]
    run = partial(hypergradient, problem, hyper, MODES[mode](), measurements=Measurements())  # it is written down once
    whole = run()
    at = num = 0
    while True:
        keeper = Once(at)
        try:
            run(keeper=keeper)
        except Interrupt:
            resumed = run(resume_from=keeper.saved())
            exact(resumed, whole)
            at, num = at + stride, num + 1
        else:
            return num


@pytest.mark.parametrize("mode", MODES)
def test_interrupted_after_any_step_and_taken_up_a_run_ends_with_the_same_bits(mode: str) -> None:
    _, problem, _ = CASES["momentum"]
    num = ends(mode, "momentum", 1)
    assert num >= problem.steps if mode.startswith("forward") else num >= problem.steps + 2


@pytest.mark.parametrize("case", PROBLEMS[1:])
@pytest.mark.parametrize("mode", MODES)
def test_so_does_any_other_problem(mode: str, case: str) -> None:
    if mode == "reversible" and case == "windows":
        pytest.skip("plain SGD cannot be reversed")
    assert ends(mode, case, 5) > 0


class Counted(Once):
    """Counts offers, and takes nothing."""

    def __init__(self) -> None:
        super().__init__(10**9)


@pytest.mark.parametrize("case", ["momentum", "init"])
@pytest.mark.parametrize("mode", MODES)
def test_interrupted_twice_it_does_too_and_takes_only_the_rest(mode: str, case: str) -> None:
    _, problem, hyper = CASES[case]
    assert problem.outer_batches is not None
    problem = replace(problem, outer_batches=problem.outer_batches[:1])  # of E nothing is kept between its chunks
    run = partial(hypergradient, problem, hyper, MODES[mode](), measurements=Measurements())
    all_of_it = Counted()
    whole = run(keeper=all_of_it)
    draw = random.Random(0)
    firsts: dict[int, Once] = {}  # some are drawn again, with another second
    for _ in range(12):
        at, second = draw.randrange(all_of_it.offers), Once(draw.randrange(4))
        if at not in firsts:
            first = firsts[at] = Once(at)
            with pytest.raises(Interrupt):
                run(keeper=first)
            rest = Counted()
            exact(run(keeper=rest, resume_from=first.saved()), whole)
            if "compiled" not in mode or "forward" in mode:
                assert rest.offers == all_of_it.offers - first.at - 1  # what is done is not done again
        first = firsts[at]
        try:
            run(keeper=second, resume_from=first.saved())
        except Interrupt:
            assert second.progress > first.progress
            exact(run(resume_from=second.saved()), whole)


@pytest.mark.parametrize("mode", MODES)
def test_what_was_left_is_free_once_the_run_goes_on(mode: str) -> None:
    """Whoever gave it may still hold the dictionary."""
    known = Measurements()
    _, problem, hyper = CASES["momentum"]
    made, keeper = MODES[mode](), Once(7)
    with pytest.raises(Interrupt):
        hypergradient(problem, hyper, made, keeper=keeper, measurements=known)
    left = keeper.saved()
    parts = [left["mode"][key] for key in ("state", "z", "past") if key in left["mode"]]
    tensors = [weakref.ref(x) for x in tree_leaves(parts) if isinstance(x, torch.Tensor)]
    assert tensors
    del parts
    alive: list[int] = []

    def count(phase: str, done: int, steps: int) -> None:
        alive.append(sum(x() is not None for x in tensors))

    hypergradient(problem, hyper, made, resume_from=left, on_step=count, measurements=known)
    assert alive[-1] <= 2 < len(tensors) or alive[-1] == 0  # the marks of a reversal, s_0 where it is met last
    assert not any(x() is not None for x in tensors)


@pytest.mark.parametrize("mode", [name for name in MODES if name.startswith("reverse, compiled")])
@pytest.mark.parametrize("span", [1, 2, 5])
def test_where_every_process_comes_only_a_few_steps_far_a_run_ends_all_the_same(mode: str, span: int) -> None:
    """Each is interrupted at its `span`th offer, which comes before the end of any segment."""
    known = Measurements()
    _, problem, hyper = CASES["momentum"]
    made = MODES[mode]()
    whole, left, progress, num = hypergradient(problem, hyper, made, measurements=known), None, 0, 0
    while True:
        keeper = Once(span - 1)
        try:
            resumed = hypergradient(problem, hyper, made, keeper=keeper, resume_from=left, measurements=known)
        except Interrupt:
            left, num = keeper.saved(), num + 1
            assert left["mode"]["kind"] == "Segments"
            assert left["progress"] > progress
            progress = left["progress"]
            assert num <= 4 * problem.steps
        else:
            break
    exact(resumed, whole)
    assert num * span >= problem.steps


def test_the_comparison_bites() -> None:
    """A state that is off in its last digit ends with other bits."""
    _, problem, hyper = CASES["momentum"]
    whole = hypergradient(problem, hyper, MODES["forward"]())
    keeper = Once(2)
    with pytest.raises(Interrupt):
        hypergradient(problem, hyper, MODES["forward"](), keeper=keeper)
    left = keeper.saved()
    params = left["mode"]["state"]["params"]
    left["mode"]["state"]["params"] = {name: x * (1 + 2**-50) for name, x in params.items()}
    with pytest.raises(AssertionError):
        exact(hypergradient(problem, hyper, MODES["forward"](), resume_from=left), whole)
