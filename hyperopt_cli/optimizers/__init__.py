"""Inner optimizers: the update rule U, one a file, with the conventions of `torch.optim` to the letter."""

from hyperopt_cli.optimizers.adam import Adam
from hyperopt_cli.optimizers.adamw import AdamW
from hyperopt_cli.optimizers.base import InnerOptimizer, Share
from hyperopt_cli.optimizers.rmsprop import RMSprop
from hyperopt_cli.optimizers.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "InnerOptimizer", "RMSprop", "Share"]
