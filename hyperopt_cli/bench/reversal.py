"""`hyperopt bench reversal`: what running the steps backwards costs, and what the store takes.

One whole hypergradient, on random data in float32, with all states kept and in reversible mode, its integer arithmetic
eager and compiled. Compiling happens in the warm-up, and is a figure of its own (small
where torch finds in its cache what it compiled before). `largest_difference` is that of any
hyperparameter's derivative from the one with all states kept: a fast wrong number would show.

Then the store, by a whole hypergradient of a noisy quadratic for heavy ball, Adam and AdamW: the bits that Maclaurin et
al. 2015 (https://arxiv.org/abs/1502.03492) count, and `bytes_per_parameter`, all that is held at s_T: w, the slots and
the store.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

from hyperopt_cli.bench.machine import machine
from hyperopt_cli.bench.measuring import Samples, interleaved
from hyperopt_cli.bench.pieces import held_at_end, reverse_pieces, reversible_pieces
from hyperopt_cli.bench.problems import Workload, classification, noisy_quadratic
from hyperopt_cli.bench.report import Case, Figure, Report, Settings, Table, compared, largest_difference
from hyperopt_cli.memory import state_bytes
from hyperopt_cli.models import convnet, mlp
from hyperopt_cli.modes import Measurements, Mode, Reverse, Reversible, hypergradient
from hyperopt_cli.modes.reversal.kernels import EAGER, compiled
from hyperopt_cli.optimizers import SGD, Adam, AdamW
from hyperopt_cli.optimizers.base import InnerOptimizer

ALL, IN_EAGER, IN_COMPILED = "reverse, slots: all", "reversible, eager", "reversible, compiled"
MODES: dict[str, Mode] = {ALL: Reverse(), IN_EAGER: Reversible(compile=False), IN_COMPILED: Reversible(compile=True)}

HEAVY_BALL = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
ON_IMAGES = {**HEAVY_BALL, "lr": 0.005}  # at 0.05 the run amplifies the rounding of float32 beyond comparison
ADAM = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999}
STORED: dict[str, tuple[InnerOptimizer, dict[str, float]]] = {
    "heavy ball, momentum 0.9": (SGD(), {"lr": 0.05, "momentum": 0.9}),
    "heavy ball, momentum 0.98": (SGD(), {"lr": 0.05, "momentum": 0.98}),
    "Adam": (Adam(), ADAM),
    "AdamW": (AdamW(), {**ADAM, "weight_decay": 1e-2}),
}


@dataclass(frozen=True)
class Sizes:
    """The sizes of the networks that are timed, and of the runs that only fill a store."""

    steps: int = 100
    inputs: int = 784
    hidden: tuple[int, ...] = (300, 300)
    batch: int = 128
    pixels: int = 32
    widths: tuple[int, ...] = (16, 32, 32)
    image_batch: int = 64
    stored_parameters: int = 100_000
    stored_steps: int = 1000


def measure(settings: Settings, sizes: Sizes | None = None) -> Report:
    """Measures the time, the memory and the storage of exact reversal."""
    sizes = sizes or Sizes()
    steps = settings.steps or sizes.steps
    device = settings.device
    widths = "-".join(map(str, (sizes.inputs, *sizes.hidden, 10)))
    net = partial(classification, partial(mlp, hidden=sizes.hidden), (sizes.inputs,), sizes.batch, steps)
    images = partial(
        classification, partial(convnet, widths=sizes.widths), (3, sizes.pixels, sizes.pixels), sizes.image_batch, steps
    )
    on_mlp = f"MLP {widths}, batch {sizes.batch}, T = {steps}"
    on_convnet = f"convnet with GroupNorm, {sizes.pixels} x {sizes.pixels}, batch {sizes.image_batch}, T = {steps}"
    workloads = {
        f"{on_mlp}, heavy ball": net(SGD(), HEAVY_BALL, device),
        f"{on_mlp}, Adam": net(Adam(), ADAM, device),
        f"{on_convnet}, heavy ball": images(SGD(), ON_IMAGES, device),
    }
    cases = tuple(_case(title, workload, settings) for title, workload in workloads.items())
    stored = Table(f"the store over {sizes.stored_steps} steps", tuple(_stored(sizes, settings)))
    written = {**asdict(sizes), "steps": steps, "repeat": settings.repeat}
    return Report("reversal", machine(settings.device), written, cases, (stored,))


def _case(title: str, workload: Workload, settings: Settings) -> Case:
    calls: dict[str, Callable[[], object]] = {
        name: partial(hypergradient, *workload, mode, measurements=Measurements()) for name, mode in MODES.items()
    }
    samples = interleaved(
        calls, settings.repeat, settings.device, lambda message: settings.on_progress(f"{title}: {message}")
    )
    settings.on_progress(f"{title}: piece by piece")
    able = {name: shown for name, shown in samples.items() if isinstance(shown, Samples)}
    figures: dict[str, dict[str, Figure]] = {}
    pieces: dict[str, Mapping[str, float]] = {}
    for name, shown in able.items():
        out, reference, timing = shown.results[0], able[ALL].results[0], shown.timing
        figures[name] = {
            "peak_bytes": out.stats["peak_bytes"],
            "taken_bytes": shown.taken_bytes,
            "bits_per_parameter_step": out.stats.get("bits_per_parameter_step"),
            "largest_difference": None if name == ALL else largest_difference(out.grad, reference.grad),
            "compilation_s": max(0.0, shown.warm_up_s - timing.median_s) if name == IN_COMPILED else None,
        }
        if name == ALL:
            pieces[name] = reverse_pieces(workload, settings.device)
        else:
            kernels = compiled() if name == IN_COMPILED else EAGER
            pieces[name] = reversible_pieces(workload, settings.device, kernels, out.stats["radix"])
    return compared(title, samples, ALL, lambda name, _: figures[name], pieces)


def _stored(sizes: Sizes, settings: Settings) -> list[dict[str, Figure]]:
    rows: list[dict[str, Figure]] = []
    for title, (optimizer, hyper) in STORED.items():
        settings.on_progress(f"store: {title}")
        size, steps = sizes.stored_parameters, sizes.stored_steps
        workload = noisy_quadratic(size, steps, optimizer, hyper, settings.device)
        stats = hypergradient(*workload, Reversible()).stats  # which fails if the start is not recovered
        params = workload.problem.initial(workload.hyper)
        state = (params, workload.problem.optimizer.slots(params, frozenset(workload.hyper)))
        rows.append(
            {
                "optimizer": title,
                "bits_per_parameter_step": stats["bits_per_parameter_step"],
                "bytes_per_parameter": held_at_end(workload, stats["radix"]) / size,
                "bytes_per_parameter_of_all_states": steps * state_bytes(state) / size,
            }
        )
    return rows
