"""A program as a function that can be differentiated: by `torch.autograd.grad`, `torch.func.jvp`, `vmap` of it.

Each operator is differentiated as torch does, but for three kinds: those of `rules.py`, whose derivative torch has
wrong or takes for another function's; those without one, which are decomposed into operators that have it; and those
that draw at random, which give what they gave. The values may differ by rounding from those of the run: the gradient
that moves the weights is never taken from here.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from hyperopt_cli.errors import UsageError
from hyperopt_cli.program.record import ITSELF, Call, Program, recorded
from hyperopt_cli.program.rules import FOLLOWED, RULES

# A decomposition may take the operator of another that has none: convolutions, embeddings, normalisation.
DEEPEST = 8
SIGNS = frozenset({"sign", "sgn", "heaviside"})
ROUNDING = frozenset({"round", "floor", "ceil", "trunc"}) | SIGNS
COMPARING = frozenset({"gt", "ge", "lt", "le"})
SUMS = frozenset({"add", "sub", "rsub"})
LINEAR = SUMS | {"neg", "mul", "div", "view", "reshape", "alias", "expand", "clone", "_to_copy"}
BOUNDING = frozenset({"clamp", "clamp_min", "clamp_max", "minimum", "maximum", "hardtanh"})
Estimator = Literal["through", "clipped", "bounded", "detached"]
NO_DERIVATIVE = "torch::autograd::NotImplemented"  # of the node that autograd gives such an operator


def differentiable(program: Program) -> Callable[..., list[Tensor]]:
    """Returns the program as a function `inputs -> outputs`.

    Raises, when it is called:
        UsageError: an operator has no derivative, with its name.
    """
    return lambda *inputs: program.replay(inputs, _evaluated)


def with_pullback(
    program: Program, inputs: Sequence[Tensor], function: Callable[..., list[Tensor]] | None = None
) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Returns the vector-Jacobian product at `inputs`: adjoints of the outputs -> those of the inputs, once.

    Args:
        program: the list of operators.
        inputs: where.
        function: what is made of the program; None: `differentiable`.

    Raises:
        UsageError: an operator has no derivative, with its name.
    """
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        outputs = (function or differentiable(program))(*leaves)
    edges = [get_gradient_edge(y) if y.requires_grad else None for y in outputs]  # the values themselves are not kept
    del outputs

    def pull(adjoints: Sequence[Tensor]) -> list[Tensor]:
        pairs = [(edge, a) for edge, a in zip(edges, adjoints, strict=True) if edge is not None]
        if not pairs:
            return [torch.zeros_like(x) for x in leaves]
        along = [edge for edge, _ in pairs], leaves, [a for _, a in pairs]
        return list(torch.autograd.grad(*along, materialize_grads=True))

    return pull


def as_operators(function: Callable[..., Any], trees: tuple[Any, ...]) -> Callable[..., Any]:
    """Returns a function of trees of tensors, differentiated as the list of operators it comes to at `trees`."""
    leaves, spec = tree_flatten(trees)
    shape: list[Any] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        results, results_spec = tree_flatten(function(*tree_unflatten(list(tensors), spec)))
        shape[:] = [results_spec]
        return results

    with torch.no_grad():
        program, _ = recorded(flat, [x.detach() for x in leaves])
    of_tensors = differentiable(program)
    return lambda *given: tree_unflatten(of_tensors(*tree_leaves(given)), shape[0])


def straight_through(program: Program, way: Estimator = "through") -> Callable[..., list[Tensor]]:
    """Returns the program with an estimator for the derivative of rounding, signs and comparisons.

    Args:
        program: the list of operators.
        way: "through", the estimator of Bengio, Léonard and Courville 2013, https://arxiv.org/abs/1308.3432, section 3;
            "clipped", in which that of a sign is 0 beyond -1 and 1 (Hubara et al. 2016,
            https://arxiv.org/abs/1602.02830, equation 4); "bounded", in which bounds of what was rounded count as
            rounding; "detached", in which the detaches that make an estimator are such (`estimating`), and nothing else
            is changed.
    """
    if way == "detached":
        return lambda *inputs: _detached(program, inputs)
    compared: dict[int, Tensor] = {}  # by what came of them, the tensors that were compared
    rounded: set[int] = set()  # what depends on a rounding
    kept: list[Any] = []  # alive, so that no other tensor has the id of one

    def evaluated(call: Call, args: Any, kwargs: Any) -> Any:
        name = _name(call)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        was_rounded = any(id(x) in rounded for x in given)
        out = replaced(name, was_rounded, _evaluated(call, args, kwargs), args)
        if was_rounded or name in ROUNDING | COMPARING:
            made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
            rounded.update(map(id, made))
            kept.extend(made)
        return out

    def replaced(name: str, was_rounded: bool, out: Any, args: Any) -> Any:
        floats = bool(args) and isinstance(args[0], Tensor) and args[0].is_floating_point()
        if (name in ROUNDING or (way == "bounded" and was_rounded and name in BOUNDING)) and floats:
            return out.detach() + estimated(args[0], name in SIGNS)
        if name in COMPARING and floats:
            compared[id(out)] = args[0]
        if name == "_to_copy" and id(args[0]) in compared and out.is_floating_point():
            return out + estimated(compared[id(args[0])], True).to(out)
        return out

    def estimated(x: Tensor, is_sign: bool) -> Tensor:
        """Returns zero, with the derivative of the estimator."""
        moved = torch.where(x.detach().abs() < 1, x, x.detach()) if way == "clipped" and is_sign else x
        return moved - moved.detach()

    return lambda *inputs: program.replay(inputs, evaluated)


def _detached(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    ends = estimating(program, inputs)

    def evaluated(call: Call, args: Any, kwargs: Any) -> Any:
        out = _evaluated(call, args, kwargs)
        return out.detach() if call.results[0] in ends else out

    return program.replay(inputs, evaluated)


def estimating(program: Program, at: Sequence[Tensor]) -> set[int]:
    """Returns the numbers of the detached values that make an estimator: they are added where all else cancels.

    In `x + (round(x) - x).detach()` the derivatives of both terms cancel, for that of a rounding is 0, so that without
    the detach nothing would be left; in a sum with the detached error of a rounding something is.

    Args:
        program: the list of operators.
        at: where.

    Returns:
        None of them where there is no detach, or an operator has no forward derivative, by which they are found.
    """
    if not any(_name(call) == "detach" for call in program.calls):
        return set()
    rounded, found = set[int](), set[int]()
    carried: dict[int, set[int]] = {}  # by what was added up, the detached values in it

    def evaluated(call: Call, args: Any, kwargs: Any) -> Any:
        out, name = _evaluated(call, args, kwargs), _name(call)
        result, read = call.results[0], {ref.index for ref in call.read}
        if result is None or not isinstance(out, Tensor):
            return out
        if read & rounded or name in ROUNDING | COMPARING or not out.is_floating_point():
            rounded.add(result)
        if name == "detach":
            carried[result] = {result}
        elif name in LINEAR:
            carried[result] = set[int]().union(*(carried.get(n, ()) for n in read))
        if name in SUMS and result in rounded and carried[result]:
            largest = max(_rate(x) for x in (*args, out) if isinstance(x, Tensor))
            if _rate(out) <= 1e3 * torch.finfo(out.dtype).eps * largest and largest > 0:
                found.update(carried[result])
        return out

    drawn = torch.Generator().manual_seed(0)
    with forward_ad.dual_level(), torch.enable_grad():
        rates = [torch.randn(x.shape, generator=drawn, dtype=torch.float64).to(x) for x in at]
        inputs = [forward_ad.make_dual(x.detach(), dot) for x, dot in zip(at, rates, strict=True)]  # type: ignore[no-untyped-call]
        try:
            program.replay(inputs, evaluated)
        except (UsageError, NotImplementedError):
            return set()
    return found


def _rate(x: Tensor) -> float:
    """The norm of the tangent."""
    tangent = forward_ad.unpack_dual(x).tangent if x.is_floating_point() else None  # type: ignore[no-untyped-call]
    return 0.0 if tangent is None else float(torch.linalg.vector_norm(tangent))


def _name(call: Call) -> str:
    return str(call.func._schema.name.split("::")[1])


def _evaluated(call: Call, args: Any, kwargs: Any) -> Any:
    if (rule := RULES.get(call.func)) is not None:
        return rule(call.drawn, *args, **kwargs)
    if call.drawn is not None:
        return call.drawn
    return _by_torch(call.func, args, kwargs, 0)


def _by_torch(func: Any, args: Any, kwargs: Any, depth: int) -> Any:
    """The operator, decomposed where torch has no derivative of it."""
    if func in ITSELF:
        return args[0]
    if func in RULES:
        return RULES[func](None, *args, **kwargs)
    try:
        out = func(*args, **kwargs)
    except NotImplementedError as error:  # of a forward derivative
        return _decomposed(func, args, kwargs, depth, error)
    leaves = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
    if any(x.grad_fn is not None and x.grad_fn.name() == NO_DERIVATIVE for x in leaves):
        return _decomposed(func, args, kwargs, depth, None)
    if func not in FOLLOWED and _is_cut(leaves, args, kwargs):
        raise UsageError(
            f"{func}: autograd follows only a part of its results, so that the derivative of the list of operators "
            "would be wrong"
        )
    return out


def _is_cut(results: list[Tensor], args: Any, kwargs: Any) -> bool:
    """Whether some results follow the arguments and others, as floating, do not."""
    floating = [x for x in results if x.is_floating_point()]
    if len(floating) < 2 or not any(x.requires_grad for x in floating):
        return False
    return not all(x.requires_grad for x in floating if x.numel())


def _decomposed(func: Any, args: Any, kwargs: Any, depth: int, error: Exception | None) -> Any:
    if func not in decomposition_table or depth == DEEPEST:
        raise UsageError(f"{func}: torch has no derivative of it") from error
    with _Followed(depth + 1):
        return decomposition_table[func](*args, **kwargs)


class _Followed(torch.overrides.TorchFunctionMode):
    """Inside of a decomposition operators are evaluated by the same rules."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self._depth = depth

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operator, by a rule or a decomposition of its own if it is one of the dispatcher."""
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload):
            return _by_torch(func, args, kwargs, self._depth)
        return func(*args, **kwargs)
