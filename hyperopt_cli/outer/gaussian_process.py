"""A Gaussian process that is told values and gradients: what E may be where it was not measured, and how sure that is.

    f ~ GP(m, k),      k(x, x') = a^2 exp(-|x - x'|^2 / 2 l^2)
    cov(df/dx_i, f') = dk/dx_i,      cov(df/dx_i, df'/dx'_j) = d^2 k / dx_i dx'_j
    value = f + N(0, s^2),      gradient_n = df/dx + N(0, t_n^2)

A gradient is K numbers about f (Wu, Poloczek, Wilson and Frazier 2017, "Bayesian optimization with gradients",
https://arxiv.org/abs/1703.04389, section 3.1). Each has a noise t_n of its own: at the edge of stability the derivative
of one training run, which is exact, tells nothing of the trend of E, and beside it one may be right.

l, a, s and t_n are those of the largest posterior density, under log-normal priors between bounds: l is near one unit
of a hyperparameter (`terrain.py`), s some hundredths of E. Of m, whose prior is N(0, 3^2), the best is taken in closed
form (Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", sections 2.2 and 2.7).

Of many hyperparameters only the directions are looked at in which points differ, or gradients point: N of each span 2 N
of them. What f is along these does not depend on the others, where every gradient is 0; that it is so is not counted
as evidence for l, a and t_n. So the cost is that of a factorisation of N (2 N + 1) rows at the most, whatever K is.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hyperopt_cli.outer.method import Answer

# median of the prior, spread of its logarithm, the smallest and the largest value
LENGTH, AMPLITUDE = (1.0, 0.3, 0.5, 3.0), (1.0, 0.5, 0.3, 3.0)
NOISE, GRADIENT_NOISE = (0.05, 0.7, 0.01, 0.5), (0.3, 1.5, 0.01, 30.0)
MEAN_VARIANCE = 9.0
MOST_ITERATIONS = 25
JITTER = 1e-10
CEILING = math.log(20.0)
STEEPEST = 100.0  # a slope of log E that is told; a larger one is noise beyond what t_n allows for
LEAST_UNIT = 0.01  # of the lowest E: what differences from it are measured in


class GaussianProcess:
    """What a function may be, after some evaluations.

    Args:
        points: of the evaluations, [N, K], in coordinates in which k is isotropic.
        values: [N].
        gradients: of each evaluation [K], or None where it was not taken.
        guess: `fitted` of an earlier process, from whose l, a and s this fit starts.

    Attributes:
        origin: of the coordinates in the basis, [K].
        basis: an orthonormal basis of the directions that are looked at, [K, r].
        fitted: l, a, s and t_n of each gradient, as logarithms, [3 + number of gradients].
    """

    def __init__(
        self, points: Tensor, values: Tensor, gradients: Sequence[Tensor | None], guess: Tensor | None = None
    ) -> None:
        self.origin, self._values = points.mean(dim=0), values
        self._with = torch.tensor([n for n, grad in enumerate(gradients) if grad is not None], dtype=torch.long)
        told = [grad for grad in gradients if grad is not None]
        slopes = torch.stack(told) if told else points.new_zeros(0, points.shape[1])
        self.basis = span(points - self.origin, slopes)
        self._points = self.inside(points)
        self._told = torch.cat([values, (slopes @ self.basis).flatten()])
        self._ones = torch.cat([torch.ones_like(values), torch.zeros(len(told) * self.basis.shape[1])]).to(values)
        priors = [LENGTH, AMPLITUDE, NOISE, *[GRADIENT_NOISE] * len(told)]
        self._medians, self._spreads, self._lowest, self._highest = torch.tensor(priors).to(values).unbind(dim=1)
        self.fitted = self._fit(guess)
        self._factor, self._mean, self._weights, _ = self._solved(self.fitted.exp())

    @property
    def noise(self) -> float:
        """The standard deviation of a value about f."""
        return float(self.fitted[2].exp())

    def tells_more(self, radius: float, price: float) -> bool:
        """Returns whether a gradient says more about f than plain runs of its price would.

        A gradient is K slopes with a variance of t^2, t being the median of those that were told and of the prior's; a
        run at a distance of `radius` is one slope with a variance of 2 s^2 / radius^2. Where nothing is known yet of
        some directions, only a gradient tells of them.

        Args:
            radius: how far apart runs are.
            price: of a gradient, in plain runs.
        """
        if self.basis.shape[1] < len(self.origin):
            return True
        noises = torch.cat([self.fitted[3:].exp(), torch.tensor([GRADIENT_NOISE[0]], dtype=torch.float64)])
        variance = float(noises.median()) ** 2
        return len(self.origin) / variance >= price * radius**2 / (2 * self.noise**2)

    def inside(self, points: Tensor) -> Tensor:
        """Returns the coordinates of points [N, K] in the basis, [N, r]."""
        return (points - self.origin) @ self.basis

    def outside(self, inside: Tensor) -> Tensor:
        """Returns the points of coordinates in the basis, [N, r] -> [N, K]."""
        return self.origin + inside @ self.basis.T

    def at(self, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean of f and its standard deviation, [N] each, at coordinates in the basis [N, r]."""
        length, amplitude = self.fitted[0].exp(), self.fitted[1].exp()
        across = amplitude**2 * covariance(inside, self._points, length, None, self._with)
        mean = self._mean + across @ self._weights
        explained = torch.linalg.solve_triangular(self._factor, across.T, upper=False).square().sum(dim=0)
        return mean, (amplitude**2 - explained).clamp(min=1e-12).sqrt()

    def _fit(self, guess: Tensor | None) -> Tensor:
        """Returns the logarithms of l, a, s and t_n of the largest posterior density."""
        low, high, centre = self._lowest.log(), self._highest.log(), self._medians.log()
        start = centre.clone()
        if guess is not None:  # each t_n anew: another gradient may stand in its place
            start[:3] = guess[:3]
        middle, half = (low + high) / 2, (high - low) / 2
        free = torch.atanh(((start - middle) / half).clamp(-0.95, 0.95)).requires_grad_()
        search = torch.optim.LBFGS([free], max_iter=MOST_ITERATIONS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            search.zero_grad()
            logs = middle + half * free.tanh()
            value = self._solved(logs.exp())[3] + ((logs - centre) / self._spreads).square().sum() / 2
            value.backward()  # type: ignore[no-untyped-call]
            return value

        with torch.enable_grad():
            search.step(loss)  # type: ignore[no-untyped-call]
        found = middle + half * free.detach().tanh()
        return found if bool(found.isfinite().all()) else centre

    def _solved(self, fitted: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the factor of the covariance of what was told, m, the weights of the data, and -log likelihood."""
        length, amplitude, noise, slope_noise = fitted[0], fitted[1], fitted[2], fitted[3:]
        num, width = len(self._values), self.basis.shape[1]
        variances = torch.cat([(noise**2).expand(num), (slope_noise**2).repeat_interleave(width)])
        among = amplitude**2 * covariance(self._points, self._points, length, self._with, self._with)
        factor = torch.linalg.cholesky(among + torch.diag(variances + JITTER * amplitude**2))
        both = torch.stack([self._told, self._ones], dim=1)
        solved = torch.cholesky_solve(both, factor)
        mean = self._ones @ solved[:, 0] / (self._ones @ solved[:, 1] + 1 / MEAN_VARIANCE)
        weights = solved[:, 0] - mean * solved[:, 1]
        misfit = (self._told - mean * self._ones) @ weights / 2 + mean**2 / (2 * MEAN_VARIANCE)
        return factor, mean, weights, misfit + factor.diagonal().log().sum()


def covariance(
    left: Tensor, right: Tensor, length: Tensor, left_slopes: Tensor | None, right_slopes: Tensor | None
) -> Tensor:
    """Returns cov of f and df/dx at some points with those at others, for an amplitude of 1.

    Args:
        left: points, [N, r].
        right: points, [M, r].
        length: l.
        left_slopes: at which of `left` the gradient is meant too, [n]; None: at none.
        right_slopes: likewise, [m].

    Returns:
        [N + n r, M + m r], the gradients one after the other.
    """
    none = torch.zeros(0, dtype=torch.long)
    rows, columns = none if left_slopes is None else left_slopes, none if right_slopes is None else right_slopes
    apart = left[:, None, :] - right[None, :, :]
    k = torch.exp(-apart.square().sum(dim=-1) / (2 * length**2))
    size = left.shape[1]
    by_right = (k[:, columns, None] * apart[:, columns] / length**2).flatten(1)
    by_left = -(k[rows, :, None] * apart[rows] / length**2).transpose(1, 2).flatten(0, 1)
    between = apart[rows][:, columns]
    outer = torch.eye(size).to(left) / length**2 - between[..., :, None] * between[..., None, :] / length**4
    by_both = (k[rows][:, columns, None, None] * outer).transpose(1, 2).reshape(len(rows) * size, len(columns) * size)
    return torch.cat([torch.cat([k, by_right], dim=1), torch.cat([by_left, by_both], dim=1)])


def span(differences: Tensor, slopes: Tensor) -> Tensor:
    """Returns an orthonormal basis of what vectors [N, K] and [M, K] span, [K, r]; where they are many, all.

    Args:
        differences: of points; a direction counts if it is no rounding beside the longest.
        slopes: gradients; the direction of each counts, however small it is.
    """
    size = differences.shape[1]
    if len(differences) + len(slopes) >= size:
        return torch.eye(size, dtype=differences.dtype)
    longest, norms = differences.norm(dim=1).max(), slopes.norm(dim=1, keepdim=True)
    rows = [differences / (longest if longest > 0 else 1.0), slopes / torch.where(norms > 0, norms, 1.0)]
    _, sizes, directions = torch.linalg.svd(torch.cat(rows), full_matrices=False)
    basis: Tensor = directions[sizes > 1e-6 * sizes.max()].T
    return basis


class Warp:
    """What a Gaussian process is told of E: its logarithm, over the lowest that was measured.

    What is 20 times the lowest or more, or has diverged, counts as 20 times. Where E is not above 0 everywhere, it is
    told how far E is from the lowest, over the median of that. Of a gradient that is steeper than any trend it is told
    nothing.

    Args:
        answers: what was measured, one that is finite among them.
    """

    def __init__(self, answers: Sequence[Answer]) -> None:
        finite = sorted(answer.value for answer in answers if math.isfinite(answer.value))
        self._lowest, self._is_log = finite[0], finite[0] > 0
        self._unit = max(finite[len(finite) // 2] - finite[0], LEAST_UNIT * abs(finite[0])) or 1.0

    def value(self, answer: Answer) -> float:
        """Returns what is told of a value."""
        if not math.isfinite(answer.value):
            return CEILING
        told = math.log(answer.value / self._lowest) if self._is_log else (answer.value - self._lowest) / self._unit
        return min(told, CEILING)

    def slope(self, answer: Answer, scale: Tensor) -> Tensor | None:
        """Returns what is told of a gradient, [K], of which every entry is multiplied by that of `scale`."""
        if answer.grad is None or self.value(answer) == CEILING:
            return None
        slope = answer.grad * scale / (answer.value if self._is_log else self._unit)
        return slope if float(slope.abs().max()) <= STEEPEST else None

    def back(self, told: float) -> float:
        """Returns E of what was told."""
        return self._lowest * math.exp(told) if self._is_log else self._lowest + told * self._unit
