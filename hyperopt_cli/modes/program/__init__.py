"""The training gradient as training computes it, written down below autograd as a list of operators.

A detach, a `no_grad`, a hook, a custom backward are there what they do and no more, so that the derivative of the list
is that of the run where a double backward is cut. `record.py` writes it down, `derivative.py` differentiates it,
`rules.py` has the operators whose own derivative is missing or wrong.
"""

from hyperopt_cli.modes.program.derivative import as_operators, differentiable
from hyperopt_cli.modes.program.record import Program, recorded

__all__ = ["Program", "as_operators", "differentiable", "recorded"]
