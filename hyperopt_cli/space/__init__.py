"""Hyperparameters: their transforms (raw <-> natural), their schedules over the horizon, their groups of parameters."""

from hyperopt_cli.space.groups import Grouping, select
from hyperopt_cli.space.schedules import Schedule
from hyperopt_cli.space.space import Hyperparameter, Knob, Space
from hyperopt_cli.space.transforms import Transform

__all__ = ["Grouping", "Hyperparameter", "Knob", "Schedule", "Space", "Transform", "select"]
