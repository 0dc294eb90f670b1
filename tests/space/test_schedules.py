"""Schedules: each against its closed form in plain Python, its derivatives, and its edges."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperopt_cli.recipe.entries import Hyperparameter as Written
from hyperopt_cli.space import Schedule
from hyperopt_cli.space.schedules import PARAMETERS

T = 20
Form = Callable[..., float]


def scalar(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def half_cosine(p: float) -> float:
    return (1 + math.cos(math.pi * p)) / 2


def linear(u: float, peak: float, warmup: float, final: float) -> float:
    return peak * u / warmup if u < warmup else peak * (1 - (1 - final) * (u - warmup) / (1 - warmup))


def cosine(u: float, peak: float, warmup: float, final: float) -> float:
    p = (u - warmup) / (1 - warmup) if u >= warmup else 0.0
    return peak * u / warmup if u < warmup else peak * (final + (1 - final) * half_cosine(p))


def one_cycle(u: float, peak: float, warmup: float, initial: float, final: float) -> float:
    if u < warmup:
        return peak * (initial + (1 - initial) * (1 - math.cos(math.pi * u / warmup)) / 2)
    return peak * (final + (1 - final) * half_cosine((u - warmup) / (1 - warmup)))


def exponential(u: float, peak: float, final: float) -> float:
    return peak * math.exp(u * math.log(final))


def step_decay(u: float, peak: float, factor: float) -> float:
    return peak * (1.0 if u < 0.5 else factor if u < 0.75 else factor * factor)


FORMS: dict[str, tuple[Form, dict[str, float]]] = {
    "warmup_linear": (linear, {"warmup": 0.23, "final": 0.1}),
    "warmup_cosine": (cosine, {"warmup": 0.23, "final": 0.1}),
    "one_cycle": (one_cycle, {"warmup": 0.33, "initial": 0.04, "final": 0.01}),
    "exponential": (exponential, {"final": 0.05}),
    "step_decay": (step_decay, {"factor": 0.2}),
}


def course(kind: str, peak: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    schedule = Schedule(kind, T)
    return torch.stack([schedule.at(peak, parameters, t) for t in range(T)])


@pytest.mark.parametrize("kind", FORMS)
def test_equals_its_closed_form_at_every_step(kind: str) -> None:
    form, numbers = FORMS[kind]
    got = course(kind, scalar(0.4), {name: scalar(x) for name, x in numbers.items()})
    want = [form((t + 0.5) / T, 0.4, **numbers) for t in range(T)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-13, atol=0)


def test_every_kind_with_parameters_has_a_closed_form_here() -> None:
    assert {kind for kind, parameters in PARAMETERS.items() if parameters} == set(FORMS)
    assert all(set(FORMS[kind][1]) == set(PARAMETERS[kind]) for kind in FORMS)


@pytest.mark.parametrize("kind", FORMS)
def test_the_derivative_in_every_parameter_equals_central_differences(kind: str) -> None:
    form, numbers = FORMS[kind]
    numbers = {"peak": 0.4, **numbers}
    leaves = {name: scalar(x).requires_grad_() for name, x in numbers.items()}
    weights = [math.cos(t) for t in range(T)]
    values = course(kind, leaves["peak"], {name: x for name, x in leaves.items() if name != "peak"})
    (values * torch.tensor(weights, dtype=torch.float64)).sum().backward()  # type: ignore[no-untyped-call]

    def total(**changed: float) -> float:
        given = {**numbers, **changed}
        return sum(weight * form((t + 0.5) / T, **given) for t, weight in enumerate(weights))

    for name, x in numbers.items():
        slope = (total(**{name: x + 1e-6}) - total(**{name: x - 1e-6})) / 2e-6
        assert math.isclose(float(leaves[name].grad), slope, rel_tol=1e-7, abs_tol=1e-9), name  # type: ignore[arg-type]


def test_windows_hold_a_value_for_an_equal_share_of_the_steps() -> None:
    value = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    schedule = Schedule("windows", 9, 3)
    assert [float(schedule.at(value, {}, t)) for t in range(9)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


@settings(max_examples=50, deadline=None)
@given(steps=st.integers(1, 60), data=st.data())
def test_windows_ascend_use_every_value_and_differ_by_at_most_one_step(steps: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, steps))
    value = torch.arange(count, dtype=torch.float64)
    seen = [int(Schedule("windows", steps, count).at(value, {}, t)) for t in range(steps)]
    lengths = [seen.count(i) for i in range(count)]
    assert seen == sorted(seen)
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1


def test_knots_are_joined_by_lines_from_the_first_step_to_the_last() -> None:
    value = torch.tensor([0.0, 4.0, 2.0], dtype=torch.float64)
    got = [float(Schedule("knots", 9, 3).at(value, {}, t)) for t in range(9)]
    assert got == [0.0, 1.0, 2.0, 3.0, 4.0, 3.5, 3.0, 2.5, 2.0]


@settings(max_examples=50, deadline=None)
@given(steps=st.integers(2, 40), data=st.data())
def test_knots_on_a_line_give_that_line(steps: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, steps))
    value = torch.linspace(1, 3, count, dtype=torch.float64)
    got = torch.stack([Schedule("knots", steps, count).at(value, {}, t) for t in range(steps)])
    torch.testing.assert_close(got, torch.linspace(1, 3, steps, dtype=torch.float64), rtol=1e-12, atol=0)


def test_per_step_takes_the_value_of_the_step() -> None:
    value = torch.linspace(0, 1, 7, dtype=torch.float64)
    assert torch.equal(torch.stack([Schedule("per_step", 7).at(value, {}, t) for t in range(7)]), value)


@pytest.mark.parametrize(
    ("schedule", "size"),
    [(Schedule("windows", 9, 3), 3), (Schedule("knots", 9, 4), 4), (Schedule("per_step", 9), 9), (Schedule(), None)],
)
def test_groups_stand_behind_the_values_over_time(schedule: Schedule, size: int | None) -> None:
    assert schedule.size == size
    shape = (5,) if size is None else (size, 5)
    assert schedule.at(torch.ones(shape, dtype=torch.float64), {}, 2).shape == (5,)


@pytest.mark.parametrize("kind", FORMS)
def test_a_schedule_with_parameters_scales_every_group_alike(kind: str) -> None:
    numbers = {name: scalar(x) for name, x in FORMS[kind][1].items()}
    peaks = torch.tensor([0.1, 0.4], dtype=torch.float64)
    got = course(kind, peaks, numbers)
    assert got.shape == (T, 2)
    torch.testing.assert_close(got[:, 1], 4 * got[:, 0], rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", ["warmup_linear", "warmup_cosine", "one_cycle"])
def test_the_end_of_the_warmup_is_met_from_both_sides(kind: str) -> None:
    numbers = {name: scalar(x) for name, x in FORMS[kind][1].items()}
    u = 7.5 / T
    sides = [
        float(Schedule(kind, T).at(scalar(0.4), {**numbers, "warmup": scalar(u + nudge)}, 7)) for nudge in (-1e-9, 1e-9)
    ]
    assert sides == pytest.approx([0.4, 0.4], abs=1e-8)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["warmup_linear", "warmup_cosine", "one_cycle"])
def test_a_warmup_of_nothing_or_everything_is_finite_with_its_derivatives(kind: str, warmup: float) -> None:
    numbers = {name: scalar(x).requires_grad_() for name, x in {**FORMS[kind][1], "warmup": warmup}.items()}
    values = course(kind, scalar(0.4), numbers)
    grads = torch.autograd.grad(values.sum(), list(numbers.values()))
    assert values.isfinite().all()
    assert all(g.isfinite() for g in grads)


@settings(max_examples=50, deadline=None)
@given(warmup=st.floats(0, 1), final=st.floats(0, 1), t=st.integers(0, T - 1))
@pytest.mark.parametrize("kind", ["warmup_linear", "warmup_cosine"])
def test_a_warmup_schedule_stays_between_0_and_its_peak(kind: str, warmup: float, final: float, t: int) -> None:
    value = float(Schedule(kind, T).at(scalar(0.4), {"warmup": scalar(warmup), "final": scalar(final)}, t))
    assert 0 <= value <= 0.4 * (1 + 1e-12)


def test_milestones_are_shares_of_the_horizon() -> None:
    schedule = Schedule("step_decay", 10, milestones=(0.2, 0.9))
    got = [float(schedule.at(scalar(1.0), {"factor": scalar(0.5)}, t)) for t in range(10)]
    assert got == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_an_unknown_kind_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"schedule: got 'cosine'; allowed are constant, windows"):
        Schedule("cosine", 10)


@pytest.mark.parametrize("kind", ["windows", "knots"])
def test_more_values_than_steps_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"{kind}: got 11 over 10 steps; at most one a step"):
        Schedule(kind, 10, 11)


@pytest.mark.parametrize("kind", [kind for kind in PARAMETERS if kind not in ("windows", "knots")])
def test_a_resolved_recipe_has_the_parameters_that_are_left_out(kind: str) -> None:
    """Those of the recipe, in a part that may not import this one, are those of the schedule."""
    written = Written.model_validate({"initial": 0.1, "schedule": kind})
    fixed = {name: parameter.value for name, parameter in written.schedule.parameters.items()}
    assert fixed == {name: parameter.initial for name, parameter in PARAMETERS[kind].items()}
    assert written.schedule.milestones == (Schedule.milestones if kind == "step_decay" else ())
    again = Written.model_validate(written.model_dump())
    assert again == written
