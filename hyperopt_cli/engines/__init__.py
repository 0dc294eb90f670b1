"""Tangents of the training gradient: the expensive part of forward mode.

With `g(w, lambda) = grad_w L(w, lambda, batch)`:

    tangents   g'_k = H w'_k + d2L/dw dlambda lambda'_k     for K columns at once

An engine is a way to take the tangents, one a file, its loop beside it; `ENGINES` names them as a user types them.
`auto` measures them (`checks/choice.py`). `MEASURED` has besides what no run may take, and `bench hvp` measures.
"""

from hyperopt_cli.engines.base import Engine, Tangents, chunk_by_chunk
from hyperopt_cli.engines.dense import dense
from hyperopt_cli.engines.folded import folded
from hyperopt_cli.engines.forward_over_reverse import forward_over_reverse, forward_over_reverse_loop
from hyperopt_cli.engines.program import program, program_loop
from hyperopt_cli.engines.refusals import strict
from hyperopt_cli.engines.reverse_over_forward import reverse_over_forward
from hyperopt_cli.engines.reverse_over_reverse import reverse_over_reverse, reverse_over_reverse_loop

__all__ = ["ENGINES", "MEASURED", "Engine", "Tangents", "check_name"]

_FUNCTIONS: dict[str, Engine] = {
    "folded": folded,
    "forward_over_reverse": forward_over_reverse,
    "forward_over_reverse_loop": forward_over_reverse_loop,
    "reverse_over_reverse": reverse_over_reverse,
    "reverse_over_reverse_loop": reverse_over_reverse_loop,
    "program": program,
    "program_loop": program_loop,
    "dense": dense,
}
ENGINES: dict[str, Engine] = {name: strict(name, chunk_by_chunk(function)) for name, function in _FUNCTIONS.items()}
_ONLY_MEASURED: dict[str, Engine] = {"reverse_over_forward": reverse_over_forward}
MEASURED: dict[str, Engine] = ENGINES | {
    name: strict(name, chunk_by_chunk(function)) for name, function in _ONLY_MEASURED.items()
}


def check_name(name: str) -> None:
    """Refuses what is neither `auto` nor the name of an engine.

    Raises:
        ValueError: no such engine.
    """
    if name != "auto" and name not in ENGINES:
        why = ", which bench hvp alone takes" if name in _ONLY_MEASURED else ""
        raise ValueError(f"engine: got {name!r}{why}; allowed are auto, {', '.join(ENGINES)}; auto takes a right one")
