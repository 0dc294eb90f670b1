"""What the records of methods say of each other: tables and curves of the benchmark of the outer loop."""

import math
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, Literal

from hyperopt_cli.bench.outer_problems import FACTORS, Start
from hyperopt_cli.bench.outer_race import IN_THE_END, PRICES, SEARCHES, Race
from hyperopt_cli.bench.report import Curves, Figure, Table

MANY = 16  # hyperparameters, from which on a price of 20 is compared with all trials of a search, too
CURVE = (1, 2, 4, 6, 8, 10, 13, 16, 20, 26, 32, 40, 60, 80, 100)


def judged_loss(line: Mapping[str, Any], at: str) -> float:
    """Returns the mean loss of the held-out runs, on the test split where there is one; infinite where one diverged.

    Args:
        line: of the record.
        at: `20`, `40` or `end`.
    """
    best = line["best"].get(at)
    losses = [math.inf] if best is None else best["test"] or best["held_out"]
    return float(sum(losses) / len(losses))


def _medians(found: Mapping[Race, Any], of: Mapping[int, Race], at: str) -> float:
    return median(judged_loss(found[race], at) for race in of.values())


def _by_seed(found: Mapping[Race, Any], problem: str, method: str, start: Start) -> dict[int, Race]:
    return {race.seed: race for race in found if race[0] == problem and race[2:] == (method, start)}


def against_searches(found: Mapping[Race, Any], names: Iterable[str], methods: Iterable[str]) -> Table:
    """Compares each descent with the better search at each price, and where K is large with all of its trials."""
    rows: list[Mapping[str, Figure]] = []
    searches = [method for method in methods if method in SEARCHES]
    for name in names:
        for method in [method for method in methods if method not in SEARCHES]:
            for start in FACTORS:
                ours = _by_seed(found, name, method, start)
                row: dict[str, Figure] = {"problem": name, "method": method, "start": start}
                num = found[ours[0]]["num"]
                for at, theirs_at in [*((str(price), str(price)) for price in PRICES), ("20", IN_THE_END)]:
                    key = f"at_{at}" if at == theirs_at else "at_20_over_all_trials"
                    best = None
                    if searches and (at == theirs_at or num >= MANY):
                        of = {search: _by_seed(found, name, search, "ordinary") for search in searches}
                        best = min(searches, key=lambda search: _medians(found, of[search], theirs_at))
                    if at == theirs_at:
                        row[key] = _medians(found, ours, at)
                    if best is None:
                        row |= {f"{key}_search": None, f"{key}_difference": None}
                        continue
                    pairs = [
                        (judged_loss(found[ours[seed]], at), judged_loss(found[of[best][seed]], theirs_at))
                        for seed in ours
                    ]
                    row[f"{key}_search"] = f"{_medians(found, of[best], theirs_at):.4g} ({best})"
                    row[f"{key}_difference"] = median(0.0 if a == b else a - b for a, b in pairs)
                rows.append(row)
    return Table(
        "loss at held-out seeds, median over seeds; differences are paired by seed, below 0 is better", (*rows,)
    )


def beside_starts(found: Mapping[Race, Any], names: Iterable[str], methods: Iterable[str]) -> Table:
    """Compares where each descent ends with where it began, both at held-out seeds."""
    rows: list[Mapping[str, Figure]] = []
    for name in names:
        for method in [method for method in methods if method not in SEARCHES]:
            for start in FACTORS:
                ours, began = (_by_seed(found, name, which, start) for which in (method, "none"))
                pairs = [
                    (judged_loss(found[ours[seed]], IN_THE_END), judged_loss(found[began[seed]], IN_THE_END))
                    for seed in ours
                ]
                rows.append(
                    {
                        "problem": name,
                        "method": method,
                        "start": start,
                        "began": median(b for _, b in pairs),
                        "ended": median(a for a, _ in pairs),
                        "worse_seeds": sum(a > b for a, b in pairs),
                        "seeds": len(pairs),
                    }
                )
    return Table("where a descent ends, beside where it began, at held-out seeds", tuple(rows))


def of_problems(found: Mapping[Race, Any], names: Iterable[str]) -> Table:
    """Says what each problem is: its size, the box, and what a plain run takes."""
    rows: list[Mapping[str, Figure]] = []
    for name in names:
        lines = {race: line for race, line in found.items() if race.problem == name}
        line = next(iter(lines.values()))
        per_price: dict[Literal["search", "descent"], list[float]] = {"search": [], "descent": []}
        for race, other in lines.items():
            if other["evaluations"]:
                per_price["search" if race.method in SEARCHES else "descent"].append(
                    other["wall_s"] / other["evaluations"][-1][0]
                )
        rows.append(
            {
                "problem": name,
                "K": line["num"],
                "T": line["steps"],
                **{f"{what}_run_s": median(of) if of else None for what, of in per_price.items()},
                "box": line["box"],
            }
        )
    return Table("problems: seconds for a price of 1, and the box that all methods share", tuple(rows))


def curves(name: str, found: Mapping[Race, Any], methods: Iterable[str]) -> Curves:
    """Returns the best validation loss so far over price, the median over seeds; where a method has ended, its last."""
    lines = {}
    for method in methods:
        for start in ("ordinary",) if method in SEARCHES else FACTORS:
            bests = []
            for race in _by_seed(found, name, method, start).values():  # type: ignore[arg-type]
                seen = found[race]["evaluations"]
                bests.append([min((e for at, _, e in seen if at <= price), default=math.inf) for price in CURVE])
            heights = [median(of) for of in zip(*bests, strict=True)]
            label = method if method in SEARCHES else f"{method}, {start}"
            lines[label] = tuple(height if math.isfinite(height) else None for height in heights)
    return Curves(f"{name}: best validation loss while tuning, median over seeds", "price", CURVE, lines)
