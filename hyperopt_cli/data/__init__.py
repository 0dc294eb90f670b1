"""Data sets that ship, each a plain function that returns `Splits`; a recipe's `dataset.call` names one.

From disk to a training step: a function here reads (`digits.py`, `torchvision_sets.py`, ...), `splits.py` says what it
may return, `batches.py` splits off the validation examples and deals out batches, from memory (`resident.py`) or from
disk (`streaming.py`), normalised and augmented (`preparation.py`). All draws come from `seeds.py`.
"""

from hyperopt_cli.data.digits import digits
from hyperopt_cli.data.image_folder import image_folder
from hyperopt_cli.data.splits import InMemory, Splits, as_splits
from hyperopt_cli.data.synthetic import synthetic
from hyperopt_cli.data.torchvision_sets import cifar10, cifar100, fashion_mnist, mnist

__all__ = [
    "InMemory",
    "Splits",
    "as_splits",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "image_folder",
    "mnist",
    "synthetic",
]
