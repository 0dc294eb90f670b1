"""Torch's own tangents of what is said to be wrong, and of what is not, against differences of the gradient."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp
from torch.nn import functional
from torchvision import ops

from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.engines import ENGINES
from hyperopt_cli.engines.forward_faults import (
    FORWARD_FAULTS,
    double_backward_fault,
    forward_fault,
)
from hyperopt_cli.errors import UsageError

F64 = torch.float64
W = torch.tensor([0.3, -0.9, 0.7, 1.1, -0.4, 0.2, 0.6, -1.3, 0.8], dtype=F64)
C = torch.tensor([0.5, 1.2, -0.8, 0.9, 0.1, -1.1, 0.4, 0.7, -0.6], dtype=F64)
V = torch.tensor([0.4, 0.1, -0.5, 0.3, 0.2, -0.3, 0.5, -0.1, 0.3], dtype=F64)
EYE = torch.eye(3, dtype=F64)
Function = Callable[[Tensor], Tensor]


def weighted(y: Tensor) -> Tensor:
    """A number whose gradient moves with every element."""
    return (torch.tanh(y) * C.repeat(-(-y.numel() // 9))[: y.numel()].view(y.shape)).sum()


def square(w: Tensor) -> Tensor:
    return w.view(3, 3) + 2 * EYE


def lower(w: Tensor) -> Tensor:
    return w.view(3, 3).tril() + 2 * EYE


def definite(w: Tensor) -> Tensor:
    return w.view(3, 3) @ w.view(3, 3).T + EYE


def householder(w: Tensor) -> Tensor:
    return torch.linalg.householder_product(w.view(3, 3).tril(), w[:3].sigmoid())


def reduced(w: Tensor, how: str) -> Tensor:
    return torch.ones(3, dtype=F64).scatter_reduce(0, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2]), w, how)


ZERO = (torch.arange(9) != 3).to(F64)  # one factor is zero
FAR = torch.tensor([-60.0, 2, 90, 1, 1, 1, 1, 1, 1], dtype=F64)
# By the node; the first of each shows the fault.
WRONG_FORWARD: dict[str, Function] = {
    "LogcumsumexpBackward0": lambda w: weighted(torch.logcumsumexp(w * FAR, 0) / 100),
    "CholeskyInverseBackward0": lambda w: weighted(torch.cholesky_inverse(lower(w))),
    "CholeskySolveBackward0": lambda w: weighted(
        torch.cholesky_solve(C.view(3, 3), torch.stack([lower(w), lower(w * w), lower(w.sin())]))
    ),
    "TriangularSolveBackward0": lambda w: weighted(torch.triangular_solve(C.view(3, 3), lower(w), upper=False)[0]),
    "LinalgDetBackward0": lambda w: weighted(torch.linalg.det(EYE + (w - W).view(3, 3))),
    "ScatterReduceBackward0": lambda w: weighted(reduced(w, "prod")),
    "SincBackward0": lambda w: weighted(torch.sinc(w - W * (1 - ZERO))),
}
WRONG_TANGENTS: dict[str, Function] = {
    "LinalgSlogdetBackward0": lambda w: weighted(torch.linalg.slogdet(square(w))[1]),
    "LinalgSolveExBackward0": lambda w: weighted(torch.linalg.solve(square(w), C.view(3, 3))),
    "LinalgHouseholderProductBackward0": lambda w: weighted(householder(w)),
    "CumprodBackward0": lambda w: weighted(torch.cumprod(w - W * (1 - ZERO), 0)),
    "NativeLayerNormBackward0": lambda w: weighted(functional.layer_norm(w.view(3, 3), (3,))),
    "NativeBatchNormBackward0": lambda w: weighted(functional.batch_norm(w.view(3, 3), None, None, training=True)),
}
RIGHT: dict[str, Function] = {
    "cumsum": lambda w: weighted(w.cumsum(0)),
    "cummax": lambda w: weighted(w.cummax(0)[0]),
    "prod": lambda w: weighted((w * ZERO).prod()),
    "logsumexp": lambda w: weighted((w * FAR).logsumexp(0) / 100),
    "scatter_reduce of sums": lambda w: weighted(reduced(w, "sum")),
    "scatter_reduce of maxima": lambda w: weighted(reduced(w, "amax")),
    "cholesky": lambda w: weighted(torch.linalg.cholesky(definite(w))),
    "solve_triangular": lambda w: weighted(torch.linalg.solve_triangular(lower(w), C.view(3, 3), upper=False)),
    "inv": lambda w: weighted(torch.linalg.inv(square(w))),
    "lu_factor": lambda w: weighted(torch.linalg.lu_factor(square(w))[0]),
    "lu_solve": lambda w: weighted(torch.linalg.lu_solve(*torch.linalg.lu_factor(square(w)), C.view(3, 3))),
    "qr": lambda w: weighted(torch.linalg.qr(square(w))[1]),
    "eigvalsh": lambda w: weighted(torch.linalg.eigvalsh(definite(w))),
    "svdvals": lambda w: weighted(torch.linalg.svdvals(square(w))),
    "matrix_exp": lambda w: weighted(torch.linalg.matrix_exp(w.view(3, 3) / 2)),
    "pinv": lambda w: weighted(torch.linalg.pinv(square(w))),
    "group_norm": lambda w: weighted(functional.group_norm(w[:8].view(2, 4), 2)),
    "lerp": lambda w: weighted(torch.lerp(w, w**2, w.exp())),
    "addcdiv": lambda w: weighted(torch.addcdiv(w, w, w.exp())),
    "circular padding": lambda w: weighted(functional.pad(w.view(1, 1, 9), (1, 1), mode="circular")),
    "cosine embedding": lambda w: functional.cosine_embedding_loss(
        w.view(3, 3), w.view(3, 3) ** 2, torch.ones(3, dtype=F64)
    ),
    "renorm": lambda w: weighted(torch.renorm(w.view(3, 3), 2, 0, 1.0)),
}


def gradient(function: Function, w: Tensor) -> Tensor:
    w = w.detach().requires_grad_()
    return torch.autograd.grad(function(w), w)[0]


def by_differences(function: Function, h: float = 1e-4) -> Tensor:
    """H V, by fourth-order central differences of the plain gradient."""
    at = {step: gradient(function, W + step * h * V) for step in (-2, -1, 1, 2)}
    return (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * h)


def differs(got: Tensor, want: Tensor) -> bool:
    return not bool((got - want).norm() <= 1e-6 * want.norm())


def nodes(value: Tensor) -> Iterator[Any]:
    stack, seen = [value.grad_fn], set[Any]()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack += [following for following, _ in node.next_functions]


def faults(function: Function) -> set[str]:
    """The threads of a function's graph."""
    found = (forward_fault(node) for node in nodes(function(W.clone().requires_grad_())))
    return {thread for thread in found if thread is not None}


def test_each_fault_is_tried() -> None:
    assert WRONG_FORWARD.keys() == FORWARD_FAULTS.keys()


@pytest.mark.parametrize("name", WRONG_FORWARD)
def test_what_torch_takes_wrongly_is_in_the_table(name: str) -> None:
    """Once torch has mended one, the table may say up to which version it is wrong, and this test from which."""
    function = WRONG_FORWARD[name]
    assert differs(jvp(grad(function), (W,), (V,))[1], by_differences(function))
    assert faults(function) == {FORWARD_FAULTS[name]}


@pytest.mark.parametrize("name", WRONG_TANGENTS)
def test_what_torch_takes_wrongly_the_second_time_is_right_the_other_way_round(name: str) -> None:
    """Why no run takes reverse over forward; the threads are pytorch#196695 to #196701."""
    function, want = WRONG_TANGENTS[name], by_differences(WRONG_TANGENTS[name])
    assert differs(grad(lambda w: jvp(function, (w,), (V,))[1])(W), want)
    assert not differs(jvp(grad(function), (W,), (V,))[1], want)
    assert faults(function) == set()


@pytest.mark.parametrize("name", RIGHT)
def test_what_torch_takes_rightly_is_in_no_table(name: str) -> None:
    function, want = RIGHT[name], by_differences(RIGHT[name])
    assert not differs(jvp(grad(function), (W,), (V,))[1], want)
    assert not faults(function)


@pytest.mark.parametrize("name", [*WRONG_FORWARD, *WRONG_TANGENTS, *RIGHT])
def test_folded_is_right_or_refuses(name: str) -> None:
    function = {**WRONG_FORWARD, **WRONG_TANGENTS, **RIGHT}[name]
    if name in ("TriangularSolveBackward0", "ScatterReduceBackward0"):
        with pytest.raises(UsageError, match=r"engine folded: cannot carry tangents through .*see pytorch#\d+"):
            product("folded", function)
    elif name == "SincBackward0":
        pytest.skip("its way back is no operator: taken as torch does")
    else:
        assert not differs(product("folded", function), by_differences(function))


OF_FOLDED: dict[str, Function] = {
    "solve": lambda w: weighted(torch.linalg.solve(square(w), square(w.sin()))),
    "solve from the right": lambda w: weighted(torch.linalg.solve(square(w), square(w.sin()), left=False)),
    "solve for a vector": lambda w: weighted(torch.linalg.solve(square(w), w[:3])),
    "solve for vectors": lambda w: weighted(
        torch.linalg.solve(torch.stack([square(w), square(w * w)]), C[:6].view(2, 3))
    ),
    "solve, broadcast": lambda w: weighted(torch.linalg.solve(torch.stack([square(w), square(w * w)]), C.view(3, 3))),
    "det": lambda w: torch.det(square(w) / 2),
    "det of a method": lambda w: square(w / 3).det(),
    "dets": lambda w: weighted(torch.linalg.det(torch.stack([square(w) / 2, square(w * w).flip(0) / 2]))),
    "det, permuted": lambda w: torch.linalg.det(square(w)[[2, 0, 1]] / 2),
    "slogdet": lambda w: torch.slogdet(square(w)).logabsdet * torch.slogdet(square(w).flip(0)).sign,
    "logdet": lambda w: torch.logdet(definite(w)) ** 2,
    "logdet of a method": lambda w: definite(w).logdet() * w.sum(),
    "weight_norm": lambda w: weighted(torch._weight_norm(w[:6].view(2, 3), w[6:8].view(2, 1), 0)),
    "weight_norm of the last": lambda w: weighted(torch._weight_norm(w[:6].view(2, 3), w[6:].view(1, 3), 1)),
    "weight_norm of all": lambda w: weighted(torch._weight_norm(w[:6].view(2, 3), w[8], -1)),
    "cumprod along rows": lambda w: weighted(torch.cumprod((w - W * (1 - ZERO)).view(3, 3), 1)),
    "cumprod of a method": lambda w: weighted((w - W * (1 - ZERO)).view(3, 3).cumprod(dim=0)),
    "cumprod in place": lambda w: weighted((w - W * (1 - ZERO)).sin().cumprod_(0)),
    "logcumsumexp of nothing": lambda w: weighted(torch.where(torch.arange(9) < 1, -torch.inf, w).logcumsumexp(0)[1:]),
    "cholesky_inverse, upper": lambda w: weighted(torch.cholesky_inverse(lower(w).T, upper=True)),
    "cholesky_solve, upper": lambda w: weighted(torch.cholesky_solve(square(w), lower(w).T, upper=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_FOLDED)
def test_folded_takes_what_torch_does_not(name: str) -> None:
    assert not differs(product("folded", OF_FOLDED[name]), by_differences(OF_FOLDED[name]))


def test_a_singular_matrix_is_named() -> None:
    with pytest.raises(UsageError, match=r"engine folded: torch\.linalg\.lu_factor met a singular matrix"):
        product("folded", lambda w: torch.det(torch.outer(w[:3], w[3:6])))


# --- the second derivative in reverse ---

WRONG_IN_REVERSE: dict[str, Function] = {
    "a bias alone": lambda w: functional.layer_norm(C.view(3, 3), (3,), None, w[:3]).sin().sum(),
    "a bias alone over two": lambda w: functional.layer_norm(C[:8].view(2, 4), (4,), None, w[2:6]).sin().sum(),
    "weight_norm": OF_FOLDED["weight_norm"],
    "weight_norm of the last": OF_FOLDED["weight_norm of the last"],
}
RIGHT_IN_REVERSE: dict[str, Function] = {
    "a weight alone": lambda w: weighted(functional.layer_norm(w.view(3, 3), (3,), w[:3])),
    "both": lambda w: weighted(functional.layer_norm(w.view(3, 3), (3,), w[:3], w[3:6])),
    "a bias that is fixed": lambda w: weighted(functional.layer_norm(w.view(3, 3), (3,), None, C[:3])),
}


@pytest.mark.parametrize("name", [*WRONG_IN_REVERSE, *RIGHT_IN_REVERSE])
def test_what_a_double_backward_takes_wrongly_is_said(name: str) -> None:
    function = {**WRONG_IN_REVERSE, **RIGHT_IN_REVERSE}[name]
    want = by_differences(function)
    assert differs(product("reverse_over_reverse_loop", function), want) == (name in WRONG_IN_REVERSE)
    assert not differs(product("folded", function), want)
    said = [each for each in map(double_backward_fault, nodes(function(W.clone().requires_grad_()))) if each]
    assert len(said) == (name in WRONG_IN_REVERSE)


def product(engine: str, function: Function) -> Tensor:
    with surroundings():
        out = ENGINES[engine](lambda w, h: function(w["w"]), {"w": W.clone()}, {}, {"w": V[None]}, {})
    return out.grad_tangents["w"][0]


# --- outside of ATen ---

LIBRARY = torch.library.Library("hyperopt_faults", "FRAGMENT")
for defined in ("composite", "explicit", "by_function"):
    LIBRARY.define(f"{defined}(Tensor x) -> Tensor")
theirs = torch.ops.hyperopt_faults


@torch.library.custom_op("hyperopt_faults::registered", mutates_args=())
def registered(x: Tensor) -> Tensor:
    """Whose derivative is registered by the library."""
    return x**3


registered.register_autograd(
    lambda ctx, g: 3 * ctx.saved_tensors[0] ** 2 * g,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


class Cubed(torch.autograd.Function):
    """By the operator of the same name, below autograd."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return theirs.by_function(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * g

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, int]:
        return Cubed.apply(x), in_dims[0]


class CubedWithTangents(Cubed):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def jvp(ctx: Any, dot: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * dot

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, int]:
        return CubedWithTangents.apply(x), in_dims[0]


LIBRARY.impl("composite", lambda x: x**3, "CompositeImplicitAutograd")
LIBRARY.impl("explicit", lambda x: x**3, "CompositeExplicitAutograd")
LIBRARY.impl("by_function", lambda x: x**3, "CPU")
LIBRARY.impl("by_function", Cubed.apply, "Autograd")

IMAGE, BOXES = (1, 1, 3, 3), torch.tensor([[0, 0.0, 0.0, 2.0, 2.0]], dtype=F64)
FOREIGN: dict[str, Function] = {
    "registered": lambda w: (registered(w) * w).sum(),
    "explicit": lambda w: (theirs.explicit(w) * w).sum(),
    "by_function": lambda w: (theirs.by_function(w) * w).sum(),
    "roi_align": lambda w: ops.roi_align(w.view(IMAGE), BOXES, 2).pow(3).sum(),
    "roi_pool": lambda w: ops.roi_pool(w.view(IMAGE), BOXES, 2).pow(3).sum(),
    "ps_roi_align": lambda w: ops.ps_roi_align(w.view(IMAGE), BOXES, 1).pow(3).sum(),
    "ps_roi_pool": lambda w: ops.ps_roi_pool(w.view(IMAGE), BOXES, 1).pow(3).sum(),
    "deform_conv2d": lambda w: (
        ops.deform_conv2d(w.view(IMAGE), torch.full((1, 8, 2, 2), 0.1, dtype=F64), torch.ones(1, 1, 2, 2, dtype=F64))
        .pow(3)
        .sum()
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_an_operator_without_a_forward_derivative_is_refused_by_name(name: str) -> None:
    assert by_differences(FOREIGN[name]).norm() > 0.01
    with pytest.raises(UsageError, match=rf"engine folded: cannot carry tangents through \w+\.{name}\.default"):
        product("folded", FOREIGN[name])


@pytest.mark.parametrize(
    "function",
    [
        lambda w: (theirs.composite(w) * w).sum(),
        lambda w: (CubedWithTangents.apply(w) * w).sum(),
        lambda w: ops.sigmoid_focal_loss(w, torch.ones_like(w)).sum(),
        lambda w: ops.generalized_box_iou_loss(w[:4].exp().cumsum(0)[None], w[4:8].exp().cumsum(0)[None]).sum(),
    ],
)
def test_one_that_has_a_forward_derivative_is_not(function: Function) -> None:
    assert not differs(product("folded", function), by_differences(function))
