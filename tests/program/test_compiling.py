"""A compiled step gives what the same step gives as torch runs it; what cannot be compiled is said, or left alone.

Most tests let torch run the list of operators that a step comes to: what they ask of is independent of the compiler.
Those that compile are marked slow.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional

from hyperopt_cli import Forward, Problem, Reverse, hypergradient
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.engines.duals import Dual
from hyperopt_cli.engines.duals.dual import RULES
from hyperopt_cli.errors import UsageError, VerificationError
from hyperopt_cli.instantiate import build
from hyperopt_cli.models import batch_norm
from hyperopt_cli.modes import Measurements
from hyperopt_cli.modes.adjoint.segments import segment_length
from hyperopt_cli.modes.result import Hypergradient
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.problem import Chunked, Hyper
from hyperopt_cli.program import Compilation, compiled_step, decide, worth_compiling
from hyperopt_cli.program.compiled_step import CompiledStep
from hyperopt_cli.program.operators import Operators, same, written_down
from tests.cases import CASES
from tests.instantiate.recipes import recipe_of

F64 = torch.float64
Mode = Forward | Reverse
MODES: dict[str, Callable[[Any], Mode]] = {
    "folded": lambda compile: Forward(engine="folded", compile=compile),
    "folded, 2 columns at once": lambda compile: Forward(engine="folded", columns_at_once=2, compile=compile),
    "forward over reverse": lambda compile: Forward(engine="forward_over_reverse", compile=compile),
    "reverse": lambda compile: Reverse(compile=compile),
    "reverse, 3 slots": lambda compile: Reverse(slots=3, compile=compile),
    "reverse, window": lambda compile: Reverse(window=5, compile=compile),
    "reverse, line": lambda compile: Reverse(path="linear", compile=compile),
}
NAMES = (
    "momentum", "dampening", "nesterov", "adam", "adam at 0", "adamw", "rmsprop", "rmsprop centered", "windows",
    "per step", "late", "cosine", "per tensor", "per weight", "init", "init alone", "losses", "one step",
)  # fmt: skip


@dataclass
class Written:
    """What would have been compiled."""

    operators: list[fx.GraphModule]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    """Torch runs the operators one by one in place of compiling them."""
    kept = Written([])

    def made(graph: fx.GraphModule, tensors: list[Tensor]) -> Callable[..., Any]:
        kept.operators.append(graph)

        def run(*given: Tensor) -> Any:
            results = graph(*given)
            assert all(isinstance(x, Tensor) for x in results)  # a compiler takes no tuples
            return results

        return run

    monkeypatch.setattr(CompiledStep, "_build", staticmethod(made))
    monkeypatch.setattr(compiled_step, "cannot_compile", lambda: None)
    return kept


def close(got: Hypergradient, want: Hypergradient) -> None:
    torch.testing.assert_close(got.grad, want.grad, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(got.params, want.params, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(got.value, want.value, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.stats["inner_loss"], want.stats["inner_loss"], rtol=1e-11, atol=0)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, mode) for name in NAMES for mode in ("folded", "reverse")),
        *(
            (name, mode)
            for name in ("adam", "windows", "per tensor")
            for mode in MODES
            if mode not in ("folded", "reverse")
        ),
    ],
)
def test_a_step_written_down_gives_the_same_hypergradient(name: str, mode: str, written: Written) -> None:
    _, problem, hyper = CASES[name]
    got = hypergradient(problem, hyper, MODES[mode](True))
    assert got.stats["compiled"] is True
    assert got.stats["compiled_why"] == "compiled, as asked for"
    assert written.operators
    close(got, hypergradient(problem, hyper, MODES[mode](False)))


@pytest.mark.parametrize("mode", ["folded", "reverse"])
def test_the_steps_of_a_second_run_are_found_to_be_those_of_the_first(mode: str, written: Written) -> None:
    """An outer loop makes a problem a step; tensors of equal shape may lie otherwise in memory."""
    known = Measurements()
    made = MODES[mode](True)
    for case in ("windows", "windows", "per tensor"):
        _, problem, hyper = CASES[case]
        problem = replace(problem, steps=problem.steps)
        close(
            hypergradient(problem, hyper, made, measurements=known), hypergradient(problem, hyper, MODES[mode](False))
        )


class Several(nn.Module):
    """Operators with several results, on the way there and on the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = (
            nn.Conv1d(1, 3, 3),
            nn.BatchNorm1d(3, track_running_stats=False),
            nn.Linear(9, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.norm(self.conv(x[:, None])))
        y = y.sort(dim=2).values + y.topk(3, dim=2).values.sum(2, keepdim=True)
        out: Tensor = self.last(y.flatten(1)[:, :9])
        return out


def test_operators_with_several_results_are_divided_by_their_results(written: Written) -> None:
    torch.manual_seed(0)
    net = Several().to(F64)
    x, y = torch.randn(6, 5, dtype=F64), torch.randn(6, 2, dtype=F64)

    def loss(params: Any, hyper: Any, batch: Any) -> Tensor:
        return nn.functional.mse_loss(functional_call(net, params, (x * batch,)), y)

    init = {name: w.detach() for name, w in net.named_parameters()}
    problem = Problem(
        init, loss, lambda p, h: loss(p, h, 1.0), lambda t: torch.tensor(1.0 + t / 8, dtype=F64), SGD(), 4
    )
    hyper = {"lr": torch.tensor(0.1, dtype=F64), "momentum": torch.tensor(0.5, dtype=F64)}
    close(hypergradient(problem, hyper, Reverse(compile=True)), hypergradient(problem, hyper, Reverse(compile=False)))


def test_columns_that_join_later_fill_up_rows_of_zeros(written: Written) -> None:
    """Of 12 columns, one a step, steps are compiled for 1, 2, 4, 8 and 12 rows; 12 once more for other strides."""
    _, problem, hyper = CASES["per step"]
    got = hypergradient(problem, hyper, Forward(engine="folded", compile=True))
    assert 5 <= len(written.operators) <= 6
    assert got.stats["num_hvps"] == sum(range(1, 13))


def test_slots_give_the_same_bits_as_all_slots(written: Written) -> None:
    _, problem, hyper = CASES["adam"]
    every, few = (hypergradient(problem, hyper, Reverse(slots=n, compile=True)) for n in (None, 3))
    assert all(torch.equal(every.grad[name], few.grad[name]) for name in hyper)
    assert few.stats["num_steps"] > every.stats["num_steps"]


@pytest.mark.parametrize("fresh", [True, False])
def test_all_slots_hold_no_more_than_the_states_of_the_run(fresh: bool, written: Written) -> None:
    """However much a step keeps: here 22 times its state, or 7 times where all steps share their batch."""
    rows = torch.randn(30, 2, generator=torch.Generator().manual_seed(5), dtype=F64)
    problem = linear(
        init={"w": torch.tensor([0.3, -0.2], dtype=F64)},
        inner_loss=lambda w, h, b: torch.mm(b, w["w"][:, None]).sin().square().mean(),
        outer_loss=lambda w, h: w["w"].square().sum(),
        batch=lambda t: rows.clone() if fresh else rows,
        steps=200,
    )
    hyper = {name: HYPER[name] for name in ("lr", "momentum")}
    mode = Reverse(compile=True)
    steps, _ = mode.steps(Dynamics.of(problem, hyper), hyper, Measurements())
    state = 4 * 8
    assert steps.saved_bytes() == 30 * 8 * (3 if fresh else 1)
    length = segment_length(200, 200, 1 + steps.saved_bytes() / state)
    assert length is not None
    assert length < 200
    assert -(-200 // length) - 1 + length * (1 + steps.saved_bytes() / state) <= 200
    got = hypergradient(problem, hyper, mode)
    assert got.stats["num_steps"] == 400 - length
    close(got, eager(problem, hyper))


# --- networks ---


def network(norm: str, dtype: torch.dtype = F64, steps: int = 4, ragged: bool = False) -> Problem:
    """A convnet on random images in batches of 5, or of 5, 5 and 2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        normalise = nn.BatchNorm2d(4) if norm == "batch" else nn.GroupNorm(2, 4)
        convolutions = nn.Conv2d(1, 4, 3, padding=1), normalise, nn.ReLU(inplace=True), nn.AvgPool2d(2)
        model = nn.Sequential(*convolutions, nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 3)).to(dtype).train()
        x, y = torch.randn(15, 1, 8, 8).to(dtype), torch.randint(0, 3, (15,))
    batch_norm.use_batch_statistics(model)

    def loss(params: Any, hyper: Any, batch: Any) -> Tensor:
        images, labels = batch
        return functional.cross_entropy(functional_call(model, params, (images,)), labels)

    def batch(t: int) -> tuple[Tensor, Tensor]:
        at = 5 * (t % 3)
        size = 2 if ragged and t % 3 == 2 else 5
        return x[at : at + size], y[at : at + size]

    start = {name: w.detach() for name, w in model.named_parameters()}
    return Problem(start, loss, lambda w, hyper: loss(w, hyper, (x[:7], y[:7])), batch, SGD(), steps)


HYPER: Hyper = {
    name: torch.tensor(x, dtype=F64) for name, x in (("lr", 0.1), ("momentum", 0.8), ("weight_decay", 0.01))
}


@pytest.mark.parametrize("mode", ["folded", "forward over reverse", "reverse"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_convolutional_network_written_down(norm: str, mode: str, written: Written) -> None:
    problem = network(norm)
    close(hypergradient(problem, HYPER, MODES[mode](True)), hypergradient(problem, HYPER, MODES[mode](False)))


@pytest.mark.parametrize("mode", ["folded", "reverse"])
@pytest.mark.parametrize("steps", [3, 4, 7])
def test_a_ragged_batch_is_another_step_and_no_other_computation(steps: int, mode: str, written: Written) -> None:
    problem = network("group", steps=steps, ragged=True)
    got = hypergradient(problem, HYPER, MODES[mode](True))
    close(got, hypergradient(problem, HYPER, MODES[mode](False)))
    assert len(written.operators) == (2 if mode == "folded" else 4)


# --- what is compiled is found again ---


def linear(scale: float = 1.0, power: int = 2, steps: int = 3, **changed: Any) -> Problem:
    """A least-squares problem whose data the loss reaches beside its arguments."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=F64) * scale
    y = torch.randn(6, generator=torch.Generator().manual_seed(2), dtype=F64)
    given: dict[str, Any] = {
        "init": {"w": torch.tensor([0.3, -0.2, 0.5], dtype=F64)},
        "inner_loss": lambda w, hyper, batch: ((x @ w["w"] - y) ** power).mean(),
        "outer_loss": lambda w, hyper: ((x @ w["w"] - y) ** 2).mean(),
        "batch": lambda t: None,
        "optimizer": SGD(),
        "steps": steps,
    }
    return Problem(**(given | changed))


def eager(problem: Problem, hyper: Hyper = HYPER) -> Hypergradient:
    return hypergradient(problem, hyper, Reverse(compile=False))


@pytest.mark.parametrize("name", ["folded", "reverse"])
def test_what_is_compiled_is_found_again(name: str, written: Written) -> None:
    known = Measurements()
    mode = MODES[name](True)
    counts = []
    for problem in (linear(), linear(), linear(scale=0.5), linear(scale=0.5), linear(power=4), linear(power=4)):
        close(hypergradient(problem, HYPER, mode, measurements=known), eager(problem))
        counts.append(len(written.operators))
    once = counts[0]
    assert counts == [once, once, once, once, 2 * once, 2 * once]


def test_whoever_waits_for_the_compiler_hears_of_it_once(written: Written, caplog: pytest.LogCaptureFixture) -> None:
    known = Measurements()
    caplog.set_level("INFO", "hyperopt_cli")
    mode = Reverse(compile=True)
    for _ in range(2):
        hypergradient(linear(), HYPER, mode, measurements=known)
    (told,) = caplog.messages
    assert re.fullmatch(r"compiling a step of \d+ operators: some \d+ s", told)


@pytest.mark.parametrize("name", ["folded", "reverse"])
def test_the_same_problem_at_other_keys_is_written_down_anew(name: str, written: Written) -> None:
    known = Measurements()
    problem, mode = linear(optimizer=SGD(weight_decay=0.2, momentum=0.5)), MODES[name](True)
    for keys in (["lr"], ["lr", "weight_decay"], ["lr"], ["lr", "momentum", "weight_decay"]):
        hyper = {key: HYPER[key] for key in keys}
        close(hypergradient(problem, hyper, mode, measurements=known), eager(problem, hyper))


def test_the_same_problem_at_other_values_is_not_written_down_again(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Measurements()
    problem, mode, calls = linear(), Forward(engine="folded", compile=True), []
    hypergradient(problem, HYPER, mode, measurements=known)
    monkeypatch.setattr(compiled_step, "written_down", lambda *given: calls.append(given))
    other = {name: 0.7 * x for name, x in HYPER.items()}
    close(hypergradient(problem, other, mode, measurements=known), eager(problem, other))
    assert not calls


# --- what cannot be compiled ---

DATA = torch.randn(20, 3, generator=torch.Generator().manual_seed(4), dtype=F64)
BATCHES = [DATA[i : i + 4].clone() for i in range(0, 20, 4)]


def squares(w: Any, x: Tensor) -> Tensor:
    return (x @ w["w"]).square().mean() + (w["w"] ** 4).sum()


def seeded_noise(w: Any, hyper: Any, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return squares(w, DATA + torch.randn(DATA.shape, generator=generator, dtype=F64))


def dropped(w: Any, hyper: Any, batch: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(batch)
        return squares(w, functional.dropout(DATA, 0.5))


OTHER = "is another computation at another batch"
READS = r"reads a number of a tensor \(item"
REFUSED: dict[str, tuple[Callable[..., Tensor], Callable[[int], Any], str]] = {
    "an index": (lambda w, h, b: squares(w, DATA[b]), lambda t: t, OTHER),
    "a range": (lambda w, h, b: squares(w, DATA[b : b + 4]), lambda t: t, OTHER),
    "a captured tensor": (lambda w, h, b: squares(w, BATCHES[b % 5]), lambda t: t, OTHER),
    "a size": (lambda w, h, b: squares(w, DATA[: b["n"]]), lambda t: {"n": 4 + t}, OTHER),
    "a factor": (lambda w, h, b: squares(w, DATA) * b, lambda t: 1.0 + t, OTHER),
    "a word": (lambda w, h, b: squares(w, DATA) * (2 if b == "even" else 3), lambda t: ("even", "odd")[t % 2], OTHER),
    "a number that changes later": (lambda w, h, b: squares(w, DATA) * (1 + b[1]), lambda t: (DATA, t // 3), OTHER),
    "a number that matters later": (
        lambda w, h, b: squares(w, DATA) * (2 if b > 4 else 1), lambda t: t, OTHER,
    ),
    "a number that is looked up": (lambda w, h, b: squares(w, DATA) * {7: 1.0}.get(b, 1.0), lambda t: t, OTHER),
    "a number in a name": (lambda w, h, b: squares(w, DATA) * len(f"{b}"), lambda t: t, OTHER),
    "a number that is counted to": (lambda w, h, b: squares(w, DATA) * len(list(range(b))), lambda t: t, OTHER),
    "a number inside of a tensor": (lambda w, h, b: squares(w, DATA) + torch.full((), b), lambda t: 1.0 + t, OTHER),
    "a number for the truth": (lambda w, h, b: squares(w, DATA) * (2 if b else 3), lambda t: t + 1, OTHER),
    "an object": (lambda w, h, b: squares(w, b.x), lambda t: _Opaque(BATCHES[t % 5]), "holds a _Opaque"),
    "a number read": (lambda w, h, b: squares(w, b) * b.sum().item(), lambda t: BATCHES[t % 5], READS),
    "a branch": (lambda w, h, b: squares(w, b) * (2 if b.sum() > 0 else 3), lambda t: BATCHES[t % 5], READS),
    "a seed": (dropped, lambda t: t, "draws random numbers|cannot be written down"),
    "a generator": (seeded_noise, lambda t: t, "draws random numbers|cannot be written down|" + OTHER),
}  # fmt: skip


@dataclass
class _Opaque:
    x: Tensor


@pytest.mark.parametrize("mode", ["folded", "reverse"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_list_of_operators_would_freeze_is_refused(name: str, mode: str, written: Written) -> None:
    loss, batch, said = REFUSED[name]
    with pytest.raises(UsageError, match=rf"compile: the step.*({said})"):
        hypergradient(linear(inner_loss=loss, batch=batch, steps=6), HYPER, MODES[mode](True))


@pytest.mark.parametrize("mode", ["folded", "reverse"])
@pytest.mark.parametrize("name", [name for name in REFUSED if name != "a number that changes later"])
def test_auto_leaves_it_as_torch_runs_it_and_keeps_the_reason(
    name: str, mode: str, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, batch, _ = REFUSED[name]
    monkeypatch.setattr(worth_compiling, "SECONDS", 0.0)
    monkeypatch.setattr(worth_compiling, "SECONDS_PER_OPERATOR", 0.0)
    problem, auto = linear(inner_loss=loss, batch=batch, steps=6), MODES[mode]("auto")
    known = Measurements()
    got = hypergradient(problem, HYPER, auto, measurements=known)
    assert got.stats["compiled"] is False
    (compilation,) = known.compilations.values()
    assert compilation.why.startswith("not compiled (the step ")
    close(got, eager(problem))


def test_a_number_without_effect_is_allowed_and_looked_at_once(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Measurements()
    calls = []

    def counted(*given: Any) -> Operators:
        calls.append(given)
        return written_down(*given)

    monkeypatch.setattr(compiled_step, "written_down", counted)
    problem = linear(inner_loss=lambda w, h, b: squares(w, b[0]), batch=lambda t: (BATCHES[t % 5], t, t // 2), steps=8)
    mode = Forward(engine="folded", compile=True)
    close(hypergradient(problem, HYPER, mode, measurements=known), eager(problem))
    assert len(calls) == 3  # step 0, the seed of another, and the epoch once it changes
    close(hypergradient(replace(problem, steps=7), HYPER, mode, measurements=known), eager(replace(problem, steps=7)))
    assert len(calls) == 6  # of another problem its step, and both numbers once they change


@pytest.mark.parametrize("mode", ["folded", "reverse"])
def test_a_seed_by_which_nobody_draws_is_not_read(mode: str, written: Written) -> None:
    def loss(w: Any, hyper: Any, batch: Any) -> Tensor:
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(batch)
        torch.default_generator.set_state(state)
        return squares(w, DATA)

    problem = linear(inner_loss=loss, batch=lambda t: 1000 * t, steps=6)
    close(hypergradient(problem, HYPER, MODES[mode](True)), eager(problem))


@pytest.mark.parametrize("mode", ["folded", "reverse"])
def test_a_recipe_whose_batches_carry_seeds_is_compiled(mode: str, written: Written, tmp_path: Path) -> None:
    experiment = build(recipe_of(tmp_path))
    problem, hyper = experiment.problem(0), experiment.space.natural(experiment.space.initial())
    close(hypergradient(problem, hyper, MODES[mode](True)), hypergradient(problem, hyper, MODES[mode](False)))


KINDS: dict[str, tuple[Callable[..., Tensor], Callable[[int], Any]]] = {
    "a flag": (lambda w, h, b: squares(w, DATA) * (2 if b is True else 1), lambda t: t % 3 == 0),
    "a number or none": (lambda w, h, b: squares(w, DATA) * (2 if b is None else 1), lambda t: None if t % 3 else t),
    "a kind of number": (
        lambda w, h, b: squares(w, DATA) * (2 if type(b) is int else 1),
        lambda t: 1 if t % 3 else 1.0,
    ),
}


@pytest.mark.parametrize("mode", ["folded", "reverse"])
@pytest.mark.parametrize("name", KINDS)
def test_what_can_be_told_apart_without_reading_is_another_step(name: str, mode: str, written: Written) -> None:
    loss, batch = KINDS[name]
    problem = linear(inner_loss=loss, batch=batch, steps=6)
    close(hypergradient(problem, HYPER, MODES[mode](True)), eager(problem))


@pytest.mark.parametrize("mode", ["folded", "reverse"])
def test_a_batch_in_chunks_is_refused(mode: str, written: Written) -> None:
    halves = [(DATA[:10], 0.5), (DATA[10:], 0.5)]
    problem = linear(inner_loss=lambda w, h, b: squares(w, b), batch=lambda t: Chunked(halves))
    with pytest.raises(UsageError, match=r"compile: the batch goes chunk by chunk.*set compile: false"):
        hypergradient(problem, HYPER, MODES[mode](True))
    close(hypergradient(problem, HYPER, MODES[mode](False)), eager(linear(inner_loss=lambda w, h, b: squares(w, DATA))))


@pytest.mark.parametrize("mode", ["folded", "reverse"])
def test_without_a_compiler_it_is_refused_or_left_alone(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_step, "cannot_compile", lambda: "no g++")
    with pytest.raises(UsageError, match=r"torch cannot compile here \(no g\+\+\); install a C\+\+ compiler"):
        hypergradient(linear(), HYPER, MODES[mode](True))
    monkeypatch.setattr(worth_compiling, "SECONDS", 0.0)
    monkeypatch.setattr(worth_compiling, "SECONDS_PER_OPERATOR", 0.0)
    got = hypergradient(linear(), HYPER, MODES[mode]("auto"))
    assert got.stats["compiled"] is False
    close(got, eager(linear()))


def test_a_machine_without_a_compiler_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **named: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: no g++\nand more")

    monkeypatch.setattr(compiled_step, "_REASON", [])
    monkeypatch.setattr(torch, "compile", fails)
    assert compiled_step.cannot_compile() == "InvalidCxxCompiler: no g++"
    monkeypatch.setattr(torch, "compile", lambda *given, **named: pytest.fail("tried twice"))
    assert compiled_step.cannot_compile() == "InvalidCxxCompiler: no g++"


def test_an_error_of_the_compiler_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **named: Any) -> Any:
        raise RuntimeError("no lowering\nand more")

    monkeypatch.setattr(torch._inductor, "compile", fails)
    monkeypatch.setattr(compiled_step, "cannot_compile", lambda: None)
    with pytest.raises(UsageError, match=r"compile: inductor failed \(no lowering\); set compile: false"):
        hypergradient(linear(), HYPER, Reverse(compile=True))


@pytest.mark.parametrize("mode", ["folded", "reverse"])
@pytest.mark.parametrize("wrong", [1e-6, float("nan")])
def test_a_compiled_step_that_differs_is_a_failed_verification(
    wrong: float, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(graph: fx.GraphModule, tensors: list[Tensor]) -> Callable[..., Any]:
        return lambda *given: [x * (1 + wrong) for x in graph(*given)]

    monkeypatch.setattr(CompiledStep, "_build", staticmethod(made))
    monkeypatch.setattr(compiled_step, "cannot_compile", lambda: None)
    with pytest.raises(VerificationError, match=r"compiled step differs .* by .*; set compile: false"):
        hypergradient(linear(), HYPER, MODES[mode](True))
    monkeypatch.setattr(worth_compiling, "SECONDS", 0.0)
    monkeypatch.setattr(worth_compiling, "SECONDS_PER_OPERATOR", 0.0)
    known = Measurements()
    got = hypergradient(linear(), HYPER, MODES[mode]("auto"), measurements=known)
    assert got.stats["compiled"] is False
    (compilation,) = known.compilations.values()
    assert "differs from the same step" in compilation.why
    close(got, eager(linear()))


# --- writing down ---


def operators(function: Callable[..., Any], *given: Any) -> Operators:
    leaves, spec = torch.utils._pytree.tree_flatten(given)
    return written_down(function, leaves, spec)


def test_equal_operators_are_taken_once_and_constants_are_lifted() -> None:
    found = operators(lambda x: {"a": (x @ DATA.T).sin() + 1, "b": (x @ DATA.T).sin() + 2}, torch.ones(2, 3, dtype=F64))
    called = [str(node.target) for node in found.graph.graph.nodes if node.op == "call_function"]
    assert called.count("aten.mm.default") == called.count("aten.sin.default") == 1
    assert called.count("aten.add.Tensor") == 2
    assert [x is DATA or torch.equal(x, DATA) for x in found.constants] == [True]
    assert len(found) == len(called)


def test_operators_that_write_are_all_kept() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.clone()
        first = y.sum()
        y.add_(1)
        return first * y.sum()

    found = operators(function, torch.ones(3, dtype=F64))
    assert [float(x) for x in found.graph(torch.ones(3, dtype=F64))] == [18.0]


def test_same_tells_operators_constants_and_structures_apart() -> None:
    x, other = torch.ones(2, 3, dtype=F64), DATA + 1
    one = operators(lambda x: (x * DATA[0],), x)
    assert same(one, operators(lambda x: (x * DATA[0],), x))
    assert not same(one, operators(lambda x: (x * other[0],), x))
    assert same(one, operators(lambda x: (x * other[0],), x), with_constants=False)
    assert not same(one, operators(lambda x: (x * DATA[0].float(),), x), with_constants=False)
    assert not same(one, operators(lambda x: (x + DATA[0],), x), with_constants=False)
    assert not same(one, operators(lambda x: [x * DATA[0]], x), with_constants=False)


# --- whether it is repaid ---


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(worth_compiling.time, "perf_counter", lambda: self.now)

    def takes(self, seconds: float, name: str, error: Exception | None = None) -> Callable[[], Tensor]:
        def call() -> Tensor:
            self.now += seconds
            self.calls.append(name)
            if error is not None:
                raise error
            return torch.zeros(())

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    with monkeypatch.context() as patch:
        yield Clock(patch)


def asked(clock: Clock, steps: int, before: float, after: float, num: int = 100, error: Any = None) -> Compilation:
    one, other = clock.takes(before, "eager"), clock.takes(after, "compiled", error)
    return decide("auto", steps, one, other, lambda: num)


def test_a_short_horizon_is_not_compiled_after_one_step(clock: Clock) -> None:
    assert asked(clock, 10, 0.01, 0.001) == Compilation(
        False, "not compiled, for a horizon of 10 steps does not repay it"
    )
    assert clock.calls == ["eager"]


def test_a_step_of_many_operators_is_not_compiled(clock: Clock) -> None:
    """1,000 steps of 100 ms save 25 s; 1,000 operators take 45."""
    got = asked(clock, 1000, 0.1, 0.05, num=1000)
    assert got == Compilation(False, "not compiled, for 1000 steps of 100 ms do not repay some 45 s")
    assert "compiled" not in clock.calls


def test_a_quicker_step_is_compiled_and_a_slower_one_is_not(clock: Clock) -> None:
    assert asked(clock, 10_000, 0.1, 0.05) == Compilation(True, "compiled: 50 ms a step instead of 100 ms")
    assert asked(clock, 10_000, 0.1, 0.2) == Compilation(
        False, "not compiled, for a step took 200 ms instead of 100 ms"
    )


@pytest.mark.parametrize("error", [UsageError("compile: no"), VerificationError("compile: no")])
def test_a_refusal_is_a_reason_for_auto_and_an_error_for_who_asked(clock: Clock, error: Exception) -> None:
    assert asked(clock, 10_000, 0.1, 0.05, error=error) == Compilation(False, "not compiled (no)")
    with pytest.raises(type(error), match="no"):
        decide(True, 1, clock.takes(1, "eager"), clock.takes(1, "compiled", error), lambda: 1)


def test_asked_for_or_not_nothing_is_timed(clock: Clock) -> None:
    one, other = clock.takes(1, "eager"), clock.takes(1, "compiled")
    assert decide(True, 1, one, other, lambda: 1) == Compilation(True, "compiled, as asked for")
    assert decide(False, 1, one, other, lambda: 1) == Compilation(False, "not compiled")
    assert clock.calls == ["compiled"]


@pytest.mark.parametrize("make", [lambda word: Forward(compile=word), lambda word: Reverse(compile=word)])
def test_another_word_is_refused(make: Callable[[Any], Mode]) -> None:
    with pytest.raises(ValueError, match="compile: got 'yes'; allowed are True, False and 'auto'"):
        make("yes")


# --- verdicts ---


@pytest.mark.parametrize("mode", ["folded", "reverse"])
def test_a_verdict_is_kept_and_used_in_place_of_measuring(
    mode: str, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Measurements(), Measurements()
    hypergradient(linear(), HYPER, MODES[mode]("auto"), measurements=first)
    ((key, compilation),) = first.compilations.items()
    assert compilation == Compilation(False, "not compiled, for a horizon of 3 steps does not repay it")
    first.compilations[key] = told = Compilation(True, "compiled: 1 ms a step instead of 2 ms")
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    monkeypatch.setattr(worth_compiling, "_once", lambda call: pytest.fail("measured again"))
    got = hypergradient(linear(), HYPER, MODES[mode]("auto"), measurements=second)
    assert got.stats["compiled_why"] == "compiled: 1 ms a step instead of 2 ms"
    assert second.compilations == {key: told}
    close(got, eager(linear()))


def test_a_verdict_of_a_machine_with_a_compiler_is_decided_anew_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Measurements()
    hypergradient(linear(), HYPER, Reverse(compile="auto"), measurements=known)
    ((key, before),) = known.compilations.items()
    known.compilations[key] = Compilation(True, "compiled: 1 ms a step instead of 2 ms")
    monkeypatch.setattr("hyperopt_cli.modes.compilation.cannot_compile", lambda: "no g++")
    assert hypergradient(linear(), HYPER, Reverse(compile="auto"), measurements=known).stats["compiled"] is False
    assert known.compilations == {key: before}


# --- through the compiler ---


@pytest.fixture(scope="module")
def compiled() -> dict[str, Measurements]:
    """What is measured by each mode, kept so that a step is compiled once for all tests."""
    return {name: Measurements() for name in MODES}


needs_compiler = pytest.mark.skipif("compiled_step.cannot_compile() is not None", reason="no C++ compiler")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("momentum", "folded"),
        ("adam", "folded, 2 columns at once"),
        ("per tensor", "forward over reverse"),
        ("adam", "reverse"),
    ],
)
def test_a_compiled_hypergradient_equals_the_uncompiled(
    name: str, mode: str, compiled: dict[str, Measurements]
) -> None:
    _, problem, hyper = CASES[name]
    got = hypergradient(problem, hyper, MODES[mode](True), measurements=compiled[mode])
    close(got, hypergradient(problem, hyper, MODES[mode](False)))


@needs_compiler
@pytest.mark.slow
def test_compiled_slots_give_the_same_bits_as_all_slots(compiled: dict[str, Measurements]) -> None:
    _, problem, hyper = CASES["adam"]
    known = compiled["reverse"]
    every = hypergradient(problem, hyper, MODES["reverse"](True), measurements=known)
    got = hypergradient(problem, hyper, Reverse(slots=3, compile=True), measurements=known)
    assert all(torch.equal(every.grad[name], got.grad[name]) for name in hyper)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_compiled_convolutional_network_equals_the_uncompiled(norm: str) -> None:
    problem = network(norm, steps=3)
    got = hypergradient(problem, HYPER, MODES["folded"](True))
    close(got, hypergradient(problem, HYPER, MODES["folded"](False)))


@needs_compiler
@pytest.mark.slow
def test_the_rules_of_folded_are_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong one makes the compiled result as wrong as the uncompiled."""
    problem, op = (
        linear(inner_loss=lambda w, h, b: functional.relu(DATA @ w["w"]).pow(3).mean()),
        torch.ops.aten.relu.default,
    )
    right = eager(problem)
    true = RULES[op]

    def wrong(*given: Any) -> Dual:
        made: Dual = true(*given)
        return Dual(made.primal, 2 * made.tangents)

    monkeypatch.setitem(RULES, op, wrong)
    monkeypatch.setattr("hyperopt_cli.checks.engine_judge.check_given", lambda *given: None)
    got, uncompiled = (hypergradient(problem, HYPER, MODES["folded"](compile)) for compile in (True, False))
    close(got, uncompiled)
    assert abs(float(got.grad["lr"] / right.grad["lr"]) - 1) > 1e-3
