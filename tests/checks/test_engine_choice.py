"""`engine: auto`: the quickest of those that are right; a verdict says why, and is not made twice."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hyperopt_cli import Auto, Forward, Problem, hypergradient
from hyperopt_cli.callback import Callback
from hyperopt_cli.checks import choice, examination, timing
from hyperopt_cli.checks.verdict import Verdict
from hyperopt_cli.commands.run import execute
from hyperopt_cli.dynamics.chunked_loss import ChunkedLoss
from hyperopt_cli.engines import ENGINES, Engine, Tangents
from hyperopt_cli.errors import UsageError
from hyperopt_cli.instantiate import build
from hyperopt_cli.modes import Measurements
from hyperopt_cli.modes.auto import Choice
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.problem import Hyper
from hyperopt_cli.run_directory.directory import RunDirectory
from tests.instantiate.recipes import recipe_of

F64 = torch.float64
LONG = 400
HYPER: Hyper = {"lr": torch.tensor(0.01, dtype=F64), "momentum": torch.tensor(0.5, dtype=F64)}
REFERENCE = "reverse_over_reverse_loop"


def problem(steps: int, normalise: bool = False, width: int = 5) -> Problem:
    x = torch.randn(6, width, generator=torch.Generator().manual_seed(1), dtype=F64)
    start = {"w": torch.randn(4, width, generator=torch.Generator().manual_seed(2), dtype=F64)}

    def loss(params: Params, *rest: Any) -> Tensor:
        z = x @ params["w"].T
        return functional.cross_entropy(functional.layer_norm(z, (4,)) if normalise else z, torch.arange(6) % 4)

    return Problem(start, loss, loss, lambda t: None, SGD(), steps)


def only(monkeypatch: pytest.MonkeyPatch, reference: Engine | None = None, **engines: Engine) -> None:
    """No other engines than the reference and these."""
    there = {REFERENCE: reference or ENGINES[REFERENCE], **engines}
    for module in ("modes.forward", "checks.choice", "checks.examination"):
        monkeypatch.setattr(f"hyperopt_cli.{module}.ENGINES", there)


class Clock:
    """In place of `time` where engines are timed: it moves by what they say that they take."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


def after(seconds: float, change: Callable[[Tensor], Tensor] = lambda x: x, clock: Clock | None = None) -> Engine:
    """The reference, later by a clock, with other tangents."""
    reference = ENGINES[REFERENCE]

    def engine(*arguments: Any) -> Tangents:
        if clock is not None:
            clock.now_s += seconds
        out = reference(*arguments)
        return out._replace(grad_tangents={name: change(x) for name, x in out.grad_tangents.items()})

    return engine


def verdict_of(steps: int = LONG, **changed: Any) -> Verdict:
    known = Measurements()
    hypergradient(problem(steps, **changed), HYPER, Forward(), measurements=known)
    (verdict,) = known.verdicts.values()
    return verdict


def test_the_quickest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    seconds = {"reference": 0.015, "slow": 0.01, "slower": 0.02}
    only(monkeypatch, **{name: after(each, clock=clock) for name, each in seconds.items()})

    def resting(d: Any, step: Any, lam: Any, state: Any, carried: Any, t: int, account: Any) -> tuple[Any, Any]:
        account.inner_loss[t] = d.loss_at(t)(d.layout.unpack(state.params), d.hyper_at(HYPER, t))
        return state, carried

    monkeypatch.setattr("hyperopt_cli.modes.forward._advanced", resting)
    verdict = verdict_of()
    assert verdict.engine == "slow"
    assert verdict.step_s["slow"] < verdict.step_s[REFERENCE] < verdict.step_s["slower"]
    assert "ms a step of 2 columns, the quickest of 3 (" + REFERENCE in verdict.why
    assert not verdict.disqualified


class Elsewhere:
    """Another process, on which some engines are wrong."""

    def __init__(self, *wrong: float) -> None:
        self.wrong = torch.tensor(wrong)

    def summed(self, tree: Tensor) -> Tensor:
        return tree + self.wrong

    def from_lead(self, value: Any) -> Any:
        raise AssertionError("nothing is timed here")


def test_processes_that_sum_over_their_chunks_time_the_engines_that_are_right_on_all() -> None:
    names = ["a", "b", "c"]
    here = dict.fromkeys(("a", "b"), ENGINES[REFERENCE])
    shared = ChunkedLoss(lambda: iter(()), Elsewhere(0.0, 1.0, 0.0))
    assert list(timing.right_everywhere(here, names, shared)) == ["a"]
    assert list(timing.right_everywhere(here, names, ChunkedLoss(lambda: iter(())))) == ["a", "b"]


WRONG = {
    "differs": (lambda x: 1.001 * x, "off by 0.001 of central differences"),
    "is not symmetric": (lambda x: x.cumsum(dim=-1), "of central differences of the training gradient"),
    "is not finite": (lambda x: x / 0, "off by inf of central differences"),
    "mixes columns": (lambda x: x.flip(0), "off by 1 of central differences"),
    "is off in a thousandth of its elements": (lambda x: x + 1e-3 * (x == x.max()), "of central differences"),
}  # fmt: skip


@pytest.mark.parametrize("steps", [5, LONG])
@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_one_is_disqualified_however_quick(
    change: Any, said: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, forward_over_reverse=after(0, change))
    verdict = verdict_of(steps)
    assert verdict.engine == REFERENCE
    assert said.replace("\\", "") in verdict.disqualified["forward_over_reverse"]
    assert "forward_over_reverse disqualified: " in verdict.why


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_one_that_is_set_by_hand_is_refused(change: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, forward_over_reverse=after(0, change))
    with pytest.raises(UsageError, match=rf"^engine forward_over_reverse: .*{said}.*Use engine auto"):
        hypergradient(problem(5), HYPER, Forward(engine="forward_over_reverse"))


@pytest.mark.parametrize("engine", ["auto", "forward_over_reverse"])
def test_one_mode_notices_that_its_engine_is_wrong_on_another_problem_of_the_same_size(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where lambda moves, and symmetric: by no test of symmetry could it be seen."""
    known = Measurements()
    reference, wrong = ENGINES[REFERENCE], [False]

    def mixed(loss: Any, params: Params, hyper: Any, w_dot: Params, hyper_dot: Any) -> Tangents:
        twice = {name: x * (2 if wrong[0] else 1) for name, x in hyper_dot.items()}
        return reference(loss, params, hyper, w_dot, twice)

    only(monkeypatch, forward_over_reverse=mixed)
    monkeypatch.setattr(choice, "BY_DEFAULT", ("forward_over_reverse", REFERENCE))
    scaled = lambda p, h, b: p["w"].pow(2).sum() * h["scale"]  # noqa: E731
    run, hyper = replace(problem(5), inner_loss=scaled), {**HYPER, "scale": torch.tensor(0.3, dtype=F64)}
    mode = Forward(engine=engine)
    want = hypergradient(run, hyper, mode, measurements=known).grad
    wrong[0] = True
    if engine == "auto":
        got = hypergradient(run, hyper, mode, measurements=known)
        assert got.stats["engine"] == REFERENCE
        torch.testing.assert_close(got.grad, want, rtol=1e-12, atol=0)
    else:
        with pytest.raises(UsageError, match=r"engine forward_over_reverse: off by .* of central differences"):
            hypergradient(run, hyper, mode, measurements=known)


def test_one_that_is_set_by_hand_is_examined_at_every_hypergradient(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Measurements()
    calls = []
    check = examination.Examination.passes

    def passes(self: Any, name: str, is_given: bool = False) -> bool:
        calls.append(name)
        return check(self, name, is_given)

    monkeypatch.setattr(examination.Examination, "passes", passes)
    mode = Forward(engine="forward_over_reverse")
    for num in (1, 2):
        calls.clear()
        hypergradient(problem(2), HYPER, mode, measurements=known)
        assert calls.count("forward_over_reverse") >= 1, num


def test_one_that_is_set_by_hand_is_obeyed_where_another_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def reference(*arguments: Any) -> Tangents:
        raise RuntimeError("derivative is not implemented")

    only(monkeypatch, reference=reference, forward_over_reverse=ENGINES["forward_over_reverse"])
    got = hypergradient(problem(5), HYPER, Forward(engine="forward_over_reverse"))
    torch.testing.assert_close(got.grad, hypergradient(problem(5), HYPER, "reverse").grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_one_that_finds_no_memory_is_disqualified(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(*arguments: Any) -> Tangents:
        raise error

    only(monkeypatch, forward_over_reverse=engine)
    verdict = verdict_of()
    assert (verdict.engine, verdict.disqualified) == (
        REFERENCE, {"forward_over_reverse": "does not fit into the memory"}
    )  # fmt: skip


def test_one_that_finds_no_memory_for_all_columns_is_disqualified(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = ENGINES[REFERENCE]

    def engine(loss: Any, params: Params, hyper: Any, w_dot: Params, *rest: Any) -> Tangents:
        if w_dot["w"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return reference(loss, params, hyper, w_dot, *rest)

    only(monkeypatch, forward_over_reverse=engine)
    mode, known = Forward(), Measurements()
    hypergradient(problem(LONG), {**HYPER, "weight_decay": torch.tensor(0.1, dtype=F64)}, mode, measurements=known)
    (verdict,) = known.verdicts.values()
    assert verdict.engine == REFERENCE
    assert verdict.disqualified == {"forward_over_reverse": "does not fit into the memory"}


def test_one_that_would_not_fit_is_not_tried_with_all_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "taken_by", lambda function, device: (function() and None) or 10 * 2**20)
    monkeypatch.setattr(examination, "available_bytes", lambda device: 12 * 2**20)
    only(monkeypatch, forward_over_reverse=ENGINES["forward_over_reverse"])
    many = {"lr": HYPER["lr"], "direction": torch.ones(9, dtype=F64)}
    start = problem(LONG)
    run = replace(
        start, init=lambda hyper: {"w": dict(start.init)["w"] * (1 + hyper["direction"].sum() * 0)},  # type: ignore[arg-type]
    )  # fmt: skip
    mode, known = Forward(), Measurements()
    hypergradient(run, many, mode, measurements=known)
    assert next(iter(known.verdicts.values())).engine == REFERENCE
    assert (
        next(iter(known.verdicts.values())).disqualified["forward_over_reverse"]
        == "would need about 50 MiB, 12 MiB are free"
    )


@pytest.mark.parametrize("error", [RuntimeError("a defect"), AssertionError("a defect"), ZeroDivisionError("a defect")])
def test_an_engine_that_fails_where_the_reference_does_not_is_disqualified_and_named(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine(*arguments: Any) -> Tangents:
        raise error

    only(monkeypatch, forward_over_reverse=engine)
    verdict = verdict_of()
    assert verdict.engine == REFERENCE
    assert verdict.disqualified["forward_over_reverse"] == f"failed ({type(error).__name__}: a defect)"
    assert f"forward_over_reverse disqualified: failed ({type(error).__name__}: a defect)" in verdict.why


def test_where_every_engine_fails_the_errors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(*arguments: Any) -> Tangents:
        raise RuntimeError("a defect")

    only(monkeypatch, reference=engine)
    with pytest.raises(UsageError, match=rf"none is left at step 0 \({REFERENCE}: failed \(RuntimeError: a defect\)\)"):
        verdict_of()


def test_where_none_is_right_every_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, reference=after(0, lambda x: x.cumsum(dim=-1)))
    for steps in (5, LONG):
        with pytest.raises(UsageError, match=rf"none is left at step 0 \({REFERENCE}: off by .*the mode reverse"):
            verdict_of(steps)


def test_a_normalised_network_has_right_engines_and_dense_is_not_measured() -> None:
    verdict = verdict_of(normalise=True)
    assert max(verdict.errors.values()) < 1e-6
    assert verdict.engine in verdict.errors
    assert not {"dense", "reverse_over_forward"} & set(verdict.step_s)


def test_a_short_horizon_takes_the_default_and_says_so() -> None:
    verdict = verdict_of(20)
    assert verdict.engine == next(name for name in choice.BY_DEFAULT if name in ENGINES)
    assert verdict.why.startswith("the default, for measuring takes a horizon of ")
    assert not verdict.step_s


def test_measuring_is_at_most_five_percent_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"measuring": 0, "run": 0}
    phase = ["measuring"]
    reference = ENGINES[REFERENCE]

    def engine(*arguments: Any) -> Tangents:
        calls[phase[0]] += 1
        return reference(*arguments)

    only(monkeypatch, reference=engine, other=engine)
    decide = choice.decide

    def told(*arguments: Any) -> Verdict:
        verdict = decide(*arguments)
        phase[0] = "run"
        return verdict

    monkeypatch.setattr(choice, "decide", told)
    for steps in (119, 120, 150, 600):
        calls["measuring"] = 0
        phase[0] = "measuring"
        verdict = verdict_of(steps)
        assert bool(verdict.step_s) == (steps >= 120)
        assert calls["measuring"] <= max(4, 0.05 * steps + 2)  # an examination takes two calls of two columns each


def test_the_verdict_is_kept_for_problems_of_the_same_size(monkeypatch: pytest.MonkeyPatch) -> None:
    mode, known = Forward(), Measurements()
    first = hypergradient(problem(10), HYPER, mode, measurements=known)
    monkeypatch.setattr(choice, "decide", lambda *arguments: pytest.fail("decided again"))
    again = hypergradient(problem(10), {**HYPER, "lr": torch.tensor(0.02, dtype=F64)}, mode, measurements=known)
    assert again.stats["engine_why"] == first.stats["engine_why"]
    assert len(known.verdicts) == 1


@pytest.mark.parametrize("changed", [{"width": 6}, {"steps": 11}])
def test_another_size_is_decided_anew(changed: dict[str, int]) -> None:
    mode, known = Forward(), Measurements()
    hypergradient(problem(10), HYPER, mode, measurements=known)
    hypergradient(problem(**{"steps": 10, **changed}), HYPER, mode, measurements=known)
    assert len(known.verdicts) == 2


def test_another_number_of_threads_is_decided_anew() -> None:
    mode, known, threads = Forward(), Measurements(), torch.get_num_threads()
    hypergradient(problem(10), HYPER, mode, measurements=known)
    try:
        torch.set_num_threads(threads + 1)
        hypergradient(problem(10), HYPER, mode, measurements=known)
    finally:
        torch.set_num_threads(threads)
    assert [made_for.threads for made_for in known.verdicts] == [threads, threads + 1]


def test_a_kept_engine_that_turns_out_wrong_elsewhere_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    mode, known = Forward(), Measurements()
    hypergradient(problem(10), HYPER, mode, measurements=known)
    wrong = next(iter(known.verdicts.values())).engine
    monkeypatch.setitem(ENGINES, wrong, after(0, lambda x: x.cumsum(dim=-1)))
    got = hypergradient(problem(10), HYPER, mode, measurements=known)
    assert got.stats["engine"] != wrong
    assert wrong in next(iter(known.verdicts.values())).disqualified
    torch.testing.assert_close(got.grad, hypergradient(problem(10), HYPER, "reverse").grad, rtol=1e-10, atol=1e-14)


def test_a_kept_engine_that_cannot_take_another_model_of_the_same_size_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mode, known = Forward(), Measurements()
    monkeypatch.setattr(choice, "BY_DEFAULT", ("forward_over_reverse", REFERENCE))
    hypergradient(problem(10), HYPER, mode, measurements=known)
    first = problem(10)
    other = replace(first, inner_loss=lambda *arguments: Opaque.apply(first.inner_loss(*arguments)))
    got = hypergradient(other, HYPER, mode, measurements=known)
    assert got.stats["engine"] == "folded"  # which takes a Function below autograd, as the operators that it is
    torch.testing.assert_close(got.grad, hypergradient(other, HYPER, "reverse").grad, rtol=1e-10, atol=1e-14)


class Opaque(torch.autograd.Function):
    """Takes no forward derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@pytest.mark.parametrize("make", [Forward, Auto])
def test_a_remembered_verdict_is_obeyed(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = replace(verdict_of(10), engine="forward_over_reverse_loop", why="it was told")
    monkeypatch.setattr(choice, "decide", lambda *arguments: pytest.fail("decided again"))
    if make is Auto:
        monkeypatch.setattr("hyperopt_cli.modes.auto.choice", lambda *arguments: Choice(Forward(), "as told"))
    mode, known = make(), Measurements()
    state = Measurements(verdicts={told.made_for: told}).state_dict()
    known.load_state_dict(json.loads(json.dumps(state)))
    got = hypergradient(problem(10), HYPER, mode, measurements=known)
    assert (got.stats["engine"], got.stats["engine_why"]) == ("forward_over_reverse_loop", "it was told")
    assert list(known.verdicts.values()) == [told]


def test_a_verdict_of_an_engine_that_is_gone_is_not_obeyed() -> None:
    mode, known = Forward(), Measurements()
    told = replace(verdict_of(10), engine="faster_than_light")
    known.verdicts[told.made_for] = told
    assert hypergradient(problem(10), HYPER, mode, measurements=known).stats["engine"] in ENGINES


def test_a_verdict_survives_json() -> None:
    verdict = verdict_of()
    assert Verdict.from_state_dict(json.loads(json.dumps(verdict.state_dict()))) == verdict


@pytest.mark.parametrize("content", [{}, {"made_for": {}}, {"made_for": {"warp": 9}, "engine": "x"}])
def test_what_is_no_verdict_raises(content: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError)):
        Verdict.from_state_dict(content)


def test_the_choice_changes_no_hypergradient_and_no_count() -> None:
    for steps in (5, LONG):
        one, other = (hypergradient(problem(steps), HYPER, mode) for mode in (Forward(), "reverse"))
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-13)
        assert (one.stats["num_hvps"], one.stats["num_gradients"]) == (2 * steps, steps)


def test_equal_settings_are_equal_modes_whatever_they_have_decided() -> None:
    mode, known = Forward(), Measurements()
    hypergradient(problem(5), HYPER, mode, measurements=known)
    assert mode == Forward()
    assert repr(mode) == "Forward(engine='auto', columns_at_once=None, compile='auto')"


# --- in a run ---


def run(folder: Path, directory: RunDirectory, **changed: Any) -> None:
    recipe = recipe_of(folder, mode="forward", outer={"steps": 1}, **changed)
    execute(build(recipe), recipe, "as written", directory, Callback())


def test_a_run_keeps_the_verdict_and_reads_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = RunDirectory.create(tmp_path / "first", "run")
    run(tmp_path, first)
    written = json.loads(first.measurements.read_text())
    assert written["verdicts"][0]["engine"] in ENGINES
    assert written["verdicts"][0]["made_for"]["num_columns"] == 4
    again = RunDirectory.create(tmp_path / "again", "run")
    again.measurements.write_text(first.measurements.read_text())
    monkeypatch.setattr(choice, "decide", lambda *arguments: pytest.fail("decided again"))
    run(tmp_path, again)


@pytest.mark.parametrize("text", ["{", '{"verdicts": 3}', '{"verdicts": [{"engine": "x"}, 3]}', "[]"])
def test_a_damaged_cache_is_measured_again(text: str, tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "run")
    directory.measurements.write_text(text)
    run(tmp_path, directory)
    assert json.loads(directory.measurements.read_text())["verdicts"][0]["engine"] in ENGINES


def test_where_nothing_is_decided_no_verdict_is_left(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "run")
    given = {"name": "forward", "engine": "reverse_over_reverse", "compile": False}
    recipe = recipe_of(tmp_path, mode=given, outer={"steps": 0})
    execute(build(recipe), recipe, "as written", directory, Callback())
    assert not directory.measurements.exists()


@pytest.mark.parametrize("hook", ["tensor", "node"])
@pytest.mark.parametrize("engine", ["reverse_over_reverse_loop", "forward_over_reverse_loop", "dense"])
def test_an_engine_set_by_hand_is_refused_beside_a_hook_that_seldom_clips(engine: str, hook: str) -> None:
    """At the steps that are examined it may be idle; a double backward calls it again, on another gradient."""

    def hooked(w: Params, h: Hyper, x: Tensor) -> Tensor:
        z = (w["w"] * x).sum() ** 2
        if hook == "tensor":
            z.register_hook(lambda g: g.clamp(-1e6, 1e6))
        else:
            z.grad_fn.register_hook(lambda into, out: tuple(g.clamp(-1e6, 1e6) for g in into))  # type: ignore[union-attr]
        return z + (w["w"] ** 4).sum()

    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = Problem({"w": x[0]}, hooked, lambda w, h: (w["w"] ** 2).sum(), lambda t: x[t], SGD(), 6)
    hyper = {"lr": torch.tensor(0.01, dtype=torch.float64)}
    with pytest.raises(UsageError, match=r"autograd is cut .*a hook"):
        hypergradient(given, hyper, Forward(engine=engine))
    plain = replace(given, inner_loss=lambda w, h, x: (w["w"] * x).sum() ** 2 + (w["w"] ** 4).sum())  # it never clips
    want = hypergradient(plain, hyper, Forward(engine=engine)).grad
    for mode in ("forward", "reverse"):
        torch.testing.assert_close(hypergradient(given, hyper, mode).grad, want)
