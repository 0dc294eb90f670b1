"""Ranks keep at one inner step, stop together, fail together; any number of them goes on from what was kept."""

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli.callback import Callback
from hyperopt_cli.checks.watch import Watch
from hyperopt_cli.commands.agreement import Agreement
from hyperopt_cli.errors import NonFiniteError, RankLostError, Stopped, StorageError, VerificationError
from hyperopt_cli.instantiate import build
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.outer.descent import descend
from hyperopt_cli.outer.outer_step import OuterStep, Trial
from hyperopt_cli.ranks.group import Ranks, Shard
from hyperopt_cli.recipe.schema import Recipe
from hyperopt_cli.run_directory.checkpoints import on_host
from hyperopt_cli.run_directory.signals import StopFlag
from tests.instantiate.recipes import recipe_of
from tests.ranks.processes import on_ranks, raised

STEPS, OUTER = 10, 2
MODES: dict[Shard, list[dict[str, Any]]] = {
    "columns": [{"name": "forward", "engine": "folded", "columns_at_once": 1, "compile": False}],
    "batch": [
        {"name": "forward", "engine": "folded"},
        {"name": "reverse", "slots": 3},
        {"name": "reversible"},
    ],
    "replicas": [{"name": "reverse", "compile": False}],
}
CASES = [(shard, mode) for shard, modes in MODES.items() for mode in modes]


def recipe(folder: Path, mode: dict[str, Any], **changed: Any) -> Recipe:
    outer = {"optimizer": "adam", "lr": 0.1, "steps": OUTER, "replicas": 3, "seed": "fresh"}
    tuned = {"lr": {"initial": 0.05, "schedule": {"windows": 3}}, "momentum": 0.5, "weight_decay": 1e-3}
    return recipe_of(folder, **{"mode": mode, "steps": STEPS, "outer": outer, "hyperparameters": tuned, **changed})


class Kept:
    """The lead's keeper: wants it at a number of calls, and ends the run after a signal, as `RunKeeper` does."""

    def __init__(self, at: int | None = None, raises: Exception | None = None) -> None:
        self.at, self.raises, self.asked, self.tree, self.progress = at, raises, 0, None, -1  # type: ignore[var-annotated]

        self.flag = StopFlag()

    def due(self) -> bool:
        self.asked += 1
        return self.at is not None and self.asked > self.at

    def save(self, state: dict[str, Any]) -> None:
        self.tree, self.progress, self.at = on_host(state), state["progress"], None
        if self.raises is not None:
            raise self.raises
        if self.flag.signal is not None:
            raise Stopped(self.flag.signal)

    def barrier(self) -> None:
        raise AssertionError("the ranks agree on that")


class Ended(dict[str, Any]):
    """What a rank has seen: steps, the error that ended it, and what its keeper was given."""


def descended(
    made: Recipe,
    ranks: Ranks,
    keeper: Kept | None = None,
    resume_from: Any = None,
    signalled: tuple[int, int] | None = None,
    prepare: Any = None,
) -> Ended:
    """Descends as one of `ranks`, which asks at every inner step.

    Args:
        made: the recipe.
        ranks: all.
        keeper: of the lead.
        resume_from: to go on from.
        signalled: a rank, and the inner step at which TERM comes to it.
        prepare: changes the experiment of this rank.
    """
    experiment, flag, num = build(made, ranks=ranks), StopFlag(), 0
    experiment = experiment if prepare is None else prepare(experiment, ranks)
    keeper = keeper or Kept()
    keeper.flag = flag
    agreement = Agreement(ranks, flag, keeper if ranks.is_lead else None)
    agreement._steps = lambda: 1  # type: ignore[method-assign]

    class Signalling(Callback):
        def on_inner_step(self, *step: Any) -> None:
            nonlocal num
            num += 1
            if signalled == (ranks.rank, num):
                os.kill(os.getpid(), signal.SIGTERM)

    steps: list[OuterStep | Trial] = []
    error = None
    with flag:
        try:
            walk = descend(
                experiment.problem,
                experiment.space,
                experiment.descent,
                experiment.mode,
                experiment.seed,
                callback=Signalling(),
                keeper=agreement,
                resume_from=resume_from,
                ranks=ranks,
                together=agreement.together,
            )
            steps.extend(walk)
        except RankLostError:
            raise
        except Exception as raised:
            error = raised
    with_grad = [step for step in steps if isinstance(step, OuterStep) and step.hypergradient is not None]
    figures = [
        (step.validation_loss, getattr(step, "hypergradient", None) or {}, step.raw_hyperparameters) for step in steps
    ]
    counts = [(step.stats["num_hvps"], step.stats["growth"]) for step in with_grad]
    return Ended(figures=figures, error=error, tree=keeper.tree, progress=keeper.progress, num=num, counts=counts)


def equal(a: Any, b: Any) -> bool:
    return bool(a[0] == b[0]) and all(
        torch.equal(x[key], y[key]) for x, y in zip(a[1:], b[1:], strict=True) for key in x
    )


def close(a: Any, b: Any) -> None:
    assert a[0] == pytest.approx(b[0], rel=1e-9)
    for x, y in zip(a[1:], b[1:], strict=True):
        for key in x:
            torch.testing.assert_close(x[key], y[key], rtol=1e-7, atol=1e-12)


def whole(made: Recipe, shard: Shard, num: int) -> list[Any]:
    results = raised(on_ranks(num, shard, partial(descended, made)))
    for result in results:
        assert result["error"] is None
        assert all(map(equal, result["figures"], results[0]["figures"]))
    figures: list[Any] = results[0]["figures"]
    return figures


@pytest.mark.parametrize(("shard", "mode"), CASES)
def test_ranks_of_which_one_has_time_to_examine_more_steps_go_on_together(
    shard: Shard, mode: dict[str, Any], tmp_path: Path
) -> None:
    made = recipe(tmp_path, mode)

    def work(ranks: Ranks) -> Any:
        Watch.affords = property(lambda watch: ranks.is_lead)  # type: ignore[assignment, method-assign]
        return descended(made, ranks)

    results = raised(on_ranks(2, shard, work))
    assert [result["error"] for result in results] == [None, None]
    assert all(map(equal, results[0]["figures"], results[1]["figures"]))


class Always(Kept):
    """A keeper that wants whatever there is, and goes on."""

    def due(self) -> bool:
        return True

    def save(self, state: dict[str, Any]) -> None:
        self.progress = max(self.progress, state["progress"])


@pytest.mark.parametrize(("shard", "mode"), [*CASES, ("replicas", {"name": "forward", "engine": "folded"})])
def test_ranks_that_save_wherever_they_may_come_to_the_end(shard: Shard, mode: dict[str, Any], tmp_path: Path) -> None:
    """In the outer objective, which goes in chunks, a rank asks again what it has saved already."""
    data = {"call": "synthetic", "num_examples": 120, "num_features": 4, "num_classes": 3, "batch_size": 12}
    made = recipe(tmp_path, mode, dataset={**data, "outer_batch_size": 3})
    results = raised(on_ranks(2, shard, lambda ranks: descended(made, ranks, Always())))
    assert [result["error"] for result in results] == [None, None]
    assert results[0]["progress"] >= STEPS


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("no")])
def test_a_lack_of_memory_on_one_rank_is_one_on_all(error: Exception) -> None:
    def work(ranks: Ranks) -> Any:
        try:
            ranks.raise_first(error if ranks.rank else None)
        except MemoryError as found:
            return is_lacking(found)

    assert raised(on_ranks(2, "columns", work)) == [True, True]


@pytest.mark.parametrize(("shard", "mode"), CASES)
@pytest.mark.parametrize("at", [pytest.param(4, marks=pytest.mark.slow), 13, pytest.param(27, marks=pytest.mark.slow)])
def test_kept_at_one_step_by_some_ranks_it_goes_on_with_any_number(
    shard: Shard, mode: dict[str, Any], at: int, tmp_path: Path
) -> None:
    made = recipe(tmp_path, mode)
    before = raised(on_ranks(2, shard, lambda ranks: descended(made, ranks, Kept(at, Stopped("SIGTERM")))))
    assert [str(result["error"]) for result in before] == ["stopped by SIGTERM"] * 2
    tree = before[0]["tree"]
    assert tree["inner"], "it was kept in the middle of an inner run"
    assert len({result["num"] for result in before}) == 1 or shard == "replicas"
    expected = whole(made, shard, 2)
    counts = raised(on_ranks(1, shard, lambda ranks: descended(made, ranks)))[0]["counts"]
    for num in (1, 2, 3):
        for result in raised(on_ranks(num, shard, lambda ranks: descended(made, ranks, resume_from=tree))):
            got = result["figures"]
            if shard == "batch" and mode["name"] == "reversible" and num != 2:
                continue  # it needs the bits of its forward steps: the outer step starts again
            assert len(got) == len(expected) - tree["n"]
            for (num_hvps, growth), of_one in zip(result["counts"], counts[tree["n"] :], strict=True):
                assert num_hvps == of_one[0]
                assert growth == (pytest.approx(of_one[1], rel=1e-6) if shard == "batch" else of_one[1])
            for figures, others in zip(got, expected[tree["n"] :], strict=True):
                assert num != 2 or equal(figures, others)
                assert shard == "batch" or equal(figures, others)
                close(figures, others)


@pytest.mark.parametrize(("shard", "optimizer"), [("columns", "auto"), ("batch", "auto"), ("replicas", "lbfgs")])
def test_a_method_that_compares_runs_walks_alike_on_any_number_and_goes_on_where_it_was_stopped(
    shard: Shard, optimizer: str, tmp_path: Path
) -> None:
    outer = {"optimizer": optimizer, "steps": 2, "replicas": 3 if shard == "replicas" else 1}
    made = recipe(tmp_path, MODES[shard][0] if shard != "batch" else MODES[shard][1], outer=outer)
    expected = whole(made, shard, 2)
    assert sum(bool(grad) for _, grad, _ in expected) == 3
    assert optimizer != "auto" or len(expected) >= 8  # and a scan
    before = raised(on_ranks(2, shard, lambda ranks: descended(made, ranks, Kept(25, Stopped("SIGTERM")))))
    tree = before[0]["tree"]
    assert tree["inner"]
    for num in (1, 2):
        for result in raised(on_ranks(num, shard, lambda ranks: descended(made, ranks, resume_from=tree))):
            got = result["figures"]
            for figures, others in zip(got, expected[-len(got) :], strict=True):
                assert equal(figures, others) if num == 2 or shard != "batch" else close(figures, others) is None


@pytest.mark.parametrize(("shard", "mode"), CASES)
def test_a_signal_to_one_of_them_stops_all_at_the_same_step(shard: Shard, mode: dict[str, Any], tmp_path: Path) -> None:
    made = recipe(tmp_path, mode)
    results = raised(on_ranks(2, shard, lambda ranks: descended(made, ranks, signalled=(1, 5))))
    for result in results:
        assert isinstance(result["error"], Stopped)
        assert result["error"].signal == "SIGTERM"
    assert results[0]["tree"]["inner"]
    if shard != "replicas":
        assert results[0]["num"] == results[1]["num"] == results[0]["progress"]
        assert 5 <= results[0]["num"] <= 6  # reversible mode offers nothing where it tries how many bits it takes
    else:
        assert results[0]["progress"] == results[0]["num"] + results[1]["num"]


def test_interrupted_again_and_again_every_replica_gets_further(tmp_path: Path) -> None:
    made = recipe(tmp_path, MODES["replicas"][0])
    left, before = None, {0: 0, 1: 0}
    for _ in range(3):
        stop, tree = Stopped("SIGTERM"), left
        results = raised(on_ranks(2, "replicas", lambda ranks: descended(made, ranks, Kept(4, stop), tree)))  # noqa: B023
        left = results[0]["tree"]
        now = {replica: each["progress"] for replica, each in left["inner"]}
        assert all(now[replica] > before[replica] for replica in before)
        before = now
    expected = whole(made, "replicas", 2)
    for result in raised(on_ranks(2, "replicas", lambda ranks: descended(made, ranks, resume_from=left))):
        assert all(map(equal, result["figures"], expected[left["n"] :]))


def test_a_signal_to_one_rank_while_the_lead_writes_stops_all_at_a_later_step(tmp_path: Path) -> None:
    made = recipe(tmp_path, MODES["columns"][0])

    class Signalled(Kept):
        """While it writes, TERM comes to the other rank."""

        def save(self, state: dict[str, Any]) -> None:
            first = self.tree is None
            super().save(state)
            if first:
                os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
                time.sleep(0.2)

    def work(ranks: Ranks) -> Ended:
        if not ranks.is_lead:
            (tmp_path / "pid").write_text(str(os.getpid()))
        return descended(made, ranks, Signalled(4))

    results = raised(on_ranks(2, "columns", work))
    assert [str(result["error"]) for result in results] == ["stopped by SIGTERM"] * 2
    assert results[0]["num"] == results[1]["num"]


def test_each_signalled_at_another_step_they_stop_at_one(tmp_path: Path) -> None:
    made = recipe(tmp_path, MODES["columns"][0])

    def work(ranks: Ranks) -> Ended:
        return descended(made, ranks, signalled=(ranks.rank, 5 + 3 * ranks.rank))

    results = raised(on_ranks(2, "columns", work))
    assert [result["num"] for result in results] == [5, 5]


@pytest.mark.parametrize("shard", ["columns", "replicas"])
def test_what_is_not_finite_on_one_rank_is_told_and_halved_on_all(shard: Shard, tmp_path: Path) -> None:
    made = recipe(tmp_path, MODES[shard][0], outer={"steps": 1, "on_nonfinite": "stop", "replicas": 3})
    results = raised(on_ranks(3, shard, partial(descended, made, prepare=broken)))
    for result in results:
        assert isinstance(result["error"], NonFiniteError)
        assert result["error"].step == 3


def broken(experiment: Any, ranks: Ranks) -> Any:
    """On the last rank the loss of step 3 is not a number."""
    from dataclasses import replace

    class Broken(type(experiment)):  # type: ignore[misc]
        def problem(self, seed: int) -> Any:
            problem = super().problem(seed)

            def batch(t: int) -> Any:
                made = problem.batch(t)
                return made._replace(inputs=made.inputs * float("nan")) if t == 3 else made

            return replace(problem, batch=batch) if ranks.rank == ranks.size - 1 else problem

    return Broken(**{name: getattr(experiment, name) for name in experiment.__dataclass_fields__})


def test_what_the_lead_cannot_write_ends_all(tmp_path: Path) -> None:
    made = recipe(tmp_path, MODES["columns"][0])
    for error in (StorageError("no room"), TypeError("no room")):
        full = Kept(4, error)
        for rank, result in enumerate(raised(on_ranks(2, "columns", lambda ranks: descended(made, ranks, full)))):  # noqa: B023
            assert isinstance(result["error"], type(error) if rank == 0 else (StorageError, RuntimeError))
            assert "no room" in str(result["error"])


def test_runs_that_part_are_found(tmp_path: Path) -> None:
    made = recipe(tmp_path, MODES["columns"][0])

    def another_seed(experiment: Any, ranks: Ranks) -> Any:
        from dataclasses import replace

        return replace(experiment, seed=ranks.rank)

    for result in raised(on_ranks(2, "columns", partial(descended, made, prepare=another_seed))):
        assert isinstance(result["error"], VerificationError)
        assert "rank 1" in str(result["error"])


@pytest.mark.parametrize(("shard", "mode"), [(shard, modes[0]) for shard, modes in MODES.items()])
def test_a_rank_that_is_killed_ends_the_others_which_say_so(shard: Shard, mode: dict[str, Any], tmp_path: Path) -> None:
    made = recipe(tmp_path, mode)

    def work(ranks: Ranks) -> Ended:
        return descended(made, ranks, prepare=killed_at_step_3)

    results = on_ranks(3, shard, work, may_die=True)
    assert results[2] is None
    for error in results[:2]:
        assert isinstance(error, RankLostError)
        assert "another rank of this run is gone" in str(error)


def killed_at_step_3(experiment: Any, ranks: Ranks) -> Any:
    from dataclasses import replace

    class Killed(type(experiment)):  # type: ignore[misc]
        def problem(self, seed: int) -> Any:
            problem = super().problem(seed)

            def batch(t: int) -> Any:
                if t == 3 and ranks.rank == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return problem.batch(t)

            return replace(problem, batch=batch)

    return Killed(**{name: getattr(experiment, name) for name in experiment.__dataclass_fields__})
