"""`hyperopt bench ranks`: one hypergradient of forward mode over several processes, against one.

Each process has one thread, or as many as are asked for, also the one that computes alone while the others rest. The
networks, and what is tuned, are those of `tangents`; steps are eager, by the same engine. `shard: columns` divides the
K columns, `shard: batch` the examples of each batch.

    throughput                       time of one process over that of all of them
    throughput_at_equal_chunk_size   the same where one process takes its columns in the blocks of the several,
                                     and so the gradient once for each; it has the same bits
    efficiency                       throughput over the processes (or threads)
    same_bits                        E and every derivative, on every rank and in every round
    largest_difference               of any derivative from that of one process

What that makes of more ranks is a page of arithmetic, `scaling.py`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import torch

from hyperopt_cli.bench.machine import machine
from hyperopt_cli.bench.measuring import OwnTime, Ratio, Refused, Samples, interleaved
from hyperopt_cli.bench.networks import Sizes, chosen, networks
from hyperopt_cli.bench.report import Case, Figure, Report, Settings, Table, compared, largest_difference
from hyperopt_cli.bench.scaling import Link, Work, predicted_s
from hyperopt_cli.bench.shares import Share, hypergradient_of
from hyperopt_cli.bench.task import Task, facts_of
from hyperopt_cli.bench.team import Team, team
from hyperopt_cli.errors import UsageError
from hyperopt_cli.problem import Hyper

NETWORKS, COLUMNS, RANKS, STEPS = ("mlp", "convnet"), (16,), (1, 2), 20
MORE = (2, 8, 64)  # ranks, of which it is said what to expect


class Way(NamedTuple):
    """How a hypergradient is computed: by so many processes with so many threads, in blocks of so many columns."""

    ranks: int
    threads: int
    chunk_size: int | None = None

    @property
    def name(self) -> str:
        """How a table calls this way of computing."""
        chunks = "" if self.chunk_size is None else f", chunk_size: {self.chunk_size}"
        threads = "" if self.threads == 1 else f", {self.threads} threads"
        return f"{self.ranks} rank{'s' if self.ranks > 1 else ''}{threads}{chunks}"


def measure(settings: Settings, sizes: Sizes | None = None) -> Report:
    """Measures the throughput of several ranks, and predicts that of more."""
    sizes, steps = sizes or Sizes(), settings.steps or STEPS
    names, columns = settings.models or NETWORKS, settings.columns or COLUMNS
    numbers = sorted({1, *(settings.ranks or RANKS)})  # with 1, which the others are compared with
    if numbers == [1]:
        raise UsageError("ranks: got 1; give a number above it, e.g. 1,2")
    if settings.device.type == "cuda" and numbers[-1] > torch.cuda.device_count():
        raise UsageError(
            f"ranks: got {numbers[-1]} with {torch.cuda.device_count()} GPUs; each needs one; use --device cpu"
        )
    threads = settings.threads or 1
    known = chosen(networks(sizes, settings.device), names)
    divided = columns if settings.shard == "columns" else [settings.batch or each.batch for each in known.values()]
    if min(divided) < max(numbers):
        raise UsageError(f"{settings.shard}: got {min(divided)} for {max(numbers)} ranks; each needs one")
    cases: list[Case] = []
    tables: list[Table] = []
    with ExitStack() as stack:
        teams = {n: stack.enter_context(team(n, settings.shard, threads)) for n in numbers}
        for name in known:
            for num_columns in columns:
                task = Task(name, sizes, settings.device.type, steps, num_columns, settings.batch)
                case, table = _measured(task, teams, settings, threads)
                cases.append(case)
                tables.append(table)
    written = {
        **asdict(sizes), "models": list(names), "columns": list(columns), "ranks": numbers, "shard": settings.shard,
        "threads": threads, "batch": settings.batch, "steps": steps, "repeat": settings.repeat,
        "latency_s": settings.latency_s, "bytes_per_s": settings.bytes_per_s,
    }  # fmt: skip
    seen = {**machine(settings.device), "threads": threads}
    return Report("ranks", seen, written, tuple(cases), tuple(tables))


def _measured(task: Task, teams: Mapping[int, Team], settings: Settings, threads: int) -> tuple[Case, Table]:
    """Measures one network with one number of columns, and predicts what more ranks would take."""
    (facts,) = teams[1].all(facts_of, task, settings.shard)
    work = Work(settings.shard, task.steps, task.columns, facts.batch, facts.parameters, facts.number_bytes)
    title = f"{facts.title}, K = {task.columns}, T = {task.steps}, shard: {settings.shard}"
    ways = {way.name: way for way in _ways(work, list(teams), threads)}
    calls = {name: partial(_whole, teams[way.ranks], task, way) for name, way in ways.items()}
    samples = interleaved(
        calls, settings.repeat, settings.device, lambda message: settings.on_progress(f"{title}: {message}")
    )
    able: dict[str, Samples] = {}
    for name, shown in samples.items():
        if isinstance(shown, Refused):  # the others need all of them
            raise UsageError(f"bench ranks: {name}: {shown.reason}")
        able[name] = shown
    one = next(iter(ways))
    case = compared(title, able, one, lambda name, shown: _figures(ways[name], shown, able, Way(1, threads)))
    measured_s = {way.ranks: able[name].timing.median_s for name, way in ways.items() if way.ranks > 1 or name == one}
    return case, Table(f"{title}: of more ranks", tuple(_expected(work, measured_s, settings)))


def _expected(work: Work, measured_s: Mapping[int, float], settings: Settings) -> Iterator[dict[str, Figure]]:
    """Yields what is predicted for each number of ranks, those that were measured and more."""
    link = None
    if settings.latency_s is not None or settings.bytes_per_s is not None:
        link = Link(settings.latency_s or 0.0, settings.bytes_per_s or math.inf)
    for ranks in sorted({*MORE, *measured_s} - {1}):
        seconds = predicted_s(work, ranks, measured_s, link) if ranks <= work.size else None
        throughput = None if seconds is None else measured_s[1] / seconds
        yield {
            "ranks": ranks,
            "predicted_s": seconds,
            "throughput": throughput,
            "efficiency": None if throughput is None else throughput / ranks,
            "measured_s": measured_s.get(ranks),
        }


def _ways(work: Work, numbers: Sequence[int], threads: int) -> Iterator[Way]:
    """Yields the ways to compare.

    They are one process; the same with its columns in the blocks of several; these several; and one process with as
    many threads as they have together.
    """
    several = [n for n in numbers if n > 1]
    chunks = {n: math.ceil(work.columns / n) if work.shard == "columns" else None for n in several}
    yield Way(1, threads)
    yield from (Way(1, threads, chunk) for chunk in dict.fromkeys(chunks.values()) if chunk is not None)
    yield from (Way(n, threads, chunk) for n, chunk in chunks.items())
    yield Way(1, max(several) * threads)


def _whole(team: Team, task: Task, way: Way) -> OwnTime:
    shares = team.all(hypergradient_of, task, way.chunk_size, way.threads)
    return OwnTime(max(share.seconds for share in shares), shares)


def _figures(way: Way, shown: Samples, able: Mapping[str, Samples], one: Way) -> dict[str, Figure]:
    if way == one:
        return {}
    base, seconds = able[one.name], shown.timing.rounds_s
    throughput = Ratio.of(base.timing.rounds_s, seconds)
    figures: dict[str, Figure] = {
        "throughput": throughput,
        "efficiency": throughput.of_medians * one.threads / (way.ranks * way.threads),
        "largest_difference": largest_difference(_grad(shown), _grad(base)),
    }
    alike = able.get(way._replace(ranks=1).name)
    if alike is not None and way.ranks > 1 and way.chunk_size is not None:
        figures["throughput_at_equal_chunk_size"] = Ratio.of(alike.timing.rounds_s, seconds)
        figures["same_bits"] = _bits(shown) == _bits(alike) and len(_bits(alike)) == 1
    return figures


def _grad(shown: Samples) -> Hyper:
    share: Share = shown.results[0][0]
    return {name: torch.tensor(x, dtype=torch.float64) for name, x in share.grad.items()}


def _bits(shown: Samples) -> set[str]:
    """Returns the distinct values of E and the hypergradient, to the last digit, over every rank and round."""
    return {repr((share.value, share.grad)) for shares in shown.results for share in shares}
