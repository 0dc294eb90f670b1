"""Tangents of the training gradient: the expensive part of forward mode.

With `g(w, lambda) = grad_w L(w, lambda, batch)`:

    tangents   g'_k = H w'_k + d2L/dw dlambda lambda'_k     for K columns at once

An engine is a way to take the tangents, one a file, its loop beside it; `registry.py` names them as a user types them.
`auto` measures them (`checks/choice.py`). `MEASURED` has besides what no run may take, and `bench hvp` measures.
"""

from hyperopt_cli.engines.base import Engine, Tangents, chunk_by_chunk
from hyperopt_cli.engines.refusals import strict
from hyperopt_cli.registry import ENGINES as NAMES
from hyperopt_cli.registry import load

__all__ = ["ENGINES", "MEASURED", "Engine", "Tangents", "check_name"]

MEASURED: dict[str, Engine] = {name: strict(name, chunk_by_chunk(load(each.path))) for name, each in NAMES.items()}
ENGINES: dict[str, Engine] = {name: MEASURED[name] for name, each in NAMES.items() if each.taken != "by bench hvp"}


def check_name(name: str) -> None:
    """Refuses what is neither `auto` nor the name of an engine.

    Raises:
        ValueError: no such engine.
    """
    if name != "auto" and name not in ENGINES:
        why = ", which bench hvp alone takes" if name in MEASURED else ""
        raise ValueError(f"engine: got {name!r}{why}; allowed are auto, {', '.join(ENGINES)}; auto takes a right one")
