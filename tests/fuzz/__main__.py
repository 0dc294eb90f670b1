"""Random training runs with random defects: is any hypergradient wrong that looks right?

    make fuzz                                       2,000 cases of seed 0; continues where it was ended
    make fuzz FUZZ="--seed 1 --cases 300"           others
    python -m tests.fuzz --only 17                  one case, with all that is known of it
    python -m tests.fuzz --only 17 --engines        the same, with every engine set by hand
    python -m tests.fuzz --table                    the table of what is done, without going on
    python -m tests.fuzz --having 'hook: *' --without 'outer *'    those that have the one construct and lack the other
    make survey                                     ordinary models and losses: are they refused? (survey.py)

Each case is drawn from (seed, number) alone (`cases.py`, of `pieces.py` and `rules.py`). Its truth is differences of a
plain training run (`truth.py`), and where it draws without a seed or counts its calls, that there is none. Each mode is
then right, refused, WRONG, or a crash; it is `not judged` where differences have no answer. The share of the cases that
are answered is taken of those which any candidate gets right (`candidates.py`): a mode, an engine set by hand, or a
derivative of torch written without the package.

The lines are in runs/fuzz/, one file for each state of the code. The exit code is 1 if anything is WRONG, crashes, or
less than 90% is answered.
"""

import argparse
import fnmatch
import json
import sys
from collections import defaultdict
from pathlib import Path

import torch

from tests.fuzz import cases, judge
from tests.fuzz.lines import Lines, digest

FOLDER = Path("runs/fuzz")
FAMILIES = ("smooth", "kinked", "base", "end", "rule", "linear algebra", "late linear algebra", "late smooth",
            "late kinked", "outer smooth", "outer kinked", "outer end")  # fmt: skip
ANSWERED = 0.9


def rows_of(line):
    """The rows of the table that a case belongs to: every defect, and the ordinary operators by family."""
    for name in line["constructs"]:
        family = name.split(":")[0]
        yield family if family in FAMILIES else name
    yield "float32" if line["dtype"] == "float32" else "float64"
    if not line["defects"]:
        yield "without a defect"
    yield "ALL"


def counted(lines):
    """Row -> counts of cases and of verdicts."""
    table = defaultdict(lambda: defaultdict(int))
    for line in lines:
        verdicts = [v["verdict"] for v in line["modes"].values()]
        right = line["modes"].get("forward", {}).get("verdict") == "right"
        for row in set(rows_of(line)):
            counts = table[row]
            counts["cases"] += 1
            counts["judged"] += "truth" in line
            counts["no truth"] += bool(line["must_refuse"])
            for v in ("right", "refused", "WRONG", "crash"):
                counts[v] += verdicts.count(v)
            counts["wrong cases"] += "WRONG" in verdicts
            if line.get("candidate"):
                counts["possible"] += 1
                counts["answered"] += "right" in verdicts
                counts["by forward"] += right
                counts["by reverse"] += line["modes"].get("reverse", {}).get("verdict") == "right"
    return table


def share(counts, name):
    return f"{counts[name] / counts['possible']:6.0%}" if counts["possible"] else "     -"


def printed(table):
    """The table, worst rows first within its two parts."""
    head = ("cases", "judged", "no truth", "right", "refused", "WRONG", "crash", "possible")
    print(f"{'construct':46s}" + "".join(f"{h:>9s}" for h in head) + " answered  forward  reverse")
    for row in sorted(table, key=lambda r: (r == "ALL", -table[r]["WRONG"], -table[r]["crash"], r)):
        counts = table[row]
        cells = "".join(f"{counts[h]:9d}" for h in head)
        print(f"{row[:46]:46s}{cells}   {share(counts, 'answered')}   {share(counts, 'by forward')}   "
              f"{share(counts, 'by reverse')}")  # fmt: skip


def fits(constructs, having, without):
    """Whether one of them fits a pattern, and none fits another."""
    return bool(fnmatch.filter(constructs, having)) and not any(fnmatch.filter(constructs, p) for p in without)


def run(seed, numbers, folder=FOLDER, quiet=False):
    """The lines of these cases; those that are not in the file yet are judged now."""
    lines = Lines(folder / f"seed{seed}-{digest()}.jsonl")
    for number in numbers:
        if number in lines.done:
            continue
        if lines.died(number):
            case = cases.draw(seed, number)
            died = {"verdict": "crash", "message": "the process died in this case, twice"}
            line = {"constructs": case.constructs, "defects": case.defects, "dtype": str(case.dtype)[6:],
                    "must_refuse": False, "reason": "", "modes": {"any": died}}  # fmt: skip
        else:
            lines.begin(number)
            line = judge.judged(seed, number)
        lines.end(number, line)
        bad = [m for m, v in line["modes"].items() if v["verdict"] in ("WRONG", "crash")]
        if bad and not quiet:
            print(f"case {number}: {', '.join(bad)}: {line['modes'][bad[0]].get('message', 'WRONG')[:100]}; "
                  f"{line['defects']}", flush=True)  # fmt: skip
    return [lines.done[n] for n in numbers if n in lines.done]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--only", type=int)
    parser.add_argument("--having", default="*", help="a pattern: cases with such a construct")
    parser.add_argument("--without", action="append", default=[], help="a pattern: cases without such a construct")
    parser.add_argument("--engines", action="store_true", help="with --only: every engine set by hand")
    parser.add_argument("--table", action="store_true", help="of what is done, without going on")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.only is not None:
        line = judge.judged(given.seed, given.only, judge.ENGINES if given.engines else None)
        print(json.dumps(line, indent=1))
        return 1 if any(v["verdict"] in ("WRONG", "crash") for v in line["modes"].values()) else 0
    if given.table:
        path = FOLDER / f"seed{given.seed}-{digest()}.jsonl"
        done = list(Lines(path).done.values()) if path.exists() else []
    else:
        numbers = range(given.first, given.first + given.cases)
        if given.having != "*" or given.without:
            numbers = [n for n in numbers if fits(cases.draw(given.seed, n).constructs, given.having, given.without)]
        done = run(given.seed, numbers)
    table = counted(done)
    printed(table)
    counts = table["ALL"]
    wrong, crash = counts["WRONG"], counts["crash"]
    enough = counts["answered"] >= ANSWERED * counts["possible"]
    print(f"{counts['cases']} cases: {wrong} WRONG in {counts['wrong cases']}, {crash} crashes")
    print(f"of {counts['possible']} cases that a candidate gets right, {counts['answered']} are answered")
    return 0 if not wrong and not crash and enough else 1


if __name__ == "__main__":
    sys.exit(main())
