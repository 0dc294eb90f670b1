"""Every rule that moves tangents against torch's own forward derivative, or differences; and what has no rule."""

import warnings
from collections.abc import Callable, Iterator
from itertools import chain, combinations
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.func import functional_call, jvp
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint
from torchvision.models.convnext import CNBlock
from torchvision.models.swin_transformer import SwinTransformerBlock, SwinTransformerBlockV2

from hyperopt_cli import Forward, Problem, hypergradient
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.engines import ENGINES
from hyperopt_cli.engines.duals import Dual, dot, primal
from hyperopt_cli.engines.duals.dual import RULES
from hyperopt_cli.errors import UsageError
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.optimizers.base import Params

F64, F32 = torch.float64, torch.float32
REFERENCE = "reverse_over_reverse_loop"
aten = torch.ops.aten


class Call(NamedTuple):
    """An operator's arguments; `fixed` are the places among all leaves that never have tangents (running statistics).

    Each tensor is a shape until `drawn`; a shape is a `torch.Size`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    fixed: tuple[int, ...]


def s(*shape: int) -> torch.Size:
    return torch.Size(shape)


def call(*args: Any, fixed: tuple[int, ...] = (), **kwargs: Any) -> Call:
    return Call(args, kwargs, fixed)


def convolutions() -> Iterator[tuple[Any, ...]]:
    """x, w, bias and geometry."""
    yield s(2, 3, 5), s(4, 3, 3), s(4), [1], [0], [1], False, [0], 1
    yield s(2, 3, 6, 5), s(4, 3, 3, 2), s(4), [2, 1], [1, 0], [1, 2], False, [0, 0], 1
    yield s(2, 4, 6, 5), s(6, 2, 3, 3), s(6), [1, 1], [1, 1], [1, 1], False, [0, 0], 2
    yield s(3, 4, 5), s(4, 1, 3), s(4), [1], [2], [2], False, [0], 4  # depthwise, dilated
    yield s(2, 3, 4, 4), s(3, 2, 3, 3), s(2), [2, 2], [1, 1], [1, 1], True, [1, 1], 1
    yield s(2, 4, 4), s(4, 2, 3), s(4), [2], [0], [1], True, [0], 2
    yield s(1, 2, 4, 3, 4), s(3, 2, 2, 2, 2), s(3), [1, 1, 2], [0, 1, 0], [1, 1, 1], False, [0, 0, 0], 1
    yield s(1, 2, 1, 1), s(1, 2, 1, 1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1  # no bias, sizes of 1


def backward_of_convolutions() -> Iterator[Call]:
    for x, w, bias, *geometry in convolutions():
        like = aten.convolution(torch.zeros(x), torch.zeros(w), None, *geometry)
        sizes = [0] if bias is None else list(bias)
        for wanted in ([True, True, bias is not None], [True, False, False], [False, True, False]):
            yield call(like.shape, x, w, sizes, *geometry, wanted)
    yield call(s(2, 4, 3), s(2, 3, 5), s(4, 3, 3), [4], [1], [0], [1], False, [0], 1, [False, False, True])


WANTED = ([True, True, True], [True, False, False], [False, True, False], [False, False, True])
GROUPS = ((s(2, 4, 3, 2), s(4), 2, 4, 6, 2), (s(3, 6), s(6), 3, 6, 1, 3), (s(2, 4, 5), None, 2, 4, 5, 1))
LAYERS = ((s(3, 5), [5], s(5)), (s(2, 3, 4), [3, 4], s(3, 4)), (s(2, 3, 4), [4], None))
BATCHES = ((s(5, 3), s(3)), (s(4, 3, 2, 2), s(3)), (s(4, 3, 2), None))
POOLS = (
    (s(2, 3, 4, 6), [2, 2], [2, 2], [0, 0], False, True, None),  # tile
    (s(2, 3, 4, 6), [2, 3], [], [0, 0], False, True, None),
    (s(3, 4, 4), [4], [4], [0], False, True, None),
    (s(2, 3, 5, 5), [2, 2], [2, 2], [0, 0], False, True, None),  # do not
    (s(2, 3, 4, 4), [3, 3], [1, 1], [1, 1], False, False, None),
    (s(2, 3, 5, 5), [2, 2], [2, 2], [0, 0], True, True, None),
    (s(2, 3, 4, 4), [2, 2], [2, 2], [0, 0], False, True, 3),
)


def pools(backward: bool) -> Iterator[Call]:
    for x, *rest in POOLS:
        like = aten.avg_pool2d(torch.zeros(x), *rest)
        yield call(like.shape, x, *([rest[0], rest[1] or rest[0], *rest[2:]])) if backward else call(x, *rest)


ELEMENTWISE = (
    call(s(3, 4), s(3, 4)), call(s(3, 4), s(4)), call(s(4), s(3, 4)), call(s(3, 1), s(1, 4)), call(s(), s(2, 3)),
    call(s(2, 3), s()), call(s(), s()), call(s(2, 1, 3), s(4, 1)), call(s(2, 3), 1.7), call(s(0, 3), s(3)),
)  # fmt: skip
SCALED = (call(s(3, 4), s(4), alpha=2.5), call(s(4), s(3, 4), alpha=-1), call(s(3, 1), s(1, 4), alpha=3))
REDUCED = (
    call(s(3, 4, 2), [1]), call(s(3, 4, 2), [0, -1], True), call(s(3, 4), None), call(s(3, 4), []), call(s(), [0]),
    call(s(3, 4), [-2], False, dtype=F64), call(s(3, 1), [1], True),
)  # fmt: skip
SOFTMAX = (
    call(s(), 0, False),
    call(s(3, 4), 1, False),
    call(s(3, 4), -2, False),
    call(s(5), 0, False),
    call(s(2, 3, 4), 1, False),
)
SOFTMAX_BACKWARD = tuple(call(c.args[0], c.args[0], c.args[1], F64) for c in SOFTMAX)
SHAPED = (call(s(3, 4), [4, 3]), call(s(3, 4), [-1]), call(s(2, 3, 4), [2, -1]), call(s(), [1, 1]), call(s(1), []))
MATRICES = (call(s(3, 4), s(4, 5)), call(s(4, 3), s(3, 1)), call(s(1, 1), s(1, 1)), call(s(5, 2), s(2, 7)))

CHOSEN = torch.tensor([[True, False, True], [False, False, True]])

CASES: dict[OpOverload, tuple[Call, ...]] = {
    aten.convolution.default: tuple(call(*each) for each in convolutions()),
    aten.convolution_backward.default: tuple(backward_of_convolutions()),
    aten.native_group_norm.default: tuple(call(x, w, w, *sizes, 0.1) for x, w, *sizes in GROUPS),
    aten.native_group_norm_backward.default: tuple(
        call(x, x, s(sizes[0], sizes[3]), s(sizes[0], sizes[3]), w, *sizes, wanted)
        for x, w, *sizes in GROUPS
        for wanted in WANTED
    ),
    aten.native_layer_norm.default: tuple(call(x, over, w, w, 1e-3) for x, over, w in LAYERS),
    aten.native_layer_norm_backward.default: tuple(
        call(x, x, over, *(2 * [s(*x[: len(x) - len(over)], *(1 for _ in over))]), w, w, wanted)
        for x, over, w in LAYERS
        for wanted in (WANTED if w is not None else WANTED[1:2])
    ),
    aten.native_batch_norm.default: (
        *(call(x, w, w, None, None, True, 0.1, 1e-3) for x, w in BATCHES),
        *(call(x, s(3), s(3), s(3), s(3), training, 0.1, 1e-3, fixed=(3, 4)) for x, _ in BATCHES
          for training in (True, False)),
    ),
    aten.native_batch_norm_backward.default: (
        *(call(x, x, w, None, None, s(3), s(3), True, 1e-3, wanted) for x, w in BATCHES
          for wanted in (WANTED if w is not None else WANTED[1:2])),
        *(call(x, x, s(3), s(3), s(3), s(0), s(0), False, 1e-3, wanted, fixed=(3, 4, 5, 6)) for x, _ in BATCHES
          for wanted in WANTED[:2]),
    ),
    aten.add.Tensor: ELEMENTWISE + SCALED,
    aten.sub.Tensor: ELEMENTWISE + SCALED,
    aten.add.Scalar: (call(s(3, 4), 1.5), call(s(), 2), call(s(3), 1.5, 2)),
    aten.sub.Scalar: (call(s(3, 4), 1.5), call(s(), 2), call(s(3), 1.5, 2)),
    aten.mul.Tensor: ELEMENTWISE,
    aten.mul.Scalar: (call(s(3, 4), 1.5), call(s(), 2), call(s(3), 0.0)),
    aten.div.Tensor: ELEMENTWISE,
    aten.div.Scalar: (call(s(3, 4), 1.5), call(s(), 2)),
    aten.neg.default: (call(s(3, 4)), call(s())),
    aten.relu.default: (call(s(3, 4)), call(s())),
    aten.threshold_backward.default: (call(s(3, 4), s(3, 4), 0), call(s(5), s(5), 0.3), call(s(), s(), 0)),
    aten.avg_pool2d.default: tuple(pools(backward=False)),
    aten.avg_pool2d_backward.default: tuple(pools(backward=True)),
    aten.mm.default: MATRICES,
    aten.addmm.default: (
        call(s(5), s(3, 4), s(4, 5)), call(s(3, 5), s(3, 4), s(4, 5), beta=0.5, alpha=-2),
        call(s(3, 1), s(3, 4), s(4, 5), alpha=3), call(s(), s(2, 2), s(2, 2), beta=2),
    ),
    aten.bmm.default: (call(s(2, 3, 4), s(2, 4, 5)), call(s(1, 1, 3), s(1, 3, 1))),
    aten.sum.default: (call(s(3, 4)), call(s()), call(s(3), dtype=F64)),
    aten.mean.default: (call(s(3, 4)), call(s()), call(s(3), dtype=F64)),
    aten.sum.dim_IntList: REDUCED,
    aten.mean.dim: REDUCED,
    aten._softmax.default: SOFTMAX,
    aten._log_softmax.default: SOFTMAX,
    aten._softmax_backward_data.default: SOFTMAX_BACKWARD,
    aten._log_softmax_backward_data.default: SOFTMAX_BACKWARD,
    aten.detach.default: (call(s(3, 4)),),
    aten.alias.default: (call(s(3, 4)),),
    aten.lift_fresh.default: (call(s(3, 4)),),
    aten.clone.default: (call(s(3, 4)), call(s(2, 3, 4, 5), memory_format=torch.channels_last),
                         call(s(3, 4), memory_format=torch.contiguous_format)),
    aten._to_copy.default: (call(s(3, 4), dtype=F64),
                            call(s(2, 3, 2, 2), dtype=F64, memory_format=torch.channels_last)),
    aten.view.default: SHAPED,
    aten._unsafe_view.default: SHAPED,
    aten.reshape.default: SHAPED,
    aten.expand.default: (call(s(3, 1), [3, 4]), call(s(4), [2, 3, 4]), call(s(), [2]), call(s(3, 1), [2, -1, 5])),
    aten.t.default: (call(s(3, 4)), call(s(3)), call(s())),
    aten.transpose.int: (call(s(2, 3, 4), 0, -1), call(s(2, 3), 0, 1), call(s(), 0, -1)),
    aten.permute.default: (call(s(2, 3, 4), [2, 0, 1]), call(s(2, 3, 4), [-2, -1, 0]), call(s(), [])),
    aten.unsqueeze.default: (call(s(2, 3), 0), call(s(2, 3), -1), call(s(2, 3), 1), call(s(), 0)),
    aten.squeeze.default: (call(s(1, 3, 1)), call(s(2, 3)), call(s(1))),
    aten.squeeze.dim: (call(s(1, 3, 1), 0), call(s(1, 3, 1), -1), call(s(2, 3), 0), call(s(), 0)),
    aten.squeeze.dims: (call(s(1, 3, 1), [0, 2]), call(s(1, 3), [0, 1])),
    aten.select.int: (call(s(3, 4), 0, 1), call(s(3, 4), -1, -2)),
    aten.slice.Tensor: (call(s(5, 4)), call(s(5, 4), 0, 1, 4), call(s(5, 6), -1, None, -1, 2), call(s(5), 0, 3)),
    aten.split.Tensor: (call(s(5, 4), 2), call(s(5, 4), 3, -1)),
    aten.split_with_sizes.default: (call(s(5, 4), [2, 3]), call(s(2, 4), [1, 3], -1)),
    aten.cat.default: (call([s(2, 3), s(1, 3)]), call([s(2, 3), s(2, 1), s(2, 2)], -1)),
    aten.cumprod.default: (call(s(5), 0), call(s(2, 3), 1), call(s(3, 2), -2), call(s(), 0), call(s(4), 0, dtype=F64)),
    aten.logcumsumexp.default: (call(s(5), 0), call(s(2, 3), 1), call(s(3, 2), -2), call(s(), 0)),
    aten.cholesky_inverse.default: (call(s(2, 2)), call(s(2, 2), True), call(s(1, 1)), call(s(3, 1, 1))),
    aten.cholesky_solve.default: (
        call(s(2, 3), s(2, 2)), call(s(2, 1), s(2, 2), True), call(s(1, 3), s(4, 1, 1)), call(s(3, 2, 1), s(2, 2)),
    ),
    aten.where.self: (
        call(CHOSEN, s(2, 3), s(2, 3), fixed=(0,)), call(CHOSEN, s(3), s(2, 1), fixed=(0,)),
        call(CHOSEN, s(), s(2, 3), fixed=(0,)), call(CHOSEN, s(4, 1, 1), s(1), fixed=(0,)),
    ),
    aten.masked_fill.Scalar: tuple(call(shape, CHOSEN, 2.0, fixed=(1,)) for shape in (s(2, 3), s(4, 2, 3), s(2, 1))),
    aten.copy.default: tuple(call(a, b) for a, b in ((s(2, 3), s(2, 3)), (s(2, 3), s(3)), (s(4, 2, 3), s(2, 1)))),
    aten.fill.Tensor: tuple(call(shape, s()) for shape in (s(2, 3), s(3))),
    aten.masked_fill.Tensor: tuple(call(shape, CHOSEN, s(), fixed=(1,)) for shape in (s(2, 3), s(3))),
    # what is drawn is another each time: nothing, or all of it, is dropped here
    aten.native_dropout.default: (call(s(3, 4), 0.4, False), call(s(3, 4), 1.0, True), call(s(5), 0.0, True)),
    aten.native_dropout_backward.default: (
        call(s(2, 3), CHOSEN, 2.5, fixed=(1,)), call(s(4, 2, 3), CHOSEN, 0.0, fixed=(1,)),
    ),
    aten.index_fill.int_Tensor: tuple(
        call(shape, dim, torch.tensor([0, 2]), s(), fixed=(2,)) for shape, dim in ((s(3, 4), 0), (s(2, 3), -1))
    ),
}  # fmt: skip

# Torch's own forward derivative of these is missing, wrong (pytorch #196699, #196700) or another.
DIFFERENCES_ALONE = {
    aten.native_batch_norm_backward.default,
    aten.native_layer_norm_backward.default,
    aten.native_group_norm_backward.default,
    aten.native_group_norm.default,
    aten.native_layer_norm.default,
    aten.native_batch_norm.default,
    aten.native_dropout_backward.default,  # it has no forward derivative
    aten.copy.default,  # nor has it
    aten.cholesky_inverse.default,  # pytorch #196682
    aten.cholesky_solve.default,  # pytorch #196694
    aten.detach.default,  # where torch drops tangents; below autograd they stay
}
EACH = [(op, i) for op, calls in CASES.items() for i in range(len(calls))]


def drawn(given: Call, reverse: bool) -> tuple[list[Any], Any, list[int]]:
    """The leaves of a call, and which of them may have tangents; positive where a function of them has to be."""
    generator = torch.Generator().manual_seed(7)

    def tensor(shape: Any) -> Any:
        if not isinstance(shape, torch.Size):
            return shape
        x = torch.rand(shape[::-1], generator=generator, dtype=F64) + 0.2
        x = torch.where(torch.rand(x.shape, generator=generator) < 0.4, -x, x)
        x = x.permute(tuple(reversed(range(x.ndim))))
        return x if reverse and shape[-1:] != (1,) else x.contiguous()  # statistics, [..., 1], lie in order

    leaves, spec = tree_flatten((given.args, given.kwargs), is_leaf=lambda x: isinstance(x, torch.Size))
    leaves = [tensor(x) for x in leaves]
    places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and i not in given.fixed]
    for i in given.fixed:
        leaves[i] = leaves[i].abs() if leaves[i].dtype != torch.bool else leaves[i]
    return leaves, spec, places


def subsets(places: list[int]) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(places, n) for n in range(1, len(places) + 1))


def tangents(x: Tensor, num: int, inner: bool) -> Tensor:
    """[K, *shape]; with `inner`, in memory as [first dimension, K, ...]."""
    generator = torch.Generator().manual_seed(x.numel() + 13 * num)
    if inner and x.ndim:
        first, *rest = x.shape
        return torch.randn(first, num, *rest, generator=generator, dtype=F64).transpose(0, 1)
    return torch.randn(num, *x.shape, generator=generator, dtype=F64)


def of_some(op: Any, leaves: list[Any], spec: Any, where: tuple[int, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """The operator as a function of some leaves, to its results that are there; it writes into none of them."""

    def function(*moved: Tensor) -> tuple[Tensor, ...]:
        filled = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
        for i, x in zip(where, moved, strict=True):
            filled[i] = x
        args, kwargs = tree_unflatten(filled, spec)
        return tuple(wanted(op(*plainly(op, args), **kwargs), args))

    return function


def plainly(op: Any, args: Any) -> Any:
    """The arguments as every torch takes them: in 2.11, those of group norm lie in order, and there is a scale."""
    if op not in (aten.native_group_norm.default, aten.native_group_norm_backward.default):
        return args
    held = [x.contiguous() if isinstance(x, Tensor) else x for x in args]
    if op is aten.native_group_norm_backward.default and held[4] is None:
        held[4] = torch.ones(held[6], dtype=F64)
    return held


def wanted(results: Any, args: Any) -> list[Tensor]:
    """The results that were asked for: some operators end in a mask of them, and leave the others empty."""
    made = [results] if isinstance(results, Tensor) else list(results)
    mask = args[-1]
    if isinstance(mask, list) and len(mask) == len(made) == 3 and all(isinstance(each, bool) for each in mask):
        return [x for x, each in zip(made, mask, strict=True) if each]
    return [x for x in made if x.is_floating_point()]


def by_differences(function: Callable[..., tuple[Tensor, ...]], at: list[Tensor], along: list[Tensor]) -> list[Tensor]:
    """Central differences of sixth order."""
    h, weights = 3e-3, (3 / 4, -3 / 20, 1 / 60)

    def moved(step: float) -> tuple[Tensor, ...]:
        return function(*(x + step * d for x, d in zip(at, along, strict=True)))

    total: list[Tensor] = []
    for i, weight in enumerate(weights, start=1):
        parts = [weight * (up - down) / h for up, down in zip(moved(i * h), moved(-i * h), strict=True)]
        total = parts if not total else [x + y for x, y in zip(total, parts, strict=True)]
    return total


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("layout", ["plain", "columns inside", "reversed"])
@pytest.mark.parametrize(("op", "i"), EACH, ids=lambda x: str(x).removeprefix("aten."))
def test_a_rule_moves_tangents_as_the_derivative_does(op: OpOverload, i: int, layout: str) -> None:
    given = CASES[op][i]
    leaves, spec, places = drawn(given, reverse=layout == "reversed")
    try:
        of_some(op, leaves, spec, ())()
    except RuntimeError:
        assert layout == "reversed"
        assert op in (aten.view.default, aten._unsafe_view.default)
        pytest.skip("no view of a tensor that lies so")
    for where, num in ((where, num) for where in subsets(places) for num in (1, 3)):
        dots = {j: tangents(leaves[j], num, layout == "columns inside") for j in where}
        filled = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
        for j, d in dots.items():
            filled[j] = Dual(leaves[j], d)
        args, kwargs = tree_unflatten(filled, spec)
        got = wanted(op(*args, **kwargs), args)
        function = of_some(op, leaves, spec, where)
        _compare(op, function, [leaves[j] for j in where], [dots[j] for j in where], got)


def _compare(op: OpOverload, function: Any, at: list[Tensor], dots: list[Tensor], got: list[Tensor]) -> None:
    values = function(*at)
    torch.testing.assert_close([primal(x) for x in got], list(values), rtol=1e-12, atol=1e-13)
    for k in range(dots[0].shape[0]):
        along = [d[k] for d in dots]
        _agree([_column(x, k) for x in got], by_differences(function, at, along), rtol=1e-8)
        if op not in DIFFERENCES_ALONE:
            _agree([_column(x, k) for x in got], jvp(function, tuple(at), tuple(along))[1], rtol=1e-12)  # type: ignore[misc]


def _column(x: Tensor, k: int) -> Tensor:
    moved = dot(x)
    return torch.zeros_like(x) if moved is None else moved[k]


def _agree(got: list[Tensor], want: Any, rtol: float) -> None:
    for x, y in zip(got, want, strict=True):
        size = max(1.0, float(y.abs().max())) if y.numel() else 1.0
        torch.testing.assert_close(x, y, rtol=rtol, atol=rtol * size)


# --- what has no rule, and what is written into ---

W0 = torch.tensor([0.3, -0.5, 0.7, 1.1], dtype=F64)


def second(engine: str, loss: Callable[[Tensor], Tensor], num: int = 4) -> Tensor:
    """H along `num` unit columns, of a function of W0."""
    w_dot = {"w": torch.eye(4, dtype=F64)[:num]}
    with surroundings():
        out = ENGINES[engine](lambda w, hyper: loss(w["w"]), {"w": W0.clone()}, {}, w_dot, {})
    return out.grad_tangents["w"]


class Cubed(torch.autograd.Function):
    """A derivative written by hand, which can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


def times_a_number(w: Tensor) -> Tensor:
    return (w**3).sum() * w.sum().item()


def written(w: Tensor, write: Callable[[Tensor], Any]) -> Tensor:
    h = torch.outer(w, w) + 1
    write(h)
    return (h**3 * w).sum()


def viewed(w: Tensor, view: Callable[[Tensor], Any]) -> Tensor:
    """Of [2, 2], seen otherwise from one line on, then written into."""
    h = w.view(2, 2).sin()
    view(h)
    h.mul_(1.5)
    return (h.pow(3).cumsum(0) * torch.arange(1.0, 1 + h.numel(), dtype=F64).view(h.shape)).sum() * w.sum()


def filled(w: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    h = torch.outer(w, w)
    made = make(h)
    made[:, ::2], made[:, 1] = h[:, 1::2].sin(), w
    return made


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def indexed(h: Tensor) -> None:
    h.index_put_((torch.tensor([0, 2]),), h[1] * 2)


VIEWS_IN_PLACE: dict[str, Callable[[Tensor], Any]] = {
    "t_": lambda h: h.t_(),
    "transpose_": lambda h: h.transpose_(0, 1),
    "swapaxes_": lambda h: h.swapaxes_(0, -1),
    "unsqueeze_": lambda h: h.unsqueeze_(1),
    "squeeze_": lambda h: h.unsqueeze_(0).squeeze_(),
    "squeeze_ of a dimension": lambda h: h.unsqueeze_(-1).squeeze_(2),
    "squeeze_ of dimensions": lambda h: h.unsqueeze_(0).squeeze_((0, 1)),
}
SHARED = {
    # what is written into y may not reach h, which y was made from
    "x + c": lambda h: h + 1,
    "x - c": lambda h: h - 1,
    "dropout in evaluation": lambda h: functional.dropout(h, 0.5, training=False) + 0,
    "expanded": lambda h: torch.arange(8, dtype=F64).view(2, 4) - h,
    "sum of one": lambda h: h.view(4, 1).sum(1),
}
ONE_BY_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(torch, name)
    for name in (
        "exp", "log", "sin", "tanh", "sqrt", "erf", "log1p", "abs", "sigmoid", "rsqrt", "reciprocal", "relu", "square"
    )
} | {
    "silu": functional.silu, "gelu": functional.gelu, "softplus": functional.softplus, "cubed": lambda x: x**3,
    "clamped": lambda x: x.clamp(0.1, 2.0), "maximum": lambda x: torch.maximum(x, x.sin()),
    "where": lambda x: torch.where(x > 0, x * x, x), "masked": lambda x: x.masked_fill(x > 9, 0.0).exp(),
    "halved": lambda x: x / x.exp(), "lerp": lambda x: torch.lerp(x, x**2, 0.3), "cumsum": lambda x: x.cumsum(0),
}  # fmt: skip
WITHOUT_RULES: dict[str, Callable[[Tensor], Tensor]] = {
    # elementwise
    "sin, exp, sqrt, pow": lambda w: (w.sin() * w.exp() * w.square().sqrt() ** 1.5).sum(),
    "gelu, silu, softplus": lambda w: (functional.gelu(w) * functional.silu(w) * functional.softplus(w)).sum(),
    "tanh, sigmoid": lambda w: (w.tanh() * w.sigmoid() ** 2).sum(),
    "elu, leaky relu, hardtanh": lambda w: (functional.elu(w) * functional.leaky_relu(w) * w.clamp(-0.4, 0.6)).sum(),
    "where, maximum": lambda w: (torch.where(w > 0, w**3, w**2) * torch.maximum(w, w**2)).sum(),
    "addcmul, lerp": lambda w: torch.addcmul(w, w, w.flip(0)).square().sum() + torch.lerp(w, w**2, 0.3).prod(),
    "reciprocal of a number": lambda w: (2 / w).sum() + (w / 3 - 1).pow(3).sum() + (1 - w).pow(3).sum(),
    "filled in place": lambda w: (w.clone().fill_(w.prod()) * w).pow(3).sum(),
    "filled beside": lambda w: (torch.stack([w, w.new_zeros(w.shape).fill_(w[0])]) * w).pow(3).sum(),
    "masked fill": lambda w: w.masked_fill(w < 0, 2.0).pow(3).sum(),
    # by torch's forward derivative
    "topk, sort, max": lambda w: w.topk(2).values.pow(3).sum() + w.max(0).values ** 2 * w.sort().values[0],
    "cumsum, prod, norm": lambda w: w.cumsum(0).pow(3).sum() * w.prod() + torch.linalg.vector_norm(w) ** 3,
    "einsum, matmul of vectors": lambda w: torch.einsum("i,j,ij->", w, w, torch.outer(w, w.sin())) * (w @ w),
    "flip, roll, pad": lambda w: (functional.pad(w, (1, 1)) * functional.pad(w.roll(1).flip(0), (1, 1))).sum() ** 2,
    "gather, index, mask": lambda w: (w[torch.tensor([0, 0, 3])] ** 3).sum() * (w[w > 0] ** 2).sum(),
    "stack, chunk, unbind": lambda w: torch.stack([*w.chunk(2)]).prod() * sum(w.unbind()) ** 2,
    "a norm of a whole order": lambda w: torch.linalg.vector_norm(torch.outer(w, w), 3, dim=1).pow(2).sum(),
    "two results": lambda w: torch.frexp(w * w).mantissa.pow(2).sum() * w.sum(),
    "pow_": lambda w: written(w, lambda h: h.pow_(3)),
    "cumprod_": lambda w: written(w, lambda h: h.cumprod_(1)),
    "cumprod of a number": lambda w: (w * w.prod().cumprod(0)).sum() ** 2,
    "cumprod of integers": lambda w: (w * torch.cumprod(torch.arange(1, 5), dim=0)).pow(3).sum(),
    "cumprod in another format": lambda w: torch.cumprod(w.float(), 0, dtype=F64).pow(2).sum().double() * 0 + w.prod(),
    "softmax of a number": lambda w: (w.prod().softmax(0) * w).pow(3).sum() + w.sum().log_softmax(0),
    "cat with nothing": lambda w: torch.cat([torch.empty(0, dtype=F64), torch.outer(w, w)], dim=1).pow(3).sum(),
    "trace": lambda w: torch.outer(w, w.exp()).trace() ** 2,
    "index_fill": lambda w: (w.index_fill(0, torch.tensor([0, 2]), w.prod()) * w).pow(3).sum(),
    "flooding": lambda w: ((w**3).sum() - 0.1).abs() + functional.l1_loss(w.prod()[None], w.sum()[None]) ** 2,
    "a slope of one number": lambda w: (functional.prelu(w, w[:1].abs()) * w).sum() ** 2,
    "a derivative of sums": lambda w: torch.where(w > 0, w**3, 0.0).sum() * w.pow(2).sum(),
    "masked pooling": lambda w: torch.outer(w, w).masked_fill(w[:, None] < 0, 0.0).sum(0).pow(2).sum(),
    "label smoothing": lambda w: functional.cross_entropy(torch.outer(w, w), torch.arange(4), label_smoothing=0.1) ** 2,
    **{
        f"{name} of one number in many places": lambda w, f=f: (f(w[3].expand(3, 4)) * w).sum() ** 2
        for name, f in ONE_BY_ONE.items()
    },
    "logsumexp, var": lambda w: w.logsumexp(0) * w.var() * w.std(),
    "max pooling": lambda w: functional.max_pool1d(torch.outer(w, w)[None], 2).pow(2).sum(),
    "adaptive pooling": lambda w: functional.adaptive_avg_pool2d(torch.outer(w, w)[None], (1, 2)).pow(3).sum(),
    "interpolation": lambda w: functional.interpolate(torch.outer(w, w)[None, None], scale_factor=2.0).pow(3).sum(),
    # beside them
    "custom function": lambda w: (Cubed.apply(w) * w).sum(),
    "a number read": times_a_number,
    "a comparison": lambda w: (w * (w > 0) * (w != 2)).pow(3).sum() * float(w.sum() > 1),
    "checkpointing": lambda w: (checkpoint(lambda x: (x * x).sin() * x.exp(), w * 1.0, use_reentrant=False) ** 3).sum(),
    "relu_": lambda w: written(w, lambda h: functional.relu(h, inplace=True)),
    "add_, mul_": lambda w: written(w, lambda h: h.mul_(2).add_(w.sin(), alpha=0.5)),
    "add_ of a dual": lambda w: written(w, lambda h: h.add_(w)),
    "copy_, zero_": lambda w: written(w, lambda h: h.copy_(w)) + written(w, lambda h: h.zero_()),
    "index_put_": lambda w: written(w, indexed),
    **{
        f"a view in place: {name}": lambda w, view=view: viewed(w, view) for name, view in VIEWS_IN_PLACE.items()
    },
    "quantile": lambda w: w.pow(2).quantile(0.3) * w.sum()
    + torch.outer(w, w).quantile(torch.tensor([0.2, 0.7], dtype=F64), 1).sum(),
    "nanmedian": lambda w: w.pow(2).nanmedian() * w.nanquantile(0.4),
    "parts of a tensor of zeros": lambda w: filled(w, torch.zeros_like).pow(3).sum(),
    "parts of new zeros": lambda w: filled(w, lambda h: h.new_zeros(h.shape)).pow(3).sum(),
    "a part that is written into": lambda w: written(w, lambda h: h[1:3].zero_()),
    "a column that is scaled": lambda w: written(w, lambda h: h[:, 1].mul_(w)),
    "zeros that are drawn into": lambda w: (torch.zeros_like(w).bernoulli_(0.5, generator=seeded()) * w).pow(3).sum(),
    "mse": lambda w: functional.mse_loss(w * w, torch.ones(4, dtype=F64)) * w.sum(),
    **{
        f"written into: {name}": lambda w, make=make: (lambda h, y: (h**2 * y.mul_(2) * h).sum())(*_two(w, make))
        for name, make in SHARED.items()
    },
}  # fmt: skip


def _two(w: Tensor, make: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    h = w * 1.5
    return h, make(h)


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("name", WITHOUT_RULES)
def test_a_function_without_rules_equals_the_reference(name: str, num: int) -> None:
    want = second(REFERENCE, WITHOUT_RULES[name], num)
    torch.testing.assert_close(second("folded", WITHOUT_RULES[name], num), want, rtol=1e-12, atol=1e-12)


class Reversed(torch.autograd.Function):
    """A gradient that is turned round on its way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -0.5 * grad


class Swish(torch.autograd.Function):
    """Keeps a value on ctx, which autograd takes for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.gate = x.sigmoid()
        ctx.save_for_backward(x)
        return x * ctx.gate

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * ctx.gate * (1 + x * (1 - ctx.gate))


def without_gradient(f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    with torch.no_grad():
        return f(w)


def hooked(w: Tensor) -> Tensor:
    h = w.sin()
    h.register_hook(lambda grad: -0.7 * grad * w.detach())
    return (h * w).sum() + h.pow(3).sum()


def repeated(w: Tensor) -> Tensor:
    h, places = (w**2).clone(), torch.tensor([0, 0, 2])
    h[places] += h[places]
    return h.square().sum()


# What training does is what is differentiated: a value that autograd holds constant moves all the same.
CUT: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda w: (w.detach() * w**2).sum(),
    "detach in place": lambda w: ((w * w.sum()).detach_() * w**2).sum(),
    "data": lambda w: (w.data * w**2).sum(),
    "a twin without a gradient": lambda w: -functional.cosine_similarity(w * w[0], w.sin().detach() + 1, dim=0),
    "statistics": lambda w: ((w - without_gradient(torch.mean, w)) / without_gradient(torch.std, w)).pow(3).sum(),
    "a teacher": lambda w: functional.kl_div(
        w.log_softmax(0), without_gradient(lambda x: (2 * x).softmax(0), w), reduction="sum"
    ),
    "a reversed gradient": lambda w: (Reversed.apply(w**2) * w).sum() ** 2,
    "a value kept on ctx": lambda w: (Swish.apply(3 * w) * w).sum(),
    "a hook": hooked,
    "a straight-through clamp": lambda w: (w + (w.clamp(-0.4, 0.6) - w).detach()).pow(3).sum(),
    "repeated places in place": repeated,
    "a padded embedding": lambda w: functional.embedding(
        torch.tensor([0, 1, 1]), torch.outer(w, w), padding_idx=0
    ).tanh().pow(2).sum(),
    "quantiles of a statistic": lambda w: torch.outer(w, w).quantile(w.detach().abs() / 2, 1).sum(),
    "a weight-normalised head": lambda w: torch._weight_norm(torch.outer(w, w), w[:, None] + 2, 0).sin().sum(),
}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_what_autograd_holds_constant_moves(name: str) -> None:
    def gradient(w: Tensor) -> Tensor:
        w = w.detach().requires_grad_()
        return torch.autograd.grad(CUT[name](w), w)[0]

    def moved(step: float) -> Tensor:
        return torch.stack([gradient(W0 + step * column) for column in torch.eye(4, dtype=F64)])

    h = 1e-4
    want = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    torch.testing.assert_close(second("folded", CUT[name]), want, rtol=1e-7, atol=1e-8)


def test_numbers_that_leave_torch_are_refused() -> None:
    with pytest.raises(UsageError, match=r"engine folded: \.numpy\(\) of a tensor inside of the model"):
        second("folded", lambda w: (w * torch.from_numpy(w.detach().numpy() ** 2)).sum())


def _matrix(w: Tensor) -> Tensor:
    return torch.outer(w, w) + 2 * torch.eye(len(w), dtype=w.dtype)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda w: torch.zeros(4, dtype=F64).copy_(w).pow(2).sum(), "aten.copy_.default .*that has no tangents"),
        (lambda w: torch.zeros(4, dtype=F64).add_(w).pow(2).sum(), "aten.add_.Tensor .*that has no tangents"),
        (lambda w: torch.ones(4, dtype=F64).mul_(w).pow(2).sum(), "aten.mul_.Tensor .*that has no tangents"),
        (lambda w: torch.zeros(4, dtype=F64).index_put_((torch.tensor([1]),), w[:1]).pow(2).sum(),
         "aten.index_put_.default .*that has no tangents"),
        (lambda w: functional.ctc_loss(torch.outer(w, w)[:, None].log_softmax(2), torch.tensor([[1]]), (4,), (1,)),
         "aten._ctc_loss"),
        (lambda w: w.put(torch.tensor([0]), w[1:2] ** 2).pow(2).sum(), "aten.put.default"),
        (lambda w: aten._linalg_det(_matrix(w))[0], "aten._linalg_det.default .*pytorch#192521"),
        (lambda w: torch.triangular_solve(w[:, None], _matrix(w))[0].sum(), "aten.triangular_solve.default"),
        (
            lambda w: torch.zeros(2, dtype=F64).scatter_reduce(0, torch.tensor([0, 1, 0, 1]), w, "prod").sum(),
            "aten.scatter_reduce.two",
        ),
        (lambda w: torch.ops.prims.exp(w).pow(2).sum(), "prims.exp.default"),
        (lambda w: aten._linalg_slogdet(_matrix(w))[1], "aten._linalg_slogdet.default"),
        (lambda w: torch.linalg.solve_ex(_matrix(w), w)[0].pow(2).sum(), "aten._linalg_solve_ex.default"),
        (lambda w: torch.fft.rfft(w).abs().pow(2).sum(), "aten._fft_r2c.default .*complex"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_is_refused_by_name(write: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(UsageError, match=rf"engine folded: cannot carry tangents through {said}.*reverse_over_reverse"):
        second("folded", write)


@pytest.mark.parametrize("make", [lambda w: w * (1 + 2j), lambda w: w.to(torch.complex128)])
def test_complex_numbers_are_refused_not_dropped(make: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UsageError, match=r"engine folded: a tensor's numbers are complex; .*reverse_over_reverse"):
        second("folded", lambda w: make(w).abs().pow(2).sum())


def test_a_write_that_a_view_would_not_see_is_refused() -> None:
    """The tangents of h lie as [4, K, 4]: flattened they are a copy."""
    h = Dual(torch.ones(4, 4, dtype=F64), tangents(torch.ones(4, 4), 3, inner=True))
    flat = aten.view.default(h, [16])
    for target in (h, flat, aten.slice.Tensor(flat, 0, 2)):
        with pytest.raises(UsageError, match=r"writes where a view by aten\.view\.default would not see it"):
            aten.mul_.Tensor(target, 2)
    inner = aten.select.int(twice := Dual(h.primal.clone(), h.tangents.clone()), 0, 1)
    before = twice.tangents.clone()
    aten.mul_.Tensor(inner, 2)
    assert torch.equal(twice.tangents[:, 1], 2 * before[:, 1])
    assert torch.equal(twice.tangents[:, 2:], before[:, 2:])
    assert twice.primal[:, 0].tolist() == [1, 2, 1, 1]


def test_tangents_follow_the_tensor_to_another_format() -> None:
    x = Dual(torch.ones(3, dtype=F64), torch.randn(2, 3, dtype=F64))
    low = aten._to_copy.default(x, dtype=F32)
    assert isinstance(low, Dual)
    assert low.tangents.dtype == F32
    assert not isinstance(aten._to_copy.default(x, dtype=torch.int64), Dual)
    mixed = aten.mul.Tensor(low, torch.tensor(2.0, dtype=F64))
    assert mixed.dtype == mixed.tangents.dtype == F32


# --- networks ---


def network(model: nn.Module, inputs: Tensor, **buffers: Tensor) -> tuple[Any, Params]:
    """sum(y^3) of a model, and its parameters."""
    params = {name: w.detach() for name, w in model.named_parameters()}
    return lambda w, hyper: (functional_call(model, {**w, **buffers}, (inputs,)) ** 3).sum(), params


def seeded_model(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make().double()


class Attention(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (2, 2)).transpose(1, 2) for each in (self.query, self.key, self.value))
        return functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)


class QueryOnly(nn.Module):
    """Attends to keys and values without tangents."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(self.query(x), x, x)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table((x.abs() * 3).long() % 7).mean(1))


class OffsetAlone(nn.Module):
    """Of a convolution with a given kernel only the bias is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(3))
        self.kernel = torch.ones(3, 4, 2, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(functional.conv1d(x, self.kernel, self.bias), inplace=True)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        out += x
        return functional.relu(out, inplace=True)


class First(nn.Module):
    """The first result of a module that has several."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)[0]
        return out


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "gru": (lambda: First(nn.GRU(4, 3, batch_first=True)), (2, 3, 4)),
    "gru, two ways, two layers": (lambda: First(nn.GRU(4, 2, 2, bidirectional=True)), (3, 2, 4)),
    "gru, no batch": (lambda: First(nn.GRU(4, 3)), (3, 4)),
    "rnn": (lambda: First(nn.RNN(4, 3, nonlinearity="relu")), (3, 2, 4)),
    "lstm": (lambda: First(nn.LSTM(4, 3, batch_first=True)), (2, 3, 4)),
    "lstm, projected": (lambda: First(nn.LSTM(4, 3, proj_size=2)), (3, 2, 4)),
    "lstm cell": (lambda: First(nn.LSTMCell(4, 3)), (2, 4)),
    "convnext": (lambda: CNBlock(4, 0.1, 0.0), (1, 4, 5, 5)),
    "swin": (lambda: SwinTransformerBlock(4, 2, [2, 2], [1, 1]), (1, 4, 4, 4)),
    "swin, second version": (lambda: SwinTransformerBlockV2(4, 2, [2, 2], [1, 1]), (1, 4, 4, 4)),
    "conv1d, strided, circular": (lambda: nn.Conv1d(4, 3, 3, stride=2, padding=1, padding_mode="circular"), (2, 4, 6)),
    "conv2d, grouped, dilated": (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding="same"), (2, 4, 5, 5)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.Conv3d(3, 2, 2)), (1, 2, 3, 4, 3)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2), nn.GELU(),
                                         nn.ConvTranspose2d(4, 2, 2, groups=2)), (1, 2, 3, 3)),
    "pooling": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.AvgPool2d(2), nn.Tanh(), nn.MaxPool2d(2)),
                (2, 1, 8, 8)),
    "pooling that overlaps": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.AvgPool2d(3, 2, 1)), (2, 1, 6, 7)),
    "attention": (lambda: Attention(causal=False), (2, 3, 4)),
    "causal attention": (lambda: Attention(causal=True), (2, 3, 4)),
    "attention to constants": (QueryOnly, (2, 3, 4)),
    "multi-head attention": (lambda: nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True), (2, 3, 4)),
    "embedding": (Words, (3, 4)),
    "bilinear": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(1), nn.LogSigmoid(), nn.Linear(3, 2)), (5, 4)),
    "bias alone": (OffsetAlone, (2, 4, 5)),
    "residual, in place": (Residual, (3, 4, 5)),
    "recurrent": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Unflatten(0, (2, 2)), nn.Flatten()), (4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_equals_the_reference(name: str, num: int) -> None:
    make, shape = NETWORKS[name]
    loss, params = network(
        seeded_model(make), torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    )
    w_dot = {key: tangents(w, num, inner=False) for key, w in params.items()}
    with surroundings():
        got, want = (ENGINES[engine](loss, params, {}, w_dot, {}) for engine in ("folded", REFERENCE))
    torch.testing.assert_close(got.grads, want.grads, rtol=1e-11, atol=1e-12)
    size = max(float(x.abs().max()) for x in want.grad_tangents.values())
    torch.testing.assert_close(got.grad_tangents, want.grad_tangents, rtol=1e-11, atol=1e-11 * max(1.0, size))


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_move_once_a_step_in_training_and_never_in_evaluation(training: bool) -> None:
    model = seeded_model(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())).train(training)
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    loss, params = network(model, inputs, **buffers)
    w_dot = {name: tangents(w, 3, inner=False) for name, w in params.items()}
    with surroundings():
        got = ENGINES["folded"](loss, params, {}, w_dot, {})
    once = {name: b.clone() for name, b in model.named_buffers()}
    functional_call(model, {**params, **once}, (inputs,))
    assert buffers.keys() == once.keys()
    torch.testing.assert_close(buffers, once, rtol=1e-15, atol=0)
    assert training == (int(buffers["1.num_batches_tracked"]) == 1)
    again, _ = network(model, inputs, **{name: b.clone() for name, b in model.named_buffers()})
    with surroundings():
        want = ENGINES[REFERENCE](again, params, {}, w_dot, {})
    torch.testing.assert_close(got.grad_tangents, want.grad_tangents, rtol=1e-11, atol=1e-12)


def test_dropout_is_the_same_for_every_column() -> None:
    def loss(w: Params, hyper: Any) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return functional.dropout(w["w"] ** 2, 0.4, training=True).pow(2).sum()

    w = {"w": torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=F64) + 0.5}
    same = {"w": torch.ones(1, 30, dtype=F64).expand(4, 30).contiguous()}
    with surroundings():
        got, want = (ENGINES[engine](loss, w, {}, same, {}) for engine in ("folded", REFERENCE))
    torch.testing.assert_close(got.grad_tangents, want.grad_tangents, rtol=1e-13, atol=0)
    assert 0 < int((got.grad_tangents["w"][0] == 0).sum()) < 30
    assert all(torch.equal(row, got.grad_tangents["w"][0]) for row in got.grad_tangents["w"])


def gpus_dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """It draws otherwise than what vmap makes of dropout."""
    mask = torch.rand(x.numel() + 3, dtype=x.dtype)[3:].view_as(x) > p
    return x * mask / (1 - p), mask


def gpus_dropout_backward(grad: Tensor, mask: Tensor, scale: float) -> Tensor:
    assert mask.dtype == torch.bool, f"Mask should be Bool, not {mask.dtype}"
    return grad * mask * scale


def test_dropout_of_a_gpu_draws_what_it_draws_in_training() -> None:
    def loss(w: Params, hyper: Any, seed: int = 0) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return (aten.native_dropout(w["w"] ** 2, 0.4, True)[0] - 1).pow(2).sum()

    start = {"w": torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=F64) + 0.5}
    problem, hyper = Problem(start, loss, loss, lambda t: t, SGD(), 3), {"lr": torch.tensor(0.01, dtype=F64)}
    with torch.library._scoped_library("aten", "IMPL") as library, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a kernel that is put in the place of another
        library.impl("native_dropout", gpus_dropout, "CPU")
        library.impl("native_dropout_backward", gpus_dropout_backward, "CPU")
        want = hypergradient(problem, hyper, "reverse").grad["lr"]
        for engine in ("folded", REFERENCE, "auto"):
            got = hypergradient(problem, hyper, Forward(engine=engine, compile=False))
            torch.testing.assert_close(got.grad["lr"], want, rtol=1e-12, atol=0)
        assert got.stats["engine"] == "folded"


def test_a_loss_may_rebind_its_keys_and_leave_some_out() -> None:
    def loss(w: Params, hyper: Any) -> Tensor:
        w["w"] = w["w"] * hyper.pop("scale")
        return (w.pop("w") ** 3).sum()

    start = {"w": W0.clone(), "unused": torch.ones(2, dtype=F64)}
    problem = Problem(
        start, lambda w, hyper, batch: loss(w, hyper), lambda w, hyper: w["w"].square().sum(), lambda t: None, SGD(), 3
    )
    hyper = {"lr": torch.tensor(0.01, dtype=F64), "scale": torch.tensor(0.8, dtype=F64)}
    got = hypergradient(problem, hyper, Forward(engine="folded", compile=False))
    torch.testing.assert_close(got.grad, hypergradient(problem, hyper, "reverse").grad, rtol=1e-12, atol=1e-15)
    assert torch.equal(got.params["unused"], start["unused"])


def test_repr_says_the_shape_and_the_columns() -> None:
    assert repr(Dual(torch.ones(2, 3), torch.ones(4, 2, 3))) == "Dual([2, 3], columns=4)"


def test_trees_of_duals_are_taken_apart_by_primal_and_dot() -> None:
    x = Dual(torch.ones(2), torch.zeros(3, 2))
    assert tree_map(primal, {"a": x, "b": 1}) == {"a": x.primal, "b": 1}
    assert dot(x) is x.tangents
    assert dot(torch.ones(2)) is None
