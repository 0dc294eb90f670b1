"""A training loss over many chunks: the same numbers as in one batch, in every mode, with the memory of one chunk."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hyperopt_cli import Forward, Problem, Reverse, Reversible, hypergradient, optimizers
from hyperopt_cli.checks import flow, remembered, watch
from hyperopt_cli.dynamics.chunked_loss import ChunkedLoss
from hyperopt_cli.dynamics.derivatives import gradient, gradient_and_pullback
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.engines import ENGINES
from hyperopt_cli.errors import DetachedHyperparameterError, NonDeterministicError, UsageError
from hyperopt_cli.modes import Measurements, Mode, plan
from hyperopt_cli.problem import Chunked, Hyper
from tests.reference import unroll

F64 = torch.float64
MODES: dict[str, Mode] = {
    "forward": Forward(engine="forward_over_reverse"),
    "forward by double backwards": Forward(engine="reverse_over_reverse", columns_at_once=2),
    "reverse": Reverse(),
    "reverse with slots": Reverse(slots=3),
    "reversible": Reversible(compile=False),
}
EVERY_MODE = pytest.mark.parametrize("mode", MODES)
HYPER = {"lr": torch.tensor(0.05, dtype=F64), "momentum": torch.tensor(0.5, dtype=F64)}


def points(count: int = 10) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, generator=rng, dtype=F64)
    return x, x @ torch.tensor([1.0, -2.0, 0.5], dtype=F64) + torch.randn(count, generator=rng, dtype=F64) / 10


def cut(x: Tensor, y: Tensor, size: int = 3) -> Chunked:
    """In chunks of `size` and what is left, with their exact shares."""
    return Chunked([(part, len(part[0]) / len(x)) for part in zip(x.split(size), y.split(size), strict=True)])


def squares(params: dict[str, Tensor], hyper: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    loss = (x @ params["w"] - y).square().mean()
    return loss + hyper["l2"] * params["w"].square().sum() / 2 if "l2" in hyper else loss


def least_squares(batch: Any, steps: int = 8, **changed: Any) -> Problem:
    x, y = points()
    chunks = [((x[:7], y[:7]), 0.7), ((x[7:], y[7:]), 0.3)]
    made = Problem(
        init={"w": torch.tensor([0.3, 0.2, -0.1], dtype=F64)},
        inner_loss=squares,
        outer_loss=lambda p, h, b: squares(p, {}, b),
        batch=lambda t: batch,
        optimizer=optimizers.SGD(),
        steps=steps,
        outer_batches=chunks,
    )
    return replace(made, **changed)


def assert_same(got: Any, want: Any, tolerance: float) -> None:
    for x, y in zip(tree_leaves(got), tree_leaves(want), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def at_start(problem: Problem, hyper: Hyper) -> tuple[Any, Any, Any]:
    """The loss of step 0, w_0 and lambda_0."""
    dynamics = Dynamics.of(problem, hyper)
    return dynamics.loss_at(0), dynamics.layout.unpack(dynamics.start.params), dynamics.hyper_at(hyper, 0)


def test_the_loss_and_its_gradient_over_chunks_of_3_3_3_and_1_are_those_of_10_points() -> None:
    x, y = points()
    loss, w, h = at_start(least_squares(cut(x, y)), HYPER)
    residual = x @ w["w"] - y
    for value, g in (gradient(loss, w, h), gradient_and_pullback(loss, w, h)[:2]):
        torch.testing.assert_close(value, residual.square().mean(), rtol=1e-14, atol=0)
        torch.testing.assert_close(g["w"], 2 / 10 * x.T @ residual, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(loss(w, h), residual.square().mean(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_gives_the_closed_form_of_the_hessian_over_chunks(name: str) -> None:
    x, y = points()
    hyper = {**HYPER, "l2": torch.tensor(0.2, dtype=F64)}
    loss, w, h = at_start(least_squares(cut(x, y)), hyper)
    directions = torch.eye(3, dtype=F64)
    h_dot = {key: torch.zeros(3, dtype=F64) for key in h} | {"l2": torch.tensor([0.0, 1.0, 2.0], dtype=F64)}
    out = ENGINES[name](loss, w, h, {"w": directions}, h_dot)
    hessian = 2 / 10 * x.T @ x + 0.2 * torch.eye(3, dtype=F64)
    want = hessian + h_dot["l2"][:, None] * w["w"]
    torch.testing.assert_close(out.grad_tangents["w"], want, rtol=1e-13, atol=1e-14)
    residual = x @ w["w"] - y
    g = 2 / 10 * x.T @ residual + 0.2 * w["w"]
    torch.testing.assert_close(out.grads["w"], g, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(out.loss_tangents, g + h_dot["l2"] * w["w"].square().sum() / 2, rtol=1e-13, atol=1e-14)


def test_the_pullback_over_chunks_is_the_closed_form() -> None:
    x, y = points()
    loss, w, h = at_start(least_squares(cut(x, y)), {**HYPER, "l2": torch.tensor(0.2, dtype=F64)})
    u = torch.tensor([1.0, -1.0, 3.0], dtype=F64)
    by_w, by_hyper = gradient_and_pullback(loss, w, h)[2]({"w": u})
    torch.testing.assert_close(by_w["w"], 2 / 10 * x.T @ x @ u + 0.2 * u, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(by_hyper["l2"], u @ w["w"], rtol=1e-13, atol=0)
    assert by_hyper["lr"] == 0


@EVERY_MODE
def test_the_hypergradient_over_ragged_chunks_is_that_of_one_batch(mode: str) -> None:
    x, y = points()
    hyper = {**HYPER, "l2": torch.tensor(0.2, dtype=F64)}
    value, grad, params = unroll("sgd", least_squares((x, y)), hyper)
    got = hypergradient(least_squares(cut(x, y)), hyper, MODES[mode])
    assert_same((got.value, got.grad, got.params), (value, grad, params), 1e-12)


@EVERY_MODE
def test_chunks_of_a_network_give_what_one_batch_gives(mode: str) -> None:
    rng = torch.Generator().manual_seed(2)
    x, y = torch.randn(23, 4, generator=rng, dtype=F64), torch.randn(23, 2, generator=rng, dtype=F64)
    init = {"a": torch.randn(6, 4, generator=rng, dtype=F64) / 2, "b": torch.randn(2, 6, generator=rng, dtype=F64) / 2}

    def loss(p: Any, h: Any, batch: Any) -> Tensor:
        error = (torch.tanh(batch[0] @ p["a"].T) @ p["b"].T - batch[1]).square().mean()
        return error + sum((h["l2"][i] * w.square().sum() for i, w in enumerate(p.values())), start=0.0)

    hyper = {**HYPER, "l2": torch.tensor([0.01, 0.02], dtype=F64)}
    whole = least_squares((x, y), init=init, inner_loss=loss, outer_loss=lambda p, h: loss(p, h, (x, y)))
    whole = replace(whole, outer_batches=None)
    value, grad, params = unroll("sgd", whole, hyper)
    got = hypergradient(replace(whole, batch=lambda t: cut(x, y, 7)), hyper, MODES[mode])
    assert_same((got.value, got.grad, got.params), (value, grad, params), 1e-12)


class Alike:
    """Two processes of which each has the same chunks."""

    def summed(self, tree: Any) -> Any:
        return tree_map(lambda x: x + x, tree)

    def from_lead(self, value: Any) -> Any:
        return value


@EVERY_MODE
def test_two_processes_with_half_of_the_weights_have_the_bits_of_one(mode: str) -> None:
    x, y = points()
    halved = Chunked([(batch, weight / 2) for batch, weight in cut(x, y).chunks], Alike())
    alone = hypergradient(least_squares(cut(x, y), outer_batches=cut(x, y)), HYPER, MODES[mode])
    got = hypergradient(least_squares(halved, outer_batches=halved), HYPER, MODES[mode])
    assert_same((got.value, got.grad, got.params), (alone.value, alone.grad, alone.params), 0.0)


def standardised(x: Tensor) -> Tensor:
    """What batch normalisation does."""
    return (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + 1e-5).sqrt()


def normalised_loss(p: Any, h: Any, batch: Any) -> Tensor:
    x, y = batch
    hidden = torch.nn.functional.batch_norm(x @ p["w"], None, None, training=True)
    return (hidden - y[:, None]).square().mean()


@EVERY_MODE
def test_batch_normalisation_sees_the_chunks_that_were_given(mode: str) -> None:
    """E and L are defined on fixed chunks: the mean over them, each normalised by itself."""
    known = Measurements()
    x, y = points()
    pieces = list(zip(x.split(5), y.split(5), strict=True))
    init = {"w": torch.eye(3, 2, dtype=F64) + 0.1}

    def by_hand(p: Any, h: Any = None, batch: Any = None) -> Tensor:
        losses = [(standardised(a @ p["w"]) - b[:, None]).square().mean() for a, b in pieces]
        return torch.stack(losses).mean()

    chunks = Chunked([(piece, 0.5) for piece in pieces])
    problem = least_squares(chunks, init=init, inner_loss=normalised_loss, steps=5)
    problem = replace(problem, outer_loss=normalised_loss, outer_batches=list(chunks.chunks))
    oracle = replace(problem, batch=lambda t: None, inner_loss=by_hand, outer_loss=by_hand, outer_batches=None)
    value, grad, params = unroll("sgd", oracle, HYPER)
    got = hypergradient(problem, HYPER, MODES[mode], measurements=known)
    assert_same((got.value, got.grad, got.params), (value, grad, params), 1e-9)
    other = hypergradient(replace(problem, batch=lambda t: (x, y)), HYPER, MODES[mode], measurements=known)
    assert abs(float(other.value - got.value)) > 1e-4


@EVERY_MODE
def test_only_some_steps_may_be_chunked(mode: str) -> None:
    x, y = points()
    value, grad, _ = unroll("sgd", least_squares((x, y)), HYPER)
    problem = replace(least_squares(None), batch=lambda t: cut(x, y) if t % 2 else (x, y))
    got = hypergradient(problem, HYPER, MODES[mode])
    assert_same((got.value, got.grad), (value, grad), 1e-12)


def test_reversible_mode_arrives_at_its_start_over_chunks() -> None:
    x, y = points()
    out = hypergradient(least_squares(cut(x, y), steps=100), HYPER, Reversible(compile=False))
    assert out.stats["num_gradients"] == 200


def test_a_key_that_one_chunk_alone_reads_is_connected() -> None:
    x, y = points()

    def loss(p: Any, h: Any, batch: Any) -> Tensor:
        return squares(p, h if len(batch[0]) == 1 else {}, batch)

    hyper = {**HYPER, "l2": torch.tensor(0.2, dtype=F64)}
    assert hypergradient(least_squares(cut(x, y), inner_loss=loss), hyper, "reverse").grad["l2"] != 0
    with pytest.raises(DetachedHyperparameterError, match="'l2'"):
        hypergradient(least_squares((x, y), inner_loss=loss), hyper, "reverse")


def test_a_chunk_that_is_another_at_each_reading_is_found() -> None:
    x, y = points()

    class Noisy:
        def __iter__(self) -> Iterator[Any]:
            yield (x[:5], y[:5]), 0.5
            yield (x[5:] + torch.randn(1, dtype=F64), y[5:]), 0.5

    with pytest.raises(NonDeterministicError, match="inner_loss"):
        hypergradient(least_squares(Chunked(Noisy())), HYPER, "reverse")


def test_a_chunk_without_parameters_is_refused() -> None:
    x, y = points()

    def loss(p: Any, h: Any, batch: Any) -> Tensor:
        return squares(p, h, batch) if len(batch[0]) > 1 else torch.zeros((), dtype=F64)

    with pytest.raises(UsageError, match="depends on no parameter"):
        hypergradient(least_squares(cut(x, y), inner_loss=loss), HYPER, "reverse")


@pytest.mark.parametrize(("chunks", "error"), [(iter([]), TypeError), ([], ValueError)])
def test_chunks_that_cannot_be_read_again_or_are_none_are_refused(chunks: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="chunks: got"):
        Chunked(chunks)


def test_chunks_that_turn_out_to_be_none_are_refused() -> None:
    loss, w, h = at_start(least_squares(Chunked({}.items())), HYPER)
    with pytest.raises(ValueError, match="at least one"):
        gradient(loss, w, h)


def test_a_plan_is_made_over_chunks() -> None:
    x, y = points()
    predicted = {p.name: p for p in plan(least_squares(cut(x, y), steps=50), HYPER).predictions}
    assert predicted["reverse"].num_gradients == 100


# What follows counts bytes and readings.

WIDTH, CHUNK = 256, 64


@dataclass(frozen=True)
class Made:
    """Chunks that are made when they are asked for, and how many were."""

    count: int
    made: list[int]

    def __iter__(self) -> Iterator[Any]:
        for i in range(self.count):
            self.made.append(i)
            x = torch.arange(CHUNK * WIDTH, dtype=torch.float32).view(CHUNK, WIDTH).add(i).sin()
            yield (x, x.sum(dim=1)), 1 / self.count


def deep(p: Any, h: Any, batch: Any) -> Tensor:
    """Of activations that outweigh the parameters by far."""
    x, y = batch
    for _ in range(20):
        x = torch.tanh(x * p["w"])
    return (x.sum(dim=1) - y).square().mean() * 1e-3


def long_problem(count: int) -> tuple[Problem, Made]:
    made = Made(count, [])
    chunks = Chunked(made)
    init = {"w": torch.ones(WIDTH)}
    return least_squares(chunks, init=init, inner_loss=deep, outer_loss=deep, steps=2, outer_batches=made_list()), made


def made_list() -> Any:
    return [next(iter(Made(1, [])))]


class Live(TorchDispatchMode):
    """The bytes of all storages that operators have made and nobody has let go, at their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._watch(x.untyped_storage())
        return out

    def _watch(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


@contextmanager
def peak_of() -> Iterator[Callable[[], int]]:
    with Live() as live:
        yield lambda: live.peak


def whole_run(mode: str) -> Callable[[int], int]:
    def peak(count: int) -> int:
        problem, _ = long_problem(count)
        hyper = {"lr": torch.tensor(1e-3), "momentum": torch.tensor(0.5)}
        with peak_of() as bytes_of:
            hypergradient(problem, hyper, MODES[mode])
        return bytes_of()

    return peak


@EVERY_MODE
def test_memory_does_not_grow_with_the_number_of_chunks(mode: str) -> None:
    peak = whole_run(mode)
    peak(2)
    few, many = peak(2), peak(8)
    assert many <= 1.02 * few


def test_the_count_of_bytes_bites() -> None:
    """With all chunks in one graph it grows."""

    def peak(count: int) -> int:
        loss, w, h = at_start(long_problem(count)[0], {"lr": torch.tensor(1e-3)})
        assert isinstance(loss, ChunkedLoss)
        with peak_of() as bytes_of:
            gradient(lambda p, s: loss(p, s), w, h)
        return bytes_of()

    assert peak(8) > 3 * peak(2)


@EVERY_MODE
def test_readings_are_linear_in_the_number_of_chunks(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks have as long as they like: what they read depends on it."""
    for checks in (remembered, watch, flow):
        monkeypatch.setattr(checks, "time", SimpleNamespace(perf_counter=lambda: 0.0))

    def readings(count: int) -> int:
        problem, made = long_problem(count)
        hypergradient(problem, {"lr": torch.tensor(1e-3), "momentum": torch.tensor(0.5)}, replace(MODES[mode]))
        return len(made.made)

    assert readings(8) - readings(4) == 2 * (readings(4) - readings(2)) > 0  # some read the first chunk alone
