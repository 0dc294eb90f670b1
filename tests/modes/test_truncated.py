"""Biased reverse: a window against an unroll that is cut, DrMAD against an explicit loop; and both are marked."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_cli import Forward, Problem, Reverse, hypergradient
from hyperopt_cli.modes.adjoint.binomial import num_forward_steps
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.problem import Hyper
from tests.cases import CASES, T, net_problem, scalar
from tests.reference import DEFAULTS, STEPS, unroll

SOME = ["momentum", "adam", "adamw", "rmsprop centered", "windows", "per step", "per tensor", "per weight", "init"]


def cut_unroll(rule: str, problem: Problem, hyper: Hyper, window: int) -> Hyper:
    """dE/dlambda by one autograd graph of the last `window` steps; what came before them is a constant."""
    hyper = {k: v.detach().clone().requires_grad_() for k, v in hyper.items()}
    init = problem.init(hyper) if callable(problem.init) else problem.init
    params = {k: v.detach().clone().requires_grad_() for k, v in init.items()}
    memory: dict[str, Any] = {k: torch.zeros_like(v) for k, v in params.items()}
    for t in range(problem.steps):
        if t == problem.steps - window:
            params = {k: v.detach().requires_grad_() for k, v in params.items()}
            memory = {
                k: tuple(x.detach() for x in v) if isinstance(v, tuple) else v.detach() for k, v in memory.items()
            }
        now: Any = problem.schedule(hyper, t) if problem.schedule else hyper
        loss = problem.inner_loss(params, now, problem.batch(t))
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True, materialize_grads=True)
        for name, g in zip(list(params), grads, strict=True):
            at = {}
            for argument, default in DEFAULTS[rule].items():
                fixed = getattr(problem.optimizer, argument, default)
                value = now.get(argument, fixed)
                value = value.get(name, fixed) if isinstance(value, dict) else value
                at[argument] = torch.as_tensor(value, dtype=g.dtype)
            params[name], memory[name] = STEPS[rule](params[name], g, memory[name], t, at)
    assert problem.outer_batches is not None
    value = sum(weight * problem.outer_loss(params, hyper, batch) for batch, weight in problem.outer_batches)
    assert isinstance(value, Tensor)
    return dict(zip(hyper, torch.autograd.grad(value, list(hyper.values()), materialize_grads=True), strict=True))


def assert_close(got: Hyper, want: Hyper) -> None:
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("window", [1, 2, 5, 11])
@pytest.mark.parametrize("case", SOME)
def test_a_window_is_the_unroll_that_is_cut(case: str, window: int) -> None:
    rule, problem, hyper = CASES[case]
    got = hypergradient(problem, hyper, Reverse(window=window))
    assert_close(got.grad, cut_unroll(rule, problem, hyper, window))


def test_the_cut_unroll_is_another_derivative() -> None:
    rule, problem, hyper = CASES["momentum"]
    exact = unroll(rule, problem, hyper)[1]
    with pytest.raises(AssertionError):
        assert_close(cut_unroll(rule, problem, hyper, 5), exact)
    assert_close(cut_unroll(rule, problem, hyper, T), exact)


@pytest.mark.parametrize("slots", [1, 2, 4, 7, 30, {"device": 1, "disk": 2}], ids=str)
@pytest.mark.parametrize("window", [1, 2, 7])
def test_slots_do_not_change_a_bit_of_a_window(window: int, slots: Any) -> None:
    _, problem, hyper = CASES["adam"]
    got, want = (hypergradient(problem, hyper, Reverse(slots=s, window=window)) for s in (slots, None))
    assert all(torch.equal(got.grad[name], want.grad[name]) for name in hyper)
    used = got.stats["slots"]
    assert used == min(window, slots if isinstance(slots, int) else 3)
    assert got.stats["num_steps"] == T - window + num_forward_steps(window, used)


@pytest.mark.parametrize("window", [1, 4])
def test_a_window_sweeps_no_more_than_its_steps(window: int) -> None:
    _, problem, hyper = CASES["momentum"]
    heard: list[tuple[str, int, int]] = []
    stats = hypergradient(problem, hyper, Reverse(window=window), on_step=lambda *step: heard.append(step)).stats
    assert (stats["num_steps"], stats["num_gradients"], stats["num_hvps"]) == (T, T + window, window)
    assert heard[T:] == [("backward", n, window) for n in range(1, window + 1)]
    assert stats["inner_loss"].isfinite().all()


@pytest.mark.parametrize("window", [T, T + 1, 1000])
@pytest.mark.parametrize("case", ["momentum", "init"])
def test_a_window_of_the_whole_run_is_exact_to_the_bit_and_not_marked(case: str, window: int) -> None:
    _, problem, hyper = CASES[case]
    got, want = (hypergradient(problem, hyper, Reverse(window=k)) for k in (window, None))
    assert all(torch.equal(got.grad[name], want.grad[name]) for name in hyper)
    assert "bias" not in got.stats


def test_nothing_flows_to_the_start_out_of_a_window() -> None:
    _, problem, hyper = CASES["init"]
    assert float(hypergradient(problem, hyper, Reverse(window=5)).grad["init_scale"]) == 0
    assert float(hypergradient(problem, hyper, "reverse").grad["init_scale"]) != 0


def test_what_the_objective_itself_depends_on_is_in_a_window_too() -> None:
    _, problem, hyper = CASES["losses"]
    got, want = (hypergradient(problem, hyper, mode) for mode in (Reverse(window=1), Reverse()))
    torch.testing.assert_close(got.grad["direct"], want.grad["direct"])


H, W0 = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64), torch.tensor([1.0, -2.0, 0.7], dtype=torch.float64)


def parabola(steps: int) -> Problem:
    def value(params: Params, *rest: Any) -> Tensor:
        return (H * params["w"] ** 2).sum() / 2

    return Problem({"w": W0}, value, value, lambda t: None, SGD(), steps)


@pytest.mark.parametrize("steps", [1, 2, 10, 30])
def test_the_line_has_its_closed_form_under_gradient_descent(steps: int) -> None:
    """L = w'Hw/2: alpha_t = alpha_T (1 - lr H)^(T-t), B_t = -H w_t, with w_t on the line."""
    lr = 0.1
    end = W0 * (1 - lr * H) ** steps
    want = torch.zeros(())
    for t in range(steps):
        on_line = (1 - t / steps) * W0 + t / steps * end
        want = want - (H * end * (1 - lr * H) ** (steps - 1 - t) * H * on_line).sum()
    got = hypergradient(parabola(steps), {"lr": scalar(lr)}, Reverse(path="linear"))
    torch.testing.assert_close(got.grad["lr"], want, rtol=1e-12, atol=0)


def momentum_on_the_line(problem: Problem, hyper: Hyper, window: int) -> Hyper:
    """The sweep of heavy ball by hand, m <- mu m + g + d w, w <- w - lr m, on the line of w and m."""
    lr, mu, decay = (float(hyper[name]) for name in ("lr", "momentum", "weight_decay"))
    w = {name: x.clone().requires_grad_() for name, x in dict(problem.init).items()}  # type: ignore[call-overload]
    names, steps = list(w), problem.steps

    def gradient(at: Params, t: int, graph: bool = False) -> list[Tensor]:
        loss = problem.inner_loss(at, {}, problem.batch(t))
        return list(torch.autograd.grad(loss, [at[name] for name in names], create_graph=graph))

    w0 = [w[name].detach() for name in names]
    m = [torch.zeros_like(x) for x in w0]
    at = dict(zip(names, w0, strict=True))
    for t in range(steps):
        at = {name: x.detach().requires_grad_() for name, x in at.items()}
        g = gradient(at, t)
        m = [mu * b + d + decay * at[name].detach() for b, d, name in zip(m, g, names, strict=True)]
        at = {name: at[name].detach() - lr * b for name, b in zip(names, m, strict=True)}
    w_end, m_end = [at[name] for name in names], m

    leaves = {name: x.detach().requires_grad_() for name, x in at.items()}
    assert problem.outer_batches is not None
    value = sum(weight * problem.outer_loss(leaves, {}, batch) for batch, weight in problem.outer_batches)
    assert isinstance(value, Tensor)
    a_w = list(torch.autograd.grad(value, list(leaves.values())))
    a_m = [torch.zeros_like(x) for x in a_w]
    total = {"lr": 0.0, "momentum": 0.0, "weight_decay": 0.0}
    for t in range(steps - 1, steps - window - 1, -1):
        u = t / steps
        line = [(1 - u) * a + u * b for a, b in zip(w0, w_end, strict=True)]
        m_line = [u * b for b in m_end]
        here = {name: x.detach().requires_grad_() for name, x in zip(names, line, strict=True)}
        g = gradient(here, t, graph=True)
        after = [mu * b + d.detach() + decay * x for b, d, x in zip(m_line, g, line, strict=True)]
        total["lr"] -= sum(float((a * b).sum()) for a, b in zip(a_w, after, strict=True))
        a_after = [b - lr * a for a, b in zip(a_w, a_m, strict=True)]
        total["momentum"] += sum(float((a * b).sum()) for a, b in zip(a_after, m_line, strict=True))
        total["weight_decay"] += sum(float((a * x).sum()) for a, x in zip(a_after, line, strict=True))
        along = torch.stack([(d * a).sum() for d, a in zip(g, a_after, strict=True)]).sum()
        products = torch.autograd.grad(along, [here[name] for name in names])
        a_w = [a + p + decay * b for a, p, b in zip(a_w, products, a_after, strict=True)]
        a_m = [mu * a for a in a_after]
    return {name: torch.tensor(x, dtype=torch.float64) for name, x in total.items()}


@pytest.mark.parametrize("window", [None, 5])
def test_the_line_is_the_sweep_by_hand_under_momentum(window: int | None) -> None:
    problem = net_problem(SGD())
    hyper = {"lr": scalar(0.1), "momentum": scalar(0.9), "weight_decay": scalar(0.01)}
    got = hypergradient(problem, hyper, Reverse(path="linear", window=window))
    assert_close(got.grad, momentum_on_the_line(problem, hyper, window or T))


def test_the_line_is_not_the_run() -> None:
    rule, problem, hyper = CASES["momentum"]
    exact = unroll(rule, problem, hyper)[1]
    got = hypergradient(problem, hyper, Reverse(path="linear"))
    apart = {name: abs(float(got.grad[name] / exact[name]) - 1) for name in hyper}
    assert min(apart.values()) > 0.01
    torch.testing.assert_close(got.value, unroll(rule, problem, hyper)[0], rtol=1e-12, atol=0)


def test_the_line_reaches_init() -> None:
    """One step: only s_0 is visited, which lies on the line, so that it is exact."""
    rule, problem, hyper = CASES["init"]
    one = replace(problem, steps=1)
    got = hypergradient(one, hyper, Reverse(path="linear"))
    assert_close(got.grad, unroll(rule, one, hyper)[1])
    assert "bias" not in got.stats


def test_the_line_recomputes_nothing_and_holds_two_states() -> None:
    _, problem, hyper = CASES["adam"]
    stats = hypergradient(problem, hyper, Reverse(path="linear")).stats
    assert (stats["num_steps"], stats["num_gradients"], stats["num_hvps"], stats["slots"]) == (T, 2 * T, T, 2)


@pytest.mark.parametrize(
    ("mode", "steps", "bias"),
    [
        (Reverse(), 100, None),
        (Reverse(slots=3), 100, None),
        (Forward(), 100, None),
        (Reverse(window=50), 100, "truncated: only the last 50 of 100 steps"),
        (Reverse(window=100), 100, None),
        (Reverse(path="linear"), 100, "states on a straight line (DrMAD)"),
        (Reverse(path="linear"), 1, None),
        (
            Reverse(path="linear", window=5),
            100,
            "truncated: only the last 5 of 100 steps; states on a straight line (DrMAD)",
        ),
    ],
    ids=str,
)
def test_the_bias_is_named(mode: Any, steps: int, bias: str | None) -> None:
    assert mode.bias(steps) == bias


@pytest.mark.parametrize(
    ("mode", "marked"),
    [(Reverse(window=5), True), (Reverse(path="linear"), True), (Reverse(slots=2), False), (Forward(), False)],
    ids=str,
)
def test_a_biased_hypergradient_says_so(mode: Any, marked: bool) -> None:
    _, problem, hyper = CASES["momentum"]
    stats = hypergradient(problem, hyper, mode).stats
    assert stats.get("bias") == (mode.bias(T) if marked else None)
    assert ("bias" in stats) == marked


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"window": 0}, "window: got 0; allowed is None"),
        ({"window": -1}, "window: got -1"),
        ({"window": 2.0}, r"window: got 2\.0"),
        ({"window": True}, "window: got True"),
        ({"path": "curved"}, "path: got 'curved'; allowed is None .* or \"linear\""),
        ({"path": "linear", "slots": 3}, "path: it stands for the states that slots would keep"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Reverse(**arguments)
