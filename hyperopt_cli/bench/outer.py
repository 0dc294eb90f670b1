"""`hyperopt bench outer`: methods of the outer loop against random search and TPE, over price and on held-out seeds.

Every method tunes every problem of `outer_problems.py` at five seeds; those that start somewhere do so from an ordinary
guess, two decades below and two above. All of them stay in one box. A search is taken over all hyperparameters and
over their tied version; it stops hopeless runs by the median rule. A descent is compared with the better of all
searches, which is chosen by the same losses: that favours the searches.

What was tuned, for the best validation loss by a price of 20, of 40, and in the end, is judged by training runs at five
seeds that were not used, on the test split: the mean of their losses, infinite where one of them diverges. Methods are
compared seed by seed.

A record of every evaluation may be kept in a file, one line for a method on a problem at a seed from a start; what it
has already is not measured again.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hyperopt_cli.bench.machine import machine
from hyperopt_cli.bench.outer_problems import FACTORS, PROBLEMS, tuning_problem
from hyperopt_cli.bench.outer_race import SEARCHES, Race, run_race
from hyperopt_cli.bench.outer_tables import against_searches, beside_starts, curves, of_problems
from hyperopt_cli.bench.report import Report, Settings
from hyperopt_cli.errors import UsageError
from hyperopt_cli.recipe.wording import did_you_mean
from hyperopt_cli.registry import OUTER
from hyperopt_cli.run_directory.directory import append_line
from hyperopt_cli.run_directory.json_files import plain, read_lines, revive

METHODS = ("auto", *SEARCHES)


def check_names(problems: Iterable[str] | None, methods: Iterable[str] | None, data: Path | None) -> None:
    """Refuses problems and methods that there are not, and a problem whose data were not named.

    Args:
        problems: names in `PROBLEMS`; None: all for which there are data.
        methods: names in `SEARCHES` or `registry.OUTER`; None: `METHODS`.
        data: the folder with MNIST/raw and cifar10, or None.

    Raises:
        UsageError: with what is allowed.
    """
    known = dict.fromkeys([*METHODS, *OUTER])
    for what, given, allowed in (("problems", problems or (), PROBLEMS), ("methods", methods or (), known)):
        for name in given:
            if name not in allowed:
                close = did_you_mean(name, allowed)
                raise UsageError(f"--{what}: got {name}; allowed are {', '.join(allowed)}{close}")
    for name in problems or ():
        if PROBLEMS[name].folder is not None and data is None:
            raise UsageError(f"--problems: {name} reads MNIST or CIFAR-10; give --data DIR")


def measure(settings: Settings) -> Report:
    """Runs the races that the record does not have, and compares the methods.

    Raises:
        UsageError: a problem or a method is unknown, data are missing, or the record is of another box or horizon.
    """
    names, methods = settings.problems or tuple(PROBLEMS), settings.methods or METHODS
    check_names(settings.problems, settings.methods, settings.data)
    lacking = [name for name in names if PROBLEMS[name].folder is not None and settings.data is None]
    names = tuple(name for name in names if name not in lacking)

    @cache
    def extent(name: str) -> tuple[str, int]:
        problem = tuning_problem(name, 0, "ordinary", settings.data, settings.device)
        return problem.box, problem.steps

    found: dict[Race, Any] = {}
    if settings.record is not None and settings.record.exists():
        read = read_lines(settings.record, lambda line: (Race(**{key: line[key] for key in Race._fields}), line))
        found = dict(read)
    for race in races(names, methods, settings.repeat):
        trials = race.num_trials(settings.trials)
        if race in found and found[race]["trials"] == trials:
            was, now = (found[race]["box"], found[race]["steps"]), extent(race.problem)
            if was != now:
                raise UsageError(
                    f"--record: {settings.record} has {race.problem} in the box {was[0]} over {was[1]} steps; now it "
                    f"is {now[0]} over {now[1]}; give another file"
                )
            continue
        settings.on_progress(f"{race.problem}, seed {race.seed}: {race.method}, {race.start}")
        problem = tuning_problem(race.problem, race.seed, race.start, settings.data, settings.device)
        line = race._asdict() | run_race(race, problem, trials)
        found[race] = revive(plain(line))
        if settings.record is not None:
            append_line(settings.record, line)
    wanted = {race: found[race] for race in races(names, methods, settings.repeat)}
    tables = [
        against_searches(wanted, names, methods),
        beside_starts(wanted, names, methods),
        of_problems(wanted, names),
    ]
    written = {"repeat": settings.repeat, "problems": list(names), "methods": list(methods), "left_out": lacking}
    drawn = tuple(curves(name, wanted, methods) for name in names)
    return Report("outer", machine(settings.device), written, (), tuple(each for each in tables if each.rows), drawn)


def races(names: Iterable[str], methods: Iterable[str], num_seeds: int) -> Iterator[Race]:
    """Yields every race, those of one problem and seed after each other."""
    for name in names:
        for seed in range(min(num_seeds, PROBLEMS[name].seeds)):
            for method in ("none", *methods):
                for start in ("ordinary",) if method in SEARCHES else FACTORS:
                    yield Race(name, seed, method, start)  # type: ignore[arg-type]
