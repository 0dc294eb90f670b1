"""Each part of a step where lambda lies on the host and all else on a device, without one (`tests/devices.py`)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch.utils._pytree import tree_map

from hyperopt_cli import Chunked, Problem, Reverse, optimizers
from hyperopt_cli.dynamics.derivatives import push_columns
from hyperopt_cli.dynamics.dynamics import Dynamics, train_step
from hyperopt_cli.engines import ENGINES
from hyperopt_cli.modes import Measurements
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.adjoint.sweep import Sweep, backward_step
from hyperopt_cli.modes.columns import Carried, Columns
from hyperopt_cli.modes.directions import tangents_of_schedule
from hyperopt_cli.modes.forward import _advanced, _step, tangent_step
from hyperopt_cli.modes.objective import outer_objective
from hyperopt_cli.modes.reversal.factors import Factors
from hyperopt_cli.modes.reversal.fixed_point import FixedPoint
from hyperopt_cli.modes.reversal.kernels import EAGER
from hyperopt_cli.problem import Hyper
from tests.cases import CASES, T, net_problem, scalar
from tests.devices import Device, MixedDevicesError, UnawaitedError, devices, placed, pretended_cuda

RULES = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "rmsprop centered")
SCHEDULES = ("windows", "per tensor", "per weight", "cosine", "late", "init", "losses")
META, CUDA = torch.device("meta"), torch.device("cuda")


@pytest.fixture
def device() -> Iterator[Device]:
    with torch.no_grad(), Device() as device:
        yield device


def columns(tree: Any, num: int = 2) -> Any:
    """Zeros for tangents, [num, *shape]."""
    return tree_map(lambda x: x.new_zeros(num, *x.shape), tree)


def begun(case: str, device: torch.device) -> tuple[Dynamics, Hyper]:
    _, problem, hyper = CASES[case]
    return Dynamics.of(placed(problem, device), hyper), hyper


@pytest.mark.parametrize("case", CASES)
def test_a_step_there_and_back_stays_on_the_device_and_waits_for_nothing(case: str, device: Device) -> None:
    dynamics, hyper = begun(case, META)
    device.waits.clear()
    for t in {0, dynamics.problem.steps - 1}:
        at, batch = dynamics.hyper_at(hyper, t), dynamics.problem.batch(t)
        assert devices(at) == {"meta"}
        assert devices(train_step(dynamics, batch, t, dynamics.start, at)) == {"meta"}
        assert devices(backward_step(dynamics, batch, t, dynamics.start, at, dynamics.start)) == {"meta"}
    assert device.waits == []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", [*RULES, "per tensor", "per weight"])
def test_tangents_stay_on_the_device_and_wait_for_nothing(case: str, engine: str, device: Device) -> None:
    dynamics, hyper = begun(case, META)
    at, batch = dynamics.hyper_at(hyper, 1), dynamics.problem.batch(1)
    z, at_dot = columns(dynamics.start), columns(at)
    device.waits.clear()
    step = tangent_step(dynamics, batch, 1, dynamics.start, z, at, at_dot, engine=ENGINES[engine])
    assert devices(step) == {"meta"}
    assert device.waits == []


@pytest.mark.parametrize("case", CASES)
def test_the_schedule_and_its_derivative_stay_on_the_host(case: str, device: Device) -> None:
    dynamics, hyper = begun(case, META)
    device.waits.clear()
    for t in {0, dynamics.problem.steps - 1}:
        plain, directions = tangents_of_schedule(dynamics, hyper)(t)
        assert devices((plain, directions)) <= {"cpu"}
        assert devices(dynamics.cast(plain)) <= {"meta"}
    assert device.waits == []


@pytest.mark.parametrize("case", CASES)
def test_every_update_rule_and_its_tangents_stay_on_a_cuda_device(case: str) -> None:
    with pretended_cuda():
        dynamics, hyper = begun(case, CUDA)
        state, at = dynamics.start, dynamics.hyper_at(hyper, 0)
        point = dynamics.point(state, at, 0)
        assert devices((state, at, point, dynamics.result(state))) == {"cuda"}
        for t in (0, torch.zeros((), dtype=torch.float64, device=CUDA)):  # the latter where a step is compiled
            assert devices(dynamics.update(state, point, at, t)) == {"cuda"}
        after = push_columns(
            lambda s, g, h: dynamics.update(s, g, h, 0), (state, point, at), columns((state, point, at))
        )
        assert devices(after) == {"cuda"}


@pytest.mark.parametrize("case", CASES)
def test_losses_stay_on_a_cuda_device(case: str) -> None:
    with pretended_cuda():
        dynamics, hyper = begun(case, CUDA)
        params, at = dynamics.layout.unpack(dynamics.start.params), dynamics.hyper_at(hyper, 0)
        assert devices(dynamics.loss_at(0)(params, at)) == {"cuda"}
        for arguments, weight in dynamics.problem.outer_chunks():
            assert devices(weight * dynamics.problem.validation_loss(params, hyper, *arguments)) == {"cuda"}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_in_chunks_stays_on_the_device(engine: str, device: Device) -> None:
    _, problem, hyper = CASES["adam"]
    problem = placed(problem, META)
    x, y = problem.batch(0)
    cut = Chunked([((x[:2], y[:2]), 0.4), ((x[2:], y[2:]), 0.6)])
    dynamics = Dynamics.of(replace(problem, batch=lambda t: cut), hyper)
    at = dynamics.hyper_at(hyper, 0)
    z, at_dot = columns(dynamics.start), columns(at)
    device.waits.clear()
    assert devices(train_step(dynamics, cut, 0, dynamics.start, at)) == {"meta"}
    assert devices(backward_step(dynamics, cut, 0, dynamics.start, at, dynamics.start)) == {"meta"}
    step = tangent_step(dynamics, cut, 0, dynamics.start, z, at, at_dot, engine=ENGINES[engine])
    assert devices(step) == {"meta"}
    assert device.waits == []


def with_shares() -> tuple[Problem, Hyper]:
    """A weight for each example of the objective, a vector on the host."""
    problem = net_problem(optimizers.SGD(), outer_batches=False)
    (batch,) = problem.outer_loss.__defaults__

    def outer(params: Any, hyper: Any, batch: Any = batch) -> Tensor:
        losses = torch.tanh(batch[0] @ params["a.weight"].T).square().mean(1)
        return (hyper["shares"] * losses).sum()

    shares = torch.linspace(0, 1, 15, dtype=torch.float64)
    return replace(problem, outer_loss=outer), {"lr": scalar(0.1), "shares": shares}


@pytest.mark.parametrize("case", [*CASES, "with shares"])
def test_the_objective_gives_lambda_its_gradient_where_it_lies(case: str, device: Device) -> None:
    problem, hyper = with_shares() if case == "with shares" else CASES[case][1:]
    dynamics = Dynamics.of(placed(problem, META), hyper)
    params = dynamics.layout.unpack(dynamics.start.params)
    objective = outer_objective(dynamics.problem, params, hyper)
    assert devices((objective.value, objective.by_params)) == {"meta"}
    assert devices(objective.by_hyper) == {"cpu"}


@pytest.mark.parametrize("case", ["momentum", "adam", "adamw at 0", "rmsprop", "per weight", "cosine"])
def test_a_state_in_integers_is_taken_on_and_undone_without_a_wait(case: str, device: Device) -> None:
    _, problem, hyper = CASES[case]
    dynamics = Dynamics.of(placed(problem, META), hyper)
    factors = Factors(dynamics, hyper)
    dynamics = Dynamics.of(factors.problem(), hyper)
    names = [coupling.name for coupling in factors.couplings]
    held = FixedPoint(dynamics, factors, {name: dict.fromkeys(dynamics.start.params, 40) for name in names}, EAGER)
    device.waits.clear()
    for t in range(T):
        grads = {name: torch.ones_like(w) for name, w in held.weights().items()}
        peaks = held.advance(grads, dynamics.hyper_at(hyper, t), t)
        assert devices([peak.size for peak in peaks]) == devices(held.fingerprint()) == {"meta"}
    for t in reversed(range(T)):
        params = held.undo_weights(dynamics.hyper_at(hyper, t), t)
        grads = {name: torch.ones_like(w) for name, w in params.items()}
        assert devices(held.undo_rest(grads, dynamics.hyper_at(hyper, t), t)) == {"meta"}
    assert devices([(store.remainders, store.words) for store in held.stores.values()]) == {"meta"}
    assert device.waits == []


class Result(dict[str, Any]):
    """Of a mode, whoever changes its figures."""

    stats: ClassVar[dict[str, Any]] = {}

    def _replace(self, **changed: Any) -> "Result":
        return self


class Unread(Account):
    """Nobody reads whether numbers are finite, which they have no content for."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.finite.check = self.finite.forget  # type: ignore[method-assign]

    def close(self, value: Any, grad: Any, params: Any) -> Any:
        return Result(value=value, grad=grad, params=params)


def long(case: str, steps: int = 20) -> tuple[Dynamics, Hyper]:
    """The case over so many steps."""
    _, problem, hyper = CASES[case]
    own = problem.schedule
    schedule = own and (lambda h, t: own(h, t * T // steps))
    run = replace(problem, steps=steps, schedule=schedule, batch=lambda t: problem.batch(t % T))
    return Dynamics.of(placed(run, META), hyper), hyper


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "dense"])
@pytest.mark.parametrize("case", ["momentum", "adam", "windows", "per tensor", "losses"])
def test_no_step_of_forward_mode_waits_for_the_device(case: str, engine: str, device: Device) -> None:
    dynamics, hyper = long(case, steps=4)
    account = Unread(dynamics.problem.steps, dynamics.like)
    step, lambda_at = _step(dynamics, engine, False, Measurements()), tangents_of_schedule(dynamics, hyper)
    none = tree_map(lambda x: x.new_zeros(0, *x.shape), dynamics.start)
    num = sum(value.numel() for value in hyper.values())
    state, carried = dynamics.start, Carried([Columns(list(range(num)), [], none)], resting=False)
    device.waits.clear()
    for t in range(dynamics.problem.steps):
        state, carried = _advanced(dynamics, step, lambda_at, state, carried, t, account)
    assert device.waits == []
    assert devices((state, carried.blocks[0].z)) == {"meta"}


@pytest.mark.parametrize("given", [{}, {"slots": 5}, {"path": "linear"}], ids=str)
@pytest.mark.parametrize("case", ["momentum", "adamw", "rmsprop centered", *SCHEDULES])
def test_of_a_sweep_only_the_adjoints_of_lambda_are_read_and_once_in_16_steps(
    case: str, given: dict[str, Any], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamics, hyper = long(case)
    mode, sums = Reverse(compile=False, **given), list[int]()
    known = Measurements()
    judge = known.judge("reverse")
    judge.outer.examines = judge.watch.examines = False  # which reads numbers
    sum_up, begin = Sweep.sum_up, Sweep.at_end

    def not_counted(function: Callable[..., Any], *arguments: Any) -> Any:
        before = list(device.waits)
        result = function(*arguments)
        device.waits[:] = before
        return result

    def summed(sweep: Sweep, *arguments: Any) -> None:
        sums.append(len(sweep.waiting))
        not_counted(sum_up, sweep, *arguments)

    monkeypatch.setattr(Sweep, "sum_up", summed)
    monkeypatch.setattr(Sweep, "at_end", lambda *arguments: not_counted(begin, *arguments))
    steps, _ = mode.steps(dynamics, hyper, known)
    device.waits.clear()
    result = mode._swept(dynamics, hyper, steps, known, Unread(dynamics.problem.steps, dynamics.like))
    assert sums == [16, 4]
    assert devices(result["grad"]) == {"cpu"}
    assert devices(result["params"]) == {"meta"}
    assert len(device.waits) <= 6 * (case == "init")  # w_0 is made once more, and its adjoint pulled back


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda x, at: x * torch.ones(x.shape), MixedDevicesError),
        (lambda x, at: x @ torch.ones(x.shape[-1]), MixedDevicesError),
        (lambda x, at: torch.cat([x.flatten(), torch.ones(1)]), MixedDevicesError),
        (lambda x, at: x * float(x.sum()), RuntimeError),
        (lambda x, at: x if bool(x.sum() > 0) else -x, RuntimeError),
        (lambda x, at: x * at["lr"].item(), RuntimeError),
    ],
)
def test_what_mixes_devices_or_reads_a_number_is_seen(
    change: Callable[..., Tensor], error: type[Exception], device: Device
) -> None:
    _, problem, hyper = CASES["momentum"]
    problem = placed(problem, META)
    loss = problem.inner_loss
    changed = replace(problem, inner_loss=lambda p, h, b: loss(p, h, b) + change(p["b.weight"], h).sum())
    dynamics = Dynamics.of(changed, hyper)
    batch, at = dynamics.problem.batch(0), dynamics.hyper_at(hyper, 0)
    with pytest.raises(error):
        train_step(dynamics, batch, 0, dynamics.start, at)


def test_a_mixture_on_a_cuda_device_is_seen() -> None:
    with pretended_cuda():
        x = torch.ones(3, device=CUDA)
        assert (x * torch.ones(())).device.type == "cuda"  # a number of the host may stand beside it
        with pytest.raises(getattr(fake_tensor, "FakeTensorDeviceMismatchError", RuntimeError), match="device"):
            x * torch.ones(3)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.cpu(),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: torch.zeros(x.shape).copy_(x),
        lambda x: x[torch.tensor([0, 1])],
    ],
)
def test_a_wait_is_seen(wait: Callable[[Tensor], Any], device: Device) -> None:
    x = torch.zeros(4, device=META)
    x * torch.zeros(())
    torch.zeros(3).to(META, non_blocking=True)
    assert device.waits == []
    wait(x)
    assert len(device.waits) == 1


@pytest.mark.parametrize("copy", [lambda x: x.to("cpu", non_blocking=True), lambda x: torch.zeros(4).copy_(x, True)])
def test_a_copy_to_the_host_that_nobody_waits_for_is_seen(copy: Callable[[Tensor], Any], device: Device) -> None:
    with pytest.raises(UnawaitedError):
        copy(torch.zeros(4, device=META))


@pytest.mark.parametrize("case", ["momentum", "windows", "per weight"])
def test_hyperparameters_of_a_device_are_awaited_where_the_model_lies_on_the_host(case: str, device: Device) -> None:
    _, problem, hyper = CASES[case]
    plain = dict.fromkeys(hyper, torch.zeros((), dtype=torch.float64))
    dynamics = Dynamics.of(replace(problem, schedule=None), plain)
    elsewhere = {name: value.to(META) for name, value in plain.items()}
    assert devices(dynamics.cast(elsewhere)) == {"cpu"}
    step = _step(dynamics, "reverse_over_reverse", False, Measurements())
    carried = Carried([Columns([0], [0], columns(dynamics.start, 1))], resting=False)
    lambda_at = lambda t: (plain, columns(elsewhere, 1))  # noqa: E731
    account = Unread(dynamics.problem.steps, dynamics.like)
    _advanced(dynamics, step, lambda_at, dynamics.start, carried, 0, account)
