"""The plain hypergradients: against central differences, and against each other on every schedule."""

import pytest
import torch

from hyperopt_cli.bench.baselines import loop_of_double_backwards, unroll
from hyperopt_cli.bench.problems import Schedule, Workload, blend, windows
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.problem import Hyper, Problem

STEPS, RATES = 7, 3


def workload(schedule: Schedule) -> Workload:
    """A small network with tanh, in float64, whose every step has data of its own."""
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS + 1, 6, 4, generator=drawn, dtype=torch.float64)
    y = torch.randn(STEPS + 1, 6, generator=drawn, dtype=torch.float64)
    start = {"a": torch.randn(4, 3, generator=drawn).double(), "b": torch.randn(3, generator=drawn).double()}

    def loss(params: dict[str, torch.Tensor], t: int) -> torch.Tensor:
        return ((x[t] @ params["a"]).tanh() @ params["b"] - y[t]).square().mean()

    problem = Problem(
        init=start,
        inner_loss=lambda params, hyper, t: loss(params, t),
        outer_loss=lambda params, hyper: loss(params, STEPS),
        batch=lambda t: t,
        optimizer=SGD(),
        steps=STEPS,
        schedule=schedule,
    )
    values = {"lr": [0.1, 0.2, 0.15], "momentum": 0.7, "weight_decay": 0.03}
    return Workload(problem, {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()})


def objective(run: Workload, hyper: Hyper) -> float:
    """E by torch.optim.SGD."""
    problem = run.problem
    w = {name: x.clone().requires_grad_() for name, x in problem.initial(hyper).items()}
    optimizer = torch.optim.SGD(list(w.values()), momentum=float(hyper["momentum"]))
    for t in range(STEPS):
        at = problem.hyper_at(hyper, t)
        group = optimizer.param_groups[0]
        group["lr"], group["weight_decay"] = float(at["lr"]), float(hyper["weight_decay"])  # type: ignore[arg-type]
        optimizer.zero_grad()
        problem.training_loss(dict(w), at, problem.batch(t)).backward()
        optimizer.step()
    return problem.validation_loss(dict(w), hyper).item()


@pytest.mark.parametrize("schedule", [windows, blend])
@pytest.mark.parametrize("baseline", [unroll, loop_of_double_backwards])
def test_a_plain_hypergradient_is_the_central_difference_of_torchs_own_optimizer(baseline, schedule):
    run = workload(schedule(RATES, STEPS))
    found = torch.cat([part.flatten() for part in baseline(run).values()])
    flat, eps = torch.cat([value.flatten() for value in run.hyper.values()]), 1e-5

    def at(values: torch.Tensor) -> float:
        return objective(run, {"lr": values[:RATES], "momentum": values[RATES], "weight_decay": values[RATES + 1]})

    for k in range(len(flat)):
        step = eps * torch.nn.functional.one_hot(torch.tensor(k), len(flat))
        assert found[k].item() == pytest.approx((at(flat + step) - at(flat - step)) / (2 * eps), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("schedule", [windows, blend])
def test_both_give_the_same_in_the_shape_of_lambda(schedule):
    run = workload(schedule(RATES, STEPS))
    one, two = unroll(run), loop_of_double_backwards(run)
    assert list(one) == list(two) == list(run.hyper)
    for name, value in run.hyper.items():
        assert one[name].shape == two[name].shape == value.shape
        torch.testing.assert_close(one[name], two[name], rtol=1e-12, atol=1e-14)
