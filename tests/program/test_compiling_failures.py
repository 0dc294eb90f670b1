"""With `compile: auto` no failure of compiling ends a run, whatever raises it and when; it is said once, and why."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from hyperopt_cli import Forward, Problem, Reverse, Reversible, hypergradient
from hyperopt_cli.errors import NoMemoryError, Stopped, UsageError, VerificationError
from hyperopt_cli.modes import Measurements
from hyperopt_cli.modes.base import Mode
from hyperopt_cli.modes.fitting import smaller
from hyperopt_cli.modes.planning import reversible_cost
from hyperopt_cli.modes.planning.plan import plan
from hyperopt_cli.modes.result import Hypergradient
from hyperopt_cli.modes.reversal import kernels
from hyperopt_cli.optimizers import SGD, Adam
from hyperopt_cli.optimizers.base import WEIGHTS, Coupling, InnerOptimizer, with_more, zeros
from hyperopt_cli.problem import Hyper
from hyperopt_cli.program import compiled_step, operators, worth_compiling
from hyperopt_cli.program.compiled_step import CompiledStep

F64 = torch.float64
DATA = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
HYPER: Hyper = {"lr": torch.tensor(0.1, dtype=F64), "momentum": torch.tensor(0.75, dtype=F64)}
MODES: dict[str, Callable[[Any], Mode]] = {
    "forward": lambda compile: Forward(engine="reverse_over_reverse_loop", compile=compile),
    "reverse": lambda compile: Reverse(compile=compile),
    "reverse, 2 slots": lambda compile: Reverse(slots=2, compile=compile),
}


def ragged(steps: int = 4) -> Problem:
    """Another set of shapes at step 3, so that something is compiled late."""
    return Problem(
        {"w": torch.tensor([0.3, -0.2, 0.5], dtype=F64)},
        lambda w, h, b: (b @ w["w"] - 1).square().mean() + (w["w"] ** 4).sum(),
        lambda w, h: (DATA @ w["w"]).square().mean(),
        lambda t: DATA[:2].clone() if t == 3 else DATA.clone(),
        SGD(),
        steps,
    )


class Silent(Exception):
    """An error of which nothing is said."""

    def __str__(self) -> str:
        return ""


ERRORS: dict[str, Exception] = {
    "of torch": RuntimeError("no lowering\nand more"),
    "of dynamo": torch._dynamo.exc.Unsupported("Unsupported function call"),
    "an assert": AssertionError("expected a FakeTensor"),
    "an assert without words": AssertionError(),
    "a look-up": KeyError("buf0"),
    "of the system": OSError(2, "No such file or directory", "g++"),
    "of memory": MemoryError("can't allocate memory: you tried to allocate 5 bytes"),
    "too deep": RecursionError("maximum recursion depth exceeded"),
    "unknown and silent": Silent(),
}


@pytest.fixture
def repaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every horizon repays compiling, and what is compiled is quicker."""
    monkeypatch.setattr(worth_compiling, "SECONDS", 0.0)
    monkeypatch.setattr(worth_compiling, "SECONDS_PER_OPERATOR", 0.0)
    monkeypatch.setattr(compiled_step, "cannot_compile", lambda: None)
    monkeypatch.setattr("hyperopt_cli.modes.compilation.cannot_compile", lambda: None)
    ticks = iter(range(10**6))
    monkeypatch.setattr(worth_compiling, "_once", lambda call: (call(), 1000.0 - next(ticks))[1])


def failing_build(error: Exception, at_build: int, at_call: int) -> Callable[..., Any]:
    """In place of the compiler: torch runs the operators, and the given build or call fails."""
    counts = {"builds": 0, "calls": 0}

    def build(graph: fx.GraphModule, tensors: list[Tensor]) -> Callable[..., Any]:
        counts["builds"] += 1
        if counts["builds"] == at_build:
            raise error

        def run(*given: Tensor) -> Any:
            counts["calls"] += 1
            if counts["calls"] == at_call:
                raise error
            return graph(*given)

        return run

    return build


def close(got: Hypergradient, want: Hypergradient) -> None:
    torch.testing.assert_close(got.grad, want.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got.value, want.value, rtol=1e-12, atol=0)


# which build and which call fails, of a step that is compiled as one, and of one in two halves
WHEN = {
    "the compiler": ((1, 0), (1, 0)),
    "the compiler, at the last step": ((2, 0), (3, 0)),
    "the first call": ((0, 1), (0, 1)),
    "a call of the run": ((0, 7), (0, 14)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ERRORS)
def test_whatever_the_compiler_raises_the_run_goes_on(
    name: str, mode: str, repaid: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _goes_on(ERRORS[name], mode, "the compiler", monkeypatch, caplog)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("when", WHEN)
def test_whenever_it_raises_the_run_goes_on(
    when: str, mode: str, repaid: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _goes_on(ERRORS["of torch"], mode, when, monkeypatch, caplog)


def _goes_on(
    error: Exception, name: str, when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = Measurements()
    at_build, at_call = WHEN[when][name != "forward"]
    problem, build = ragged(), staticmethod(failing_build(error, at_build, at_call))
    monkeypatch.setattr(CompiledStep, "_build", build)
    caplog.set_level(logging.WARNING, "hyperopt_cli")
    mode, plain = MODES[name]("auto"), hypergradient(problem, HYPER, MODES[name](False))
    for _ in range(2):  # an outer loop's next step does not try again, and says nothing more
        got = hypergradient(problem, HYPER, mode, measurements=known)
        close(got, plain)
        assert got.stats["compiled"] is False
        assert got.stats["compiled_why"].startswith("not compiled (")
        assert got.stats["num_steps"] == plain.stats["num_steps"]
        assert got.stats["num_hvps"] == plain.stats["num_hvps"]
    (told,) = caplog.messages
    assert told.startswith("goes on without compiling: ")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ERRORS)
def test_who_asked_for_compiling_is_told_why_it_failed(
    name: str, mode: str, repaid: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ERRORS[name]
    monkeypatch.setattr(CompiledStep, "_build", staticmethod(failing_build(error, 1, 0)))
    words = str(error).splitlines()[0] if str(error) else type(error).__name__
    with pytest.raises(UsageError, match=r"compile: .* failed .*set compile: false") as raised:
        hypergradient(ragged(), HYPER, MODES[mode](True))
    assert words in str(raised.value)
    assert isinstance(raised.value, NoMemoryError) == (name == "of memory")


@pytest.mark.parametrize("mode", MODES)
def test_an_error_while_the_step_is_written_down_is_no_end_either(
    mode: str, repaid: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any, **named: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(operators, "make_fx", fails)
    got = hypergradient(ragged(), HYPER, MODES[mode]("auto"))
    assert "cannot be written down as operators (AssertionError)" in got.stats["compiled_why"]
    close(got, hypergradient(ragged(), HYPER, MODES[mode](False)))


@pytest.mark.parametrize("mode", MODES)
def test_a_signal_ends_a_run_while_it_compiles(mode: str, repaid: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledStep, "_build", staticmethod(failing_build(Stopped("SIGTERM"), 1, 0)))
    with pytest.raises(Stopped):
        hypergradient(ragged(), HYPER, MODES[mode]("auto"))


def test_where_memory_lacks_for_what_is_compiled_a_smaller_mode_is_taken(
    repaid: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CompiledStep, "_build", staticmethod(failing_build(ERRORS["of memory"], 1, 0)))
    mode = Reverse(slots=2, compile=True)
    with pytest.raises(NoMemoryError) as raised:
        hypergradient(ragged(), HYPER, mode)
    assert smaller(mode, ragged(), HYPER, str(raised.value), Measurements()).mode == Reverse(slots=1, compile=True)


# --- the true reason ---


REASONS: dict[str, tuple[Any, str]] = {
    "an assert": (AssertionError("expected a FakeTensor"), r"written down as operators \(expected a FakeTensor\)"),
    "a silent assert": (AssertionError(), r"written down as operators \(AssertionError\)"),
    "an error each time": (RuntimeError("no meta kernel"), r"written down as operators \(no meta kernel\)"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REASONS)
def test_what_torch_raises_at_another_batch_is_not_put_down_to_the_loss(
    name: str, mode: str, repaid: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 0 can be written down; then torch fails."""
    error, said = REASONS[name]
    true, calls = operators.make_fx, []

    def fails_later(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise error
        return true(*given, **named)

    monkeypatch.setattr(operators, "make_fx", fails_later)
    problem = Problem(
        ragged().init, lambda w, h, b: (DATA @ w["w"]).square().mean(), ragged().outer_loss, lambda t: t, SGD(), 4
    )
    with pytest.raises(UsageError, match=said) as raised:
        hypergradient(problem, HYPER, MODES[mode](True))
    assert "reads a number of the batch" not in str(raised.value)


def test_a_loss_that_counts_is_not_said_to_read_the_batch() -> None:
    calls = iter(range(10))
    step = CompiledStep().of(lambda batch, w: w * float(next(calls)), owner=1)
    with pytest.raises(UsageError, match=r"another computation each time .*such as a counter \(once `.*`, then `.*`\)"):
        step(1, iter([2]), DATA[0])


# --- reversible mode ---


def large() -> Problem:
    return Problem(
        {"w": torch.linspace(-1, 1, 7, dtype=F64)},
        lambda w, h, b: (w["w"] - b).square().sum() / 2 + w["w"].pow(4).sum() / 8,
        lambda w, h: (w["w"] - 1).square().sum(),
        lambda t: torch.full((7,), t / 8, dtype=F64),
        SGD(),
        5,
    )


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size repays compiling; nothing is compiled for other tests."""
    monkeypatch.setattr(kernels, "REPAYS", 0.0)
    monkeypatch.setattr(kernels, "cannot_compile", lambda: None)
    kernels._compiled.cache_clear()
    kernels._compiled_for.cache_clear()


def with_compiler(monkeypatch: pytest.MonkeyPatch, made: Callable[..., Any]) -> None:
    monkeypatch.setattr(kernels, "torch", SimpleNamespace(**{**vars(torch), "compile": made}))


def failing_passes(error: Exception, when: str) -> Callable[..., Any]:
    calls = []

    def made(function: Any, **named: Any) -> Any:
        if when == "the compiler":
            raise error

        def run(*given: Any) -> Any:
            calls.append(1)
            if len(calls) == {"the first call": 1, "a later call": 14, "on the way back": 40}[when]:
                raise error
            return function(*given)

        return run

    return made


LATER = ("the first call", "a later call", "on the way back")
PASSES = [*((name, "the compiler") for name in ERRORS), *(("of torch", when) for when in LATER)]


@pytest.mark.parametrize(("name", "when"), PASSES)
def test_reversible_mode_goes_on_too(
    name: str, when: str, any_size: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = Measurements()
    with_compiler(monkeypatch, failing_passes(ERRORS[name], when))
    caplog.set_level(logging.WARNING, "hyperopt_cli")
    mode, plain = Reversible(), hypergradient(large(), HYPER, Reversible(compile=False))
    for _ in range(2):
        got = hypergradient(large(), HYPER, mode, measurements=known)
        assert got.stats["compiled"] is False
        assert "failed" in got.stats["compiled_why"]
        assert all(torch.equal(got.grad[key], plain.grad[key]) for key in HYPER)
        assert got.stats["num_steps"] == plain.stats["num_steps"]
    assert len(caplog.messages) == 1


def test_reversible_mode_says_why_it_cannot_compile(any_size: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with_compiler(monkeypatch, failing_passes(ERRORS["of dynamo"], "the compiler"))
    with pytest.raises(UsageError, match=r"compile: the compiled .* failed \(Unsupported function call\)"):
        hypergradient(large(), HYPER, Reversible(compile=True))


def of_size(by: float) -> Callable[..., Any]:
    return lambda out: tuple((x.double() * by).to(x.dtype) if x.ndim else x for x in out)


WRONG: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "an increment by 1e-6": ("of_increment", of_size(1 + 1e-6)),
    "an increment's sign": ("of_increment", of_size(-1)),
    "a product by a unit": ("multiply", lambda out: (out[0] + 1, out[1])),
    "a remainder by a unit": ("multiply", lambda out: (out[0], out[1] ^ 1)),
    "a sum": ("add", lambda out: (out[0] - 1, out[1])),
    "a number decoded": ("decode", lambda out: out * (1 + 1e-15)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_pass_is_refused_though_it_could_be_undone(
    name: str, any_size: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, spoilt = WRONG[name]

    def made(function: Any, **named: Any) -> Any:
        return lambda *given: spoilt(function(*given)) if function.__name__ == of else function(*given)

    with_compiler(monkeypatch, made)
    with pytest.raises(VerificationError, match=rf"compiled pass of the exact arithmetic \({of}\) differs"):
        hypergradient(large(), HYPER, Reversible(compile=True))
    got, plain = (hypergradient(large(), HYPER, Reversible(compile=compile)) for compile in ("auto", False))
    assert "differs from the same pass" in got.stats["compiled_why"]
    assert all(torch.equal(got.grad[key], plain.grad[key]) for key in HYPER)


def test_passes_that_are_right_are_taken(any_size: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with_compiler(monkeypatch, lambda function, **named: function)
    for optimizer, hyper in ((SGD(), HYPER), (Adam(), {"lr": HYPER["lr"]})):
        problem = Problem(*list(vars(large()).values())[:4], optimizer, 5)
        got, plain = (hypergradient(problem, hyper, Reversible(compile=compile)) for compile in (True, False))
        assert got.stats["compiled"] is True
        torch.testing.assert_close(got.grad, plain.grad, rtol=1e-9, atol=0)


# --- a rule's arguments ---


class Signs(InnerOptimizer):
    """A rule of one's own, with arguments of its own that follow from the step."""

    elementwise = True

    def slots(self, params: Any, driven: Any) -> Any:
        return {"average": zeros(params)}

    def coefficients(self, arguments: Any, step: Any) -> Any:
        return with_more(arguments, rate=0.1 / (1 + step))

    def couplings(self, slots: Any) -> tuple[Coupling, ...]:
        return (Coupling("average", lambda x, d, a: 0.5 * d), Coupling(WEIGHTS, lambda x, d, a: -a.rate * x["average"]))


def test_arguments_cannot_be_changed_in_place() -> None:
    arguments = SGD().arguments({}, "w", DATA)
    with pytest.raises(AttributeError):
        arguments.rate = 1.0  # type: ignore[attr-defined]
    assert SGD().coefficients(arguments, 1).taken == 1.0
    assert not hasattr(arguments, "taken")
    assert type(arguments) is type(SGD().arguments({}, "w", DATA))


def test_a_rule_adds_arguments_of_its_own() -> None:
    after, _ = Signs().update({"w": DATA}, {"average": {"w": 0 * DATA}}, {"w": DATA}, {}, 1)
    torch.testing.assert_close(after["w"], DATA - 0.05 * 0.5 * DATA)


def test_a_plan_measures_reversible_mode_uncompiled_where_compiling_fails(
    any_size: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reversible_cost, "_compiles", lambda *given: True)
    with_compiler(monkeypatch, failing_passes(ERRORS["of dynamo"], "the compiler"))
    (prediction,) = (p for p in plan(large(), HYPER).predictions if isinstance(p.mode, Reversible))
    assert prediction.fits
