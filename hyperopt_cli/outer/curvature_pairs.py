"""B, an approximation of the Hessian of E by pairs of steps and changes of the gradient: BFGS with Powell's damping.

    B <- B - B s (B s)^T / (s^T B s) + r r^T / (s^T r),      r = theta y + (1 - theta) B s,
    theta = 1 where s^T y >= s^T B s / 5, else 0.8 s^T B s / (s^T B s - s^T y)

so that s^T r > 0 and B stays positive definite (Nocedal and Wright 2006, "Numerical Optimization", procedure 18.2,
after Powell 1978). It begins as sigma I, sigma = y^T y / s^T y of the first pair.

B is dense up to K = 200. Above, the last ten pairs are kept: in an orthonormal basis Q of them, B = sigma I + Q C Q^T,
and C follows from the same recursion on vectors of twenty numbers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_DENSE = 200
MEMORY = 10
DAMPED = 0.2  # of s^T B s: what s^T y must be at least


class CurvaturePairs:
    """The approximation, updated pair by pair.

    Args:
        size: K.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._sigma = 1.0
        self._basis, self._inner = torch.empty(size, 0, dtype=torch.float64), torch.empty(0, 0, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._pairs)

    def clear(self) -> None:
        """Forgets every pair, so that nothing is known of B."""
        self._pairs = []

    def add(self, step: Tensor, change: Tensor) -> None:
        """Takes in a step s and the change y of the gradient over it, both [K]."""
        self._pairs.append((step, change))
        if self._size > MOST_DENSE:
            self._pairs = self._pairs[-MEMORY:]
            vectors = torch.stack([x for pair in self._pairs for x in pair], dim=1)
            self._basis = torch.linalg.qr(vectors).Q
        else:
            self._basis = torch.eye(self._size, dtype=torch.float64)
        inside = [(self._basis.T @ s, self._basis.T @ y) for s, y in self._pairs]
        s, y = inside[0]
        self._sigma = float(y @ y / (s @ y)) if s @ y > 0 else float(y.norm() / s.norm())
        self._inner = damped_bfgs(self._sigma, inside)

    def times(self, vectors: Tensor) -> Tensor:
        """Returns B times [K, n]."""
        inside = self._basis.T @ vectors
        times: Tensor = self._sigma * vectors + self._basis @ (self._inner @ inside - self._sigma * inside)
        return times

    def span(self, grad: Tensor, free: Tensor) -> Tensor:
        """Returns an orthonormal basis in which the best step lies, [K, n], of what is free.

        Args:
            grad: the gradient, [K].
            free: which coordinates may move, [K] of bool.
        """
        if self._size <= MOST_DENSE:
            return torch.eye(self._size, dtype=torch.float64)[:, free]
        vectors = torch.cat([self._basis, grad[:, None]], dim=1) * free[:, None]
        basis, sizes, _ = torch.linalg.svd(vectors, full_matrices=False)
        kept: Tensor = basis[:, sizes > 1e-12 * sizes.max()]
        return kept


def damped_bfgs(sigma: float, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Returns B, [n, n], that begins as sigma I, after all `pairs` of s and y, [n] each.

    Example:
        >>> s, y = torch.tensor([1.0, 0.0]), torch.tensor([4.0, 0.0])
        >>> damped_bfgs(1.0, [(s, y)])
        tensor([[4., 0.],
                [0., 1.]])
    """
    b = sigma * torch.eye(len(pairs[0][0]), dtype=pairs[0][0].dtype)
    for s, y in pairs:
        bs = b @ s
        sbs, sy = s @ bs, s @ y
        if sbs <= 0:
            continue
        theta = 1.0 if sy >= DAMPED * sbs else (1 - DAMPED) * sbs / (sbs - sy)
        r = theta * y + (1 - theta) * bs
        b = b - torch.outer(bs, bs) / sbs + torch.outer(r, r) / (s @ r)
    return b
