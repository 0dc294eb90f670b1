"""What `hyperopt bench` measures, one benchmark a file: a function `measure(settings) -> Report`.

Importing this loads no torch, so that the command line can name the benchmarks.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from hyperopt_cli.bench.report import Report, Settings

# name: what it measures; the module of that name has `measure`
BENCHMARKS = {
    "hvp": "one product with the Hessian by every engine, over a gradient, and whether it is right",
    "tangents": "what each of K tangents costs, and the share of the machine's rate of matrix products",
    "modes": "one hypergradient by every mode, against a plain autograd unroll and a loop of double backwards",
    "reversal": "reversible mode against reverse mode with all states kept, and what its store takes",
    "checkpointing": "reverse mode with few slots against the time that its counts predict",
    "ranks": "one hypergradient by several processes, and what to expect of more",
    "outer": "methods of the outer loop against random search and TPE at the same price, judged at held-out seeds",
}

# what only some of them can be asked for: the option's name, and the benchmarks that take it
OPTIONS = {
    "steps": ("tangents", "modes", "reversal", "checkpointing", "ranks"),
    "models": ("hvp", "tangents", "ranks"),
    "columns": ("tangents", "ranks"),
    "engines": ("hvp", "tangents", "modes"),
    "batch": ("hvp", "tangents", "modes", "ranks"),
    "data": ("modes", "outer"),
    "ranks": ("ranks",),
    "shard": ("ranks",),
    "bandwidth": ("ranks",),
    "latency": ("ranks",),
    "problems": ("outer",),
    "methods": ("outer",),
    "trials": ("outer",),
    "record": ("outer",),
}


def load(name: str) -> "Callable[[Settings], Report]":
    """Returns the function `measure` of the benchmark of that name, one of `BENCHMARKS`."""
    measure: Callable[[Settings], Report] = import_module(f"hyperopt_cli.bench.{name}").measure
    return measure
