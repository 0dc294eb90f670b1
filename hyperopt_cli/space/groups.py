"""Groups: which parameter tensors of a model share a value of a hyperparameter.

per: model     one value for all
per: layer     one for each module that holds parameters (names up to the last dot)
per: tensor    one for each parameter tensor
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn


@dataclass(frozen=True)
class Grouping:
    """A partition of parameter names.

    Attributes:
        labels: the groups' names, in the model's order; a single "" for `per: model`.
        members: parameter name -> index of its group.
    """

    labels: tuple[str, ...]
    members: dict[str, int]

    @classmethod
    def per(cls, unit: str, names: Iterable[str]) -> "Grouping":
        """Returns the partition of `names` by `unit`, which is model, layer or tensor."""
        of = {name: {"model": "", "layer": name.rpartition(".")[0], "tensor": name}[unit] for name in names}
        labels = tuple(dict.fromkeys(of.values()))
        return cls(labels, {name: labels.index(label) for name, label in of.items()})

    @property
    def size(self) -> int | None:
        """How many values there are; None for the one of `per: model`."""
        return None if self.labels == ("",) else len(self.labels)

    def spread(self, value: Tensor, fixed: dict[str, float]) -> Tensor | dict[str, Tensor]:
        """Returns the value for each parameter, or `value` itself where all parameters share it.

        Args:
            value: the hyperparameter's value, `[]` or `[groups]`.
            fixed: parameters that take a number of their own instead.
        """
        if self.size is None and not fixed:
            return value
        chosen = {name: value if self.size is None else value[i] for name, i in self.members.items()}
        return chosen | {name: value.new_tensor(number) for name, number in fixed.items()}


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def select(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Returns the names of the parameters of `model` that any pattern names.

    Args:
        model: the module that has the parameters.
        patterns: globs over the names of parameters that are not frozen, or `norms` (of every normalisation layer),
            `biases` (named so).

    Raises:
        ValueError: a pattern names no parameter.
    """
    names = [name for name, w in model.named_parameters() if w.requires_grad]
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern == "norms":
            found = [name for name in names if isinstance(model.get_submodule(name.rpartition(".")[0]), _NORMS)]
        elif pattern == "biases":
            found = [name for name in names if name == "bias" or name.endswith((".bias", "_bias"))]
        else:
            found = [name for name in names if fnmatchcase(name, pattern)]
            if not found:
                close = difflib.get_close_matches(pattern, ["norms", "biases", *names], n=1)
                meant = f"did you mean {close[0]}? The" if close else "the"
                raise ValueError(f"got {pattern!r}, which names no parameter; {meant} model has {', '.join(names)}")
        chosen.update(found)
    return [name for name in names if name in chosen]
