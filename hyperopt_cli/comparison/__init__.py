"""The same hypergradient in several modes: do they agree, and what does each of them cost?

The reference is the first mode of the list that is exact and ran to its end. E, w_T and the derivative in every
hyperparameter are compared with it (`difference.py`). Where reversible mode is among them, every mode runs at the
rational contraction factors that it uses (`factors.py`): only then do they differentiate the same run.
"""

from hyperopt_cli.comparison.compare import OnModeStep, compare
from hyperopt_cli.comparison.difference import FLOOR, TOLERANCES, check, relative_difference

__all__ = ["FLOOR", "TOLERANCES", "OnModeStep", "check", "compare", "relative_difference"]
