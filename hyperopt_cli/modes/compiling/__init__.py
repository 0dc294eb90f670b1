"""A whole step of a mode as one compiled function: gradient, products with the Hessian and update rule together."""

from hyperopt_cli.modes.compiling.halves import Kept, TwoHalves
from hyperopt_cli.modes.compiling.repaying import Compilation, decided
from hyperopt_cli.modes.compiling.whole_step import WholeStep, cannot_compile

__all__ = ["Compilation", "Kept", "TwoHalves", "WholeStep", "cannot_compile", "decided"]
