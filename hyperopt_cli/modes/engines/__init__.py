"""Derivatives of the inner gradient: the expensive part of every mode, and the only place that knows how to take them.

With `g(w, lambda) = grad_w L(w, lambda, batch)`:

    tangents   g'_k = H w'_k + d2L/dw dlambda lambda'_k     for K columns at once       (forward mode)
    pullback   u -> (H u, (d2L/dw dlambda)^T u)              one vector a step           (reverse mode)

An engine is a way to take the tangents, one a file; `ENGINES` names them.
"""

from hyperopt_cli.modes.engines.base import Engine, Loss, Tangents, gradient, gradient_and_pullback, push_columns
from hyperopt_cli.modes.engines.forward_over_reverse import forward_over_reverse
from hyperopt_cli.modes.engines.reverse_over_reverse import reverse_over_reverse

__all__ = ["ENGINES", "Engine", "Loss", "Tangents", "engine", "gradient", "gradient_and_pullback", "push_columns"]

ENGINES: dict[str, Engine] = {
    "forward_over_reverse": forward_over_reverse,
    "reverse_over_reverse": reverse_over_reverse,
}


def engine(name: str) -> Engine:
    """The engine of that name; `auto` is forward over reverse.

    Raises:
        ValueError: no such engine.
    """
    if name == "auto":
        return forward_over_reverse
    if name not in ENGINES:
        raise ValueError(f"engine: got {name!r}; allowed are auto, {', '.join(ENGINES)}")
    return ENGINES[name]
