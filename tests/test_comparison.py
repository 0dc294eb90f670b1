"""Comparing modes: what is compared with what, which difference passes, and what a mode that fails leaves."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_cli import Forward, Problem, Reverse, errors, hypergradient, optimizers
from hyperopt_cli.cli.comparison_table import AGAINST, cost_rows, hypergradient_rows, notes
from hyperopt_cli.comparison import (
    FLOOR,
    TOLERANCES,
    Comparison,
    OnModeStep,
    Outcome,
    check,
    compare,
    measured,
    relative_difference,
)
from hyperopt_cli.comparison.common_factors import Moved, Runs
from hyperopt_cli.modes import Measurements
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.base import Mode
from hyperopt_cli.modes.result import Hypergradient
from hyperopt_cli.modes.reversible import Reversible
from hyperopt_cli.problem import Hyper
from tests.cases import net_problem

STEPS, RATE = 10, 0.1


def parabola(dtype: torch.dtype = torch.float64, **changed: Any) -> Problem:
    """Gradient descent on x^2 from 1: E = (1 - 2 lr)^(2 T)."""
    problem = Problem(
        init={"x": torch.ones((), dtype=dtype)},
        inner_loss=lambda params, hyper, batch: params["x"] ** 2,
        outer_loss=lambda params, hyper: params["x"] ** 2,
        batch=lambda t: None,
        optimizer=optimizers.SGD(),
        steps=STEPS,
    )
    return replace(problem, **changed)


def rate(x: float = RATE) -> Hyper:
    return {"lr": torch.tensor(x, dtype=torch.float64)}


@dataclass(frozen=True)
class Changed(Mode):
    """Reverse mode with its result changed in one place, or an error in its stead."""

    value: float = 1.0
    grad: float = 1.0
    params: float = 1.0
    stats: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None

    def differentiate(
        self, problem: Problem, hyper: Hyper, account: Account, measurements: Measurements
    ) -> Hypergradient:
        if self.error is not None:
            raise self.error
        out = Reverse().differentiate(problem, hyper, account, measurements)
        return Hypergradient(
            out.value * self.value,
            {name: x * self.grad for name, x in out.grad.items()},
            {name: x * self.params for name, x in out.params.items()},
            {**out.stats, **self.stats},
        )


BIASED = Changed(grad=0.5, stats={"bias": "only half of it"})


def test_what_the_checks_say_of_an_exact_mode_is_told() -> None:
    problem = parabola(outer_loss=lambda params, hyper: params["x"] + (params["x"].round() - params["x"]).detach())
    told = compare(problem, rate(), {"forward": Forward(), "reverse": Reverse()})
    assert [each.status for each in told.modes] == ["exact", "exact"]
    assert all("surrogate" in str(each.reason) for each in told.modes)


def compared(**modes: Mode) -> Comparison:
    return compare(parabola(), rate(), modes)


def test_the_figures_are_those_of_the_closed_form() -> None:
    comparison = compared(forward=Forward(), reverse=Reverse())
    check(comparison)
    assert (comparison.steps, comparison.precision, comparison.reference) == (STEPS, "float64", "forward")
    for each in comparison.modes:
        assert (each.status, each.reason, each.exit_code) == ("exact", None, 0)
        assert each.validation_loss == pytest.approx((1 - 2 * RATE) ** (2 * STEPS), rel=1e-12)
        assert each.hypergradient is not None
        assert each.hypergradient["lr"] == pytest.approx(-4 * STEPS * (1 - 2 * RATE) ** (2 * STEPS - 1), rel=1e-12)
    forward, reverse = (each.cost for each in comparison.modes)
    assert forward is not None
    assert reverse is not None
    assert (forward.num_gradients, forward.num_hvps) == (STEPS, STEPS)
    assert (reverse.num_gradients, reverse.num_hvps) == (2 * STEPS, STEPS)
    assert forward.peak_bytes > 0 < forward.wall_s


@pytest.mark.parametrize(
    ("x", "reference", "wanted"),
    [
        ([3.0, 4.0], [0.0, 4.0], 3 / 4),
        ([1.0], [1.0], 0.0),
        ([0.0, FLOOR], [0.0, 0.0], 1.0),
        ([FLOOR / 2], [FLOOR / 4], 1 / 4),
        ([2.0], [4.0], 1 / 2),
    ],
)
def test_a_difference_is_relative_to_the_reference_and_absolute_below_the_floor(
    x: list[float], reference: list[float], wanted: float
) -> None:
    assert relative_difference(torch.tensor(x), torch.tensor(reference)) == pytest.approx(wanted, rel=1e-6)


def test_differences_are_taken_in_float64() -> None:
    one = torch.tensor(1.0)
    assert relative_difference(one.double() + 1e-12, one) == pytest.approx(1e-12, rel=1e-3)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("grad", "the hypergradient of lr by 1.0e-06"),
        ("value", "the validation loss by 1.0e-06"),
        ("params", "the final parameters by 1.0e-06"),
    ],
)
def test_a_wrong_exact_mode_fails_the_check_and_is_named(part: str, said: str) -> None:
    wrong = Changed(**{part: 1 + 1e-6})
    with pytest.raises(errors.VerificationError) as raised:
        check(compared(forward=Forward(), wrong=wrong))
    assert raised.value.exit_code == 4
    assert "wrong differs from forward" in str(raised.value)
    assert said.replace("1.0e-06", "1e-06") in str(raised.value)
    assert "where 1e-08 passes (relative, in float64)" in str(raised.value)


def test_the_tolerance_given_decides() -> None:
    modes = {"forward": Forward(), "wrong": Changed(grad=1 + 1e-6)}
    check(compare(parabola(), rate(), modes, tolerance=2e-6))
    check(compare(parabola(), rate(), {"forward": Forward(), "again": Forward()}, tolerance=0.0))
    with pytest.raises(errors.VerificationError):
        check(compare(parabola(), rate(), modes, tolerance=0.0))


def test_float32_is_judged_by_its_own_tolerance() -> None:
    loose, tight = (
        compare(parabola(dtype), rate(), {"forward": Forward(), "wrong": Changed(grad=1 + 1e-5)})
        for dtype in (torch.float32, torch.float64)
    )
    assert (loose.precision, loose.modes[1].tolerance) == ("float32", TOLERANCES[torch.float32])
    check(loose)
    with pytest.raises(errors.VerificationError):
        check(tight)


def test_a_dtype_without_a_tolerance_asks_for_one() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        compare(parabola(torch.bfloat16), rate(), {"forward": Forward()})
    with pytest.raises(ValueError, match="at least 0"):
        compare(parabola(), rate(), {"forward": Forward()}, tolerance=float("nan"))


def test_a_biased_mode_shows_its_error_and_is_neither_reference_nor_judged() -> None:
    comparison = compared(biased=BIASED, reverse=Reverse(), forward=Forward())
    check(comparison)
    first = comparison.modes[0]
    assert comparison.reference == "reverse"
    assert first.tolerance is None
    assert (first.status, first.reason, first.exit_code) == ("biased", "only half of it", 0)
    assert first.difference is not None
    assert first.difference.hypergradient["lr"] == pytest.approx(0.5)
    assert "biased: biased: only half of it" in notes(comparison)


def test_biased_modes_alone_have_nothing_to_be_compared_with() -> None:
    comparison = compared(biased=BIASED)
    check(comparison)
    assert comparison.reference is None
    assert comparison.modes[0].difference is None
    assert "nothing to compare with" in notes(comparison)[-1]


# Momenta whose rationals lie off them, by less than 1e-6 of their distance from 1.
MOMENTUM, RATIONAL = 0.8765432, 71 / 81


def heavy_ball(**changed: Any) -> Problem:
    """The network of the table of cases, under SGD with momentum."""
    return net_problem(optimizers.SGD(momentum=0.9, **changed))


def with_momentum(x: float = MOMENTUM) -> Hyper:
    return {**rate(0.05), "momentum": torch.tensor(x, dtype=torch.float64)}


THREE: dict[str, Mode] = {"forward": Forward(), "reverse": Reverse(), "reversible": Reversible()}


def test_with_reversible_every_mode_runs_at_its_factors() -> None:
    comparison = compare(heavy_ball(), with_momentum(), THREE)
    check(comparison)
    assert comparison.factors is not None
    assert [(each.step, each.factor) for each in comparison.factors.in_use["momentum"]] == [(0, "71/81")]
    (moved,) = comparison.factors.moved.items()
    assert moved == ("momentum", Moved(0, MOMENTUM, RATIONAL))
    there = hypergradient(heavy_ball(), with_momentum(RATIONAL), "reverse")
    for each in comparison.modes:
        assert each.hypergradient is not None
        assert each.hypergradient["momentum"] == pytest.approx(float(there.grad["momentum"]), rel=1e-10)
    assert "momentum is 0.8765432099 instead of 0.8765432 (step 0)" in notes(comparison)[0]


def test_without_reversible_every_mode_runs_at_the_values_written() -> None:
    comparison = compare(heavy_ball(), with_momentum(), {"forward": Forward(), "reverse": Reverse()})
    there = hypergradient(heavy_ball(), with_momentum(), "reverse")
    assert comparison.factors is None
    for each in comparison.modes:
        assert each.hypergradient is not None
        assert each.hypergradient["momentum"] == pytest.approx(float(there.grad["momentum"]), rel=1e-12)


def test_unless_the_factors_are_shared_the_modes_disagree() -> None:
    """The oracle of the two tests above: the difference between the factors is seen."""
    runs = (hypergradient(heavy_ball(), with_momentum(x), "reverse") for x in (MOMENTUM, RATIONAL))
    assert relative_difference(*(run.grad["momentum"] for run in runs)) > 1e-9


def test_a_momentum_that_is_a_short_fraction_does_not_move() -> None:
    comparison = compare(heavy_ball(), with_momentum(0.9), THREE)
    assert comparison.factors is not None
    assert comparison.factors.moved == {}
    assert "momentum 9/10): the values are those of the recipe" in notes(comparison)[0]


def test_a_factor_that_changes_is_listed_from_each_step_on() -> None:
    def schedule(hyper: Hyper, t: int) -> Any:
        return {"lr": hyper["lr"], "momentum": hyper["momentum"][t // 6]}

    hyper = {**rate(0.05), "momentum": torch.tensor([0.5, MOMENTUM], dtype=torch.float64)}
    comparison = compare(replace(heavy_ball(), schedule=schedule), hyper, THREE)
    check(comparison)
    assert comparison.factors is not None
    in_use = [(each.step, each.factor) for each in comparison.factors.in_use["momentum"]]
    assert in_use == [(0, "1/2"), (6, "71/81")]
    assert comparison.factors.moved["momentum"].step == 6


def test_factors_of_single_parameters_and_of_elements_are_told() -> None:
    def schedule(hyper: Hyper, t: int) -> Any:
        of = {"a.weight": hyper["momentum"][0], "a.bias": hyper["momentum"][1].expand(6) if t else hyper["momentum"][1]}
        return {"lr": hyper["lr"], "momentum": of}

    hyper = {**rate(0.05), "momentum": torch.tensor([0.5, MOMENTUM], dtype=torch.float64)}
    comparison = compare(replace(heavy_ball(), schedule=schedule), hyper, THREE)
    check(comparison)
    assert comparison.factors is not None
    first, later = comparison.factors.in_use["momentum"]
    assert first.factor == {"a.weight": "1/2", "a.bias": "71/81", "b.weight": "9/10"}
    assert later.factor == "0.5 to 0.9"
    assert comparison.factors.moved["momentum"].used == RATIONAL


def test_where_reversible_refuses_the_others_run_at_the_values_written() -> None:
    comparison = compare(heavy_ball(nesterov=True), with_momentum(), THREE)
    check(comparison)
    assert [each.status for each in comparison.modes] == ["exact", "exact", "refused"]
    assert comparison.factors is None


def test_fixed_point_has_a_tolerance_of_its_own_on_either_side() -> None:
    for modes in (("forward", "reversible", "reverse"), ("reversible", "forward", "reverse")):
        comparison = compare(heavy_ball(), with_momentum(), {name: THREE[name] for name in modes})
        forward = next(each for each in comparison.modes if each.mode == "reverse")
        assert forward.tolerance == (1e-8 if modes[0] == "forward" else 1e-5)
        assert comparison.modes[1].tolerance == 1e-5
    given = compare(heavy_ball(), with_momentum(), THREE, tolerance=1e-13)
    assert {each.tolerance for each in given.modes} == {1e-13}


FAILURES = {
    "refused": (errors.UsageError("not with this rule"), "refused", 2),
    "diverged": (errors.NonFiniteError(3, "the adjoint"), "diverged", 3),
    "verification": (errors.VerificationError("the start is not recovered"), "failed", 4),
    "host memory": (MemoryError(), "out of memory", 2),
    "allocator": (RuntimeError("DefaultCPUAllocator: can't allocate memory: 3 bytes"), "out of memory", 2),
    "GPU memory": (torch.OutOfMemoryError("CUDA out of memory.\nTried 2 GiB"), "out of memory", 2),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_mode_that_fails_is_a_row_and_the_others_go_on(case: str) -> None:
    error, status, exit_code = FAILURES[case]
    comparison = compared(failing=Changed(error=error), reverse=Reverse(), forward=Forward())
    check(comparison)
    failing, *others = comparison.modes
    assert (failing.status, failing.exit_code) == (status, exit_code)
    assert failing.reason
    assert "\n" not in failing.reason
    assert failing.cost is failing.hypergradient is failing.difference is None
    assert comparison.reference == "reverse"
    assert [each.status for each in others] == ["exact", "exact"]


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("chunk_size")])
def test_a_defect_is_no_row(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        compared(defective=Changed(error=error))


def test_what_is_wrong_with_the_problem_is_told_once() -> None:
    with pytest.raises(errors.DetachedHyperparameterError, match="momentun"):
        compare(parabola(), {**rate(), "momentun": torch.tensor(0.5)}, {"forward": Forward(), "reverse": Reverse()})


def test_divergence_is_told_with_its_step_in_every_mode() -> None:
    comparison = compare(parabola(steps=200), rate(1e3), {"forward": Forward(), "reverse": Reverse()})
    assert [each.exit_code for each in comparison.modes] == [3, 3]
    assert all("inner step" in str(each.reason) for each in comparison.modes)


def test_the_warm_up_needs_no_key_that_only_later_steps_read_and_is_not_heard() -> None:
    heard: list[tuple[str, str, int, int]] = []
    late = parabola(schedule=lambda hyper, t: {"lr": hyper["lr"] if t < 5 else hyper["late"]})
    hyper = {**rate(), "late": torch.tensor(0.2, dtype=torch.float64)}
    comparison = compare(
        late, hyper, {"forward": Forward(), "reverse": Reverse()}, on_step=lambda *step: heard.append(step)
    )
    check(comparison)
    assert [each.status for each in comparison.modes] == ["exact", "exact"]
    phases = [("forward", "forward"), ("reverse", "forward"), ("reverse", "backward")]
    assert heard == [(*phase, done, STEPS) for phase in phases for done in range(1, STEPS + 1)]


def test_the_warm_up_takes_two_steps_and_one_chunk() -> None:
    taken: list[int] = []
    chunks: list[float] = []

    def outer_loss(params: Any, hyper: Any, scale: float) -> Tensor:
        chunks.append(scale)
        loss: Tensor = scale * params["x"] ** 2
        return loss

    @dataclass(frozen=True)
    class Counting(Mode):
        def differentiate(
            self, problem: Problem, hyper: Hyper, account: Account, measurements: Measurements
        ) -> Hypergradient:
            taken.append(problem.steps)
            chunks.clear()
            account.examines = False
            out = Reverse().differentiate(problem, hyper, account, measurements)
            taken.append(len(chunks))
            return out

    problem = parabola(outer_loss=outer_loss, outer_batches=[(1.0, 0.5), (2.0, 0.5)])
    compare(problem, rate(), {"counting": Counting()})
    assert taken == [2, 1, STEPS, 2]


def test_the_bits_of_a_reversal_are_those_of_the_whole_run() -> None:
    (bits,) = compared(bits=Changed(stats={"bits_per_parameter_step": 0.25})).modes
    assert bits.cost is not None
    assert bits.cost.bits_per_parameter == 0.25 * STEPS


def test_few_digits_are_told() -> None:
    comparison = compared(forward=Forward(), reverse=Reverse())
    forward, reverse = comparison.modes
    assert forward.digits is not None
    assert forward.digits > 10
    assert notes(comparison) == []
    few = replace(comparison, modes=(forward, replace(reverse, digits=1.25)))
    assert notes(few) == ["reverse: its hypergradient has 1.2 digits"]


def test_whoever_measures_a_mode_may_wrap_it() -> None:
    names = []

    def measure(runs: Runs, hyper: Hyper, name: str, mode: Mode, on_step: OnModeStep | None) -> Outcome:
        names.append(name)
        outcome = measured(runs, hyper, name, mode, on_step)
        assert outcome.result is not None
        assert outcome.result.stats["factors"] == {"momentum": "71/81"} or name == "reversible"
        return outcome

    comparison = compare(heavy_ball(), with_momentum(), THREE, measure=measure)
    assert names == [each.mode for each in comparison.modes] == list(THREE)


def test_rows_have_a_cell_for_every_column() -> None:
    comparison = compared(
        forward=Forward(), biased=BIASED, refusing=Changed(error=errors.UsageError("not with this rule"))
    )
    header, *rows = cost_rows(comparison)
    assert {len(row) for row in rows} == {len(header)}
    assert AGAINST not in header
    assert [row[2:4] for row in rows] == [("reference", "-"), ("0.5", "-"), ("-", "-")]
    assert [row[-1] for row in rows] == ["exact", "biased", "refused"]
    header, (label, *cells) = hypergradient_rows(comparison)
    assert header == ("", "forward", "biased (biased)")
    assert label == "lr"
    assert float(cells[0]) == pytest.approx(2 * float(cells[1]), rel=1e-5)


def test_small_arrays_are_listed_and_large_ones_have_their_norm() -> None:
    problem = parabola(
        schedule=lambda hyper, t: {"lr": hyper["lr"][t], "momentum": hyper["momentum"][0, t // 5]}, steps=20
    )
    hyper = {"lr": torch.full((20,), 0.1), "momentum": torch.full((1, 4), 0.5)}
    comparison = compare(problem, hyper, {"reverse": Reverse()})
    _, *rows = hypergradient_rows(comparison)
    assert [row[0] for row in rows] == ["norm of lr (20 values)", *(f"momentum[0, {k}]" for k in range(4))]
    written = comparison.modes[0].hypergradient
    assert written is not None
    assert float(rows[0][1]) == pytest.approx(torch.tensor(written["lr"]).norm().item(), rel=1e-5)
