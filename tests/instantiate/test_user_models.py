"""Models that hold what derivatives can't take as it is: compiled parts, lazy parameters, sparse embeddings, graphs."""

from typing import Any

import pytest
import torch
from torch.func import functional_call

from hyperopt_cli import hypergradient
from hyperopt_cli.errors import RecipeError
from tests.instantiate.recipes import own_parts

make = pytest.fixture(own_parts)

CODE = """
import torch
from torch import nn
from torch.nn import functional as F
G = torch.Generator().manual_seed(3)
X = torch.randn(60, 4, generator=G)
def data(): return X, X[:, :1] ** 2
def tokens():
    i = torch.randint(0, 9, (60, 3), generator=G)
    return i, i.sum(dim=1, keepdim=True) / 9.0
def images(): return torch.randn(60, 2, 6, 6, generator=G), X[:, :1]

def plain(): return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
def compiled(): return torch.compile(plain())
class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.compile(plain())
    def forward(self, x): return self.body(x)
class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        rest = nn.Sequential(nn.Tanh(), torch.compile(nn.Linear(6, 1)))
        self.body = nn.ModuleList([nn.Linear(4, 6), torch.compile(rest)])
    def forward(self, x):
        for part in self.body: x = part(x)
        return x
def inside(): return Inside()
def twice(): return Twice()
def in_place():
    model = plain()
    model[0].compile()
    model.compile()
    return model
class Decorated(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = plain()
    @torch.compile
    def forward(self, x): return self.body(x)
def decorated(): return Decorated()
@torch.compile
def act(x): return torch.tanh(x)
class Calls(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 1)
    def forward(self, x): return self.b(act(self.a(x)))
def calls(): return Calls()
def loss(outputs, targets): return F.mse_loss(outputs, targets)
compiled_loss = torch.compile(loss)
def by_compiled(outputs, targets): return compiled_loss(outputs, targets)

def lazy(): return nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(1))
def lazy_norm(): return nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.Dropout(0.2), nn.LazyLinear(1))
def lazy_conv(): return nn.Sequential(nn.LazyConv2d(3, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(1))
def sparse(): return nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(12, 1))
def bag(): return nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 1))
def dense(): return nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 1))
class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Parameter(torch.randn(9, 4)), nn.Linear(4, 1)
    def forward(self, i): return self.head(F.embedding(i, self.table, sparse=True).mean(1))
def functional(): return Functional()
def old_norm(): return nn.utils.weight_norm(nn.Linear(4, 1))
def spectral(): return nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 1))
class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 1))
        self.last = (self.w * 2).sum()
    def forward(self, x): return x @ self.w
def cached(): return Cached()
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "data", "loss"),
    [
        ("compiled", "data", "mse"),
        ("inside", "data", "mse"),
        ("twice", "data", "mse"),
        ("in_place", "data", "mse"),
        ("decorated", "data", "mse"),
        ("calls", "data", "mse"),
        ("plain", "data", "own.by_compiled"),
        ("lazy", "data", "mse"),
        ("lazy_norm", "data", "mse"),
        ("lazy_conv", "images", "mse"),
        ("sparse", "tokens", "mse"),
        ("cached", "data", "mse"),
    ],
)
def test_it_is_differentiated_as_it_was_written(make: Any, model: str, data: str, loss: str) -> None:
    """dE/dlr against central differences of plain training of the model that the recipe makes."""
    experiment = make(CODE, model, data, loss, steps=3)
    hyper = experiment.space.natural(experiment.space.initial())
    problem = experiment.problem(0)

    def end(lr: float) -> torch.Tensor:
        params = {name: w.detach().clone() for name, w in problem.initial(hyper).items()}
        for t in range(3):
            leaves = {name: w.detach().requires_grad_() for name, w in params.items()}
            gradient = torch.autograd.grad(problem.training_loss(leaves, {}, problem.batch(t)), list(leaves.values()))
            params = {name: (w - lr * g).detach() for (name, w), g in zip(params.items(), gradient, strict=True)}
        (chunk, _) = experiment.data.validation[0]
        return problem.validation_loss(params, {}, chunk)

    want = (end(0.05 + 1e-5) - end(0.05 - 1e-5)) / 2e-5
    for mode in ("forward", "reverse"):
        got = hypergradient(problem, hyper, mode).grad["lr"]
        torch.testing.assert_close(got, want.detach().to(got), rtol=1e-6, atol=1e-9)
    assert experiment.test({}, 0) is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", ["compiled", "inside", "in_place", "decorated"])
def test_values_and_names_are_those_without_compiling(make: Any, model: str) -> None:
    experiment = make(CODE, model, "data", "mse")
    made, plain = experiment.make_model(5), make(CODE, "plain", "data", "mse").make_model(5)
    assert [name.removeprefix("body.") for name, _ in made.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    for w, v in zip(made.parameters(), plain.parameters(), strict=True):
        assert torch.equal(w, v)


def test_lazy_parameters_are_drawn_by_seed(make: Any) -> None:
    experiment = make(CODE, "lazy_norm", "data", "mse")
    one, again, other = (dict(experiment.make_model(seed).named_parameters()) for seed in (1, 1, 2))
    assert one["0.weight"].shape == (6, 4)
    assert one["0.weight"].dtype == torch.float64
    assert torch.equal(one["0.weight"], again["0.weight"])
    assert not torch.equal(one["0.weight"], other["0.weight"])


def test_a_sparse_table_has_the_gradient_of_a_dense_one(make: Any) -> None:
    sparse, dense = (make(CODE, model, "tokens", "mse") for model in ("sparse", "dense"))
    batch = sparse.problem(0).batch(0)
    grads = []
    for experiment in (sparse, dense):
        model = experiment.make_model(3)
        params = dict(model.named_parameters())
        value = functional_call(model, params, (batch.inputs,)).square().mean()
        grads.append(torch.autograd.grad(value, list(params.values())))
    for x, y in zip(*grads, strict=True):
        assert torch.equal(x, y)


def test_a_bag_has_a_dense_gradient(make: Any) -> None:
    experiment = make(CODE, "bag", "tokens", "mse")  # engines have no second derivative of it, whatever its layout
    model, batch = experiment.make_model(3), experiment.problem(0).batch(0)
    model(batch.inputs).sum().backward()
    assert all(w.grad.layout == torch.strided for w in model.parameters())


def test_a_sparse_gradient_of_a_function_is_refused_by_the_parameters_name(make: Any) -> None:
    with pytest.raises(RecipeError, match=r"model: the gradient of table is torch\.sparse_coo; leave out sparse=True"):
        make(CODE, "functional", "tokens", "mse")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", ["old_norm", "spectral"])
def test_what_hangs_on_a_graph_of_the_constructor_is_built(make: Any, model: str) -> None:
    experiment = make(CODE, model, "data", "mse")
    problem = experiment.problem(0)
    params = problem.initial({})
    assert problem.training_loss(params, {}, problem.batch(0)).isfinite()
    assert problem.validation_loss(params, {}, experiment.data.validation[0][0]).isfinite()
