"""The same hypergradient in several modes: do they agree, and what does each of them cost?

The reference is the first mode of the list that is exact and ran to its end. E, w_T and the derivative in every
hyperparameter are compared with it (`difference.py`). Where reversible mode is among them, every mode runs at the
rational contraction factors that it uses (`common_factors.py`): only then do they differentiate the same run.
"""

from hyperopt_cli.comparison.compared import Compared, Comparison, check
from hyperopt_cli.comparison.difference import FLOOR, TOLERANCES, relative_difference
from hyperopt_cli.comparison.each_mode import OnModeStep, Outcome, compare, measured

__all__ = [
    "FLOOR",
    "TOLERANCES",
    "Compared",
    "Comparison",
    "OnModeStep",
    "Outcome",
    "check",
    "compare",
    "measured",
    "relative_difference",
]
