"""What is noise, what only looks like it, and what the outer loop does about it."""

import logging
import math
from typing import Any

import pytest
import torch

from hyperopt_cli import Problem, Reverse
from hyperopt_cli.errors import NoiseError
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.outer.descent import Descent, descend
from hyperopt_cli.outer.noise import Ends, found_to_predicted, judge
from hyperopt_cli.outer.outer_step import OuterStep
from hyperopt_cli.space import Hyperparameter, Knob, Schedule, Space, Transform
from tests.heard import Heard

F64 = torch.float64


def scalar(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=F64)


def space_of(name: str, start: float, transform: str, steps: int, bounds: Any = None) -> Space:
    knob = Knob(scalar(start), Transform(transform, *([bounds] if bounds else [])))  # type: ignore[arg-type]
    return Space((Hyperparameter(name, knob, Schedule("constant", steps)),))


def logistic(steps: int, dtype: torch.dtype = F64) -> Any:
    """x <- r x (1 - x), as gradient descent at a rate of one, from a start that the seed moves; E wants x_T = 0.8."""

    def problem(seed: int) -> Problem:
        return Problem(
            {"x": torch.tensor(0.3 + 0.01 * (seed % 7), dtype=dtype)},
            lambda p, h, b: p["x"] ** 2 / 2 - h["r"].to(p["x"]) * (p["x"] ** 2 / 2 - p["x"] ** 3 / 3),
            lambda p, h: (p["x"] - 0.8) ** 2 + 0.01,
            lambda t: None,
            SGD(lr=1.0),
            steps,
        )

    return problem


def exploding(steps: int, h: float = 1.0) -> Any:
    """L = h x^2 / 2: above a rate of 2 / h its E = x_T^2 / 2 explodes, and the hypergradient is exact all the same."""
    return lambda seed: Problem(
        {"x": scalar(1.0)},
        lambda p, hyper, b: h * p["x"] ** 2 / 2,
        lambda p, hyper: p["x"] ** 2 / 2,
        lambda t: None,
        SGD(),
        steps,
    )


def walked(problem: Any, space: Space, descent: Descent, mode: Any = "reverse") -> tuple[list[OuterStep], Any]:
    """What was yielded, and how it ended."""
    from hyperopt_cli.modes import MODES

    seen: list[OuterStep] = []
    try:
        for step in descend(problem, space, descent, MODES[mode]() if isinstance(mode, str) else mode):
            seen.append(step)
    except NoiseError as error:
        return seen, error
    return seen, None


@pytest.mark.parametrize(
    ("predicted", "value", "up", "down", "found"),
    [
        (0.2, 1.0, 1.1, 0.9, 1.0),
        (0.2, 0.0, 0.2, -0.1, 1.5),
        (0.4, -1.0, -0.8, -1.2, 1.0),  # of a log density
        (0.2, 0.0, 0.1, -0.1, 1.0),
        (2e-6, 1e-12, 1e-6, -1e-6, 1.0),
        (12.0, 1.0, math.exp(6), math.exp(-6), 1.0),  # as the logarithm says
        (0.2, 1.0, math.inf, 0.9, math.inf),
        (0.2, 1.0, 0.9, 1.1, None),
        (0.2, 1.0, 1.0, 1.0, None),
        (0.2, 1.0, 1.001, 1.0, None),
        (1e6, 1.0, 1.1, 0.9, None),
        (1e-6, 1.0, 1.1, 0.9, None),
        (0.2, 1.0, 1.1, math.inf, None),
        (0.2, 1.0, math.inf, math.inf, None),
        (0.2, 1.0, math.inf, -math.inf, None),
        (0.4, -1.0, -1.2, -0.8, None),
    ],
)
def test_what_e_shows_of_what_was_predicted(
    predicted: float, value: float, up: float, down: float, found: float | None
) -> None:
    assert found_to_predicted(predicted, value, up, down) == (None if found is None else pytest.approx(found))


QUIET, FEW, MANY = (8.0, 10.0), (1.0, 1e6), (8.0, 1e6)  # digits and growth
STEEP, FLAT = 100.0, 0.01  # predicted by a step to either side, where E is 1
ASKED: dict[str, tuple[tuple[float, float], float, float, bool, bool]] = {
    # name: (digits and growth, predicted, found of what is predicted, asked, noise)
    "nothing is wrong": (QUIET, FLAT, 0.0, False, False),
    "few digits, since products are in bf16": ((2.7, 10.0), FLAT, 0.0, False, False),
    "2.9 digits, contradicted": ((2.9, 1e5), FLAT, -1.0, True, True),
    "steep, and nothing grows": (QUIET, STEEP, 0.0, False, False),
    "few digits, confirmed": (FEW, FLAT, 1.0, True, False),
    "few digits, contradicted by its sign": (FEW, FLAT, -1.0, True, True),
    "few digits, contradicted by its size": (FEW, FLAT, 1e-3, True, True),
    "few digits, and nothing is predicted": (FEW, 0.0, 0.0, False, False),
    "steep and grown, confirmed": (MANY, STEEP, 2.0, True, False),
    "steep and grown, contradicted by its sign": (MANY, STEEP, -1.0, True, True),
    "steep and grown, contradicted by its size": (MANY, STEEP, 1e-3, True, True),
    "grown, and not steep": (MANY, FLAT, 0.0, False, False),
    "both signs, confirmed": (FEW, STEEP, 1.0, True, False),
    "both signs, contradicted": (FEW, STEEP, 1e-4, True, True),
}


@pytest.mark.parametrize("case", ASKED)
def test_e_is_asked_where_there_is_a_sign_and_decides(case: str) -> None:
    (digits, growth), predicted, found, asked, noise = ASKED[case]
    stats = [{"digits": digits, "growth": growth}, {"digits": 9.0, "growth": 1.0}]
    ends = Ends({"a": scalar(1.0)}, {"a": scalar(-1.0)}, 2 * predicted)
    points: list[float] = []

    def objective(raw: Any) -> float:
        points.append(float(raw["a"]))
        return -1.0 + float(raw["a"]) * found * predicted

    judgement = judge(stats, -1.0, ends, objective)  # negative: only the difference counts
    assert points == ([1.0, -1.0] if asked else [])
    assert judgement.num_asked == len(points)
    assert (judgement.noise is not None) == noise
    assert judgement.growth == growth
    assert judgement.digits == 0 if noise else judgement.digits >= digits
    points.clear()
    assert judge(stats, -1.0, ends, objective, confirmed=growth).noise is None
    assert not points


def test_what_e_confirms_has_the_digits_that_it_shows() -> None:
    ends = Ends({"a": scalar(1.0)}, {"a": scalar(-1.0)}, 2e-2)
    stats = [{"digits": 0.4, "growth": 1e7}]
    judgement = judge(stats, -1.0, ends, lambda raw: float(raw["a"]) * 1.001e-2)
    assert judgement.digits == 3.0


def test_the_ends_lie_within_the_bounds_and_predict_between_them() -> None:
    space = space_of("c", 1.0, "identity", 1, (0.0, 1.0))
    raw, grad = space.initial(), {"c": scalar(-3.0)}
    ends = Ends.of(raw, grad, {"c": scalar(-0.25)}, space.project)
    assert (float(ends.up["c"]), float(ends.down["c"])) == (0.75, 1.0)
    assert ends.predicted == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("descent", "length"),
    [
        (Descent("adam", lr=0.32), 0.01),
        (Descent("sign", lr=0.32), 0.01),
        (Descent("sgd", lr=0.32), 0.04),
        (Descent("sgd", lr=0.32, clip_norm=2.0), 0.02),
    ],
)
def test_the_smallest_step_is_that_which_five_halvings_leave(descent: Descent, length: float) -> None:
    assert float(descent.method().smallest_step(scalar(-4.0))) == pytest.approx(-length)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "sign"])
@pytest.mark.parametrize(
    ("steps", "dtype"), [(70, F64), (40, F64), (30, torch.float32)], ids=["no digits", "exact and useless", "float32"]
)
def test_a_bounded_and_chaotic_run_is_noise(steps: int, dtype: torch.dtype, optimizer: Any, mode: str) -> None:
    space = space_of("r", 3.9, "identity", steps)
    seen, error = walked(logistic(steps, dtype=dtype), space, Descent(optimizer, lr=0.05, steps=3), mode)
    assert isinstance(error, NoiseError)
    assert error.exit_code == 3
    assert "noise" in str(error)
    (step,) = seen  # E itself is what it is
    assert 0.01 <= step.validation_loss < 1
    assert step.stats["digits"] == 0
    assert step.stats["noise"] in str(error)
    assert step.stats["num_asked_steps"] == 2 * steps


@pytest.mark.parametrize("steps", [4, 8])
def test_a_chaotic_run_that_is_short_is_not(steps: int) -> None:
    seen, error = walked(logistic(steps), space_of("r", 3.9, "identity", steps), Descent("sign", lr=1e-3, steps=2))
    assert error is None
    assert all(step.stats["digits"] > 10 for step in seen)


def test_a_step_that_leads_to_noise_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    """At r = 2.9 the map has a fixed point, at 3.4 a cycle of two; 3.9 is chaos."""
    heard = Heard()
    descent = Descent("sign", lr=1.0, steps=1)
    space = space_of("r", 2.9, "identity", 80)
    with caplog.at_level(logging.WARNING):
        first, second = descend(logistic(80), space, descent, Reverse(), callback=heard)
    assert "noise" not in first.stats
    assert float(second.hyperparameters["r"]) == pytest.approx(3.4)
    assert second.stats["halvings"] == 1
    assert heard.messages == ["outer step 1: its step is halved (1 of 5)"]
    assert len(second.stats["halved_for"]) == 1
    assert "noise" in second.stats["halved_for"][0]
    assert "noise" not in second.stats
    assert second.stats["num_asked_steps"] == 160
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_run_that_is_to_stop_ends_on_the_noise_that_it_has_measured() -> None:
    descent = Descent("sign", lr=1.0, steps=3, on_nonfinite="stop")
    seen, error = walked(logistic(80), space_of("r", 2.9, "identity", 80), descent)
    assert isinstance(error, NoiseError)
    assert [step.outer_step for step in seen] == [0, 1]
    assert ["noise" in step.stats for step in seen] == [False, True]


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_a_rate_that_is_merely_too_high_is_not_noise_and_is_lowered(mode: str) -> None:
    """The growth is 1e36 and E 1e72, and the hypergradient exact: E is asked once and confirms it."""
    steps = 120
    space, descent = space_of("lr", 3.0, "log", steps), Descent("adam", lr=0.02, steps=3)
    seen, error = walked(exploding(steps), space, descent, mode)
    assert error is None
    assert seen[0].stats["growth"] > 1e35
    assert [step.stats.get("num_asked_steps", 0) for step in seen] == [2 * steps, 0, 0, 0]
    losses = [step.validation_loss for step in seen]
    assert losses == sorted(losses, reverse=True)


def test_near_the_minimum_of_e_nothing_is_asked() -> None:
    """There each step predicts more than E itself: E = (c - 3)^2 with c at 3.0001."""

    def problem(seed: int) -> Problem:
        return Problem(
            {"w": scalar(0.0)},
            lambda p, h, b: (p["w"] - h["c"]) ** 2,
            lambda p, h: (p["w"] - 3.0) ** 2,
            lambda t: None,
            SGD(lr=0.5),
            20,
        )

    seen, error = walked(problem, space_of("c", 3.0001, "identity", 20), Descent("adam", lr=0.05, steps=3))
    assert error is None
    assert all("num_asked_steps" not in step.stats for step in seen)


@pytest.mark.parametrize("start", [1.0, -1.0, 0.0])
def test_a_hypergradient_of_zero_is_not_noise(start: float) -> None:
    def problem(seed: int) -> Problem:
        return Problem(
            {"w": scalar(0.0)},
            lambda p, h, b: 30.0 * p["w"] ** 2 + 0 * h["c"],
            lambda p, h: p["w"] ** 2 + 0 * h["c"] + start,
            lambda t: None,
            SGD(lr=0.5),
            30,
        )

    seen, error = walked(problem, space_of("c", 1.0, "identity", 30), Descent("adam", steps=1))
    assert error is None
    assert len(seen) == 2


def test_all_replicas_are_asked() -> None:
    descent = Descent("adam", lr=0.05, steps=1, replicas=3)
    (step,), error = walked(logistic(60), space_of("r", 3.9, "identity", 60), descent)
    assert isinstance(error, NoiseError)
    assert step.stats["num_asked_steps"] == 2 * 3 * 60


def test_what_is_asked_is_told_as_inner_steps() -> None:
    heard = Heard()
    steps = descend(logistic(60), space_of("r", 3.9, "identity", 60), Descent(steps=1), Reverse(), callback=heard)
    with pytest.raises(NoiseError):
        list(steps)
    assert [place for place in heard.inner if place[2] == "digits"] == [
        (0, 0, "digits", t, 60) for t in range(1, 61)
    ] * 2


def test_a_descent_that_is_taken_up_again_does_not_ask_again() -> None:
    class Keeper:
        def __init__(self) -> None:
            self.state: dict[str, Any] = {}

        def due(self) -> bool:
            return True

        def save(self, state: dict[str, Any]) -> None:
            if state["progress"] == 0:
                self.state = state

        def barrier(self) -> None:
            pass

    steps = 60
    space, keeper = space_of("lr", 3.0, "log", steps), Keeper()
    first = list(descend(exploding(steps), space, Descent("adam", lr=0.01, steps=0), Reverse(), keeper=keeper))
    saved = {**keeper.state, "replicas": dict(keeper.state["replicas"]), "inner": dict(keeper.state["inner"])}
    descent = Descent("adam", lr=0.01, steps=1)
    (second,) = descend(exploding(steps), space, descent, Reverse(), resume_from=saved)
    assert first[0].stats["num_asked_steps"] == 2 * steps
    assert second.outer_step == 1
    assert "num_asked_steps" not in second.stats
    alone = list(descend(exploding(steps), space, descent, Reverse()))[1]
    assert torch.equal(alone.hypergradient["lr"], second.hypergradient["lr"])


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("mode", ["forward", "reverse", "reversible"])
def test_digits_at_a_rate_that_is_too_high_are_noise_in_every_mode(mode: str, precision: str) -> None:
    """The loss is below one and each derivative finite; a tame start of the same recipe is not noise."""
    from hyperopt_cli.instantiate import build
    from hyperopt_cli.recipe.load import load

    def started(*overrides: str) -> tuple[list[OuterStep], Any]:
        given = ["steps=100", "outer={optimizer: sign, steps: 0}", f"mode={mode}", f"precision={precision}", *overrides]
        experiment = build(load("digits_lr", given))
        return walked(experiment.problem, experiment.space, experiment.descent, experiment.mode)

    (step,), error = started("hyperparameters.lr.initial=1.0", "hyperparameters.momentum.initial=0.9")
    assert isinstance(error, NoiseError)
    assert step.validation_loss < 2
    assert all(grad.isfinite().all() for grad in step.hypergradient.values())
    assert step.stats["growth"] > 1e6
    (step,), error = started("hyperparameters.lr.initial=0.03", "hyperparameters.momentum.initial=0.9")
    assert error is None
    assert step.stats["growth"] < 20
