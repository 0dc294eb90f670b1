"""What is wrong at some steps, chunks or blocks alone, after a resumption, and at small scales."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hyperopt_cli import Chunked, Forward, Problem, Reverse, Reversible, hypergradient
from hyperopt_cli.modes import Measurements
from hyperopt_cli.optimizers import SGD, Adam
from tests.checks.test_cut_gradients import START, batch, fit, hidden, normalised, outer, siamese
from tests.checks.training import F64, HYPER, error, truth

MODES = {"forward": Forward(), "reverse": Reverse(), "reversible": Reversible()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [5, 8, 11])
def test_a_cut_that_leaves_the_graph_as_it_is(steps: int, mode: str) -> None:
    """Statistics without gradient at every second step, a constant of the same graph at the others."""

    known = Measurements()

    def loss(p: Any, h: Any, rows: slice) -> Tensor:
        with torch.no_grad():
            scale = 1 + p["f"].norm() if rows.start % 2 else torch.tensor(2.0, dtype=F64)
        return fit(hidden(p, rows), p, rows) + scale * (p["f"] ** 2).sum() * 0.1

    want = truth(START, loss, outer, batch, steps)
    for _ in range(3):  # a later run draws other steps
        got = hypergradient(Problem(START, loss, outer, batch, SGD(), steps), HYPER, MODES[mode], measurements=known)
        assert error(got.grad, want) < 1e-6


@pytest.mark.parametrize("mode", ["reverse", "reversible"])
@pytest.mark.parametrize("at", [3, 9, 12, 14])
def test_a_run_that_goes_on_elsewhere_knows_what_is_cut(at: int, mode: str) -> None:
    class Keeper:
        def __init__(self) -> None:
            self.num, self.state = 0, None

        def due(self) -> bool:
            self.num += 1
            return self.num >= at and self.state is None

        def save(self, state: Any) -> None:
            from hyperopt_cli.modes.account import listed

            self.state = listed(state)

        def barrier(self) -> None:
            pass

    problem, keeper = Problem(START, normalised, outer, batch, SGD(), 8), Keeper()
    made = {"reverse": lambda: Reverse(compile=False), "reversible": lambda: Reversible(compile=False)}[mode]
    want = hypergradient(problem, HYPER, made(), keeper=keeper)
    assert keeper.state is not None
    got = hypergradient(problem, HYPER, made(), resume_from=keeper.state)
    assert all(torch.equal(got.grad[name], want.grad[name]) for name in HYPER)
    assert error(got.grad, truth(START, normalised, outer, batch, 8)) < 1e-6


@pytest.mark.parametrize("big", [1.0, 1e3, 1e6])
def test_a_cut_in_a_block_of_a_small_scale(big: float) -> None:
    """Adam moves every block alike, whatever its scale."""
    start = {"w": torch.ones(4, dtype=F64), "v": torch.tensor([0.4, -0.3, 0.8], dtype=F64)}

    def loss(p: Any, h: Any, b: Any) -> Tensor:
        return big * (p["w"] ** 2).sum() + 1e-2 * (p["v"] ** 2 * (1 + p["v"].detach().norm())).sum()

    def uncut(p: Any, h: Any, b: Any) -> Tensor:
        """Of the same gradient, which is 2 v (1 + |v|) in v: that of a function of its own."""
        n = p["v"].norm()
        return big * (p["w"] ** 2).sum() + 1e-2 * (n**2 + 2 * n**3 / 3)

    end = lambda p, h: (p["v"] ** 2).sum()  # noqa: E731
    hyper = {"lr": torch.tensor(0.05, dtype=F64)}
    for mode in (Forward(), Reverse()):
        got, want = (
            hypergradient(Problem(start, each, end, lambda t: None, Adam(), 6), hyper, mode).grad["lr"]
            for each in (loss, uncut)
        )
        torch.testing.assert_close(got, want, rtol=1e-8, atol=0)


def test_loops_of_many_lengths_with_a_cut_in_them() -> None:
    def loss(p: Any, h: Any, rows: slice) -> Tensor:
        z = hidden(p, rows)
        for _ in range(rows.start):
            z = torch.tanh(z + 0.1 * z.detach() ** 2)
        return fit(z, p, rows)

    want = truth(START, loss, outer, lambda t: slice(t % 10, t % 10 + 10), 20)
    problem = Problem(START, loss, outer, lambda t: slice(t % 10, t % 10 + 10), SGD(), 20)
    for mode in MODES.values():
        assert error(hypergradient(problem, HYPER, mode).grad, want) < 1e-6


@pytest.mark.parametrize("mode", [*MODES, "double backwards"])
def test_a_cut_in_the_second_chunk_alone(mode: str) -> None:
    def of_chunk(p: Any, h: Any, chunk: Any) -> Tensor:
        rows, cut = chunk
        return siamese(p, h, rows) if cut else fit(hidden(p, rows), p, rows)

    chunks = lambda t: Chunked([((slice(t, t + 5), False), 0.5), ((slice(t + 5, t + 10), True), 0.5)])  # noqa: E731
    plainly = lambda p, h, t: sum(0.5 * of_chunk(p, h, chunk) for chunk, _ in chunks(t).chunks)  # noqa: E731
    want = truth(START, plainly, outer, lambda t: t, 5)
    problem = Problem(START, of_chunk, outer, chunks, SGD(), 5)
    if mode in MODES:
        assert error(hypergradient(problem, HYPER, MODES[mode]).grad, want) < 1e-6
    else:
        with pytest.raises(Exception, match="engine reverse_over_reverse: off by"):
            hypergradient(problem, HYPER, Forward(engine="reverse_over_reverse"))


@pytest.mark.parametrize("mode", [Forward(), Reverse(), Reverse(slots="auto"), Reverse(slots=2)], ids=repr)
def test_default_options_where_torch_has_no_double_backward(mode: Any) -> None:
    table = {"w": torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)}
    bags = torch.tensor([[0, 1, 1], [2, 3, 4]])
    loss = lambda p, h, b: (F.embedding_bag(bags, p["w"], mode="mean") ** 3).sum()  # noqa: E731
    want = truth(table, loss, outer, lambda t: None, 4)
    got = hypergradient(Problem(table, loss, outer, lambda t: None, SGD(), 4), HYPER, mode)
    assert error(got.grad, want) < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_a_sum_that_begins_with_a_tensor_of_zero(mode: str) -> None:
    def loss(p: Any, h: Any, rows: slice) -> Tensor:
        total = torch.tensor(0.0, dtype=F64)
        table = torch.zeros(2, 3, dtype=F64)
        table[0] += p["c"][0] ** 2
        for part in (fit(hidden(p, rows), p, rows), (p["f"].detach() * p["f"] ** 2).sum(), table.sum()):
            total += part
        return total

    want = truth(START, loss, outer, batch, 5)
    assert error(hypergradient(Problem(START, loss, outer, batch, SGD(), 5), HYPER, MODES[mode]).grad, want) < 1e-6


def under_no_grad(f: Tensor) -> Any:
    with torch.no_grad():
        return f.norm()


def by_set_grad_enabled(f: Tensor) -> Any:
    torch.set_grad_enabled(False)
    out = f.norm()
    torch.set_grad_enabled(True)
    return out


def by_requires_grad(f: Tensor) -> Any:
    with torch.no_grad():
        g = f * 1
    return g.requires_grad_(False).norm()


LATE = {
    "no_grad": under_no_grad,
    "detach": lambda f: f.detach().norm(),
    "detach_": lambda f: (f * 1).detach_().norm(),
    "data": lambda f: f.data.norm(),
    "set_grad_enabled": by_set_grad_enabled,
    "requires_grad_": by_requires_grad,
    "item": lambda f: f.norm().item(),
    "float": lambda f: float(f.norm()),
    "tolist": lambda f: sum(f.flatten().tolist()),
    "numpy": lambda f: float(f.detach().numpy().sum()),
}
LEAVES_TORCH = ("item", "float", "tolist", "numpy")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize("since", [14, 17])
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_what_leaves_the_graph_late_and_without_a_trace(name: str, since: int, mode: str) -> None:
    """Autograd's graph is the same at all steps, and the steps that are drawn by seed are others."""

    known = Measurements()

    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        t, rows = at
        scale = LATE[name](p["f"]) if t >= since else torch.tensor(2.0, dtype=F64)
        return fit(hidden(p, rows), p, rows) + torch.as_tensor(scale, dtype=F64) * (p["f"] ** 2).sum() * 0.1

    batches = lambda t: (t, batch(t))  # noqa: E731
    problem = Problem(START, loss, outer, batches, SGD(), 20)
    if name in LEAVES_TORCH:
        with pytest.raises(Exception, match="depends on a number that leaves torch"):
            hypergradient(problem, HYPER, MODES[mode], measurements=known)
    else:
        want = truth(START, loss, outer, batches, 20)
        assert error(hypergradient(problem, HYPER, MODES[mode], measurements=known).grad, want) < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_a_hook_that_begins_late(mode: str) -> None:
    def loss(p: Any, h: Any, at: tuple[int, slice]) -> Tensor:
        t, rows = at
        z = hidden(p, rows)
        if t >= 17:
            z.register_hook(lambda g: g * (1 + g.detach().abs()))
        return fit(z, p, rows)

    batches = lambda t: (t, batch(t))  # noqa: E731
    want = truth(START, loss, outer, batches, 20)
    got = hypergradient(Problem(START, loss, outer, batches, SGD(), 20), HYPER, MODES[mode])
    assert error(got.grad, want) < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_in_one_of_four_chunks_that_show_the_same_graph(mode: str) -> None:
    def of_chunk(p: Any, h: Any, chunk: Any) -> Tensor:
        rows, cut = chunk
        norm, constant = p["f"].detach().norm(), torch.tensor(2.0, dtype=F64)
        return fit(hidden(p, rows), p, rows) + (norm if cut else constant) * (p["f"] ** 2).sum() * 0.1

    chunks = lambda t: Chunked([((slice(t + i, t + i + 3), i == 2), 0.25) for i in range(4)])  # noqa: E731
    plainly = lambda p, h, t: sum(0.25 * of_chunk(p, h, chunk) for chunk, _ in chunks(t).chunks)  # noqa: E731
    want = truth(START, plainly, outer, lambda t: t, 12)
    got = hypergradient(Problem(START, of_chunk, outer, chunks, SGD(), 12), HYPER, MODES[mode])
    assert error(got.grad, want) < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_a_validation_loss_that_is_cut_in_a_later_run_alone(mode: str) -> None:
    known = Measurements()

    def end(p: Any, h: Any) -> Tensor:
        norm, constant = p["f"].detach().norm(), torch.tensor(2.0, dtype=F64)
        return outer(p, h) + (norm if h["momentum"] > 0.55 else constant) * (p["f"] ** 2).sum() * 0.1

    loss = lambda p, h, rows: fit(hidden(p, rows), p, rows)  # noqa: E731
    for momentum in (0.5, 0.6):
        hyper = {**HYPER, "momentum": torch.tensor(momentum, dtype=F64)}
        got = hypergradient(Problem(START, loss, end, batch, SGD(), 6), hyper, MODES[mode], measurements=known)
        assert error(got.grad, truth(START, loss, end, batch, 6, hyper)) < 1e-6
