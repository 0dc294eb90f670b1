"""Methods of the outer loop on functions that are known: how many evaluations, against scipy and against the rules."""

import math
from collections.abc import Callable, Generator
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from hyperopt_cli.errors import NonFiniteError
from hyperopt_cli.outer.auto import Auto
from hyperopt_cli.outer.curvature_pairs import MEMORY, MOST_DENSE, CurvaturePairs, damped_bfgs
from hyperopt_cli.outer.lbfgs import LBFGS
from hyperopt_cli.outer.method import Answer, Ask, Known
from hyperopt_cli.outer.rules import SGD, Adam, Sign
from hyperopt_cli.outer.scan import scan_points
from hyperopt_cli.outer.terrain import Axis, Terrain
from hyperopt_cli.outer.trust_region import descend_from, within_radius
from hyperopt_cli.space import Hyperparameter, Knob, Schedule, Space, Transform

F64 = torch.float64
Function = Callable[[Tensor], Tensor]


def knob(start: float | list[float], transform: str = "identity", bounds: Any = None, **more: Any) -> Knob:
    return Knob(torch.tensor(start, dtype=F64), Transform(transform, bounds), **more)


def terrain_of(steps: int = 100, rates: tuple[float, ...] = (), **knobs: Knob) -> Terrain:
    space = Space(tuple(Hyperparameter(name, each, Schedule("constant", steps)) for name, each in knobs.items()))
    return Terrain.of(space, steps, True, rates)


def free(start: Tensor, **more: Any) -> Terrain:
    """A vector without bounds, each entry a hyperparameter of its own."""
    return terrain_of(**{f"x{i}": knob(float(x), step=1.0, **more) for i, x in enumerate(start)})


def known(point: Tensor, value: float) -> Known:
    return Known(point, Answer(value))


class Followed(NamedTuple):
    """What a method asked for: every point with E, how many gradients it took, and what it returned at its end."""

    asks: list[Ask]
    values: list[float]
    num_gradients: int
    ended: Any = None


def followed(
    walk: Generator[list[Ask], list[Answer], Any], function: Function, until: float = -math.inf, most: int = 1000
) -> Followed:
    """Answers what a method asks, until a value is below `until`."""
    asked, values, num, ended = [], [], 0, None
    asks = next(walk)
    while len(values) < most:
        answers = []
        for ask in asks:
            x = ask.point.clone().requires_grad_()
            value, grad = function(x), None
            if not value.isfinite():
                answers.append(Answer(math.inf, None, NonFiniteError(0, "it")))
            else:
                if ask.gradient and float(value.detach()) < ask.below:
                    (grad,) = torch.autograd.grad(value, x)
                    num += 1
                answers.append(Answer(float(value.detach()), grad))
            asked.append(ask)
            values.append(answers[-1].value)
        if min(values) < until:
            break
        try:
            asks = walk.send(answers)
        except StopIteration as stop:
            ended = stop.value
            break
    return Followed(asked, values, num, ended)


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def rotated(x: Tensor) -> Tensor:
    """A quadratic in 20 dimensions with eigenvalues from 1 to 100."""
    draws = torch.randn(20, 20, generator=torch.Generator().manual_seed(0), dtype=F64)
    basis = torch.linalg.qr(draws).Q
    return 0.5 * (torch.logspace(0, 2, 20, dtype=F64) * (basis.T @ x) ** 2).sum()


def evaluations_of_scipy(function: Function, start: Tensor) -> list[float]:
    """The values in the order in which scipy's L-BFGS-B asks for them."""
    values: list[float] = []

    def at(x: Any) -> tuple[float, Any]:
        point = torch.tensor(x, requires_grad=True)
        value = function(point)
        value.backward()
        values.append(float(value.detach()))
        assert point.grad is not None
        return values[-1], point.grad.numpy()

    options = {"ftol": 0.0, "gtol": 1e-12, "maxfun": 5000, "maxiter": 5000}
    minimize(at, start.numpy(), jac=True, method="L-BFGS-B", options=options)
    return values


FUNCTIONS = {
    "Rosenbrock": (rosenbrock, torch.tensor([-1.2, 1.0] * 10, dtype=F64)),
    "a rotated quadratic": (rotated, torch.ones(20, dtype=F64)),
}


@pytest.mark.parametrize("below", [1e-2, 1e-6])
@pytest.mark.parametrize("method", ["auto", "lbfgs"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_more_evaluations_than_those_of_scipy_and_a_fifth(name: str, method: str, below: float) -> None:
    function, start = FUNCTIONS[name]
    terrain = free(start)
    walk = LBFGS().walk(terrain) if method == "lbfgs" else descend_from(terrain, [known(start, float(function(start)))])
    num = len(followed(walk, function, until=below).values)
    by_scipy = next(i + 1 for i, value in enumerate(evaluations_of_scipy(function, start)) if value < below)
    assert num <= 1.2 * by_scipy


@pytest.mark.parametrize("grow", [1.0, 1.2])
@pytest.mark.parametrize("rule", [Adam, SGD, Sign])
def test_the_rules_are_those_of_the_papers(rule: Any, grow: float) -> None:
    """Written out once more, on numbers: Adam's algorithm 1, heavy ball, and Rprop without backtracking."""
    start, lr, momentum = torch.tensor([1.0, -2.0], dtype=F64), 0.1, 0.9
    own = {Adam: {}, SGD: {"momentum": momentum}, Sign: {"grow": grow}}
    made = rule(lr=lr, **own[rule])
    asked = followed(made.walk(free(start)), lambda x: (torch.tensor([1.0, 5.0]) * x**2).sum(), most=12).asks
    x, m, v, velocity, gamma, before = start.clone(), 0.0, 0.0, None, torch.full((2,), lr, dtype=F64), torch.zeros(2)
    for t, ask in enumerate(asked, start=1):
        torch.testing.assert_close(ask.point, x, rtol=1e-12, atol=1e-14)
        g = 2 * torch.tensor([1.0, 5.0]) * x
        if rule is Adam:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            x = x - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        elif rule is SGD:
            velocity = g if velocity is None else momentum * velocity + g
            x = x - lr * velocity
        else:
            same = g.sign() * before
            gamma = torch.where(same < 0, gamma / 2, torch.where(same > 0, grow * gamma, gamma))
            x, before = x - gamma * g.sign(), g.sign()


def test_a_step_within_the_radius_minimises_the_model() -> None:
    """Against many points on and in the ball; B is indefinite, so the step lies on the sphere."""
    generator = torch.Generator().manual_seed(1)
    b, g = torch.diag(torch.tensor([2.0, -1.0, 5.0], dtype=F64)), torch.tensor([1.0, 0.1, -3.0], dtype=F64)
    p = within_radius(b, g, 0.7)
    assert float(p.norm()) == pytest.approx(0.7)
    others = torch.randn(2000, 3, generator=generator, dtype=F64)
    others = (
        others / others.norm(dim=1, keepdim=True) * 0.7 * torch.rand(2000, 1, generator=generator, dtype=F64) ** 0.3
    )
    model = others @ g + (others @ b * others).sum(dim=1) / 2
    assert float(g @ p + p @ b @ p / 2) <= float(model.min())


def test_many_coordinates_remember_the_last_pairs_as_the_full_recursion_does() -> None:
    generator = torch.Generator().manual_seed(2)
    size = MOST_DENSE + 1
    limited, kept = CurvaturePairs(size), []
    for _ in range(MEMORY + 2):
        s, y = (torch.randn(size, generator=generator, dtype=F64) for _ in range(2))
        limited.add(s, y)
        kept.append((s, y))
    s, y = kept[2]
    sigma = float(y @ y / (s @ y)) if s @ y > 0 else float(y.norm() / s.norm())
    whole = damped_bfgs(sigma, kept[2:])
    vectors = torch.randn(size, 3, generator=generator, dtype=F64)
    torch.testing.assert_close(limited.times(vectors), whole @ vectors, rtol=1e-9, atol=1e-9)
    assert float(torch.linalg.eigvalsh(whole).min()) > 0  # damped, though half of the pairs have s.y < 0


def test_a_coordinate_that_is_pushed_against_its_bound_leaves_the_model() -> None:
    terrain = terrain_of(a=knob(0.0, bounds=(0.0, 1.0)), b=knob(0.0, step=1.0))
    asked = followed(Auto().walk(terrain), lambda x: (x[0] + 2) ** 2 + x[0] * x[1] + (x[1] - 1) ** 2, most=30).asks
    assert all(0 <= float(ask.point[0]) <= 1 for ask in asked)
    assert float(asked[-1].point[1]) == pytest.approx(1.0, abs=1e-2)


def test_a_step_is_as_long_for_a_schedule_of_any_length() -> None:
    """E falls alike along every entry: all of them move by the radius, a tenth of which each would be by itself."""
    terrain = terrain_of(lr=knob([0.1] * 100, "log"))
    asked = followed(descend_from(terrain, [known(terrain.start, 0.0)]), lambda x: x.mean(), most=2).asks
    torch.testing.assert_close(asked[1].point - asked[0].point, torch.full((100,), -0.5, dtype=F64))


def test_the_best_of_a_scan_starts_the_descent_and_a_start_that_diverges_is_no_error() -> None:
    terrain = terrain_of(rates=(1e-3, 1e-2, 1e-1, 1.0), lr=knob(100.0, "log"))
    function = lambda x: torch.where(x[0] > 1.5, torch.inf, (x[0] + 1.3) ** 2)  # noqa: E731
    seen = followed(Auto().walk(terrain), function, until=1e-8)
    assert [round(float(ask.point[0]), 6) for ask in seen.asks[:6]] == [2.0, -3.0, -2.0, -1.0, 0.0, -1.0]
    assert [ask.gradient for ask in seen.asks[:6]] == [False] * 5 + [True]
    assert math.isinf(seen.values[0])
    assert min(seen.values) < 1e-8


def test_a_scan_goes_on_beyond_its_last_rate_while_that_is_the_best() -> None:
    terrain = terrain_of(rates=(1e-3, 1e-2), lr=knob(0.01, "log"))
    asked = followed(Auto().walk(terrain), lambda x: (x[0] - 3) ** 2, most=5).asks
    assert [round(float(ask.point[0]), 6) for ask in asked] == [-2.0, -3.0, -1.0, 0.0, 0.0]


def test_without_a_rate_the_scan_is_of_points_within_the_bounds() -> None:
    terrain = terrain_of(a=knob(0.6, bounds=(0.0, 2.0)), b=knob(7.0, step=1.0))
    points = torch.stack(scan_points(terrain))
    assert len(points) == 5
    assert bool((points[:, 1] == 7.0).all())
    assert 0 <= float(points[:, 0].min()) < float(points[:, 0].max()) <= 1  # shares of the bounds
    assert torch.equal(points, torch.stack(scan_points(terrain)))


def test_refusals_take_no_more_than_a_third_of_the_price_and_end_it() -> None:
    """E is rough: what its gradient says is never found."""
    walk = descend_from(free(torch.tensor([1.0, 1.0])), [known(torch.ones(2, dtype=F64), 0.0)])
    seen = followed(walk, lambda x: x.sum() + 10 * (x - 1).abs().detach().sum(), most=100)
    refused = sum(not value < ask.below for ask, value in zip(seen.asks, seen.values, strict=True))
    assert len(seen.values) < 100
    assert refused - 1 <= (4 * seen.num_gradients + refused + 1) / 3


def test_a_descent_is_stuck_after_two_refusals_and_two_more_with_a_fresh_matrix() -> None:
    """After one step to -0.5, whose gradient misleads: radius .5, .25, and with a fresh matrix .125, .0625."""
    walk = descend_from(free(torch.zeros(1)), [known(torch.zeros(1, dtype=F64), 1.0)])
    seen = followed(
        walk, lambda x: torch.where(x > -0.4, 1 + x, 0.5 + x + 10 * (x + 0.5).abs().detach()).sum(), most=40
    )
    lengths = [abs(float(ask.point) + 0.5) for ask in seen.asks[2:]]
    assert lengths == pytest.approx([1.0, 0.5, 0.125, 0.0625]), "the radius has doubled"
    assert seen.ended.has_converged is False


def test_betas_walk_in_their_distance_from_one_and_at_most_halve_it() -> None:
    terrain = terrain_of(steps=50, lr=knob(0.1, "log"), momentum=knob(0.5, "logit", is_beta=True))
    lr, momentum = (terrain.axes[name] for name in ("lr", "momentum"))
    assert momentum.near_one
    assert float(momentum.natural(torch.tensor(-1.0, dtype=F64))) == pytest.approx(0.9)
    assert float(momentum.natural(torch.tensor(momentum.low))) == pytest.approx(0.98)
    assert momentum.high == pytest.approx(0, abs=1e-4)
    assert lr.meaning == "times 10"
    assert momentum.meaning == "its distance from 1 times 10"
    step = terrain.shortened(torch.tensor([0.0, -1.0], dtype=F64))
    assert float(step[1]) == pytest.approx(-math.log10(2))
    both = terrain.shortened(torch.tensor([0.5, -0.5], dtype=F64))  # lr / (1 - momentum) would grow tenfold
    assert float(both[0] - both[1]) == pytest.approx(math.log10(2))
    small = torch.tensor([0.1, -0.1], dtype=F64)
    assert torch.equal(terrain.shortened(small), small)


@pytest.mark.parametrize(
    ("made", "unit"),
    [
        (knob(0.1, "log"), math.log(10)),
        (knob(0.1, "log", step=0.5), 0.5 * math.log(10)),
        (knob(0.1, "identity", (0.0, 4.0)), 4.0),
        (knob(0.1, "identity", (0.0, 4.0), step=0.5), 0.5),
        (knob(3.0), 3.0),
        (knob(0.0), 1.0),
        (knob(0.5, "logit", (0.0, 1.0)), math.log(10)),
    ],
)
def test_a_step_of_one_is_a_decade_or_a_share_of_the_bounds_or_as_the_recipe_says(made: Knob, unit: float) -> None:
    axis = Axis.of(made, 100, in_units=True)
    assert axis.unit == pytest.approx(unit)
    assert float(axis.natural(axis.coordinate(made.initial))) == pytest.approx(float(made.initial), abs=1e-15)
    raw = Axis.of(made, 100, in_units=False)
    assert raw.unit == (made.step or 1.0)


def test_gradients_are_pulled_back_to_the_coordinates() -> None:
    """Against central differences, with a beta, a rate and a share."""
    terrain = terrain_of(
        lr=knob([0.1, 0.2], "log"),
        momentum=knob(0.5, "logit", is_beta=True),
        share=knob(0.3, "identity", (0.0, 2.0)),
        soft=knob(0.7, "softplus"),
    )

    def function(vector: Tensor) -> Tensor:
        hyper = terrain.natural(vector)
        return sum(((i + 1) * value**2).sum() for i, value in enumerate(hyper.values()))  # type: ignore[return-value]

    x, h = terrain.start, 1e-6
    natural = {key: value.detach().requires_grad_() for key, value in terrain.natural(x).items()}
    value = sum(((i + 1) * each**2).sum() for i, each in enumerate(natural.values()))
    grads = torch.autograd.grad(value, list(natural.values()))  # type: ignore[arg-type]
    got = terrain.pull_back(x, dict(zip(natural, grads, strict=True)))
    for i in range(len(x)):
        shift = torch.zeros_like(x)
        shift[i] = h
        want = (function(x + shift) - function(x - shift)) / (2 * h)
        assert float(got[i]) == pytest.approx(float(want), rel=1e-6)
    torch.testing.assert_close(terrain.vector(terrain.natural(x)), x)
    torch.testing.assert_close(terrain.raw(x)["lr"], torch.log(torch.tensor([0.1, 0.2], dtype=F64)))


def test_the_first_step_goes_half_a_unit_along_the_gradient() -> None:
    terrain = free(torch.tensor([1.0, 1.0]))
    asked = followed(descend_from(terrain, [known(terrain.start, 2.0)]), lambda x: (x**2).sum(), most=2).asks
    assert float((asked[1].point - asked[0].point).norm()) == pytest.approx(0.5)


def test_a_start_that_is_too_high_is_never_descended_from() -> None:
    starts = [known(torch.tensor([x], dtype=F64), 1 + x**2) for x in (0.1, 100.0)]
    seen = followed(descend_from(free(torch.zeros(1)), starts), lambda x: (1 + x**2).sum(), most=200)
    assert seen.ended.has_converged, "it ends where nothing is promised any more"
    assert all(abs(float(ask.point)) < 50 for ask in seen.asks)


def test_a_shortened_step_is_judged_by_what_the_model_says_of_it() -> None:
    """E is linear in one of 100 entries of a momentum: what is predicted is found, so the steps never shrink."""
    terrain = terrain_of(momentum=knob([0.5] * 100, "logit", is_beta=True))
    walk = descend_from(terrain, [known(terrain.start, 0.0)])
    asked = followed(walk, lambda x: x[0], most=4).asks
    steps = [float(b.point[0] - a.point[0]) for a, b in pairwise(asked)]
    assert steps == pytest.approx([-math.log10(2)] * 3)


def test_a_run_that_diverges_quarters_the_step_and_one_that_rises_halves_it() -> None:
    for wall, share in ((math.inf, 4), (10.0, 2)):
        walk = descend_from(free(torch.zeros(1)), [known(torch.zeros(1, dtype=F64), 0.0)])
        seen = followed(walk, lambda x, wall=wall: torch.where(x < -0.01, wall, x).sum(), most=3)  # type: ignore[misc]
        first, second = (abs(float(ask.point)) for ask in seen.asks[1:3])
        assert second == pytest.approx(first / share)


def test_a_line_search_ends_at_a_bound() -> None:
    terrain = terrain_of(a=knob(0.5, bounds=(0.0, 1.0)))
    seen = followed(LBFGS().walk(terrain), lambda x: x.sum() + 5, most=50)
    assert [float(ask.point) for ask in seen.asks] == [0.5, 0.0]


@pytest.mark.parametrize(("start", "bounds"), [(0.9, (0.8, 0.99)), (0.5, (0.1, 0.7)), (0.7, (0.5, 0.9))])
def test_a_beta_at_its_bounds_has_finite_raw_values(start: float, bounds: tuple[float, float]) -> None:
    terrain = terrain_of(momentum=knob(start, "logit", bounds, is_beta=True))
    for end in (terrain.low, terrain.high):
        assert bounds[0] < float(terrain.natural(end)["momentum"]) < bounds[1]
        assert bool(terrain.raw(end)["momentum"].isfinite())


def test_rates_of_a_schedule_are_scanned_by_a_factor_whatever_their_transform() -> None:
    terrain = terrain_of(rates=(1e-2,), lr=knob([0.1, 0.4], step=1.0))
    assert [[round(float(x), 6) for x in point] for point in scan_points(terrain)] == [[0.1, 0.4], [0.005, 0.02]]
