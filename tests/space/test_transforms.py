"""Transforms: there and back, the chain rule, projection onto bounds, and what is said at the boundary."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperopt_cli.space import Hyperparameter, Knob, Space, Transform

TRANSFORMS = {
    "log": Transform("log"),
    "log with bounds": Transform("log", (1e-4, 2.0)),
    "logit": Transform("logit"),
    "logit with bounds": Transform("logit", (-1.0, 3.0)),
    "softplus": Transform("softplus"),
    "softplus with bounds": Transform("softplus", (1e-3, 5.0)),
    "identity": Transform("identity"),
    "identity with bounds": Transform("identity", (0.0, 1.0)),
}


def scalar(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def space_of(transform: Transform, start: Tensor) -> Space:
    return Space((Hyperparameter("x", Knob(start, transform)),))


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=50, deadline=None)
@given(raw=st.floats(-8.0, 8.0))
def test_raw_undoes_natural(name: str, raw: float) -> None:
    transform = TRANSFORMS[name]
    back = transform.raw(transform.natural(scalar(raw)))
    torch.testing.assert_close(back, scalar(raw), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=50, deadline=None)
@given(raw=st.floats(-30.0, 30.0))
def test_natural_values_stay_in_the_range_after_projection(name: str, raw: float) -> None:
    transform = TRANSFORMS[name]
    low, high = transform.range
    value = float(transform.natural(transform.project(scalar(raw))))
    slack = 1e-9 * max(1.0, abs(value))
    assert low - slack <= value <= high + slack


@pytest.mark.parametrize("name", ["log with bounds", "softplus with bounds", "identity with bounds"])
@settings(max_examples=50, deadline=None)
@given(raw=st.floats(-30.0, 30.0))
def test_projection_moves_nothing_that_lies_inside(name: str, raw: float) -> None:
    transform = TRANSFORMS[name]
    once = transform.project(scalar(raw))
    assert torch.equal(transform.project(once), once)
    low, high = transform.range
    if low < float(transform.natural(scalar(raw))) < high:
        assert torch.equal(once, scalar(raw))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_pull_back_is_the_chain_rule(name: str) -> None:
    raw, step = torch.tensor([-1.3, 0.2, 0.9], dtype=torch.float64), 1e-6
    transform = TRANSFORMS[name]
    by_natural = torch.tensor([2.0, -3.0, 0.5], dtype=torch.float64)
    slope = (transform.natural(raw + step) - transform.natural(raw - step)) / (2 * step)
    got = space_of(transform, transform.natural(raw)).pull_back({"x": raw}, {"x": by_natural})
    torch.testing.assert_close(got["x"], by_natural * slope, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_projection_reaches_the_bound_itself(bound: float) -> None:
    transform = Transform("identity", (0.0, 1.0))
    beyond = scalar(bound + (1e-9 if bound else -1e-9))
    assert float(transform.natural(transform.project(beyond))) == bound


@pytest.mark.parametrize("name", ["log", "softplus", "logit"])
def test_a_start_at_0_is_sent_to_identity(name: str) -> None:
    said = Transform(name).refusal(0.0)
    assert said is not None
    assert said.startswith(f"got 0; {name} starts inside (0, ")
    assert "transform: identity, bounds: [0, 1]" in said


def test_a_start_beyond_the_range_is_refused_without_a_way_out() -> None:
    assert Transform("logit").refusal(1.5) == "got 1.5; logit starts inside (0, 1)"


@pytest.mark.parametrize(("name", "start"), [("log", 0.1), ("logit", 0.5), ("identity", -3.0)])
def test_a_start_inside_is_not_refused(name: str, start: float) -> None:
    assert Transform(name).refusal(start) is None


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_identity_with_bounds_starts_at_the_bounds_too(start: float) -> None:
    assert Transform("identity", (0.0, 1.0)).refusal(start) is None


def test_an_unknown_transform_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="got 'sqrt'; allowed are log, logit, softplus, identity"):
        Transform("sqrt")


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, 1.0)])
def test_bounds_have_to_ascend(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="the first must be below the second"):
        Transform("identity", bounds)


@pytest.mark.parametrize("name", ["log", "softplus"])
def test_bounds_at_0_are_refused_where_0_is_never_reached(name: str) -> None:
    with pytest.raises(ValueError, match="its values are above 0"):
        Transform(name, (0.0, 1.0))


def test_softplus_keeps_small_values_apart() -> None:
    """log(expm1(x)) would give -inf or lose digits."""
    tiny = scalar(1e-12)
    assert math.isclose(float(Transform("softplus").natural(Transform("softplus").raw(tiny))), 1e-12, rel_tol=1e-9)
