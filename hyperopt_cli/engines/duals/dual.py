"""A tensor with its tangents along K directions; every operator that meets one moves them.

A loss evaluated on duals, and differentiated by autograd as usual, yields the gradient as duals: the gradient and its K
tangents in one pass. It is forward over reverse (Pearlmutter 1994, https://doi.org/10.1162/neco.1994.6.1.147) below
autograd, operator by operator, so that the K products of an operator can be taken as one large product.

How an operator moves tangents, the first that applies:

1. its rule in `RULES`;
2. one that treats every element alike: its partial derivatives once, times the tangents of each argument;
3. torch's own forward derivative, under vmap;
4. its decomposition into simpler operators.

An operator with none of these is an error that names it.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._ops import OpOverload
from torch.func import jvp, vmap
from torch.overrides import enable_reentrant_dispatch
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from hyperopt_cli.errors import UsageError, first_line
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.program.raised import is_raising, raised_number

aten = torch.ops.aten

Rule = Callable[..., Any]
RULES: dict[OpOverload, Rule] = {}
# What stands in for a function of torch.
FUNCTIONS: dict[Callable[..., Any], Rule] = {}
AnyRule = TypeVar("AnyRule", bound=Rule)

# What has no tangent, whatever its arguments'.
CONSTANT = {
    aten.rand_like.default,
    aten.randn_like.default,
    aten._local_scalar_dense.default,
    aten.sign.default,
}


# Constants that are made like a tensor, often to be written into: by models, by autograd, by torch (1 - x of C++).
BLANK = {
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.empty_like.default,
    aten.full_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}

# What draws into a tensor, whatever was there.
DRAWS = {
    aten.bernoulli_.float,
    aten.normal_.default,
    aten.uniform_.default,
    aten.random_.default,
    aten.random_.to,
    aten.random_.__getattr__("from"),
    aten.exponential_.default,
    aten.log_normal_.default,
    aten.cauchy_.default,
    aten.geometric_.default,
}

# Torch's forward derivative of these is wrong (of products alone of scatter_reduce), or lacks that of a second result,
# which the way back would take for a constant; and where that is said.
REFUSED = {
    aten._linalg_det.default: "pytorch#192521",
    aten._linalg_slogdet.default: "pytorch#196697",
    aten._linalg_solve_ex.default: "pytorch#196695",
    aten.triangular_solve.default: "pytorch#198017",
    aten.scatter_reduce.two: "pytorch#196702",
}
COMPLEX = "its numbers are complex"
OTHERWISE = "use the engine reverse_over_reverse, or the mode reverse"


class Dual(Tensor):
    """A tensor and its tangents along K directions.

    Attributes:
        primal: the tensor, [*shape].
        tangents: its tangents, [K, *shape]. Their memory need not lie in that order: an operator leaves it as its
            product had it.
        torn: shared by a tensor and its views; names the operators that made a view whose tangents are a copy, so that
            nothing may be written into any of them.
        rests: its tangents are zeros that take no memory: nothing that moves has been written into it, and it has no
            view.
    """

    primal: Tensor
    tangents: Tensor
    torn: set[str]
    rests: bool

    @staticmethod
    def __new__(cls, primal: Tensor, dot: Tensor) -> "Dual":
        """Shows itself to autograd as a tensor like `primal`."""
        if primal.is_complex():
            raise UsageError(f"engine folded: a tensor's numbers are complex; {OTHERWISE}")
        made: Dual = torch.Tensor._make_wrapper_subclass(
            cls, primal.shape, strides=primal.stride(), dtype=primal.dtype, device=primal.device
        )
        return made

    def __init__(self, primal: Tensor, dot: Tensor) -> None:
        assert dot.shape[1:] == primal.shape, f"tangents {list(dot.shape)} of a tensor {list(primal.shape)}"
        self.primal, self.tangents, self.torn, self.rests = primal, dot, set(), False

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        """Shows the shape and the number of columns."""
        return f"Dual({list(self.primal.shape)}, columns={self.tangents.shape[0]})"

    def __dlpack__(self, *given: Any, **named: Any) -> Any:
        """Refuses: other libraries would see the memory without the tangents."""
        raise RuntimeError("a tensor that carries tangents cannot be handed on by DLPack")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls `func`, or what stands in for it: of the same value, made of operators that have tangents."""
        with torch._C.DisableTorchFunctionSubclass():
            return FUNCTIONS.get(func, func)(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Calls the operator on duals: on their tensors and their tangents."""
        kwargs = kwargs or {}
        if is_raising():
            args, kwargs = tree_map(raised_number, (args, kwargs))
        if func._schema.is_mutable and func not in RULES:
            return _in_place(func, args, kwargs)
        if func in BLANK:
            return _blank(func, args, kwargs)
        if func.is_view and isinstance(args[0], Dual) and args[0].rests:
            args[0].tangents, args[0].rests = args[0].tangents.contiguous(), False
        duals = list(_duals(args, kwargs))
        if any(x.rests for x in duals):
            args, kwargs = tree_map(lambda x: x.primal if isinstance(x, Dual) and x.rests else x, (args, kwargs))
        if all(x.rests for x in duals):
            return func(*args, **kwargs)
        result = _moved(func, args, kwargs)
        return _kept_together(func, result, args[0]) if func.is_view else _apart(result, args)


def _moved(func: Any, args: Any, kwargs: Any) -> Any:
    """Calls `func` by the first way that applies."""
    rule = RULES.get(func)
    if rule is not None:
        return rule(func, *args, **kwargs)
    if func in REFUSED and (func is not aten.scatter_reduce.two or "prod" in (x for x in args if isinstance(x, str))):
        raise _refused(func, f"torch's forward derivative of it is wrong, see {REFUSED[func]}")
    if func.namespace != "aten":  # below autograd, where no autograd.Function's jvp is met
        raise _refused(func, "no forward derivative of an operator outside of ATen is found here")
    if func in CONSTANT or not _has_float_output(func):
        args, kwargs = tree_map(primal, (args, kwargs))
        return func(*args, **kwargs)
    if torch.Tag.pointwise in func.tags:
        return _elementwise(func, args, kwargs)
    return by_torch(func, args, kwargs)


def _blank(func: Any, args: Any, kwargs: Any) -> Any:
    """A constant like a tensor: a dual that rests, for whatever is written into it."""
    value = func(primal(args[0]), *args[1:], **kwargs)
    if not value.is_floating_point() or not isinstance(args[0], Dual):
        return value
    columns = args[0].tangents.shape[0]
    made = Dual(value, value.new_zeros(1).expand(columns, *value.shape))
    made.rests = True
    return made


def _duals(args: Any, kwargs: Any) -> Iterator[Dual]:
    """Yields the duals among the arguments of an operator, tensors or lists of them; `tree_leaves` takes longer."""
    for x in (*args, *kwargs.values()):
        if isinstance(x, list | tuple):
            yield from (each for each in x if isinstance(each, Dual))
        elif isinstance(x, Dual):
            yield x


def _kept_together(func: Any, result: Any, source: Any) -> Any:
    """Views of a tensor, with what is known of its memory."""
    for made in (result,) if isinstance(result, Tensor) else tree_leaves(result):
        if isinstance(made, Dual) and isinstance(source, Dual) and made is not source:
            made.torn = source.torn
            if not _shares(made.tangents, source):
                source.torn.add(str(func))
    return result


def _apart(result: Any, args: Any) -> Any:
    """The result of an operator that is no view: its tangents in memory of their own, which may be written into."""
    for made in (result,) if isinstance(result, Tensor) else tree_leaves(result):
        if isinstance(made, Dual) and (_overlaps(made.tangents) or _shares(made.tangents, args)):
            made.tangents = made.tangents.clone()
    return result


def _overlaps(x: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True))


def _unshared(x: Tensor) -> Tensor:
    """Torch takes no derivative where several elements are one number in memory."""
    return x.contiguous() if _overlaps(x) else x


def _shares(tangents: Tensor, args: Any) -> bool:
    memory = tangents.untyped_storage()._cdata
    return any(x.tangents.untyped_storage()._cdata == memory for x in tree_leaves(args) if isinstance(x, Dual))


def rule(*operators: OpOverload) -> Callable[[AnyRule], AnyRule]:
    """Registers `(operator, *arguments) -> result` for these operators."""

    def register(function: AnyRule) -> AnyRule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def primal(x: Any) -> Any:
    """Returns the tensor without tangents; anything else as it is."""
    return x.primal if isinstance(x, Dual) else x


def dot(x: Any) -> Tensor | None:
    """Returns the tangents, `[K, *shape]`; None for anything that has none."""
    return x.tangents if isinstance(x, Dual) and not x.rests else None


def dual(value: Tensor, *parts: Tensor | None) -> Tensor:
    """Returns `value` with the sum of `parts` as tangents; itself where there is none."""
    total: Tensor | None = None
    for part in parts:
        if part is not None:
            total = part if total is None else total + part
    return value if total is None else Dual(value, total)


def aligned(tangents: Tensor, ndim: int) -> Tensor:
    """Views `[K, *shape]` such that it broadcasts as `shape` does among tensors of `ndim` dimensions."""
    missing = ndim + 1 - tangents.ndim
    if missing <= 0:
        return tangents
    return tangents.reshape(tangents.shape[0], *(1,) * missing, *tangents.shape[1:])


def spread(tangents: Tensor, shape: Sequence[int]) -> Tensor:
    """Broadcasts tangents to `[K, *shape]`."""
    return aligned(tangents, len(shape)).expand(tangents.shape[0], *shape)


def _has_float_output(func: Any) -> bool:
    return any("Tensor" in str(result.type) for result in func._schema.returns) and func not in _OF_INTEGERS


_OF_INTEGERS = {
    overload
    for name in (
        "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "argmax", "argmin", "logical_not",
        "logical_and", "logical_or", "any", "all", "signbit",
    )
    for packet in [getattr(aten, name)]
    for overload in (getattr(packet, each) for each in packet.overloads())
}  # fmt: skip


_NO_TANGENTS = "it writes into a tensor that has no tangents; write `x = x + y` instead"


def _in_place(func: Any, args: Any, kwargs: Any) -> Any:
    """Takes an operator in place by the one that does not write, whose result is then written into the target."""
    target = args[0] if args else None
    if func is aten.copy_.default:
        return _copied(func, *args)
    if torch.Tag.inplace_view in func.tags:
        return _viewed_in_place(func, args, kwargs)
    if func in DRAWS and isinstance(target, Dual):
        return _written(func, target, func(target.primal.clone(), *args[1:], **kwargs))
    # by the name alone: overloads of the two may be named otherwise (pow_.Scalar, pow.Tensor_Scalar)
    plain = getattr(aten, func._schema.name.split("::")[1].removesuffix("_"), None)
    if not func._schema.name.endswith("_") or plain is None:
        raise _refused(func, "it writes into its arguments")
    if not isinstance(target, Dual):
        raise _refused(func, _NO_TANGENTS)
    return _written(func, target, plain(*args, **kwargs))


def _viewed_in_place(func: Any, args: Any, kwargs: Any) -> Dual:
    """`t_`, `unsqueeze_` and the like: the tensor becomes a view of itself, and no number is written."""
    target: Dual = args[0]
    view: Dual = getattr(aten, func._schema.name.split("::")[1].removesuffix("_"))(*args, **kwargs)
    included = torch._C._meta_in_tls_dispatch_include()
    with no_dispatch():  # shape and strides that autograd sees: a wrapper has no kernel but that of `meta`
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            func(*args, **kwargs)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(included)
    target.primal, target.tangents, target.torn = view.primal, view.tangents, view.torn
    return target


def _copied(func: Any, target: Any, source: Tensor, non_blocking: bool = False) -> Tensor:
    if not isinstance(target, Dual):
        raise _refused(func, _NO_TANGENTS)
    return _written(func, target, source.expand(target.shape))


def _written(func: Any, target: Dual, result: Tensor) -> Dual:
    if target.torn:
        raise _refused(func, f"it writes where a view by {', '.join(sorted(target.torn))} would not see it")
    target.primal.copy_(primal(result))
    moved = dot(result)
    if target.rests and moved is not None:
        target.tangents, target.rests = moved.clone(), False
    elif moved is not None:
        target.tangents.copy_(moved)
    elif not target.rests:
        target.tangents.zero_()
    return target


def _elementwise(func: Any, args: Any, kwargs: Any) -> Any:
    """Takes partial derivatives from torch, each along a tangent of ones; then once over the K columns."""
    leaves, spec = tree_flatten((args, kwargs))
    where = [i for i, x in enumerate(leaves) if isinstance(x, Dual)]
    plain = [_unshared(x.primal) if isinstance(x, Dual) else x for x in leaves]

    def along(i: int) -> Callable[[Tensor], Tensor]:
        def of_one(x: Tensor) -> Tensor:
            given, named = tree_unflatten([*plain[:i], x, *plain[i + 1 :]], spec)
            result: Tensor = func(*given, **named)
            return result

        return of_one

    parts: list[Tensor | None] = []
    for i in where:
        try:
            with enable_reentrant_dispatch(), torch.enable_grad():
                value, partial = jvp(along(i), (plain[i],), (torch.ones_like(plain[i]),))  # type: ignore[misc]
        except (RuntimeError, NotImplementedError) as error:
            return _decomposed(func, args, kwargs, error)
        if not isinstance(value, Tensor):
            return by_torch(func, args, kwargs)
        if value.is_complex():
            raise _refused(func, COMPLEX)
        if not value.is_floating_point():
            return value
        # torch's zeros without memory (of a sign) crash it in a product with one number
        partial = torch.zeros_like(value) if partial._is_zerotensor() else partial.detach()
        parts.append((partial * aligned(leaves[i].tangents, partial.ndim)).to(value.dtype))
    return dual(value.detach(), *parts)


def by_torch(func: Any, args: Any, kwargs: Any) -> Any:
    """Calls `func` by torch's forward derivative, under vmap."""
    leaves, spec = tree_flatten((args, kwargs))
    where = [i for i, x in enumerate(leaves) if isinstance(x, Dual)]
    shape: list[Any] = []

    def of_duals(*moved: Tensor) -> tuple[Tensor, ...]:
        plain = list(leaves)
        for i, x in zip(where, moved, strict=True):
            plain[i] = x
        given, named = tree_unflatten(plain, spec)
        results, results_spec = tree_flatten(func(*given, **named))
        shape[:] = [results_spec]
        return tuple(results)

    at = tuple(_unshared(leaves[i].primal) for i in where)
    pushed: Any = vmap(lambda *dots: jvp(of_duals, at, dots), out_dims=(None, 0), randomness="same")  # type: ignore[arg-type]
    try:
        # without a gradient some operators that have no forward derivative pass for constants
        with enable_reentrant_dispatch(), warnings.catch_warnings(), torch.enable_grad():
            warnings.filterwarnings("error", message="There is a performance drop")
            values, dots = pushed(*(leaves[i].tangents for i in where))
    except (RuntimeError, NotImplementedError, UserWarning) as error:
        return _decomposed(func, args, kwargs, error)
    if any(x.is_complex() for x in values):
        raise _refused(func, COMPLEX)
    values, dots = ([x.detach() for x in each] for each in (values, dots))
    made = [dual(x, d) if x.is_floating_point() else x for x, d in zip(values, dots, strict=True)]
    return tree_unflatten(made, shape[0])


def _decomposed(func: Any, args: Any, kwargs: Any, error: Exception) -> Any:
    if is_lacking(error):
        raise error
    if func not in decomposition_table:
        raise _refused(func, first_line(error)) from error
    try:
        with enable_reentrant_dispatch(), torch.no_grad():
            result = decomposition_table[func](*args, **kwargs)
    except Exception as failure:
        if is_lacking(failure):
            raise
        raise _refused(func, first_line(error)) from failure
    assert not any(x.requires_grad for x in tree_leaves(result) if isinstance(x, Tensor))
    if torch.Tag.nondeterministic_seeded not in func.tags:  # the bits of the run are those of the operator itself
        values = tree_leaves(func(*tree_map(primal, args), **tree_map(primal, kwargs)))
        for made, value in zip(tree_leaves(result), values, strict=True):
            if isinstance(made, Dual):
                made.primal = value
    return result


def _refused(func: Any, reason: str) -> UsageError:
    return UsageError(f"engine folded: cannot carry tangents through {func} ({reason}); {OTHERWISE}")
