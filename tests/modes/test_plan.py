"""The plan: counts are exact, predictions hold, the choice follows the memory, and a run is not disturbed."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from hyperopt_cli import Forward, Problem, Reverse, hypergradient, optimizers
from hyperopt_cli.byte_sizes import bytes_text
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.engines import ENGINES
from hyperopt_cli.errors import DetachedHyperparameterError, UsageError
from hyperopt_cli.memory import state_bytes
from hyperopt_cli.modes import MODES, Auto, Hypergradient, Measurements, Mode, Reversible, auto, plan
from hyperopt_cli.modes.planning.counts import Counts, columns_carried, numbers_of_slots
from hyperopt_cli.modes.planning.forward_cost import Point, at
from hyperopt_cli.modes.planning.plan import plan_from, planned, seconds_text
from hyperopt_cli.modes.planning.prediction import Prediction
from hyperopt_cli.modes.planning.probe import carrying, shortened, spread
from hyperopt_cli.modes.reversal.factors import Factors
from hyperopt_cli.outer.descent import Descent, descend
from hyperopt_cli.problem import Hyper
from hyperopt_cli.space import Hyperparameter, Knob, Schedule, Space, Transform
from tests.cases import CASES, F64, T, net_problem, per_step, scalar, scaled_init, windows

REFERENCE = "reverse_over_reverse_loop"
COUNTED = ("num_steps", "num_gradients", "num_hvps")
MOMENTUM = {"lr": scalar(0.1), "momentum": scalar(0.9)}


def counted(problem: Problem, hyper: Hyper, mode: Mode) -> tuple[int, ...]:
    stats = hypergradient(problem, hyper, mode).stats
    return tuple(stats[name] for name in COUNTED)


def predicted(problem: Problem, hyper: Hyper) -> dict[str, Prediction]:
    return {p.name: p for p in plan(problem, hyper).predictions}


def same(a: Hypergradient, b: Hypergradient) -> bool:
    return torch.equal(a.value, b.value) and all(torch.equal(a.grad[name], b.grad[name]) for name in a.grad)


@pytest.mark.parametrize("name", CASES)
def test_the_columns_of_forward_are_counted_exactly(name: str) -> None:
    _, problem, hyper = CASES[name]
    columns = columns_carried(Dynamics.of(problem, hyper), hyper)
    assert tuple(Counts.of_forward(columns)) == counted(problem, hyper, Forward())


@pytest.mark.parametrize("slots", [None, 1, 2, 3, 5, T, T + 4])
def test_the_steps_of_reverse_are_counted_exactly(slots: int | None) -> None:
    want = counted(net_problem(optimizers.SGD()), MOMENTUM, Reverse(slots=slots))
    assert tuple(Counts.of_reverse(T, slots)) == want


def test_every_row_of_a_plan_counts_what_its_mode_then_counts() -> None:
    problem = net_problem(optimizers.SGD(), windows)
    hyper = {"lr": torch.tensor([0.1, 0.2, 0.05], dtype=F64), "momentum": scalar(0.9)}
    rows = plan(problem, hyper).predictions
    assert {"forward", "reverse", "reverse:slots=2", "reversible"} <= {p.name for p in rows}
    for p in rows:
        assert (p.num_steps, p.num_gradients, p.num_hvps) == counted(problem, hyper, p.mode), p.name


def test_a_horizon_of_one_step_can_be_planned() -> None:
    rows = predicted(net_problem(optimizers.SGD(), steps=1), MOMENTUM)
    assert rows["reverse"].num_steps == 1
    assert not any("slots" in name for name in rows)


def test_only_the_outer_loss_depends_on_lambda_and_no_column_is_carried() -> None:
    problem, hyper = net_problem(optimizers.SGD(), lambda h, t: {"lr": scalar(0.1)}), {"direct": scalar(0.5)}
    row = predicted(problem, hyper)["forward"]
    assert (row.num_steps, row.num_gradients, row.num_hvps) == counted(problem, hyper, Forward()) == (T, T, 0)
    assert row.fits


def test_a_plan_refuses_a_key_that_nothing_reads() -> None:
    with pytest.raises(DetachedHyperparameterError):
        plan(net_problem(optimizers.SGD()), {"lr": scalar(0.1), "mometum": scalar(0.9)})


def test_reversible_is_listed_as_refused_with_the_reason() -> None:
    row = predicted(net_problem(optimizers.SGD(momentum=0.9, nesterov=True)), {"lr": scalar(0.1)})["reversible"]
    assert not row.fits
    assert row.wall_s is None
    assert row.peak_bytes is None
    assert "cannot be undone" in row.note or "found first" in row.note


class _Opaque(torch.autograd.Function):
    """An operator without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


def test_forward_is_listed_as_refused_where_no_engine_can_take_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all engines only one is there, and it takes forward derivatives."""
    problem = net_problem(optimizers.SGD())
    loss = problem.inner_loss
    opaque = replace(problem, inner_loss=lambda w, h, b: _Opaque.apply(loss(w, h, b)))
    only = ENGINES["forward_over_reverse"]
    for module in ("choice", "examination"):
        there = {REFERENCE: only, "forward_over_reverse": only}
        monkeypatch.setattr(f"hyperopt_cli.checks.{module}.ENGINES", there)
    made = plan(opaque, MOMENTUM)
    assert "forward" in {p.name for p in made.predictions if p.note}
    assert made.choice.name.startswith("reverse")


# A plan's choice


def row(name: str, wall_s: float | None, peak_bytes: int | None, limit: int = 1000) -> Prediction:
    fits = peak_bytes is not None and peak_bytes <= limit
    return Prediction(Reverse(), name, wall_s, peak_bytes, fits, 1, 1, 1, "" if wall_s else "it has no momentum")


def test_the_quickest_that_fits_is_chosen() -> None:
    rows = [row("a", 3.0, 100), row("b", 1.0, 2000), row("c", 2.0, 900), row("d", None, None)]
    made = plan_from(rows, 1000)
    assert made.choice.name == "c"
    assert made.why == (
        "c takes 2 s and 900 B a hypergradient, the quickest of the 2 that fit (a: 3 s); b (1 s) would need 1.95 KiB"
    )


def test_the_memory_does_not_decide_where_it_is_within_5_percent_too() -> None:
    assert plan_from([row("large", 2.0, 900), row("small", 2.05, 880)], 1000).choice.name == "large"


@pytest.mark.parametrize(("slower", "choice"), [(2.09, "small"), (2.11, "large")])
def test_within_5_percent_the_smaller_memory_is_chosen(slower: float, choice: str) -> None:
    assert plan_from([row("large", 2.0, 900), row("small", slower, 100)], 1000).choice.name == choice


def test_where_nothing_fits_the_error_says_what_each_needs() -> None:
    with pytest.raises(UsageError) as raised:
        plan_from([row("a", 1.0, 3 * 2**20), row("b", 1.0, 2**30), row("c", None, None)], 1000)
    message = str(raised.value)
    for words in (
        "none fits into 0.977 KiB",
        "a needs 3 MiB",
        "b needs 1 GiB",
        "c can't run (it has no momentum)",
        "smaller batches",
    ):
        assert words in message


# 200,000 numbers and a rate for each step: forward is slow, and the states are large.
LITTLE_MEMORY = """
import torch
from hyperopt_cli import Problem, plan
from hyperopt_cli.optimizers import SGD

def problem(num):
    return Problem(
        {"w": torch.linspace(-1, 1, num)},
        lambda params, hyper, batch: (params["w"] - 0.1).square().mean() + params["w"].pow(4).mean(),
        lambda params, hyper: params["w"].square().mean(),
        lambda t: None,
        SGD(momentum=0.9),
        24,
        lambda hyper, t: {"lr": hyper["lr"][t]},
    )

hyper = {"lr": torch.full((24,), 0.1)}
plan(problem(10), hyper)  # loads what is loaded late
rich = plan(problem(200_000), hyper)
needs = {p.name: p.peak_bytes for p in rich.predictions}
limit = (needs["reverse"] + needs["reverse:slots=4"]) // 2
poor = plan(problem(200_000), hyper, available_bytes=limit)
fits = {p.name: p.fits for p in poor.predictions}
fitted = {p.name: p.fits for p in rich.predictions}["reverse"]
print(poor.choice.name, fitted, fits["reverse"], poor.choice.peak_bytes <= limit, "would need" in poor.why)
"""


def test_with_little_memory_the_plan_chooses_a_mode_with_less() -> None:
    """In a process of its own: what other tests leave in the heap is no part of what a mode needs."""
    done = subprocess.run([sys.executable, "-c", LITTLE_MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    poor, *told = done.stdout.split()
    assert poor != "reverse"
    assert told == ["True", "False", "True", "True"]


def test_with_no_memory_the_plan_says_what_each_mode_needs() -> None:
    with pytest.raises(UsageError, match=r"none fits into 1 MiB: forward needs .* reverse needs .* reversible needs "):
        plan(net_problem(optimizers.SGD()), MOMENTUM, available_bytes=2**20)


@pytest.mark.parametrize(
    ("steps", "most", "want"),
    [(40, 0, [32, 16, 8, 6, 4, 2]), (40, 21, [32, 21, 16, 8, 6, 4, 2]), (1, 0, []), (2, -3, [1]), (1000, 1, None)],
)
def test_numbers_of_slots_are_powers_of_two_the_root_and_the_most_that_fit(steps, most, want) -> None:
    numbers = numbers_of_slots(steps, most)
    assert numbers == (want if want is not None else [512, 256, 128, 64, 32, 31, 16, 8, 4, 1])


# Probes


def test_a_probe_takes_the_steps_that_it_names() -> None:
    seen: list[int] = []
    problem = net_problem(optimizers.SGD(), per_step)
    watched = replace(problem, batch=lambda t: seen.append(t) or problem.batch(t))
    short = shortened(watched, spread(T, 3))
    hyper = {"lr": torch.linspace(0.1, 0.2, T, dtype=F64)}
    short.batch(1)
    assert seen == [round((T - 1) / 2)]
    assert short.hyper_at(hyper, 2)["lr"] == hyper["lr"][T - 1]


@pytest.mark.parametrize("num", [1, 2, 4])
@pytest.mark.parametrize("init", [None, scaled_init])
def test_a_probe_carries_the_columns_it_is_asked_for_from_the_same_start(num: int, init) -> None:
    hyper = {"lr": torch.tensor([0.1, 0.2, 0.05], dtype=F64), "init_scale": scalar(0.5)}
    problem = net_problem(optimizers.SGD(), windows, init)
    probe, chosen_hyper = carrying(problem, hyper, num)
    dynamics = Dynamics.of(probe, chosen_hyper)
    assert columns_carried(dynamics, chosen_hyper) == [num] * T
    assert torch.equal(dynamics.start.params[""], Dynamics.of(problem, hyper).start.params[""])


def test_costs_are_linear_between_and_beyond_the_points() -> None:
    points = [Point(0, 1.0, 10.0), Point(2, 3.0, 10.0), Point(4, 4.0, 30.0)]
    assert [at(points, n).step_s for n in (0, 1, 2, 3, 6)] == [1.0, 2.0, 3.0, 3.5, 5.0]
    assert at(points, 6).peak_bytes == 50.0


def test_the_store_grows_by_the_logarithm_of_every_factor() -> None:
    def bits(optimizer: optimizers.InnerOptimizer, **hyper: float) -> float:
        lambda_ = {"lr": scalar(0.1), **{name: scalar(value) for name, value in hyper.items()}}
        problem = net_problem(optimizer)
        return Factors(Dynamics.of(problem, lambda_), lambda_).bits(0)

    assert bits(optimizers.SGD(), momentum=0.5) == 1.0
    assert bits(optimizers.SGD(), momentum=0.0) == 64.0
    assert bits(optimizers.Adam(), beta1=0.25, beta2=-0.5) == 3.0
    assert bits(optimizers.RMSprop(centered=True), alpha=0.5, momentum=0.25) == 4.0  # two averages


# Auto


@pytest.mark.parametrize("kind", [optimizers.SGD(), optimizers.Adam()])
def test_auto_gives_the_bits_of_the_mode_that_it_chose(kind) -> None:
    problem, hyper = net_problem(kind), {"lr": scalar(0.05)}
    out = hypergradient(problem, hyper, "auto")
    known = Measurements()
    again = hypergradient(problem, hyper, Auto(), measurements=known)
    mode = Auto().chosen(known)
    assert again.stats["mode"] == mode.spelled
    assert same(again, hypergradient(problem, hyper, mode))
    assert out.stats["plan"]


@pytest.mark.parametrize("steps", [40, 4000])
def test_planning_takes_a_handful_of_steps_whatever_the_horizon(steps: int) -> None:
    problem, read = net_problem(optimizers.SGD(), steps=steps), []
    plan(replace(problem, batch=lambda t: read.append(t) or problem.batch(t)), MOMENTUM)
    assert len(read) <= 70
    assert max(read) == steps - 1  # they are spread over the horizon


def noisy(problem: Problem) -> Problem:
    """A training loss that draws from torch's generator when it is called; it gives back the same value."""

    def inner_loss(params, hyper, batch):
        torch.rand(3)
        return problem.inner_loss(params, hyper, batch)

    return replace(problem, inner_loss=inner_loss)


def test_planning_leaves_the_generators_alone() -> None:
    problem = noisy(net_problem(optimizers.SGD()))
    dynamics = Dynamics.of(problem, MOMENTUM)
    before = torch.get_rng_state()
    with torch.no_grad():
        planned(dynamics, MOMENTUM)
    assert torch.equal(torch.get_rng_state(), before)
    problem.inner_loss(problem.initial(MOMENTUM), MOMENTUM, problem.batch(0))
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def choices(monkeypatch) -> list[int]:
    """The horizons that a mode was chosen for."""
    made: list[int] = []
    choice = auto.choice

    def counting(dynamics, hyper, memory_bytes):
        made.append(dynamics.problem.steps)
        return choice(dynamics, hyper, memory_bytes)

    monkeypatch.setattr(auto, "choice", counting)
    return made


def test_an_outer_loop_chooses_once(choices: list[int]) -> None:
    space = Space((Hyperparameter("lr", Knob(scalar(0.1), Transform("log")), Schedule("constant", T)),))
    steps = list(descend(lambda seed: net_problem(optimizers.SGD()), space, Descent(steps=3), Auto()))
    assert len(steps) == 4
    assert choices == [T]


def test_another_horizon_is_chosen_for_anew(choices: list[int]) -> None:
    known = Measurements()
    for steps in (4, 5, 4):
        hypergradient(net_problem(optimizers.SGD(), steps=steps), MOMENTUM, Auto(), measurements=known)
    assert choices == [4, 5]


@pytest.mark.parametrize(
    ("num", "states", "nesterov", "mode"),
    [
        (1, 1, False, Forward()),
        (2, 20, False, Reverse()),
        (2, 19, False, Reverse(slots=19)),
        (2, 1, False, Reversible()),
        (2, 1, True, Reverse(slots=1)),
    ],
)
def test_the_mode_follows_from_counts_and_the_size_of_a_state(num, states, nesterov, mode) -> None:
    """With a single slot, 20 steps are taken 190 times, more than three times 20; Nesterov's cannot be reversed."""
    problem = net_problem(optimizers.SGD(momentum=0.9, nesterov=nesterov), steps=20)
    hyper = dict(list({"lr": scalar(0.05), "momentum": scalar(0.9)}.items())[:num])
    dynamics = Dynamics.of(problem, hyper)
    made = auto.choice(dynamics, hyper, states * state_bytes(dynamics.start))
    assert made.mode == mode
    assert "in plain runs forward costs" in made.why


@pytest.mark.parametrize("memory", ["much", "0", True, -1])
def test_other_memories_are_refused(memory) -> None:
    with pytest.raises(ValueError, match="memory: got"):
        Auto(memory=memory)


def test_auto_is_a_mode_by_name() -> None:
    assert MODES["auto"] is Auto
    assert Auto() == Auto()


# Words


@pytest.mark.parametrize(
    ("num", "text"), [(0, "0 B"), (999, "999 B"), (2048, "2 KiB"), (1.5 * 2**30, "1.5 GiB"), (3 * 2**40, "3 TiB")]
)
def test_bytes_in_words(num: float, text: str) -> None:
    assert bytes_text(num) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.25, "250 ms"), (12.3, "12.3 s"), (150, "2.5 min"), (7200, "2 h")])
def test_seconds_in_words(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_a_mode_is_spelled_as_a_user_types_it() -> None:
    assert [m.spelled for m in (Forward(), Forward(columns_at_once=4), Reverse(slots=50), Reversible())] == [
        "forward",
        "forward:columns_at_once=4",
        "reverse:slots=50",
        "reversible",
    ]


# The prediction against what the run then took

MEASURED = """
import os
import sys
import torch
from hyperopt_cli.instantiate import build
from hyperopt_cli.modes import Reverse, hypergradient, plan
from hyperopt_cli.recipe import load

torch.set_num_threads(1)
experiment = build(load("digits_lr", ["steps=300", "model.hidden=[{width}]"]))
problem, space = experiment.problem(0), experiment.space
hyper = {name: value.detach() for name, value in space.natural(space.initial()).items()}
for code in sys.argv[1:]:
    if not (child := os.fork()):
        exec(code)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def in_processes(width: int, *codes: str) -> list[list[str]]:
    """What each prints in a process of its own, forked from one that has loaded all and computed nothing."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED.replace("{width}", str(width)), *codes], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.alone
@pytest.mark.slow
def test_the_seconds_of_every_mode_are_within_a_factor_of_2() -> None:
    code = """
for p in plan(problem, hyper).predictions:
    if p.name in ("forward", "reverse", "reverse:slots=17", "reverse:slots=64", "reversible"):
        taken = min(hypergradient(problem, hyper, p.mode).stats["wall_s"] for _ in range(2))
        print(p.name, p.wall_s / taken)
"""
    ratios = {name: float(ratio) for name, ratio in in_processes(50, code)}
    assert len(ratios) == 5
    assert all(0.5 < ratio < 2 for ratio in ratios.values()), ratios


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of one call can be told on Linux")
def test_the_memory_of_the_states_of_reverse_is_within_a_quarter() -> None:
    (whole, few), *taken = in_processes(
        500,
        "rows = {p.name: p for p in plan(problem, hyper).predictions}\n"
        "print(rows['reverse'].peak_bytes, rows['reverse:slots=16'].peak_bytes)",
        "print(hypergradient(problem, hyper, Reverse()).stats['peak_bytes'])",
        "print(hypergradient(problem, hyper, Reverse(slots=16)).stats['peak_bytes'])",
    )
    every, some = (int(peak) for (peak,) in taken)
    assert int(whole) - int(few) == pytest.approx(every - some, rel=0.25)


def test_a_horizon_of_a_million_steps_is_planned_in_a_handful_of_steps() -> None:
    asked = []

    def schedule(hyper: Hyper, t: int) -> Hyper:
        asked.append(t)
        return {**hyper, "lr": hyper["lr"][min(2, t * 3 // 10**6)]}

    problem = replace(net_problem(optimizers.SGD(momentum=0.9), schedule), steps=10**6)
    made = plan(problem, {"lr": torch.tensor([0.1, 0.2, 0.05], dtype=F64)})
    assert len(asked) < 20_000
    forward = next(p for p in made.predictions if p.name == "forward")
    assert forward.num_hvps == pytest.approx(2 * 10**6, rel=0.01)  # 1, 2, then 3 columns
