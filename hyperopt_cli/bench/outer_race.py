"""One method of the outer loop on one problem: every evaluation, and what its best values are worth at other seeds."""

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from hyperopt_cli.bench.outer_problems import PROBLEMS, Start, TuningProblem
from hyperopt_cli.modes import Reverse
from hyperopt_cli.outer.descent import Descent, descend
from hyperopt_cli.outer.outer_step import Trial
from hyperopt_cli.problem import Hyper

SEARCHES = {
    "random": ("random", False),
    "random_tied": ("random", True),
    "tpe": ("tpe", False),
    "tpe_tied": ("tpe", True),
}
PRICES = (20, 40)
IN_THE_END = "end"
NUM_HELD_OUT = 5
NO_STEPS = 10**6  # the budget ends a descent


class Race(NamedTuple):
    """One method on one problem, at one seed, from one start.

    Attributes:
        problem: in `PROBLEMS`.
        seed: of the split, the weights and the batches.
        method: of `SEARCHES`, one of `registry.OUTER`, or `none`: the start as it is.
        start: where a descent starts; a search begins at the ordinary guess.
    """

    problem: str
    seed: int
    method: str
    start: Start

    def num_trials(self, asked: int | None) -> int | None:
        """Returns how many trials a search has, `asked` or the problem's own; None of what is no search."""
        return None if self.method not in SEARCHES else asked or PROBLEMS[self.problem].trials


def run_race(race: Race, problem: TuningProblem, trials: int | None) -> dict[str, Any]:
    """Returns what one method comes to: every evaluation, and what its best values are worth."""
    best: dict[str, tuple[float, Hyper]] = {}
    seen: list[list[Any]] = []
    began = time.perf_counter()
    if race.method == "none":
        best[IN_THE_END] = math.inf, {key: knob.initial for key, knob in problem.space.tuned().items()}
    else:
        for price, kind, value, hyper in evaluations(race, problem, trials):
            seen.append([price, kind, value])
            for name in [*(str(most) for most in PRICES if price <= most), IN_THE_END]:
                if name not in best or value < best[name][0]:
                    best[name] = value, hyper
    took = time.perf_counter() - began
    worth: dict[str, Any] = {}
    for name, (value, hyper) in best.items():
        same = next((other for other in worth if best[other][1] is hyper), None)
        worth[name] = {
            "value": value,
            "hyper": {key: x.tolist() for key, x in hyper.items()},
            **(
                problem.judged(hyper, NUM_HELD_OUT)
                if same is None
                else {key: worth[same][key] for key in ("held_out", "test")}
            ),
        }
    return {
        "trials": trials,
        "num": sum(knob.initial.numel() for knob in problem.space.tuned().values()),
        "steps": problem.steps,
        "box": problem.box,
        "evaluations": seen,
        "wall_s": took,
        "best": worth,
    }


def evaluations(race: Race, problem: TuningProblem, trials: int | None) -> Iterator[tuple[float, str, float, Hyper]]:
    """Yields the price so far, what it was for, E and the values, of every evaluation."""
    if race.method in SEARCHES:
        optimizer, tied = SEARCHES[race.method]
        descent = Descent(optimizer, trials=trials, tied=tied)
    else:
        descent = Descent(race.method, steps=NO_STEPS, budget=float(max(PRICES)))
    # uncompiled: what is compiled rounds in another way from machine to machine
    for step in descend(problem.problem, problem.space, descent, Reverse(compile=False), problem.seed):
        if isinstance(step, Trial):
            yield step.price_so_far, step.kind, step.validation_loss, step.hyperparameters
        elif step.hypergradient is not None:
            yield step.stats["price"], "hypergradient", step.validation_loss, step.hyperparameters
