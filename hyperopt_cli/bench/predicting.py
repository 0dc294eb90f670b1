"""What `scaling.py` makes of the measured costs, for some numbers of ranks, as tables and curves."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hyperopt_cli.bench.costs import FEW, Rounds
from hyperopt_cli.bench.measuring import Ratio
from hyperopt_cli.bench.report import Curves, Figure, Settings, Table
from hyperopt_cli.bench.scaling import Costs, Link, Predicted, Work, predicted

SHOWN = (2, 8, 64)
DRAWN = (1, 2, 4, 8, 16, 32, 64)


class Prediction:
    """Of one network's work.

    Args:
        work: what is to be done.
        found: costs, round by round.
        settings: where they say what connects more ranks than were measured.
    """

    def __init__(self, work: Work, found: Rounds, settings: Settings) -> None:
        self._work, self._found = work, found
        self._latency_s, self._bytes_per_s = settings.latency_s, settings.bytes_per_s

    def work(self, ranks: int, a_rank: bool) -> Work:
        """The same for any number of ranks, or `a_rank` for each."""
        if not a_rank:
            return self._work
        key = "columns" if self._work.shard == "columns" else "batch"
        return replace(self._work, **{key: self._work.size * ranks})  # type: ignore[arg-type]

    def over(self, ranks: int, work: Work) -> list[Predicted]:
        """Round by round; by one rank, which computes alone."""
        costs = self._found.alone if ranks == 1 else self._found.at_once
        return [predicted(work, ranks, each, self._between(ranks)) for each in costs]

    def throughput(self, ranks: int, a_rank: bool) -> Ratio | None:
        """Over one rank; None where there is too little to divide."""
        work = self.work(ranks, a_rank)
        if ranks > work.size:
            return None
        return Ratio.of(_seconds(self.over(1, work)), _seconds(self.over(ranks, work)))

    def row(self, ranks: int, a_rank: bool) -> dict[str, Figure]:
        """Of the table."""
        work, throughput = self.work(ranks, a_rank), self.throughput(ranks, a_rank)
        found = self.over(ranks, work) if throughput else None
        measured_s = None if a_rank else self._found.measured_s.get(ranks)
        return {
            "ranks": ranks,
            work.shard: work.size,
            "predicted_s": None if found is None else statistics.median(_seconds(found)),
            "messages_s": None if found is None else statistics.median(each.messages_s for each in found),
            "throughput": throughput,
            "efficiency": None if throughput is None else throughput.of_medians / ranks,
            "measured_s": None if measured_s is None else statistics.median(measured_s),
            "predicted_over_measured": Ratio.of(_seconds(found), measured_s) if found and measured_s else None,
        }

    def _between(self, ranks: int) -> Link:
        measured = self._found.link
        if ranks in self._found.measured_s:
            return measured
        latency_s = measured.latency_s if self._latency_s is None else self._latency_s
        return Link(latency_s, self._bytes_per_s or measured.bytes_per_s)


def predictions(title: str, work: Work, found: Rounds, settings: Settings) -> tuple[list[Table], Curves]:
    """What the model takes from the measured pieces, what it says, and its throughput over ranks."""
    prediction = Prediction(work, found, settings)
    shown = sorted({*SHOWN, *found.measured_s} - {1})
    rows = tuple(prediction.row(ranks, a_rank) for a_rank in (False, True) for ranks in shown)
    one = "K" if work.shard == "columns" else "B"
    lines = {
        f"predicted, {one} = {work.size}": _line(prediction.throughput(ranks, False) for ranks in DRAWN),
        f"predicted, {one} = {work.size} R": _line(prediction.throughput(ranks, True) for ranks in DRAWN),
        f"measured, {one} = {work.size}": tuple(_measured(found, ranks) for ranks in DRAWN),
    }
    tables = [
        Table(
            f"{title}: what the model takes",
            (_costs(work, "alone", found.alone), _costs(work, f"{found.ranks} at once", found.at_once)),
        ),
        Table(f"{title}: messages", (_link(work, found),)),
        Table(f"{title}: by the model", rows),
    ]
    return tables, Curves(f"{title}: throughput over that of one rank", "R", DRAWN, lines)


def _costs(work: Work, who: str, costs: Sequence[Costs]) -> dict[str, Figure]:
    share = "column_s" if work.shard == "columns" else "example_s"
    each = {"step_s": "step_s", share: "share_s", "rest_s": "rest_s"}
    return {
        "process": who,
        **{key: statistics.median(getattr(cost, name) for cost in costs) for key, name in each.items()},
    }


def _link(work: Work, found: Rounds) -> dict[str, Figure]:
    few_s = found.link.sum_s(work.parameters * work.number_bytes, found.ranks)
    return {
        "ranks": found.ranks,
        "latency_s": found.link.latency_s,
        "gigabytes_per_second": found.link.bytes_per_s / 1e9,
        f"{FEW.replace(' ', '_')}_predicted_over_measured": Ratio.of([few_s] * len(found.few_s), found.few_s),
    }


def _measured(found: Rounds, ranks: int) -> float | None:
    if ranks not in found.measured_s:
        return None
    return statistics.median(found.measured_s[1]) / statistics.median(found.measured_s[ranks])


def _line(throughputs: Iterable[Ratio | None]) -> tuple[float | None, ...]:
    return tuple(None if ratio is None else ratio.of_medians for ratio in throughputs)


def _seconds(found: Iterable[Predicted]) -> list[float]:
    return [each.seconds for each in found]
