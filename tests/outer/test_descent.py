"""The outer loop: where it walks, when it stops, what it averages, and what stays when a run diverges."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_cli import Problem, Reverse, hypergradient
from hyperopt_cli.errors import NonFiniteError
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.outer.descent import Descent, descend
from hyperopt_cli.outer.outer_step import OuterStep
from hyperopt_cli.outer.sign_descent import SignDescent
from hyperopt_cli.problem import Hyper
from hyperopt_cli.space import Hyperparameter, Knob, Schedule, Space, Transform
from tests.heard import Heard

STEPS, RATE, WANTED = 5, 0.1, 3.0
REVERSE = Reverse()


def scalar(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def space_of(name: str, start: float, transform: Transform) -> Space:
    return Space((Hyperparameter(name, Knob(scalar(start), transform), Schedule("constant", STEPS)),))


def target(seed: int) -> Problem:
    """L = (w - c)^2 from a start that the seed draws; E = (w_T - 3)^2, a parabola in c."""
    start = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5

    def inner(params: Params, hyper: Any, batch: None) -> Tensor:
        away: Tensor = params["w"] - hyper["c"]
        return away**2

    def outer(params: Params, hyper: Hyper) -> Tensor:
        return (params["w"] - WANTED) ** 2

    return Problem({"w": start}, inner, outer, lambda t: None, SGD(lr=RATE), STEPS)


def optimum(seed: int) -> float:
    """w_T = c + (w_0 - c) (1 - 2 lr)^T = 3, solved for c."""
    kept = (1 - 2 * RATE) ** STEPS
    start = float(dict(target(seed).init)["w"])  # type: ignore[arg-type]
    return (WANTED - kept * start) / (1 - kept)


FREE = space_of("c", 0.0, Transform("identity"))


def walk(descent: Descent, space: Space = FREE, seed: int = 0) -> list[OuterStep]:
    return list(descend(target, space, descent, REVERSE, seed))


@pytest.mark.parametrize(
    "descent",
    [
        Descent("adam", lr=0.3, steps=120),
        Descent("sgd", lr=0.5, steps=40),
        Descent("sgd", lr=0.2, momentum=0.5, steps=60),
        Descent("sign", lr=1.0, steps=40),
    ],
    ids=["adam", "sgd", "momentum", "sign"],
)
def test_every_rule_finds_the_bottom_of_a_parabola(descent: Descent) -> None:
    steps = walk(descent)
    assert float(steps[-1].hyperparameters["c"]) == pytest.approx(optimum(0), abs=1e-3)
    assert steps[-1].validation_loss < 1e-5 < steps[0].validation_loss


def test_one_more_is_measured_than_updates_are_made() -> None:
    assert [step.outer_step for step in walk(Descent(steps=3))] == [0, 1, 2, 3]


def test_a_measurement_is_taken_before_its_update() -> None:
    first, second = walk(Descent("sgd", lr=0.1, steps=1))
    assert float(first.raw_hyperparameters["c"]) == 0.0
    want = first.raw_hyperparameters["c"] - 0.1 * first.raw_hypergradient["c"]
    torch.testing.assert_close(second.raw_hyperparameters["c"], want, rtol=1e-15, atol=0)


def test_the_step_is_taken_in_raw_coordinates() -> None:
    space = space_of("c", 2.0, Transform("log"))
    first, second = walk(Descent("sgd", lr=0.01, steps=1), space)
    torch.testing.assert_close(first.raw_hypergradient["c"], 2.0 * first.hypergradient["c"], rtol=1e-14, atol=0)
    want = 2.0 * torch.exp(-0.01 * 2.0 * first.hypergradient["c"])
    torch.testing.assert_close(second.hyperparameters["c"], want, rtol=1e-12, atol=0)


def test_sign_descent_walks_as_the_rule_written_out() -> None:
    steps = walk(Descent("sign", lr=1.0, steps=12))
    gamma, raw, last = 1.0, 0.0, 0.0
    for step in steps:
        assert float(step.raw_hyperparameters["c"]) == raw
        sign = 1.0 if float(step.raw_hypergradient["c"]) > 0 else -1.0
        gamma = gamma / 2 if sign * last < 0 else gamma
        raw, last = raw - gamma * sign, sign
    assert gamma < 1.0


def test_sign_descent_keeps_a_step_size_for_every_element() -> None:
    raw = torch.zeros(3)
    rule = SignDescent([raw], lr=1.0)
    for grad in ([1.0, 1.0, 1.0], [1.0, -2.0, 0.0], [1.0, -2.0, -1.0]):
        raw.grad = torch.tensor(grad)
        rule.step()
    # on, on, on; on, back by a half, on by a half; on, stay, back by a half
    assert raw.tolist() == [-3.0, 0.0, -0.5]


def test_a_long_hypergradient_is_clipped_and_a_short_one_is_not() -> None:
    free, clipped, loose = (walk(Descent("sgd", lr=1.0, steps=1, clip_norm=norm))[1] for norm in (None, 0.25, 1e6))
    assert float(clipped.raw_hyperparameters["c"].abs()) == pytest.approx(0.25, rel=1e-14)
    assert torch.equal(loose.raw_hyperparameters["c"], free.raw_hyperparameters["c"])


def test_what_is_reported_is_not_clipped() -> None:
    free, clipped = (walk(Descent("sgd", steps=0, clip_norm=norm))[0] for norm in (None, 0.25))
    assert torch.equal(free.raw_hypergradient["c"], clipped.raw_hypergradient["c"])


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_ends_after_so_many_steps_without_a_new_lowest(patience: int) -> None:
    at_best = space_of("c", optimum(0), Transform("identity"))
    steps = walk(Descent("sign", lr=1.0, steps=20, patience=patience), at_best)
    assert len(steps) == patience + 1


def test_patience_waits_as_long_as_it_gets_better() -> None:
    assert len(walk(Descent("sgd", lr=0.05, steps=15, patience=1))) == 16


def test_a_bound_is_reached_itself_and_held() -> None:
    """The start lies above 3, so that a smaller c is better, and the bound at 0 lies beyond."""
    space = Space(
        (Hyperparameter("c", Knob(scalar(1.0), Transform("identity", (0.0, 1.0))), Schedule("constant", STEPS)),)
    )

    def low(seed: int) -> Problem:
        problem = target(seed)
        return Problem(
            problem.init, problem.inner_loss, lambda p, h: (p["w"] + 3) ** 2, problem.batch, problem.optimizer, STEPS
        )

    steps = list(descend(low, space, Descent("sgd", lr=0.1, steps=5), REVERSE))
    assert [float(step.hyperparameters["c"]) for step in steps[-2:]] == [0.0, 0.0]
    assert float(steps[-1].hypergradient["c"]) > 0


def test_replicas_average_value_and_hypergradient() -> None:
    descent = Descent(steps=0, replicas=3)
    (step,) = walk(descent, seed=5)
    alone = [hypergradient(target(seed), {"c": scalar(0.0)}, "reverse") for seed in descent.seeds(5, 0)]
    assert step.validation_loss == pytest.approx(float(sum(run.value for run in alone)) / 3, rel=1e-14)
    mean = torch.stack([run.grad["c"] for run in alone]).mean()
    torch.testing.assert_close(step.hypergradient["c"], mean, rtol=1e-14, atol=0)
    assert step.stats["num_steps"] == 3 * STEPS
    assert torch.equal(step.params["w"], alone[0].params["w"])


def test_the_seeds_of_replicas_differ_and_the_first_is_the_recipes() -> None:
    seeds = Descent(replicas=4).seeds(7, 0)
    assert seeds[0] == 7
    assert len(set(seeds)) == 4


def test_fixed_seeds_are_the_same_at_every_outer_step() -> None:
    assert Descent(replicas=2).seeds(7, 0) == Descent(replicas=2).seeds(7, 9)


def test_fresh_seeds_differ_from_step_to_step_and_come_again() -> None:
    descent = Descent(seed="fresh", replicas=2)
    seeds = [seed for n in range(20) for seed in descent.seeds(7, n)]
    assert len(set(seeds)) == 40
    assert seeds == [seed for n in range(20) for seed in descent.seeds(7, n)]
    assert descent.seeds(8, 0) != descent.seeds(7, 0)


@pytest.mark.parametrize("seed", ["fixed", "fresh"])
def test_the_same_seed_gives_the_same_bits(seed: Any) -> None:
    descent = Descent("adam", lr=0.3, steps=3, seed=seed, replicas=2)
    for one, two in zip(walk(descent), walk(descent), strict=True):
        assert (one.validation_loss, one.training_loss) == (two.validation_loss, two.training_loss)
        assert torch.equal(one.inner_loss, two.inner_loss)
        for field in ("hyperparameters", "hypergradient", "raw_hyperparameters", "raw_hypergradient", "params"):
            assert all(torch.equal(x, getattr(two, field)[key]) for key, x in getattr(one, field).items())


def test_the_training_loss_is_the_mean_over_the_last_tenth() -> None:
    (step,) = walk(Descent(steps=0))
    assert step.inner_loss.shape == (STEPS,)
    assert step.training_loss == float(step.inner_loss[-1])


def test_a_run_that_diverges_leaves_what_was_yielded() -> None:
    """A step along dE/dlr from a good rate to one at which x overflows."""

    def wants_to_grow(seed: int) -> Problem:
        return Problem(
            {"w": scalar(1.0)},
            lambda p, h, b: p["w"] ** 2,
            lambda p, h: -h["lr"] + 0 * p["w"],
            lambda t: None,
            SGD(),
            STEPS,
        )

    space = space_of("lr", 0.1, Transform("identity"))
    for on_nonfinite, halved in (("stop", []), ("backtrack", ["1", "2", "3", "4", "5"])):
        seen, heard = list[OuterStep](), Heard()
        descent = Descent("sgd", lr=1e60, steps=5, on_nonfinite=on_nonfinite)  # type: ignore[arg-type]
        steps = descend(wants_to_grow, space, descent, REVERSE, callback=heard)
        with pytest.raises(NonFiniteError):
            seen.extend(steps)
        assert [step.outer_step for step in seen] == [0]
        assert seen[0].hyperparameters["lr"].isfinite()
        found = [re.fullmatch(r"outer step 1: .*; its step is halved \((.) of 5\)", said) for said in heard.messages]
        assert [each and each[1] for each in found] == halved


def test_a_step_that_leads_too_far_is_halved_until_it_is_good() -> None:
    """L overflows where c is above 4: from c = 1 a step of 20 is halved three times, and ends at 3.5."""

    def until_4(seed: int) -> Problem:
        def loss(params: Params, hyper: Any, batch: None) -> Tensor:
            return params["w"] * torch.exp(torch.exp(1000 * (hyper["c"] - 4.0)))

        return Problem(
            {"w": scalar(1.0)}, loss, lambda p, h: p["w"] * 0 + (10.0 - h["c"]) ** 2, lambda t: None, SGD(lr=0.1), 1
        )

    seen = list(descend(until_4, space_of("c", 1.0, Transform("identity")), Descent("sign", lr=20.0, steps=1), REVERSE))
    assert [float(step.hyperparameters["c"]) for step in seen] == [1.0, 3.5]
    assert [step.stats.get("halvings") for step in seen] == [None, 3]


def test_where_the_start_is_not_finite_nothing_is_halved() -> None:
    def never(seed: int) -> Problem:
        loss = lambda p, h, b: p["w"] * h["c"] * float("nan")  # noqa: E731
        return Problem({"w": scalar(1.0)}, loss, lambda p, h: p["w"], lambda t: None, SGD(), 1)

    with pytest.raises(NonFiniteError, match="inner step 0"):
        list(descend(never, FREE, Descent(steps=3), REVERSE))


def test_the_inner_steps_are_told_with_outer_step_and_replica() -> None:
    heard = Heard()
    list(descend(target, FREE, Descent(steps=1, replicas=2), REVERSE, callback=heard))
    told = heard.inner
    assert told[0] == (0, 0, "forward", 1, STEPS)
    assert told[-1] == (1, 1, "backward", STEPS, STEPS)
    assert len(told) == 2 * 2 * 2 * STEPS


def two_knobs(seed: int) -> Problem:
    """E = (3 a + b - 10)^2 / 2 after no more than a step that does nothing."""

    def outer(params: Params, hyper: Hyper) -> Tensor:
        return (3 * hyper["a"] + hyper["b"] - 10 + 0 * params["w"]) ** 2 / 2

    return Problem({"w": scalar(1.0)}, lambda p, h, b: p["w"] ** 2, outer, lambda t: None, SGD(), 1)


def knob(name: str) -> Hyperparameter:
    return Hyperparameter(name, Knob(scalar(0.0), Transform("identity")), Schedule("constant", 1))


BOTH_KNOBS = Space((knob("a"), knob("b")))


def test_clipping_goes_by_the_norm_over_all_hyperparameters_together() -> None:
    descent = Descent(optimizer="sgd", lr=1.0, steps=1, clip_norm=1.0)
    first, second = descend(two_knobs, BOTH_KNOBS, descent, REVERSE)
    moved = torch.stack([second.hyperparameters[name] - first.hyperparameters[name] for name in "ab"])
    torch.testing.assert_close(moved, torch.tensor([3.0, 1.0], dtype=torch.float64) / 10**0.5)


def test_the_momentum_of_the_outer_sgd_is_used() -> None:
    rate, momentum = 0.01, 0.9
    steps = list(descend(two_knobs, BOTH_KNOBS, Descent("sgd", rate, momentum, steps=2), REVERSE))
    raw = dict.fromkeys("ab", 0.0)
    velocity = dict(raw)
    for step in steps:
        for name in raw:
            assert float(step.hyperparameters[name]) == pytest.approx(raw[name], rel=1e-12)
            velocity[name] = momentum * velocity[name] + float(step.raw_hypergradient[name])
            raw[name] -= rate * velocity[name]


def test_the_training_loss_is_averaged_over_the_replicas() -> None:
    seeds = Descent(replicas=3).seeds(0, 0)
    (step,) = walk(Descent(steps=0, replicas=3))
    last = [hypergradient(target(s), {"c": scalar(0.0)}, REVERSE).stats["inner_loss"][-1] for s in seeds]
    assert step.training_loss == pytest.approx(float(torch.stack(last).mean()), rel=1e-12)
