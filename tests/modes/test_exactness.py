"""Every mode and engine on every case, against oracles that share no code with the package."""

from functools import cache

import pytest
import torch

from hyperopt_cli import Forward, Reverse, hypergradient
from hyperopt_cli.modes.adjoint import sweep
from tests.cases import CASES, hypergradient_of, net_problem, scalar
from tests.reference import differences, unroll, value_of

MODES = {
    "forward": Forward(),
    "forward in chunks": Forward(columns_at_once=2),
    "forward one by one": Forward(columns_at_once=1),
    "forward by double backwards": Forward(engine="reverse_over_reverse_loop"),
    "reverse": Reverse(),
}


def assert_close(got, want, tolerance):
    for name in want:
        scale = max(1.0, float(want[name].abs().max()))
        error = float((got[name] - want[name]).abs().max()) / scale
        assert error < tolerance, f"{name}: {got[name]} is not {want[name]}"


@cache
def unrolled(case):
    return unroll(*CASES[case])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_unroll(case, mode):
    _, _, hyper = CASES[case]
    value, grad, params = unrolled(case)
    got = hypergradient_of(case, mode if mode in ("forward", "reverse") else MODES[mode])
    assert list(got.grad) == list(hyper)
    assert all(got.grad[name].shape == hyper[name].shape for name in hyper)
    assert_close({"E": got.value, **got.grad}, {"E": value, **grad}, 1e-10)
    assert_close(got.params, params, 1e-10)


@pytest.mark.parametrize("case", CASES)
def test_equals_central_differences(case):
    rule, problem, hyper = CASES[case]
    want = differences(lambda h: value_of(rule, problem, h), hyper)
    assert_close(hypergradient(problem, hyper).grad, want, 1e-6)


@pytest.mark.parametrize(("most", "most_bytes"), [(1, 2**20), (2, 2**20), (64, 0)])
@pytest.mark.parametrize("case", ["windows", "per tensor"])
def test_adjoints_are_pulled_back_through_the_schedule_however_many_wait(case, most, most_bytes, monkeypatch):
    rule, problem, hyper = CASES[case]
    monkeypatch.setattr(sweep, "MOST_WAITING", most)
    monkeypatch.setattr(sweep, "MOST_BYTES", most_bytes)
    assert_close(hypergradient(problem, hyper, "reverse").grad, unroll(rule, problem, hyper)[1], 1e-10)


def test_the_comparison_bites():
    """A derivative that is off by one part in a million does not pass."""
    rule, problem, hyper = CASES["momentum"]
    _, grad, _ = unroll(rule, problem, hyper)
    off = {name: g * (1 + 1e-6) for name, g in grad.items()}
    with pytest.raises(AssertionError):
        assert_close(off, grad, 1e-10)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_adam_stays_finite_where_a_gradient_is_exactly_zero(mode):
    from hyperopt_cli import Problem, optimizers

    problem = Problem(
        init={"w": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        inner_loss=lambda p, h, b: p["w"][0] ** 2 + 0.0 * p["w"][1],
        outer_loss=lambda p, h: (p["w"] ** 2).sum(),
        batch=lambda t: None,
        optimizer=optimizers.Adam(),
        steps=5,
    )
    hyper = {
        "lr": scalar(0.1),
        "beta1": scalar(0.9),
        "beta2": scalar(0.99),
        "eps": scalar(1e-8),
        "weight_decay": scalar(0.0),
    }
    grad = hypergradient(problem, hyper, mode).grad
    assert all(g.isfinite() for g in grad.values())
    without_decay = {k: v for k, v in hyper.items() if k != "weight_decay"}
    alone = Problem(
        {"w": torch.tensor([1.0], dtype=torch.float64)},
        lambda p, h, b: (p["w"] ** 2).sum(),
        lambda p, h: (p["w"] ** 2).sum(),
        lambda t: None,
        optimizers.Adam(),
        5,
    )
    want = hypergradient(alone, without_decay, mode).grad
    got = hypergradient(problem, without_decay, mode).grad
    assert_close(got, want, 1e-12)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_float32_parameters_stay_float32_under_float64_hyperparameters(mode):
    _, problem, hyper = CASES["momentum"]
    low = {name: w.float() for name, w in problem.init.items()}
    single = net_problem(problem.optimizer, init=low)
    from dataclasses import replace

    single = replace(
        single,
        inner_loss=lambda p, h, b: problem.inner_loss(p, h, (b[0].float(), b[1].float())),
        outer_loss=lambda p, h, b: problem.outer_loss(p, h, (b[0].float(), b[1].float())),
    )
    got = hypergradient(single, hyper, mode)
    assert {w.dtype for w in got.params.values()} == {torch.float32}
    assert {g.dtype for g in got.grad.values()} == {torch.float64}
    want = hypergradient(problem, hyper, mode)
    assert_close(got.grad, want.grad, 1e-4)
