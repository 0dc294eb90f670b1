"""Recipe -> experiment: the only place where the names of a recipe become objects.

`check` finds what is wrong with a recipe without opening its data set; `build` makes everything.
"""

from hyperopt_cli.experiment.build import build, check, check_dividing, check_rest
from hyperopt_cli.experiment.experiment import Experiment

__all__ = ["Experiment", "build", "check", "check_dividing", "check_rest"]
