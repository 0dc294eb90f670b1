"""`hyperopt bench`: measure what the documentation claims, on this machine."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperopt_cli.bench import BENCHMARKS, OPTIONS
from hyperopt_cli.cli.options import Device
from hyperopt_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

_NAME_HELP = "; ".join(f"{name}: {what}" for name, what in BENCHMARKS.items())


def bench(
    name: Annotated[str, typer.Argument(help=_NAME_HELP, metavar="NAME", autocompletion=lambda: list(BENCHMARKS))],
    repeat: Annotated[
        int, typer.Option(min=1, help="Rounds; every variant once in each. outer: seeds.", metavar="N")
    ] = 5,
    steps: Annotated[
        int | None, typer.Option(min=1, help="The horizon; the benchmark's own by default.", metavar="N")
    ] = None,
    device: Device = None,
    models: Annotated[
        str | None,
        typer.Option(
            help="hvp, tangents, ranks: networks, e.g. mlp,convnet; on a CPU hvp takes resnet34, vit_b_16 and "
            "bert only when they are asked for here.",
            metavar="NAME,...",
        ),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="tangents, ranks: numbers of columns K, e.g. 8,16.", metavar="K,...")
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option(help="hvp, tangents, modes: engines, e.g. folded,reverse_over_reverse_loop.", metavar="NAME,..."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="hvp, tangents, modes, ranks: inputs in a batch; each network's own by default.", metavar="N"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="modes: a folder with MNIST/raw; random data by default. outer: one with cifar10/ too; problems that "
            "need it are left out by default.",
            envvar="HYPEROPT_DATA",
            metavar="DIR",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads of the CPU; torch's own choice by default. ranks: of each process, 1.", metavar="N"
        ),
    ] = None,
    ranks: Annotated[str | None, typer.Option(help="ranks: numbers of processes, e.g. 1,2.", metavar="N,...")] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="ranks: what they divide, columns by default.",
            metavar="columns|batch",
            autocompletion=lambda: ["columns", "batch"],
        ),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            help="ranks: GB/s that each sends where they are more than were measured.",
            metavar="GB/S",
        ),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(min=0, help="ranks: how long a message takes there.", metavar="MICROSECONDS"),
    ] = None,
    problems: Annotated[
        str | None,
        typer.Option(help="outer: what to tune, e.g. digits_lr,tabular; all by default.", metavar="NAME,..."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="outer: which methods, e.g. auto,lbfgs; by default auto and both searches, over all hyperparameters "
            "and tied.",
            metavar="NAME,...",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="outer: of each search; 100 by default, 40 for cifar_lr_cpu.", metavar="N")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="outer: a file that is added to; what it has is not measured again.", metavar="FILE.jsonl"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new file with everything that was measured.", metavar="FILE.json")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="A new picture.", metavar="FILE.png|FILE.svg")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Measure variants of one computation in turns: medians, their spread, and ratios within the same run.

    Example: hyperopt bench reversal --out reversal.json --plot reversal.svg
    """
    # data may come from the environment
    given = {
        "steps": steps, "models": models, "columns": columns, "engines": engines, "batch": batch, "ranks": ranks,
        "shard": shard, "bandwidth": bandwidth, "latency": latency, "problems": problems, "methods": methods,
        "trials": trials, "record": record,
    }  # fmt: skip
    _check_known(name, [option for option, value in given.items() if value is not None])
    asked = None if models is None else tuple(models.split(","))
    numbers = None if columns is None else _numbers("--columns", columns)
    processes = None if ranks is None else _numbers("--ranks", ranks)
    if shard not in (None, "columns", "batch"):
        raise UsageError(f"--shard: got {shard}; allowed are columns, batch")
    _check_new("--out", out, (".json",))
    _check_new("--plot", plot, (".png", ".svg"))
    _check_new("--record", record, (".jsonl",), may_exist=True)

    import torch

    from hyperopt_cli.bench import load
    from hyperopt_cli.bench.report import Settings
    from hyperopt_cli.cli.bench_tables import print_report
    from hyperopt_cli.run_directory.json_files import to_text, write_json

    names, chosen_methods = (None if given is None else tuple(given.split(",")) for given in (problems, methods))
    if name == "outer":
        from hyperopt_cli.bench.outer import check_names

        check_names(names, chosen_methods, data)
    if plot is not None:
        from hyperopt_cli.bench.drawing import save
    named = None if engines is None else _engines(engines, name)
    chosen = _device(device or "auto")
    if threads is not None:
        torch.set_num_threads(threads)
    with _progress() as on_progress:
        settings = Settings(
            repeat, steps, chosen, on_progress, asked, numbers, named, batch, data,
            ranks=processes,
            shard=shard or "columns",  # type: ignore[arg-type]
            threads=threads,
            bytes_per_s=None if bandwidth is None else 1e9 * bandwidth,
            latency_s=None if latency is None else 1e-6 * latency,
            problems=names,
            methods=chosen_methods,
            trials=trials,
            record=record,
        )  # fmt: skip
        report = load(name)(settings)
    if out is not None:
        write_json(out, report.to_json())
    if plot is not None:
        save(report, plot)
    if json:
        typer.echo(to_text(report.to_json()))
    else:
        print_report(report)


def _check_known(name: str, options: Iterable[str]) -> None:
    """Refuses a benchmark that is none, and an option that this one does not take."""
    if name not in BENCHMARKS:
        from hyperopt_cli.recipe.wording import did_you_mean

        close = did_you_mean(name, BENCHMARKS)
        raise UsageError(f"bench: got {name}; allowed are {', '.join(BENCHMARKS)}{close}")
    for option in options:
        if name not in OPTIONS[option]:
            raise UsageError(
                f"--{option}: bench {name} does not take it; leave it out ({', '.join(OPTIONS[option])} do)"
            )


def _engines(given: str, benchmark: str) -> tuple[str, ...]:
    from hyperopt_cli.engines import ENGINES, MEASURED

    names, allowed = tuple(given.split(",")), MEASURED if benchmark == "hvp" else ENGINES
    if unknown := [name for name in names if name not in allowed]:
        raise UsageError(f"--engines: got {', '.join(unknown)}; allowed are {', '.join(allowed)}")
    return names


def _numbers(option: str, given: str) -> tuple[int, ...]:
    parts = given.split(",")
    if not all(part.strip().isdecimal() and int(part) >= 1 for part in parts):
        raise UsageError(f"{option}: got {given}; give numbers of at least 1, e.g. 8,16")
    return tuple(map(int, parts))


def _check_new(option: str, path: Path | None, endings: tuple[str, ...], may_exist: bool = False) -> None:
    """Refuses, before anything is measured, a file that has another ending, lies in no directory, or exists already."""
    if path is None:
        return
    if path.suffix not in endings:
        raise UsageError(f"{option}: got {path}; give a name that ends with {' or '.join(endings)}")
    if path.exists() and not may_exist:
        raise UsageError(f"{option}: {path} exists; give another name, or remove it")
    if not path.parent.is_dir():
        raise UsageError(f"{option}: {path.parent} is not a directory; make it first, or give another place")


def _device(name: str) -> "torch.device":
    from hyperopt_cli.instantiate.build import pick_device

    try:
        return pick_device(name)
    except RuntimeError:
        raise UsageError(f"--device: got {name}, which is no device; give cpu, cuda, cuda:1, ... or auto") from None


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yields a function that says what is measured: in one line on a terminal, elsewhere in a line for each variant."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda message: None if ": round " in message else print(message, file=sys.stderr, flush=True)
        return
    # Drawn when it changes and no oftener: a thread that redraws would take part in what is timed.
    with Live(Text(), console=console, auto_refresh=False, transient=True) as live:
        yield lambda message: live.update(Text(message), refresh=True)
