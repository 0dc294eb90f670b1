"""Accuracy of logits of every layout, and the trial of the test split before training."""

from typing import Any

import pytest
import torch

from hyperopt_cli.errors import RecipeError
from hyperopt_cli.instantiate.accuracy import Counts, accuracy
from hyperopt_cli.instantiate.experiment import Experiment
from tests.instantiate.recipes import own_parts


def hot(classes: torch.Tensor, num: int, dim: int) -> torch.Tensor:
    """Logits whose largest is that class, with the classes in dimension `dim`."""
    return torch.nn.functional.one_hot(classes, num).double().movedim(-1, dim)


SAID = torch.tensor([[0, 2, 1], [2, 2, 0]])  # [B, T]
TRUE = torch.tensor([[0, 1, 1], [2, 0, -100]])


@pytest.mark.parametrize(
    ("outputs", "targets", "class_dim", "ignore", "want"),
    [
        (hot(SAID[0], 3, 1), TRUE[0], 1, None, Counts(2, 3)),
        (hot(SAID, 3, 1), TRUE, 1, -100, Counts(3, 5)),  # T == C
        (hot(SAID, 3, 2), TRUE, 2, -100, Counts(3, 5)),
        (hot(SAID, 3, 2), TRUE, -1, -100, Counts(3, 5)),
        (hot(SAID, 7, 1), TRUE, 1, None, Counts(3, 5)),  # T < C; what is below 0 is no class
        (hot(SAID, 7, -1), TRUE, -1, 0, Counts(2, 4)),
        (hot(SAID[None].expand(4, 2, 3), 5, 1), TRUE[None].expand(4, 2, 3), 1, -100, Counts(12, 20)),  # [B, C, H, W]
        (torch.randn(4, 1), torch.tensor([0, 1, 1, 0]), 1, None, None),  # one logit: no classes
        (torch.randn(4), torch.tensor([0, 1, 1, 0]), 1, None, None),
        (torch.randn(4, 3), torch.randint(0, 2, (4, 3)), 1, None, None),  # several labels
        (torch.randn(4, 3, 5), torch.randint(0, 3, (4, 6)), 1, None, None),
        (torch.randn(4, 3), torch.randn(4), 1, None, None),
    ],
)
def test_classes_are_in_dim_1_or_where_the_model_says(
    outputs: torch.Tensor, targets: torch.Tensor, class_dim: int, ignore: int | None, want: Counts | None
) -> None:
    assert accuracy(outputs, targets, class_dim, ignore) == want


CODE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
T = {T}
def drawn(num, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(num, T, 4, generator=g, dtype=torch.float64)
    return TensorDataset(x, x[..., :3].argmax(-1))
def data(): return drawn(60, 0), drawn(30, 1)
class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
    def forward(self, x): return self.head(x).movedim(-1, 1)
class Last(First):
    class_dim = -1
    def forward(self, x): return self.head(x)
class Unsaid(First):
    def forward(self, x): return self.head(x)
class Wrong(Last):
    class_dim = "last"
class Fails(First):
    def forward(self, x):
        if len(x) == 30:
            raise RuntimeError("no such size")
        return super().forward(x)
def first(): return First()
def last(): return Last()
def unsaid(): return Unsaid()
def wrong(): return Wrong()
def fails(): return Fails()
def moved(outputs, targets): return nn.functional.cross_entropy(outputs.movedim(-1, 1), targets)
def late(outputs, targets):
    if len(targets) == 30:
        raise RuntimeError("thirty")
    return nn.functional.cross_entropy(outputs, targets)
"""


def sequences(make: Any, length: int, model: str, loss: Any = "cross_entropy") -> Experiment:
    return make(CODE.replace("{T}", str(length)), model=model, data="data", loss=loss)  # type: ignore[no-any-return]


make = pytest.fixture(own_parts)


@pytest.mark.parametrize("length", [3, 5])
@pytest.mark.parametrize(
    ("model", "loss"), [("first", "cross_entropy"), ("last", "cross_entropy"), ("last", "own.moved")]
)
def test_the_figures_of_sequences_are_those_counted_by_hand(make: Any, length: int, model: str, loss: str) -> None:
    experiment = sequences(make, length, model, loss)
    params = {name: w.detach() for name, w in experiment.make_model(0).named_parameters()}
    figures = experiment.test(params, 0)
    assert experiment.data is not None
    assert experiment.data.test is not None
    (batch, _) = experiment.data.test[0]
    logits = batch.inputs @ params["head.weight"].T + params["head.bias"]
    right = (logits.argmax(-1) == batch.targets).double().mean()
    want = -logits.log_softmax(-1).gather(-1, batch.targets[..., None]).mean()
    assert figures is not None
    assert figures.accuracy == pytest.approx(float(right), rel=1e-12)
    assert figures.loss == pytest.approx(float(want), rel=1e-12)


@pytest.mark.parametrize(
    ("model", "loss", "said"),
    [
        ("unsaid", "own.moved", "an attribute class_dim = -1"),
        ("wrong", "own.moved", "its class_dim is 'last'"),
        ("fails", "cross_entropy", "model: with inputs of the test split, .* it raised RuntimeError: no such size"),
        ("first", "own.late", "loss: on the test split, with outputs of shape .* it raised RuntimeError: thirty"),
    ],
)
def test_what_the_test_split_would_meet_at_the_end_is_refused_at_the_start(
    make: Any, model: str, loss: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        sequences(make, 5, model, loss)
