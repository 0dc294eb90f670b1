"""Models that ship, each a function that returns an `nn.Module`; a recipe's `model.call` names one.

`input_shape` and `num_classes` are filled in from the data set. All work under `torch.func`, in forward and reverse
order and any dtype: no in-place operation on an activation, no kernel without second derivatives.
"""

from hyperopt_cli.models.convnet import convnet
from hyperopt_cli.models.logistic import logistic
from hyperopt_cli.models.mlp import mlp
from hyperopt_cli.models.quadratic import quadratic
from hyperopt_cli.models.resnet import resnet
from hyperopt_cli.models.wide_resnet import wide_resnet

__all__ = ["convnet", "logistic", "mlp", "quadratic", "resnet", "wide_resnet"]
