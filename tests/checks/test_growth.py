"""The growth of tangents and adjoints, against closed forms; the digits that it leaves, against exact arithmetic."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from hyperopt_cli import Forward, Problem, Reverse, hypergradient, optimizers
from hyperopt_cli.checks.growth import Growth, digits_left, growth_of_adjoints, growth_of_tangents
from hyperopt_cli.modes.plain_run import objective_after
from tests.cases import CASES, F64, hypergradient_of, net_problem, scalar

EXPONENT = {torch.float32: 7.2, torch.float64: 16.0}  # digits of a number of that kind
NO_REVERSAL = "cannot be undone"


def recursion(h, steps, optimizer, dtype=F64):
    """L = h x^2 / 2 and E = x_T^2 / 2, from x = 1."""
    return Problem(
        {"x": torch.ones((), dtype=dtype)},
        lambda p, hyper, b: h * p["x"] ** 2 / 2,
        lambda p, hyper: p["x"] ** 2 / 2,
        lambda t: None,
        optimizer,
        steps,
    )


def logistic(r, steps, dtype, x=0.3):
    """x <- r x (1 - x), bounded and chaotic for r = 3.9 and 4, as gradient descent at a rate of one; E = x_T."""
    return Problem(
        {"x": torch.tensor(x, dtype=dtype)},
        lambda p, hyper, b: p["x"] ** 2 / 2 - hyper["r"] * (p["x"] ** 2 / 2 - p["x"] ** 3 / 3),
        lambda p, hyper: p["x"],
        lambda t: None,
        optimizers.SGD(lr=1.0),
        steps,
    ), {"r": torch.tensor(r, dtype=dtype)}


def exactly(problem, hyper):
    """dE/dr of the map in 300 digits: z <- r (1 - 2 x) z + x (1 - x)."""
    with localcontext(prec=300):
        r, x, z = Decimal(float(hyper["r"])), Decimal(float(problem.init["x"])), Decimal(0)
        for _ in range(problem.steps):
            x, z = r * x * (1 - x), r * (1 - 2 * x) * z + x * (1 - x)
        return z


@pytest.mark.parametrize(
    ("rate", "h", "steps"), [(0.1, 21.0, 30), (0.5, 4.4, 1), (0.5, 4.4, 40), (1.0, 2.5, 2), (0.3, 10.0, 25)]
)
def test_a_linear_recursion_grows_as_its_closed_form(rate, h, steps):
    """dx_T/dx_t = (1 - lr h)^(T - t), and dx_t/dlr = -t h (1 - lr h)^(t - 1)."""
    problem, hyper = recursion(h, steps, optimizers.SGD()), {"lr": scalar(rate)}
    factor = rate * h - 1
    assert factor > 1
    assert hypergradient(problem, hyper, "reverse").stats["growth"] == pytest.approx(factor**steps, rel=1e-9)
    assert hypergradient(problem, hyper, "forward").stats["growth"] == pytest.approx(factor ** (steps - 1), rel=1e-9)


@pytest.mark.parametrize("mode", ["reverse", "reversible"])
@pytest.mark.parametrize(("momentum", "h"), [(0.5, 40.0), (0.9, 50.0), (0.25, 60.0)])
def test_heavy_ball_grows_as_the_powers_of_its_matrix(momentum, h, mode):
    """(m, w) <- (momentum m + h w, w - lr m): alpha_t = alpha_T A^(T - t)."""
    rate, steps = 0.1, 14
    a = np.array([[1 - rate * h, -rate * momentum], [h, momentum]])  # of (w, m)
    want = max(abs(np.linalg.matrix_power(a, left)[0, 0]) for left in range(steps + 1))
    problem = recursion(h, steps, optimizers.SGD(momentum=momentum))
    got = hypergradient(problem, {"lr": scalar(rate)}, mode).stats["growth"]
    assert want > 1e3
    assert got == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("r", [3.9, 4.0])
def test_the_digits_that_a_chaotic_map_leaves_are_those_that_are_there(r, dtype, mode):
    """Against 300 digits: never two and a half too few, and not more than growth alone can know too many."""
    most = 4.5 if mode == "forward" else 3.5
    for steps in (6, 14, 22, 40) if dtype is torch.float32 else (10, 30, 50, 70):
        problem, hyper = logistic(r, steps, dtype)
        out = hypergradient(problem, hyper, mode)
        error = abs(Decimal(float(out.grad["r"])) / exactly(problem, hyper) - 1)
        there = min(EXPONENT[dtype], max(0.0, -math.log10(max(error, Decimal(10) ** -17))))
        assert there - 2.5 < out.stats["digits"] < there + most, (steps, there, out.stats["digits"])


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_digits_are_lost_at_the_rate_of_the_maps_exponent(mode):
    """Lyapunov's exponent of 4 x (1 - x) is log 2: 0.30 digits a step, in the mean over starts."""
    lost = []
    for x in torch.linspace(0.11, 0.47, 6).tolist():
        short, long = (hypergradient(*logistic(4.0, steps, F64, x), mode).stats["growth"] for steps in (5, 30))
        lost.append(math.log10(long / short) / 25)
    assert sum(lost) / len(lost) == pytest.approx(math.log10(2), abs=0.05)


def relu_net(bias):
    """One that is dead, or saturated at its upper end, for all of its inputs."""
    x = torch.linspace(-1, 1, 8, dtype=F64)[:, None]

    def output(p):
        return torch.relu(x @ p["a"] + p["b"]).clamp(max=1.0) @ p["c"]

    return Problem(
        {
            "a": torch.full((1, 3), 0.1, dtype=F64),
            "b": torch.full((3,), bias, dtype=F64),
            "c": torch.ones(3, dtype=F64),
        },
        lambda p, h, b: ((output(p) - x[:, 0]) ** 2).mean(),
        lambda p, h: (output(p) ** 2).mean() + (p["a"] ** 2).sum(),
        lambda t: None,
        optimizers.SGD(),
        30,
    )


def constant_objective(steps):
    """E does not depend on the run at all, up to lambda itself."""
    problem = recursion(3.0, steps, optimizers.SGD())
    return Problem(
        problem.init, problem.inner_loss, lambda p, h: h["lr"] + 0 * p["x"], problem.batch, problem.optimizer, steps
    )


QUIET = {
    # name: (problem, hyper, the most that it may grow)
    "long and stable": (recursion(1.0, 300, optimizers.SGD()), {"lr": scalar(2e-3)}, 1),
    "long, with momentum": (recursion(1.0, 200, optimizers.SGD()), {"lr": scalar(0.01), "momentum": scalar(0.9)}, 30),
    "contraction": (recursion(1.0, 60, optimizers.SGD()), {"lr": scalar(0.9)}, 1),
    "contraction with a changing sign": (recursion(1.0, 60, optimizers.SGD()), {"lr": scalar(1.9)}, 1),
    "one step": (recursion(50.0, 1, optimizers.SGD()), {"lr": scalar(0.03)}, 1),
    "one step to the minimum": (recursion(2.0, 1, optimizers.SGD()), {"lr": scalar(0.5)}, 1),
    "E that is constant": (constant_objective(40), {"lr": scalar(0.1)}, 1),
    "dead": (relu_net(-5.0), {"lr": scalar(0.1)}, 1),
    "saturated": (relu_net(5.0), {"lr": scalar(0.1)}, 30),
    "Adam": (net_problem(optimizers.Adam(), steps=100), {"lr": scalar(0.01)}, 30),
    "a batch of zeros": (recursion(0.0, 50, optimizers.SGD()), {"lr": scalar(0.1)}, 1),
}


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("case", QUIET)
def test_runs_that_are_stable_do_not_grow(case, mode):
    problem, hyper, most = QUIET[case]
    stats = hypergradient(problem, hyper, mode).stats
    assert 1 <= stats["growth"] <= most * (1 + 1e-9)
    assert stats["digits"] >= 14


@pytest.mark.parametrize("mode", ["forward", "reverse", "reversible"])
@pytest.mark.parametrize("case", CASES)
def test_every_case_keeps_its_digits(case, mode):
    from hyperopt_cli.errors import UsageError

    try:
        stats = hypergradient_of(case, mode).stats
    except UsageError as error:
        assert mode == "reversible"
        assert NO_REVERSAL in str(error) or "reversible" in str(error)  # noqa: PT017
        return
    assert stats["growth"] < 1e4
    assert stats["digits"] > 11


@pytest.mark.parametrize("case", ["windows", "per tensor", "init"])
def test_growth_has_the_same_bits_however_columns_are_divided(case):
    _, problem, hyper = CASES[case]
    engine = "reverse_over_reverse_loop"  # a column at a time, whoever stands beside it
    got = [
        hypergradient(problem, hyper, Forward(engine=engine, columns_at_once=k)).stats["growth"] for k in (None, 1, 2)
    ]
    assert got[0] == got[1] == got[2]


def test_a_window_tells_of_the_steps_that_it_sweeps():
    problem, hyper = recursion(30.0, 20, optimizers.SGD()), {"lr": scalar(0.1)}
    assert hypergradient(problem, hyper, Reverse(window=7)).stats["growth"] == pytest.approx(2.0**7, rel=1e-9)


def test_tangents_that_overflow_a_square_are_measured():
    """In float32, 1e25 is a number and its square is not: x_t = 1e25 c t, and nothing is amplified."""
    problem = Problem(
        {"x": torch.zeros(())},
        lambda p, h, b: -1e25 * h["c"] * p["x"],
        lambda p, h: p["x"],
        lambda t: None,
        optimizers.SGD(lr=1.0),
        9,
    )
    stats = hypergradient(problem, {"c": torch.tensor(1e-25)}, "forward").stats
    assert stats["growth"] == pytest.approx(1, rel=1e-6)
    assert stats["digits"] == 7.2


@pytest.mark.parametrize(
    ("growth", "dtype", "precision", "digits"),
    [
        (1.0, torch.float32, None, 7.2),
        (1.0, F64, None, 16.0),
        (1e5, torch.float32, None, 2.2),
        (1e5, F64, None, 11.0),
        (1e9, torch.float32, None, 0.0),
        (1.0, torch.float32, "bf16", 2.7),
        (1e3, torch.float32, "bf16", 2.7),
        (1e6, torch.float32, "bf16", 1.2),
        (1.0, torch.float32, "tf32", 3.3),
        (math.inf, F64, None, 0.0),
    ],
)
def test_digits_are_those_of_the_kind_of_number_less_the_growth(growth, dtype, precision, digits):
    assert round(digits_left(growth, dtype, precision), 1) == digits


def test_the_host_reads_no_norm_on_the_way():
    """On a fake GPU a number cannot be read at all."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    with FakeTensorMode():
        like = torch.empty(0, device="cuda")
        for names in (["w"], ["a", "b"]):
            growth = Growth(3, like)
            growth.tangents(1, [{name: torch.ones(2, 5, device="cuda") for name in names}] * 2)
            growth.adjoint(2, {name: torch.ones(5, device="cuda") for name in names})
            assert growth.norms.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            growth.norms.tolist()


@pytest.mark.parametrize("of", [growth_of_tangents, growth_of_adjoints])
@pytest.mark.parametrize("norms", [[0.0], [0.0, 0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0, 0.0]])
def test_what_is_zero_does_not_grow(of, norms):
    assert of(norms) == 1


def test_a_plain_run_ends_where_the_hypergradients_does():
    for case in ("momentum", "adam", "windows", "schedule" if "schedule" in CASES else "cosine"):
        _, problem, hyper = CASES[case]
        assert objective_after(problem, hyper) == float(hypergradient_of(case, "reverse").value)


def test_a_plain_run_that_diverges_ends_at_infinity():
    assert objective_after(recursion(1e9, 60, optimizers.SGD()), {"lr": scalar(1.0)}) == math.inf
