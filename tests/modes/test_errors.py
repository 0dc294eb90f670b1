"""What the library refuses, and what it says."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_cli import Chunked, Forward, Problem, Reverse, hypergradient
from hyperopt_cli.errors import (
    DetachedHyperparameterError,
    NonDeterministicError,
    NonFiniteError,
    RenamedWarning,
    UsageError,
)
from hyperopt_cli.modes import Hypergradient, Mode
from hyperopt_cli.optimizers import SGD, InnerOptimizer
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.problem import Hyper
from tests.cases import T, net_problem

BOTH = pytest.mark.parametrize("mode", ["forward", "reverse"])


def numbers(**given: float) -> Hyper:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in given.items()}


def square(optimizer: InnerOptimizer | None = None, steps: Any = 12, schedule: Any = None) -> Problem:
    def value(params: Params, *rest: Any) -> Tensor:
        return params["x"] ** 2

    start = {"x": torch.tensor(1.0, dtype=torch.float64)}
    return Problem(start, value, value, lambda t: None, optimizer or SGD(), steps, schedule)


def test_a_misspelt_key_is_detached() -> None:
    with pytest.raises(
        DetachedHyperparameterError, match=r"nothing depends on 'momentun'; .* SGD \(lr, momentum, "
    ) as e:
        hypergradient(square(), numbers(lr=0.1, momentun=0.9))
    assert e.value.names == ("momentun",)


def test_a_key_read_by_item_is_detached() -> None:
    problem = square(schedule=lambda hyper, t: {"lr": hyper["lr"], "momentum": torch.tensor(hyper["mu"].item())})
    with pytest.raises(DetachedHyperparameterError, match="without detach") as e:
        hypergradient(problem, numbers(lr=0.1, mu=0.9))
    assert e.value.names == ("mu",)


def test_dampening_without_a_buffer_is_detached() -> None:
    with pytest.raises(DetachedHyperparameterError) as e:
        hypergradient(square(), numbers(lr=0.1, dampening=0.1))
    assert e.value.names == ("dampening",)


def test_every_detached_key_is_named() -> None:
    with pytest.raises(DetachedHyperparameterError) as e:
        hypergradient(square(), numbers(rl=0.1, lr=0.1, decay=0.1))
    assert e.value.names == ("rl", "decay")


@BOTH
@pytest.mark.parametrize("begin", range(1, T))
def test_a_key_that_a_single_step_reads_is_not_detached(begin: int, mode: str) -> None:
    def schedule(hyper: Hyper, t: int) -> StepHyper:
        return {"lr": hyper["late"] if t == begin else torch.tensor(0.1, dtype=torch.float64)}

    got = hypergradient(square(steps=T, schedule=schedule), numbers(late=0.2), mode)
    want = -4 * (1 - 2 * 0.2) * (1 - 2 * 0.1) ** (2 * (T - 1))
    assert float(got.grad["late"]) == pytest.approx(want, rel=1e-12)


@BOTH
def test_a_derivative_of_zero_is_not_detached(mode: str) -> None:
    got = hypergradient(square(steps=1), numbers(momentum=0.9), mode)
    assert float(got.grad["momentum"]) == 0.0


@BOTH
def test_a_bad_batch_is_named_by_its_step(mode: str) -> None:
    problem = net_problem(SGD())

    def batch(t: int) -> Any:
        x, y = problem.batch(t)
        return (x * float("nan"), y) if t == 7 else (x, y)

    with pytest.raises(NonFiniteError, match="the training loss is not finite at inner step 7") as e:
        hypergradient(replace(problem, batch=batch), numbers(lr=0.1), mode)
    assert (e.value.step, e.value.what) == (7, "the training loss")


def overflow(of: Callable[[float, float], float]) -> int:
    """The first step of x <- (1 - 20) x from 1 at which a value of x and dx/dlr is not finite."""
    x, dx, t = 1.0, 0.0, 0
    while abs(of(x, dx)) < float("inf"):
        x, dx, t = -19 * x, -19 * dx - 2 * x, t + 1
    return t


def test_divergence_is_named_by_its_step_in_reverse() -> None:
    with pytest.raises(NonFiniteError) as e:
        hypergradient(square(steps=400), numbers(lr=10.0), "reverse")
    assert e.value.step == overflow(lambda x, dx: x * x)


def test_divergence_is_named_by_its_step_in_forward() -> None:
    """The tangent 2 x dx overflows a little before x^2 does."""
    with pytest.raises(NonFiniteError) as e:
        hypergradient(square(steps=400), numbers(lr=10.0), "forward")
    assert e.value.step == overflow(lambda x, dx: 2 * x * dx) < overflow(lambda x, dx: x * x)


@pytest.mark.parametrize("mode", ["forward", "reverse", Forward("reverse_over_reverse_loop")])
def test_a_step_that_no_way_can_differentiate_is_refused_and_not_called_divergence(mode: Any) -> None:
    """No engine but one has a derivative of `pdist`, and that one none of a norm at zero, which begins at step 3."""

    def loss(p: Params, h: StepHyper, t: int) -> Tensor:
        value = p["x"].square().sum() + torch.pdist(p["x"]).sum()
        return value + torch.linalg.vector_norm(p["x"] * 0) if t >= 3 else value

    start = {"x": torch.tensor([[0.3, 1.0], [2.0, -1.0], [0.5, 0.2]], dtype=torch.float64)}
    problem = replace(
        square(steps=6), init=start, inner_loss=loss, outer_loss=lambda p, h: p["x"].square().sum(), batch=lambda t: t
    )
    with pytest.raises(UsageError, match="at step 3"):
        hypergradient(problem, numbers(lr=0.01), mode)


@BOTH
def test_an_outer_objective_that_is_not_finite_is_named_by_the_horizon(mode: str) -> None:
    problem = replace(square(steps=3), outer_loss=lambda params, hyper: params["x"] * float("inf"))
    with pytest.raises(NonFiniteError, match="the outer objective is not finite at inner step 3"):
        hypergradient(problem, numbers(lr=0.1), mode)


@BOTH
def test_dropout_without_a_seed_is_refused(mode: str) -> None:
    start = {"x": torch.ones(1000, dtype=torch.float64)}

    def loss(params: Params, hyper: StepHyper, batch: None) -> Tensor:
        return torch.nn.functional.dropout(params["x"], 0.5).square().sum()

    problem = replace(square(), init=start, inner_loss=loss, outer_loss=lambda params, hyper: params["x"].sum())
    with pytest.raises(NonDeterministicError, match="every draw must be a function of the batch"):
        hypergradient(problem, numbers(lr=0.1), mode)


@dataclass(frozen=True)
class Own(Mode):
    """One that reverse mode does the work of, and that spoils what it returns."""

    spoiled: Callable[[Hypergradient], Any] = lambda result: result
    records: bool = True

    def differentiate(self, problem: Problem, hyper: Hyper, account: Any, measurements: Any) -> Any:
        result = Reverse(compile=False).differentiate(problem, hyper, account, measurements)
        if not self.records:
            account.inner_loss.fill_(float("nan"))
            account.close(result.value, result.grad, result.params)
        return self.spoiled(result)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (Own(lambda result: None), "mode own: it returned None; return account.close"),
        (Own(lambda result: result._replace(grad={})), r"returned derivatives of shapes \{\}; return those of hyper"),
        (
            Own(lambda result: result._replace(grad={"lr": torch.zeros(2)})),
            r"of shapes \{'lr': \[2\]\}; return those of hyper, \{'lr': \[\]\}",
        ),
        (Own(lambda result: result._replace(params={})), "are not those of the run: x"),
        (Own(records=False), "inner_loss: 12 steps are not recorded; a mode calls account.step_done after each"),
    ],
    ids=["nothing", "no derivative", "another shape", "no parameters", "no record"],
)
def test_a_mode_of_ones_own_that_leaves_something_out_is_refused(mode: Mode, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        hypergradient(square(), numbers(lr=0.1), mode)
    assert (
        hypergradient(square(), numbers(lr=0.1), Own()).grad == hypergradient(square(), numbers(lr=0.1), Reverse()).grad
    )


def test_an_unknown_mode_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="mode: got 'backward'; allowed are auto, forward, reverse"):
        hypergradient(square(), numbers(lr=0.1), "backward")


def test_an_unknown_engine_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="engine: got 'fast'; allowed are auto, folded, forward_over_reverse, "):
        Forward(engine="fast")


def test_a_chunk_of_no_column_is_refused() -> None:
    with pytest.raises(ValueError, match=r"columns_at_once: got 0; allowed are None \(all\) and 1 or more"):
        Forward(columns_at_once=0)


@pytest.mark.parametrize("slots", [0, -1])
def test_reverse_refuses_slots_that_keep_no_state(slots: Any) -> None:
    with pytest.raises(ValueError, match=f"slots: got {slots}"):
        Reverse(slots=slots)


@pytest.mark.parametrize(
    ("entry", "said"),
    [(torch.tensor(1), r"got a torch\.int64 tensor"), (0.1, "got a float"), (torch.tensor(True), r"torch\.bool")],
)
def test_an_entry_that_cannot_be_differentiated_is_refused(entry: Any, said: str) -> None:
    with pytest.raises(TypeError, match=rf"hyper\['lr'\]: .*{said}|{said}"):
        hypergradient(square(), {"lr": entry})


def test_an_empty_hyper_is_refused() -> None:
    with pytest.raises(ValueError, match="hyper: got no entry"):
        hypergradient(square(), {})


@pytest.mark.parametrize("steps", [True, 2.5, "10"])
def test_a_horizon_that_is_no_integer_is_refused(steps: Any) -> None:
    with pytest.raises(TypeError, match=f"steps: got {steps!r}; the horizon is an integer"):
        square(steps=steps)


@pytest.mark.parametrize("steps", [0, -3])
def test_a_horizon_below_1_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps: got {steps}; the horizon is at least 1"):
        square(steps=steps)


def test_an_optimizer_of_torch_is_refused_with_what_to_pass() -> None:
    theirs: Any = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    with pytest.raises(TypeError, match=r"optimizer: got SGD; pass one of hyperopt_cli\.optimizers"):
        square(theirs)


def test_outer_batches_without_a_chunk_are_refused() -> None:
    with pytest.raises(ValueError, match="outer_batches: got no chunk"):
        replace(square(), outer_batches=[])
    with pytest.raises(TypeError, match="outer_batches: got chunks in a dict_items; pass a sequence of them"):
        replace(square(), outer_batches=Chunked({}.items()))


# name -> what is given in place of a part of the problem, what is said of it
ODD_PARTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no training loss": (
        {"inner_loss": lambda *given: None},
        UsageError,
        "inner_loss: it returned a NoneType; return a",
    ),
    "a number": ({"inner_loss": lambda p, *given: float(p["x"])}, UsageError, "inner_loss: it returned a float"),
    "a vector": (
        {"inner_loss": lambda p, *given: p["x"].expand(3)},
        UsageError,
        r"inner_loss: it returned a tensor of shape \[3\]; return its mean",
    ),
    "no validation loss": ({"outer_loss": lambda *given: None}, UsageError, "outer_loss: it returned a NoneType"),
    "a vector of E": (
        {"outer_loss": lambda p, h: p["x"].expand(2, 2)},
        UsageError,
        r"outer_loss: it returned a tensor of shape \[2, 2\]",
    ),
    "a list of parameters": ({"init": [torch.zeros(1)]}, TypeError, "init: got a list; pass a dictionary"),
    "a list from init": ({"init": lambda h: [torch.zeros(3)]}, UsageError, "init: it returned a list; return a dict"),
    "numbers in a list": ({"init": {"x": [0.0] * 3}}, UsageError, "init: 'x' is a list; pass a dictionary of tensors"),
    "no schedule": (
        {"schedule": lambda h, t: None},
        UsageError,
        "schedule: at step 0 it returned a NoneType; return a dictionary of tensors",
    ),
    "a draw in E without a seed": (
        {"outer_loss": lambda p, h: p["x"].square() * (1 + torch.rand((), dtype=torch.float64))},
        NonDeterministicError,
        "outer_loss: evaluated twice, it gave",
    ),
    "the class of an optimizer": ({"optimizer": SGD}, TypeError, r"got the class SGD; pass an instance, as SGD\(\)"),
    "no batch": ({"batch": None}, TypeError, "batch: got a NoneType; pass a function of the step"),
}


@BOTH
@pytest.mark.parametrize("name", ODD_PARTS)
def test_a_part_of_another_kind_is_refused_with_what_to_give(name: str, mode: str) -> None:
    given, kind, said = ODD_PARTS[name]
    with pytest.raises(kind, match=said):
        hypergradient(replace(square(), **given), numbers(lr=0.1), mode)


def test_a_list_of_hyperparameters_is_refused() -> None:
    with pytest.raises(TypeError, match="hyper: got a list; pass a dictionary of tensors"):
        hypergradient(square(), [torch.tensor(0.1)])  # type: ignore[arg-type]


@BOTH
def test_nothing_is_differentiated_under_inference_mode(mode: str) -> None:
    with torch.inference_mode(), pytest.raises(UsageError, match="call it outside"):
        hypergradient(square(), numbers(lr=0.1), mode)


@BOTH
def test_a_hyperparameter_that_is_not_a_number_is_named(mode: str) -> None:
    with pytest.raises(NonFiniteError, match="lr is not finite at inner step 0"):
        hypergradient(square(), numbers(lr=float("nan")), mode)


@BOTH
def test_an_argument_that_is_neither_a_scalar_nor_a_mapping_is_refused(mode: str) -> None:
    """It would broadcast against whatever has its length."""
    problem = net_problem(SGD())
    with pytest.raises(ValueError, match=r"lr: got a tensor of shape \[3\] at step 0.*mapping"):
        hypergradient(problem, {"lr": torch.full((3,), 0.1, dtype=torch.float64)}, mode)


@BOTH
def test_an_argument_that_is_driven_at_some_steps_only_is_refused(mode: str) -> None:
    """Its slot would be missing."""

    def schedule(hyper: Hyper, t: int) -> StepHyper:
        return {"lr": hyper["lr"]} if t < 5 else {"lr": hyper["lr"], "momentum": hyper["lr"]}

    with pytest.raises(ValueError, match="momentum is given at some steps and not at step 0"):
        hypergradient(net_problem(SGD(), schedule), numbers(lr=0.1), mode)


def test_the_former_name_of_columns_at_once_is_accepted_and_said() -> None:
    with pytest.warns(DeprecationWarning, match="chunk_size is called columns_at_once now"):
        assert Forward(chunk_size=2) == Forward(columns_at_once=2)
    with pytest.warns(RenamedWarning), pytest.raises(ValueError, match="the former name of columns_at_once"):
        Forward(chunk_size=2, columns_at_once=2)
