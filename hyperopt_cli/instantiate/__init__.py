"""Recipe -> experiment: the only place where the names of a recipe become objects.

`check` finds what is wrong with a recipe without opening its data set; `build` makes everything.
"""

from hyperopt_cli.instantiate.build import build, check, check_dividing, check_rest
from hyperopt_cli.instantiate.experiment import Experiment

__all__ = ["Experiment", "build", "check", "check_dividing", "check_rest"]
