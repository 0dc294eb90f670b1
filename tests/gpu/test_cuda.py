"""On a CUDA device: the CPU's numbers, the same bits, no wait of the host, less memory, lower precision, CUDA graphs.

150 seconds of a GPU are to judge all of it: what matters most comes first, and each test is small. The oracles are
those of the CPU: a plain unroll that shares no code with the package, or float64.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from hyperopt_cli import Auto, Chunked, Forward, Problem, Reverse, Reversible, hypergradient, optimizers
from hyperopt_cli.checks.watch import Watch
from hyperopt_cli.dynamics.dynamics import State
from hyperopt_cli.dynamics.precision import products_in
from hyperopt_cli.engines import ENGINES
from hyperopt_cli.errors import UsageError
from hyperopt_cli.models import convnet
from hyperopt_cli.models.batch_norm import use_batch_statistics
from hyperopt_cli.modes import Hypergradient, Measurements, Mode, compilation, reversible
from hyperopt_cli.modes.account import Finite
from hyperopt_cli.modes.adjoint.places import Places, SnapshotStack
from hyperopt_cli.modes.adjoint.sweep import Sweep
from hyperopt_cli.modes.reversal import kernels
from hyperopt_cli.modes.reversal.factors import at_factors
from hyperopt_cli.outer.descent import Descent, descend
from hyperopt_cli.outer.outer_step import OuterStep
from hyperopt_cli.problem import Hyper
from hyperopt_cli.program import CompiledStep, compiled_step
from hyperopt_cli.space import Hyperparameter, Knob, Schedule, Space, Transform
from tests import devices
from tests.cases import CASES, scalar
from tests.heard import Heard
from tests.modes.adjoint.test_snapshots import assert_same, tensors
from tests.reference import unroll

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA, CPU, F64 = torch.device("cuda"), torch.device("cpu"), torch.float64
EVERY_ENGINE: dict[str, Mode] = {
    **{f"forward, {name}": Forward(engine=name, compile=False) for name in ENGINES},
    "forward, in chunks": Forward(engine="folded", columns_at_once=2, compile=False),
    "reverse": Reverse(compile=False),
    "reversible": Reversible(compile=False),
}
TWO = ("forward, folded", "reverse")
RULES = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "rmsprop centered")
IRREVERSIBLE = ("sgd", "nesterov", "rmsprop plain")
MATRIX = [(case, mode) for case in RULES for mode in EVERY_ENGINE if (case, mode) != ("sgd", "reversible")]
MATRIX = [(case, mode) for case, mode in MATRIX if not (mode == "reversible" and case in IRREVERSIBLE)]
MATRIX += [(case, mode) for case in CASES if case not in RULES for mode in TWO]
MATRIX += [(case, "reversible") for case in ("adam at 0", "per step", "cosine", "per weight", "init")]


def moved(tree: Any, device: torch.device = CUDA) -> Any:
    return devices.moved(tree, device)


def on_cuda(problem: Problem) -> Problem:
    return devices.placed(problem, CUDA)


@cache
def wanted(case: str, at_rationals: bool) -> dict[str, Tensor]:
    """E, dE/dlambda and w_T on the CPU, by one long graph; reversible mode runs with rational factors."""
    rule, problem, hyper = CASES[case]
    value, grad, params = unroll(rule, at_factors(problem, hyper) if at_rationals else problem, hyper)
    return {"E": value, **grad, **{f"w {name}": w for name, w in params.items()}}


def figures(got: Hypergradient) -> dict[str, Tensor]:
    return {"E": got.value, **got.grad, **{f"w {name}": w for name, w in got.params.items()}}


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    assert list(got) == list(want)
    for name, x in want.items():
        error = float((got[name].cpu() - x).abs().max()) / max(1e-3, float(x.abs().max()))
        assert error < tolerance, f"{name}: {got[name]} is not {x}"


@pytest.mark.parametrize(("case", "mode"), MATRIX)
def test_every_mode_engine_and_optimizer_has_the_numbers_of_the_cpu(case: str, mode: str) -> None:
    _, problem, hyper = CASES[case]
    got = hypergradient(on_cuda(problem), hyper, EVERY_ENGINE[mode])
    assert all(w.is_cuda for w in got.params.values())
    assert all(grad.device == CPU for grad in got.grad.values())  # where lambda lies
    assert_close(figures(got), wanted(case, mode == "reversible"), 1e-9)


@pytest.mark.parametrize("mode", [*TWO, "reversible"])
@pytest.mark.parametrize("case", ["momentum", "windows", "per weight", "init"])
def test_hyperparameters_may_lie_on_the_device(case: str, mode: str) -> None:
    _, problem, hyper = CASES[case]
    got = hypergradient(on_cuda(problem), moved(hyper), EVERY_ENGINE[mode])
    assert all(grad.is_cuda for grad in got.grad.values())
    assert_close(figures(got), wanted(case, mode == "reversible"), 1e-9)


def test_auto_plans_and_measures_on_the_device() -> None:
    _, problem, hyper = CASES["momentum"]
    got = hypergradient(on_cuda(problem), hyper, Auto())
    assert_close(figures(got), wanted("momentum", got.stats["mode"].startswith("reversible")), 1e-9)


@pytest.mark.parametrize("mode", TWO)
def test_a_batch_in_chunks_has_the_numbers_of_the_cpu(mode: str) -> None:
    _, problem, hyper = CASES["adam"]

    def cut(t: int) -> Chunked:
        x, y = moved(problem.batch(t))
        return Chunked([((x[:2], y[:2]), 0.4), ((x[2:], y[2:]), 0.6)])

    got = hypergradient(replace(on_cuda(problem), batch=cut), hyper, EVERY_ENGINE[mode])
    assert_close(figures(got), wanted("adam", at_rationals=False), 1e-9)


def pictures(num: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(7)
    return torch.randn(num, 3, 8, 8, generator=rng, dtype=F64).to(dtype), torch.arange(num) % 4


def of_model(make: Callable[[], nn.Module], batch: tuple[Tensor, Tensor], steps: int, device: torch.device) -> Problem:
    """Cross entropy of a model whose weights are drawn on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = make().to(batch[0].dtype if batch[0].is_floating_point() else F64).to(device)
    batch = moved(batch, device)

    def loss(params: Any, hyper: Any, batch: Any = batch) -> Tensor:
        outputs = functional_call(model, params, (batch[0],))
        return functional.cross_entropy(outputs, batch[1])

    start = {name: w.detach().clone() for name, w in model.named_parameters()}
    return Problem(start, loss, loss, lambda t: batch, optimizers.SGD(), steps)


HYPER: Hyper = {"lr": scalar(0.05), "momentum": scalar(0.9)}


def small_convnet() -> nn.Module:
    return convnet((3, 8, 8), 4, (8, 16))


def test_a_run_of_convolutions_is_reversed_bit_for_bit() -> None:
    """In float32, where kernels that add up in another order would show; whoever runs backwards compares all bits."""
    problem, hyper = of_model(small_convnet, pictures(16, torch.float32), 40, CUDA), {**HYPER, "lr": scalar(0.005)}
    got, again = (hypergradient(problem, hyper, Reversible(compile=False)) for _ in range(2))
    assert torch.equal(got.value, again.value)
    assert all(torch.equal(got.grad[name], again.grad[name]) for name in HYPER)
    want = hypergradient(at_factors(problem, hyper), hyper, Reverse(compile=False))
    assert_close(got.grad, want.grad, 1e-3)


def test_a_kernel_that_has_no_deterministic_variant_is_named() -> None:
    def loss(params: Any, hyper: Any, batch: Any = None) -> Tensor:
        return functional.adaptive_avg_pool2d(params["w"].reshape(1, 1, 4, 4), 3).square().mean()

    start = {"w": torch.linspace(-1, 1, 16, device=CUDA)}
    problem = Problem(start, loss, loss, lambda t: None, optimizers.SGD(), 3)
    with pytest.raises(UsageError, match=r"reversible: .*adaptive_avg_pool2d.* use Reverse\(slots=...\)"):
        hypergradient(problem, HYPER, Reversible(compile=False))


def wide(steps: int = 30) -> Problem:
    """Large enough for copies to last longer than the launch of what follows them."""
    rng = torch.Generator(CUDA).manual_seed(1)
    x = torch.randn(64, 2000, device=CUDA, dtype=F64, generator=rng)
    start = {"w": torch.randn(2000, 2000, device=CUDA, dtype=F64, generator=rng) / 100}

    def value(params: dict[str, Tensor], *rest: Any) -> Tensor:
        return (torch.tanh(x @ params["w"]) ** 2).mean()

    return Problem(start, value, value, lambda t: None, optimizers.SGD(), steps)


@cache
def with_all_slots() -> Hypergradient:
    return hypergradient(wide(), HYPER, Reverse(compile=False))


SLOTS: list[Any] = [7, {"host": 7}, {"device": 2, "host": 3}, {"disk": 4}, {"device": 2, "host": 3, "disk": 2}]


@pytest.mark.parametrize("slots", SLOTS, ids=str)
def test_slots_in_pinned_memory_and_on_the_disk_do_not_change_a_bit(slots: Any) -> None:
    if isinstance(slots, dict) and "disk" in slots:
        pytest.importorskip("numpy")
    got, want = hypergradient(wide(), HYPER, Reverse(slots=slots, compile=False)), with_all_slots()
    assert all(torch.equal(got.grad[name], want.grad[name]) for name in HYPER)
    assert torch.equal(got.params["w"], want.params["w"])


def test_the_pinned_shelf_and_the_disk_give_every_bit_and_every_stride_back() -> None:
    pytest.importorskip("numpy")
    given = [State(moved(tensors(i)), {"momentum": moved(tensors(i + 1))}) for i in range(20)]
    with SnapshotStack.on(Places(device=2, host=13, disk=5), CUDA) as snapshots:
        for one in given:
            snapshots.push(one)
        for one in reversed(given):
            snapshots.ahead()
            got = snapshots.top()
            assert_same(got, one)
            for name in ("plain", "transposed", "channels last"):
                assert got.params[name].stride() == one.params[name].stride()
            snapshots.drop()


@contextmanager
def sync_debug_mode(mode: str | int) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Waits:
    """Waits of the host are errors between the first and the last step of each phase, but for the reads named here.

    Args:
        patch: undoes what is changed.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps, self.reads = 0, dict.fromkeys(("check", "_check_range", "sum_up", "examination"), 0)
        for owner, name in ((Finite, "check"), (reversible, "_check_range"), (Sweep, "sum_up")):
            patch.setattr(owner, name, self._allowed(name, getattr(owner, name)))
        clocked = Watch.clocked

        @contextmanager
        def examined(watch: Watch) -> Iterator[None]:
            self.reads["examination"] += torch.cuda.get_sync_debug_mode() != 0
            with sync_debug_mode("default"), clocked(watch):
                yield

        patch.setattr(Watch, "clocked", examined)

    def _allowed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def read(*arguments: Any) -> Any:
            self.reads[name] += torch.cuda.get_sync_debug_mode() != 0
            with sync_debug_mode("default"):
                return function(*arguments)

        return read

    def on_step(self, phase: str, done: int, steps: int) -> None:
        self.steps += 1
        torch.cuda.set_sync_debug_mode("error" if done < steps else "default")


@pytest.mark.parametrize(
    "mode",
    [
        *(Forward(engine=name, compile=False) for name in ENGINES if name != "dense"),
        Reverse(compile=False),
        Reverse(slots=5, compile=False),
        Reverse(slots={"device": 2, "host": 4}, compile=False),
        Reversible(compile=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("case", ["momentum", "windows"])
def test_the_host_waits_for_the_device_once_in_many_steps(
    case: str, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Measurements()
    steps = 70
    _, problem, hyper = CASES[case]
    problem = on_cuda(replace(problem, steps=steps, schedule=problem.schedule and rates))
    hypergradient(replace(problem, steps=3), hyper, mode, measurements=known)  # whoever runs first loads kernels
    waits = Waits(monkeypatch)
    try:
        hypergradient(problem, hyper, mode, on_step=waits.on_step, measurements=known)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waits.steps >= steps
    assert waits.reads["check"] <= 2 * -(-2 * waits.steps // Finite.EVERY)  # two witnesses a step
    assert waits.reads["_check_range"] <= -(-steps // Finite.EVERY)
    assert waits.reads["sum_up"] <= -(-steps // 16)
    assert waits.reads["examination"] <= 4


def rates(hyper: Hyper, t: int) -> Any:
    """Three windows over 70 steps."""
    return {**hyper, "lr": hyper["lr"][3 * t // 70]}


def test_a_wait_inside_of_a_step_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    _, problem, hyper = CASES["momentum"]
    problem = on_cuda(problem)

    def loss(params: Any, hyper: Any, batch: Any) -> Tensor:
        value = problem.inner_loss(params, hyper, batch)
        value.detach().cpu()
        return value

    waits = Waits(monkeypatch)
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            hypergradient(replace(problem, inner_loss=loss), hyper, Reverse(compile=False), on_step=waits.on_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


MIB = 2**20


@contextmanager
def at_most(num_bytes: int) -> Iterator[None]:
    """The process may take so much more of the device than it holds."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + num_bytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def of_states(mode: Mode) -> tuple[list[OuterStep], list[str]]:
    """24 states of 32 MiB; an outer step, and what was said."""

    def loss(params: Any, hyper: Any, batch: Any = None) -> Tensor:
        away: Tensor = params["w"] - 0.1
        return away.square().sum() / 2

    rate = Hyperparameter("lr", Knob(torch.tensor(0.01), Transform("log")), Schedule("constant", 24))
    start = {"w": torch.linspace(-1, 1, 2**22, device=CUDA)}
    problem = Problem(start, loss, loss, lambda t: None, optimizers.SGD(momentum=0.9), 24)
    heard = Heard()
    steps = list(descend(lambda seed: problem, Space((rate,)), Descent(steps=1), mode, callback=heard))
    return [step._replace(params={}) for step in steps], [
        said.removeprefix("outer step 0: ") for said in heard.messages
    ]


def test_out_of_memory_is_met_by_fewer_states_and_the_same_bits() -> None:
    want, nothing = of_states(Reverse(compile=False))
    with at_most(512 * MIB):
        got, said = of_states(Reverse(compile=False))
    assert nothing == []
    assert said[0].startswith("reverse:compile=False ran out of memory (")
    assert said[0].endswith("; reverse:slots=12,compile=False takes its place")
    for a, b in zip(want, got, strict=True):
        assert a.validation_loss == b.validation_loss
        assert torch.equal(a.hypergradient["lr"], b.hypergradient["lr"])


def test_as_many_slots_are_taken_as_the_share_of_the_process_allows() -> None:
    with at_most(512 * MIB):
        _, said = of_states(Reverse(slots="auto", compile=False))
    assert said == []


@pytest.mark.parametrize("operator", ["matrix product", "convolution"])
def test_float32_is_float32_and_tf32_is_tf32(operator: str) -> None:
    """Torch's own default for convolutions is tf32."""
    rng = torch.Generator().manual_seed(2)
    x, w = (torch.randn(64, 64, 8, 8, generator=rng).to(CUDA) for _ in range(2))

    def product(x: Tensor, w: Tensor) -> Tensor:
        return functional.conv2d(x, w[..., :3, :3]) if operator == "convolution" else x.flatten(1) @ w.flatten(1).T

    want = product(x.double(), w.double())
    errors = {}
    for precision in (None, "tf32"):
        with products_in(precision):
            errors[precision] = float((product(x, w) - want).norm() / want.norm())
    assert errors[None] < 1e-5
    assert 5e-5 < errors["tf32"] < 2e-3


@pytest.mark.parametrize("mode", [Forward(engine="folded", compile=False), Reverse(compile=False)], ids=str)
def test_hypergradients_in_lower_precision_are_within_its_error(mode: Mode) -> None:
    rng = torch.Generator().manual_seed(4)
    x, y = torch.randn(256, 256, generator=rng), torch.randn(256, 64, generator=rng)
    w = torch.randn(256, 64, generator=rng) / 16

    def run(device: torch.device, dtype: torch.dtype, precision: Any) -> Tensor:
        given, start = moved((x.to(dtype), y.to(dtype)), device), {"w": w.to(device, dtype)}

        def loss(params: Any, hyper: Any, batch: Any = given) -> Tensor:
            return (torch.tanh(batch[0] @ params["w"]) - batch[1]).square().mean()

        problem = Problem(start, loss, loss, lambda t: given, optimizers.SGD(), 8, precision=precision)
        rates = {"lr": scalar(2.0), "momentum": scalar(0.5)}
        grad = hypergradient(problem, rates, mode).grad
        return torch.stack([grad["lr"], grad["momentum"]])

    want = run(CPU, F64, None)
    errors = [float((run(CUDA, torch.float32, p) - want).norm() / want.norm()) for p in (None, "tf32", "bf16")]
    assert errors[0] < 1e-5
    assert 3 * errors[0] < errors[1] < 1e-2
    assert 3 * errors[0] < errors[2] < 1e-1


class Recurrent(nn.Module):
    """A recurrent layer over 5 numbers at a time, and a linear one."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent, self.head = kind(5, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class Attending(nn.Module):
    """A transformer layer over an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(x)).mean(1))


def with_batch_norm() -> nn.Module:
    model = convnet((3, 8, 8), 4, (8, 16), norm="batch")
    use_batch_statistics(model)
    return model


def with_layers() -> nn.Module:
    """Grouped and transposed convolutions, and norms of layers, with channels last."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3), nn.InstanceNorm2d(6, affine=True), nn.SiLU(), nn.ConvTranspose2d(6, 4, 2),
        nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(36), nn.Linear(36, 8), nn.RMSNorm(8), nn.GELU(), nn.Linear(8, 4),
    ).to(memory_format=torch.channels_last)  # fmt: skip


def sequences() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(7)
    return torch.randn(6, 4, 5, generator=rng, dtype=F64), torch.arange(6) % 4


def words() -> tuple[Tensor, Tensor]:
    return torch.arange(24).reshape(6, 4) % 11, torch.arange(6) % 4


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "group norm": (small_convnet, lambda: pictures(6)),
    "batch norm": (with_batch_norm, lambda: pictures(6)),
    "other layers": (with_layers, lambda: pictures(6)),
    "lstm": (lambda: Recurrent(nn.LSTM), sequences),
    "gru": (lambda: Recurrent(nn.GRU), sequences),
    "attention": (Attending, words),
}


@pytest.mark.parametrize("mode", [Forward(compile=False), Reverse(compile=False)], ids=["forward", "reverse"])
@pytest.mark.parametrize("model", MODELS)
def test_operators_that_have_other_kernels_on_cuda_give_the_numbers_of_the_cpu(model: str, mode: Mode) -> None:
    known = Measurements()
    make, batch = MODELS[model]
    got, want = (
        hypergradient(of_model(make, batch(), 3, device), HYPER, mode, measurements=known) for device in (CUDA, CPU)
    )
    assert_close(figures(got), figures(want), 1e-9)


@pytest.mark.parametrize("engine", ["auto", "folded", "forward_over_reverse_loop", "reverse_over_reverse"])
def test_dropout_draws_the_same_in_every_mode(engine: str) -> None:
    """Torch draws otherwise under vmap, whose engines are refused."""
    batch = moved(pictures(8))
    model = convnet((3, 8, 8), 4, (8, 16), dropout=0.5).to(CUDA, F64)

    def loss(params: Any, hyper: Any, seed: int) -> Tensor:
        with torch.random.fork_rng([0]):
            torch.cuda.manual_seed(seed)
            return functional.cross_entropy(functional_call(model, params, (batch[0],)), batch[1])

    start = {name: w.detach() for name, w in model.named_parameters()}
    problem = Problem(start, loss, lambda params, hyper: loss(params, hyper, 0), lambda t: t, optimizers.SGD(), 3)
    got = hypergradient(problem, HYPER, Forward(engine=engine, compile=False))
    want = hypergradient(problem, HYPER, Reverse(compile=False))
    assert_close(figures(got), {name: x.cpu() for name, x in figures(want).items()}, 1e-9)


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether torch compiles for a CPU, which is asked before, takes a compiler of C++ and says nothing of a GPU."""
    for module in (compiled_step, compilation, kernels):
        monkeypatch.setattr(module, "cannot_compile", lambda: None)


@pytest.mark.usefixtures("compiles")
def test_results_of_a_cuda_graph_stay_when_it_is_replayed() -> None:
    """The next call of a graph writes where this one did."""
    from torch._dynamo.utils import counters

    def function(batch: Tensor, w: Tensor) -> dict[str, Tensor]:
        return {"w": w - 0.1 * torch.tanh(batch @ w), "sum": w.square().sum()}

    rng = torch.Generator().manual_seed(6)
    batch, *inputs = (torch.randn(32, 32, generator=rng, dtype=F64).to(CUDA) for _ in range(6))
    skipped = counters["inductor"]["cudagraph_skips"]
    step = CompiledStep().of(function, object())
    results = [step(batch, (), w) for w in inputs]  # to warm up, to record, then replayed
    assert counters["inductor"]["cudagraph_skips"] == skipped
    for w, got in zip(inputs, results, strict=True):
        want = function(batch, w)
        assert_close(got, {name: x.cpu() for name, x in want.items()}, 1e-12)


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize(("mode", "case"), [("forward", "momentum"), ("reverse", "adam"), ("reversible", "momentum")])
def test_compiled_steps_give_what_eager_ones_give_twice_in_a_row(mode: str, case: str) -> None:
    known = Measurements()
    _, problem, hyper = CASES[case]
    problem = on_cuda(problem)
    compiled: Mode = {
        "forward": Forward(engine="folded", compile=True),
        "reverse": Reverse(compile=True),
        "reversible": Reversible(compile=True),
    }[mode]
    others = {name: 0.8 * value for name, value in hyper.items()}
    got = [hypergradient(problem, each, compiled, measurements=known) for each in (hyper, others, hyper)]
    assert all(each.stats["compiled"] for each in got)
    for each, at in zip(got, (hyper, others, hyper), strict=True):
        want = hypergradient(
            problem, at, EVERY_ENGINE["forward, folded" if mode == "forward" else mode], measurements=known
        )
        assert_close(figures(each), {name: x.cpu() for name, x in figures(want).items()}, 1e-9)
    assert all(torch.equal(got[0].grad[name], got[2].grad[name]) for name in hyper)
