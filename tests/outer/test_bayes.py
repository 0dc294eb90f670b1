"""The Gaussian process against its formulas written out, and the method that walks by it."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from hyperopt_cli.outer.auto import Auto
from hyperopt_cli.outer.bayes import PATIENCE, Bayes, explore
from hyperopt_cli.outer.gaussian_process import (
    AMPLITUDE,
    CEILING,
    GRADIENT_NOISE,
    LENGTH,
    NOISE,
    STEEPEST,
    GaussianProcess,
    Warp,
    covariance,
)
from hyperopt_cli.outer.method import Answer, Ask, Known, Walk
from hyperopt_cli.outer.terrain import Terrain
from hyperopt_cli.space import Hyperparameter, Knob, Schedule, Space, Transform
from tests.outer.test_methods import followed

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def terrain_of(start: Tensor, bounds: tuple[float, float] | None = None) -> Terrain:
    knob = Knob(start.double(), Transform("identity", bounds), step=1.0)
    return Terrain.of(Space((Hyperparameter("x", knob, Schedule()),)), 10, in_units=True)


def asked(walk: Walk, function: Callable[[Tensor], Tensor], most: int) -> list[tuple[Ask, float]]:
    """The points that a method asks for and E there, until it ends or has asked `most` times."""
    seen = followed(walk, function, most=most)
    return list(zip(seen.asks, seen.values, strict=True))


def test_covariances_are_the_derivatives_of_the_kernel() -> None:
    left, right, length = normal(3, 2), normal(4, 2, seed=1), torch.tensor(0.7, dtype=F64)
    found = covariance(left, right, length, torch.tensor([0, 2]), torch.tensor([1]))

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-(x - y).square().sum() / (2 * length**2))

    by_left, by_right = torch.func.grad(kernel, 0), torch.func.grad(kernel, 1)
    by_both = torch.func.jacrev(by_left, 1)
    rows = [torch.stack([kernel(x, y) for y in right]) for x in left]
    rows = [torch.cat([row, by_right(x, right[1])]) for row, x in zip(rows, left, strict=True)]
    for n in (0, 2):
        slopes = torch.stack([by_left(left[n], y) for y in right], dim=1)
        rows += list(torch.cat([slopes, by_both(left[n], right[1])], dim=1))
    torch.testing.assert_close(found, torch.stack(rows), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [2, 9], ids=["all coordinates", "a few directions"])
def test_the_mean_and_the_deviation_are_those_of_the_whole_covariance(size: int) -> None:
    """With 9 coordinates and 3 points it looks at 5 directions; along the others it has nothing to say."""
    points, values = 0.3 * normal(3, size), torch.tensor([0.1, 0.4, 0.0], dtype=F64)
    gradients = [None, *normal(2, size, seed=1)]
    process = GaussianProcess(points, values, gradients)
    assert process.basis.shape[1] == min(size, 4)  # two differences and two gradients
    length, amplitude, noise, *slope_noise = process.fitted.exp()

    at = torch.tensor([1, 2])
    among = amplitude**2 * covariance(points, points, length, at, at)
    slope_variances = torch.stack(slope_noise).square().repeat_interleave(size)
    among += torch.diag(torch.cat([(noise**2).expand(3), slope_variances]) + 1e-10 * amplitude**2)
    told = torch.cat([values, *[grad for grad in gradients if grad is not None]])
    ones = torch.cat([torch.ones(3, dtype=F64), torch.zeros(2 * size, dtype=F64)])
    inverse = torch.linalg.inv(among)
    mean = ones @ inverse @ told / (ones @ inverse @ ones + 1 / 9)
    new = process.outside(process.inside(0.3 * normal(5, size, seed=2)))
    across = amplitude**2 * covariance(new, points, length, None, at)
    variance = amplitude**2 - (across @ inverse * across).sum(dim=1)

    found, deviation = process.at(process.inside(new))
    torch.testing.assert_close(found, mean + across @ inverse @ (told - mean * ones), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(deviation, variance.sqrt(), rtol=1e-5, atol=1e-8)


def test_the_fit_is_of_the_likelihood_and_the_priors() -> None:
    """At what was fitted, the density that is maximised: by torch's own normal distribution, and a slope of 0."""
    points, values = 0.5 * normal(5, 2), normal(5, seed=3).abs()
    process = GaussianProcess(points, values, [None, *normal(4, 2, seed=1)])
    at, priors = torch.arange(1, 5), torch.tensor([LENGTH, AMPLITUDE, NOISE, *[GRADIENT_NOISE] * 4], dtype=F64)
    told = torch.cat([values, normal(4, 2, seed=1).flatten()])
    ones = torch.cat([torch.ones(5, dtype=F64), torch.zeros(8, dtype=F64)])

    def minus_log_density(logs: Tensor) -> Tensor:
        length, amplitude, noise = logs[:3].exp()
        variances = torch.cat([(noise**2).expand(5), logs[3:].exp().square().repeat_interleave(2)])
        among = amplitude**2 * covariance(points, points, length, at, at)
        among = among + torch.diag(variances + 1e-10 * amplitude**2)
        solved = torch.linalg.solve(among, torch.stack([told, ones], dim=1))
        mean = ones @ solved[:, 0] / (ones @ solved[:, 1] + 1 / 9)
        normals = torch.distributions.MultivariateNormal(mean * ones, among).log_prob(told)
        of_priors = ((logs - priors[:, 0].log()) / priors[:, 1]).square().sum() / 2 + mean**2 / 18
        value: Tensor = of_priors - normals
        return value

    slope = torch.func.grad(minus_log_density)(process.fitted)
    inner = (process.fitted.exp() > 1.05 * priors[:, 2]) & (process.fitted.exp() < priors[:, 3] / 1.05)
    assert int(inner.sum()) >= 4
    assert float(slope[inner].abs().max()) < 0.3  # of densities that change by tens between the bounds
    for n in inner.nonzero().flatten().tolist():
        aside = process.fitted.clone()
        aside[n] += 0.4
        assert minus_log_density(aside) > minus_log_density(process.fitted)


def test_gradients_say_where_it_goes_down_and_one_that_is_wrong_is_not_believed() -> None:
    points = torch.tensor([[-0.4], [-0.2], [0.0], [0.2], [0.4]], dtype=F64)
    values = points[:, 0].square()
    right = [2 * x for x in points]
    truth = torch.tensor([[0.6], [-0.6]], dtype=F64)
    believed = GaussianProcess(points, values, right)
    torch.testing.assert_close(believed.at(believed.inside(truth))[0], truth[:, 0].square(), rtol=0.0, atol=0.05)

    wrong = [*right[:2], right[2] + 30.0, *right[3:]]
    process = GaussianProcess(points, values, wrong)
    assert process.fitted[5].exp() > 10 * process.fitted[[3, 4, 6, 7]].exp().max()
    torch.testing.assert_close(process.at(process.inside(points))[0], values, rtol=0.0, atol=0.05)


def test_a_gradient_is_not_taken_where_plain_runs_say_more() -> None:
    points = 0.3 * normal(6, 4)
    values, right = points.square().sum(dim=1), [2 * x for x in points]
    assert GaussianProcess(points, values, right).tells_more(0.5, 3.0)
    wrong = [x + 9.0 * (-1) ** n for n, x in enumerate(right)]
    assert not GaussianProcess(points, values, wrong).tells_more(0.5, 3.0)


@pytest.mark.parametrize("values", [[2.0, 3.0, 2e9, math.inf], [-1.0, 3.0, 2e9, math.inf]], ids=["log", "shares"])
def test_what_is_told_of_a_value_comes_back_and_has_a_ceiling(values: list[float]) -> None:
    warp = Warp([Answer(value) for value in values])
    assert [warp.value(Answer(value)) for value in values[2:]] == [CEILING, CEILING]
    for value in values[:2]:
        assert warp.back(warp.value(Answer(value))) == pytest.approx(value)
    slope = warp.slope(Answer(values[1], torch.tensor([5.0], dtype=F64)), torch.tensor([2.0], dtype=F64))
    step = (warp.value(Answer(values[1] + 1e-6)) - warp.value(Answer(values[1]))) / 1e-6
    assert slope is not None
    assert float(slope) == pytest.approx(10 * step, rel=1e-5)
    assert warp.slope(Answer(values[2], torch.ones(1)), torch.ones(1)) is None


def bowl(x: Tensor, roughness: float = 0.0) -> Tensor:
    """0.1 at (0.7, -0.4), and waves so short that their slopes, up to `roughness` * 300, say nothing of the bowl."""
    at = torch.tensor([0.7, -0.4], dtype=F64)
    return 0.1 * (1 + 3 * (x - at).square().sum()) * (1 + roughness * (300 * x).sin().mean())


@pytest.mark.parametrize(("roughness", "above"), [(0.0, 0.005), (0.05, 0.05)])
def test_it_finds_the_bottom_of_a_bowl_smooth_or_rough(roughness: float, above: float) -> None:
    terrain = terrain_of(torch.tensor([-0.5, 0.8]))
    seen = asked(Bayes().walk(terrain), partial(bowl, roughness=roughness), most=20)
    best = min(seen, key=lambda pair: pair[1])[0].point
    assert float(bowl(best)) < 0.1 * (1 + above)


def test_it_stays_within_the_bounds_and_reaches_them() -> None:
    terrain = terrain_of(torch.tensor([0.0, 0.0]), (-0.1, 0.1))
    seen = asked(Bayes().walk(terrain), bowl, most=12)
    assert all(bool((ask.point.abs() <= 0.1).all()) for ask, _ in seen)
    assert torch.tensor([0.1, -0.1], dtype=F64).equal(min(seen, key=lambda pair: pair[1])[0].point)


def test_many_coordinates_move_along_what_was_measured() -> None:
    """K = 300: E depends on their mean, and so does every point."""
    terrain = terrain_of(torch.zeros(300))
    seen = asked(Bayes().walk(terrain), lambda x: 0.1 + (x.mean() - 0.8) ** 2, most=9)
    assert min(value for _, value in seen) < 0.102
    assert all(float(ask.point.std()) < 1e-6 for ask, _ in seen)


def test_it_asks_the_same_when_it_is_told_the_same() -> None:
    rough = partial(bowl, roughness=0.05)
    one, other = (asked(Bayes().walk(terrain_of(torch.tensor([-0.5, 0.8]))), rough, most=15) for _ in range(2))
    assert all(a[0].point.equal(b[0].point) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("falls_to", [0.03, -0.5])
def test_gradients_that_are_forgotten_when_e_falls_far_end_nothing(falls_to: float) -> None:
    terrain = terrain_of(torch.tensor([0.0, 0.0]))
    known = [Known(normal(2, seed=n), Answer(value, normal(2, seed=9))) for n, value in enumerate((1.0, 0.9, 0.8))]
    values = iter([0.7, falls_to, 0.9, 0.9, 0.9])
    assert len(asked(explore(terrain, known), lambda x: next(values) + 0 * x.sum(), most=5)) == 5


@pytest.mark.parametrize("steepness", [3e2, 1e6, 1e12])
def test_one_gradient_that_is_noise_changes_nothing(steepness: float) -> None:
    terrain = terrain_of(torch.zeros(2))
    points = [torch.tensor(x, dtype=F64) for x in ((0.4, 0.3), (-0.2, -0.1), (0.1, -0.7), (0.5, 0.2))]
    known = []
    for n, point in enumerate(points):
        x = point.clone().requires_grad_()
        (grad,) = torch.autograd.grad(bowl(x), x)
        known.append(Known(point, Answer(float(bowl(x).detach()), grad + steepness * (n == 3))))
    seen = asked(explore(terrain, known), bowl, most=4)
    assert min(value for _, value in seen) < 0.12
    lowest = min(k.answer.value for k in known)
    assert seen[0][0].below >= lowest
    assert Warp([k.answer for k in known]).slope(known[3].answer, torch.ones(2, dtype=F64)) is None
    assert steepness > STEEPEST


def test_where_nothing_slopes_it_ends() -> None:
    terrain = terrain_of(torch.zeros(3))
    assert len(asked(Bayes().walk(terrain), lambda x: 1.0 + 0 * x.sum(), most=9)) == 2


def test_while_directions_are_unknown_gradients_are_asked_for() -> None:
    terrain = terrain_of(torch.zeros(30))
    seen = asked(Bayes().walk(terrain), lambda x: 0.1 + (x - 0.3).square().mean(), most=8)
    assert all(ask.gradient for ask, _ in seen[1:])
    assert min(value for _, value in seen) < 0.102


def test_a_beta_is_at_most_halved_or_doubled_in_its_distance_from_one() -> None:
    knobs = {
        "lr": Knob(torch.tensor(0.1), Transform("log")),
        "momentum": Knob(torch.tensor(0.9), Transform("logit"), is_beta=True),
    }
    space = Space(tuple(Hyperparameter(name, knob, Schedule()) for name, knob in knobs.items()))
    terrain = Terrain.of(space, 1000, in_units=True)
    seen = asked(
        explore(terrain, [Known(terrain.start, Answer(1.0, torch.tensor([0.0, 1.0])))]), lambda x: x.sum() + 3, most=1
    )
    rate, distance = (float(x) for x in 10 ** (seen[0][0].point - terrain.start))
    assert max(abs(math.log(distance)), abs(math.log(rate / distance))) == pytest.approx(math.log(2))


def test_it_ends_after_many_points_that_are_no_better() -> None:
    terrain = terrain_of(torch.tensor([0.0]))
    values = iter([1.0, 1.0, *[2.0] * 100])
    seen = asked(
        explore(terrain, [Known(terrain.start, Answer(1.0, torch.ones(1)))]), lambda x: next(values) + 0 * x.sum(), 99
    )
    assert PATIENCE <= len(seen) <= PATIENCE + 2


def test_auto_explores_where_its_descent_gets_stuck_and_ends_where_it_has_converged() -> None:
    terrain = terrain_of(torch.tensor([-0.5, 0.8]))
    rough = asked(Auto().walk(terrain), partial(bowl, roughness=0.05), most=40)
    smooth = asked(Auto().walk(terrain), bowl, most=100)
    assert len(rough) > 25
    assert len(smooth) < 20
    assert min(value for _, value in smooth) == pytest.approx(0.1, abs=1e-5)
    assert min(value for _, value in rough) < 0.1 * 1.02
