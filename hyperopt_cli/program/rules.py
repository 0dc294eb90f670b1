"""Operators of a program whose own derivative is missing, wrong, or that of another function.

| operator | what is wrong with torch's derivative |
|---|---|
| embedding, its backward | the row of `padding_idx` is taken for one without effect; it is read |
| embedding_bag, its backwards | have no second one |
| index_put, put, scatter, index_copy | of values for one place the last is there; torch's adjoint goes to all |
| weight_norm's interface | has none |
| linalg.lu_solve | the adjoint of the factors is wrong for `left=True, adjoint=False` |
| copy, slice_scatter of complex numbers | have none as functions |
| as_strided, its scatter | the adjoint of a chain of them is wrong |
| slogdet, det, solve | the LU factors that their derivatives take are constants to autograd |
| cholesky_inverse, cholesky_solve | the forward derivative is wrong (pytorch#196682, #196694) |
| dropout, rrelu | take their masks, their slopes for what they draw |

Each rule takes what the operator drew (None for most), then its arguments, and is a composition of operators whose
derivatives are right.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _embedding(drawn: Any, weight: Tensor, indices: Tensor, *rest: Any) -> Tensor:
    return weight.index_select(0, indices.reshape(-1)).reshape(*indices.shape, *weight.shape[1:])


def _embedding_dense_backward(
    drawn: Any, grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor:
    """The rows of `grad` added up by index, but those of the padding; divided by how often it occurs if wished."""
    flat = indices.reshape(-1)
    rows = grad.reshape(flat.numel(), -1).masked_fill((flat == padding_idx)[:, None], 0)
    if scale_grad_by_freq:
        rows = rows / _counts(flat, num_weights, rows)[flat][:, None]
    return rows.new_zeros(num_weights, rows.shape[1]).index_add(0, flat, rows)


def _counts(indices: Tensor, num: int, like: Tensor) -> Tensor:
    """How often each index occurs; bincount would wait for a GPU."""
    return like.new_zeros(num).index_add(0, indices, like.new_ones(indices.numel()))


def _embedding_bag(
    drawn: Any,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, ...]:
    """Sums (mode 0), means (1) or maxima (2) of rows of the table, bag by bag."""
    plain = None if weights is None else weights.detach()
    rest = (scale_grad_by_freq, mode, False, plain, include_last_offset, padding_idx)
    found = aten._embedding_bag.default(weight.detach(), indices, offsets, *rest)
    if mode == 2:
        largest = weight.gather(0, found[3].to(torch.int64))
        return (largest.masked_fill(found[2][:, None] == 0, 0), *found[1:])  # an empty bag
    starts = offsets[:-1] if include_last_offset else offsets
    bag, share = _shares(indices, starts, mode, weights, padding_idx, weight)
    rows = weight.index_select(0, indices) * share[:, None]
    return (weight.new_zeros(starts.numel(), weight.shape[1]).index_add(0, bag, rows), *found[1:])


def _embedding_bag_backward(
    drawn: Any,
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    offset2bag: Tensor,
    bag_size: Tensor,
    maximum_indices: Tensor,
    num_weights: int,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    weights: Tensor | None,
    padding_idx: int = -1,
) -> Tensor:
    table = grad.new_zeros(num_weights, grad.shape[1])
    if mode == 2:
        given = grad.masked_fill(bag_size[:, None] == 0, 0)
        return table.scatter_add(0, maximum_indices.to(torch.int64), given)
    bag, share = _shares(indices, offsets[: grad.shape[0]], mode, weights, padding_idx, grad)
    rows = grad.index_select(0, bag) * share[:, None]
    if scale_grad_by_freq:
        rows = rows / _counts(indices, num_weights, rows)[indices][:, None]
    return table.index_add(0, indices, rows)


def _embedding_bag_weights_backward(
    drawn: Any,
    grad: Tensor,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    offset2bag: Tensor,
    mode: int,
    padding_idx: int = -1,
) -> Tensor:
    """The inner product of each row with the adjoint of its bag."""
    bag, share = _shares(indices, offsets[: grad.shape[0]], 0, None, padding_idx, grad)
    return (grad.index_select(0, bag) * weight.index_select(0, indices)).sum(1) * share


def _shares(
    indices: Tensor, starts: Tensor, mode: int, weights: Tensor | None, padding_idx: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """The bag of each index, and the factor of its row in it."""
    bag = torch.bucketize(torch.arange(indices.numel(), device=indices.device), starts.contiguous(), right=True) - 1
    share = (indices != padding_idx).to(like)
    if mode == 1:
        share = share / share.new_zeros(starts.numel()).index_add(0, bag, share).clamp_min(1)[bag]
    return bag, share if weights is None else share * weights


def _index_put(drawn: Any, x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """Of several values for one place the one that was written last counts; the others have no adjoint.

    The places are found with the operator itself, on integers: whoever wrote there last on values did so there.
    """
    if accumulate:
        return _put(x, indices, values, True)
    places = torch.arange(x.numel(), device=x.device).view(x.shape)
    at = aten.index.Tensor(places, indices)
    order = torch.arange(at.numel(), device=x.device).view(at.shape)
    last = _put(torch.full(x.shape, -1, device=x.device), indices, order, False)
    is_last = aten.index.Tensor(last, indices) == order
    cleared = x.masked_fill(last >= 0, 0)
    return _put(cleared, indices, values.expand(at.shape).masked_fill(~is_last, 0), True)


def _put_flat(drawn: Any, x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    return _index_put(None, x.reshape(-1), [index.reshape(-1)], source.reshape(-1), accumulate).view(x.shape)


def _put(x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool) -> Tensor:
    put: Tensor = aten.index_put.default(x, indices, values, accumulate)
    return put


def _scatter(drawn: Any, x: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """As `_index_put`, along one dimension."""
    if index.numel() == 0:
        return x.clone()
    order = torch.arange(index.numel(), device=x.device).view(index.shape)
    last = torch.full(x.shape, -1, device=x.device).scatter(dim, index, order)
    is_last = last.gather(dim, index) == order
    given = src[tuple(slice(0, n) for n in index.shape)].masked_fill(~is_last, 0)
    return x.masked_fill(last >= 0, 0).scatter_add(dim, index, given)


def _index_copy(drawn: Any, x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    if x.ndim == 0:
        return source.reshape(()) if index.numel() else x.clone()
    shape = [1] * x.ndim
    shape[dim] = -1
    return _scatter(None, x, dim, index.view(shape).expand(source.shape), source)


def _norm_except(v: Tensor, dim: int) -> Tensor:
    others = [d for d in range(v.ndim) if d != dim]
    return v.square().sum(others, keepdim=True).sqrt()


def _weight_norm_interface(drawn: Any, v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """w = g v / |v| and |v|, the norms over all dimensions but `dim` (Salimans and Kingma 2016, equation 2)."""
    norms = _norm_except(v, dim)
    return v * (g / norms), norms


def _weight_norm_interface_backward(
    drawn: Any, grad_w: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Salimans and Kingma 2016, equation 3; |v| is taken again, since the saved norms follow v."""
    others = [d for d in range(v.ndim) if d != dim]
    norms = _norm_except(v, dim)
    by_g = (grad_w * v).sum(others, keepdim=True) / norms
    return (g / norms) * (grad_w - v * (by_g / norms)), by_g


def _slogdet(drawn: Any, matrix: Tensor) -> tuple[Tensor, ...]:
    factors, pivots = _lu_factors(matrix, "_linalg_slogdet")
    diagonal = factors.diagonal(dim1=-2, dim2=-1)
    phase = diagonal.sgn() if matrix.is_complex() else diagonal.detach().sgn()
    sign = phase.prod(-1) * _parity(pivots).to(diagonal)
    return sign, diagonal.abs().log().sum(-1), factors, pivots


def _det(drawn: Any, matrix: Tensor) -> tuple[Tensor, ...]:
    factors, pivots = _lu_factors(matrix)
    diagonal = factors.diagonal(dim1=-2, dim2=-1)
    return _parity(pivots).to(diagonal) * diagonal.prod(-1), factors, pivots


def _lu_factors(matrix: Tensor, of: str = "_linalg_det") -> tuple[Tensor, Tensor]:
    """Those that an operator gives, of the matrix or of its transpose; their derivatives in the matrix are right."""
    contiguous = matrix.is_contiguous() and not matrix.is_complex()
    factors, pivots, _ = torch.linalg.lu_factor_ex(matrix.mT if _factors_the_transpose(of, contiguous) else matrix)
    return factors, pivots


@cache
def _factors_the_transpose(of: str, contiguous: bool) -> bool:
    """Which of the two torch factors depends on the layout, and on its version."""
    matrix = torch.tensor([[4.0, 1.0], [2.0, 3.0]])
    matrix = matrix if contiguous else matrix.t().contiguous().t()
    given = (matrix, torch.ones(2, 1)) if of == "_linalg_solve_ex" else (matrix,)
    factors = next(x for x in getattr(aten, of).default(*given)[1:] if x.shape == matrix.shape)
    return not torch.allclose(factors, torch.linalg.lu_factor_ex(matrix)[0])


def _parity(pivots: Tensor) -> Tensor:
    """1 or -1 for an even or odd number of exchanged rows."""
    swapped = pivots != torch.arange(1, pivots.shape[-1] + 1, device=pivots.device, dtype=pivots.dtype)
    return 1 - 2 * (swapped.sum(-1) % 2)


def _solve_ex(
    drawn: Any, matrix: Tensor, right: Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[Tensor, ...]:
    """X of A X = B (or X A = B), by LU factors that follow A."""
    is_vector = right.ndim == 1 or (matrix.ndim - 1 == right.ndim and right.shape == matrix.shape[:-1])
    b = right.unsqueeze(-1) if is_vector else right
    factors, pivots = _lu_factors(matrix, "_linalg_solve_ex")
    info = torch.zeros(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)
    solve = torch.linalg.solve_ex  # solve would wait for a GPU
    x = solve(matrix, b)[0] if left else solve(matrix.mT, b.mT)[0].mT
    return x.squeeze(-1) if is_vector else x, factors, pivots, info


def _lu_solve(
    drawn: Any, factors: Tensor, pivots: Tensor, right: Tensor, *, left: bool = True, adjoint: bool = False
) -> Tensor:
    """X of A X = B, A^H X = B, X A = B or X A^H = B for A = P L U; the last two transposed."""
    permutation, lower, upper = torch.lu_unpack(factors, pivots)
    b = right if left else right.mT
    if adjoint and not left:
        lower, upper = lower.conj(), upper.conj()
    solve = torch.linalg.solve_triangular
    if adjoint == left:
        lower, upper = (lower.mH, upper.mH) if adjoint else (lower.mT, upper.mT)
        x: Tensor = permutation @ solve(lower, solve(upper, b, upper=False), upper=True, unitriangular=True)
    else:
        x = solve(upper, solve(lower, permutation.mT @ b, upper=False, unitriangular=True), upper=True)
    return x if left else x.mT


def _copy(drawn: Any, x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """The source in the layout of `x`, by which `as_strided` may go on."""
    given = source.to(x).expand(x.shape)
    if given.stride() == x.stride():
        return given
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    return given.permute(order).contiguous().permute([order.index(d) for d in range(x.ndim)])


def _as_strided(drawn: Any, x: Tensor, size: list[int], stride: list[int], storage_offset: int | None = None) -> Tensor:
    flat, _ = _memory_order(x)
    return flat[_places(size, stride, storage_offset, flat)]


def _as_strided_scatter(
    drawn: Any, x: Tensor, source: Tensor, size: list[int], stride: list[int], storage_offset: int | None = None
) -> Tensor:
    flat, back = _memory_order(x)
    return back(_index_put(None, flat, [_places(size, stride, storage_offset, flat)], source))


def _memory_order(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The elements as they lie in memory, and the way back; of a tensor without holes."""
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    laid = x.permute(order)
    inverse = [order.index(d) for d in range(x.ndim)]
    return laid.reshape(-1), lambda flat: flat.view(laid.shape).permute(inverse)


def _places(size: list[int], stride: list[int], storage_offset: int | None, like: Tensor) -> Tensor:
    places = torch.full((1,) * len(size), storage_offset or 0, device=like.device)
    for d, (num, step) in enumerate(zip(size, stride, strict=True)):
        shape = [num if i == d else 1 for i in range(len(size))]
        places = places + (step * torch.arange(num, device=like.device)).view(shape)
    return places


def _slice_scatter(
    drawn: Any, x: Tensor, source: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    places = torch.arange(x.shape[dim], device=x.device)[start:end:step]
    return x.index_copy(dim, places, source.to(x))


def _cholesky_inverse(drawn: Any, factor: Tensor, upper: bool = False) -> Tensor:
    """(L L^T)^-1, or (U^T U)^-1."""
    inverse: Tensor = torch.linalg.solve_triangular(factor, _eye_like(factor), upper=upper)
    return inverse @ inverse.mH if upper else inverse.mH @ inverse


def _cholesky_solve(drawn: Any, right: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    first, second = (factor.mH, factor) if upper else (factor, factor.mH)
    half = torch.linalg.solve_triangular(first, right, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(second, half, upper=True)
    return whole


def _eye_like(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand(matrix.shape)


def _native_dropout(drawn: Any, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    mask = drawn[1]
    if train is False:
        return x.clone(), mask
    return x * mask * (0.0 if p == 1 else 1 / (1 - p)), mask


def _rrelu(
    drawn: Any,
    x: Tensor,
    noise: Tensor,
    lower: Any = 1 / 8,
    upper: Any = 1 / 3,
    train: bool = False,
    generator: Any = None,
) -> tuple[Tensor, Tensor]:
    """With the slopes that were drawn, 1 where x is positive."""
    if not train:
        return torch.nn.functional.leaky_relu(x, (float(lower) + float(upper)) / 2), noise
    return x * drawn[1], drawn[1]


RULES: dict[Any, Callable[..., Any]] = {
    aten.embedding.default: _embedding,
    aten.embedding_dense_backward.default: _embedding_dense_backward,
    aten._embedding_bag.default: _embedding_bag,
    aten._embedding_bag_backward.default: _embedding_bag_backward,
    aten._embedding_bag_per_sample_weights_backward.default: _embedding_bag_weights_backward,
    aten.index_put.default: _index_put,
    aten._unsafe_index_put.default: _index_put,
    aten.put.default: _put_flat,
    aten.scatter.src: _scatter,
    aten.index_copy.default: _index_copy,
    aten._weight_norm_interface.default: _weight_norm_interface,
    aten._weight_norm_interface_backward.default: _weight_norm_interface_backward,
    aten._linalg_slogdet.default: _slogdet,
    aten._linalg_det.default: _det,
    aten._linalg_solve_ex.default: _solve_ex,
    aten.linalg_lu_solve.default: _lu_solve,
    aten.copy.default: _copy,
    aten.as_strided.default: _as_strided,
    aten.as_strided_scatter.default: _as_strided_scatter,
    aten.slice_scatter.default: _slice_scatter,
    aten.cholesky_inverse.default: _cholesky_inverse,
    aten.cholesky_solve.default: _cholesky_solve,
    aten.native_dropout.default: _native_dropout,
    aten.rrelu_with_noise_functional.default: _rrelu,
}

# What they give is a function of what they draw and of their arguments; of the rest it is what was drawn.
DRAWING = {func: RULES[func] for func in (aten.native_dropout.default, aten.rrelu_with_noise_functional.default)}

# Autograd does not follow some of their results, which only their own backward takes; that one's derivative does.
FOLLOWED = frozenset(
    {
        aten.lu_unpack.default,
        aten.native_batch_norm.default,
        aten._native_batch_norm_legit.default,
        aten._native_batch_norm_legit.no_stats,
        aten.cudnn_batch_norm.default,
        aten.native_layer_norm.default,
        aten.native_group_norm.default,
        aten.nll_loss_forward.default,  # the sum of weights
        aten.nll_loss2d_forward.default,
    }
)
