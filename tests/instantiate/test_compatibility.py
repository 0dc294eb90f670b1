"""What is wrong with model, data and loss together is said before the run, with what to do."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli import hypergradient
from hyperopt_cli.errors import DatasetError, RecipeError
from hyperopt_cli.instantiate import Experiment, check
from hyperopt_cli.instantiate.broadcasting import broadcast
from tests.instantiate.recipes import own_parts, recipe_of

make = pytest.fixture(own_parts)

CODE = """
import torch
from torch import nn
from torch.nn import functional as F

G = torch.Generator().manual_seed(3)
X = torch.randn(60, 4, generator=G, dtype=torch.float64)
def column(): return X, X[:, :1] ** 2 + 3
def vector(): return X, X[:, 0] ** 2 + 3
def near(): return X, X[:, 0] / 2
def sequence(): return X, X[:, :2] ** 2 + 3
def labels(): return X, (X[:, 0] > 0).long()
def out_of_range():
    y = (X[:, 0] > 0).long()
    y[41] = 2
    return X, y
def below():
    y = (X[:, 0] > 0).long()
    y[[7, 50]] = -1
    return X, y
def tags():
    y = (X[:, :3] > 0).long()
    y[41, 2] = 5
    return X, y
def one(): return nn.Linear(4, 1)
def flat(): return nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
def two(): return nn.Linear(4, 2)
def tagger(): return nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)))
def third(): return nn.Sequential(nn.Linear(4, 2), nn.Unflatten(1, (1, 2)))
def difference(outputs, targets): return (outputs - targets).square().mean()
def halfway(outputs, targets): return (2 * outputs.exp() - targets.log() / 2).abs().mean()
def quantile(outputs, targets, q=0.7):
    away = targets - outputs
    return torch.maximum(q * away, (q - 1) * away).mean()
def poisson(outputs, targets): return F.poisson_nll_loss(outputs, targets)
def squeezed(outputs, targets): return (outputs.squeeze(-1) - targets).square().mean()
def reshaped(outputs, targets): return (outputs - targets.reshape(outputs.shape)).square().mean()
def pairs(outputs, targets):  # every output with every other, and on purpose
    x, y = outputs.reshape(-1), targets.reshape(-1)
    return F.softplus((x[:, None] - x) * (y[None] - y[:, None]).sign()).mean()
def smooth(outputs, targets, beta=1.0): return F.smooth_l1_loss(outputs, targets, beta=beta)
def by_margin(outputs, targets, margin: float = 0.3): return F.relu(outputs - targets - margin).mean()
def annealed(outputs, targets, sharpness=0.3): return torch.log1p((outputs - targets) ** 2 / sharpness).mean()
def rounded(outputs, targets, scale=2.0): return (outputs - targets).square().mean() * float(scale)
def barrier(outputs, targets): return torch.log(outputs - 100).mean()
def holes():
    x = X.clone()
    x[:, 2] = float("nan")
    return x, X[:, 0]
class Twin(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
    def forward(self, x): return 1 - F.cosine_similarity(self.layer(x), self.layer(x.flip(0)).detach()).mean()
def centres(outputs, targets): return (outputs - torch.eye(2).to(outputs)[targets]).square().mean()
"""

F = "torch.nn.functional"
BROADCASTING = [
    ("one", "vector", {"call": f"{F}.mse_loss"}),
    ("one", "vector", {"call": f"{F}.l1_loss"}),
    ("one", "vector", {"call": f"{F}.smooth_l1_loss"}),
    ("one", "vector", {"call": f"{F}.huber_loss"}),
    ("one", "vector", {"call": "torch.nn.MSELoss"}),
    ("one", "vector", {"call": "torch.nn.HuberLoss"}),
    ("flat", "column", {"call": f"{F}.mse_loss"}),
    ("third", "sequence", {"call": f"{F}.mse_loss"}),  # [B, 1, T] and [B, T]
    ("one", "vector", "own.poisson"),
    ("one", "vector", "own.difference"),
    ("flat", "column", "own.difference"),
    ("third", "sequence", "own.difference"),
    ("one", "vector", "own.halfway"),
    ("one", "vector", "own.quantile"),
]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(("model", "data", "loss"), BROADCASTING, ids=str)
def test_a_loss_that_broadcasts_outputs_against_targets_is_refused(make: Any, model: str, data: str, loss: Any) -> None:
    with pytest.raises(RecipeError, match=r"loss: with outputs of shape .* it broadcasts one against the other"):
        make(CODE, model, data, loss)


FITTING = [
    ("one", "vector", "mse"),
    ("one", "column", {"call": f"{F}.mse_loss"}),
    ("flat", "vector", {"call": f"{F}.mse_loss"}),
    ("one", "vector", "own.squeezed"),
    ("one", "vector", "own.reshaped"),
    ("one", "vector", "own.pairs"),
    ("one", "column", "own.quantile"),
    ("two", "labels", "own.centres"),
]


@pytest.mark.parametrize(("model", "data", "loss"), FITTING, ids=str)
def test_a_loss_that_pairs_them_up_is_not(make: Any, model: str, data: str, loss: Any) -> None:
    make(CODE, model, data, loss)


def test_what_is_made_of_both_may_be_broadcast() -> None:
    x, y = torch.randn(5, 1), torch.randn(5)
    assert not broadcast(lambda: ((x.flatten() - y)[:, None] * (x.flatten() + y)).sum(), x, y)
    assert "[5, 1] and [5] gives [5, 5]" in broadcast(lambda: (x - y).sum(), x, y)


@pytest.mark.parametrize(
    ("model", "data", "loss", "said"),
    [
        ("two", "out_of_range", "cross_entropy", r"example 41 of the training split .*allowed are 0 \.\.\. 1"),
        ("two", "out_of_range", {"call": "torch.nn.CrossEntropyLoss"}, "example 41 of the training split"),
        ("two", "out_of_range", {"call": f"{F}.nll_loss", "ignore_index": 1}, "example 41 of the training split"),
        ("two", "below", {"call": f"{F}.cross_entropy"}, r"example 7 of .* 2 labels are so"),
        ("tagger", "tags", "cross_entropy", "example 41 of the training split"),
        ("two", "out_of_range", "own.centres", r"example 41 .*on 2 it raised IndexError"),
        ("two", "out_of_range", {"call": "torch.nn.MultiMarginLoss"}, "example 41 of"),
    ],
)
def test_a_label_that_the_loss_cannot_take_is_named_by_its_example(
    make: Any, model: str, data: str, loss: Any, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        make(CODE, model, data, loss)


def test_a_model_that_is_its_own_loss_may_have_labels(make: Any) -> None:
    make(CODE, "Twin", "labels", "output")


@pytest.mark.parametrize(
    ("data", "loss", "said"),
    [
        ("vector", "own.barrier", r"it is nan before the first step: give a smaller init_scale"),
        ("holes", "mse", r"it is nan before the first step: the inputs of the first batch hold numbers that are not"),
    ],
)
def test_a_loss_that_is_not_finite_at_the_start_is_no_divergence(make: Any, data: str, loss: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make(CODE, "one", data, loss)


def test_ignored_labels_are_none(make: Any) -> None:
    make(CODE, "two", "below", {"call": "cross_entropy", "ignore_index": -1})
    make(CODE, "two", "out_of_range", {"call": f"{F}.cross_entropy", "ignore_index": 2})


TUNED = [
    ("flat", "near", {"call": f"{F}.smooth_l1_loss"}, "beta"),
    ("flat", "near", {"call": f"{F}.huber_loss", "reduction": "sum"}, "delta"),
    ("two", "labels", {"call": f"{F}.cross_entropy"}, "label_smoothing"),
    ("two", "labels", {"call": f"{F}.cross_entropy", "weight": [1.0, 3.0]}, "label_smoothing"),
    ("two", "below", {"call": "cross_entropy", "ignore_index": -1}, "label_smoothing"),
    ("flat", "vector", "own.annealed", "sharpness"),
    ("one", "column", "own.quantile", "q"),
]


@pytest.mark.parametrize(("model", "data", "loss", "name"), TUNED, ids=str)
def test_an_argument_of_the_loss_is_tuned(make: Any, model: str, data: str, loss: Any, name: str) -> None:
    """Against central differences of the run itself, whose loss takes the argument as a number where torch has it."""
    experiment = make(CODE, model, data, loss, hyperparameters={"lr": 0.05, name: 0.3}, steps=4)
    hyper = experiment.space.natural(experiment.space.initial())
    problem = experiment.problem(0)
    grads = [hypergradient(problem, hyper, mode).grad[name] for mode in ("forward", "reverse")]

    def end(at: float) -> torch.Tensor:
        params = {key: w.clone() for key, w in problem.initial(hyper).items()}
        fixed = {"weight": torch.tensor([1.0, 3.0], dtype=torch.float64)} if "weight" in str(loss) else {}
        for t in range(4):
            leaves = {key: w.detach().requires_grad_() for key, w in params.items()}
            batch = problem.batch(t)
            outputs = torch.func.functional_call(experiment.make_model(0), leaves, (batch.inputs,))
            function = torchs(loss)
            if function is None:
                value = experiment.loss_of(outputs, batch.targets, **{name: torch.tensor(at, dtype=torch.float64)})
            else:
                value = function(outputs, batch.targets, **{**arguments(loss), **fixed, name: at})
            gradient = torch.autograd.grad(value, list(leaves.values()))
            params = {key: (w - 0.05 * g).detach() for (key, w), g in zip(params.items(), gradient, strict=True)}
        (chunk, _) = experiment.data.validation[0]
        return problem.validation_loss(params, {}, chunk)

    want = (end(0.3 + 1e-5) - end(0.3 - 1e-5)) / 2e-5
    for got in grads:
        torch.testing.assert_close(got, want.to(got), rtol=1e-6, atol=1e-9)
    assert float(want) != 0.0


def torchs(loss: Any) -> Any:
    name = loss["call"].rpartition(".")[2] if isinstance(loss, dict) else ""
    return getattr(torch.nn.functional, name, None)


def arguments(loss: Any) -> dict[str, Any]:
    return {key: x for key, x in loss.items() if key not in ("call", "weight")} if isinstance(loss, dict) else {}


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (f"{F}.multi_margin_loss", "margin"),
        (f"{F}.multi_margin_loss", "p"),
        (f"{F}.poisson_nll_loss", "eps"),
        (f"{F}.cross_entropy", "ignore_index"),
        (f"{F}.cross_entropy", "reduction"),
        (f"{F}.nll_loss", "weight"),
        (f"{F}.kl_div", "log_target"),
        ("torch.nn.SmoothL1Loss", "beta"),
        ("cross_entropy", "weight"),
    ],
)
def test_what_takes_no_tensor_is_refused_by_name_without_data(tmp_path: Path, loss: str, name: str) -> None:
    recipe = recipe_of(tmp_path, loss={"call": loss}, hyperparameters={"lr": 0.1, name: 0.5})
    with pytest.raises(RecipeError, match=rf"hyperparameters\.{name}: {loss} takes {name} as a plain value"):
        check(recipe)


@pytest.mark.parametrize(("loss", "name"), [("own.smooth", "beta")])
def test_a_loss_of_ones_own_that_hands_it_on_as_a_number_is_told_so(make: Any, loss: str, name: str) -> None:
    with pytest.raises(RecipeError, match=f"It takes {name} as a number, in which nothing is differentiated"):
        make(CODE, "flat", "vector", loss, hyperparameters={"lr": 0.05, name: 0.5})


DATA = """
import torch
X = torch.randn(60, 4, generator=torch.Generator().manual_seed(3))
class Lazy(torch.utils.data.Dataset):
    def __init__(self, wrong): self.wrong = wrong
    def __len__(self): return 60
    def __getitem__(self, i):
        return self.wrong() if i == 41 else (X[i], X[i, :1])
def raising(error):
    def wrong(): raise error
    return Lazy(wrong)
def truncated(): return raising(OSError("image file is truncated"))
def missing(): return raising(FileNotFoundError(2, "No such file or directory", "41.png"))
def key(): return raising(KeyError("label"))
def value(): return raising(ValueError("bad header"))
def zero(): return Lazy(lambda: 1 / 0)
def shape(): return Lazy(lambda: (X[41, :3], X[41, :1]))
def target_shape(): return Lazy(lambda: (X[41], X[41, :2]))
def triple(): return Lazy(lambda: (X[41], X[41, :1], 3))
def nothing(): return Lazy(lambda: None)
def no_tensor(): return Lazy(lambda: ([1.0, 2.0], X[41, :1]))
def one():
    return torch.nn.Linear(4, 1)
"""


@pytest.mark.parametrize("residence", ["auto", "stream"])
@pytest.mark.parametrize(
    "data",
    ["truncated", "missing", "key", "value", "zero", "shape", "target_shape", "triple", "nothing", "no_tensor"],
)
def test_a_damaged_example_is_named(make: Any, data: str, residence: str) -> None:
    with pytest.raises(DatasetError, match=r"example 41"):
        read_all(make(DATA, "one", data, "mse", dataset={"residence": residence}))


def read_all(experiment: Experiment) -> None:
    assert experiment.data is not None
    for t in range(12):
        experiment.problem(0).batch(t)
    list(experiment.data.validation)
